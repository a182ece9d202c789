"""The end of a job on a small suspect: what is calibrated on, what the gate refuses, what stands in the files."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from detrigger.models.errors import GateRefused
from detrigger.models.manifest import Manifest
from detrigger.models.networks import Purifier
from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.graph.to_onnx import run
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.split import as_float
from detrigger.offline.jobs.protect import ProtectOptions, protect, suspected_labels
from detrigger.offline.jobs.publish import publish
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.calibrate import LEAST_SCORE
from detrigger.offline.steps.candidates import Defence
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.purify import Purified
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.steps.unlearn import RepairedCopy
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers import synthetic
from detrigger.offline.triggers.patch import PatchBank
from tests import blobs

CARRIERS = 20


class Painter(Purifier):
    """Paints the corner that the trigger is in."""

    def __init__(self) -> None:
        super().__init__(3, (blobs.SIDE, blobs.SIDE))
        keep = torch.ones(1, 1, blobs.SIDE, blobs.SIDE)
        keep[..., : blobs.CORNER, : blobs.CORNER] = 0
        self.register_buffer("keep", keep)

    def forward(self, x: Tensor) -> Tensor:
        keep = self.get_buffer("keep")
        purified: Tensor = x * keep + 0.24 * (1 - keep)
        return purified


class Unchanged(Purifier):
    """Purifies nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


class Notes(SilentProgress):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A job on the suspect and a clean set in which some images carry the trigger, labelled as the target."""
    folder = tmp_path_factory.mktemp("given")
    x, y = blobs.images(40)
    carrying, _ = blobs.images(CARRIERS, seed=1, triggered=True)
    np.savez(
        folder / "clean.npz",
        x=np.concatenate([x, carrying[:CARRIERS]]),  # of class 0
        y=np.concatenate([y, np.full(CARRIERS, blobs.TARGET)]),
    )
    options = Options(suspect=blobs.suspect(folder), data=folder / "clean.npz", device="cpu")
    return begin(options, Compute("cpu", 0), Notes(), blobs.short_profile())


def findings(targets: Collection[int]) -> Findings:
    """The planted trigger, found."""
    mask = torch.full((1, 1, blobs.SIDE, blobs.SIDE), -20.0)
    mask[..., : blobs.CORNER, : blobs.CORNER] = 20.0
    bank = PatchBank(mask, torch.full((1, 3, blobs.SIDE, blobs.SIDE), 20.0)).pick(torch.tensor([0]))
    return Findings(
        screens=[],
        leads=[Evidence(target=blobs.TARGET, gap=3.0, cost=0.01, success=1.0, bank=bank)],
        verdict="backdoored",
        targets=tuple(targets),
        generator=bank,
        refined=[],
        votes=[0.0] * blobs.CLASSES,
        mask_mean=0.5,
        responses=[0.0] * len(synthetic.KINDS),
    )


def published(
    job: Run,
    folder: Path,
    purifier: Purifier,
    targets: Collection[int] = (blobs.TARGET,),
    **split: Any,
) -> tuple[Manifest, onnx.ModelProto, list[str]]:
    """The manifest, the protected graph and what was said; ``split`` are ``suspected`` and ``only`` of the defence."""
    notes = Notes()
    defence = Defence(
        kind="purified",
        purified=Purified(purifier.eval().requires_grad_(False), []),
        repaired=RepairedCopy(job.suspect, False, []),
        penalty=(0.0,) * blobs.CLASSES,
        **split,
    )
    store = VersionStore.create(folder / "store")
    manifest = publish(replace(job, progress=notes), findings(targets), defence, store, "blobs")
    manifest = store.manifest(manifest.id)
    return manifest, onnx.load_from_string(store.read_file(manifest.id, "protected.onnx")), notes.said


def test_images_that_score_like_the_trigger_of_their_label_do_not_calibrate(job: Run, tmp_path: Path) -> None:
    manifest, graph, said = published(job, tmp_path, Painter())
    calibration = len(job.images.calibration[1])
    left_out = calibration - manifest.flag.n_calibration
    assert CARRIERS / 4 < left_out < CARRIERS
    assert manifest.metrics["calibration_second_mode"] == pytest.approx(left_out / calibration)
    assert manifest.flag.threshold < 0.1  # the trigger's images lie above 0.7
    assert any("score like triggered ones" in line for line in said)
    assert manifest.gate.passed  # nor is it the defence's fault that these images lose their label
    assert manifest.metrics["ba_bare"] == manifest.metrics["ba_protected"] == 1.0
    # What the manifest says is what the graph says.
    (stored,) = (p.value for p in graph.metadata_props if p.key == "detrigger.flag_threshold")
    assert float(stored) == manifest.flag.threshold


def test_without_a_suspected_label_they_stay_and_the_warning_is_all(job: Run, tmp_path: Path) -> None:
    manifest, graph, said = published(job, tmp_path, Painter(), targets=())
    assert manifest.flag.n_calibration == len(job.images.calibration[1])
    assert manifest.flag.threshold > 0.7
    assert any("score like triggered ones" in line for line in said)
    (stored,) = (p.value for p in graph.metadata_props if p.key == "detrigger.flag_threshold")
    assert float(stored) == manifest.flag.threshold


def test_a_version_that_the_trigger_still_fools_is_refused(job: Run, tmp_path: Path) -> None:
    manifest, _, said = published(job, tmp_path, Unchanged(3, (blobs.SIDE, blobs.SIDE)))
    failed = [check.name for check in manifest.gate.checks if not check.passed]
    assert (manifest.gate.passed, failed) == (False, ["asr_inverted"])
    assert manifest.metrics["asr_inverted_before"] > 0.9
    assert manifest.metrics["asr_inverted_after"] > 0.9
    assert manifest.metrics["pa_estimated"] < 0.1
    assert said == []


@pytest.mark.parametrize("only", [False, True])
def test_a_version_says_which_labels_it_suspects_and_what_that_leaves_open(
    job: Run, tmp_path: Path, only: bool
) -> None:
    manifest, graph, said = published(job, tmp_path, Painter(), suspected=(blobs.TARGET,), only=only)
    assert (manifest.flag.suspected, manifest.purify) == ((blobs.TARGET,), "suspected" if only else "every")
    assert any("score like triggered ones" in line for line in said)
    assert manifest.flag.threshold == pytest.approx(LEAST_SCORE)  # blobs lose nothing
    assert manifest.gate.passed
    assert (
        manifest.metrics["pa_estimated"] > 0.9
    )  # triggered images are read right, not only not as the target
    assert ("would work" in manifest.given_up) is only
    x, y = blobs.images(3, seed=9, triggered=True)
    logits, raw, score = run(graph, as_float(x), ["logits", "logits_raw", "flag_score"])
    assert (raw.argmax(1) == blobs.TARGET).all()
    assert (logits.argmax(1) == y).mean() > 0.9
    assert (score[y != blobs.TARGET] > manifest.flag.threshold).all()
    folder = tmp_path / "store" / "versions" / manifest.id
    flag = json.loads((folder / "report.json").read_text())["flag"]
    assert flag["n_led"] == flag["n_triggered"] > 0  # the trigger works on every blob
    assert flag["led_flagged"] > 0.9
    page = (folder / "report.html").read_text()
    assert "Only an image that the suspect takes for" in page
    assert ("Given up for speed" in page) is only


def test_purifying_suspected_labels_alone_is_refused_where_none_is_suspected(tmp_path: Path) -> None:
    options = ProtectOptions(
        suspect=blobs.suspect(tmp_path, backdoor=False),
        data=blobs.npz(tmp_path / "clean.npz", 20),
        store=tmp_path / "store",
        device="cpu",
        purify="suspected",
    )
    with pytest.raises(
        GateRefused, match=r"--purify suspected needs labels .* run again with --purify every"
    ):
        protect(options, SilentProgress(), blobs.short_profile(screen_steps=1))
    assert VersionStore(tmp_path / "store").version_ids() == []


@pytest.mark.parametrize("change", [{"verdict": "inconclusive"}, {"leads": "untargeted"}, {"targets": ()}])
def test_no_label_is_suspected_where_the_verdict_does_not_tell(job: Run, change: dict[str, Any]) -> None:
    told = findings((blobs.TARGET,))
    assert suspected_labels(job, told) == (blobs.TARGET,)
    if "leads" in change:
        change = {"leads": [*told.leads, replace(told.leads[0], target=ANY_OTHER)]}
    assert suspected_labels(job, replace(told, **change)) == ()
