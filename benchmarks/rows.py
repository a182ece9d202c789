"""What the benchmarks over a zoo share: their arguments, and rows of results that are not measured twice."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from detrigger.models.store import VersionStore

Row = dict[str, Any]


def parser(description: str | None, *, outside: bool = False) -> argparse.ArgumentParser:
    """--zoo, --stores, --models, --profile and --seeds; a benchmark adds its own. ``outside``: and a second zoo."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--zoo", type=Path, default=os.environ.get("DETRIGGER_ZOO") or None)
    found.add_argument("--stores", type=Path, default=os.environ.get("DETRIGGER_STORES") or None)
    found.add_argument("--models", default="")
    found.add_argument("--profile", default="standard")
    found.add_argument("--seeds", default="0")
    if outside:
        found.add_argument("--outside", type=Path, default=os.environ.get("DETRIGGER_OUTSIDE") or None)
    return found


def zoos_of(arguments: argparse.Namespace) -> list[Path]:
    """The zoo, and the one outside where a benchmark takes one."""
    return [zoo for zoo in (arguments.zoo, getattr(arguments, "outside", None)) if zoo]


def models_of(arguments: argparse.Namespace) -> list[str]:
    """The suspects asked for, or all of the zoo, in order. One that lies nowhere ends the program with a line."""
    if not arguments.models:
        return sorted(folder.name for folder in arguments.zoo.glob("models/*"))
    there = sorted({folder.name for zoo in zoos_of(arguments) for folder in zoo.glob("models/*")})
    asked = sorted(arguments.models.split(","))
    if unknown := [name for name in asked if name not in there]:
        raise SystemExit(f"no suspect {', '.join(unknown)} there; there are {', '.join(there) or 'none'}")
    return asked


def folder_of(arguments: argparse.Namespace, model: str) -> Path:
    """Where a suspect lies, in the zoo or in the one outside."""
    folders = [zoo / "models" / model for zoo in zoos_of(arguments)]
    return next((folder for folder in folders if folder.exists()), folders[0])


def attacked(arguments: argparse.Namespace) -> list[str]:
    """Those of them that there are triggered images of."""
    models = arguments.zoo / "models"
    return [name for name in models_of(arguments) if (models / name / "poison_test.npz").exists()]


def seeds_of(arguments: argparse.Namespace) -> list[int]:
    """The seeds asked for."""
    return [int(seed) for seed in arguments.seeds.split(",")]


def job_name(arguments: argparse.Namespace, model: str, seed: int) -> str:
    """What the folder in --stores is called that a job's versions are in."""
    return f"{model}-{arguments.profile}-{seed}"


def stages_of(store: VersionStore, version: str) -> Row:
    """What each stage of the job cost, by the version's report."""
    stages: Row = json.loads(store.read_file(version, "report.json"))["stages"]
    return stages


def device() -> str:
    """The machine, in words."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


class Rows:
    """The rows of a results file, kept in the order of the fields ``order``."""

    def __init__(self, path: Path, order: tuple[str, ...]) -> None:
        self.path, self.order = path, order
        self.rows: list[Row] = json.loads(path.read_text()) if path.exists() else []

    def has(self, key: Row) -> bool:
        """Whether a row with these fields is there."""
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: Row) -> None:
        """Put one in, write the file, and print the row."""
        self.rows.append(row)
        self.rows.sort(key=lambda each: [each[field] for field in self.order])
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
        print(json.dumps(row), flush=True)
