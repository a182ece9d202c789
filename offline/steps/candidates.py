"""Which defence stands before the suspect: several are made where the first does not hold, and the best one is kept.

    purified         purifier, and a copy repaired behind it (``purify.py``, ``unlearn.py``)
    repaired         weights that stand alone, asked beside the suspect; nothing is purified
    second opinion   weights tuned with no trigger at all, which answer what is flagged (``second_opinion.py``)

On some networks a purifier costs what the image needs to be recognised, and repaired weights hold. On others it is the
other way round. So a candidate is tried by what a new inversion through the finished candidate still achieves, and by
BA on held-out images. Where nothing stood out there is nothing to invert or to unlearn, and the second opinion stands
alone; the purifier does where that cannot be had. The paper has one candidate. A budget may leave no time for the
second, for the copy, or for the attack. What nothing attacked does not pass the gate.

Limitation: a new inversion knows the families that the old one knew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from detrigger.models.manifest import Check
from detrigger.models.suspect import Suspect
from detrigger.offline.graph.weights import weight_names
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.gate import ba_check, inverted_asr
from detrigger.offline.steps.invert import AIM, ANY_OTHER
from detrigger.offline.steps.penalty import answered, both_logits, choose_penalty
from detrigger.offline.steps.purify import Purified, purify
from detrigger.offline.steps.reinvert import Refresh, inversions, invert_again
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.second_opinion import second_opinion
from detrigger.offline.steps.unlearn import RepairedCopy, repaired_copy, step_seconds, training_of, unlearn
from detrigger.offline.steps.verdict import GAP_CERTAIN, GAP_SECOND_LOOK, Evidence
from detrigger.offline.types import Pixels

Kind = Literal["purified", "repaired", "second opinion"]
HOLDS, SEARCHED = 0.05, 0.25
"""Success up to which the first candidate is kept without a look at another: of an ordinary change, and of what a new
search found. The attacker does not know that one (docs/experiments.md, Two defences)."""
MAX_COST = 0.005
"""Of held-out BA, in shares. Repaired weights that cost more are not asked about labels that nobody suspects."""
PURIFIER = 0.6
"""Share of the time for a defence that the purifier may take of a budget. Set by hand, as it is without one."""
MOST_TRIED = 200
"""Held-out images that a trigger is tried on."""
STRONGEST = 3
"""Triggers of a new inversion that are tried with the weighed answer, those that do most without it."""


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What the steps made: the purifier, what classifies behind it, and the penalty of every label.

    ``suspected`` are the labels that a success of the backdoor must have, where the verdict tells; with ``only``
    images of other labels get the suspect's own answer. ``remaining`` is the success rate of the strongest new
    inversion through all of that, on held-out images, less what is usual (``judged``). With ``attacked`` False the
    budget left no time to look, and it says nothing.
    """

    kind: Kind
    purified: Purified
    repaired: RepairedCopy
    penalty: tuple[float, ...]
    suspected: tuple[int, ...] = ()
    only: bool = False
    remaining: float = 0.0
    attacked: bool = True

    @property
    def if_flagged(self) -> bool:
        """Whether only flagged images get its answer, and all others the suspect's own."""
        return self.kind == "second opinion"

    def check(self) -> Check | None:
        """A condition of the gate that nothing meets, where a defence was to be attacked and was not."""
        if self.attacked:
            return None
        detail = "the budget left no time to attack the finished defence"
        return Check(name="not_attacked", value=1.0, limit=0.0, passed=False, detail=detail)


class Unpurified(nn.Module):
    """In place of a purifier, where nothing is purified."""

    def forward(self, image: Tensor) -> Tensor:
        """The image itself, (N, C, H, W)."""
        return image * 1.0


def choose_defence(run: Run, findings: Findings, suspected: tuple[int, ...], only: bool) -> Defence:
    """The candidate that leaves least to an attacker, of those that keep BA; the first one where none does.

    ``suspected`` and ``only`` are as in ``Defence``. Repaired weights that would cost more than ``MAX_COST`` are asked
    about suspected labels alone, whatever ``only`` says.
    """
    budget, plain = run.budget, plainest(findings)
    nothing = not (findings.leads or findings.lessons.examples)
    if nothing and (tuned := second_opinion(run)) is not None:
        return _alone("second opinion", tuned, (0.0,) * run.suspect.n_classes)
    made = replace(_purified(run, findings), suspected=suspected, only=only)
    if not findings.leads:
        return made
    if not budget.allows("the attack on the finished defence", attack_seconds(run, plain)):
        return replace(made, attacked=False)
    first = judged(run, plain, made)
    if first.holds or not weight_names(run.inputs.tunable):
        return first.defence
    with budget.keeping(attack_seconds(run, plain)):
        least = training_of(plain, run.profile.repair).least().total()
        if not budget.allows("a second defence", least * step_seconds(run)):
            return first.defence
        repaired = _repaired(run, plain)
    made = replace(repaired, suspected=suspected, only=only)
    if suspected and not only and _ba_drop(run, made).value > MAX_COST:
        made = replace(made, only=True)
    second = judged(run, plain, made)
    run.progress.note(f"two defences were made: {first.in_words()}; {second.in_words()}")
    return better(first, second).defence


@dataclass(frozen=True)
class Judged:
    """A candidate, what it costs of held-out BA, in shares, and whether that and what remains are within the limits."""

    defence: Defence
    ba_drop: float
    keeps_ba: bool
    holds: bool

    def in_words(self) -> str:
        """For the log."""
        return (
            f"{self.defence.kind} costs {self.ba_drop:.1%} of BA and leaves a trigger that works on"
            f" {self.defence.remaining:.1%}"
        )


def better(first: Judged, second: Judged) -> Judged:
    """The one that leaves less to an attacker, if it keeps BA; the first where both are as good."""
    return min((first, second), key=lambda made: (not made.keeps_ba, made.defence.remaining))


def _purified(run: Run, findings: Findings) -> Defence:
    with run.budget.part(PURIFIER if findings.leads else 1.0):
        purified = purify(run, findings)
    with run.budget.keeping(attack_seconds(run, plainest(findings))):
        repaired = repaired_copy(run, findings, purified.purifier)
    penalty = choose_penalty(run, findings, repaired.classifier, purified.purifier)
    return Defence(kind="purified", purified=purified, repaired=repaired, penalty=penalty)


def attack_seconds(run: Run, findings: Findings) -> float:
    """What ``judged`` takes at most: an inversion of every lead, and as long a one towards an innocent label."""
    return 2 * inversions(findings.leads) * run.profile.refresh_steps * run.budget.step


def _repaired(run: Run, findings: Findings) -> Defence:
    run.reference.exclude_labels(findings.targets)
    tuned, remaining = unlearn(run, findings, run.profile.repair)
    return _alone("repaired", tuned, choose_penalty(run, findings, tuned, Unpurified()), remaining)


def _alone(
    kind: Kind, tuned: Suspect, penalty: tuple[float, ...], remaining: Sequence[dict[str, float]] = ()
) -> Defence:
    """Weights before which nothing is purified."""
    return Defence(
        kind=kind,
        purified=Purified(Unpurified(), []),
        repaired=RepairedCopy(tuned, True, list(remaining)),
        penalty=penalty,
    )


def judged(run: Run, findings: Findings, defence: Defence) -> Judged:
    """The candidate with what a new inversion through it achieves beyond the usual, and its BA on held-out images.

    The usual is what the same search, within the same cost, achieves towards a label that nobody suspects. A defence is
    not to blame for what leads it to any label.
    """
    check, remaining = _ba_drop(run, defence), 0.0
    holds = check.passed
    # What costs as much as towards any class says nothing of the backdoor.
    signs = [piece for piece in findings.leads if piece.gap >= GAP_SECOND_LOOK]
    for sign in signs:
        reached = _success(run, defence, [sign, *_inverted_through(run, sign, defence)])
        if reached > HOLDS and sign.bank.learned and sign.target != ANY_OTHER:
            control = replace(sign, target=_innocent(run, findings))
            reached -= _success(run, defence, _inverted_through(run, control, defence))
        remaining = max(remaining, reached)
        holds &= reached <= (SEARCHED if sign.bank.learned else HOLDS)
    return Judged(replace(defence, remaining=remaining), check.value, check.passed, holds)


def _success(run: Run, defence: Defence, pieces: Sequence[Evidence]) -> float:
    """Of the strongest of ``pieces`` through the defence, on held-out images."""
    x, y = (part.cpu().numpy() for part in run.images.held_out)
    found = 0.0
    for piece in pieces:
        others = np.flatnonzero(y != piece.target)[:MOST_TRIED]
        (rate,) = inverted_asr(piece, x[others], y[others], lambda images: [answers(run, defence, images)[1]])
        found = max(found, rate)
    return found


def _innocent(run: Run, findings: Findings) -> int:
    """The first label that nothing leads to."""
    led = {*findings.targets, *findings.easily_led, *(piece.target for piece in findings.leads)}
    return next((label for label in range(run.suspect.n_classes) if label not in led), 0)


def plainest(findings: Findings) -> Findings:
    """The findings with the ordinary change alone for every target that one leads to beyond doubt.

    What inverted families make of a turned or blurred image explains it in part, and weights that unlearn all of these
    unlearn the change itself less (docs/experiments.md, Two defences).
    """
    plain = {e.target for e in findings.leads if not e.bank.learned and e.gap >= GAP_CERTAIN}
    kept = [piece for piece in findings.leads if not piece.bank.learned or piece.target not in plain]
    if not plain:
        return findings
    return replace(findings, leads=kept, refined=[e for e in findings.refined if not e.bank.learned])


def _ba_drop(run: Run, defence: Defence) -> Check:
    """What the candidate costs of BA on held-out images."""
    x, y = (part.cpu().numpy() for part in run.images.held_out)
    before, after = (logits.argmax(1) == y for logits in answers(run, defence, x))
    return ba_check(before, after, defence.kind)


def _inverted_through(run: Run, piece: Evidence, defence: Defence) -> list[Evidence]:
    """The strongest of what a new inversion through purifier and copy finds for a lead, one trigger a piece."""
    compute = run.compute

    def through(x: Tensor) -> Tensor:
        logits: Tensor = defence.repaired.classifier(
            compute.channels_last(defence.purified.purifier(x).float())
        )
        return logits

    with run.progress.stage("attack", inversions([piece]) * run.profile.refresh_steps) as advance:
        refresh = Refresh(
            profile=run.profile,
            steps=run.profile.refresh_steps,
            seed=run.seed + 100,
            aim=AIM,
            advance=advance,
        )
        entries, _ = invert_again(through, [piece], run.images, refresh)
    found = []
    for bank in (entry.bank for entry in entries):
        first = range(min(STRONGEST, len(bank)) if bank.learned else len(bank))
        found += [replace(piece, bank=bank.pick(torch.tensor([i]))) for i in first]
    return found


def answers(run: Run, defence: Defence, x: Pixels) -> Sequence[Pixels]:
    """Logits (N, K) of the suspect and of the defended suspect, for images (N, C, H, W) in [0, 1]."""
    both = both_logits(run, defence.repaired.classifier, defence.purified.purifier, torch.from_numpy(x))
    first, second = (logits.cpu().numpy() for logits in both)
    weighed = answered(second, first, defence.penalty)
    if defence.only:
        others = ~np.isin(first.argmax(1), defence.suspected)
        weighed[others] = first[others]
    return first, weighed
