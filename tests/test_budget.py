"""`--budget`: what is left out for it, in which order, and that everything that is left out is said.

The clock is a fake one: it ticks with the steps that a job tells of, a second each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detrigger import cli
from detrigger.models.errors import BadInput
from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.inputs.profile import PARTS, PROFILES, Profile
from detrigger.offline.jobs import scan as scan_job
from detrigger.offline.jobs.protect import ProtectOptions, protect
from detrigger.offline.jobs.publish import WRITING
from detrigger.offline.jobs.repair import RepairOptions, repair
from detrigger.offline.jobs.results import ScanResult
from detrigger.offline.progress import Advance, Progress, SilentProgress
from detrigger.offline.steps import purify as purify_step
from detrigger.offline.steps.budget import MARGIN, SLACK, Budget, Training
from detrigger.offline.steps.candidates import choose_defence
from detrigger.offline.steps.find import find_triggers, prepared, screen_figures
from detrigger.offline.steps.purify import purify
from detrigger.offline.steps.run import Run, begin
from detrigger.offline.steps.unlearn import repaired_copy
from detrigger.offline.triggers import UNIVERSAL
from tests import blobs
from tests.test_publish import findings

ASKED = ("patch", "blend")
TICKING = ("screen", "purify", "unlearn", "attack")
TRAINED = "the purifier's training"


class Ticking(SilentProgress):
    """A progress on whose ``clock`` the steps of ``TICKING`` stages take a second each, and all else takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        def advance(n: int = 1, **metrics: float) -> None:
            self.now += n * (name in TICKING)

        yield advance


def minutes(seconds: float) -> float:
    """A budget of which so many seconds can be planned with."""
    return seconds / 60 / (1 - SLACK)


def short(**steps: Any) -> Profile:
    """A profile that asks two families."""
    others = {family.family for family in UNIVERSAL} - set(ASKED)
    return replace(blobs.short_profile(screen_steps=10, **steps), unscreened=frozenset(others), restarts=4)


def made(folder: Path, budget: float | None = None, *, backdoor: bool = True) -> tuple[Run, Ticking]:
    """A job that is about to search, and its progress."""
    folder.mkdir(exist_ok=True)
    ticking = Ticking()
    options = Options(
        suspect=blobs.suspect(folder, backdoor=backdoor),
        data=blobs.npz(folder / "clean.npz", 20),
        device="cpu",
        budget=budget,
    )
    return begin(options, Compute("cpu", 0), ticking, short(), ticking.clock), ticking


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("given"))[0]


def with_budget(job: Run, seconds: float, **changed: Any) -> tuple[Run, Ticking]:
    """The job with a budget that begins now."""
    ticking = Ticking()
    budget = Budget(minutes(seconds), ticking.clock)
    return replace(job, progress=ticking, budget=budget, **changed), ticking


# --- the object ---------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_left_out_and_named() -> None:
    ticking = Ticking()
    budget = Budget(minutes(100), ticking.clock)
    assert budget.allows("a", 100 / MARGIN)
    ticking.now = 40
    assert not budget.allows("b", 61 / MARGIN)
    with budget.keeping(30):
        assert not budget.allows("c", 31 / MARGIN)
        assert budget.allows("d", 29 / MARGIN)
    with budget.part(0.5):
        assert budget.left() == pytest.approx(30)
        with budget.part(0.5):
            assert budget.left() == pytest.approx(15)
    budget.keep(20)
    assert budget.left() == pytest.approx(40)
    assert budget.left_out == ["b", "c"]
    assert "no time for b; c" in budget.in_words()


def test_without_a_budget_everything_fits_and_nothing_is_timed() -> None:
    budget, long = Budget(), Training(10**9, 10, 10**9)

    def never() -> None:
        raise AssertionError

    assert budget.timed(never, Compute("cpu", 0)) == 0.0
    budget.demand("a", 1e12)
    with budget.part(0.1), budget.keeping(1e9):
        assert budget.allows("b", 1e12)
        assert budget.fitted("c", long, 1e6) == long
    assert (budget.left_out, budget.in_words()) == ([], "")


def test_what_is_too_short_is_refused_with_what_is_enough() -> None:
    ticking = Ticking()
    budget = Budget(minutes(60), ticking.clock)
    with pytest.raises(
        BadInput, match=r"too short: no time would be left for it; give at least about ([\d.]+)"
    ):
        budget.demand("it", 100)
    for enough, refused in ((2.3, False), (2.2, True)):
        again = Budget(enough, ticking.clock)
        try:
            again.demand("it", 100)
        except BadInput:
            assert refused
        else:
            assert not refused
    with budget.part(0.5), pytest.raises(BadInput, match=r"at least about 4.6,"):
        budget.demand("it", 100)


@pytest.mark.parametrize(
    ("most", "steps", "rounds"),
    [(500, 100, 3), (140, 100, 3), (110, 70, 3), (89, 69, 2), (50, 50, 1), (30, 30, 1), (3, 25, 1)],
    ids=["all", "just all", "fewer steps", "a round less", "one round", "few steps", "the least"],
)
def test_rounds_go_before_half_of_the_steps(most: float, steps: int, rounds: int) -> None:
    cut = Training(100, 3, 20).within(most)
    assert (cut.steps, cut.rounds) == (steps, rounds)
    assert cut.total() <= max(most, Training(100, 3, 20).least().total())


def test_inversions_before_the_first_round_count() -> None:
    training = Training(100, 2, 20, before_first=True)
    assert training.total() == 140
    assert training.within(95) == replace(training, steps=55)


def test_timing_changes_no_random_number() -> None:
    ticking, compute = Ticking(), Compute("cpu", 0)
    budget = Budget(1.0, ticking.clock)

    def step() -> None:
        compute.randint(9, 3)
        torch.rand(2)
        ticking.now += 2

    before = compute.generator.get_state(), torch.get_rng_state()
    assert budget.timed(step, compute) == 2.0
    after = compute.generator.get_state(), torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- the search ----------------------------------------------------------------------------------------------


def test_later_families_are_left_out_and_nobody_is_called_clean(tmp_path: Path) -> None:
    honest, _ = made(tmp_path, backdoor=False)
    run, _ = with_budget(honest, 17)
    run.budget.pace.guess(1e-6)
    found = find_triggers(run)
    assert [look.family.family for look in found.screens] == ["patch", "change"]
    assert run.budget.left_out == ["the family blend"]
    assert (found.verdict, found.targets) == ("inconclusive", ())
    assert "left no time for the family blend" in found.reason


def test_ordinary_changes_are_left_out_before_the_first_family(bare: Run) -> None:
    run, _ = with_budget(bare, 100)
    run.budget.pace.guess(0.18)  # seconds an image
    found = find_triggers(run)
    assert run.budget.left_out[0] == "ordinary changes (family change)"
    assert found.screens[0].family.family == "patch"
    assert "change" not in screen_figures(found.screens)


def test_a_search_that_cannot_even_begin_is_refused(bare: Run) -> None:
    run, _ = with_budget(bare, 10)
    run.budget.pace.guess(1.0)
    with pytest.raises(BadInput, match="too short: no time would be left for a search"):
        find_triggers(run)


# --- the defence ---------------------------------------------------------------------------------------------


def test_training_is_planned_to_end_in_time(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second; of 24 + 5 there is time for 20."""
    run, ticking = with_budget(bare, 20 * MARGIN, profile=short(purify_steps=24))
    real = purify_step._backward

    def backward(*given: Any) -> None:
        real(*given)
        ticking.now += 0 if planned else 1

    planned: list[Training] = []
    fitted = run.budget.fitted

    def fit(what: str, training: Training, seconds: float) -> Training:
        ticking.now = 0.0  # what timing took is not of interest
        assert seconds == 1.0
        planned.append(fitted(what, training, seconds))
        return planned[-1]

    monkeypatch.setattr(purify_step, "_backward", backward)
    monkeypatch.setattr(run.budget, "fitted", fit)
    purify(run, findings((blobs.TARGET,)))
    assert planned == [Training(15, 2, 5)]
    assert ticking.now == 20
    assert run.budget.left_out == [f"9 of 24 steps of {TRAINED}"]


def test_without_time_for_a_purifier_there_is_no_defence(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = with_budget(bare, 2)
    monkeypatch.setattr(run.budget, "timed", lambda *_: 5.0)
    with pytest.raises(BadInput, match="no time would be left for training a purifier"):
        purify(run, findings((blobs.TARGET,)))


def test_the_copy_and_what_comes_after_it_are_left_out(bare: Run) -> None:
    """The purifier is not trained here, so a step of it is what the test says."""
    found = findings((blobs.TARGET,))
    run, _ = with_budget(bare, 20, profile=replace(short(), parts=PARTS - {"purifier"}))
    run.budget.step = 2.0
    assert not repaired_copy(run, found, torch.nn.Identity()).tuned
    defence = choose_defence(run, found, (blobs.TARGET,), False)
    copy, attack = "the repaired copy behind the purifier", "the attack on the finished defence"
    assert run.budget.left_out == [copy, copy, attack]
    assert not defence.attacked
    check = defence.check()
    assert check is not None
    assert not check.passed


def test_where_the_first_does_not_hold_a_second_is_left_out(bare: Run) -> None:
    run, _ = with_budget(bare, 32, profile=replace(short(), parts=PARTS - {"purifier", "repair"}))
    run.budget.step = 2.0
    defence = choose_defence(run, findings((blobs.TARGET,)), (blobs.TARGET,), False)
    assert run.budget.left_out == ["a second defence"]
    assert (defence.kind, defence.attacked, defence.check()) == ("purified", True, None)
    assert defence.remaining > 0.9


@pytest.mark.slow
def test_with_enough_time_all_is_as_without_a_budget(tmp_path: Path) -> None:
    shown, weights, drawn = [], [], []
    for name, budget in (("a", None), ("b", 1e6)):
        run, _ = made(tmp_path / name, budget)
        found = prepared(run, find_triggers(run))
        defence = choose_defence(run, found, found.targets, False)
        assert run.budget.left_out == []
        shown.append((found.verdict, found.targets, screen_figures(found.screens), defence.remaining))
        states = defence.purified.purifier.state_dict(), defence.repaired.classifier.state_dict()
        weights.append([tensor for state in states for tensor in state.values()])
        drawn.append(torch.rand(3, generator=run.compute.generator))
    assert shown[0] == shown[1]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert torch.equal(*drawn)


# --- what is said ------------------------------------------------------------------------------------------


@pytest.fixture
def _slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of the commands goes by the fake clock; a second one says what the first one said."""
    real = scan_job.scan
    made: list[ScanResult] = []

    def scan(options: scan_job.ScanOptions, progress: Progress) -> ScanResult:
        ticking = Ticking()
        made.append(made[0] if made else real(options, ticking, ticking.clock))
        return made[-1]

    monkeypatch.setattr(scan_job, "scan", scan)
    for name in ("WRITING", "DRAWING"):
        monkeypatch.setattr(scan_job, name, 0.0)
    monkeypatch.setitem(PROFILES, "fast", short())


@pytest.mark.usefixtures("_slow_clock")
def test_a_scan_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, sarif = tmp_path / "page.html", tmp_path / "found.sarif"
    model, data = blobs.suspect(tmp_path, backdoor=False), blobs.npz(tmp_path / "clean.npz", 20)
    argv = [
        "scan",
        str(model),
        "--data",
        str(data),
        "--profile",
        "fast",
        "--device",
        "cpu",
        "--budget",
        "0.3",
    ]
    assert cli.main([*argv, "--json", "--out", str(page), "--sarif", str(sarif)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["left_out"] == ["the family blend"]
    assert answer["verdict"] == "inconclusive"
    assert "the budget of 0.3 min left no time for the family blend" in answer["reason"]
    assert "--budget 0.3" in answer["command"]
    text = page.read_text()
    not_looked_for = text[text.index("<h3>Not looked for</h3>") :]
    assert "<li>for lack of time: the family blend</li>" in not_looked_for
    assert cli.main([*argv, "--fail-on", "inconclusive"]) == 1
    said = capsys.readouterr().out
    assert "\nleft out  the family blend\n" in said


@pytest.mark.parametrize("budget", ["0", "-1", "nan", "inf", "soon"])
@pytest.mark.parametrize("command", ["scan", "protect"])
def test_no_time_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, budget: str
) -> None:
    store = tmp_path / "store"
    argv = [command, str(blobs.suspect(tmp_path)), "--data", str(blobs.npz(tmp_path / "x.npz", 3))]
    argv += ["--store", str(store)] if command == "protect" else []
    try:
        code: object = cli.main([*argv, "--budget", budget])
    except SystemExit as ended:  # what is not even a number
        code = ended.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "--budget" in said.err
    assert not store.exists()


def test_what_takes_no_budget_says_so(tmp_path: Path) -> None:
    given: dict[str, Any] = {"suspect": tmp_path / "m.onnx", "data": tmp_path, "budget": 1.0}
    with pytest.raises(BadInput, match="leave out --quick or --budget"):
        scan_job.scan(scan_job.ScanOptions(**given, quick=True), SilentProgress())
    with pytest.raises(BadInput, match="a repair has no budget"):
        repair(RepairOptions(**given, out=tmp_path / "out.onnx"), SilentProgress())


@pytest.mark.slow
def test_a_version_says_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the suspect to the version, with a clock that leaves no time for the last family."""
    ticking = Ticking()
    options = ProtectOptions(
        suspect=blobs.suspect(tmp_path),
        data=blobs.npz(tmp_path / "clean.npz", 20),
        store=tmp_path / "store",
        device="cpu",
        budget=minutes(WRITING + 43),
        promote=False,
    )
    result = protect(options, ticking, short(), ticking.clock)
    assert "the family blend" in result.left_out
    manifest = VersionStore(options.store).manifest(result.version)
    assert manifest.left_out == result.left_out
    folder = options.store / "versions" / result.version
    assert json.loads((folder / "report.json").read_text())["left_out"] == list(result.left_out)
    page = (folder / "report.html").read_text()
    assert all(f"for lack of time: {part}".replace("'", "&#39;") in page for part in result.left_out)
