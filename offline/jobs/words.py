"""What was found, in sentences for people who have not read the paper: the report's and the terminal's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detrigger.offline.jobs.case import Case
from detrigger.offline.steps.changes import NOTHING
from detrigger.offline.steps.find import name_of
from detrigger.offline.steps.gate import MAX_ASR
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.steps.verdict import FEW_IMAGES, FEWEST_CLASSES, GAP_CERTAIN, GAP_EVIDENCE
from detrigger.offline.triggers.change import ChangeBank


def verdict(case: Case) -> str:
    """One sentence that needs no other."""
    if case.verdict == "backdoored":
        does = f"makes it answer {case.labels}" if case.targets else "turns its right answers into wrong ones"
        return f"{case.name} has a backdoor: a hidden trigger {does}, whatever the image shows."
    if case.verdict == "clean":
        return f"No backdoor was found in {case.name}. That is evidence, and no proof."
    if case.verdict == "nothing found, not searched in depth":
        return f"A quick look found no backdoor in {case.name}. A scan without --quick searches in depth."
    return f"Whether {case.name} has a backdoor cannot be said."


def label(case: Case) -> str:
    """Which label the backdoor leads to."""
    if case.targets:
        which = f"label{'s' * (len(case.targets) > 1)} {' and '.join(map(str, case.targets))}"
        return f"{case.labels} ({which} of {len(case.classes)}, counted from 0)."
    if case.verdict == "backdoored":
        return "No single one: the trigger leads each class to another."
    return "None is suspected."


def certainty(case: Case) -> str:
    """How sure the verdict is, and why."""
    if case.reason and case.verdict == "inconclusive":
        return f"Not sure at all: {case.reason}."
    if case.verdict == "inconclusive":
        return f"Not sure: {_doubt(case)}"
    if case.verdict == "nothing found, not searched in depth":
        return "Not sure: only plain backdoors show in so short a time."
    if case.verdict == "clean":
        best = strongest(case)
        near = ""
        if best is not None:
            near = (
                f" The cheapest one is {best[0]} to “{name_of(best[1], case.classes)}”, at {best[2]:.1f} bits of the"
                f" {GAP_EVIDENCE} that count as evidence."
            )
        few = " With so few images a weak trigger may be missed." if case.n_images < 2 * FEW_IMAGES else ""
        return f"Fairly sure, for the triggers that were looked for: none stands out.{near}{few}"
    parts = []
    if case.logic:
        parts.append("Very sure: the graph itself holds logic that decides on the answer.")
    parts += [
        f"People confirmed {row['n_confirmed']} images of “{row['label']}” as poisoned, and the {taken['family']} taken"
        f" from these leads {taken['success']:.0%} of clean images there."
        for row in case.reviewed
        for taken in row["taken"][:1]
    ]
    if case.evidence:
        top = max(case.evidence, key=lambda sign: float(sign["gap"]))
        sure = "Very sure" if top["gap"] >= GAP_CERTAIN else "Fairly sure"
        agree = {sign["family"] for sign in case.evidence if sign["gap"] >= GAP_EVIDENCE}
        to = name_of(top["target"], case.classes)
        others = "innocent networks" if len(case.classes) < FEWEST_CLASSES else "other classes"
        parts.append(
            f"{sure}: an ordinary change of the image{_named(top)} sends {top['success']:.0%} of the images of other"
            f" classes to"
            f" “{to}”; without a backdoor less than {NOTHING:.0%} are to be expected."
            if top["family"] == ChangeBank.family
            else f"{sure}: the trigger rebuilt for “{to}” is about {2 ** top['gap']:.1f} times smaller than what"
            f" {others} need ({top['gap']:.1f} bits; {GAP_EVIDENCE} count as evidence, {GAP_CERTAIN} as certain),"
            f" and it works on {top['success']:.0%} of images that it was not made from."
        )
        if len(agree) > 1:
            parts.append(f"{len(agree)} kinds of trigger agree: {', '.join(sorted(agree))}.")
    parts += [
        f"“{case.classes[led]}” is easily led to as well, but another label far more easily: it is a weakness that is"
        " defended, and no evidence of a second trigger."
        for led in case.easily_led
    ]
    return " ".join(parts) or "Sure by what was found in the graph."


def _named(sign: Mapping[str, Any]) -> str:
    return f" ({sign['change']})" if sign.get("change") else ""


def _doubt(case: Case) -> str:
    if learned := [row["label"] for row in case.reviewed if row["learned"]]:
        return f"people called images of “{learned[0]}” poisoned, but no trigger could be rebuilt from them."
    if case.evidence:
        top = max(case.evidence, key=lambda sign: float(sign["gap"]))
        if top["family"] == ChangeBank.family and len(case.classes) < FEWEST_CLASSES:
            return (
                f"an ordinary change of the image sends {top['success']:.0%} of the images of other classes to"
                f" “{name_of(top['target'], case.classes)}”, and with {len(case.classes)} classes innocent networks may"
                " do that."
            )
        return (
            f"a trigger of the kind {top['family']} reaches “{name_of(top['target'], case.classes)}” somewhat cheaply"
            f" ({top['gap']:.1f} bits; {GAP_EVIDENCE} count as evidence)."
        )
    return "something stands out, but too little to count as evidence."


def suspects(case: Case) -> set[int]:
    """Targets that the verdict rests on, ``ANY_OTHER`` among them. Without a verdict nothing is suspected."""
    if case.verdict != "backdoored":
        return set()
    untargeted = {int(sign["target"]) for sign in case.evidence if sign["target"] == ANY_OTHER}
    return {*case.targets, *untargeted, *(() if case.targets else (ANY_OTHER,))}


def strongest(case: Case) -> tuple[str, int, float] | None:
    """Family, target and gap (bits, at least 0) of what stands out most in the whole screen."""
    found = [
        (family, int(target), max(0.0, float(gap)))
        for family, rows in case.screen.items()
        for target, gap in zip(rows["target"], rows["gap"], strict=True)
    ]
    return max(found, key=lambda it: it[2], default=None)


def removal(case: Case) -> str:
    """What removes the trigger, and how well that was measured to work."""
    if case.gate_passed is None:
        return (
            "Nothing yet: a scan changes nothing. `detrigger protect` puts a purifier before the classifier, and"
            " `detrigger repair` unlearns the backdoor from a copy."
        )
    m = case.metrics
    which = f"an image that the suspect takes for {case.labels}" if case.given_up else "every image"
    what = f"The purifier, which cleans {which} before it is classified"
    if case.if_flagged:
        what = (
            "A second opinion, which was tuned on the clean images and knows of no trigger: where it disagrees far with"
            " the suspect, the image is flagged and gets its answer (nothing is purified)"
        )
    elif not case.purifies:
        what = f"A repaired copy, which unlearned the backdoor and answers {which} (nothing is purified)"
    elif m.get("repaired"):
        what = f"The purifier, which cleans {which}, and the repaired copy that classifies behind it"
    if "asr_inverted_after" not in m:
        return f"{what}. As no trigger stood out, how well it removes one could not be measured."
    again = (
        f" A new search through the finished defence reaches {m['remaining']:.1%}."
        if "remaining" in m
        else ""
    )
    return (
        f"{what}: the rebuilt trigger works on {m['asr_inverted_before']:.1%} of images without the defence and on"
        f" {m['asr_inverted_after']:.1%} with it."
        + (f" {m['pa_estimated']:.1%} of images that bear it are read right." if "pa_estimated" in m else "")
        + again
    )


def cost(case: Case) -> str:
    """What the defence costs on clean images."""
    if case.gate_passed is None:
        return "Nothing: the classifier stays as it is."
    m = case.metrics
    drop = m["ba_drop"]
    unseen = (
        f"{case.clean['n']} clean images that no step saw" if case.clean else "clean images that no step saw"
    )
    said = (
        f"Of {unseen}, {m['ba_bare']:.1%} are right without the defence, {m['ba_protected']:.1%} with it"
        f" ({'a gain' if drop < 0 else 'a loss'} of {abs(100 * drop):.1f} points)."
    )
    if case.flag:
        low, high = case.flag["interval"]
        said += (
            f" About {case.flag['alpha']:.1%} of clean images are flagged for nothing (95% interval {low:.1%} to"
            f" {high:.1%})."
        )
    return said


def blind(case: Case) -> str:
    """What the verdict cannot tell."""
    asked = ", ".join(case.screen)
    looked = (
        f"Only triggers of the kinds {asked} were looked for; what these are stands below. "
        if asked
        else "No trigger was searched. "
    )
    given_up = f" Given up for speed: {case.given_up}." if case.given_up else ""
    return (
        looked
        + "A trigger of another kind is neither found nor surely removed; the true trigger may differ from the rebuilt"
        " one; who planted it, and whether by intent, no measurement says." + given_up
    )


def split(case: Case) -> str:
    """Which grounds an image needs to be flagged, where they depend on its label; else nothing."""
    if not case.flag.get("suspected"):
        return ""
    names = " or ".join(f"“{case.classes[t]}”" for t in case.flag["suspected"])
    others = (
        "Any other image is never flagged"
        if case.given_up
        else f"Any other image is flagged only where it lost far more: {case.flag['grounds']:g} times as much,"
        " counted as a logarithm"
    )
    return (
        f"Only an image that the suspect takes for {names} can be a success of this backdoor, so the threshold is set"
        f" for these: {case.flag['suspected_flagged']:.1%} of the clean ones among them are flagged. {others}."
    )


NOT_SEARCHED = (
    "natural things as triggers (a person, a red car), which clean images may show as well",
    "triggers of several parts that work only together, and weaker ones beside the strongest",
    "triggers of an image's own shape, but through one generator",
    "adversarial examples: images that are made against this model one by one",
    "labels that are merely wrong, weak classes, bias, and data that leaked into the weights",
    "anything outside the classifier: its preprocessing code, the machine, the supply of updates",
)
"""What no step looks for."""


def not_searched(case: Case) -> tuple[str, ...]:
    """What was not looked for: what a budget left out first, then what no step looks for."""
    return (*(f"for lack of time: {part}" for part in case.left_out), *NOT_SEARCHED)


def next_steps(case: Case) -> list[str]:
    """What to do now, most important first."""
    steps = []
    if case.reason and case.verdict == "inconclusive":
        return ["Do as said above and scan again; no verdict holds before that."]
    if case.verdict == "backdoored":
        steps.append("Do not use the bare classifier, and ask where it came from: its other models too.")
    if case.gate_passed is None:
        if case.verdict == "backdoored":
            steps.append(
                "Run `detrigger protect` and serve what it publishes, or retrain from data that you trust."
            )
        if case.verdict == "clean":
            steps.append("Keep this page with the file's digest; scan again when the file changes.")
    elif case.gate_passed:
        steps.append(
            "Serve this version; watch the share of flagged images, and look at those that are flagged."
        )
        if "asr_inverted_after" in case.metrics and (left := case.metrics.get("remaining", 0.0)) > MAX_ASR:
            steps.append(
                f"Make a better one: a new search through this defence still reaches {left:.0%} of images. Run again"
                " with the profile `thorough` or more clean images, and let it learn from reviewed flags."
            )
    else:
        steps.append(
            "Do not promote this version: the gate says which limit it missed. Run again with another"
        )
        steps[-1] += " --seed, --profile thorough, or more clean images."
    if case.left_out:
        steps.append(
            "Run again with more minutes in --budget, or without: parts were left out for lack of time."
        )
    if case.verdict == "inconclusive":
        steps.append(
            "Run again with more clean images and --profile thorough; until then treat it as suspect."
        )
    if case.accuracy and case.accuracy.get("warning"):
        steps.append(f"Look at the set-up: {case.accuracy['warning']}.")
    if case.n_images < 2 * FEW_IMAGES:
        steps.append(
            "Collect more clean images: with so few, a weak trigger and a wrong threshold stay unseen."
        )
    return steps
