"""Innocent twins: right on clean images like the suspect, and untouched by its trigger."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detrigger import cli
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.profile import PROFILES
from detrigger.offline.inputs.split import as_float
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.accuracy import right_on
from detrigger.offline.steps.budget import MARGIN, SLACK, Budget
from detrigger.offline.steps.find import find_triggers
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.steps.twin import BATCH, TWINS, innocent_twins
from tests import blobs
from tests.test_few import three_classes


def begun(folder: Path) -> Run:
    model, data = three_classes(folder, backdoor=True)
    options = Options(suspect=model, data=data, device="cpu")
    return begin(options, Compute("cpu", 0), SilentProgress(), blobs.short_profile())


def test_a_twin_is_as_right_as_the_suspect_and_does_not_know_the_trigger(tmp_path: Path) -> None:
    run = begun(tmp_path)
    twins = innocent_twins(run)
    assert len(twins.networks) == TWINS
    assert not twins.problem
    x, y = blobs.images(20, seed=1, triggered=True)
    others = (y < 3) & (y != blobs.TARGET)
    triggered = torch.from_numpy(as_float(x[others]))
    target = torch.full((len(triggered),), blobs.TARGET)
    assert right_on(run.suspect, triggered, target).mean() == 1.0
    for twin in twins.networks:
        assert right_on(twin, *run.images.held_out).mean() > 0.9
        assert right_on(twin, triggered, target).mean() < 0.1


def test_the_same_seed_makes_the_same_twins_and_the_suspect_stays_as_it_is(tmp_path: Path) -> None:
    first, second = begun(tmp_path), begun(tmp_path)
    x = first.images.held_out[0]
    before = first.suspect(x)
    one, other = (innocent_twins(run).networks for run in (first, second))
    assert torch.equal(one[0](x), other[0](x))
    assert not torch.equal(one[0](x), one[1](x))
    assert torch.equal(first.suspect(x), before)


def test_where_twins_learn_too_little_nobody_is_called_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, "fast", replace(blobs.short_profile(), twin_steps=1))
    model, data = three_classes(tmp_path, backdoor=False)
    given = ["--data", str(data), "--profile", "fast", "--device", "cpu", "--json"]
    assert cli.main(["scan", str(model), *given]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "inconclusive"
    assert "give more clean images" in answer["reason"]


def test_twins_leave_the_budget_what_a_search_needs(tmp_path: Path) -> None:
    image = 1e-3  # seconds
    run = begun(tmp_path)
    needed = TWINS * run.profile.twin_steps * BATCH * image * MARGIN

    def scanned(seconds: float) -> tuple[str, list[str]]:
        budget = Budget(seconds / 60 / (1 - SLACK), lambda: 0.0)
        budget.pace.guess(image)
        return find_triggers(replace(run, budget=budget)).verdict, budget.left_out

    said, left_out = scanned(needed + 1)
    assert said == "inconclusive"
    assert "innocent networks to compare with" in left_out
    assert "innocent networks to compare with" not in scanned(needed + 600)[1]
