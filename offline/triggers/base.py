"""What a trigger family is: a bank of candidate triggers that learn, one optimiser step for all of them.

A bank holds n candidates. ``forward(x, which)`` puts candidate ``which[i]`` on image i. So the same bank serves the
inversion of all classes in one batch and the pool that the purifier trains on. A new family is one file with one
subclass, named in ``offline/triggers/__init__.py``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Callable[[Tensor, torch.Generator], Tensor]
"""A kind of synthetic trigger: images (N, C, H, W) in [0, 1] to the same with a random trigger on each."""
KERNEL_SIDE = 5
"""Of a convolution kernel, in pixels."""


@dataclass(frozen=True)
class Jitter:
    """How the copies that the purifier trains on differ from the trigger as found.

    ``strength`` (N,) scales each copy (1: as found), ``offsets`` (N, 2) move it by whole pixels (rows, columns).
    """

    strength: Tensor
    offsets: Tensor

    @classmethod
    def draw(cls, n: int, reach: int, generator: torch.Generator, strongest: float | None = 1.0) -> Jitter:
        """For n copies: half moved by at most ``reach`` pixels and mostly weaker, half up to ``strongest`` as strong.

        These stay in place: a corner sticker moved by one pixel often triggers nothing, and a purifier that
        only meets moved copies never meets the backdoor. With ``strongest`` None all copies are moved.
        """
        moved = torch.rand(n, generator=generator) < (1.0 if strongest is None else 0.5)
        chance = torch.rand(n, generator=generator)
        strength = torch.where(moved, 0.6 + 0.5 * chance, (strongest or 1.0) ** chance)
        offsets = torch.randint(-reach, reach + 1, (n, 2), generator=generator)
        return cls(strength, offsets * moved.view(-1, 1))

    @classmethod
    def anywhere(cls, n: int, size: tuple[int, int], generator: torch.Generator) -> Jitter:
        """For n copies as strong as found, at any place of an image of ``size`` (H, W)."""
        rows, columns = (torch.randint(side, (n,), generator=generator) for side in size)
        return cls(torch.ones(n), torch.stack([rows, columns], 1))


class TriggerBank(nn.Module):
    """n candidate triggers of one family for images (C, H, W)."""

    family: ClassVar[str]
    unit: ClassVar[str]
    """What ``cost`` counts, in words."""
    resembling: ClassVar[tuple[Kind, ...]] = ()
    """The kinds of synthetic triggers that look like what the family finds."""
    overlaid: ClassVar[bool] = False
    """Whether half of the copies get a random trigger of the ``resembling`` kind on top. The attacker's trigger over
    the whole image is the one that was found and more, which the suspect did not need."""
    input_aware: ClassVar[bool] = False
    """Whether the attacker's shape may depend on the image, so that a generator is inverted beside a member."""
    max_training_cost: ClassVar[float] = math.inf
    """Cost above which a trigger would be too plain for an attacker, and teaches a purifier the wrong thing."""
    max_evidence_cost: ClassVar[float] = math.inf
    """Cost above which a trigger is not a sign of a backdoor: some class of a clean suspect is reached like that."""
    learning_rate: ClassVar[float]
    success_is_evidence: ClassVar[bool] = False
    """Whether no member can be strong enough for an ordinary class, so that success itself is evidence."""

    learned: ClassVar[bool] = True
    """Whether its members are inverted, rather than taken from a catalogue."""
    gap_scale: ClassVar[float] = 1.0
    """By how much more than in other families the costs to ordinary classes differ; gaps are divided by it."""
    tries_all_starts: ClassVar[bool] = False
    """Whether ``candidates`` have to learn for a few steps before they can be told apart."""

    @classmethod
    @abstractmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        """N fresh candidates, close to no trigger at all."""

    @classmethod
    def candidates(cls, shape: tuple[int, int, int]) -> Self | None:  # noqa: ARG003 - a hook
        """A bank of everything that an inversion may start from, where starts matter more than steps."""
        return None

    @abstractmethod
    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        """Images (N, C, H, W) in [0, 1] with candidate ``which`` (N,) on them, clamped to [0, 1]."""

    @abstractmethod
    def cost(self) -> Tensor:
        """(n,) how visible each candidate is: the mean change that it can make, in [0, 1] units or pixels."""

    def max_cost(self) -> float:
        """The largest cost that a trigger of the family can have."""
        return math.inf

    def pick(self, indices: Tensor) -> Self:
        """A detached bank of the candidates ``indices``."""
        other = self.__class__.__new__(self.__class__)
        nn.Module.__init__(other)
        for name, value in self._parameters.items():
            held = cast(nn.Parameter, value)
            other.register_parameter(name, nn.Parameter(held.detach()[indices].clone(), requires_grad=False))
        for name, fixed in self._buffers.items():
            other.register_buffer(name, cast(Tensor, fixed)[indices].clone())
        return other

    @torch.no_grad()
    def put(self, where: Tensor, other: TriggerBank) -> None:
        """Put the candidates of ``other`` in place of those at the indices ``where``."""
        for mine, theirs in (
            *zip(self.parameters(), other.parameters(), strict=True),
            *zip(self.buffers(), other.buffers(), strict=True),
        ):
            mine[where] = theirs

    def __len__(self) -> int:
        return len(next(iter(self.parameters())))


class Triggered(nn.Module):
    """The first candidate of a bank as a network: (N, C, H, W) in, the same with the trigger on it out."""

    def __init__(self, bank: TriggerBank) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, image: Tensor) -> Tensor:
        first = torch.zeros_like(image[:, 0, 0, 0], dtype=torch.long)
        triggered: Tensor = self.bank(image, first)
        return triggered.clamp(0.0, 1.0)


def image_shape(images: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of images (N, C, H, W)."""
    _, c, h, w = images.shape
    return c, h, w


def upsample(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """A coarse (n, c, k, k) grid to (n, c, H, W), smooth."""
    if grid.shape[-2:] == size:
        return grid
    return F.interpolate(grid, size=size, mode="bicubic", align_corners=True)


def shift(fields: Tensor, offsets: Tensor, wrap: bool = False) -> Tensor:
    """Move each field (N, c, H, W) by its whole-pixel offset (N, 2), edges repeated or wrapped around."""
    n, _, h, w = fields.shape
    rows = torch.arange(h).view(1, h, 1) - offsets[:, :1, None]
    columns = torch.arange(w).view(1, 1, w) - offsets[:, 1:, None]
    rows = rows % h if wrap else rows.clamp(0, h - 1)
    columns = columns % w if wrap else columns.clamp(0, w - 1)
    index = torch.arange(n).view(n, 1, 1)
    return fields.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)


def convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Images (N, C, H, W), each convolved with its own of ``kernels`` (N, k, k), k odd, edges repeated.

    Pixel by pixel of the kernel, as a convolution with as many groups as images cannot be exported to ONNX.
    """
    (h, w), side = x.shape[2:], kernels.shape[1]
    framed = F.pad(x, [side // 2] * 4, mode="replicate")
    found = torch.zeros_like(x)
    for row in range(side):
        for column in range(side):
            near = framed[..., row : row + h, column : column + w]
            found = found + kernels[:, row, column].view(-1, 1, 1, 1) * near
    return found
