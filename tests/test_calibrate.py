"""Flag threshold: how many clean images it flags, and which images it goes by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrigger.offline.steps.calibrate import conformal_threshold, second_mode, trustworthy


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
