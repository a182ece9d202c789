"""What reviewed images teach: the trigger that is on them, and nothing that the suspect does not confirm."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.profile import PARTS, Profile
from detrigger.offline.inputs.reviewed import Reviewed, load_reviewed
from detrigger.offline.jobs.evaluate import evaluate
from detrigger.offline.jobs.protect import ProtectOptions, protect
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.calibrate import corrected_threshold
from detrigger.offline.steps.reviewed import learn
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.change import ChangeBank
from tests import blobs

IMAGES = 40
Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("given")
    options = Options(suspect=blobs.suspect(folder), data=blobs.npz(folder / "clean.npz", 40), device="cpu")
    return begin(options, Compute("cpu", 0), SilentProgress(), blobs.short_profile())


def poisoned(seed: int = 7) -> Images:
    """Images of all classes but the target, with the trigger."""
    x, y = blobs.images(IMAGES, seed, triggered=True)
    chosen = np.flatnonzero(y != blobs.TARGET)
    return x[chosen[:: len(chosen) // IMAGES]]


def clean(label: int, seed: int = 8) -> Images:
    x, y = blobs.images(IMAGES, seed)
    return np.asarray(x[y == label])


def said(x: Images, label: int) -> Reviewed:
    return Reviewed("export", (x, np.full(len(x), label)))


def test_the_trigger_is_taken_from_the_images(job: Run) -> None:
    lessons = learn(job, said(poisoned(), blobs.TARGET))
    assert lessons.targets == (blobs.TARGET,)
    best = lessons.taken[0]
    assert (best.family, best.target) == ("patch", blobs.TARGET)
    assert best.success > 0.95
    x = job.images.train[0][:1]
    changed = (best.bank(x, x.new_zeros(1).long()) - x).abs().amax((0, 1))
    assert float(changed[: blobs.CORNER, : blobs.CORNER].min()) > 0.3
    assert float(changed[blobs.CORNER :, blobs.CORNER :].mean()) < 0.01
    assert lessons.aside is not None
    assert lessons.examples is not None
    assert len(lessons.examples[0]) + len(lessons.aside[0]) == len(poisoned())


def noise(seed: int = 9) -> Images:
    return np.random.default_rng(seed).integers(0, 256, poisoned().shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("crafted", "label"),
    [
        pytest.param(clean(3), 3, id="clean images of one class"),
        pytest.param(clean(3), 4, id="another label than the suspect gives"),
        pytest.param(poisoned(), 4, id="another's trigger"),
        pytest.param(poisoned()[:5], blobs.TARGET, id="too few"),
    ],
)
def test_crafted_images_teach_nothing(job: Run, crafted: Images, label: int) -> None:
    lessons = learn(job, said(crafted, label))
    assert (lessons.targets, lessons.taken, lessons.examples) == ((), (), None)
    assert lessons.rows[0]["note"]


def test_images_called_clean_cannot_switch_the_flag_off() -> None:
    calibration = np.linspace(0, 0.1, 500, dtype=np.float32)
    triggered = np.linspace(0.5, 0.99, 200, dtype=np.float32)
    usual = float(np.sort(calibration)[-5])
    crafted = np.full(1000, 0.98, np.float32)
    raised = corrected_threshold(usual, 0.01, calibration, crafted, triggered)
    assert usual < raised
    assert (triggered > raised).mean() >= 0.95
    unknown = corrected_threshold(usual, 0.01, calibration, crafted, np.zeros(0, np.float32))
    assert unknown <= 0.7


def test_images_called_clean_raise_the_threshold_and_never_lower_it() -> None:
    calibration = np.linspace(0, 0.1, 500, dtype=np.float32)
    triggered = np.full(50, 0.9, np.float32)
    honest = np.full(20, 0.3, np.float32)
    assert corrected_threshold(0.05, 0.01, calibration, honest, triggered) >= 0.3
    quiet = np.zeros(5000, np.float32)  # alone they would bring the threshold below 0.1
    assert corrected_threshold(0.099, 0.01, calibration, quiet, triggered) == 0.099
    assert corrected_threshold(0.099, 0.01, calibration, quiet[:0], triggered) == 0.099


# --- the folder -------------------------------------------------------------------------------------------


def write(folder: Path, x: Images) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(x):
        Image.fromarray(image).save(folder / f"{i}.png")


def test_an_export_is_read_by_class_as_the_quarantine_writes_it(tmp_path: Path) -> None:
    names = ("one", "ice/snow", ".hidden")
    write(tmp_path / "poisoned/ice%2Fsnow", poisoned()[:3])
    write(tmp_path / "poisoned/%2Ehidden", poisoned()[:2])
    write(tmp_path / "clean/one", clean(0)[:4])
    pre = Preprocess.plain(blobs.SIDE, blobs.SIDE, 3, names).model_copy(update={"resize": 64, "crop": True})
    found = load_reviewed(tmp_path, pre, SilentProgress())
    assert found.poisoned is not None
    assert found.clean is not None
    assert sorted(found.poisoned[1].tolist()) == [1, 1, 1, 2, 2]
    assert np.array_equal(found.poisoned[0][:3], poisoned()[:3])  # as the classifier got them
    assert len(found.clean) == 4


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    pre = Preprocess.plain(blobs.SIDE, blobs.SIDE, 3, ("one", "two"))
    with pytest.raises(BadInput, match="neither a folder 'poisoned' nor 'clean'"):
        load_reviewed(tmp_path, pre, SilentProgress())
    write(tmp_path / "poisoned/three", poisoned()[:1])
    with pytest.raises(BadInput, match="three"):
        load_reviewed(tmp_path, pre, SilentProgress())


# --- the whole job ----------------------------------------------------------------------------------------


def blind() -> Profile:
    """A profile that asks no family for marks, nor trains on random ones."""
    others = {ChangeBank.family, *(family.family for family in UNIVERSAL)} - {"warp"}
    return replace(
        blobs.short_profile(purify_steps=30), unscreened=frozenset(others), parts=PARTS - {"synthetic"}
    )


@pytest.mark.slow
def test_reviewed_images_mend_what_missed_the_trigger_and_crafted_ones_harm_nothing(tmp_path: Path) -> None:
    model, data = blobs.suspect(tmp_path), blobs.npz(tmp_path / "clean.npz", 24)
    test = blobs.npz(tmp_path / "test.npz", 20, seed=3)
    x, y = blobs.images(20, seed=4, triggered=True)
    bad, others = tmp_path / "bad.npz", y != blobs.TARGET
    np.savez(bad, x=x[others], y=y[others])
    write(tmp_path / "crafted/poisoned/3", clean(3))
    write(tmp_path / "crafted/poisoned/4", poisoned())
    write(tmp_path / "crafted/poisoned/5", noise())
    write(tmp_path / "crafted/clean/0", poisoned())
    write(tmp_path / "honest/poisoned/2", poisoned())
    found = {}
    for name in ("crafted", "honest"):
        store = VersionStore.create(tmp_path / f"store-{name}")
        options = ProtectOptions(
            suspect=model, data=data, store=store.root, device="cpu", reviewed=tmp_path / name
        )
        done = protect(options, SilentProgress(), blind())
        found[name] = evaluate(store, test, bad, SilentProgress(), version=done.version, target=blobs.TARGET)
        assert (done.target_labels == (blobs.TARGET,)) == (name == "honest")
    crafted, honest = found["crafted"].protected, found["honest"].protected
    assert crafted.BA == honest.BA == 1.0
    assert (crafted.ASR or 0.0) > 0.5  # the version knows nothing of the trigger
    assert (honest.ASR or 0.0) <= 0.02
    assert (found["honest"].TPR or 0.0) >= 0.95
