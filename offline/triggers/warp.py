"""Warp: a fixed smooth displacement of the pixels (WaNet, Nguyen and Tran 2021, section 3.2)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrigger.offline.triggers.base import Jitter, Kind, TriggerBank, shift, upsample
from detrigger.offline.triggers.synthetic import warps


class WarpBank(TriggerBank):
    """A k x k field of displacements, upsampled; cost is its mean length in pixels."""

    family: ClassVar[str] = "warp"
    unit: ClassVar[str] = "mean displacement in pixels"
    resembling: ClassVar[tuple[Kind, ...]] = (warps,)
    overlaid: ClassVar[bool] = True
    learning_rate: ClassVar[float] = 0.1
    grid: ClassVar[int] = 6
    reach: ClassVar[float] = 3.0  # pixels

    def __init__(self, flow: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.flow, self.size = nn.Parameter(flow), size

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        g = torch.Generator().manual_seed(seed)
        return cls(torch.randn(n, 2, cls.grid, cls.grid, generator=g) * 0.1, shape[1:])

    def pick(self, indices: Tensor) -> Self:
        other = super().pick(indices)
        other.size = self.size
        return other

    def pixels(self) -> Tensor:
        """(n, 2, H, W) displacements in pixels, x first."""
        return upsample(self.flow.tanh() * self.reach, self.size)

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        h, w = self.size
        flow = self.pixels()[which]
        if jitter is not None:
            flow = shift(flow, jitter.offsets) * jitter.strength.view(-1, 1, 1, 1)
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
        scale = x.new_tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)])
        grid = torch.stack([xs, ys], -1).to(x) + flow.permute(0, 2, 3, 1) * scale
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=True)

    def cost(self) -> Tensor:
        length: Tensor = self.pixels().norm(dim=1)
        return length.mean((1, 2))
