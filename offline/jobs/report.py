"""What a reviewer reads: the report of a version, and that of a scan, as self-contained pages; contact sheets."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from detrigger.models.manifest import Manifest
from detrigger.offline.inputs.data import UNLABELLED
from detrigger.offline.jobs.results import ScanResult
from detrigger.offline.steps.find import Findings, name_of
from detrigger.offline.types import Pixels

_SIDE, _GAP = 96, 6  # pixels a picture is shown at, and between two
_HEADINGS = ("clean", "inverted trigger on it", "what it changes (x4)", "purified", "what P removed (x4)")

MOST_TARGETS = 20
"""Rows of the table of classes."""
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid #dde3ea}
td.n{text-align:right;font-variant-numeric:tabular-nums}.hot{font-weight:700}
.bad{color:#b3261e}.good{color:#1b7f3b}figure{margin:1rem 0}img{image-rendering:pixelated;max-width:100%}
"""


def sheets_of(
    findings: Findings, classes: Sequence[str], x: Pixels, purify: Callable[[Pixels], Pixels] | None = None
) -> dict[str, Image.Image]:
    """A contact sheet for each inverted trigger by its heading, on six of the images ``x`` (N, C, H, W) in [0, 1]."""
    banks = {f"Inverted trigger: {e.family} to {name_of(e.target, classes)}": e.bank for e in findings.leads}
    banks = banks or {"No trigger stood out; this is what the generator of Eq. 2 does": findings.generator}
    clean = x[:: max(1, len(x) // 6)][:6]
    sheets = {}
    for heading, bank in banks.items():
        with torch.no_grad():
            first = torch.zeros(len(clean), dtype=torch.long)
            triggered = bank.cpu()(torch.from_numpy(clean), first).clamp(0, 1).numpy()
        sheets[heading] = contact_sheet(clean, triggered, purify(triggered) if purify else None)
    return sheets


def contact_sheet(clean: Pixels, triggered: Pixels, purified: Pixels | None = None) -> Image.Image:
    """One row an image (n, C, H, W) in [0, 1]: clean, triggered, difference, and purified, difference if given."""
    columns = [clean, triggered, 0.5 + 4 * (triggered - clean)]
    if purified is not None:
        columns += [purified, 0.5 + 4 * (purified - triggered)]
    gap = _GAP
    sheet = Image.new("RGB", (len(columns) * (_SIDE + gap) - gap, len(clean) * (_SIDE + gap) - gap), "white")
    for j, column in enumerate(columns):
        for i, pixels in enumerate(column):
            array = np.round(pixels.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
            picture = Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).convert("RGB")
            size = (_SIDE, _SIDE)
            sheet.paste(
                picture.resize(size, Image.Resampling.NEAREST), (j * (_SIDE + gap), i * (_SIDE + gap))
            )
    return sheet


def render(manifest: Manifest, report: dict[str, Any], sheets: dict[str, Image.Image]) -> str:
    """report.html: one self-contained page; ``sheets`` are pictures by their headings. Names of files are escaped."""
    text = html.escape
    names = manifest.classes
    targets = ", ".join(f"{t} ({names[t]})" for t in manifest.target_labels) or "none"
    gate = "".join(
        f"<tr><td>{text(c.name)}</td><td class=n>{c.value:.2%}</td><td class=n>&le; {c.limit:.2%}</td>"
        f"<td class={'good' if c.passed else 'bad'}>{'passed' if c.passed else 'refused'}</td>"
        f"<td>{text(c.detail)}</td></tr>"
        for c in manifest.gate.checks
    )
    figures = "".join(
        f"<tr><td>{text(name)}</td><td class=n>{value:.4g}</td></tr>"
        for name, value in manifest.metrics.items()
    )
    return f"""{_head(f"Detrigger report {manifest.id}")}
<h1>{text(manifest.name)}: {manifest.verdict}</h1>
<p>Suspected target labels: <b>{text(targets)}</b>. Version {text(manifest.id)}, profile {text(manifest.profile)},
seed {manifest.seed}, {manifest.data.n_images} clean images, {manifest.seconds:.0f} s.</p>
{_labelled(manifest.data.labelled)}
<h2>Gate: {"passed" if manifest.gate.passed else "refused"}</h2><table>{gate}</table>
{_logic(report["logic"])}
{_pictures(sheets)}
{_screen_table(names, report["screen"], report["strong_gap"])}
<h2>What inversion through the purifier still achieved, round by round</h2>
{_rounds(report["remaining"])}
<h2>The same through the purifier and the repaired weights behind it</h2>
{_rounds(report["remaining_repaired"])}
<h2>Figures</h2><table>{figures}</table>
</html>
"""


def _labelled(labelled: bool) -> str:
    return "" if labelled else f"<p><b>Mind:</b> {html.escape(UNLABELLED)}.</p>"


def _rounds(rounds: list[dict[str, float]]) -> str:
    """Success of each round's inversions, a row for each of them."""
    if not rounds:
        return "<p>Nothing was inverted again.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td>{''.join(f'<td class=n>{r.get(key, 0):.0%}</td>' for r in rounds)}</tr>"
        for key in rounds[0]
    )
    return f"<table>{rows}</table>"


def render_scan(scan: ScanResult, sheets: dict[str, Image.Image]) -> str:
    """The page of ``detrigger scan --out FILE.html``."""
    text = html.escape
    targets = ", ".join(f"{t} ({scan.classes[t]})" for t in scan.target_labels) or "none"
    signs = "".join(
        f"<tr><td>{sign.family}</td><td>{text(sign.label)}</td><td class=n>{sign.gap:.1f}</td>"
        f"<td class=n>{sign.cost:.3f}</td><td class=n>{sign.success:.0%}</td></tr>"
        for sign in scan.evidence
    )
    found = f"<table><tr><th>family</th><th>to class</th><th>gap</th><th>cost</th><th>success</th></tr>{signs}</table>"
    return f"""{_head(f"Detrigger scan {scan.file_name}")}
<h1>{text(scan.file_name)}: {scan.verdict}</h1>
<p>Suspected target labels: <b>{text(targets)}</b>. sha256 {scan.suspect}; {scan.n_images} clean images,
{scan.seconds:.0f} s. "clean" means that no trigger of the families asked stands out; it is no certificate.</p>
{f"<p><b>{text(scan.reason)}</b></p>" if scan.reason else ""}
{_logic(scan.logic)}
{_labelled(scan.labelled)}
<h2>Evidence</h2>{found if signs else "<p>Nothing stands out.</p>"}
{_pictures(sheets)}
{_screen_table(scan.classes, scan.screen, scan.strong_gap)}
</html>
"""


def _logic(rows: Sequence[dict[str, Any]]) -> str:
    """What was found in the graph itself; nothing where nothing was."""
    if not rows:
        return ""
    text = html.escape

    def sign(row: dict[str, Any]) -> str:
        s = row["sign"]
        if s is None:
            return "not found"
        where = f"{s['height']}x{s['width']} pixels at row {s['top']}, column {s['left']}"
        return f"{where}: works on {s['success']:.0%} of clean images"

    cells = "".join(
        f"<tr><td>{text(r['node'])}</td><td>{text(r['op'])}</td><td>{text(r['why'])}</td><td>{sign(r)}</td></tr>"
        for r in rows
    )
    return f"""<h2 class=bad>Logic in the graph</h2><p>The answer depends on nodes that are no part of the weights. They
were cut out before anything else was done.</p>
<table><tr><th>node</th><th>operator</th><th>why</th><th>sign</th></tr>{cells}</table>"""


def stack(sheets: dict[str, Image.Image]) -> Image.Image:
    """The sheets under their headings as one picture, for ``detrigger scan --out FILE.png``."""
    line, edge = 40, 12
    page = Image.new(
        "RGB",
        (
            max(sheet.width for sheet in sheets.values()) + 2 * edge,
            sum(s.height + line for s in sheets.values()),
        ),
        "white",
    )
    draw, top = ImageDraw.Draw(page), 0
    for heading, sheet in sheets.items():
        draw.text((edge, top + 12), heading, "black", ImageFont.load_default(14))
        page.paste(sheet, (edge, top + line))
        top += line + sheet.height
    return page


def _head(title: str) -> str:
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>
<style>{_STYLE}</style>"""


def _screen_table(names: Sequence[str], families: dict[str, dict[str, list[Any]]], strong_gap: float) -> str:
    """Every target as every family sees it, most suspicious first; of several candidates for one the strongest.

    The redder, the cheaper; cost and success are in each cell's tooltip.
    """
    text = html.escape
    seen: dict[int, dict[str, tuple[float, float, float]]] = {}
    for family, f in families.items():
        for target, *figures in zip(f["target"], f["gap"], f["cost"], f["success"], strict=True):
            row = seen.setdefault(target, {})
            row[family] = max(row.get(family, (-inf, 0.0, 0.0)), tuple(figures))
    order = sorted(seen, key=lambda target: max(seen[target].values()), reverse=True)

    def cell(row: dict[str, tuple[float, float, float]], family: str) -> str:
        if family not in row:
            return "<td></td>"
        gap, cost, success = row[family]
        gap = max(0.0, gap)
        hot = " hot" if gap >= strong_gap else ""
        tint = f"background:rgb(179 38 30/{min(0.6, 0.15 * gap / strong_gap):.2f})"
        return (
            f"<td class='n{hot}' style='{tint}' title='cost {cost:.3f}, success {success:.0%}'>{gap:.1f}</td>"
        )

    head = "".join(f"<th>{text(family)}</th>" for family in families)
    rows = "".join(
        f"<tr><td>{text(name_of(target, names))}</td>{''.join(cell(seen[target], f) for f in families)}</tr>"
        for target in order[:MOST_TARGETS]
    )
    left_out = len(order) - MOST_TARGETS
    more = f"<p>{left_out} more stand out less.</p>" if left_out > 0 else ""
    return f"""<h2>How cheaply each class is reached</h2>
<p>Bits by which the class is cheaper to reach than the lower quartile of all; {strong_gap} and more is evidence (bold).
Point at a cell for cost (mask share, blend weight, amplitude, pixels of displacement, change of tone, or half of a
kernel's absolute sum) and success on held-out images.</p>
<table><tr><th>class</th>{head}</tr>{rows}</table>{more}"""


def _pictures(sheets: dict[str, Image.Image]) -> str:
    parts = []
    for heading, sheet in sheets.items():
        columns = " | ".join(_HEADINGS[: 5 if sheet.width > 3 * (_SIDE + _GAP) else 3])
        parts.append(
            f"<h2>{html.escape(heading)}</h2><p>{columns}</p>"
            f"<figure><img alt='{columns}' src='{_inline(sheet)}'></figure>"
        )
    return "".join(parts)


def _inline(sheet: Image.Image) -> str:
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
