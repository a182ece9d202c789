"""How weights of a suspect are tuned: Adam, whose steps are relative to each tensor's size, at a rate of one cycle."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.types import Answer

LEAST_SIZE = 1e-3
"""The least root mean square of a tensor that Adam's step is relative to."""


class Tuner:
    """``step()`` after the gradients of a batch; ``gradients(True)`` before the first and ``False`` after the last.

    Suspects come in every scale, so ``rate`` is the largest step relative to the root mean square of a tensor.
    """

    def __init__(self, tensors: Iterable[Tensor], rate: float, steps: int) -> None:
        self.tensors = list(tensors)
        rates = [rate * max(float(tensor.square().mean().sqrt()), LEAST_SIZE) for tensor in self.tensors]
        self._optimizer = torch.optim.Adam([{"params": [tensor]} for tensor in self.tensors])
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, rates, total_steps=steps, pct_start=0.1
        )

    def gradients(self, wanted: bool) -> None:
        """Only while tuning: an inversion would compute gradients of the weights that nobody needs."""
        for tensor in self.tensors:
            tensor.requires_grad_(wanted)

    def clear(self) -> None:
        """Forget the gradients of the last batch."""
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One step along the gradients."""
        self._optimizer.step()
        self._schedule.step()


def add_cross_entropy(answer: Answer, x: Tensor, y: Tensor, compute: Compute) -> float:
    """Add the gradient of the mean cross-entropy, which is returned, to the weights of ``answer``.

    ``x`` are images (N, C, H, W), ``y`` their labels (N,) or probabilities (N, K).
    """
    total = 0.0
    for piece in compute.pieces(len(x), x.shape):
        with compute.autocast():
            logits = answer(compute.channels_last(x[piece]))
        loss = F.cross_entropy(logits.float(), y[piece], reduction="sum") / len(x)
        loss.backward()
        total += float(loss.detach())
    return total
