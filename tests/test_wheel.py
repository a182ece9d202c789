"""The wheel in an empty environment, used in a folder full of traps: one import name, and nothing of the user's."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests import toys
from tests.live import AUTH, ROOT, TOKEN, Server, wait_for_address, wait_ready

pytestmark = [pytest.mark.process, pytest.mark.slow]

SOURCES = ("detrigger", "models", "offline", "service", "pyproject.toml", "README.md", "LICENSE")
SHORT = """
import dataclasses

_copy = dataclasses.replace(PROFILES["fast"].copy, steps=4, rounds=1, refresh_steps=2)
PROFILES["fast"] = dataclasses.replace(
    PROFILES["fast"], screen_steps=6, images_per_class=3, generator_steps=4, purify_steps=6, purify_rounds=1,
    refresh_steps=3, copy=_copy,
)
"""
"""What the installed table of profiles gets at its end, so that a whole job takes seconds."""
NETWORK = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""
WEIGHTS = """
import torch
from safetensors.torch import save_file
from torch import nn

net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
save_file(net.state_dict(), "weights.safetensors")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that neither `build/` nor what an earlier build left has a part in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; other packages are found where the tests find them, after its own."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip("--python", str(folder / "bin/python"), "install", "--no-deps", str(wheel))
    # A folder that a .pth names is searched, but its own .pth files (an editable install) are not obeyed.
    (packages(folder) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A user's folder; whoever imports from it by mistake learns it at once."""
    for package in ("models", "service", "offline", "detrigger"):
        (tmp_path / package).mkdir()
    for trap in (
        "service/__init__.py",
        "offline/__init__.py",
        "detrigger/__init__.py",
        "torch.py",
        "json.py",
    ):
        (tmp_path / trap).write_text(f"raise RuntimeError('{trap} of the user was imported')\n")
    (tmp_path / "models/__init__.py").touch()
    (tmp_path / "models/resnet.py").write_text(NETWORK)
    (tmp_path / "suspect.onnx").write_bytes(toys.classifier_model())
    x, y = toys.toy_dataset(60)
    np.savez(tmp_path / "clean.npz", x=x, y=y)
    return tmp_path


def pip(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python*/site-packages")
    return found


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DETRIGGER_", "PYTHON"))}
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"} | more


def ran(argv: list[str], folder: Path) -> str:
    """What a command that has to succeed writes to standard output."""
    done = subprocess.run(
        argv, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shortened(environment: Path) -> None:
    file = packages(environment) / "detrigger/offline/inputs/profile.py"
    if not file.read_text().endswith(SHORT):
        with file.open("a") as text:
            text.write(SHORT)


def test_every_module_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.endswith(".py")}
    here = {f"detrigger/{path.relative_to(ROOT / 'detrigger')}" for path in (ROOT / "detrigger").glob("*.py")}
    for folder in ("detrigger/demo", "models", "offline", "service"):
        inner = folder if folder.startswith("detrigger") else f"detrigger/{folder}"
        here |= {f"{inner}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}
    assert inside == here


def test_one_import_name_is_installed(environment: Path) -> None:
    names = {path.name for path in packages(environment).iterdir()}
    assert {name for name in names if not name.endswith((".dist-info", ".pth"))} == {"detrigger"}
    shown = "import detrigger.service.app, detrigger.offline, sys; print(sys.modules['detrigger.service'].__file__)"
    assert ran([str(environment / "bin/python"), "-c", shown], environment).startswith(str(environment))


def test_scan_among_traps(environment: Path, traps: Path) -> None:
    shortened(environment)
    argv = ["scan", "suspect.onnx", "--data", "clean.npz", "--profile", "fast", "--json"]
    found = json.loads(ran([str(environment / "bin/detrigger"), *argv], traps))
    assert found["exit_code"] == 0
    assert found["classes"] == ["0", "1", "2"]


def test_check_of_the_service_among_traps(environment: Path, traps: Path) -> None:
    toys.publish_toy(traps / "store", version="20250101T000000Z-00000001")
    argv = ["serve", "--store", "store", "--check"]
    for command in (
        [str(environment / "bin/detrigger")],
        [str(environment / "bin/python"), "-P", "-m", "detrigger"],
    ):
        assert "20250101T000000Z-00000001" in ran([*command, *argv], traps)


def test_python_m_among_traps(environment: Path, traps: Path) -> None:
    shutil.rmtree(traps / "detrigger")  # Python itself finds that one first, unless it is asked not to
    assert ran([str(environment / "bin/python"), "-m", "detrigger", "--version"], traps).startswith(
        "detrigger "
    )


def test_export_of_the_users_own_models_package(environment: Path, traps: Path) -> None:
    python = str(environment / "bin/python")
    ran([python, "-P", "-c", WEIGHTS], traps)
    argv = [
        "export",
        "--factory",
        "models.resnet:net",
        "--weights",
        "weights.safetensors",
        "--size",
        "16",
        "16",
    ]
    ran([str(environment / "bin/detrigger"), *argv, "--out", "out.onnx"], traps)
    assert (traps / "out.onnx").stat().st_size > 0


@pytest.fixture
def server(environment: Path, traps: Path) -> Iterator[Server]:
    """The installed service, started among the traps."""
    shortened(environment)
    store, log = traps / "store", traps / "server.log"
    toys.publish_toy(store)
    settings = {
        "DETRIGGER_ADMIN_TOKEN": TOKEN,
        "DETRIGGER_RETRAIN_DATA": str(traps / "clean.npz"),
        "DETRIGGER_RETRAIN_DEVICE": "cpu",
        "DETRIGGER_DRAIN_DELAY": "0",
    }
    argv = [str(environment / "bin/detrigger"), "serve", "--store", "store", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(argv, cwd=traps, env=clean_environment(**settings), stdout=out, stderr=out)
    try:
        found = Server(wait_for_address(process, log), process, store, log)
        wait_ready(found)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def test_retrain_among_traps(server: Server) -> None:
    started = httpx.post(
        f"{server.url}/admin/retrain", headers=AUTH, json={"profile": "fast", "seed": 1, "activate": "manual"}
    )
    assert started.status_code == 202, started.text
    job = server.url + started.headers["location"]
    with httpx.stream("GET", f"{job}/events", headers=AUTH, timeout=600) as events:
        for _ in events.iter_lines():
            pass
    ended = httpx.get(job, headers=AUTH).json()
    # So short a job may be refused by its gate, which comes after everything that could have met a trap.
    assert ended["state"] == "succeeded" or ended["error"]["code"] == "gate_refused", ended
    assert len(list((server.store / "versions").iterdir())) == 2
