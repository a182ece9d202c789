"""`detrigger repair`: the file that comes out is the suspect's own graph without its backdoor, or there is none."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from detrigger import cli
from detrigger.models.manifest import Verdict
from detrigger.models.store import VersionStore
from detrigger.offline.graph.to_onnx import run
from detrigger.offline.graph.weights import weight_names
from detrigger.offline.inputs.profile import PROFILES, Profile
from detrigger.offline.inputs.split import as_float
from detrigger.offline.jobs import repair as module
from detrigger.offline.steps.find import Findings, find_triggers, prepared
from detrigger.offline.steps.run import Run
from tests import blobs
from tests.test_suspect import network

_FOUND: dict[str, Findings] = {}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough steps for a network of two layers, whose hand-made weights are coarse."""
    monkeypatch.setitem(PROFILES, "fast", _profile())


def _profile(**repair: Any) -> Profile:
    tuning = {"steps": 100, "refresh_steps": 30, "rate": 0.1, "lengths": {1.0: math.inf}} | repair
    return blobs.short_profile(screen_steps=100, images_per_class=8, generator_steps=10, repair=tuning)


@pytest.fixture(autouse=True)
def _found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inversion, which has tests of its own, runs once for each suspect."""

    def remember(run: Run) -> Findings:
        digest = run.inputs.digest
        if digest not in _FOUND:
            _FOUND[digest] = prepared(run, find_triggers(run))
        return _FOUND[digest]

    monkeypatch.setattr(module, "find_triggers", remember)
    monkeypatch.setattr(module, "prepared", lambda _, findings: findings)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blobs.npz(tmp_path_factory.mktemp("data") / "clean.npz", 30)


def repair(*argv: object) -> int:
    return cli.main(["repair", *map(str, argv), "--profile", "fast", "--device", "cpu", "--json"])


def answers(path: Path, *, triggered: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What the file says of unseen images one by one, and what is right."""
    x, y = blobs.images(10, seed=1, triggered=triggered)
    run = ort.InferenceSession(path)
    given = x.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return np.array([run.run(["scores"], {"pixels": image[None]})[0].argmax() for image in given]), y


@pytest.mark.slow
@pytest.mark.parametrize(("softmax", "batch"), [(False, "batch"), (True, 1)])
def test_the_repaired_file_is_the_same_graph_without_the_backdoor(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], softmax: bool, batch: str | int
) -> None:
    suspect, out = blobs.suspect(tmp_path, softmax=softmax, batch=batch), tmp_path / "repaired.onnx"
    before = suspect.read_bytes()
    code = repair(suspect, "--data", data, "--out", out)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (code, answer["exit_code"], answer["gate_passed"]) == (0, 0, True)
    assert (answer["verdict"], answer["target_labels"], answer["written"]) == ("backdoored", [2], str(out))
    metrics = answer["metrics"]
    assert metrics["asr_inverted_before"] > 0.8
    assert metrics["asr_inverted_after"] <= 0.1
    assert metrics["ba_drop"] <= 0.02
    assert suspect.read_bytes() == before

    fooled, _ = answers(suspect, triggered=True)
    assert (fooled == blobs.TARGET).all()
    for triggered in (False, True):
        said, right = answers(out, triggered=triggered)
        assert (said == right).mean() > 0.95

    old, new = onnx.load(suspect), onnx.load(out)
    onnx.checker.check_model(new, full_check=True)
    assert new.graph.input == old.graph.input
    assert new.graph.output == old.graph.output
    assert new.graph.node == old.graph.node
    values = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (old, new)]
    changed = {name for name in values[0] if not np.array_equal(values[0][name], values[1][name])}
    assert changed == {"conv.weight", "bn.scale", "bn.bias", "fc/weight", "fc/bias"}


@pytest.mark.slow
def test_what_misses_the_gate_is_not_written(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, "fast", _profile(rate=0.0))
    suspect, out = blobs.suspect(tmp_path), tmp_path / "repaired.onnx"
    assert repair(suspect, "--data", data, "--out", out) == 3
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["error"]["code"], answer["written"], answer["gate_passed"]) == (
        "gate_refused",
        None,
        False,
    )
    assert re.search(r"asr_inverted (100|[89]\d)\.\d%, 10% allowed", captured.err.splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_an_interrupted_repair_leaves_nothing(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "judge_repair", interrupt)
    assert repair(blobs.suspect(tmp_path), "--data", data, "--out", tmp_path / "repaired.onnx") == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_clean_model_is_tuned_briefly_and_stays_as_good(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repaired.onnx"
    assert repair(blobs.suspect(tmp_path, backdoor=False), "--data", data, "--out", out) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["remaining"], answer["written"]) == ("clean", [], str(out))
    said, right = answers(out, triggered=False)
    assert (said == right).mean() > 0.95


def test_the_suspect_is_never_overwritten(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suspect = blobs.suspect(tmp_path)
    (tmp_path / "same.onnx").symlink_to(suspect)
    for out, said in (
        (suspect, "the suspect itself"),
        (tmp_path / "same.onnx", "the suspect itself"),
        (tmp_path / "repaired.pt", "has to end in .onnx"),
        (tmp_path / "gone" / "repaired.onnx", "no folder"),
    ):
        assert repair(suspect, "--data", data, "--out", out) == 2
        assert said in capsys.readouterr().err


def test_only_weights_are_tuned() -> None:
    model = network()
    assert weight_names(model) == {"w1", "w2", "w3"}
    for initializer in model.graph.initializer:
        initializer.name = f"unused_{initializer.name}"
    assert not weight_names(model)


def test_a_model_without_weights_to_tune_is_refused(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suspect = blobs.frozen(blobs.suspect(tmp_path))
    assert repair(suspect, "--data", data, "--out", tmp_path / "repaired.onnx") == 2
    assert "no floating-point weights to tune" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "tunable", "verdict", "said"),
    [
        (1e-3, True, "backdoored", ""),
        (1e-3, True, "clean", "verdict: clean"),
        (1.0, True, "backdoored", "would cost"),
        (1e-3, False, "backdoored", "no floating"),
    ],
)
def test_behind_a_purifier_stand_repaired_weights_or_it_is_said_why_not(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    rate: float, tunable: bool, verdict: Verdict, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("detrigger.offline.steps.find.verdict", lambda *_: (verdict, (blobs.TARGET,)))
    monkeypatch.setitem(PROFILES, "fast", blobs.short_profile(copy={"steps": 12, "rate": rate}))
    suspect, store = blobs.suspect(tmp_path), tmp_path / "store"
    if not tunable:
        blobs.frozen(suspect)
    given = ["--data", str(data), "--store", str(store), "--profile", "fast", "--no-promote"]
    cli.main(["protect", str(suspect), *given])
    assert said in capsys.readouterr().err
    versions = VersionStore(store)
    version = versions.version_ids()[-1]
    used = versions.manifest(version).metrics["repaired"]
    assert used == float(not said)
    graph = onnx.load_from_string(versions.read_file(version, "protected.onnx"))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("answers", onnx.TensorProto.FLOAT, None))
    x = as_float(blobs.images(5, seed=1)[0])
    purified, answers = run(graph, x, ["purified", "answers"])
    own = ort.InferenceSession(suspect).run(["scores"], {"pixels": purified})[0]
    assert np.allclose(answers, own, atol=1e-4) is not bool(used)


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [math.inf, 10.0, -1.0])
def test_weights_go_no_further_than_clean_images_allow(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, allowed: float
) -> None:
    lengths = {1.0: allowed, 0.0: math.inf}  # as tuned, and the suspect's own, which the gate refuses
    monkeypatch.setitem(PROFILES, "fast", _profile(lengths=lengths))
    out = tmp_path / "repaired.onnx"
    repair(blobs.suspect(tmp_path), "--data", data, "--out", out)
    assert out.exists() is (allowed > 0)
