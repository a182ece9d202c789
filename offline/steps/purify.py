"""The purifier P, an inverse of the triggers (BTI-DBF (P), section 3.3).

Rounds of two halves, the paper's alternation: train P on the pool; invert again *through* P, for the classes that
stood out. What is found joins the pool. A step's loss, x clean, T a trigger of the pool or a synthetic one:

    CE( f(P(T(x))), y )  +  KL( f(P(x)) || f(x) )  +  |S_a(P(.)) - S_a(x)|^2 / E|S_a|^2
                         +  L1 |P(.) - x|  +  L2 |P(.) - x|^2                        (. is T(x) and x)

The official purifier sees few triggered images a batch, noise on every input, and labels on clean images. Here most
of the batch is triggered, and there is no noise, so the served graph is deterministic. Clean images keep the suspect's
own answers: with labels, P learns to correct the suspect on its training images and costs BA elsewhere. P starts as the
identity and needs no pretraining. New triggers are held near the cost of what the suspect itself gave away (``CAP``),
since without a bound the inversion through P ends in adversarial noise. Measured: docs/experiments.md, Purify.

Limitation: P removes what the pool taught it. What the strongest inversion through P still achieves is measured
and reported (``Purified.remaining``), and the gate reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrigger.models.networks import Purifier
from detrigger.offline.inputs.profile import Profile
from detrigger.offline.steps.budget import Training
from detrigger.offline.steps.find import Findings
from detrigger.offline.steps.invert import AIM
from detrigger.offline.steps.pool import Pool
from detrigger.offline.steps.reinvert import Refresh, inversions, invert_again
from detrigger.offline.steps.reviewed import still
from detrigger.offline.steps.run import Run

BATCH, TRIGGERED = 64, 38
"""Images in a step, and how many of them carry a trigger."""
LEARNING_RATE = 4e-3
L1, L2 = 10.0, 60.0
RESISTED = 0.1
"""Where an inversion through P reaches less it is not tried again, except that of the strongest evidence."""


@dataclass(frozen=True)
class Purified:
    """The trained purifier, in evaluation mode; ``remaining`` is the success of each round's inversion through it."""

    purifier: nn.Module
    remaining: list[dict[str, float]]


def purify(run: Run, findings: Findings) -> Purified:
    """Train P in rounds on the leads; on a suspect that looks clean, on the cheapest classes, in one round.

    A trigger without a single target is trained against for longer: the penalty that follows can hold little against
    every label.
    """
    if "purifier" not in run.profile.parts:
        return Purified(_fresh(run), [])
    pool = findings.new_pool(run)
    pool.add_round(findings.training_entries())
    run.reference.exclude_labels(findings.targets)
    profile = run.profile
    if not findings.leads:
        profile = replace(profile, purify_rounds=1)
    elif findings.untargeted:
        profile = replace(profile, purify_steps=profile.purify_steps * 3 // 2)
    purified = _train(run, findings, pool, _shortened(run, findings, pool, profile))
    if left_out := len(run.reference.excluded) // 2:  # each stands beside its mirror image
        run.progress.note(
            f"warning: about {left_out} clean images with a suspected label lose it when purified; they may carry"
            " the trigger and were not trained on"
        )
    return purified


def _shortened(run: Run, findings: Findings, pool: Pool, profile: Profile) -> Profile:
    """The profile with as much training as the budget has time for; BadInput where that is not worth anything."""
    with run.compute.aside():
        tried = _fresh(run).train().requires_grad_(True)
    run.budget.step = run.budget.timed(lambda: _backward(run, tried, pool), run.compute)
    between = inversions(findings.leads) * profile.refresh_steps
    training = Training(profile.purify_steps, profile.purify_rounds, between)
    run.budget.demand("training a purifier", run.budget.step * training.least().total())
    fitted = run.budget.fitted("the purifier's training", training, run.budget.step)
    return replace(profile, purify_steps=fitted.steps, purify_rounds=fitted.rounds)


def _fresh(run: Run) -> Purifier:
    """The identity, in evaluation mode."""
    c, h, w = run.images.train[0].shape[1:]
    return Purifier(c, (h, w)).to(run.compute.device).eval().requires_grad_(False)


def _train(run: Run, findings: Findings, pool: Pool, profile: Profile) -> Purified:
    leads, purifier = findings.leads, _fresh(run)
    steps, rounds = profile.purify_steps, profile.purify_rounds
    purifier.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(purifier.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15
    )

    def through(x: Tensor) -> Tensor:
        logits: Tensor = run.suspect(run.compute.channels_last(purifier(x).float()))
        return logits

    remaining: list[dict[str, float]] = []
    strongest = f"{leads[0].family}:{leads[0].target}" if leads else ""
    resisted: set[str] = set()
    refreshes = (rounds - 1) * inversions(leads) * profile.refresh_steps
    with run.progress.stage("purify", steps + refreshes) as advance:
        for r in range(rounds):
            if r > 0 and leads:
                purifier.eval().requires_grad_(False)  # nor do its weights need gradients
                refresh = Refresh(
                    profile=profile,
                    steps=profile.refresh_steps,
                    seed=run.seed + r,
                    aim=AIM,
                    advance=advance,
                    resisted=resisted,
                )
                entries, left = invert_again(through, leads, run.images, refresh)
                pool.add_round(entries)
                remaining.append(left)
                resisted |= {key for key, rate in left.items() if rate < RESISTED and key != strongest}
            if r == rounds // 2:
                purifier.eval()
                run.reference.readmit(through)
            purifier.train().requires_grad_(True)
            for _ in range(steps // rounds + (steps % rounds if r == 0 else 0)):
                optimizer.zero_grad(set_to_none=True)
                _backward(run, purifier, pool)
                _learn_examples(run, purifier, findings)
                optimizer.step()
                schedule.step()
                advance(1)
    purifier.eval().requires_grad_(False)
    return Purified(purifier, remaining)


def _backward(run: Run, purifier: Purifier, pool: Pool) -> None:
    """Add the gradient of a batch's loss, piece by piece: each has its share of clean and of triggered images."""
    reference, compute = run.reference, run.compute
    chosen = reference.draw(BATCH)
    clean, bare = reference.images(chosen), BATCH - TRIGGERED
    given = torch.cat([clean[:bare], pool.trigger(clean[bare:])])
    triggered = torch.arange(BATCH, device=given.device) >= bare
    for piece in compute.pieces(BATCH, given.shape):
        _loss(run, purifier, (given[piece], clean[piece]), chosen[piece], triggered[piece]).backward()


def _learn_examples(run: Run, purifier: Purifier, findings: Findings) -> None:
    """Add the gradient of reviewed images: purified they are to lose their label, and to change little."""
    drawn, compute = findings.lessons.draw(run.compute.generator), run.compute
    if drawn is None:
        return
    for piece in compute.pieces(len(drawn[0]), drawn[0].shape):
        x, labels = (part[piece] for part in drawn)
        with compute.autocast():
            purified = purifier(compute.channels_last(x))
            logits = run.suspect(compute.channels_last(purified.float()))
        difference = purified.float() - x
        kept = L1 * difference.abs().mean() + L2 * difference.pow(2).mean()
        share = len(x) / len(drawn[0])
        ((still(logits.float(), labels) + kept * len(drawn[0]) / BATCH) * share).backward()


def _loss(
    run: Run, purifier: Purifier, images: tuple[Tensor, Tensor], chosen: Tensor, triggered: Tensor
) -> Tensor:
    """The part of a batch's loss that some of its images (as given, clean) contribute."""
    suspect, reference, compute = run.suspect, run.reference, run.compute
    given, clean = images
    with compute.autocast():
        purified = purifier(compute.channels_last(given))
        features = suspect.features(compute.channels_last(purified.float()))
    logits = suspect.classify(features)
    right = F.cross_entropy(logits[triggered], reference.labels[chosen[triggered]], reduction="sum")
    unchanged = F.kl_div(
        logits[~triggered].log_softmax(1),
        reference.log_probabilities[chosen[~triggered]],
        log_target=True,
        reduction="sum",
    )
    near = (features.float() - reference.features(chosen)).pow(2).mean() / reference.scale
    difference = purified.float() - clean
    kept = L1 * difference.abs().mean() + L2 * difference.pow(2).mean()
    loss: Tensor = right / TRIGGERED + unchanged / (BATCH - TRIGGERED) + (near + kept) * (len(given) / BATCH)
    return loss
