"""Somebody who has not read the paper can answer five questions from the report; nothing of a stranger's runs in it."""

from dataclasses import replace

from detrigger.offline.jobs import figures, report
from detrigger.offline.jobs.report import Pictures
from detrigger.offline.jobs.results import ScanResult, Sign

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


def test_five_questions_are_answered() -> None:
    text = page()
    answers = {
        "Which label does it lead to?": "“stop” (label 1 of 2)",
        "How sure is that, and why?": "Very sure: the trigger rebuilt for “stop”",
        "What removes it?": "detrigger protect",
        "What does that cost?": "the classifier stays as it is",
        "What can this not tell?": "Only triggers of the kinds spot were looked for",
    }
    for question, answer in answers.items():
        assert answer in text[text.index(question) :].split("</dd>")[0]
    assert "Not looked for" in text


def test_a_name_is_shown_and_not_obeyed() -> None:
    text = page(replace(SCAN, file_name="<script>alert(1)</script>", classes=("<img src=x>", "stop")))
    assert "<script" not in text
    assert "<img src=x>" not in text


def test_the_interval_of_false_alarms_narrows_with_more_images() -> None:
    low, high = figures.false_alarms(0.01, 199)
    assert low < 0.01 < high
    less, more = figures.false_alarms(0.01, 1999)
    assert more - less < high - low
