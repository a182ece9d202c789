"""`detrigger scan` as a check in CI: exit codes, and the SARIF file that code hosts show."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import onnx
import pytest
import yaml

from benchmarks.logic_designs import Graft, comparator
from detrigger import cli
from detrigger.models.errors import BadInput
from detrigger.offline.inputs.profile import PROFILES
from tests import blobs
from tests.test_structure import CLEAN, draw

ROOT = Path(__file__).parent.parent


def _closed(*required: str, **properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


TEXT = {"type": "string", "minLength": 1}
MESSAGE = _closed("text", text=TEXT)
LOCATION = _closed(
    "physicalLocation",
    physicalLocation=_closed(
        "artifactLocation", artifactLocation=_closed("uri", uri={"type": "string", "format": "uri-reference"})
    ),
    logicalLocations={"type": "array", "items": _closed("name", name=TEXT, kind={"const": "element"})},
)
RESULT = _closed(
    "ruleId",
    "message",
    ruleId={"enum": ["graph-logic", "backdoor", "inconclusive"]},
    level={"enum": ["none", "note", "warning", "error"]},
    message=MESSAGE,
    locations={"type": "array", "items": LOCATION, "minItems": 1},
    properties={"type": "object"},
)
RULE = _closed("id", id=TEXT, shortDescription=MESSAGE)
DRIVER = _closed(
    "name", name=TEXT, semanticVersion=TEXT, rules={"type": "array", "items": RULE, "uniqueItems": True}
)
RUN = _closed(
    "tool",
    tool=_closed("driver", driver=DRIVER),
    results={"type": "array", "items": RESULT},
    properties={"type": "object"},
)
SARIF = _closed(
    "version",
    "runs",
    **{"$schema": {"type": "string", "format": "uri"}},
    version={"const": "2.1.0"},
    runs={"type": "array", "items": RUN, "minItems": 1, "maxItems": 1},
)
"""The part of SARIF 2.1.0's schema that a scan uses, closed: what is not named here is not written."""

Scan = Callable[..., tuple[int, dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture
def scan(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A scan: its exit code, its JSON, and the results in its SARIF file."""
    monkeypatch.setitem(PROFILES, "fast", blobs.short_profile(screen_steps=60, images_per_class=8))

    def call(model: Path, data: Path, *flags: str) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
        out = tmp_path / "scan.sarif"
        given = ("--data", str(data), "--profile", "fast", "--device", "cpu", "--sarif", str(out), "--json")
        code = cli.main(["scan", str(model), *given, *flags])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        log = json.loads(out.read_text())
        jsonschema_rs.validate(SARIF, log)
        assert log["runs"][0]["properties"]["verdict"] == answer["verdict"]
        assert answer["exit_code"] == code
        found: list[dict[str, Any]] = log["runs"][0]["results"]
        return code, answer, found

    return call


@pytest.mark.slow
def test_a_backdoored_classifier_fails_the_check(tmp_path: Path, scan: Scan) -> None:
    data = blobs.npz(tmp_path / "clean.npz", 30)
    code, answer, found = scan(blobs.suspect(tmp_path), data, "--fail-on", "backdoored")
    assert (code, answer["verdict"]) == (1, "backdoored")
    assert {(r["ruleId"], r["level"], r["properties"]["target"]) for r in found} == {("backdoor", "error", 2)}
    assert answer["classes"][2] in found[0]["message"]["text"]
    # The model's path is the runner's own, so only its name is told.
    assert found[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "model.onnx"


@pytest.mark.slow
def test_a_clean_classifier_passes_it(tmp_path: Path, scan: Scan) -> None:
    data = blobs.npz(tmp_path / "clean.npz", 30)
    code, answer, found = scan(
        blobs.suspect(tmp_path, backdoor=False), data, "--fail-on", "inconclusive", "--unlabelled"
    )
    assert (code, answer["verdict"], found) == (0, "clean", [])
    assert answer["labelled"] is False
    assert answer["accuracy"] is None
    assert "decouple" not in answer["stages"]  # the verdict needs no generator, and nothing is drawn


@pytest.mark.parametrize(("named", "code"), [("backdoored", 0), ("inconclusive", 1)])
def test_what_cannot_be_told_fails_the_check_only_where_that_is_asked(
    tmp_path: Path, scan: Scan, named: str, code: int
) -> None:
    x, y = blobs.images(12)
    np.savez(tmp_path / "turned.npz", x=x, y=(y + 1) % blobs.CLASSES)
    ended, answer, found = scan(
        blobs.suspect(tmp_path, backdoor=False), tmp_path / "turned.npz", "--fail-on", named
    )
    assert (ended, answer["verdict"]) == (code, "inconclusive")
    assert [(r["ruleId"], r["level"], r["message"]["text"]) for r in found] == [
        ("inconclusive", "warning", answer["reason"])
    ]
    assert "would be right on" in answer["reason"]


@pytest.mark.slow
def test_a_graph_that_cannot_be_looked_at_is_not_called_clean(
    tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def examine(*_: object) -> None:
        raise BadInput("node odd: its result does not run alone")

    monkeypatch.setattr("detrigger.offline.inputs.load.examine", examine)
    data = blobs.npz(tmp_path / "clean.npz", 30)
    code, answer, found = scan(blobs.suspect(tmp_path, backdoor=False), data, "--fail-on", "inconclusive")
    assert (code, answer["verdict"]) == (1, "inconclusive")
    assert "could not be looked at for logic: node odd" in answer["reason"]
    assert found[0]["message"]["text"] == answer["reason"]


@pytest.mark.slow
def test_logic_in_the_graph_is_shown_by_its_node(tmp_path: Path, scan: Scan) -> None:
    graft = Graft(CLEAN)
    comparator(graft)
    onnx.save(graft.finished(), tmp_path / "suspect.onnx")
    x, y = draw(60, 5)
    np.savez(tmp_path / "d.npz", x=(x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1), y=y)
    code, answer, found = scan(tmp_path / "suspect.onnx", tmp_path / "d.npz", "--fail-on", "backdoored")
    assert (code, answer["verdict"], answer["target_labels"][0]) == (1, "backdoored", 3)
    (logic,) = (r for r in found if r["ruleId"] == "graph-logic")
    assert logic["locations"][0]["logicalLocations"][0]["name"] in graft.added


def test_a_defect_is_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("detrigger.offline.jobs.scan.scan", broken)
    data, out = blobs.npz(tmp_path / "clean.npz", 2), tmp_path / "scan.sarif"
    given = ["--data", str(data), "--fail-on", "inconclusive", "--sarif", str(out)]
    assert cli.main(["scan", str(blobs.suspect(tmp_path)), *given]) == 70
    assert "verdict" not in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize("name", ["scan.txt", "nowhere/scan.sarif"])
def test_an_unusable_sarif_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = blobs.npz(tmp_path / "clean.npz", 2)
    given = ["--data", str(data), "--sarif", str(tmp_path / name)]
    assert cli.main(["scan", str(blobs.suspect(tmp_path)), *given]) == 2
    assert "--sarif" in capsys.readouterr().err


def test_the_workflow_in_the_docs_asks_for_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```yaml\n(on: .*?)```", (ROOT / "docs/commands.md").read_text(), re.S)
    assert found
    steps = yaml.safe_load(found[1])["jobs"]["scan"]["steps"]
    (command,) = (step["run"] for step in steps if "detrigger scan" in step.get("run", ""))
    # The files are not there, which is found out after all flags were understood.
    assert cli.main(shlex.split(command)[1:]) == 2
    assert "models/model.onnx does not exist" in capsys.readouterr().err
