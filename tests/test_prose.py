"""The documents can be read at once: short sentences, no twisted ones, figures only where they are kept."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MEAN_WORDS, MOST_WORDS = 15.5, 45
BANNED = {
    r"\bbut for\b": "write `except`",
    r"(?<!there )\b(?:is|are|was|were) (?:no|none) (?!longer|more|less|fewer|other|use|way|end)\w+": "write `is not a`",
    r"\bnone any ?more\b": "write `no longer`",
    r"\bof (?:these|those|them|such|\w+ing)\b[^.]{0,30}\b(?:some|most|many|all)\b": "begin with `some of`",
    r"^(?:Of|To|What of) \w+ \w+ (?:some|there|it)\b": "begin with the subject",
    r"\bnor (?:do|does|is|are)\b": "begin a sentence",
    r"\bshall\b": "write `must` or `will`",
    r"\bthereof\b|\bwherein\b|\bwhereof\b": "write it out",
    r"\bwill do as well\b": "write `works as well`",
}


def prose(text: str) -> str:
    """The text alone: no code, headings, pictures, addresses or generated parts; table cells are paragraphs."""
    text = re.sub(r"<!-- (\w+):begin.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\|.*$", lambda row: row[0].replace("|", "\n\n"), text, flags=re.MULTILINE)
    return re.sub(r"^\s*(?:[-*]|\d+\.)\s", "\n\n", text, flags=re.MULTILINE)


def sentences(text: str) -> list[str]:
    """Sentences of the running text; a paragraph or list item ends one as well."""
    found = []
    for paragraph in re.split(r"\n\s*\n", prose(text)):
        line = " ".join(paragraph.replace("*", "").split())
        found += [part for part in re.split(r"(?<=[.!?:;])\s+(?=[A-Z0-9`(\"c])", line) if words(part)]
    return found


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'-]*\w", sentence))


def test_the_reader_of_sentences() -> None:
    page = "# Head\n\nOne two. Three `a b c` four\nfive.\n\n| a | b c |\n\n- Six [seven](x.md)\n- eight\n"
    assert [words(sentence) for sentence in sentences(page)] == [2, 4, 1, 2, 2, 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    found = sentences(page.read_text())
    whole = [sentence for sentence in found if sentence[-1] in ".!?"]  # not a cell, a name, a figure
    mean = sum(map(words, whole)) / len(whole)
    assert mean <= MEAN_WORDS, f"{mean:.1f} words on average"
    assert [sentence for sentence in found if words(sentence) > MOST_WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_turns_of_phrase_that_are_read_twice(page: Path) -> None:
    for sentence in sentences(page.read_text()):
        for pattern, instead in BANNED.items():
            assert not re.search(pattern, sentence), f"{instead}: {sentence}"


def docstrings(path: Path) -> list[str]:
    """All docstrings of a module, those of constants among them."""
    nodes = ast.walk(ast.parse(path.read_text()))
    values = [node.value for node in nodes if isinstance(node, ast.Expr)]
    return [
        value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]


MODULES = sorted(
    path
    for package in ("detrigger", "models", "offline", "service", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_read_once(path: Path) -> None:
    for text in docstrings(path):
        for sentence in sentences(text):
            for pattern, instead in BANNED.items():
                assert not re.search(pattern, sentence), f"{instead}: {sentence}"


@pytest.mark.parametrize("path", sorted((ROOT / "offline").rglob("*.py")), ids=lambda path: path.name)
def test_docstrings_of_the_job_have_no_measured_figure(path: Path) -> None:
    """Such figures stand in docs/experiments.md, and a constant points there."""
    measured = r"\d%|\d (?:points|bits of)|\b(?:ASR|TPR|FPR|BA|PA) (?:of )?\d|\d(?:\.\d)? bits\b(?<!8 bits)"
    assert [text for text in docstrings(path) if re.search(measured, text)] == []


def test_the_method_has_no_measured_number_and_fits() -> None:
    text = (ROOT / "docs/method.md").read_text()
    assert len(text.splitlines()) <= 200
    allowed = r"Eq\. \d|ICLR \d+|8-bit|float\d+"
    left = re.sub(allowed, "", re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    assert [line for line in left.splitlines() if re.search(r"\d", line)] == []


def test_every_limit_is_two_sentences() -> None:
    rows = re.findall(r"^\| [^|]+ \| (.+) \|$", (ROOT / "docs/limits.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    assert [row for row in rows if len(re.findall(r"[.!?](?=\s|$)", row)) != 2] == []
