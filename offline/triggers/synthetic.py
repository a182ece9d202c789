"""Synthetic triggers: random members of every known kind, so that the purifier does not rest on inversion alone.

They are drawn afresh for every batch from the formulas of the attacks' papers. Sizes are relative to the image's, and
no trigger of a data set is copied.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from detrigger.offline.triggers.base import KERNEL_SIDE, Kind, convolved, upsample


def _uniform(n: int, low: float, high: float, g: torch.Generator) -> Tensor:
    return (low + (high - low) * torch.rand(n, generator=g)).view(-1, 1, 1, 1)


def patches(x: Tensor, g: torch.Generator) -> Tensor:
    """A rectangle of a few pixels with one colour, a checkerboard or noise, opaque or half transparent."""
    n, c, h, w = x.shape
    rows, columns = torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)
    tall = (torch.rand(n, generator=g) * h * 0.2 + h / 16).long().clamp(min=1).view(-1, 1, 1, 1)
    wide = (torch.rand(n, generator=g) * w * 0.2 + w / 16).long().clamp(min=1).view(-1, 1, 1, 1)
    top = (torch.rand(n, generator=g).view(-1, 1, 1, 1) * (h - tall + 1)).long()
    left = (torch.rand(n, generator=g).view(-1, 1, 1, 1) * (w - wide + 1)).long()
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    first, second = (torch.rand(n, c, 1, 1, generator=g) for _ in range(2))
    first, second = (
        torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, v.round(), v) for v in (first, second)
    )
    checker = ((rows + columns) % 2).float()
    noise = torch.rand(n, c, h, w, generator=g)
    kind = torch.randint(3, (n, 1, 1, 1), generator=g)
    pattern = torch.where(
        kind == 0, first, torch.where(kind == 1, first * checker + second * (1 - checker), noise)
    )
    opacity = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.6, 1.0, _uniform(n, 0.3, 1.0, g))
    return x + inside * opacity * (pattern - x)


def specks(x: Tensor, g: torch.Generator) -> Tensor:
    """One to six equal marks of a few pixels and one colour, at places of each image's own (input-aware attacks)."""
    n, c, h, w = x.shape
    rows, columns = torch.arange(h).view(1, 1, h, 1), torch.arange(w).view(1, 1, 1, w)
    tall, wide = (torch.randint(1, max(2, side // 10 + 1), (n, 1, 1, 1), generator=g) for side in (h, w))
    colour = torch.rand(n, c, 1, 1, generator=g)
    colour = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.6, colour.round(), colour)
    opacity = _uniform(n, 0.5, 1.0, g)
    for _ in range(int(torch.randint(1, 7, (1,), generator=g))):
        top, left = (torch.randint(side, (n, 1, 1, 1), generator=g) for side in (h, w))
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        x = x + inside * opacity * (colour - x)
    return x


def blends(x: Tensor, g: torch.Generator) -> Tensor:
    """A smooth random picture, or another image of the batch, over the whole image."""
    n, c, h, w = x.shape
    k = int(torch.randint(2, 17, (1,), generator=g))
    picture = (upsample(torch.randn(n, c, min(k, h), min(k, w), generator=g), (h, w)) * 1.5).sigmoid()
    other = x[torch.randperm(n, generator=g)]
    picture = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.7, picture, other)
    return x + _uniform(n, 0.08, 0.25, g) * (picture - x)


def sines(x: Tensor, g: torch.Generator) -> Tensor:
    """Stripes of any direction, x + d sin(2 pi f u) (SIG, Barni et al. 2019, eq. 1)."""
    n, c, h, w = x.shape
    rows, columns = torch.linspace(0, 1, h).view(1, 1, h, 1), torch.linspace(0, 1, w).view(1, 1, 1, w)
    quarter = torch.randint(0, 3, (n,), generator=g) * (math.pi / 4)
    angle = quarter.view(-1, 1, 1, 1)
    along = rows * angle.sin() + columns * angle.cos()
    wave = torch.sin(2 * math.pi * (_uniform(n, 2, 10, g) * along + _uniform(n, 0, 1, g)))
    tint = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.6, 1.0, torch.rand(n, c, 1, 1, generator=g))
    return (x + _uniform(n, 0.05, 0.2, g) * wave * tint).clamp(0, 1)


def warps(x: Tensor, g: torch.Generator) -> Tensor:
    """A smooth displacement of a fraction of a pixel to a few (WaNet)."""
    n, _, h, w = x.shape
    k = int(torch.randint(3, 9, (1,), generator=g))
    flow = torch.rand(n, 2, k, k, generator=g) * 2 - 1
    flow = upsample(flow / flow.abs().mean((1, 2, 3), keepdim=True), (h, w)) * _uniform(n, 0.2, 1.2, g)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    grid = torch.stack([xs, ys], -1) + flow.permute(0, 2, 3, 1) * torch.tensor(
        [2 / max(w - 1, 1), 2 / max(h - 1, 1)]
    )
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)


def scribbles(x: Tensor, g: torch.Generator) -> Tensor:
    """A few strongly coloured blobs of any shape and place, as the generators of input-aware attacks draw them."""
    n, c, h, w = x.shape
    k = int(torch.randint(max(4, h // 8), h + 1, (1,), generator=g))
    where = upsample(torch.randn(n, 1, min(k, h), min(k, w), generator=g), (h, w))
    share = 0.01 + 0.08 * torch.rand(n, generator=g)
    ordered = where.flatten(1).sort(1).values
    cut = ordered.gather(1, ((1 - share) * (h * w - 1)).long().view(-1, 1)).view(-1, 1, 1, 1)
    colours = (upsample(torch.randn(n, c, min(k, h), min(k, w), generator=g), (h, w)) * 3).sigmoid()
    inside = ((where - cut) * 20).sigmoid() * _uniform(n, 0.5, 1.0, g)
    return x + inside * (colours - x)


def depths(x: Tensor, g: torch.Generator) -> Tensor:
    """Fewer grey levels, with or without noise before rounding (BppAttack, Wang et al. 2022)."""
    n = len(x)
    levels = torch.randint(4, 13, (n,), generator=g).view(-1, 1, 1, 1).float()
    dither = (torch.rand(x.shape, generator=g) - 0.5) * (torch.rand(n, 1, 1, 1, generator=g) < 0.5)
    return ((x * levels + dither).round() / levels).clamp(0, 1)


def kernels(x: Tensor, g: torch.Generator) -> Tensor:
    """Out of focus or shaken, in any direction, or sharpened."""
    n = len(x)
    rows, columns = torch.meshgrid(*[torch.arange(KERNEL_SIDE).float() - KERNEL_SIDE // 2] * 2, indexing="ij")
    angle, wide, narrow = math.pi * _uniform(n, 0, 1, g), _uniform(n, 0.6, 2, g), _uniform(n, 0.3, 2, g)
    along, across = (a * angle.cos() + b * angle.sin() for a, b in ((rows, columns), (columns, -rows)))
    bells = torch.exp(-0.5 * ((along / wide) ** 2 + (across / narrow) ** 2))
    blurred = convolved(x, (bells / bells.sum((2, 3), keepdim=True)).squeeze(1))
    amount = torch.where(
        torch.rand(n, 1, 1, 1, generator=g) < 0.7, _uniform(n, 0.5, 1, g), -_uniform(n, 0.5, 2, g)
    )
    return (x + amount * (blurred - x)).clamp(0, 1)


KINDS: dict[Kind, float] = {
    patches: 2.0, specks: 1.0, scribbles: 1.0, blends: 1.0, sines: 1.0, warps: 1.0, depths: 1.0,
    kernels: 0.1,
}  # fmt: skip
"""Every kind, and how often it is drawn where nothing is known of the suspect."""


def draw(x: Tensor, g: torch.Generator, weights: Tensor | None = None) -> Tensor:
    """Put one random synthetic trigger on every image (N, C, H, W) in [0, 1].

    ``weights`` (len(KINDS),) says how likely each kind is, in place of ``KINDS``.
    """
    weights = torch.tensor(list(KINDS.values())) if weights is None else weights
    if len(x) == 0:
        return x
    drawn = torch.multinomial(weights, len(x), replacement=True, generator=g).bincount(minlength=len(KINDS))
    parts = x.split(drawn.tolist())
    return torch.cat([kind(part, g) if len(part) else part for kind, part in zip(KINDS, parts, strict=True)])
