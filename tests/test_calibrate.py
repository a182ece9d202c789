"""Flag threshold: how many clean images it flags, and which images it goes by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrigger.offline.jobs.figures import false_alarms
from detrigger.offline.steps.calibrate import (
    ALPHA_SUSPECTED,
    LEAST_SCORE,
    MOST_OF_LABEL,
    conformal_threshold,
    corrected_threshold,
    second_mode,
    suspected_threshold,
    trustworthy,
)
from detrigger.offline.types import Hits, Pixels


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=300),
    alpha=st.sampled_from([0.01, 0.05]),
)
@settings(deadline=None)
def test_the_threshold_flags_at_most_alpha_of_the_calibration_set(scores: list[float], alpha: float) -> None:
    values = np.array(scores, np.float32)
    threshold, effective = conformal_threshold(values, alpha)
    flagged = int((values > threshold).sum())
    # Exchangeable data: P(flag) <= (flagged + 1) / (n + 1).
    assert (flagged + 1) / (len(values) + 1) <= effective + 1e-9
    assert effective >= alpha


def test_the_flag_rate_on_fresh_scores_is_the_nominal_one() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        threshold, _ = conformal_threshold(rng.random(500).astype(np.float32))
        rates.append(1 - threshold)
    assert abs(float(np.mean(rates)) - 0.01) < 0.002


@pytest.mark.parametrize(("strange", "alarming"), [(0, False), (2, False), (5, False), (6, True), (30, True)])
def test_triggered_images_among_the_clean_ones_are_told(strange: int, alarming: bool) -> None:
    scores = np.random.default_rng(0).beta(1, 20, 500).astype(np.float32)
    scores[:strange] = 0.95
    assert second_mode(scores) == (strange / 500, alarming)


def test_the_threshold_goes_by_no_image_that_scores_like_the_trigger_of_its_own_label() -> None:
    scores = np.array([0.1, 0.9, 0.9, 0.2], np.float32)
    labels = np.array([3, 3, 5, 5])
    assert trustworthy(scores, labels, (3,)).tolist() == [True, False, True, True]
    assert trustworthy(scores, labels, ()).all()


@pytest.mark.parametrize(
    ("n", "rank", "alpha"),
    [(1, 1, 1 / 2), (98, 1, 1 / 99), (99, 1, 0.01), (198, 1, 0.01), (199, 2, 0.01), (1000, 10, 0.01)],
)
def test_the_threshold_is_the_largest_score_but_so_many(n: int, rank: int, alpha: float) -> None:
    scores = np.random.default_rng(0).permutation(n).astype(np.float32)
    threshold, effective = conformal_threshold(scores)
    assert threshold == n - rank
    assert effective == pytest.approx(alpha)


@pytest.mark.parametrize(("strange", "n", "alarming"), [(2, 10, False), (3, 10, True), (3, 300, False)])
def test_fewer_than_three_or_one_in_a_hundred_are_left_to_chance(
    strange: int, n: int, alarming: bool
) -> None:
    scores = np.full(n, 0.69, np.float32)
    scores[:strange] = 0.71
    assert second_mode(scores)[1] is alarming


def traffic(rng: np.random.Generator, n: int, share: float = 0.1) -> tuple[Pixels, Hits]:
    """Flag scores of clean images as the split graph gives them, and whose label is suspected; few others score."""
    asked = rng.random(n) < share
    scores = rng.beta(1.2, 4, n)
    return np.where(asked, scores, (scores - 0.75).clip(0)).astype(np.float32), asked


@pytest.mark.parametrize("n", [25, 300, 750])
def test_the_stated_rate_and_its_interval_hold_for_all_labels_together(n: int) -> None:
    rng = np.random.default_rng(1)
    fresh, _ = traffic(rng, 300_000)
    rates, stated, covered = [], [], []
    for _ in range(400):
        threshold, alpha = suspected_threshold(*traffic(rng, n))
        rates.append(float((fresh > threshold).mean()))
        stated.append(alpha)
        covered.append(rates[-1] <= false_alarms(alpha, n)[1])
    assert np.mean(rates) <= np.mean(stated) * 1.05
    assert np.mean(rates) <= max(ALPHA_SUSPECTED, 1 / (n + 1))
    assert np.mean(covered) >= 0.96


def test_a_suspected_label_has_a_lower_threshold_than_all_labels_have_together() -> None:
    rng = np.random.default_rng(1)
    scores = rng.beta(1.2, 4, 750).astype(np.float32)
    asked = rng.random(750) < 0.1
    threshold, _ = suspected_threshold(np.where(asked, scores, 0).astype(np.float32), asked)
    assert threshold < conformal_threshold(scores, ALPHA_SUSPECTED)[0] - 0.1


def test_a_rare_suspected_label_is_not_flagged_as_a_whole() -> None:
    rng = np.random.default_rng(2)
    scores, asked = np.zeros(2000, np.float32), np.arange(2000) < 40
    scores[asked] = rng.uniform(0.5, 1, 40)
    threshold, alpha = suspected_threshold(scores, asked)
    flagged = int((scores > threshold).sum())
    assert 1 <= flagged + 1 <= MOST_OF_LABEL * 41
    assert alpha == (flagged + 1) / 2001
    # Nor is what hardly lost anything, nor a label that no calibration image has.
    assert suspected_threshold(scores * np.float32(0.1), asked) == (LEAST_SCORE, 1 / 2001)
    assert suspected_threshold(np.zeros(30, np.float32), np.zeros(30, bool)) == (LEAST_SCORE, 1 / 31)


def test_a_score_at_the_second_mode_is_not_above_it() -> None:
    assert second_mode(np.full(10, 0.7, np.float32)) == (0.0, False)


@pytest.mark.parametrize(
    ("called_clean", "weakest", "expected"),
    [
        ([], 0.8, 0.2),
        ([0.1] * 9, 0.8, 0.2),
        ([0.5] * 9, 0.8, 0.5),
        ([0.5] * 9, 0.3, 0.35),  # of images known to be triggered one in twenty lies below that
        ([0.5] * 9, 0.0, 0.2),
        ([0.95] * 9, None, 0.7),
    ],
    ids=["none", "low", "higher", "as far as triggers stay flagged", "no further", "no trigger known"],
)
def test_images_called_clean_raise_the_threshold_as_far_as_triggered_ones_stay_above(
    called_clean: list[float], weakest: float | None, expected: float
) -> None:
    calibration, clean = np.linspace(0, 0.2, 300, dtype=np.float32), np.array(called_clean, np.float32)
    triggered = np.zeros(0) if weakest is None else weakest + np.linspace(0, 1, 101)
    found = corrected_threshold(0.2, 0.01, calibration, clean, triggered.astype(np.float32))
    assert found == pytest.approx(expected, abs=1e-6)
