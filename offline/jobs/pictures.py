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
from detrigger.offline.triggers.change import ChangeBank
from detrigger.offline.triggers.spot import SpotBank
from detrigger.offline.triggers.sticker import StickerBank
from detrigger.offline.types import Labels, Pixels

LARGEST = 256
"""Pixels that an image keeps on a side; the page shows smaller ones enlarged, pixel by pixel."""
STRONGER = 4
"""How much differences are amplified."""
STRIPS, WORST = 3, 4
"""How many images the page shows for each trigger, and how many that the defence harms."""
EVERYWHERE, INSIDE = 0.6, 0.75
"""A box that covers this share of the image, or holds less than this one of the change, says nothing of a place."""
PLACED_BY = 64
"""Images whose mean change says where a trigger lies."""
_SIDE, _GAP = 96, 6  # contact sheets: pixels a picture is shown at, and between two


@dataclass(frozen=True)
class Defended:
    """What the defence makes of images (N, C, H, W): logits (N, K), flag scores (N,), the purified images.

    A score above ``threshold`` is flagged.
    """

    logits: Pixels
    score: Pixels
    purified: Pixels
    threshold: float


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
    """All pictures of one trigger: the trigger ``alone``, enlarged, and strips. ``family`` is empty for no trigger."""

    heading: str
    family: str
    alone: tuple[Cell, ...]
    strips: tuple[Strip, ...]


def sheets(
    findings: Findings, classes: Sequence[str], images: tuple[Pixels, Labels], watch: Watch
) -> list[Sheet]:
    """Every inverted trigger on some ``images`` (x in [0, 1], labels) that nothing was trained on."""
    x, y = images
    banks = [
        (
            f"To “{name_of(e.target, classes)}”,"
            f" {'taken from reviewed images' if any(e is it for it in findings.lessons.taken) else 'rebuilt'} as"
            f" {e.family}{f' ({e.bank.names()[0]})' if isinstance(e.bank, ChangeBank) else ''}",
            e.family,
            e.bank,
            e.target,
        )
        for e in findings.leads
    ]
    if not banks:
        said = "No trigger stood out; this is what the search without a target does"
        banks = [(said, "", findings.without_target, -1)]
    made = []
    for heading, family, bank, target in banks:
        others = np.flatnonzero(y != target)
        chosen = others[:: max(1, len(others) // STRIPS)][:STRIPS]
        clean = x[chosen]
        triggered = put_on(bank, clean)
        wanders = isinstance(bank, StickerBank) and not isinstance(bank, SpotBank)
        some = x[others[:PLACED_BY]]
        box = None if wanders else box_of(np.abs(put_on(bank, some) - some).mean(0))
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
                    box_of(np.abs(triggered[i] - clean[i])) if wanders else box,
                ),
                Cell(f"what the trigger changes (x{STRONGER})", difference(clean[i], triggered[i])),
            ]
            purified = triggered[i] if after.defended is None else after.defended.purified[i]
            if shows(triggered[i], purified):
                cells += [
                    Cell("purified", data_url(purified)),
                    Cell(f"what purifying changes (x{STRONGER})", difference(triggered[i], purified)),
                ]
            strips.append(Strip(f"True class: {classes[y[chosen[i]]]}", tuple(cells)))
        made.append(Sheet(heading, family, alone(bank, x, box), tuple(strips)))
    return made


def alone(bank: TriggerBank, x: Pixels, box: tuple[int, int, int, int] | None) -> tuple[Cell, ...]:
    """The trigger by itself: on the mean of images ``x`` (N, C, H, W), or on a test card where it only shows on edges
    and colours.
    """
    some = x[:PLACED_BY]
    flat = x.mean(0, keepdims=True)
    on_flat, on_images = (np.abs(put_on(bank, it) - it).mean() for it in (flat, some))
    title, ground = ("the mean of all images", flat[0])
    if on_flat < on_images / 2:
        title, ground = ("a test card", card_of(x.shape[1:]))
    changed = put_on(bank, ground[None])[0]
    return (
        Cell(title, data_url(ground)),
        Cell("with the trigger", data_url(changed), (), _size(ground), box),
        Cell(f"what the trigger changes (x{STRONGER})", difference(ground, changed)),
    )


def card_of(shape: tuple[int, ...]) -> Pixels:
    """A picture (C, H, W) of straight lines over slopes of colour: what bends, blurs or tints is seen on it."""
    c, h, w = shape
    down, across = np.mgrid[0:h, 0:w].astype(np.float32)
    slopes = np.stack([across / max(1, w - 1), down / max(1, h - 1), 1 - across / max(1, w - 1)])
    card = 0.2 + 0.6 * (slopes if c == 3 else slopes.mean(0, keepdims=True).repeat(c, 0))
    step = max(4, min(h, w) // 8)
    lines = (down % step == step // 2) | (across % step == step // 2)
    card[:, lines] = 1.0
    return card.astype(np.float32)


def shows(before: Pixels, after: Pixels) -> bool:
    """Whether two pictures differ once they have 8 bits; where nothing is purified, a second one says nothing."""
    return bool(np.abs(after - before).max() > 0.5 / 255)


def difference(before: Pixels, after: Pixels) -> str:
    """A picture of what changed between two (C, H, W), amplified around grey."""
    return data_url(0.5 + STRONGER * (after - before))


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
    if change.max() > 0:
        picked.setdefault(int(change.argmax()), "the largest change of pixels")
    strips = []
    for i, why in picked.items():
        cells = [Cell("clean", data_url(x[i]), answers(seen, i, classes))]
        if shows(x[i], after.purified[i]):
            cells += [
                Cell("purified", data_url(after.purified[i])),
                Cell(f"what purifying changes (x{STRONGER})", difference(x[i], after.purified[i])),
            ]
        strips.append(Strip(f"True class: {classes[y[i]]}; {why}", tuple(cells)))
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
        score = seen.defended.score[i]
        found.append(f"flag score: {score:.2f}, {'' if score > seen.defended.threshold else 'not '}flagged")
    return tuple(found)


def box_of(change: Pixels) -> tuple[int, int, int, int] | None:
    """The box (x, y, width, height) around a ``change`` (C, H, W) >= 0; None where it is all over the image."""
    strength = change.max(0)
    if strength.max() < 1 / 255:
        return None
    rows, columns = np.nonzero(strength > 0.25 * strength.max())
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    inside = strength[top : top + height, left : left + width].sum() / strength.sum()
    return (
        None if height * width > EVERYWHERE * strength.size or inside < INSIDE else (left, top, width, height)
    )


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
    if not banks:
        banks = {"No trigger stood out; this is what the generator of Eq. 2 does": findings.without_target}
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
