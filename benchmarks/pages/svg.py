"""The few shapes that the pictures in docs/ are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

BARE, OURS, FLOOR, INK, FAINT = "#c0392b", "#1f6feb", "#57606a", "#24292f", "#d0d7de"


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "400") -> str:
    """Words whose baseline starts, ends or is centred ("start", "end", "middle") at a point."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def curve(points: Sequence[tuple[float, float]], colour: str, width: int = 2) -> str:
    """Straight lines from point to point."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def dot(x: float, y: float, colour: str, radius: float = 4.5) -> str:
    """A filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def picture(width: float, height: float, parts: Iterable[str]) -> str:
    """A whole SVG file on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        'font-family="system-ui, sans-serif" font-size="12">\n'
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
