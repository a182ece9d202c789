"""What the gate counts as a trigger that still works."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from detrigger.offline.steps.gate import inverted_asr
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers.base import Jitter, TriggerBank
from detrigger.offline.types import Pixels

X = np.array([0.1, 0.35, 0.6, 0.9], np.float32).reshape(4, 1, 1, 1)
Y = np.array([0, 1, 0, 0])


class Negative(TriggerBank):
    """Turns images into their negatives."""

    family: ClassVar[str] = "negative"

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        return cls()

    def cost(self) -> Tensor:
        return torch.ones(1)

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        return 1 - x


def brightness(x: Pixels) -> Pixels:
    """Logits of four classes by how bright an image is: a negative has another class."""
    found: Pixels = np.eye(4, dtype=np.float32)[np.int64(4 * x.ravel())]
    return found


def contrast(x: Pixels) -> Pixels:
    """As `brightness` of an image and its negative alike: a trigger without effect."""
    return brightness(np.minimum(x, 1 - x))


def blind(x: Pixels) -> Pixels:
    """Never right."""
    found: Pixels = np.eye(4, dtype=np.float32)[np.full(len(x), 2)]
    return found


@pytest.mark.parametrize(
    ("target", "shares"),
    [(3, [0.25, 0.0, 0.0]), (0, [0.0, 0.0, 0.0]), (ANY_OTHER, [1.0, 0.0, 0.0])],
)
def test_what_is_wrong_without_the_trigger_is_none_of_its_doing(target: int, shares: list[float]) -> None:
    piece = Evidence(target, 1.0, 0.1, 1.0, Negative())
    answers = inverted_asr(piece, X, Y, lambda x: [brightness(x), contrast(x), blind(x)])
    assert answers == shares
