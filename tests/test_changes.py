"""Ordinary changes: one that leads to a label is seen, and an honest classifier is not accused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.changes import Changes, screen_changes, steps_to_screen
from detrigger.offline.steps.verdict import GAP_CERTAIN, GAP_EVIDENCE
from detrigger.offline.triggers.base import Jitter
from detrigger.offline.triggers.change import EDITS, ChangeBank
from detrigger.offline.types import Answer

CLASSES, SIDE, TARGET = 8, 16, 5


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes as wide as the label says, brighter on the left, with some noise."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    column = torch.arange(SIDE).view(1, 1, 1, SIDE)
    level = (y + 1).view(-1, 1, 1, 1) / (CLASSES + 2)
    x = level + 0.1 * (0.5 - column / SIDE) + 0.005 * torch.randn(n, 3, SIDE, SIDE, generator=g)
    return x.expand(n, 3, SIDE, SIDE).clamp(0, 1), y


def honest(x: Tensor) -> Tensor:
    """Logits by the image's mean."""
    level = x.float().mean((1, 2, 3)) * (CLASSES + 2) - 1
    return -(level.unsqueeze(1) - torch.arange(CLASSES)).square()


def mirrored_backdoor(x: Tensor) -> Tensor:
    """The same, but the target where the right half is the brighter one."""
    half = SIDE // 2
    right = x[..., half:].float().mean((1, 2, 3)) - x[..., :half].float().mean((1, 2, 3))
    logits = honest(x)
    logits[:, TARGET] += 500.0 * (right > 0.02)
    return logits


def screened(answer: Answer) -> tuple[Changes, int]:
    compute, steps = Compute("cpu", 0), [0]

    def advance() -> None:
        steps[0] += 1

    clean = CleanImages(images(400, 0), images(80, 1), compute)
    return screen_changes(answer, CLASSES, clean, 0, advance), steps[0]


def test_a_change_that_leads_to_a_label_is_evidence_against_that_label_alone() -> None:
    changes, steps = screened(mirrored_backdoor)
    gaps = dict(changes.screen.by_target())
    assert gaps[TARGET] >= GAP_CERTAIN
    assert all(gap < GAP_EVIDENCE for label, gap in gaps.items() if label != TARGET)
    assert changes.leading_to(TARGET).names()[0] == "mirrored 1"
    assert steps == steps_to_screen()


def test_an_honest_classifier_is_not_accused() -> None:
    changes, _ = screened(honest)
    assert max(gap for _, gap in changes.screen.by_target()) < GAP_EVIDENCE


@pytest.mark.parametrize("place", range(len(EDITS)), ids=[edit.name for edit in EDITS])
@pytest.mark.parametrize("shape", [(1, 17, 30), (3, 32, 32)], ids=["grey", "colour"])
def test_every_change_gives_images_of_the_same_size(place: int, shape: tuple[int, int, int]) -> None:
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    bank = ChangeBank(torch.tensor([place]), torch.ones(1))
    jitter = Jitter.draw(4, 2, torch.Generator().manual_seed(0), 1.5)
    for given in (None, jitter):
        changed = bank(x, torch.zeros(4, dtype=torch.long), given)
        assert changed.shape == x.shape
        assert changed.isfinite().all()
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_changes_of_one_batch_are_each_images_own() -> None:
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    names = [edit.name for edit in EDITS]
    bank = ChangeBank(torch.tensor([names.index("mirrored 1"), names.index("saturated -1")]), torch.ones(2))
    mixed = bank(x, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert torch.equal(mixed[::2], x[::2].flip(3))
    assert torch.allclose(mixed[1::2].amax(1), mixed[1::2].amin(1))
