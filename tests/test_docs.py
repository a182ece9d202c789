"""The documents say what the code does."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
import yaml

from detrigger.cli import command_line
from detrigger.models.preprocess import Preprocess
from detrigger.offline.jobs.results import ScanResult
from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.generator import GeneratorBank
from tests.live import live_server

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PACKAGES = ("detrigger/demo", "models", "offline", "service", "benchmarks")


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
def test_metrics_and_calls_named_in_the_documents_exist(tmp_path: Path) -> None:
    with live_server(tmp_path) as server:
        scraped = httpx.get(f"{server.url}/metrics").text
        paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    calls = {
        (method.upper(), re.sub(r"\{\w+\}", "[^/]+", path)) for path, has in paths.items() for method in has
    }
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"\bdetrigger_[a-z0-9_]+\b", text):
            assert re.search(rf"^{name}\b", scraped, re.MULTILINE), f"{page.name}: {name}"
        for method, path in re.findall(r"`(GET|POST|DELETE) (/[^`?]+)", text):
            assert any(m == method and re.fullmatch(p, path) for m, p in calls), (
                f"{page.name}: {method} {path}"
            )


def shell(text: str) -> Iterator[str]:
    """The lines of a page's shell blocks, each with what it goes on with."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `detrigger` that a page shows, in blocks, in running text and in the table of commands."""
    lines = [*shell(text), *re.findall(r"`(detrigger [^`]+)`", text)]
    lines += [f"detrigger {row}" for row in re.findall(r"^\| `([a-z]+ [^`]*--[^`]*)` \|", text, re.MULTILINE)]
    for line in lines:
        if line.startswith("detrigger "):
            words = shlex.split(line.translate({ord("["): None, ord("]"): None}), comments=True)
            ends = [i for i, word in enumerate(words) if re.fullmatch(r"\d?[<>|&;].*", word)]
            yield [
                "1" if word in ("H", "W", "N") else word for word in words[1 : min(ends, default=len(words))]
            ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page.read_text()):
        if len(words) == 1 or words[0] == "COMMAND":  # a command's name, or any command
            words = [*words[:1], "--help"] if words[0].islower() else ["--help"]
        with suppress(SystemExit):  # of `--help` and `--version`
            command_line().parse_args(words)
        assert not (said := capsys.readouterr().err), said


def test_the_reader_of_commands() -> None:
    page = "```sh\nmake x\ndetrigger scan m \\\n  --data d 2> log &\n```\nSee `detrigger verify`.\n"
    page += "| `report --store STORE [VERSION]` | says |\n"
    assert list(commands(page)) == [
        ["scan", "m", "--data", "d"],
        ["verify"],
        ["report", "--store", "STORE", "VERSION"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_benchmark_of_a_page_is_one(page: Path) -> None:
    for module, rest in re.findall(r"python -m (benchmarks[\w.]*)([^`\n#]*)", page.read_text()):
        path = ROOT / module.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert path.exists(), module
        words = rest.split()  # a command, and flags; what flags are given is theirs
        words = [word for i, word in enumerate(words) if word.startswith("--") or not i]
        source = path.read_text()
        assert [word for word in words if f'"{word}"' not in source] == [], module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_of_a_page_exist(page: Path) -> None:
    others = "".join(
        path.read_text() for path in (ROOT / "docker-compose.yml", ROOT / "benchmarks/__main__.py")
    )
    settings = (ROOT / "service/settings.py").read_text()
    for name in set(re.findall(r"\bDETRIGGER_([A-Z_]+)\b", page.read_text())):
        known = re.search(rf"^    {name.lower()}: ", settings, re.MULTILINE) or f"DETRIGGER_{name}" in others
        assert known, f"{page.name}: DETRIGGER_{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_constants_and_modules_of_a_page_exist(page: Path) -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources = "\n".join(path.read_text() for path in paths)
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        if re.fullmatch(r"[A-Z]+_[A-Z_]+", code) and not code.startswith("DETRIGGER_"):
            assert re.search(rf"^(?:\w+, )*{code}\b", sources, re.MULTILINE), code
        if re.fullmatch(r"\w+\.py", code):
            assert code in {path.name for path in paths}, code


def test_every_alert_is_explained() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"] if "alert" in rule}
    rows = re.findall(r"^\| (Detrigger\w.*?) \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in row.split(", ")} == alerts


def test_what_a_scan_and_a_preprocess_file_hold_is_explained() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    assert [it.name for it in fields(ScanResult) if f"`{it.name}`" not in text] == []
    table = text.partition("\n## preprocess.json")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE))))
    known = {it.alias or name for name, it in Preprocess.model_fields.items()} - {
        "layout"
    }  # the graph says it
    assert named == known | {"range"}


def test_make_targets_named_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", page.read_text(), re.MULTILINE))
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
