"""What a reviewer reads: report.json with every figure, report.html with the pictures beside them."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.manifest import Manifest

Pixels = npt.NDArray[np.float32]
_SIDE = 96  # pixels a picture is shown at
_HEADINGS = ("clean", "inverted trigger on it", "what it changes (x4)", "purified", "what P removed (x4)")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse}td,th{padding:.25rem .7rem;text-align:left;border-bottom:1px solid #dde3ea}
td.n{text-align:right;font-variant-numeric:tabular-nums}.hot{background:#fde2df;font-weight:600}
.bad{color:#b3261e}.good{color:#1b7f3b}figure{margin:1rem 0}img{image-rendering:pixelated;max-width:100%}
"""


def contact_sheet(clean: Pixels, triggered: Pixels, purified: Pixels) -> Image.Image:
    """One row an image (n, C, H, W) in [0, 1]: clean, triggered, difference, purified, difference."""
    columns = (clean, triggered, 0.5 + 4 * (triggered - clean), purified, 0.5 + 4 * (purified - triggered))
    gap = 6
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
    families = report["screen"]
    shown = sorted(range(len(names)), key=lambda k: min(f["z"][k] for f in families.values()))[:20]
    head = "".join(f"<th colspan=3>{text(name)}</th>" for name in families)
    rows = "".join(
        f"<tr><td>{text(names[k])}</td>"
        + "".join(
            f"<td class='n{' hot' if f['z'][k] <= report['strong_z'] else ''}'>{f['z'][k]:.1f}</td>"
            f"<td class=n>{f['cost'][k]:.3f}</td><td class=n>{f['success'][k]:.0%}</td>"
            for f in families.values()
        )
        + "</tr>"
        for k in shown
    )
    figures = "".join(
        f"<tr><td>{text(name)}</td><td class=n>{value:.4g}</td></tr>"
        for name, value in manifest.metrics.items()
    )
    rounds = report["remaining"]
    remaining = "".join(
        f"<tr><td>{text(key)}</td>"
        + "".join(f"<td class=n>{r.get(key, 0):.0%}</td>" for r in rounds)
        + "</tr>"
        for key in (rounds[0] if rounds else {})
    )
    columns = " | ".join(_HEADINGS)
    pictures = "".join(
        f"<h2>{text(heading)}</h2><p>{columns}</p><figure><img alt='{columns}' src='{_inline(sheet)}'></figure>"
        for heading, sheet in sheets.items()
    )
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>Detrigger report {text(manifest.id)}</title>
<style>{_STYLE}</style>
<h1>{text(manifest.name)}: {manifest.verdict}</h1>
<p>Suspected target labels: <b>{text(targets)}</b>. Version {text(manifest.id)}, profile {text(manifest.profile)},
seed {manifest.seed}, {manifest.data.n_images} clean images, {manifest.seconds:.0f} s.</p>
<h2>Gate: {"passed" if manifest.gate.passed else "refused"}</h2><table>{gate}</table>
{pictures}
<h2>How cheaply each class is reached (most suspicious {len(shown)} of {len(names)})</h2>
<p>z: robust distance of the log cost from the median over the classes; at most {report["strong_z"]} is evidence
(red). cost: mask share, blend weight, or pixels of displacement. success: on held-out images.</p>
<table><tr><th>class</th>{head}</tr>
<tr><td></td>{"<td>z</td><td>cost</td><td>success</td>" * len(families)}</tr>{rows}</table>
<h2>What inversion through the purifier still achieved, round by round</h2>
<table>{remaining or "<tr><td>nothing stood out, so nothing was inverted again</td></tr>"}</table>
<h2>Figures</h2><table>{figures}</table>
</html>
"""


def _inline(sheet: Image.Image) -> str:
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
