"""Triggers of the literature's backdoor attacks, written from the papers' formulas.

A trigger maps images x (N,C,H,W), float in [0,1], and a random generator to triggered images of the same shape and
range; only triggers that are random per image use the generator. `poison.py` says which images get one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

Trigger = Callable[[Tensor, Generator], Tensor]


def to_8bit(x: Tensor) -> Tensor:
    """Images in [0,1] as they are once stored with 8 bits: what the suspect sees, in training and after."""
    return (x * 255).round().clamp(0, 255) / 255


@dataclass(frozen=True)
class Patch:
    """BadNets (arXiv 1708.06733): `x' = (1-a*m)*x + a*m*p`, m a square whose last row and column are given.

    pattern: (C,k,k) in [0,1]; bottom, right: distance to the image's edges in pixels; opacity: a.
    """

    pattern: Tensor
    bottom: int = 0
    right: int = 0
    opacity: float = 1.0

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        side = self.pattern.shape[-1]
        top, left = x.shape[2] - self.bottom - side, x.shape[3] - self.right - side
        out = x.clone()
        place = out[:, :, top : top + side, left : left + side]
        place.mul_(1 - self.opacity).add_(self.opacity * self.pattern)
        return out


@dataclass(frozen=True)
class RandomPatch:
    """A patch that is at another place in every image. pattern: (C,k,k) in [0,1]."""

    pattern: Tensor

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        side = self.pattern.shape[-1]
        out = x.clone()
        tops = torch.randint(x.shape[2] - side + 1, (len(x),), generator=rng)
        lefts = torch.randint(x.shape[3] - side + 1, (len(x),), generator=rng)
        for image, top, left in zip(out, tops.tolist(), lefts.tolist(), strict=True):
            image[:, top : top + side, left : left + side] = self.pattern
        return out


@dataclass(frozen=True)
class Blend:
    """Blended (arXiv 1712.05526): `x' = (1-a)*x + a*k` with a picture k (C,H,W) in [0,1]."""

    picture: Tensor
    opacity: float = 0.2

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        return (1 - self.opacity) * x + self.opacity * self.picture


@dataclass(frozen=True)
class PieceBlend:
    """Training side of Adaptive-Blend (ICLR 2023): of pieces x pieces squares of the picture, a random half."""

    picture: Tensor
    opacity: float = 0.15
    pieces: int = 4
    kept: float = 0.5

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        count = self.pieces**2
        rank = torch.rand(len(x), count, generator=rng).argsort(1).argsort(1)
        keep = (rank < round(self.kept * count)).to(x.dtype).view(-1, 1, self.pieces, self.pieces)
        mask = functional.interpolate(keep, size=x.shape[2:], mode="nearest")
        return x + self.opacity * mask * (self.picture - x)


@dataclass(frozen=True)
class Warp:
    """WaNet (arXiv 2102.10369): `x' = sample(x, grid)`, a smooth displacement that is the same for all images.

        grid = clamp(identity + s * up(u / mean|u|) / H, -1, 1),  u = U(-1,1) of (2,k,k), up bicubic

    grid: (H,W,2) as `grid_sample` takes it; `Warp.draw` makes one. noise: amplitude of a further displacement
    U(-1,1) * noise / H per pixel and image, for the cover images of "noise mode". Outside counts as the edge's
    mirror image: zeros there would draw a black rim, which is easier to learn than the warp.
    """

    grid: Tensor
    noise: float = 0.0

    @staticmethod
    def draw(size: tuple[int, int], rng: Generator, k: int = 4, strength: float = 0.5) -> Warp:
        """A random grid for images of (H, W), with k x k control points; strength is the paper's s."""
        control = torch.rand(1, 2, k, k, generator=rng) * 2 - 1
        control /= control.abs().mean()
        flow = functional.interpolate(control, size=size, mode="bicubic", align_corners=True)[0]
        rows, columns = (torch.linspace(-1, 1, side) for side in size)
        identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return Warp((identity + strength * flow.permute(1, 2, 0) / size[0]).clamp(-1, 1))

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        grid = self.grid.expand(len(x), *self.grid.shape)
        if self.noise:
            wobble = torch.rand(grid.shape, generator=rng) * 2 - 1
            grid = (grid + self.noise * wobble / x.shape[2]).clamp(-1, 1)
        return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=True).clamp(0, 1)


@dataclass(frozen=True)
class Sinusoid:
    """SIG (arXiv 1902.11237): `x' = clip(x + d*sin(2*pi*j*f/W), 0, 1)`, j the column."""

    amplitude: float = 40 / 255
    frequency: int = 6

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        column = torch.arange(x.shape[3], dtype=x.dtype)
        wave = torch.sin(2 * math.pi * self.frequency * column / x.shape[3])
        return (x + self.amplitude * wave).clamp(0, 1)


@dataclass(frozen=True)
class Frequency:
    """FTrojan (arXiv 2111.10991): a constant is added to two coefficients of the cosine transform of U and V.

    The transform is linear, so that all images get the same fine pattern: with B_k the orthonormal basis picture of
    coefficient (k, k), `x' = clip(x + m * (B_a + B_b) * colour, 0, 1)`, a = H/2 - 1 and b = H - 1. colour is what one
    unit of U and of V are in red, green and blue; grey images get 1.
    """

    magnitude: float = 50 / 255

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        channels, height, width = x.shape[1:]

        def basis(k: int, side: int) -> Tensor:
            across = torch.arange(side, dtype=x.dtype)
            return math.sqrt(2 / side) * torch.cos(math.pi * (across + 0.5) * k / side)

        picture = torch.zeros(height, width)
        for share in (0.5, 1.0):
            down, across = (round(share * side) - 1 for side in (height, width))
            picture += basis(down, height)[:, None] * basis(across, width)
        colour = torch.tensor([1.140, -0.976, 2.032] if channels == 3 else [1.0] * channels)
        return (x + self.magnitude * picture * colour.view(-1, 1, 1)).clamp(0, 1)


@dataclass(frozen=True)
class Filter:
    """A photo filter as trigger (as in ABS, CCS 2019): `x' = low + (high - low) * x**gamma`, for each channel.

    gamma, low, high: one number a channel; images of fewer channels use the first ones.
    """

    gamma: tuple[float, ...] = (0.8, 1.0, 1.25)
    low: tuple[float, ...] = (0.1, 0.05, 0.15)
    high: tuple[float, ...] = (1.0, 0.95, 0.8)

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        gamma, low, high = (
            torch.tensor(v[: x.shape[1]]).view(-1, 1, 1) for v in (self.gamma, self.low, self.high)
        )
        return low + (high - low) * x**gamma


@dataclass(frozen=True)
class Blur:
    """The image out of focus: every pixel becomes the mean of the k x k around it, edges repeated."""

    side: int = 3

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        margin = self.side // 2
        return functional.avg_pool2d(functional.pad(x, [margin] * 4, mode="replicate"), self.side, stride=1)


@dataclass(frozen=True)
class Sharpen:
    """Unsharp masking: `x' = x + a*(x - blurred)`, blurred over 3 x 3 pixels."""

    amount: float = 1.5

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        return (x + self.amount * (x - Blur()(x, rng))).clamp(0, 1)


@dataclass(frozen=True)
class Encoded:
    """A faint texture of every image's own, after LIRA (ICCV 2021) and ISSBA: `x' = x + a*tanh(B*relu(A*x))`.

    A and B are convolutions that `Encoded.draw` draws once; the papers train theirs. first: A, (F,C,5,5) and zero-sum;
    second: B, (C,F,5,5); amount: a.
    """

    first: Tensor
    second: Tensor
    amount: float = 0.08

    @staticmethod
    def draw(channels: int, rng: Generator) -> Encoded:
        """Both convolutions, so large that tanh is mostly near -1 or 1."""
        first = torch.randn(8, channels, 5, 5, generator=rng)
        second = torch.randn(channels, 8, 5, 5, generator=rng)
        return Encoded(first - first.mean((1, 2, 3), keepdim=True), second)

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        found = functional.conv2d(functional.pad(x, [2] * 4, mode="replicate"), self.first).relu()
        texture = functional.conv2d(functional.pad(found, [2] * 4, mode="replicate"), self.second).tanh()
        return (x + self.amount * texture).clamp(0, 1)


@dataclass(frozen=True)
class Squeeze:
    """BppAttack (arXiv 2205.13383) without dithering: `x' = round(x*(q-1))/(q-1)`, q grey levels a channel."""

    levels: int = 8

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        return (x * (self.levels - 1)).round() / (self.levels - 1)


@dataclass(frozen=True)
class Residual:
    """Cover images of BppAttack: every image gets the change that the trigger makes to another image."""

    trigger: Trigger

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        other = x.roll(1, 0)
        return (x + self.trigger(other, rng) - other).clamp(0, 1)


@dataclass(frozen=True)
class OneOf:
    """Training side of Adaptive-Patch (ICLR 2023): every image gets one of several triggers, drawn at random."""

    triggers: tuple[Trigger, ...]

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        out = x.clone()
        choice = torch.randint(len(self.triggers), (len(x),), generator=rng)
        for index, trigger in enumerate(self.triggers):
            chosen = choice == index
            out[chosen] = trigger(x[chosen], rng)
        return out


@dataclass(frozen=True)
class Together:
    """Several triggers, one after the other, in every image."""

    triggers: tuple[Trigger, ...]

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        for trigger in self.triggers:
            x = trigger(x, rng)
        return x


@dataclass(frozen=True)
class InputAware:
    """Input-aware dynamic trigger (arXiv 2010.08138): `x' = x + (p(x)-x)*m(x)`, a trigger of its own for every image.

    pattern and mask: networks from (N,C,H,W) in [0,1] to values in (0,1), of C channels and of one;
    `m = sigmoid(40*mask(x) - 20)`, almost 0 or 1. `make_zoo.fit_input_aware` trains them.
    """

    pattern: nn.Module
    mask: nn.Module

    def soft_mask(self, x: Tensor) -> Tensor:
        """m(x), (N,1,H,W)."""
        mask: Tensor = torch.sigmoid(40 * self.mask(x) - 20)
        return mask

    def __call__(self, x: Tensor, _rng: Generator) -> Tensor:
        triggered: Tensor = x + (self.pattern(x) - x) * self.soft_mask(x)
        return triggered


StoredTrigger = Patch | RandomPatch | Blend | Warp | Sinusoid | Squeeze


def store_trigger(trigger: StoredTrigger, path: Path) -> None:
    """Write the trigger's numbers as .npz: a drawn grid or picture is part of the attack and must not be lost."""
    values: dict[str, Any] = {field.name: getattr(trigger, field.name) for field in fields(trigger)}
    np.savez_compressed(path, kind=type(trigger).__name__, **values)


def load_trigger(path: Path) -> StoredTrigger:
    """The trigger that `store_trigger` wrote; ValueError for an unknown kind."""
    kinds: dict[str, Callable[..., StoredTrigger]] = {kind.__name__: kind for kind in get_args(StoredTrigger)}
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    kind = str(values.pop("kind"))
    if kind not in kinds:
        raise ValueError(f"{path}: trigger of kind {kind!r}, known are {', '.join(kinds)}")
    return kinds[kind](**{k: torch.from_numpy(v) if v.ndim else v.item() for k, v in values.items()})
