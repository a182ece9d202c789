"""The same seed on the same machine publishes the same version, but for the times."""

from pathlib import Path
from typing import Any

import pytest

from detrigger.models.store import VersionStore
from detrigger.offline.inputs.profile import PROFILES
from detrigger.offline.jobs.protect import ProtectOptions, protect
from detrigger.offline.progress import SilentProgress
from tests import blobs

_TIMES = {"id", "created", "seconds", "files", "digest"}  # and what is made of them


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "fast", blobs.short_profile())


def published(given: Path, store: Path, seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest without its times, and the digests of the graphs."""
    options = ProtectOptions(
        suspect=given / "model.onnx",
        data=given / "clean.npz",
        store=store,
        device="cpu",
        profile="fast",
        seed=seed,
        promote=False,
    )
    version = protect(options, SilentProgress()).version
    manifest = VersionStore(options.store).manifest(version)
    graphs = {name: file.sha256 for name, file in manifest.files.items() if name.endswith(".onnx")}
    return manifest.model_dump(exclude=_TIMES), graphs


@pytest.mark.slow
def test_two_runs_are_one(tmp_path: Path) -> None:
    blobs.suspect(tmp_path)
    blobs.npz(tmp_path / "clean.npz", 30)
    runs = (("a", 3), ("b", 3), ("c", 4))
    first, again, other = (published(tmp_path, tmp_path / name, seed) for name, seed in runs)
    assert first == again
    assert other[1]["purifier.onnx"] != first[1]["purifier.onnx"]
