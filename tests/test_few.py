"""With few classes a target is what is cheaper than on innocent twins of the suspect."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from detrigger import cli
from detrigger.models.manifest import Verdict
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.profile import PROFILES
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.few import (
    cheapest_tries,
    gaps_of_changes,
    gaps_of_few,
    one_accused,
    price_of,
    searched_on,
)
from detrigger.offline.steps.invert import AIM, ANY_OTHER, Effort, InversionResult, invert
from detrigger.offline.steps.verdict import FamilyScreen, verdict
from detrigger.offline.triggers.change import ChangeBank
from detrigger.offline.triggers.spot import SpotBank
from tests import blobs

ONE = 0.01


def result(targets: list[int], cost: list[float], success: list[float] | None = None) -> InversionResult:
    bank = SpotBank.start(len(targets), (3, 16, 16), 0)
    rates = torch.tensor(success or [AIM] * len(targets))
    return InversionResult(bank, torch.tensor(targets), rates, torch.tensor(cost))


def said(
    *cost: float, twins: tuple[tuple[float, ...], ...] = (), success: list[float] | None = None
) -> tuple[Verdict, tuple[int, ...]]:
    """The verdict where squares towards labels 0, 1, ... cost so much; on every twin ``ONE`` unless told."""
    labels = list(range(len(cost)))
    found = result(labels, [ONE * c for c in cost], success)
    usual = [result(labels, [ONE * c for c in twin]) for twin in twins or ((1.0,) * len(cost),)]
    return verdict(one_accused([FamilyScreen(SpotBank, found, gaps_of_few(found, *usual))]), 1750)


def test_less_than_half_of_what_a_twin_costs_is_a_target() -> None:
    assert said(1.0, 0.45) == ("backdoored", (1,))
    assert said(0.55, 1.0) == ("inconclusive", ())
    assert said(0.7, 1.0) == ("clean", ())


def test_a_class_is_no_target_where_it_is_as_cheap_on_a_twin() -> None:
    assert said(0.25, 1.0, twins=((0.3, 1.2),)) == ("clean", ())
    assert said(0.25, 1.0, twins=((1.0, 1.0), (0.3, 1.0))) == ("clean", ())


def test_one_label_is_accused_and_none_where_several_stand_out_alike() -> None:
    assert said(0.3, 0.1) == ("backdoored", (1,))
    assert said(0.3, 0.1, 0.3) == ("backdoored", (1,))
    assert said(0.3, 0.3) == ("inconclusive", ())


def test_what_does_not_work_is_no_target() -> None:
    assert said(0.1, 1.0, success=[0.6, AIM]) == ("clean", ())
    assert said(0.2, 0.3, success=[0.6, AIM]) == ("backdoored", (1,))


def test_all_to_all_is_compared_with_the_way_out_of_all_classes_on_a_twin() -> None:
    targets, same = [0, 1, 2, ANY_OTHER], [ONE] * 4
    found = result(targets, [ONE, ONE, ONE, ONE / 4])
    gaps = gaps_of_few(found, result(targets, same))
    assert gaps.tolist() == pytest.approx([0.0, 0.0, 0.0, 2.0], abs=1e-5)
    assert verdict(one_accused([FamilyScreen(SpotBank, found, gaps)]), 1750) == ("backdoored", ())


def test_without_twins_nothing_stands_out() -> None:
    assert gaps_of_few(result([0, 1], [1e-4, 1.0])).tolist() == [0.0, 0.0]


def test_of_several_tries_the_cheapest_that_works_counts() -> None:
    found = cheapest_tries(result([0, 1, 0, 1, ANY_OTHER], [5, 1, 4, 2, 9], [0.9, 0.7, 0.85, 0.6, 0.1]))
    assert found.targets.tolist() == [0, 1, ANY_OTHER]
    assert found.cost.tolist() == [4, 1, 9]
    assert found.success.tolist() == pytest.approx([0.85, 0.7, 0.1])


def cornered(x: Tensor) -> Tensor:
    """Label 1 where the upper left corner is bright, else label 0 or 2 by how bright all of it is."""
    whole = 10 * (x.mean((1, 2, 3)) - 0.2)
    return torch.stack([-whole, 20 * (x[:, :, :2, :2].mean((1, 2, 3)) - 0.6), whole], 1)


def test_searching_on_makes_a_target_cheaper_and_nothing_dearer() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2 * 2
    x = 0.3 * torch.rand(60, 3, 12, 12, generator=g) + 0.1 * (y[:, None, None, None] == 2)
    images = CleanImages((x, y), (x, y), Compute("cpu", 0))
    effort = Effort(steps=30, images_each=4)
    targets = torch.tensor([0, 1, ANY_OTHER])
    bank = SpotBank.candidates((3, 12, 12)).pick(torch.zeros(3, dtype=torch.long)).requires_grad_(True)
    short = invert(cornered, bank, targets, images, effort)
    first = price_of(short)
    later = searched_on(cornered, short, images, effort)
    assert (price_of(later) <= first).all()
    assert float(price_of(later)[1]) < 0.8 * float(first[1])
    assert later.cost.tolist() == pytest.approx(later.bank.cost().tolist())


def test_an_ordinary_change_is_doubt_at_the_most() -> None:
    share = torch.tensor([0.9, 0.97])
    bank = ChangeBank(torch.zeros(2, dtype=torch.long), 1 - share)
    look = FamilyScreen(
        ChangeBank, InversionResult(bank, torch.arange(2), share, 1 - share), gaps_of_changes(share)
    )
    assert look.gap.tolist() == pytest.approx([0.0, 0.8])
    assert verdict([look], 1750) == ("inconclusive", ())


def three_classes(folder: Path, *, backdoor: bool) -> tuple[Path, Path]:
    """The first three classes of the blobs: suspect and clean images."""
    path = blobs.suspect(folder, backdoor=backdoor)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("fc/"):
            kept = np.ascontiguousarray(numpy_helper.to_array(tensor)[..., :3])
            tensor.CopyFrom(numpy_helper.from_array(kept, tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, path)
    x, y = blobs.images(100)
    np.savez(folder / "clean.npz", x=x[y < 3], y=y[y < 3])
    return path, folder / "clean.npz"


@pytest.mark.parametrize(
    ("backdoor", "expected"), [(True, ("backdoored", [blobs.TARGET])), (False, ("clean", []))], ids=str
)
def test_a_suspect_with_three_classes_gets_a_verdict(
    backdoor: bool,
    expected: tuple[str, list[int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = frozenset({"patch", "sticker", "sine", "warp", "tone", "kernel"})
    short = replace(blobs.short_profile(screen_steps=40), unscreened=others)
    monkeypatch.setitem(PROFILES, "fast", short)
    model, data = three_classes(tmp_path, backdoor=backdoor)
    given = ["--data", str(data), "--profile", "fast", "--device", "cpu", "--json"]
    assert cli.main(["scan", str(model), *given]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["target_labels"]) == expected
