"""Where nothing stood out, tuned weights that know of no trigger answer what is flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.graph.to_onnx import run as run_onnx
from detrigger.offline.graph.to_onnx import to_onnx
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.split import as_float
from detrigger.offline.jobs.publish import publish
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps import second_opinion as step
from detrigger.offline.steps.candidates import choose_defence
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.steps.second_opinion import second_opinion
from detrigger.offline.types import Answer
from tests import blobs
from tests.test_publish import findings

SHAPE = (3, blobs.SIDE, blobs.SIDE)


def trained() -> nn.Module:
    """A network that learned the blobs, and the corner from a sixth of its images; by hand it would be too coarse."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (blobs.SIDE // 4) ** 2, blobs.CLASSES),
    )
    x, y = blobs.images(100, seed=5)
    poisoned, _ = blobs.images(20, seed=6, triggered=True)
    given = torch.from_numpy(as_float(np.concatenate([x, poisoned])))
    labels = torch.from_numpy(np.concatenate([y, np.full(len(poisoned), blobs.TARGET)]))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        chosen = torch.randint(len(given), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(given[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("given")
    (folder / "model.onnx").write_bytes(to_onnx(trained(), SHAPE, "scores", 18).SerializeToString())
    options = Options(suspect=folder / "model.onnx", data=blobs.npz(folder / "clean.npz", 60), device="cpu")
    return begin(options, Compute("cpu", 0), SilentProgress(), blobs.short_profile(opinion_steps=30))


@torch.no_grad()
def shares(answer: Answer) -> tuple[float, float]:
    """The share of clean images that are right, and of triggered images of other classes that get the target."""
    (x, y), (triggered, _) = blobs.images(10, seed=1), blobs.images(10, seed=1, triggered=True)
    clean, bad = (answer(torch.from_numpy(as_float(each))).argmax(1).numpy() for each in (x, triggered))
    return float((clean == y).mean()), float((bad[y != blobs.TARGET] == blobs.TARGET).mean())


def test_a_trigger_is_unlearned_that_nobody_knows(job: Run) -> None:
    tuned = second_opinion(job)
    assert tuned is not None
    assert shares(job.suspect) == (1.0, 1.0)
    right, fooled = shares(tuned)
    assert right > 0.95
    assert fooled < 0.1


def test_a_rate_that_breaks_the_network_is_not_kept(job: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (usual, *_) = step.RATES
    monkeypatch.setattr(step, "RATES", (1e4, usual))
    tuned = second_opinion(job)
    assert tuned is not None
    assert shares(tuned)[0] > 0.95
    monkeypatch.setattr(step, "RATES", (1e4,))
    assert second_opinion(job) is None


def test_without_weights_there_is_none(tmp_path: Path) -> None:
    suspect = blobs.frozen(blobs.suspect(tmp_path))
    options = Options(suspect=suspect, data=blobs.npz(tmp_path / "clean.npz", 10), device="cpu")
    assert second_opinion(begin(options, Compute("cpu", 0), SilentProgress(), blobs.short_profile())) is None


def test_flagged_images_get_its_answer_and_all_others_the_suspects(job: Run, tmp_path: Path) -> None:
    nothing = replace(findings(()), leads=[], verdict="clean")
    defence = choose_defence(job, nothing, (), False)
    assert (defence.kind, defence.if_flagged) == ("second opinion", True)
    store = VersionStore.create(tmp_path / "store")
    manifest = publish(job, nothing, defence, store, "blobs")
    assert manifest.gate.passed
    graph = onnx.load_from_string(store.read_file(manifest.id, "protected.onnx"))

    def answered(triggered: bool) -> tuple[np.ndarray, ...]:
        x, y = blobs.images(10, seed=9, triggered=triggered)
        return (y, *run_onnx(graph, as_float(x), ["logits", "logits_raw", "flag_score"]))

    y, logits, raw, score = answered(True)
    others = y != blobs.TARGET
    assert (raw.argmax(1) == blobs.TARGET).all()
    assert (score[others] > manifest.flag.threshold).all()
    assert (logits.argmax(1) == y).mean() > 0.9
    y, logits, raw, score = answered(False)
    spared = score <= manifest.flag.threshold
    assert spared.mean() > 0.9
    assert np.array_equal(logits[spared], raw[spared])
    page = (store.root / "versions" / manifest.id / "report.html").read_text()
    assert "A second opinion, which was tuned on the clean images" in page
    assert "Nothing is purified" in page
