"""Generator: a trigger of its own for every image, x' = G(x) (BTI-DBF, section 3.2; input-aware attacks)."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor

from detrigger.models.networks import Generator
from detrigger.offline.triggers.base import Jitter, TriggerBank

BOUND = 0.1
"""Largest root mean square of the change of one image, in [0, 1] units (25 of 255; a blend at weight 0.2 has 13)."""


class GeneratorBank(TriggerBank):
    """One network as a bank of one candidate; its cost is its bound, which holds by construction."""

    family: ClassVar[str] = "generator"
    unit: ClassVar[str] = "largest change of an image, root mean square"
    learning_rate: ClassVar[float] = 2e-3

    def __init__(self, network: Generator) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int, bound: float = BOUND) -> Self:
        if n != 1:
            raise ValueError(f"a generator bank holds one candidate, not {n}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(Generator(shape[0], shape[1:], bound))

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:  # noqa: ARG002
        triggered: Tensor = self.network(x)
        if jitter is not None:
            triggered = x + jitter.strength.to(x.device).clamp(max=1).view(-1, 1, 1, 1) * (triggered - x)
        return triggered

    def cost(self) -> Tensor:
        return torch.full((1,), self.network.bound, device=next(self.parameters()).device)

    def pick(self, indices: Tensor) -> Self:  # noqa: ARG002
        return self.__class__(copy.deepcopy(self.network).eval().requires_grad_(False))

    def __len__(self) -> int:
        return 1
