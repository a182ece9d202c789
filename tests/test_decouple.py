"""Eq. 1 and Eq. 2: the mask keeps what the answer needs, the generator changes the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self, cast

import pytest
import torch
from torch import Tensor

from detrigger.models.suspect import Suspect
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.decouple import BUDGET, benign_mask, decoupled_generator, votes
from detrigger.offline.steps.invert import Effort
from detrigger.offline.triggers.base import Jitter, TriggerBank
from detrigger.offline.triggers.generator import GeneratorBank
from tests.test_suspect import CLASSES, SIDE, network, saved, take


class Colours(torch.nn.Module):
    """A suspect without convolutions: features are four numbers, of which the first two say the class."""

    n_classes = 2

    def features(self, x: Tensor) -> Tensor:
        return x[:, :1, :2, :2].flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return 20 * (features[:, :2] - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def coloured(n: int, compute: Compute) -> CleanImages:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 2
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 0.2 + 0.6 * (1 - labels), 0.2 + 0.6 * labels
    return CleanImages((x, labels), (x, labels), compute)


@pytest.fixture
def compute() -> Compute:
    return Compute("cpu", 0)


def test_the_mask_finds_the_features_that_say_the_class_and_what_is_left_knows_nothing(
    compute: Compute,
) -> None:
    suspect, images = cast(Suspect, Colours()), coloured(64, compute)
    calls = 0

    def advance() -> None:
        nonlocal calls
        calls += 1

    features = suspect.features(images.train[0])
    mask = benign_mask(suspect, features, images, Effort(steps=120, images_each=32, advance=advance))
    assert calls == 120
    assert mask.shape == (4,)
    assert float(mask.min()) >= 0
    assert float(mask[:2].min()) > 0.8
    # No budget asks for more than half, and nothing asks to keep what says nothing.
    assert float(mask.mean()) <= BUDGET + 0.1
    left = suspect.classify(features * (1 - mask)).softmax(1)
    kept = suspect.classify(features * mask).argmax(1)
    assert (kept == images.train[1]).all()
    assert float((left - 0.5).abs().max()) < 0.2


def test_the_budget_holds_where_every_feature_says_the_class(compute: Compute) -> None:
    class Same(Colours):
        def classify(self, features: Tensor) -> Tensor:
            brightness = features.mean(1) - 0.25
            return torch.stack([-20 * brightness, 20 * brightness], 1)

    labels = torch.arange(64) % 2
    x = (0.5 * labels).view(-1, 1, 1, 1).expand(64, 1, 8, 8).contiguous()
    images = CleanImages((x, labels), (x, labels), compute)
    suspect = cast(Suspect, Same())
    mask = benign_mask(suspect, suspect.features(x), images, Effort(steps=150, images_each=32))
    assert 0.3 < float(mask.mean()) < BUDGET + 0.1


@pytest.fixture
def changes(tmp_path: Path, compute: Compute) -> Callable[[int], tuple[float, float]]:
    """What a generator trained for so many steps changes of benign features, and of the others (mean squares)."""
    suspect = take(saved(network(), tmp_path))
    x = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    images = CleanImages((x, torch.arange(64) % CLASSES), (x, torch.arange(64) % CLASSES), compute)
    features = suspect.features(x).detach()
    mask = torch.zeros(features.shape[1:])
    mask[: len(mask) // 2] = 1

    def after(steps: int) -> tuple[float, float]:
        calls: list[None] = []
        effort = Effort(steps=steps, images_each=16, advance=lambda: calls.append(None))
        bank = decoupled_generator(suspect, mask, features, images, effort)
        assert len(calls) == steps
        assert len(bank) == 1
        assert not any(p.requires_grad for p in bank.parameters())
        with torch.no_grad():
            change = suspect.features(bank(x, torch.zeros(64, dtype=torch.long))) - features
        scale = features.pow(2).mean()
        return tuple(float((change * m).pow(2).mean() / scale) for m in (mask, 1 - mask))  # type: ignore[return-value]

    return after


def test_the_generator_changes_the_other_features_and_leaves_the_benign_ones(
    changes: Callable[[int], tuple[float, float]],
) -> None:
    before, after = changes(0), changes(60)
    assert after[1] > 100 * before[1]
    assert after[1] / after[0] > 5 * before[1] / before[0]


def test_votes_are_shares_of_the_images_of_other_classes(compute: Compute) -> None:
    class Brightest(TriggerBank):
        """Turns every image into one of the second class."""

        family: ClassVar[str] = "brightest"

        @classmethod
        def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
            return cls()

        def cost(self) -> Tensor:
            return torch.ones(1)

        def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
            assert which.tolist() == [0] * len(x)
            x = x.clone()
            x[::2, 0, 0, 0], x[::2, 0, 0, 1] = 0.0, 1.0
            return x

    images = coloured(600, compute)
    found = votes(cast(Suspect, Colours()), cast(GeneratorBank, Brightest()), images)
    # Images of the first class stand at even places: all of them are sent to the second, none comes back.
    assert found.tolist() == [0.0, 1.0]
