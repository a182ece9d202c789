"""Tests of the service run at length, and what they found as results: kills, fuzzing, schemathesis."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serving import report
from benchmarks.serving.servers import ROOT

FUZZED = {"images": 0.5, "oip": 0.25, "forms": 0.25}
FULL = {
    **{
        f"a store, {operation}": f"test_store.py::test_a_disk_that_is_really_full_at_every_step[{operation}]"
        for operation in ("create", "publish", "promote", "rollback")
    },
    "a retrain job that fills it": "test_service_admin.py::test_a_job_that_fills_the_disk_ends",
    "a retrain job, full from any of its steps on": "test_service_admin.py::test_a_job_on_a_full_disk_ends_at_whichever"
    "_step_it_is_full",
    "the log": "test_service_admin.py::test_a_log_on_a_full_disk_stops_nothing",
    "the admin token": "test_service_admin.py::test_a_token_that_found_no_room_is_refused_at_start",
    "the quarantine": "test_quarantine.py::test_a_full_disk_costs_the_picture_and_never_the_answer",
}
"""What meets a file system that is really full, and its test: a small tmpfs with no page left, one, two and so on."""


def kills(count: int) -> None:
    """SIGKILL of the service, its job or both at `count` random moments; every start after it must serve."""
    test = "tests/test_service_process.py::test_kills_at_random_moments_leave_a_store_that_serves"
    found = _pytest(test, {"DETRIGGER_TEST_KILLS": str(count)})
    report.write("kills", {"kills": count, "seed": 0, **found})


def kill_steps(count: int) -> None:
    """SIGKILL at every step of a publish, a promotion and a swap, `count` times each (tests/kills.py)."""
    rows = []
    for operation in ("publish", "promote", "swap"):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "tests.kills", operation, folder, str(count)],
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
        row: dict[str, Any] = {"operation": operation, "times": count, "exit_code": done.returncode}
        if done.returncode:
            row["output"] = done.stderr.splitlines()[-40:]
        else:
            row["survived"] = json.loads(done.stdout)
        rows.append(row)
    report.write("kill_steps", {"rows": rows})


def disks() -> None:
    """Everything that writes, on a full file system."""
    report.write(
        "disks", {"rows": [{"what": what, **_pytest(f"tests/{test}", {})} for what, test in FULL.items()]}
    )


def document(examples: int) -> None:
    """Schemathesis, all checks, on a real server with /admin, with `examples` per operation."""
    test = "tests/test_service_openapi.py::test_the_document_and_the_answers_agree"
    found = _pytest(test, {"SCHEMATHESIS_EXAMPLES": str(examples)})
    report.write("document", {"examples_per_operation": examples, "seed": 1, **found})


def _pytest(test: str, environment: dict[str, str]) -> dict[str, Any]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", test],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    result = {"passed": done.returncode == 0 and " skipped" not in lines[-1], "summary": lines[-1]}
    if not result["passed"]:
        result["output"] = lines[-40:]
    return {"test": test, "seconds": round(time.monotonic() - began, 1), **result}


def fuzz(seconds: float, seed: int) -> None:
    """`seconds` split over the image decoder, the V2 codec and the forms, with `tests/fuzz.py`."""
    rows = [_fuzz(target, seconds * share, seed) for target, share in FUZZED.items()]
    report.write("fuzz", {"seconds": seconds, "seed": seed, "rows": rows})


def _fuzz(target: str, seconds: float, seed: int) -> dict[str, Any]:
    """What libFuzzer says of its run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", target, name, str(round(seconds)), str(seed)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        crashes = sorted(path.name for path in folder.glob("found/*"))
        answers = folder / "answers.json"
        answered = json.loads(answers.read_text()) if answers.exists() else {}
    row: dict[str, Any] = {"target": target, "seconds": round(seconds)}
    for key, pattern in (
        ("executions", r"stat::number_of_executed_units: +(\d+)"),
        ("new_units", r"stat::new_units_added: +(\d+)"),
        ("coverage_of_seeds", r"INITED cov: (\d+)"),
        ("coverage_at_end", r"cov: (\d+)"),
        ("slowest_input_seconds", r"stat::slowest_unit_time_sec: +(\d+)"),
        ("peak_mb", r"stat::peak_rss_mb: +(\d+)"),
    ):
        matches = re.findall(pattern, done.stderr)
        row[key] = int(matches[-1]) if matches else None
    row |= {"answers": answered, "crashes": crashes, "exit_code": done.returncode}
    if done.returncode or crashes:
        row["output"] = done.stderr.splitlines()[-40:]
    return row
