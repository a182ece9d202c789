"""The commands of docs/operations.md, run in their order on what the demo leaves."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("make install", "make security")
"""Lines that continuous integration runs by itself."""
PROMETHEUS = ("prometheus", "promtool")


def script(ports: dict[str, int]) -> str:
    """All commands but Docker's as one script that stops at the first failure; ``ports`` replaces theirs."""
    guide = (ROOT / "docs/operations.md").read_text().partition("\n## With Docker")[0]
    blocks = [match[1] for match in BLOCK.finditer(guide)]
    if not all(map(shutil.which, PROMETHEUS)):
        blocks = [block for block in blocks if not block.startswith(PROMETHEUS)]
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith(ELSEWHERE)]
    text = "\n".join(["set -eumo pipefail", *lines, "wait %1", "echo the service ended with $?"])
    for written, free in ports.items():
        text = re.sub(rf"(?<=[ :])(?<!detrigger:){written}\b", str(free), text)
    return text.replace("/tmp/", "./")  # noqa: S108 - the guide's, not ours


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="needs bash, curl, openssl"
)
@pytest.mark.skipif(
    not os.environ.get("DETRIGGER_TEST_EVERY_COMMAND"),
    reason="protects the demo's suspect a second time; set DETRIGGER_TEST_EVERY_COMMAND=1",
)
def test_every_command_works_as_written(demo_run: Path, tmp_path: Path) -> None:
    (tmp_path / "demo-run").symlink_to(demo_run)
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    with socket.socket() as one, socket.socket() as two:
        for taken in (one, two):
            taken.bind(("127.0.0.1", 0))
        ports = {"8000": one.getsockname()[1], "9090": two.getsockname()[1]}
    environment = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = tmp_path / "printed"  # no pipe: what is left in the background would hold it open
    with log.open("w") as out:
        running = subprocess.Popen(
            ["bash", "-c", script(ports)],  # noqa: S607
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        running.wait(timeout=600)
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(running.pid)], check=False)  # noqa: S607
    printed = log.read_text()
    assert running.returncode == 0, printed[-4000:]
    assert '"label":"stop"' in printed.replace(" ", "")
    assert '"state":"succeeded"' in printed.replace(" ", "")
    assert "the service ended with 0" in printed
    assert not re.search(r'"status": ?[45]\d\d', printed), printed
    if all(map(shutil.which, PROMETHEUS)):
        assert "DetriggerFlaggedRatioHigh" in printed
        assert '"detrigger_model_info"' in printed
