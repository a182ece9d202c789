"""A search that reaches nothing shows nobody innocent."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from detrigger import cli
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.profile import PROFILES
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.control import unreached
from detrigger.offline.steps.invert import Effort, InversionResult
from detrigger.offline.steps.verdict import FamilyScreen
from detrigger.offline.triggers.patch import PatchBank
from tests import blobs

K = 4
EFFORT = Effort(steps=5, images_each=4)


def by_colour(x: Tensor) -> Tensor:
    """Logits by the brightness of four columns."""
    return 10 * x.mean((1, 2)).view(-1, K, 2).mean(2)


def images() -> CleanImages:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(40) % K
    x = 0.3 * torch.rand(40, 3, 8, 8, generator=g)
    for image, label in zip(x, y.tolist(), strict=True):
        image[..., 2 * label : 2 * label + 2] += 0.5
    return CleanImages((x, y), (x, y), Compute("cpu", 0))


def screened(*success: float) -> FamilyScreen:
    bank = PatchBank.start(K, (3, 8, 8), 0)
    result = InversionResult(bank, torch.arange(K), torch.tensor(success), torch.ones(K))
    return FamilyScreen(PatchBank, result, torch.zeros(K))


def test_what_the_screening_reached_needs_no_control() -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError

    assert (
        unreached(never, [screened(0.9, 0.1, 0.2, 0.0), screened(0.0, 0.8, 0.6, 0.0)], images(), EFFORT) == ""
    )


def test_where_the_screening_was_too_short_an_unbounded_patch_reaches_the_classes() -> None:
    assert unreached(by_colour, [screened(0.1, 0.1, 0.1, 0.1)], images(), EFFORT) == ""


def test_a_gradient_that_leads_nowhere_shows_nobody_innocent() -> None:
    def rounded(x: Tensor) -> Tensor:
        return by_colour((2 * x).floor() / 2)

    said = unreached(rounded, [screened(0.9, 0.1, 0.1, 0.1)], images(), EFFORT)
    assert "reaches only 1 of 4 classes" in said


def test_a_suspect_that_rounds_its_input_is_not_called_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, "fast", blobs.short_profile(screen_steps=4, images_per_class=2))
    model = onnx.load(blobs.suspect(tmp_path, backdoor=False))
    steps = numpy_helper.from_array(np.array(4, np.float32), "steps")
    model.graph.initializer.append(steps)
    model.graph.node[0].input[0] = "posterised"
    for i, node in enumerate(
        (
            helper.make_node("Mul", ["pixels", "steps"], ["scaled"]),
            helper.make_node("Floor", ["scaled"], ["floored"]),
            helper.make_node("Div", ["floored", "steps"], ["posterised"]),
        )
    ):
        model.graph.node.insert(i, node)
    onnx.save(model, tmp_path / "model.onnx")
    data = blobs.npz(tmp_path / "clean.npz", 12)
    given = ["--data", str(data), "--profile", "fast", "--device", "cpu", "--trust-setup", "--json"]
    assert cli.main(["scan", str(tmp_path / "model.onnx"), *given]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "inconclusive"
    assert "shows nobody innocent" in answer["reason"]
