"""What several test files share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker of pytest-xdist a core of its own: torch's threads spin where they share one."""
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `detrigger demo` leaves, run as `make demo` runs it."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "detrigger", "demo"],
        cwd=folder,
        env=os.environ | {"DETRIGGER_DEMO_EXIT": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "The story held" in done.stdout
    return folder / "demo-run"
