"""Charts of the report as inline SVG. Colours are classes of the page's style, so they follow light, dark and print."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from markupsafe import Markup

WIDTH, HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _FOOT = 52, 12, 14, 30


def histograms(above: Sequence[float], below: Sequence[float], mark: float, text: str) -> Markup:
    """Two histograms over 0..1 on one axis, the second mirrored, with a mark; ``text`` says what is seen.

    Args:
        above, below: the share (0..1) of each bin; heights are its square root, as most clean scores are near 0.
        mark: in 0..1, where the upright line stands.
    """
    half = (HEIGHT - _TOP - _FOOT) / 2
    middle, across = _TOP + half, WIDTH - _LEFT - _RIGHT
    tallest = max([1e-9, *above, *below])

    def bars(shares: Sequence[float], kind: str, sign: int) -> Markup:
        step = across / max(1, len(shares))
        parts = []
        for k, share in enumerate(shares):
            height = half * sqrt(share / tallest)
            if share > 0:
                top = middle - height if sign > 0 else middle
                x, width = f"{_LEFT + k * step:.1f}", f"{max(1.0, step - 1):.1f}"
                parts.append(
                    Markup('<rect class="{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"/>').format(
                        kind, x, top, width, height
                    )
                )
        return Markup("").join(parts)

    x = _LEFT + across * min(1.0, max(0.0, mark))
    return _figure(
        text,
        bars(above, "s0", 1),
        bars(below, "s1", -1) if below else "",
        _line("axis", (_LEFT, middle), (WIDTH - _RIGHT, middle)),
        _line("mark", (x, _TOP), (x, HEIGHT - _FOOT)),
        *(_text(_LEFT + across * v, HEIGHT - 12, f"{v:g}", "middle") for v in (0, 0.25, 0.5, 0.75, 1)),
        _text(_LEFT - 4, _TOP + half / 2, "clean", "end"),
        _text(_LEFT - 4, middle + half / 2, "trigger", "end") if below else "",
    )


def lines(series: Sequence[Sequence[float]], text: str) -> Markup:
    """Shares (0..1) over rounds, a line for each of the ``series``; ``text`` says what is seen."""
    down, across = HEIGHT - _TOP - _FOOT, WIDTH - _LEFT - _RIGHT
    rounds = max(map(len, series))

    def place(k: int, share: float) -> tuple[float, float]:
        return _LEFT + across * (k + 0.5) / rounds, _TOP + down * (1 - share)

    parts: list[Markup | str] = []
    for share in (0, 0.5, 1):
        y = _TOP + down * (1 - share)
        parts.append(_line("axis" if share == 0 else "grid", (_LEFT, y), (WIDTH - _RIGHT, y)))
        parts.append(_text(_LEFT - 4, y + 4, f"{share:.0%}", "end"))
    for i, values in enumerate(series):
        places = [place(k, value) for k, value in enumerate(values)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(Markup('<polyline class="l{}" points="{}"/>').format(i % 4, points))
        parts += [
            Markup('<circle class="d{}" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(i % 4, x, y)
            for x, y in places
        ]
    parts += [_text(place(k, 0)[0], HEIGHT - 12, str(k + 1), "middle") for k in range(rounds)]
    return _figure(text, *parts)


def _figure(text: str, *parts: Markup | str) -> Markup:
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
        text, WIDTH, HEIGHT, Markup("").join(parts)
    )


def _line(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, *start, *end
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
