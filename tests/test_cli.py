"""The command line as users and the service meet it: exit codes, one line, one JSON object."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from detrigger import cli
from detrigger.models.errors import BadInput, GateRefused
from detrigger.models.store import VersionStore
from detrigger.offline.progress import WEIGHTS, JobProgress, Progress, TerminalProgress
from tests.toys import classifier_model, protected_model, publish_toy, write_folders

ROOT = Path(__file__).parent.parent
IDS = [f"20250131T12000{n}Z-0000000{n}" for n in range(4)]


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on standard output."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a command in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*argv: object) -> Ran:
        try:
            code = cli.main([str(part) for part in argv])
        except SystemExit as end:  # argparse leaves this way
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@dataclass
class Options:
    """What offline.jobs.protect.ProtectOptions takes."""

    suspect: Path
    data: Path
    store: Path
    preprocess: Path | None
    device: str
    profile: str
    seed: int
    budget: float | None
    name: str
    promote: bool
    purify: str
    reviewed: Path | None
    feature_node: str | None
    trust_setup: bool
    unlabelled: bool
    strict: bool


@dataclass
class Outcome:
    """What offline.jobs.protect.protect returns."""

    version: str = IDS[0]
    verdict: str = "backdoored"
    target_labels: tuple[int, ...] = (1,)
    gate_passed: bool = True
    promoted: bool = True
    metrics: dict[str, float] = field(default_factory=lambda: {"ba_bare": 0.9})
    seconds: float = 1.5


@dataclass
class Job:
    """A job in place of the real one: remembers its options, ends as told."""

    end: Callable[[], Outcome] = Outcome
    options: Options | None = None

    def protect(self, options: Options, progress: Progress) -> Outcome:
        """Run."""
        self.options = options
        with progress.stage("import", 2) as advance:
            advance(1, difference=1e-8)
            advance()
        progress.note("halfway")
        with progress.stage("purify", 0) as advance:
            advance(loss=float("nan"))
        outcome = self.end()
        if not (options.store / "versions" / outcome.version).exists():
            publish_toy(
                options.store, version=outcome.version, gate_passed=outcome.gate_passed, promote=False
            )
        return outcome


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    fake = Job()
    module: Any = ModuleType("detrigger.offline.jobs.protect")
    module.ProtectOptions = Options
    module.protect = fake.protect
    monkeypatch.setitem(sys.modules, "detrigger.offline.jobs.protect", module)
    return fake


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The arguments that `protect` needs."""
    (tmp_path / "my model.onnx").write_bytes(classifier_model())
    data = write_folders(tmp_path / "images")
    return [str(tmp_path / "my model.onnx"), "--data", str(data), "--store", str(tmp_path / "store")]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in IDS[:2]:
        publish_toy(tmp_path / "store", version=version)
    return tmp_path / "store"


def is_refusal(ran: Ran, code: int = 2) -> bool:
    """One line on standard error, nothing else."""
    return (
        ran.code == code and ran.out == "" and ran.err.count("\n") == 1 and ran.err.startswith("detrigger: ")
    )


# --- all commands -----------------------------------------------------------------------------------------

COMMANDS = [
    "protect",
    "scan",
    "repair",
    "evaluate",
    "export",
    "serve",
    "versions",
    "promote",
    "rollback",
    "demo",
]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_everywhere(run: Callable[..., Ran], command: list[str]) -> None:
    ran = run(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("usage: detrigger")
    assert "job-dir" not in ran.out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["protect"],
        ["protect", "m.onnx"],
        ["protect", "m.onnx", "--data", "d", "--store", "s", "--profile", "slow"],
        ["protect", "m.onnx", "--data", "d", "--store", "s", "--seed", "x"],
        ["versions"],
        ["versions", "--store", "s", "--colour"],
        ["promote", "--store", "s"],
    ],
)
def test_wrong_arguments_are_one_line(run: Callable[..., Ran], argv: list[str]) -> None:
    ran = run(*argv)
    assert is_refusal(ran)
    assert "--help" in ran.err


def test_version(run: Callable[..., Ran]) -> None:
    assert run("--version").out.startswith("detrigger 0.")


@pytest.mark.process
@pytest.mark.parametrize("argv", [["--help"], ["versions", "--store", "nowhere"], ["serve", "--port", "x"]])
def test_no_torch_without_need(argv: list[str]) -> None:
    script = (
        "import sys; from detrigger.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'onnx', 'onnx2fx', 'offline'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_python_m_detrigger() -> None:
    argv = [sys.executable, "-m", "detrigger", "versions", "--store", "/nowhere", "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert is_refusal(Ran(done.returncode, "", done.stderr))
    assert json.loads(done.stdout)["error"]["code"] == "no_store"


@pytest.mark.process
def test_a_reader_that_leaves_early(store: Path) -> None:
    script = f"{sys.executable} -m detrigger versions --store {store} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    assert (done.returncode, done.stderr) == (0, "")


# --- versions, promote, rollback --------------------------------------------------------------------------


def test_versions_is_a_table(run: Callable[..., Ran], store: Path) -> None:
    publish_toy(store, version=IDS[2], gate_passed=False, promote=False, name="signs")
    ran = run("versions", "--store", store)
    lines = ran.out.splitlines()
    assert (ran.code, ran.err, len(lines)) == (0, "", 4)
    assert lines[0].split() == ["VERSION", "CREATED", "NAME", "VERDICT", "TARGET", "LABELS", "GATE"]
    assert [line.startswith("*") for line in lines] == [False, False, True, False]
    assert lines[3].split()[0] == IDS[2]
    assert "1 (green)" in lines[1]
    assert lines[3].endswith("refused")
    assert "signs" in lines[3]


def test_versions_as_json(run: Callable[..., Ran], store: Path) -> None:
    answer = run("versions", "--store", store, "--json").json
    assert (answer["served"], answer["damaged"], answer["error"], answer["exit_code"]) == (
        IDS[1],
        {},
        None,
        0,
    )
    assert [version["id"] for version in answer["versions"]] == IDS[:2]
    assert [version["served"] for version in answer["versions"]] == [False, True]
    assert answer["versions"][0]["target_labels"] == [1]


def test_versions_of_an_edited_store(run: Callable[..., Ran], store: Path) -> None:
    manifest = store / "versions" / IDS[1] / "manifest.json"
    manifest.unlink()
    manifest.write_text("{}")
    ran = run("versions", "--store", store)
    assert ran.code == 0
    assert "DAMAGED" in ran.out
    assert "restore it" in ran.out
    assert list(run("versions", "--store", store, "--json").json["damaged"]) == [IDS[1]]


@pytest.mark.parametrize("damage", ["protected.onnx", "report.html", "everything"])
def test_versions_says_where_the_promoted_one_cannot_be_served(
    run: Callable[..., Ran], store: Path, damage: str
) -> None:
    folder = store / "versions" / IDS[1]
    if damage == "everything":
        shutil.rmtree(folder)
    else:
        (folder / damage).unlink()
    ran = run("versions", "--store", store)
    line = next(line for line in ran.out.splitlines() if line.startswith("*"))
    assert "passed" not in line
    assert ("MISSING" if damage == "everything" else "DAMAGED") in line
    assert list(run("versions", "--store", store, "--json").json["damaged"]) == [IDS[1]]


@pytest.mark.parametrize("arguments", [[], ["--evaluate"]])
def test_verify_a_store_as_it_was_published(
    run: Callable[..., Ran], store: Path, arguments: list[str]
) -> None:
    ran = run("verify", "--store", store, *arguments)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("as published") == 2
    assert "2 entries, as written" in ran.out


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        (f"versions/{IDS[0]}/report.json", IDS[0]),
        (f"versions/{IDS[1]}/manifest.json", IDS[1]),
        ("promotions/00000001.json", "promotions"),
    ],
)
def test_verify_names_what_was_changed(
    run: Callable[..., Ran], store: Path, damaged: str, named: str
) -> None:
    path = store / damaged
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content.replace(b"1", b"2", 1))
    ran = run("verify", "--store", store, "--json")
    assert ran.code == 2
    assert list(ran.json["problems"]) == [named]
    assert len(ran.err.splitlines()) == 1
    assert path.name in ran.err


def test_verify_a_promoted_version_that_is_gone(run: Callable[..., Ran], store: Path) -> None:
    shutil.rmtree(store / "versions" / IDS[1])
    ran = run("verify", "--store", store)
    assert ran.code == 2
    assert IDS[1] in ran.err


def graph_with_nan() -> bytes:
    return protected_model().replace(np.float32(0.3).tobytes(), np.float32("nan").tobytes())


BROKEN_GRAPHS: dict[str, Callable[[], bytes]] = {
    "is 0.9": lambda: protected_model(threshold=0.9),
    "does not load": lambda: b"no model",
    "not finite": graph_with_nan,
}


@pytest.mark.parametrize("reason", BROKEN_GRAPHS)
def test_verify_evaluate_runs_the_graphs(run: Callable[..., Ran], store: Path, reason: str) -> None:
    publish_toy(store, version=IDS[2], promote=False, protected=BROKEN_GRAPHS[reason]())
    assert run("verify", "--store", store).code == 0
    ran = run("verify", "--store", store, "--evaluate")
    assert ran.code == 2
    assert reason in ran.err
    assert IDS[2] in ran.err


def test_versions_of_an_empty_store(run: Callable[..., Ran], tmp_path: Path) -> None:
    VersionStore.create(tmp_path / "store")
    assert "no versions yet" in run("versions", "--store", tmp_path / "store").out


def test_promote_and_rollback(run: Callable[..., Ran], store: Path) -> None:
    assert f"rolled back to {IDS[0]}" in run("rollback", "--store", store, "--reason", "worse").out
    assert VersionStore(store).current() == IDS[0]
    answer = run("promote", "--store", store, IDS[1], "--reason", "better", "--json").json
    assert (answer["version"], answer["previous"], answer["reason"]) == (IDS[1], IDS[0], "better")
    assert answer["by"].startswith("cli")
    assert VersionStore(store).current() == IDS[1]


def test_promote_says_what_was_served_before(run: Callable[..., Ran], tmp_path: Path) -> None:
    store = tmp_path / "s"
    for version in IDS[:2]:
        publish_toy(store, version=version, promote=False)
    said = [run("promote", "--store", store, version).out.strip() for version in (IDS[0], IDS[1], IDS[1])]
    assert said == [
        f"promoted {IDS[0]}",
        f"promoted {IDS[1]} (was {IDS[0]})",
        f"{IDS[1]} is promoted already",
    ]


def test_promote_what_its_gate_refused(run: Callable[..., Ran], store: Path) -> None:
    publish_toy(store, version=IDS[2], gate_passed=False, promote=False)
    ran = run("promote", "--store", store, IDS[2])
    assert is_refusal(ran, code=3)
    assert "--force" in ran.err
    assert VersionStore(store).current() == IDS[1]
    assert run("promote", "--store", store, IDS[2], "--force").code == 0
    assert VersionStore(store).current() == IDS[2]


@pytest.mark.parametrize("version", [IDS[3], "latest", "../../etc", ""])
def test_promote_what_is_not_there(run: Callable[..., Ran], store: Path, version: str) -> None:
    assert is_refusal(run("promote", "--store", store, version))
    assert VersionStore(store).current() == IDS[1]


def test_rollback_without_history(run: Callable[..., Ran], store: Path) -> None:
    assert run("rollback", "--store", store).code == 0
    assert is_refusal(run("rollback", "--store", store))


@pytest.mark.parametrize("command", ["versions", "rollback"])
def test_a_damaged_log_is_named(run: Callable[..., Ran], store: Path, command: str) -> None:
    entry = store / "promotions" / "00000002.json"
    entry.unlink()
    entry.write_text("{")
    ran = run(command, "--store", store)
    assert is_refusal(ran)
    assert "00000002.json" in ran.err


# --- protect ----------------------------------------------------------------------------------------------


def test_protect_hands_its_flags_to_the_job(run: Callable[..., Ran], job: Job, given: list[str]) -> None:
    ran = run(
        "protect",
        *given,
        "--profile",
        "fast",
        "--seed",
        7,
        "--device",
        "cpu",
        "--no-promote",
        "--feature-node",
        "relu",
        "--reviewed",
        "export",
    )
    assert ran.code == 0
    assert job.options is not None
    assert (job.options.profile, job.options.seed, job.options.device) == ("fast", 7, "cpu")
    assert (job.options.promote, job.options.preprocess) == (False, None)
    assert job.options.feature_node == "relu"
    assert job.options.reviewed == Path("export")
    for said in (
        IDS[0],
        "has a backdoor: a hidden trigger makes it answer",
        "verdict   backdoored",
        "report.html",
    ):
        assert said in ran.out
    assert re.search(r"clean +100\.0% +100\.0%", ran.out)
    assert "gate      ba_drop passed" in ran.out
    # Not a terminal: plain lines, without carriage returns.
    assert "import: done" in ran.err
    assert "halfway" in ran.err
    assert "\r" not in ran.err


def test_protect_as_json(run: Callable[..., Ran], job: Job, given: list[str]) -> None:
    answer = run("protect", *given, "--json").json
    assert answer == {
        "version": IDS[0],
        "verdict": "backdoored",
        "target_labels": [1],
        "gate_passed": True,
        "promoted": True,
        "metrics": {"ba_bare": 0.9},
        "seconds": 1.5,
        "exit_code": 0,
        "error": None,
    }


def test_names(run: Callable[..., Ran], job: Job, given: list[str], tmp_path: Path) -> None:
    def name(*more: str) -> str:
        assert run("protect", *given, *more).code == 0
        assert job.options is not None
        return job.options.name

    assert name() == "my-model"
    assert name("--name", "Signs.v2") == "Signs.v2"
    publish_toy(tmp_path / "store", version=IDS[1], name="signs")
    assert name() == "signs"
    for bad in ("a b", "", ".hidden", "a/b", "x" * 65, "ä"):
        assert is_refusal(run("protect", *given, "--name", bad))


def test_missing_paths_are_named_at_once(run: Callable[..., Ran], job: Job, given: list[str]) -> None:
    for n in (0, 2):
        argv = [*given[:n], "/nowhere/at/all", *given[n + 1 :]]
        ran = run("protect", *argv)
        assert is_refusal(ran)
        assert "/nowhere/at/all" in ran.err
    assert job.options is None


def test_a_gate_that_refuses(run: Callable[..., Ran], job: Job, given: list[str], tmp_path: Path) -> None:
    job.end = lambda: Outcome(gate_passed=False, promoted=False)
    ran = run("protect", *given, "--json", "--job-dir", tmp_path / "job")
    assert (ran.code, ran.json["error"]["code"]) == (3, "gate_refused")
    assert (ran.json["version"], ran.json["gate_passed"]) == (IDS[0], False)
    assert "report.html" in ran.err
    assert json.loads((tmp_path / "job" / "result.json").read_text()) == ran.json


def _raising(error: BaseException) -> Callable[[], Outcome]:
    def end() -> Outcome:
        raise error

    return end


ENDS: dict[str, tuple[BaseException, int, str]] = {
    "bad input": (BadInput("the data is\nno good: get better", code="bad_data"), 2, "bad_data"),
    "gate": (GateRefused("no"), 3, "gate_refused"),
    "interrupt": (KeyboardInterrupt(), 130, "interrupted"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "disk_full"),
    "defect": (ZeroDivisionError("line one\nline two"), 70, "internal"),
    "memory": (MemoryError(), 70, "internal"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_every_end_is_one_line_and_one_object(
    run: Callable[..., Ran], job: Job, given: list[str], tmp_path: Path, kind: str
) -> None:
    error, code, name = ENDS[kind]
    job.end = _raising(error)
    ran = run("protect", *given, "--json", "--job-dir", tmp_path / "job")
    assert (ran.code, ran.json["exit_code"], ran.json["error"]["code"]) == (code, code, name)
    assert "\n" not in ran.json["error"]["message"]
    last = ran.err.splitlines()[-1]
    assert last == f"detrigger: {ran.json['error']['message']}"
    assert "Traceback" not in ran.err
    assert json.loads((tmp_path / "job" / "result.json").read_text()) == ran.json
    assert [path.name for path in (tmp_path / "job").iterdir() if path.name.startswith(".")] == []


def test_debug_shows_the_traceback(run: Callable[..., Ran], job: Job, given: list[str]) -> None:
    job.end = _raising(ZeroDivisionError("oops"))
    assert "--debug" in run("protect", *given).err
    ran = run("protect", *given, "--debug")
    assert "Traceback" in ran.err
    assert ran.code == 70


def test_a_missing_package_says_what_to_install(
    run: Callable[..., Ran], given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoTorch:
        def find_spec(self, name: str, *_: object) -> None:
            if name in ("detrigger.offline.jobs.protect", "torch"):
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, "detrigger.offline.jobs.protect", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTorch(), *sys.meta_path])
    ran = run("protect", *given)
    assert is_refusal(ran)
    assert "detrigger[job]" in ran.err


def test_events_of_a_job(run: Callable[..., Ran], job: Job, given: list[str], tmp_path: Path) -> None:
    run("protect", *given, "--job-dir", tmp_path / "deep" / "job")
    lines = (tmp_path / "deep" / "job" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    keys = {"time", "stage", "progress", "message", "metrics", "seconds_left", "quiet"}
    assert all(set(event) == keys for event in events)
    shown = [(event["stage"], event["message"]) for event in events]
    assert shown == [
        ("import", "import started"),
        ("import", "import done"),
        ("import", "halfway"),
        ("purify", "purify started"),
        ("purify", "purify done"),
    ]
    progress = [event["progress"] for event in events]
    assert progress == sorted(progress)
    assert progress[0] == WEIGHTS["data"]  # the job of this test starts with the stage after it
    assert progress[1] == 0.02
    # Not a number is left out: the file stays JSON.
    assert events[-1]["metrics"] == {}


_JOB = """
import sys, time, types
from pathlib import Path
from detrigger.models.store import VersionStore
from tests.toys import toy_manifest
def protect(options, progress):
    with VersionStore.create(options.store).stage("20250131T120000Z-00000000") as staging:
        (staging / "protected.onnx").write_bytes(b"half")
        with progress.stage("purify", 1000) as advance:
            for _ in range(1000):
                advance()
                time.sleep(0.02)
module = types.ModuleType("detrigger.offline.jobs.protect")
module.protect, module.ProtectOptions = protect, types.SimpleNamespace
sys.modules["detrigger.offline.jobs.protect"] = module
from detrigger.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_leaves_nothing_half_written(
    given: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    job_dir = tmp_path / "job"
    argv = ["protect", *given, "--json", "--job-dir", str(job_dir)]
    process = subprocess.Popen(
        [sys.executable, "-c", _JOB, *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 20
        while not (job_dir / "events.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "Traceback" not in err
    assert json.loads((job_dir / "result.json").read_text())["exit_code"] == 130
    store = VersionStore(tmp_path / "store")
    assert (store.version_ids(), store.current()) == ([], None)
    assert list((store.root / "staging").iterdir()) == []
    with store.job_lock():
        pass


# --- serve and demo ---------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that `serve` runs with, without a server."""
    seen: list[Any] = []

    def fake_run(settings: object) -> int:
        seen.append(settings)
        return 0

    module: Any = ModuleType("detrigger.service.main")
    module.run = fake_run
    monkeypatch.setitem(sys.modules, "detrigger.service.main", module)
    for name in [name for name in os.environ if name.startswith("DETRIGGER_")]:
        monkeypatch.delenv(name)
    return seen


def test_flags_win_over_the_environment(
    run: Callable[..., Ran], served: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DETRIGGER_PORT", "9000")
    monkeypatch.setenv("DETRIGGER_HOST", "0.0.0.0")
    monkeypatch.setenv("DETRIGGER_STORE", str(tmp_path))
    assert run("serve").code == 0
    assert run("serve", "--store", "elsewhere", "--port", "0", "--device", "cpu").code == 0
    assert [(s.store, s.host, s.port, s.device) for s in served] == [
        (tmp_path, "0.0.0.0", 9000, "auto"),
        (Path("elsewhere"), "0.0.0.0", 0, "cpu"),
    ]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "DETRIGGER_STORE"),
        (["--store", "s", "--port", "http"], "--port"),
        (["--store", "s", "--port", "70000"], "--port"),
        (["--store", "s", "--device", "tpu"], "--device"),
    ],
)
def test_wrong_settings_are_one_line(
    run: Callable[..., Ran], served: list[Any], argv: list[str], says: str
) -> None:
    ran = run("serve", *argv)
    assert is_refusal(ran)
    assert says in ran.err
    assert served == []


def test_no_setting_shows_a_secret(
    run: Callable[..., Ran], served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETRIGGER_ADMIN_TOKEN", "hunter2hunter2")
    monkeypatch.setenv("DETRIGGER_ADMIN_TOKEN_FILE", "/run/token")
    ran = run("serve", "--store", "s")
    assert is_refusal(ran)
    assert "hunter2" not in ran.err


@pytest.mark.process
def test_serving_what_is_no_store(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "detrigger", "serve", "--store", str(tmp_path), "--port", "0"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no version store" in done.stderr


def test_the_demos_exit_code_is_handed_on(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("detrigger.demo.run")
    module.run = lambda: 3
    monkeypatch.setitem(sys.modules, "detrigger.demo.run", module)
    assert run("demo").code == 3


# --- progress ---------------------------------------------------------------------------------------------


def test_the_weights_are_the_whole_job() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


def test_progress_never_goes_back_and_ends_at_one(tmp_path: Path) -> None:
    with (tmp_path / "err").open("w") as stream:
        progress = JobProgress(tmp_path / "job", TerminalProgress(stream))
        for name in [*WEIGHTS, "purify", "afterwards"]:
            with progress.stage(name, 3) as advance:
                advance(5)
    events = [json.loads(line) for line in (tmp_path / "job" / "events.jsonl").read_text().splitlines()]
    values = [event["progress"] for event in events]
    assert values == sorted(values)
    assert values[-1] == 1.0


def test_a_silent_step_is_told_every_two_seconds_with_the_time_left(tmp_path: Path) -> None:
    with (tmp_path / "err").open("w") as stream:
        progress = JobProgress(tmp_path / "job", TerminalProgress(stream))
        with progress.stage("screen", 10) as advance:
            time.sleep(0.6)
            advance(5)
            time.sleep(4.2)
    events = [json.loads(line) for line in (tmp_path / "job" / "events.jsonl").read_text().splitlines()]
    times = [datetime.fromisoformat(event["time"]).timestamp() for event in events]
    assert max(b - a for a, b in itertools.pairwise(times)) < 4
    silent = [event for event in events if event["quiet"] > 1]
    assert len(silent) >= 2
    assert all(event["seconds_left"] > 0 for event in silent)
    assert (events[-1]["message"], events[-1]["quiet"]) == ("screen done", 0)
    lines = (tmp_path / "err").read_text().splitlines()
    assert [line[:12] for line in lines[:2]] == ["screen:  50%"] * 2


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as stream:
        progress = TerminalProgress(stream)
        with progress.stage("purify", 2) as advance:
            advance(2, loss=0.125)
            progress.note("a line between")
    shown = ""
    # A pseudo-terminal hands out what it holds in pieces, and ends in an error.
    with suppress(OSError):
        while piece := os.read(leader, 4096):
            shown += piece.decode(errors="replace")
    os.close(leader)
    assert "purify" in shown
    assert "100%" in shown
    assert "loss=0.125" in shown
    assert "a line between" in shown
