"""Load generators that others wrote, against a real server: more connections than it has room for, and pipelining."""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.live import live_server
from tests.toys import png, toy_image

SECONDS = os.environ.get("DETRIGGER_TEST_LOAD_SECONDS", "20")
SCRIPT = """
wrk.method, wrk.body = "POST", io.open("image.png", "rb"):read("*a")
wrk.headers["Content-Type"] = "image/png"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init() ok, full, other = 0, 0, 0 end
function response(status)
    if status == 200 then ok = ok + 1 elseif status == 429 then full = full + 1 else other = other + 1 end
end
function done(summary)
    for _, thread in ipairs(threads) do
        print("200=" .. thread:get("ok") .. " 429=" .. thread:get("full") .. " other=" .. thread:get("other"))
    end
    local failed = summary.errors
    print("broken=" .. failed.connect + failed.read + failed.write + failed.timeout)
end
"""


def wrk(url: str, folder: Path) -> Counter[str]:
    """400 connections, each with one request at a time."""
    (folder / "post.lua").write_text(SCRIPT)
    command = ["wrk", "-t1", "-c400", f"-d{SECONDS}s", "--timeout", "20s", "-s", "post.lua", f"{url}/predict"]
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return Counter({name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", printed)})


def h2load(url: str, folder: Path) -> Counter[str]:
    """100 connections, each with four requests on their way."""
    command = [
        "h2load", "--h1", "-t1", "-c100", "-m4", "-D", SECONDS, "-d", "image.png", "-H", "Content-Type: image/png",
        f"{url}/predict",
    ]  # fmt: skip
    printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    count = {name: int(found) for found, name in re.findall(r"(\d+) (2xx|3xx|4xx|5xx|errored)", printed)}
    return Counter(
        {
            "200": count["2xx"],
            "429": count["4xx"],
            "other": count["3xx"] + count["5xx"],
            "broken": count["errored"],
        }
    )


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("tool", [wrk, h2load])
def test_a_load_generator_is_answered(tmp_path: Path, tool: Callable[[str, Path], Counter[str]]) -> None:
    if shutil.which(tool.__name__) is None:
        pytest.skip(f"{tool.__name__} is not installed")
    image = png(toy_image(0))
    (tmp_path / "image.png").write_bytes(image)
    with live_server(tmp_path, admin=False) as server:
        answers = tool(server.url, tmp_path)
        assert answers["200"] > 100, answers
        assert (answers["other"], answers["broken"]) == (0, 0), answers
        after = httpx.post(f"{server.url}/predict", content=image, headers={"Content-Type": "image/png"})
        assert after.status_code == 200
        assert "Traceback" not in server.log()
