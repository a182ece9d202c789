"""Unlearn the backdoor from a copy of the suspect's own weights (BTI-DBF (U), section 3.3).

Rounds of two halves, as with the purifier: invert the evidence again through the weights as they are, then tune the
weights on what was found so far. A step's loss, f_0 the suspect as given, x clean, T a trigger of the pool:

    ANSWERS KL( f_0(x) || f(.) )  +  FEATURES |S_a(.) - S_a0(x)|^2 / E|S_a0|^2        (. is x or T(x))

so that an image with a trigger is answered as the suspect answers it without. Where the weights stand alone, wrong
target labels are held back (``TARGET_MARGIN``).

The official code tunes in training mode on the true labels and puts its one generator on a tenth of each batch. Here
normalisation statistics stay as they are. Labels are not used: the weights would learn them by heart. The inversion
spends all of its cap (``SPENDS_ITS_CAP``). Adam's steps are relative to each tensor's size.

``repair`` tunes weights that stand alone. ``protect`` tunes weights behind the purifier P, which the paper
does not: the dots above are P(x) and P(T(x)), and the inversion runs through both. They unlearn what P leaves of a
trigger and get used to what P does to clean images, so smaller steps are enough and BA suffers less.
In the end the weights go some of the way back; alone they go on, as far as clean images allow.

Limitation: what resembles no inverted or synthetic trigger is not unlearned.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrigger.models.suspect import Suspect
from detrigger.offline.graph.weights import weight_names, weights
from detrigger.offline.inputs.profile import Tuning
from detrigger.offline.steps.accuracy import right_on
from detrigger.offline.steps.budget import Training
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.gate import ba_check
from detrigger.offline.steps.reinvert import Refresh, inversions, invert_again
from detrigger.offline.steps.reviewed import EXAMPLES, still
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.tuning import Tuner
from detrigger.offline.types import Answer

BATCH = 64
ANSWERS, FEATURES = 2.0, 3.0
"""Weights of the two parts of the loss."""
TARGET_MARGIN = 5.0
"""How far, in logits, images with a trigger are to stay away from the target. What is left of a trigger then speaks
against the target rather than for it; behind a purifier the penalty does that."""
ALL_GRADIENTS = 1.5
"""What a step takes beside one of the purifier's, at most: here the suspect's weights need their gradients."""
SPENDS_ITS_CAP = 2.0
"""Aim of the inversion that no success rate reaches, so that it spends its whole cap. A lower aim would end at a
trigger that barely works and leave the rest of the backdoor in place."""


@dataclass(frozen=True)
class RepairedCopy:
    """What classifies purified images: a repaired copy of the suspect, or itself; ``remaining`` as of ``unlearn``."""

    classifier: Suspect
    tuned: bool
    remaining: list[dict[str, float]]


# --- behind a purifier --------------------------------------------------------------------------------


def repaired_copy(run: Run, findings: Findings, purifier: nn.Module) -> RepairedCopy:
    """The suspect with weights tuned behind the purifier.

    The suspect itself where only doubtful signs stand out, where it has no weights to tune, or where it would lose too
    much BA.

    On suspects whose verdict is "clean" a copy costs BA and unlearns nothing, not even of an all-to-all backdoor that
    the screening missed. The penalty is enough for the trigger of a doubtful sign.
    """
    suspect = run.suspect
    found = findings.leads or findings.lessons.examples
    if findings.verdict == "clean" or not found or "repair" not in run.profile.parts:
        return RepairedCopy(suspect, False, [])
    if not weight_names(run.inputs.tunable):
        run.progress.note(
            "warning: no floating-point weights to tune, so the suspect's own classify purified images"
        )
        return RepairedCopy(suspect, False, [])
    least = training_of(findings, run.profile.copy).least().total()
    if not run.budget.allows("the repaired copy behind the purifier", least * step_seconds(run)):
        return RepairedCopy(suspect, False, [])
    tuned, remaining = unlearn(run, findings, run.profile.copy, purifier)

    def behind(model: Suspect) -> Answer:
        return lambda x: model(run.compute.channels_last(purifier(x).float()))

    before, after = (right_on(behind(model), *run.images.held_out) for model in (suspect, tuned))
    check = ba_check(before, after, "unlearning")
    if not check.passed:
        run.progress.note(
            f"warning: unlearning would cost {check.value:.1%} of BA ({check.limit:.1%} allowed), so the suspect's own"
            " weights classify purified images"
        )
    return RepairedCopy(tuned if check.passed else suspect, check.passed, remaining)


@torch.no_grad()
def go_along(
    suspect: Suspect, tuned: Suspect, names: frozenset[str], lengths: dict[float, float], x: Tensor
) -> None:
    """Put every tuned tensor somewhere on the line from the suspect's (0) through its own (1).

    That is at the first of ``lengths`` with which the answers to unseen clean images diverge no further than it says.
    Wortsman et al. (CVPR 2022) go back on that line; going on beyond 1 is what Ilharco et al. (ICLR 2023) do to a model
    that is to forget a task.
    """
    given, tensors = weights(suspect, names), weights(tuned, names)
    ends = {name: tensor.clone() for name, tensor in tensors.items()}
    for length, most in lengths.items():
        for name, tensor in tensors.items():
            tensor.copy_(given[name].lerp(ends[name], length))
        if math.isinf(most) or divergence(suspect, tuned, x) <= most:
            return


@torch.no_grad()
def divergence(suspect: Answer, tuned: Answer, x: Tensor) -> float:
    """Mean KL( f_0(x) || f(x) ) of the tuned answers to images (N, C, H, W) from the suspect's, in nats."""
    total = 0.0
    for part in x.split(256):
        before, after = (model(part).float().log_softmax(1) for model in (suspect, tuned))
        total += float(F.kl_div(after, before, log_target=True, reduction="sum"))
    return total / len(x)


def training_of(findings: Findings, tuning: Tuning) -> Training:
    """How long ``unlearn`` tunes, where the budget has time for all of it."""
    between = inversions(findings.leads) * tuning.refresh_steps
    return Training(tuning.steps, tuning.rounds, between, before_first=True)


def step_seconds(run: Run) -> float:
    """What a step of it takes at most, by what one of the purifier's took."""
    return ALL_GRADIENTS * run.budget.step


# --- unlearning -------------------------------------------------------------------------------------------


def unlearn(
    run: Run, findings: Findings, tuning: Tuning, purifier: nn.Module | None = None
) -> tuple[Suspect, list[dict[str, float]]]:
    """A tuned copy of the suspect, and what each round's new inversion still achieved (success by family:target).

    With a ``purifier`` the copy is to stand behind it. Tuning is shorter where the budget does not allow all of it.
    """
    suspect, leads, compute = run.suspect, findings.leads, run.compute
    names = weight_names(run.inputs.tunable)
    tuned = copy.deepcopy(suspect)
    run.stages.watch(tuned.body)
    pool = findings.new_pool(run)
    if not leads:
        pool.add_round(findings.training_entries())
        tuning = replace(tuning, steps=tuning.steps // 2, rounds=1, lengths={1.0: math.inf})
    fitted = run.budget.fitted(
        "the tuning of the repaired weights" if purifier is None else "the tuning of the repaired copy",
        training_of(findings, tuning),
        step_seconds(run),
    )
    tuning = replace(tuning, steps=fitted.steps, rounds=fitted.rounds)
    margin = None
    if purifier is None and findings.targets:
        margin = torch.zeros(suspect.n_classes, device=compute.device)
        margin[list(findings.targets)] = TARGET_MARGIN
    tuner = Tuner(weights(tuned, names).values(), tuning.rate, tuning.steps)

    def purified(x: Tensor) -> Tensor:
        return x if purifier is None else compute.channels_last(purifier(x).float())

    def answer(x: Tensor) -> Tensor:
        logits: Tensor = tuned(purified(x))
        return logits

    def backward() -> None:
        """Add the gradient of a batch in which some images carry no trigger; the other answers are ``held_back``."""
        reference, bare = run.reference, tuning.clean_images
        chosen = reference.draw(BATCH)
        clean = reference.images(chosen)
        given = torch.cat([clean[:bare], pool.trigger(clean[bare:])])
        answers = reference.log_probabilities[chosen]
        if margin is not None:
            back = held_back(answers[bare:], reference.labels[chosen[bare:]], margin)
            answers = torch.cat([answers[:bare], back])
        for piece in compute.pieces(BATCH, given.shape):
            with compute.autocast():
                with torch.no_grad():
                    seen = purified(compute.channels_last(given[piece]))
                features = tuned.features(seen)
            logits = tuned.classify(features)
            same = F.kl_div(logits.log_softmax(1), answers[piece], log_target=True, reduction="batchmean")
            near = (features.float() - reference.features(chosen[piece])).pow(2).mean() / reference.scale
            ((ANSWERS * same + FEATURES * near) * (len(seen) / BATCH)).backward()
        if (drawn := findings.lessons.draw(compute.generator)) is not None:
            for piece in compute.pieces(EXAMPLES, drawn[0].shape):
                x, labels = (part[piece] for part in drawn)
                with compute.autocast():
                    with torch.no_grad():
                        seen = purified(compute.channels_last(x))
                    logits = tuned(seen)
                (ANSWERS * still(logits.float(), labels) * (len(x) / BATCH)).backward()

    remaining: list[dict[str, float]] = []
    total = tuning.steps + tuning.rounds * tuning.refresh_steps * inversions(leads)
    with run.progress.stage("unlearn", total) as advance:
        for r in range(tuning.rounds):
            if leads:
                refresh = Refresh(
                    profile=run.profile,
                    steps=tuning.refresh_steps,
                    seed=run.seed + r,
                    aim=SPENDS_ITS_CAP,
                    advance=advance,
                )
                entries, left = invert_again(answer, leads, run.images, refresh)
                pool.add_round(entries + findings.refined if r == 0 else entries)
                remaining.append(left)
            if r == tuning.rounds // 2:
                run.reference.readmit(answer)
            tuner.gradients(True)
            for _ in range(tuning.steps // tuning.rounds + (tuning.steps % tuning.rounds if r == 0 else 0)):
                tuner.clear()
                backward()
                tuner.step()
                advance(1)
            tuner.gradients(False)
    if not findings.untargeted:
        unseen = torch.as_tensor(run.images.calibration[0]).to(compute.device)
        go_along(suspect, tuned, names, tuning.lengths, unseen)
    return tuned, remaining


def held_back(log_probabilities: Tensor, labels: Tensor, held: Tensor) -> Tensor:
    """Log-probabilities (N, classes) with ``held`` (classes,) off the logits, unless one of ``labels`` (N,) is held."""
    others = (held[labels] == 0).unsqueeze(1)
    return (log_probabilities - held * others).log_softmax(1)
