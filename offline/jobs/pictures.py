"""Pictures of what was found: strips of images for the report, and contact sheets for ``scan --out FILE.png``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from detrigger.offline.steps.find import Findings, name_of
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.types import Labels, Pixels

LARGEST = 256
"""Pixels that an image keeps on a side; the page shows smaller ones enlarged, pixel by pixel."""
STRONGER = 4
"""How much differences are amplified."""
STRIPS, WORST = 3, 4
"""How many images the page shows for each trigger, and how many that the defence harms."""
EVERYWHERE = 0.6
"""A box that covers this share of the image says nothing of the trigger's place."""
_SIDE, _GAP = 96, 6  # contact sheets: pixels a picture is shown at, and between two


@dataclass(frozen=True)
class Defended:
    """What the defence makes of images (N, C, H, W): logits (N, K), flag scores (N,), the purified images."""

    logits: Pixels
    score: Pixels
    purified: Pixels


@dataclass(frozen=True)
class Seen:
    """What is answered to images: the bare suspect's logits (N, K), and the defence's part where there is one."""

    bare: Pixels
    defended: Defended | None = None


Watch = Callable[[Pixels], Seen]


@dataclass(frozen=True)
class Cell:
    """A picture: its title, the PNG as data: address, lines below it, and a box (x, y, width, height, in pixels of an
    image of ``size`` (W, H)) around what matters.
    """

    title: str
    source: str
    lines: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 1)
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Strip:
    """Pictures of one image, side by side, and what to see in them."""

    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Sheet:
    """All pictures of one trigger: the trigger alone, enlarged, and strips."""

    heading: str
    trigger: Cell
    strips: tuple[Strip, ...]


def sheets(
    findings: Findings, classes: Sequence[str], images: tuple[Pixels, Labels], watch: Watch
) -> list[Sheet]:
    """Every inverted trigger on some ``images`` (x in [0, 1], labels) that nothing was trained on."""
    x, y = images
    banks = [
        (
            f"Trigger {'taken from reviewed images' if any(e is it for it in findings.lessons.taken) else 'rebuilt'} as"
            f" {e.family}, to “{name_of(e.target, classes)}”",
            e.bank,
            e.target,
        )
        for e in findings.leads
    ]
    nothing = ("No trigger stood out; this is what the search without a target does", findings.generator, -1)
    made = []
    for heading, bank, target in banks or [nothing]:
        others = np.flatnonzero(y != target)
        chosen = others[:: max(1, len(others) // STRIPS)][:STRIPS]
        clean = x[chosen]
        triggered = put_on(bank, clean)
        mean = x.mean(0, keepdims=True)
        alone = put_on(bank, mean)
        box = box_of(np.abs(triggered - clean).mean(0))
        trigger = Cell("the trigger on the mean of all images", data_url(alone[0]), (), _size(mean[0]), box)
        before, after = watch(clean), watch(triggered)
        strips = []
        for i in range(len(chosen)):
            cells = [
                Cell("clean", data_url(clean[i]), answers(before, i, classes)),
                Cell(
                    "with the trigger",
                    data_url(triggered[i]),
                    answers(after, i, classes),
                    _size(clean[i]),
                    box_of(np.abs(triggered[i] - clean[i])),
                ),
                Cell(f"difference (x{STRONGER})", data_url(0.5 + STRONGER * (triggered[i] - clean[i]))),
            ]
            if after.defended is not None:
                removed = after.defended.purified[i] - triggered[i]
                cells += [
                    Cell("purified", data_url(after.defended.purified[i])),
                    Cell(f"what was removed (x{STRONGER})", data_url(0.5 + STRONGER * removed)),
                ]
            strips.append(Strip(f"True class: {classes[y[chosen[i]]]}", tuple(cells)))
        made.append(Sheet(heading, trigger, tuple(strips)))
    return made


def worst_clean(images: tuple[Pixels, Labels], seen: Seen, classes: Sequence[str]) -> list[Strip]:
    """The clean images that the defence treats worst: answers it spoils, false alarms, and the largest changes."""
    x, y = images
    after = seen.defended
    if after is None:
        return []
    spoilt = np.flatnonzero((seen.bare.argmax(1) == y) & (after.logits.argmax(1) != y))
    change = np.sqrt(((after.purified - x) ** 2).mean((1, 2, 3)))
    picked: dict[int, str] = {}
    for i in spoilt[np.argsort(-after.score[spoilt])][:2]:
        picked[int(i)] = "right before, wrong after"
    for i in np.argsort(-after.score)[:WORST]:
        picked.setdefault(int(i), "among the highest flag scores")
    picked = dict(list(picked.items())[: WORST - 1])
    picked.setdefault(int(change.argmax()), "the largest change of pixels")
    strips = []
    for i, why in picked.items():
        removed = after.purified[i] - x[i]
        cells = (
            Cell("clean", data_url(x[i]), answers(seen, i, classes)),
            Cell("purified", data_url(after.purified[i])),
            Cell(f"difference (x{STRONGER})", data_url(0.5 + STRONGER * removed)),
        )
        strips.append(Strip(f"True class: {classes[y[i]]}; {why}", cells))
    return strips


@torch.no_grad()
def put_on(bank: TriggerBank, x: Pixels) -> Pixels:
    """Images (N, C, H, W) in [0, 1] with the first trigger of ``bank`` on them, rounded to 8 bits."""
    first = torch.zeros(len(x), dtype=torch.long)
    triggered = bank.cpu()(torch.from_numpy(x), first).clamp(0, 1).numpy()
    rounded: Pixels = np.round(triggered * 255).astype(np.float32) / np.float32(255)
    return rounded


def answers(seen: Seen, i: int, classes: Sequence[str]) -> tuple[str, ...]:
    """Both answers to image ``i`` with their scores, and its flag score."""

    def best(logits: Pixels) -> str:
        shares = np.exp(logits[i].astype(np.float64) - logits[i].max())
        k = int(shares.argmax())
        return f"{classes[k]} ({shares[k] / shares.sum():.0%})"

    found = [f"bare: {best(seen.bare)}"]
    if seen.defended is not None:
        found.append(f"Detrigger: {best(seen.defended.logits)}")
        found.append(f"flag score: {seen.defended.score[i]:.2f}")
    return tuple(found)


def box_of(change: Pixels) -> tuple[int, int, int, int] | None:
    """The box (x, y, width, height) around most of a ``change`` (C, H, W); None where it is all over the image."""
    strength = change.max(0)
    if strength.max() < 1 / 255:
        return None
    rows, columns = np.nonzero(strength > 0.25 * strength.max())
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    return None if height * width > EVERYWHERE * strength.size else (left, top, width, height)


def data_url(pixels: Pixels) -> str:
    """A picture (C, H, W) in [0, 1] as PNG in a data: address."""
    picture, data = _picture(pixels), io.BytesIO()
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    picture.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def contact_sheets(findings: Findings, classes: Sequence[str], x: Pixels) -> dict[str, Image.Image]:
    """A contact sheet for each inverted trigger by its heading, on six of the images ``x`` (N, C, H, W) in [0, 1]."""
    banks = {f"Inverted trigger: {e.family} to {name_of(e.target, classes)}": e.bank for e in findings.leads}
    banks = banks or {"No trigger stood out; this is what the generator of Eq. 2 does": findings.generator}
    clean = x[:: max(1, len(x) // 6)][:6]
    return {heading: _contact_sheet(clean, put_on(bank, clean)) for heading, bank in banks.items()}


def _contact_sheet(clean: Pixels, triggered: Pixels) -> Image.Image:
    """One row an image (n, C, H, W) in [0, 1]: clean, triggered, difference."""
    columns = [clean, triggered, 0.5 + STRONGER * (triggered - clean)]
    gap = _GAP
    sheet = Image.new("RGB", (len(columns) * (_SIDE + gap) - gap, len(clean) * (_SIDE + gap) - gap), "white")
    for j, column in enumerate(columns):
        for i, pixels in enumerate(column):
            picture = _picture(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (j * (_SIDE + gap), i * (_SIDE + gap)))
    return sheet


def stack(made: dict[str, Image.Image]) -> Image.Image:
    """The contact sheets under their headings as one picture."""
    line, edge = 40, 12
    width = max(sheet.width for sheet in made.values()) + 2 * edge
    page = Image.new("RGB", (width, sum(s.height + line for s in made.values())), "white")
    draw, top = ImageDraw.Draw(page), 0
    for heading, sheet in made.items():
        draw.text((edge, top + 12), heading, "black", ImageFont.load_default(14))
        page.paste(sheet, (edge, top + line))
        top += line + sheet.height
    return page


def _picture(pixels: Pixels) -> Image.Image:
    array = np.round(pixels.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
    return Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).convert("RGB")


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[2], pixels.shape[1]
