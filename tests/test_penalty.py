"""What purification takes from a suspected label is held against it, as far as clean images allow."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from detrigger.models.manifest import Verdict
from detrigger.models.networks import Purifier
from detrigger.models.protected import SAY
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.penalty import (
    FACTORS,
    answered,
    choose_penalty,
    largest_free,
    penalised,
    penalised_labels,
)
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.types import Labels, Pixels
from tests import blobs

K, TARGET = 4, 1


def sure_of(labels: Labels, confidence: float) -> Pixels:
    """Logits (N, K) that give each label this probability, and class 3 nearly all of the rest."""
    p = np.full((len(labels), K), 1e-4, np.float32)
    p[:, 3] = 1 - confidence
    p[np.arange(len(labels)), labels] = confidence
    found: Pixels = np.log(p / p.sum(1, keepdims=True)).astype(np.float32)
    return found


def test_a_narrow_win_of_the_target_is_lost_where_it_lost_confidence() -> None:
    target = np.array([TARGET])
    purified, triggered, clean = sure_of(target, 0.55), sure_of(target, 0.99), sure_of(target, 0.55)
    penalty = [0.0, 4.0, 0.0, 0.0]
    assert penalised(purified, triggered, penalty).argmax() == 3
    assert penalised(purified, clean, penalty).argmax() == TARGET
    assert penalised(purified, triggered, [0.0] * K).argmax() == TARGET


@given(
    arrays.arrays(np.float32, (5, K), elements=st.floats(-20, 20, width=32)),
    arrays.arrays(np.float32, (5, K), elements=st.floats(-20, 20, width=32)),
    st.sampled_from(FACTORS),
)
@settings(deadline=None)
def test_no_other_label_is_touched_and_none_gains(purified: Pixels, raw: Pixels, factor: float) -> None:
    penalty = np.zeros(K, np.float32)
    penalty[TARGET] = factor
    answers = penalised(purified, raw, penalty)
    others = np.arange(K) != TARGET
    np.testing.assert_array_equal(answers[:, others], purified[:, others])
    assert (answers[:, TARGET] <= purified[:, TARGET]).all()


def test_a_doubtful_answer_is_weighed_by_what_the_suspect_said() -> None:
    other, penalty = np.array([0]), [0.0, 4.0, 0.0, 0.0]
    purified = sure_of(other, 0.45)  # class 3 wins narrowly
    assert purified.argmax() == 3
    assert answered(purified, sure_of(other, 0.7), penalty).argmax() == 0
    # Sure as with a trigger whose target nobody suspects; nobody suspects anything; a suspected label.
    assert answered(purified, sure_of(other, 0.9999), penalty).argmax() == 3
    assert answered(purified, sure_of(other, 0.7), [0.0] * K).argmax() == 3
    assert answered(purified, sure_of(other, 0.7), [4.0, 0.0, 0.0, 0.0]).argmax() == 3


@given(
    arrays.arrays(np.float32, (5, K), elements=st.floats(-20, 20, width=32)),
    arrays.arrays(np.float32, (5, K), elements=st.floats(-20, 20, width=32)),
)
@settings(deadline=None)
def test_what_the_suspect_says_has_a_bound(purified: Pixels, raw: Pixels) -> None:
    penalty = np.array([0, 1, 0, 0], np.float32)
    moved = answered(purified, raw, penalty) - penalised(purified, raw, penalty)
    assert (np.abs(moved) <= SAY + 1e-4).all()
    assert (moved[raw.argmax(1) == TARGET] == 0).all()


def test_the_suspects_label_is_that_of_its_logits_not_of_their_rounded_softmax() -> None:
    raw, purified = np.array([[0, 4e-31, 0, 0]], np.float32), np.array([[0, 1, 1, 1]], np.float32)
    penalty = [0.0, 1.0, 0.0, 0.0]
    np.testing.assert_array_equal(answered(purified, raw, penalty), penalised(purified, raw, penalty))


@pytest.mark.parametrize(
    ("damaged", "left", "factor"),
    [(0, 0.6, FACTORS[0]), (6, 0.6, FACTORS[0]), (60, 0.55, 0.0), (60, 0.62, 1.0)],
)
def test_the_factor_is_as_large_as_clean_images_allow(damaged: int, left: float, factor: float) -> None:
    y = np.arange(4000) % K
    of_target = np.flatnonzero(y == TARGET)[:damaged]
    purified = sure_of(y, 0.98)
    purified[of_target] = sure_of(y[of_target], left)  # right still, but less sure than the suspect was
    assert largest_free(purified, sure_of(y, 0.98), y, [TARGET], FACTORS) == factor


def test_a_label_without_clean_images_has_nothing_to_lose() -> None:
    y = np.repeat([0, 2, 3], 100)
    same = sure_of(y, 0.98)
    assert largest_free(same, same, y, [TARGET], FACTORS) == FACTORS[0]


def test_a_rare_label_is_not_given_up_for_the_sake_of_the_others() -> None:
    y = np.zeros(10_000, np.int64)
    y[:10] = TARGET
    purified = sure_of(y, 0.98)
    purified[:10] = sure_of(y[:10], 0.55)
    assert largest_free(purified, sure_of(y, 0.98), y, [TARGET], FACTORS) == 0.0


@pytest.mark.parametrize(("left", "factor"), [(0.06, FACTORS[0]), (0.08, FACTORS[0]), (0.2, 1.0)])
def test_clean_images_that_carry_the_trigger_do_not_keep_the_factor_small(left: float, factor: float) -> None:
    """They lose most of their confidence and are right still. With the last one it is not enough to tell them."""
    classes, y = 40, np.arange(1000) % 40
    y[:40] = TARGET

    def logits(confidence: float) -> Pixels:
        p = np.full((len(y), classes), (1 - confidence) / (classes - 1), np.float32)
        p[np.arange(len(y)), y] = confidence
        return np.log(p)

    raw, purified = logits(0.98), logits(0.98)
    purified[:40] = logits(left)[:40]
    assert largest_free(purified, raw, y, [TARGET], FACTORS) == factor


@pytest.mark.parametrize(
    ("verdict", "targets", "leads", "expected"),
    [
        ("clean", (), (), []),
        ("clean", (), (2,), [2]),
        ("backdoored", (2, 0), (2, 0), [0, 2]),
        ("backdoored", (), (ANY_OTHER,), [0, 1, 2, 3]),
        ("inconclusive", (), (3,), [3]),
    ],
)
def test_who_is_suspected(
    verdict: Verdict, targets: tuple[int, ...], leads: tuple[int, ...], expected: list[int]
) -> None:
    bank = PatchBank.start(1, (3, 8, 8), 0)
    piece = Evidence(target=0, gap=1.0, cost=1.0, success=1.0, bank=bank)
    findings = Findings(
        screens=[],
        leads=[replace(piece, target=target) for target in leads],
        verdict=verdict,
        targets=targets,
        generator=bank,
        refined=[],
        votes=[0.0] * K,
        mask_mean=0.0,
        responses=cast(list[float], []),
    )
    assert penalised_labels(findings) == expected


@pytest.mark.parametrize(
    ("of_target", "narrow", "largest"),
    [(100, 4, True), (100, 7, False), (2000, 15, True), (2000, 26, False)],
    ids=["recall as allowed", "recall", "BA as allowed", "BA"],
)
def test_neither_recall_of_a_label_nor_ba_may_suffer(of_target: int, narrow: int, largest: bool) -> None:
    y = np.zeros(10_000, np.int64)
    y[:of_target] = TARGET
    purified = sure_of(y, 0.98)
    purified[:narrow] = sure_of(y[:narrow], 0.55)  # any factor at all turns these
    factor = largest_free(purified, sure_of(y, 0.98), y, [TARGET], FACTORS)
    assert factor == (FACTORS[0] if largest else 0.0)


def findings_of(*leads: int, targets: tuple[int, ...] = (), n: int = K) -> Findings:
    """As after an inversion that ended with these."""
    bank = PatchBank.start(1, (3, 8, 8), 0)
    return Findings(
        screens=[],
        leads=[Evidence(target=target, gap=1.0, cost=1.0, success=1.0, bank=bank) for target in leads],
        verdict="backdoored",
        targets=targets,
        generator=bank,
        refined=[],
        votes=[0.0] * n,
        mask_mean=0.0,
        responses=[],
    )


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A job on a suspect with a backdoor, begun."""
    folder = tmp_path_factory.mktemp("given")
    options = Options(suspect=blobs.suspect(folder), data=blobs.npz(folder / "clean.npz", 20), device="cpu")
    return begin(options, Compute("cpu", 0), SilentProgress(), blobs.short_profile())


@pytest.mark.parametrize(
    ("leads", "targets", "expected"),
    [
        ((), (), [0.0] * 6),
        ((2,), (2,), [0.0, 0.0, 32.0, 0.0, 0.0, 0.0]),
        ((1, 4), (1, 4), [0.0, 32.0, 0.0, 0.0, 32.0, 0.0]),
        ((ANY_OTHER,), (), [2.0] * 6),
    ],
    ids=["nothing found", "a target", "two targets", "all to all"],
)
def test_an_unharmed_suspect_has_the_largest_penalty_and_against_all_labels_a_small_one(
    job: Run, leads: tuple[int, ...], targets: tuple[int, ...], expected: list[float]
) -> None:
    unchanged = Purifier(3, (blobs.SIDE, blobs.SIDE)).eval().requires_grad_(False)
    found = choose_penalty(job, findings_of(*leads, targets=targets, n=6), job.suspect, unchanged)
    assert list(found) == expected
