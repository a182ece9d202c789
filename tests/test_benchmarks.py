"""The committed results are those that `make bench` measures: none missing, none of another making."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as everything
from benchmarks import rows

COMMITTED = [
    "zoo",
    "repair",
    "ablation",
    "penalty",
    "budget",
    "baselines",
    "official",
    "classes",
    "cost",
    "quick",
]


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_rows_are_those_of_one_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(f"benchmarks.bench_{name}")
    committed = json.loads(script.RESULTS.read_text())
    for row in (*json.loads((script.RESULTS.parent / "zoo.json").read_text()), *committed):
        if "model" not in row:
            continue
        folder = tmp_path / "models" / row["model"]
        folder.mkdir(parents=True, exist_ok=True)
        if "ASR" in row:
            (folder / "poison_test.npz").touch()
    asked: list[rows.Row] = []

    def has(_: rows.Rows, key: rows.Row) -> bool:
        asked.append(key)
        return True

    monkeypatch.setattr(rows.Rows, "has", has)
    given = f"--zoo {tmp_path} --stores {tmp_path}" + (f" --official {tmp_path}" * (name == "official"))
    for command in everything.COMMANDS:
        if command.split()[0] == f"bench_{name}":
            monkeypatch.setattr(sys, "argv", [*command.split(), *given.split()])
            script.main()

    assert [key for key in asked if not any(key.items() <= row.items() for row in committed)] == []
    assert [row for row in committed if not any(key.items() <= row.items() for key in asked)] == []


def test_a_suspect_that_the_zoo_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "models" / "cifar10-badnets").mkdir(parents=True)
    asked = rows.parser(None).parse_args(
        ["--zoo", str(tmp_path), "--models", "cifar10-badnets,cifar10-bandets"]
    )

    with pytest.raises(SystemExit, match="no suspect cifar10-bandets there; there are cifar10-badnets"):
        rows.models_of(asked)
