"""`detrigger report`: two versions side by side, and the store's index page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from detrigger import cli
from detrigger.models.manifest import Manifest
from detrigger.models.store import VersionStore
from detrigger.offline.jobs import compare
from tests.toys import publish_toy

A, B = "20250131T120000Z-00000001", "20250131T120000Z-00000002"


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    for version in (A, B):
        publish_toy(tmp_path / "store", version=version)
    return VersionStore(tmp_path / "store")


def version(store: VersionStore, name: str, suspect: str = "", **metrics: float) -> compare.Version:
    manifest = store.manifest(name)
    change: dict[str, Any] = {"metrics": manifest.metrics | metrics}
    if suspect:
        change["suspect"] = manifest.suspect.model_copy(update={"sha256": suspect})
    changed: Manifest = manifest.model_copy(update=change)
    return compare.Version(changed, {})


def test_the_better_one_is_named_figure_by_figure(store: VersionStore) -> None:
    worse, better = version(store, A, asr_inverted_after=0.3), version(store, B, asr_inverted_after=0.01)
    said = compare.in_words(worse, better)
    assert f"{B} is better in: success of the strongest rebuilt trigger, defended" in said
    assert "worse" not in said
    assert f"{A} is worse in: success" in compare.in_words(better, worse)
    page = compare.render(worse, better)
    assert "1.0% (better)" in page
    assert "30.0% (better)" not in page


def test_figures_of_different_classifiers_are_not_weighed(store: VersionStore) -> None:
    said = compare.in_words(version(store, A), version(store, B, suspect="f" * 64, ba_protected=0.1))
    assert "two different classifiers" in said
    assert "better" not in said


def test_a_page_says_which_images_each_version_purifies(store: VersionStore) -> None:
    every = version(store, A)
    suspected = compare.Version(every.manifest.model_copy(update={"purify": "suspected"}), {})
    page = compare.render(every, suspected)
    assert re.search(r"images that are purified.*?every.*?suspected", page, re.DOTALL)


def test_the_command_compares_and_writes_the_index(
    store: VersionStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    argv = ["report", "--store", str(store.root), "--against", A, "--out", str(out), "--json"]
    assert cli.main(argv) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["against"]) == (B, A)
    assert A in out.read_text()
    index = (store.root / "index.html").read_text()
    for name in (A, B):
        assert f'href="versions/{name}/report.html"' in index
    assert f"Promoted then: {B}" in index
    assert cli.main(["promote", "--store", str(store.root), A]) == 0
    assert f"Promoted then: {A}" in (store.root / "index.html").read_text()
    assert cli.main(["verify", "--store", str(store.root)]) == 0
    assert cli.main(["report", "--store", str(store.root), "--against", "20250131T120000Z-0000000f"]) == 2
