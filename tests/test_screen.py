"""The screening spends passes where they tell something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps import screen as module
from detrigger.offline.steps.invert import ANY_OTHER, Effort, Inversion, InversionResult
from detrigger.offline.steps.screen import screen
from detrigger.offline.steps.starts import EXPLORED_FOR_ANY, EXPLORED_STEPS, start, steps_to_start
from detrigger.offline.steps.verdict import FamilyScreen
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.triggers.spot import SpotBank
from detrigger.offline.triggers.warp import WarpBank

CLASSES, SIDE = 8, 16


@pytest.fixture
def clean() -> CleanImages:
    g = torch.Generator().manual_seed(0)
    data = (torch.rand(40, 3, SIDE, SIDE, generator=g), torch.arange(40) % CLASSES)
    return CleanImages(data, data, Compute("cpu", 0))


@pytest.fixture
def efforts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int, int]]]:
    """Screens with families whose gaps for target 0 are given, one a look, and tells every look's effort."""

    def screened(
        clean: CleanImages, gaps: dict[type[TriggerBank], list[float]], known: tuple[int, ...] = ()
    ) -> list[tuple[str, int, int]]:
        seen = []

        def invert(_: object, bank: TriggerBank, targets: Tensor, __: object, e: Effort) -> InversionResult:
            seen.append((bank.family, e.steps, e.images_each))
            cost = torch.ones(len(targets))
            cost[0] = 0.5 ** gaps[type(bank)].pop(0)
            return InversionResult(bank, targets, torch.ones(len(targets)), cost)

        monkeypatch.setattr(module, "invert", invert)
        # Costs are made up, so what they may be does not matter.
        monkeypatch.setattr(FamilyScreen, "credible", lambda look: look)
        screen(lambda x: x, CLASSES, clean, Effort(steps=50, images_each=5), tuple(gaps), known)
        return seen

    return screened


def test_a_doubtful_family_is_asked_twice(
    clean: CleanImages, efforts: Callable[..., list[tuple[str, int, int]]]
) -> None:
    looks = efforts(clean, {PatchBank: [0.1], BlendBank: [0.8, 0.8], WarpBank: [2.5]})
    assert looks == [("patch", 40, 5), ("blend", 40, 5), ("blend", 80, 5), ("warp", 40, 5)]


def test_beside_a_certain_target_a_doubtful_one_is_not_worth_a_second_look(
    clean: CleanImages, efforts: Callable[..., list[tuple[str, int, int]]]
) -> None:
    assert efforts(clean, {PatchBank: [2.5], BlendBank: [0.8]}) == [("patch", 40, 5), ("blend", 40, 3)]
    assert efforts(clean, {PatchBank: [0.8]}, known=(3,)) == [("patch", 40, 3)]
    assert efforts(clean, {PatchBank: [1.4, 1.4]}, known=(3,)) == [("patch", 40, 3), ("patch", 80, 5)]


def test_of_many_places_most_are_given_up_soon(clean: CleanImages) -> None:
    places, passes, steps = len(SpotBank.candidates((3, SIDE, SIDE))), 0, 0

    def answer(x: Tensor) -> Tensor:
        nonlocal passes
        passes += len(x)
        return x.mean((2, 3)).repeat(1, 3)[:, :CLASSES]

    def advance() -> None:
        nonlocal steps
        steps += 1

    targets = torch.tensor([0, 1, ANY_OTHER])
    bank = start(answer, SpotBank, targets, clean, Effort(steps=1, images_each=1, advance=advance))
    assert len(bank) == 3
    assert steps == steps_to_start(SpotBank, 2, (3, SIDE, SIDE))
    every_place_to_the_end = places * sum(EXPLORED_STEPS) * (2 + EXPLORED_FOR_ANY)
    assert passes < 2 / 3 * every_place_to_the_end


def test_what_takes_long_to_work_is_made_cheaper_at_once(clean: CleanImages) -> None:
    asked = 0

    def answer(x: Tensor) -> Tensor:
        """Never class 0 at first, and always in the end."""
        nonlocal asked
        asked += 1
        logits = torch.zeros(len(x), CLASSES) + 0 * x.mean()
        logits[:, 0 if asked > 30 else 1] = 9.0
        return logits

    bank = PatchBank.start(1, (3, SIDE, SIDE), 0).requires_grad_(True)
    search = Inversion(answer, bank, torch.tensor([0]), clean, Effort(steps=1, images_each=4, at_once=True))
    before = float(search.run(30).cost)
    found = search.run(22)
    assert float(found.success) == 1.0
    assert float(found.cost) < 0.5 * before
