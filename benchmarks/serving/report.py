"""Where results go, and what stands beside every figure."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from detrigger.service.engine import usable_cores

RESULTS = Path(__file__).resolve().parent.parent / "results" / "serving"
_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "uvloop", "litserve")


def environment() -> dict[str, Any]:
    """Date, machine and versions."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": f"{usable_cores()} CPU cores, {platform.machine()}, {_cpu_model()}",
        "load_before": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def write(name: str, content: dict[str, Any]) -> None:
    """`content` beside date, machine and versions, as results/serving/NAME.json and on stdout."""
    text = json.dumps({"benchmark": name, **environment(), **content}, indent=1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
