"""The report's pictures: a trigger is shown where it can be seen, and outlined where it has a place."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from detrigger.offline.jobs.pictures import Cell, Defended, Seen, Sheet, answers, sheets, worst_clean
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.change import EDITS, ChangeBank
from detrigger.offline.triggers.spot import SpotBank
from detrigger.offline.triggers.warp import WarpBank
from detrigger.offline.types import Pixels

SIDE = 16


def strong(kind: type[TriggerBank]) -> TriggerBank:
    """One trigger of a family that is plain to see."""
    torch.manual_seed(0)
    bank = kind.start(1, (3, SIDE, SIDE), 0)
    for name, parameter in bank.named_parameters():
        parameter.data += 4 if name == "mask" else torch.randn_like(parameter)
    return bank


def sheet(bank: TriggerBank) -> Sheet:
    """The pictures of a trigger on noise."""
    x = np.random.default_rng(0).random((20, 3, SIDE, SIDE)).astype(np.float32)
    y = np.ones(20, np.int64)
    lead = Evidence(target=0, gap=2.0, cost=0.1, success=0.9, bank=bank)
    findings = cast(
        "Findings", SimpleNamespace(leads=[lead], lessons=SimpleNamespace(taken=[]), generator=None)
    )
    (made,) = sheets(findings, ("stop", "yield"), (x, y), lambda it: Seen(np.zeros((len(it), 2), np.float32)))
    return made


def boxes(made: Sheet) -> list[Any]:
    cells: list[Cell] = [cell for strip in made.strips for cell in strip.cells]
    return [cell.box for cell in (*made.alone, *cells) if cell.title == "with the trigger"]


def test_a_trigger_with_a_place_is_outlined_there_on_every_picture() -> None:
    made = sheet(strong(SpotBank))
    assert made.alone[0].title == "the mean of all images"
    first, *others = boxes(made)
    assert first is not None
    assert first[2] < SIDE / 2
    assert others == [first] * len(others)


@pytest.mark.parametrize("kind", [WarpBank, BlendBank])
def test_a_trigger_all_over_the_image_is_not_outlined(kind: type[TriggerBank]) -> None:
    assert set(boxes(sheet(strong(kind)))) == {None}


def test_what_shows_on_edges_alone_is_shown_on_a_test_card() -> None:
    assert sheet(strong(WarpBank)).alone[0].title == "a test card"


def test_an_ordinary_change_is_named() -> None:
    place = next(i for i, edit in enumerate(EDITS) if edit.kind == "blurred")
    made = sheet(ChangeBank(torch.tensor([place]), torch.tensor([0.01])))
    assert "To “stop”, rebuilt as change (blurred" in made.heading
    assert made.alone[0].title == "a test card"


def test_what_is_not_purified_is_not_shown_as_purified() -> None:
    x, y = np.random.default_rng(0).random((8, 3, 4, 4)).astype(np.float32), np.zeros(8, np.int64)
    logits, score = np.zeros((8, 2), np.float32), np.linspace(0, 1, 8, dtype=np.float32)

    def titles(purified: Pixels) -> set[str]:
        strips = worst_clean((x, y), Seen(logits, Defended(logits, score, purified, 0.5)), ("stop", "yield"))
        return {cell.title for strip in strips for cell in strip.cells}

    assert titles(x) == {"clean"}
    assert titles(1 - x) == {"clean", "purified", "what purifying changes (x4)"}


def test_beside_a_score_stands_whether_it_is_flagged() -> None:
    logits, image = np.zeros((2, 2), np.float32), np.zeros((2, 3, 1, 1), np.float32)
    defended = Defended(logits, np.array([0.5, 0.51], np.float32), image, threshold=0.5)
    lines = [answers(Seen(logits, defended), i, ("stop", "yield"))[-1] for i in range(2)]
    assert lines == ["flag score: 0.50, not flagged", "flag score: 0.51, flagged"]
