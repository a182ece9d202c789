"""SIGKILL at every step of what changes a store, once each; `DETRIGGER_TEST_KILLS` says how often instead."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT

REPEATS = os.environ.get("DETRIGGER_TEST_KILLS", "1")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("operation", "among"),
    [
        ("publish", {"rename", "half a write"}),
        ("promote", {"link", "half a write"}),
        ("swap", {"registry Registry._swap", "promotions PromotionLog.append", "engine Model.warm"}),
    ],
)
def test_whoever_is_killed_at_any_step_leaves_a_store_that_is_whole(
    tmp_path: Path, operation: str, among: set[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", operation, str(tmp_path), REPEATS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    survived = json.loads(done.stdout)
    assert among <= {step.lstrip("0123456789 ") for step in survived}
    assert set(survived.values()) == {int(REPEATS)}
