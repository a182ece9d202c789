"""Schemathesis over the OpenAPI document, all checks, against a real server with /admin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_job
from tests.live import TOKEN, live_server

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "15")


@pytest.mark.process
@pytest.mark.slow
def test_the_document_and_the_answers_agree(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        pytest.skip("schemathesis is not installed")
    with live_server(tmp_path, fake_job.install(tmp_path)) as server:
        ended = subprocess.run(
            [
                str(command), "--config-file", str(Path(__file__).with_name("schemathesis.toml")), "run",
                f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}",
                "--max-examples", EXAMPLES, "--seed", "1", "--request-timeout", "20",
            ],
            capture_output=True, text=True, timeout=500, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
        assert "Traceback" not in server.log()
        assert server.process.poll() is None
