"""Two defences: the second is made where the first does not hold, and BA comes before what is left to an attacker."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.profile import PARTS
from detrigger.offline.inputs.split import as_float
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.candidates import (
    HOLDS,
    Defence,
    Judged,
    Unpurified,
    answers,
    better,
    choose_defence,
    judged,
)
from detrigger.offline.steps.purify import Purified
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.steps.unlearn import RepairedCopy
from tests import blobs
from tests.test_publish import findings


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("given")
    options = Options(suspect=blobs.suspect(folder), data=blobs.npz(folder / "clean.npz", 30), device="cpu")
    # As in test_repair: hand-made weights are coarse.
    tuning = {"steps": 60, "refresh_steps": 8, "rate": 0.1, "lengths": {1.0: math.inf}}
    profile = replace(blobs.short_profile(repair=tuning), restarts=4)
    return begin(options, Compute("cpu", 0), SilentProgress(), profile)


def bare(job: Run, **settings: object) -> Defence:
    """The suspect behind nothing."""
    defence = Defence(
        kind="purified",
        purified=Purified(Unpurified(), []),
        repaired=RepairedCopy(job.suspect, False, []),
        penalty=(0.0,) * blobs.CLASSES,
    )
    return replace(defence, **settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_where_the_first_defence_holds_nothing_the_repaired_weights_are_kept(job: Run) -> None:
    useless = replace(job, profile=replace(job.profile, parts=PARTS - {"purifier", "repair"}))
    defence = choose_defence(useless, findings((blobs.TARGET,)), (blobs.TARGET,), False)
    assert defence.kind == "repaired"
    assert defence.remaining <= HOLDS
    x, y = blobs.images(10, seed=1, triggered=True)
    given = as_float(x)
    raw, defended = (logits.argmax(1) for logits in answers(job, defence, given))
    others = y != blobs.TARGET
    assert (raw[others] == blobs.TARGET).all()
    assert (defended[others] == blobs.TARGET).mean() <= HOLDS


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ((True, 0.2), (True, 0.1), 1),
        ((True, 0.2), (False, 0.0), 0),
        ((False, 0.0), (True, 0.9), 1),
        ((True, 0.1), (True, 0.1), 0),
    ],
    ids=["leaves less", "costs BA", "the first costs BA", "as good"],
)
def test_ba_comes_first_then_what_is_left(
    job: Run, first: tuple[bool, float], second: tuple[bool, float], kept: int
) -> None:
    made = [Judged(bare(job, remaining=left), 0.0, keeps, False) for keeps, left in (first, second)]
    assert better(*made) is made[kept]


@pytest.mark.parametrize(
    ("cost", "remaining"), [(0.01, 1.0), (0.3, 0.0)], ids=["a corner", "a third of the image"]
)
def test_what_leads_to_any_label_is_not_held_against_a_defence(
    job: Run, cost: float, remaining: float
) -> None:
    """The suspect behind nothing. What a third of the image may be painted with leads to each label."""
    longer = replace(job, profile=replace(job.profile, refresh_steps=30))
    found = findings((blobs.TARGET,))
    asked = replace(found, leads=[replace(found.leads[0], cost=cost)])
    seen = judged(longer, asked, bare(job))
    assert seen.defence.remaining == pytest.approx(remaining, abs=HOLDS)
    assert seen.holds is (remaining == 0.0)


def test_images_that_nobody_asks_about_get_the_suspects_own_answer(job: Run) -> None:
    x = job.images.held_out[0].cpu().numpy()
    broken = RepairedCopy(job.suspect, True, [])
    purifier = Blackened()
    asked = bare(job, purified=Purified(purifier, []), repaired=broken, suspected=(blobs.TARGET,), only=True)
    raw, defended = answers(job, asked, x)
    others = raw.argmax(1) != blobs.TARGET
    assert np.array_equal(raw[others], defended[others])
    assert not np.allclose(raw[~others], defended[~others])


class Blackened(Unpurified):
    """Leaves nothing of an image."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * 0.0
