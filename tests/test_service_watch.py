"""Concentration of flags and drift of scores."""

import numpy as np
import pytest

from detrigger.service.engine import Model, Outputs
from detrigger.service.watch import Watch, calibration_points
from tests.toys import protected_model, toy_manifest


@pytest.fixture(scope="module")
def model() -> Model:
    manifest = toy_manifest("20260101T000000Z-00000000", threshold=0.5)
    return Model(manifest, protected_model(), device="cpu", threads=1, batch_size=4)


def outputs(labels: list[int], scores: list[float]) -> Outputs:
    score = np.array(scores, np.float32)
    index = np.array(labels, np.int64)
    rows = np.zeros((len(labels), 3), np.float32)
    return Outputs(rows, rows, score, None, rows, index, index, score > 0.5)


def feed(watch: Watch, model: Model, count: int, share: float, target: int | None, seed: int = 0) -> None:
    """`count` images of 3 classes; a `share` of them flagged, on `target` or on any class."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        flagged = rng.random() < share
        label = target if flagged and target is not None else int(rng.integers(3))
        watch.feed(model, outputs([label], [0.9 if flagged else float(rng.random()) / 2]))


def test_nothing_is_said_of_few_images(model: Model) -> None:
    watch = Watch()
    assert (watch.concentration(), watch.drift()) == ((0.0, -1), 0.0)
    feed(watch, model, 15, 1.0, 1)
    assert (watch.concentration(), watch.drift()) == ((0.0, -1), 0.0)


def test_an_attack_concentrates_and_false_alarms_do_not(model: Model) -> None:
    attacked, calm = Watch(), Watch()
    feed(attacked, model, 2000, 0.1, 1)
    feed(calm, model, 2000, 0.1, None)
    share, label = attacked.concentration()
    assert label == 1
    assert share > 0.5
    assert calm.concentration()[0] < 0.15


def test_one_frequent_class_is_no_attack(model: Model) -> None:
    watch = Watch()
    for n in range(1000):
        watch.feed(model, outputs([2], [0.9 if n % 20 == 0 else 0.1]))
    assert watch.concentration()[0] < 0.05


def test_drift_sees_another_distribution(model: Model) -> None:
    manifest = model.manifest.model_copy(update={"metrics": {"calibration_score_p50": 0.25, "ba_bare": 1.0}})
    assert calibration_points(manifest) == ((0.5, 1 - manifest.flag.alpha), (0.25, 0.5))
    calm, shifted = Watch(), Watch()
    feed(calm, model, 1000, 0.02, None)
    feed(shifted, model, 1000, 0.4, None)
    assert calm.drift() < 0.03
    assert shifted.drift() > 0.3


def test_scores_of_exactly_zero_are_no_drift(model: Model) -> None:
    metrics = {"calibration_score_p50": 0.0, "calibration_score_p90": 0.25}
    manifest = model.manifest.model_copy(update={"metrics": metrics})
    watch = Watch()
    watch.feed(Model(manifest, protected_model(), device="cpu", threads=1, batch_size=4), outputs([0], [0.0]))
    for n in range(1000):  # as in calibration: four of five are 0, and one of ten is above 0.25
        watch.feed(model, outputs([0], [max(0.0, n % 10 / 10 - 0.7) * 2]))
    assert watch.drift() == pytest.approx(manifest.flag.alpha)  # none is above the threshold


def test_another_version_starts_anew(model: Model) -> None:
    watch = Watch()
    feed(watch, model, 300, 0.5, 1)
    manifest = model.manifest.model_copy(update={"id": "20260101T000000Z-00000001"})
    other = Model(manifest, protected_model(), device="cpu", threads=1, batch_size=4)
    watch.feed(other, outputs([0], [0.1]))
    assert watch.concentration() == (0.0, -1)


def test_an_attack_of_the_past_is_forgotten_without_traffic(model: Model) -> None:
    now = 0.0
    watch = Watch(lambda: now)
    feed(watch, model, 1500, 0.2, 1)
    now = 300
    assert watch.concentration()[0] > 0.5
    assert watch.drift() > 0.15
    now = 601
    assert (watch.concentration(), watch.drift()) == ((0.0, -1), 0.0)


def test_false_alarms_of_a_suspected_label_are_no_attack_and_more_of_them_are(model: Model) -> None:
    manifest = model.manifest
    flag = manifest.flag.model_copy(update={"suspected": (1,), "alpha": 0.02})
    split = Model(
        manifest.model_copy(update={"flag": flag}), protected_model(), device="cpu", threads=1, batch_size=4
    )
    calm, attacked = Watch(), Watch()
    feed(calm, split, 3000, 0.02, 1)
    feed(attacked, split, 3000, 0.08, 1)
    assert calm.concentration()[0] < 0.3
    assert attacked.concentration()[1] == 1
    assert attacked.concentration()[0] > 0.5
