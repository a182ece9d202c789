"""Somebody who has not read the paper can answer five questions from the report; nothing of a stranger's runs in it."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrigger.models.manifest import Flag, Manifest
from detrigger.models.store import VersionStore
from detrigger.offline.jobs import compare, figures, report
from detrigger.offline.jobs.pictures import Cell, Sheet, Strip, data_url
from detrigger.offline.jobs.report import Pictures
from detrigger.offline.jobs.results import ScanResult, Sign
from tests.toys import CLASSES, TARGET, publish_toy, toy_manifest

SCAN = ScanResult(
    verdict="backdoored",
    target_labels=(1,),
    evidence=(Sign("spot", 1, "stop", 2.5, 0.01, 0.9),),
    screen={"spot": {"target": [0, 1, -1], "gap": [0.0, 2.5, 0.1], "cost": [0.06, 0.01, 0.05], "success": [1.0] * 3}},
    strong_gap=1.0,
    classes=("yield", "stop"),
    file_name="m.onnx",
    suspect="0" * 64,
    n_images=500,
    picture=None,
    seconds=3.0,
    command="detrigger scan m.onnx",
)  # fmt: skip


def page(scan: ScanResult = SCAN) -> str:
    return report.render_scan(scan, Pictures(()))


FIGURES = {
    "ba_bare": 0.86,
    "ba_protected": 0.855,
    "ba_drop": 0.005,
    "asr_inverted_before": 0.99,
    "asr_inverted_after": 0.01,
    "remaining": 0.04,
    "repaired": 1.0,
}


def version() -> tuple[Manifest, dict[str, Any]]:
    """A manifest and a report.json in which everything stands that can."""
    manifest = toy_manifest("20250131T120000Z-00000001").model_copy(update={"metrics": FIGURES})
    green = CLASSES[3][TARGET]
    shares = [1.0] + [0.0] * 39
    content = {
        "evidence": [asdict(Sign("patch", TARGET, green, 2.5, 0.01, 0.9))],
        "screen": {
            "patch": {
                "target": [0, 1, 2, -1],
                "gap": [0.0, 2.5, 0.1, 0.0],
                "cost": [0.06, 0.01, 0.05, 0.05],
                "success": [1.0] * 4,
            },
            "tone": {
                "target": [0, 1, 2, -1],
                "gap": [1.1, 0.0, 0.1, 0.0],
                "cost": [0.03, 0.06, 0.05, 0.05],
                "success": [1.0] * 4,
            },
        },
        "accuracy": {
            "overall": 0.86,
            "n_images": 500,
            "confidence": 0.9,
            "warning": "",
            "per_class": dict.fromkeys(CLASSES[3], 0.86),
        },
        "remaining": [{"patch:1": 0.5}, {"patch:1": 0.1}],
        "remaining_repaired": [{"patch:1": 0.1}, {"patch:1": 0.02}],
        "budget": {"n_images": 500, "train": 350, "held_out": 50, "unseen": 100},
        "clean": {
            "n": 100,
            "same_answer": 0.98,
            "spoilt": 1,
            "mended": 1,
            "change_median": 1.0,
            "change_largest": 4.0,
        },
        "flag": {
            "threshold": 0.2,
            "alpha": 0.01,
            "n_calibration": 150,
            "interval": [0.001, 0.03],
            "clean": shares,
            "triggered": shares[::-1],
            "n_triggered": 80,
            "n_led": 60,
            "triggered_flagged": 0.74,
            "led_flagged": 0.99,
        },
        "reviewed": [
            {
                "target": TARGET,
                "label": green,
                "n_images": 52,
                "n_confirmed": 50,
                "learned": True,
                "examples": True,
                "taken": [{"family": "patch", "success": 0.97}],
                "note": "",
            }
        ],
        "command": "detrigger protect m.onnx",
    }
    return manifest, content


def version_page() -> str:
    """The page of a version that has everything."""
    picture = data_url(np.full((3, 8, 8), 0.5, np.float32))
    cells = tuple(Cell(f"picture {i}", picture, ("bare: red (99%)",)) for i in range(5))
    alone = (Cell("a test card", picture), Cell("with the trigger", picture, box=(0, 0, 2, 2), size=(8, 8)))
    sheet = Sheet("To “green”, rebuilt as patch", "patch", alone, (Strip("True class", cells),))
    return report.render(*version(), Pictures([sheet], [Strip("worst", cells[:3])]))


def comparison_page() -> str:
    """Two versions of which one is better."""
    manifest, content = version()
    other = manifest.model_copy(update={"metrics": FIGURES | {"asr_inverted_after": 0.2}})
    return compare.render(compare.Version(other, {}), compare.Version(manifest, content))


def index_page() -> str:
    """The index of a store with two versions."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            publish_toy(Path(folder) / "store")
        return compare.write_index(VersionStore(Path(folder) / "store")).read_text()


def test_bold_is_what_the_verdict_rests_on_and_nothing_else() -> None:
    text = version_page()
    bold = [line for line in text.splitlines() if 'class="hot"' in line or 'n hot"' in line]
    assert bold
    assert all(CLASSES[3][TARGET] in line for line in bold)
    red = next(line for line in text.splitlines() if "not enough to be suspected" in line)
    assert CLASSES[3][0] in red  # stands out by 1.1 bits in one kind, and the verdict is about another label
    manifest, content = version()
    clean = manifest.model_copy(update={"verdict": "clean", "target_labels": ()})
    text = report.render(clean, content | {"evidence": [], "reviewed": []}, Pictures(()))
    assert 'class="hot"' not in text
    assert 'n hot"' not in text


def test_what_reviewed_images_taught_is_told() -> None:
    text = version_page()
    assert "What reviewed images taught" in text
    assert "People confirmed 50 images of “green” as poisoned" in text


def check_answers(text: str, answers: dict[str, str]) -> None:
    """Each question's answer stands right after it."""
    for question, answer in answers.items():
        assert answer in text[text.index(question) :].split("</dd>")[0]


def test_five_questions_are_answered() -> None:
    text = page()
    answers = {
        "Which label does it lead to?": "“stop” (label 1 of 2, counted from 0)",
        "How sure is that, and why?": "Very sure: the trigger rebuilt for “stop”",
        "What removes it?": "detrigger protect",
        "What does that cost?": "the classifier stays as it is",
        "What can this not tell?": "Only triggers of the kinds spot were looked for",
    }
    check_answers(text, answers)
    assert "Not looked for" in text


def test_five_questions_are_answered_for_a_version() -> None:
    text = version_page()
    answers = {
        "Which label does it lead to?": "“green” (label 1 of 3, counted from 0)",
        "How sure is that, and why?": "Very sure: the trigger rebuilt for “green”",
        "What removes it?": "on 1.0% with it. A new search through the finished defence reaches 4.0%.",
        "What does that cost?": "Of 100 clean images that no step saw, 86.0% are right without the defence, 85.5%",
        "What can this not tell?": "Only triggers of the kinds patch, tone were looked for",
    }
    check_answers(text, answers)
    assert "it leads the suspect astray on 60; of these 99.0% are flagged" in text


def test_words_of_the_trade_are_explained_where_they_stand() -> None:
    text = version_page()
    assert "right answers lost on clean images <code" in text  # ba_drop
    assert "Patch: a mark of any shape" in text
    assert "The flag score says how much of its confidence" in text
    manifest, content = version()
    refused = manifest.model_copy(update={"gate": manifest.gate.model_copy(update={"passed": False})})
    assert "it is not served unless somebody insists" in report.render(refused, content, Pictures(()))


def test_a_defence_that_purifies_nothing_does_not_boast_of_a_purifier() -> None:
    manifest, content = version()
    text = report.render(manifest, content | {"defence": "repaired"}, Pictures(()))
    assert (
        "A repaired copy, which unlearned the backdoor and answers every image (nothing is purified)" in text
    )
    assert "The purifier" not in text
    assert "Purifying changes" not in text


def test_what_a_new_search_still_reaches_is_something_to_do() -> None:
    manifest, content = version()
    assert "Make a better one" not in report.render(manifest, content, Pictures(()))
    weak = manifest.model_copy(update={"metrics": FIGURES | {"remaining": 0.42}})
    text = report.render(weak, content, Pictures(()))
    assert "A new search through the finished defence reaches 42.0%" in text
    assert "Make a better one: a new search through this defence still reaches 42% of images" in text


def test_an_ordinary_change_that_is_evidence_is_named() -> None:
    sign = Sign("change", 1, "stop", 3.0, 0.01, 0.99, "blurred 0.09")
    text = page(replace(SCAN, evidence=(sign,)))
    assert "an ordinary change of the image (blurred 0.09) sends 99% of the images" in text


def test_a_name_is_shown_and_not_obeyed() -> None:
    text = page(replace(SCAN, file_name="<script>alert(1)</script>", classes=("<img src=x>", "stop")))
    assert "<script" not in text
    assert "<img src=x>" not in text


def test_the_interval_of_false_alarms_narrows_with_more_images() -> None:
    low, high = figures.false_alarms(0.01, 199)
    assert low < 0.01 < high
    less, more = figures.false_alarms(0.01, 1999)
    assert more - less < high - low


def test_images_on_which_a_rebuilt_trigger_fails_are_no_missed_flags() -> None:
    flag = Flag(threshold=0.5, alpha=0.01, n_calibration=199)
    clean, asked = np.zeros(4, np.float32), np.zeros(4, bool)
    triggered, led = np.array([0.9, 0.8, 0.0, 0.1], np.float32), np.array([True, True, False, True])
    found = figures.flag_figures(flag, clean, asked, triggered, led)
    assert (found["n_triggered"], found["n_led"]) == (4, 3)
    assert (found["triggered_flagged"], found["led_flagged"]) == (0.5, pytest.approx(2 / 3))
    assert found["triggered"][0] == 0.0
