"""What hides in the suspect, by screening, by the paper's own inversion, and refined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from detrigger.models.manifest import Verdict
from detrigger.offline.inputs.profile import Profile
from detrigger.offline.steps.changes import Changes, images_to_screen, screen_changes, steps_to_screen
from detrigger.offline.steps.control import unreached
from detrigger.offline.steps.decouple import benign_mask, decoupled_generator, votes
from detrigger.offline.steps.few import TRIES, asked, gaps_of_changes, screen_few
from detrigger.offline.steps.invert import ANY_OTHER, Effort
from detrigger.offline.steps.leads import MOST_LEADS, choose_leads, is_dear
from detrigger.offline.steps.mixture import responses, synthetic_weights
from detrigger.offline.steps.pool import Entry, Pool
from detrigger.offline.steps.reinvert import CAP, CHANGE_STRENGTH, WORKS, refine, shared_restarts
from detrigger.offline.steps.reviewed import Lessons
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.screen import MOST_CLASSES, images_seen, screen, stretched
from detrigger.offline.steps.starts import steps_to_start
from detrigger.offline.steps.twin import TWINS, Twins, innocent_twins
from detrigger.offline.steps.verdict import (
    FEWEST_CLASSES,
    GAP_CERTAIN,
    Evidence,
    FamilyScreen,
    easily_led,
    verdict,
)
from detrigger.offline.triggers import UNIVERSAL, synthetic
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.triggers.change import ChangeBank

FORWARD = 1 / 3
"""Share of the time of an image with its gradient that it takes without."""


@dataclass(frozen=True)
class Findings:
    """What the inversion found, and what a defence is trained on beside it (``prepared``).

    That is the generator of Eq. 2 with its votes, and the ``responses`` to synthetic triggers. ``reason`` says why a
    search that found nothing shows nothing. ``easily_led`` are labels that are defended beside the ``targets``, and not
    accused.
    """

    screens: list[FamilyScreen]
    leads: list[Evidence]
    verdict: Verdict
    targets: tuple[int, ...]
    refined: list[Entry]
    generator: TriggerBank | None = None
    votes: Sequence[float] = ()
    mask_mean: float = 0.0
    responses: Sequence[float] = ()
    lessons: Lessons = field(default_factory=Lessons)
    reason: str = ""
    easily_led: tuple[int, ...] = ()

    @property
    def without_target(self) -> TriggerBank:
        """The generator, of findings that have one."""
        if self.generator is None:
            raise ValueError("no inversion without a target was run")
        return self.generator

    @property
    def untargeted(self) -> bool:
        """Whether one of the triggers has no single target (all-to-all)."""
        return any(piece.target == ANY_OTHER for piece in self.leads)

    def training_entries(self) -> list[Entry]:
        """All that was found, to train on."""
        cheapest = (s.result.bank.pick(s.cheapest(3)) for s in self.screens)
        background = [bank for bank in (*cheapest, self.generator) if bank is not None and len(bank)]
        return [*(Entry(bank, background=bool(self.leads)) for bank in background), *self.refined]

    def new_pool(self, run: Run) -> Pool:
        """An empty pool that draws the synthetic triggers which fit what was found."""
        families = {type(piece.bank) for piece in self.leads}
        mixed = "weights of kinds" in run.profile.parts
        weights = synthetic_weights(self.responses, families) if mixed else None
        return Pool(run.compute, weights, run.profile.parts)


def find_triggers(run: Run) -> Findings:
    """Screen every class with every family, and refine what stands out.

    Where the budget left something out and no class stands out beyond doubt, the verdict is "inconclusive".
    """
    suspect, images, profile, budget = run.suspect, run.images, run.profile, run.budget
    steps = stretched(profile.screen_steps, suspect.n_classes)
    shape = image_shape(images.train[0])
    by_change = ChangeBank.family not in profile.unscreened
    families = [family for family in UNIVERSAL if family.family not in profile.unscreened]
    few = suspect.n_classes < FEWEST_CLASSES
    candidates = suspect.n_classes * (TRIES if few else 1)
    effort = Effort(steps=steps, images_each=profile.images_per_class, seed=run.seed)
    refining = MOST_LEADS * profile.screen_steps * shared_restarts(profile, MOST_LEADS) * profile.images_each
    least = images_seen(families[0], min(candidates, MOST_CLASSES), images, effort)
    with budget.keeping(budget.pace.seconds(least)):
        changes = _changed(run)
    with budget.keeping(budget.pace.seconds((1 + TWINS) * least)):
        twins = innocent_twins(run) if few else Twins([])
    networks = [suspect, *twins.networks]
    total = sum(
        len(asked(networks, family)) * (steps + steps_to_start(family, candidates, shape))
        for family in families
    )
    with (
        run.progress.stage("screen", total) as advance,
        budget.keeping(budget.pace.seconds(refining)),
    ):
        effort = replace(effort, advance=lambda: advance(1))
        if few:
            screens = screen_few(networks, suspect.n_classes, images, effort, families, budget)
        else:
            plain = [t for t, gap in changes.screen.by_target() if gap >= GAP_CERTAIN] if changes else []
            known = plain if by_change else ()
            screens = screen(suspect, suspect.n_classes, images, effort, families, known, budget)
    if changes and by_change:
        seen = changes.screen
        screens.append(replace(seen, gap=gaps_of_changes(seen.result.success)) if few else seen)
    said, targets = verdict(screens, len(images.train[0]))
    reason = ""
    if budget.left_out and said != "backdoored":
        reason = f"{budget.in_words()}; give it more minutes"
    elif said == "clean":
        reason = twins.problem or unreached(suspect, screens, images, effort)
    said, targets = run.inputs.logic.said("inconclusive" if reason else said, targets)
    leads = choose_leads(screens)
    refined: list[Entry] = []
    with run.progress.stage("invert", len(leads) * profile.screen_steps) as advance:
        restarts = shared_restarts(profile, len(leads))
        effort = Effort(
            steps=profile.screen_steps,
            images_each=profile.images_each,
            seed=run.seed + 1,
            advance=lambda: advance(1),
        )
        kept: list[Evidence] = []
        for piece in leads:
            bank = piece.bank
            if not bank.learned and changes:
                bank = changes.leading_to(piece.target)
                lead = replace(piece, bank=bank)
                advance(profile.screen_steps)
            elif not budget.allows(
                f"refining the {piece.family} to {piece.target}",
                budget.pace.seconds(profile.screen_steps * restarts * profile.images_each),
            ):
                if is_dear(piece):
                    continue
                lead = piece
            elif "refinement" in profile.parts:
                cap = CAP * piece.cost if is_dear(piece) else None
                lead, bank = refine(suspect, piece, restarts, images, replace(effort, cap=cap))
                if cap is not None and lead.success < WORKS:
                    continue
            else:
                lead = piece
            kept.append(lead)
            refined.append(_entry(bank, lead, profile))
        leads = kept
    findings = Findings(
        screens=screens,
        leads=leads,
        refined=refined,
        verdict=said,
        targets=targets,
        reason=reason,
        easily_led=easily_led(screens) if said == "backdoored" else (),
    )
    _say(findings, run)
    return findings


def _changed(run: Run) -> Changes | None:
    """What ordinary changes do; None where the budget does not allow that."""
    if not run.budget.allows(
        "ordinary changes (family change)", run.budget.pace.seconds(FORWARD * images_to_screen())
    ):
        return None
    with run.progress.stage("changes", steps_to_screen()) as advance:
        return screen_changes(run.suspect, run.suspect.n_classes, run.images, run.seed, lambda: advance(1))


def inverted_without_target(run: Run, findings: Findings) -> Findings:
    """The findings with the paper's own inversion (Eq. 1, Eq. 2), which knows no target label."""
    suspect, images, steps = run.suspect, run.images, run.profile.generator_steps
    features = run.reference.features(torch.arange(len(images.train[0])))
    with run.progress.stage("decouple", 100 + steps) as advance:
        effort = Effort(steps=100, images_each=128, seed=run.seed, advance=lambda: advance(1))
        mask = benign_mask(suspect, features, images, effort)
        effort = replace(effort, steps=steps, images_each=32)
        generator = decoupled_generator(suspect, mask, features, images, effort)
    return replace(
        findings,
        generator=generator,
        votes=votes(suspect, generator, images).tolist(),
        mask_mean=float(mask.mean()),
    )


def prepared(run: Run, findings: Findings) -> Findings:
    """The findings with what a defence is trained on beside the triggers; a search alone needs none of it."""
    targets = {piece.target for piece in findings.leads}
    shares = responses(run.suspect, targets, run.images)
    return replace(inverted_without_target(run, findings), responses=shares)


def taught(run: Run, findings: Findings, lessons: Lessons) -> Findings:
    """The findings with what reviewed images taught: confirmed triggers lead, and their labels are suspected.

    A confirmed trigger makes the verdict "backdoored". Where only the images themselves are known, the search's verdict
    stands, but it is not "clean" any more.
    """
    if not lessons.targets:
        return replace(findings, lessons=lessons)
    said: Verdict = "inconclusive" if findings.verdict == "clean" else findings.verdict
    leads = [*lessons.taken, *findings.leads]
    suspects = {piece.target for piece in leads} | set(lessons.targets)
    return replace(
        findings,
        leads=leads,
        verdict="backdoored" if lessons.taken else said,
        targets=findings.targets if findings.untargeted else _joined(lessons.targets, findings.targets),
        refined=[*lessons.entries, *findings.refined],
        responses=responses(run.suspect, suspects, run.images),
        lessons=lessons,
    )


def _joined(first: Sequence[int], then: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys([*first, *then]))


def _entry(bank: TriggerBank, piece: Evidence, profile: Profile) -> Entry:
    """What was refined of a lead, to train on; as cheap as it works, where an attacker's is not."""
    strongest = max(1.0, min(profile.max_strength, bank.max_training_cost / max(piece.cost, 1e-6)))
    if not bank.learned:
        strongest = CHANGE_STRENGTH
    return Entry(bank, piece.works_anywhere, strongest=strongest)


def _say(findings: Findings, run: Run) -> None:
    """Tell what the inversion found, in words."""
    classes = run.inputs.preprocess.classes
    names = ", ".join(f"{t} ({classes[t]})" for t in findings.targets)
    none = "no single one" if findings.verdict == "backdoored" else "none"
    run.progress.note(f"verdict: {findings.verdict}; suspected target labels: {names or none}")
    if findings.reason:
        run.progress.note(f"warning: {findings.reason}")
    for label in findings.easily_led:
        run.progress.note(f"  {name_of(label, classes)} is easily led to as well: defended, not suspected")
    for piece in findings.leads:
        run.progress.note(
            f"  {piece.family} to {name_of(piece.target, classes)}: gap {piece.gap:.1f} bits, cost {piece.cost:.3f},"
            f" works on {piece.success:.0%} of held-out images"
        )


def screen_figures(screens: Sequence[FamilyScreen]) -> dict[str, dict[str, list[Any]]]:
    """What every family's candidates reached: their target labels (-1: any other), gap, cost and success."""
    return {
        s.family.family: {
            "target": s.result.targets.tolist(),
            "gap": s.gap.tolist(),
            "cost": s.result.cost.tolist(),
            "success": s.result.success.tolist(),
        }
        for s in screens
    }


def responses_by_kind(findings: Findings) -> dict[str, float]:
    """How far each kind of synthetic trigger alone leads to the suspected targets."""
    return {kind.__name__: share for kind, share in zip(synthetic.KINDS, findings.responses, strict=True)}


def name_of(target: int, classes: Sequence[str]) -> str:
    """The class that a trigger leads to, in words."""
    return classes[target] if target >= 0 else "any other class"
