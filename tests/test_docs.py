"""The documents say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.generator import GeneratorBank
from tests.live import live_server

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_generated_parts_are_current() -> None:
    """`python -m benchmarks.pages.update` mends a failure."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pages.update", "--check"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = page if not path else page.parent / path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", it).lower().replace(" ", "-") for it in headings}, target
    for named in re.findall(
        r"`((?:deploy|docs|benchmarks|tests|offline|models|service|detrigger)/[\w./-]+)`", text
    ):
        assert (ROOT / named).exists(), named


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs/demo.png").stat().st_size < 300_000


@pytest.mark.process
def test_metrics_named_in_the_documents_exist(tmp_path: Path) -> None:
    with live_server(tmp_path) as server:
        scraped = httpx.get(f"{server.url}/metrics").text
    for page in PAGES:
        for name in re.findall(r"\bdetrigger_[a-z0-9_]+\b", page.read_text()):
            assert re.search(rf"^{name}\b", scraped, re.MULTILINE), f"{page.name}: {name}"


def test_make_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`|&& )make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


@pytest.mark.parametrize("package", ["models", "offline", "service", "detrigger/demo"])
def test_reading_maps_name_every_module(package: str) -> None:
    text = (ROOT / package / "__init__.py").read_text()
    files = (ROOT / package).glob("**/*.py" if package == "offline" else "*.py")
    modules = {path.stem for path in files if path.parent.name != "triggers"} - {"__init__"}
    assert {name for name in modules if not re.search(rf"\b{name}\b", text)} == set()


def test_error_codes_are_those_that_are_raised() -> None:
    listed = set(
        re.findall(
            r"`([a-z_]+)`", (ROOT / "models/errors.py").read_text().split("Codes in use:")[1].split('"""')[0]
        )
    )
    sources = [path.read_text() for folder in ("models", "offline") for path in (ROOT / folder).rglob("*.py")]
    raised = {code for text in sources for code in re.findall(r'\bcode(?:: str)? ?= ?"([a-z_]+)"', text)}
    assert raised == listed


@pytest.mark.parametrize("page", ["method.md", "threat-model.md"])
def test_pages_name_every_trigger_family(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    names = {family.family for family in UNIVERSAL} | {GeneratorBank.family}
    assert {name for name in names if not re.search(rf"\b{name}", text)} == set()
