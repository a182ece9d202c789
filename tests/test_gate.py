"""What the gate counts as a trigger that still works."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import Split
from detrigger.offline.steps.gate import (
    Clean,
    asr_check,
    ba_check,
    inverted_asr,
    judge_repair,
    judge_version,
)
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers.base import Jitter, TriggerBank
from detrigger.offline.types import Labels, Pixels
from tests import toys

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


class Change(Negative):
    """The same as an ordinary change, that nothing was learned for."""

    learned: ClassVar[bool] = False


@pytest.mark.parametrize(("target", "share"), [(2, 0.6 - 0.2), (0, 0.0)])
def test_what_a_change_does_to_any_label_is_not_held_against_the_target(target: int, share: float) -> None:
    x = np.array([0.9, 0.4, 0.35, 0.3, 0.1], np.float32).reshape(
        5, 1, 1, 1
    )  # their negatives are 0, 2, 2, 2, 3
    piece = Evidence(target, 1.0, 0.1, 1.0, Change())
    found = inverted_asr(piece, x, np.ones(5, np.int64), lambda x: [brightness(x)])
    assert found == [pytest.approx(share)]


def test_one_image_that_was_right_and_becomes_wrong_is_all_of_them() -> None:
    piece = Evidence(ANY_OTHER, 1.0, 0.1, 1.0, Negative())
    assert inverted_asr(piece, X, np.zeros(4, np.int64), lambda x: [brightness(x)]) == [1.0]


class Corner(Negative):
    """The toy suspect's trigger: a white corner."""

    family: ClassVar[str] = "corner"

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        x = x.clone()
        x[:, :, : toys.CORNER, : toys.CORNER] = 1
        return x


def toy(*, purifies: bool) -> onnx.ModelProto:
    """The toy protected graph, or one whose purifier changes nothing."""
    model = onnx.load_from_string(toys.protected_model())
    if not purifies:
        for tensor in model.graph.initializer:
            if tensor.name in ("keep", "grey"):
                value = np.full_like(numpy_helper.to_array(tensor), tensor.name == "keep")
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.mark.parametrize("purifies", [True, False])
def test_a_version_that_an_inverted_trigger_still_fools_is_refused(purifies: bool) -> None:
    images, y = toys.toy_dataset(20)
    x = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    good: Pixels = np.eye(3, dtype=np.float32)[y]
    lead = Evidence(toys.TARGET, 2.0, 0.1, 1.0, Corner())
    clean = Clean(good, good, np.zeros(len(y), np.float32))
    gate, figures = judge_version(toy(purifies=purifies), clean, x, y, [lead])
    assert gate.passed is purifies
    assert [(check.name, check.passed) for check in gate.checks] == [
        ("ba_drop", True),
        ("asr_inverted", purifies),
    ]
    assert (figures["ba_bare"], figures["ba_protected"]) == (1.0, 1.0)
    assert figures["asr_inverted_before"] == 1.0
    assert figures["asr_inverted_after"] == gate.checks[1].value == float(not purifies)
    assert gate.checks[1].detail == "strongest of 1 rebuilt triggers through the defence (before: 100.0%)"


@pytest.mark.parametrize(("lost", "passed"), [(0, True), (214, True), (215, False)])
def test_ba_may_fall_by_two_points_and_a_standard_error(lost: int, passed: bool) -> None:
    before, after = np.ones(10_000, bool), np.arange(10_000) >= lost
    check = ba_check(before, after, "it")
    share = lost / 10_000
    assert check.value == pytest.approx(share)
    assert check.limit == pytest.approx(0.02 + (share * (1 - share) / 10_000) ** 0.5)
    assert check.passed is passed


def only_first(n: int) -> tuple[Pixels, Pixels]:
    """Images (100, 1, 1, 1) that are dark, of which the first n are turned into class 3 by their negatives."""
    x = np.full((100, 1, 1, 1), 0.3, np.float32)
    x[:n] = 0.1
    return x, brightness(x)


@pytest.mark.parametrize(("fooled", "passed"), [(0, True), (10, True), (11, False), (100, False)])
def test_a_tenth_of_the_images_may_still_be_fooled_and_no_more(fooled: int, passed: bool) -> None:
    x, _ = only_first(fooled)
    lead = Evidence(3, 1.0, 0.1, 1.0, Negative())
    weak = replace(lead, target=1)  # which no image is sent to: the strongest trigger counts
    y = np.zeros(100, np.int64)
    check, rates = asr_check([weak, lead, weak], x, y, lambda x: [blind(x), brightness(x)], "here")
    assert check.passed is passed
    assert rates == {"asr_inverted_before": 0.0, "asr_inverted_after": fooled / 100}
    assert check.value == fooled / 100
    assert check.limit == 0.10


def split_of(x: Pixels, y: Labels, n_unseen: int) -> Split:
    """Nothing but calibration images, the first of them unseen."""
    none = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    return Split(none, none, Compute("cpu", 0), (x, y), n_unseen)


@pytest.mark.parametrize(
    ("gap", "unseen_fooled", "checked", "passed"),
    [(2.0, 0, True, True), (2.0, 20, True, False), (1.0, 20, True, False), (0.9, 20, False, True)],
)
def test_a_repair_is_judged_by_strong_triggers_on_unseen_images(
    gap: float, unseen_fooled: int, checked: bool, passed: bool
) -> None:
    x = np.full((100, 1, 1, 1), 0.3, np.float32)
    x[:unseen_fooled] = 0.1
    x[50:] = 0.1  # those that the triggers were chosen on would all be fooled
    y = brightness(x).argmax(1)
    lead = Evidence(3, gap, 0.1, 1.0, Negative())
    gate, figures = judge_repair(blind, brightness, split_of(x, y, 50), [lead])
    assert gate.passed is passed
    assert [check.name for check in gate.checks] == ["ba_drop", "asr_inverted"][: 1 + checked]
    assert (figures["ba_before"], figures["ba_after"], figures["ba_drop"]) == (0.0, 1.0, -1.0)
    if checked:
        assert figures["asr_inverted_after"] == unseen_fooled / 50
        assert "after the repair" in gate.checks[1].detail


def test_a_repair_that_costs_accuracy_is_refused_whatever_it_unlearns() -> None:
    x, right = only_first(30)
    gate, figures = judge_repair(brightness, blind, split_of(x, right.argmax(1), 50), [])
    assert not gate.passed
    assert (figures["ba_before"], figures["ba_after"], figures["ba_drop"]) == (1.0, 0.0, 1.0)
