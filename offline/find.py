"""Steps 2 and 3 of every job: what hides in the suspect, by screening, by the paper's own inversion, and refined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from detrigger.models.manifest import Verdict
from detrigger.offline import screen as screening
from detrigger.offline.compute import Compute
from detrigger.offline.decouple import benign_mask, decoupled_generator, votes
from detrigger.offline.inputs import Given, Profile, Split
from detrigger.offline.invert import ANY
from detrigger.offline.pool import Entry, responses, weights_of_kinds
from detrigger.offline.progress import Progress
from detrigger.offline.purify import Teacher
from detrigger.offline.screen import Evidence, Screened
from detrigger.offline.triggers import UNIVERSAL, synthetic
from detrigger.offline.triggers.base import TriggerBank
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.triggers.spot import SpotBank

MOST_MARKED = 3
"""Pieces of evidence that are inverted again in every round, strongest first."""
STRONGER = 2.5
"""An attacker's blend, warp, sine, tone or kernel may be this many times as strong as the cheapest that works."""


@dataclass(frozen=True)
class Inverted:
    """What the inversion found, the generator of Eq. 2 with its votes, and the ``responses`` to synthetic triggers."""

    screened: list[Screened]
    marked: list[Evidence]
    verdict: Verdict
    targets: tuple[int, ...]
    generator: TriggerBank
    refined: list[TriggerBank]
    votes: list[float]
    mask_mean: float
    responses: list[float]

    @property
    def untargeted(self) -> bool:
        """Whether one of the triggers has no single target (all-to-all)."""
        return any(piece.target == ANY for piece in self.marked)

    def known(self) -> list[Entry]:
        """All that was found, to train on."""
        cheapest = (s.found.bank.pick(s.cheapest(3)) for s in self.screened)
        background = [*(bank for bank in cheapest if len(bank)), self.generator]
        return [*(Entry(bank, background=bool(self.marked)) for bank in background), *self.evidence()]

    def kinds(self) -> list[float]:
        """How often each kind of synthetic trigger is to be drawn."""
        return weights_of_kinds(self.responses, {piece.family for piece in self.marked})

    def evidence(self) -> list[Entry]:
        """What was refined of the marked pieces, to train on; as cheap as they work, where an attacker's are not."""
        return [
            Entry(bank, piece.roams, strongest=max(1.0, min(STRONGER, bank.most / piece.cost)))
            for bank, piece in zip(self.refined, self.marked, strict=True)
        ]


def find_triggers(
    given: Given,
    teacher: Teacher,
    split: Split,
    profile: Profile,
    seed: int,
    compute: Compute,
    progress: Progress,
) -> Inverted:
    """Screen every class with every family, and invert once the paper's way, without a target."""
    suspect = given.suspect
    steps = screening.stretched(profile.screen_steps, suspect.n_classes)
    with progress.stage("screen", steps * len(UNIVERSAL)) as advance:
        screened = screening.screen(
            suspect, suspect.n_classes, split.train, split.held_out, compute,
            steps=steps, per_class=profile.per_class, seed=seed, advance=lambda: advance(1),
        )  # fmt: skip
    verdict, targets = screening.verdict(screened, suspect.n_classes, len(split.train[0]))
    images, labels = split.train
    features = teacher.features(torch.arange(len(images)))
    with progress.stage("decouple", 100) as advance:
        mask = benign_mask(suspect, features, labels, compute, steps=100, advance=lambda: advance(1))
    pieces = marked(screened)
    refined: list[TriggerBank] = []
    with progress.stage("invert", profile.generator_steps + len(pieces) * profile.screen_steps) as advance:
        generator = decoupled_generator(
            suspect, mask, images, features, compute,
            steps=profile.generator_steps, seed=seed, advance=lambda: advance(1),
        )  # fmt: skip
        for i, piece in enumerate(pieces):
            pieces[i], bank = screening.refine(
                suspect, piece, split.train, split.held_out, compute,
                restarts=screening.shared_restarts(len(pieces)), steps=profile.screen_steps, seed=seed + 1,
                advance=lambda: advance(1),
            )  # fmt: skip
            refined.append(bank)
    found = Inverted(
        screened=screened,
        marked=pieces,
        refined=refined,
        verdict=verdict,
        targets=targets,
        generator=generator,
        votes=votes(suspect, generator, *split.held_out, compute).tolist(),
        mask_mean=float(mask.mean()),
        responses=responses(suspect, {piece.target for piece in pieces}, split.train, compute),
    )
    _say(found, given.preprocess.classes, progress)
    return found


def marked(screened: list[Screened]) -> list[Evidence]:
    """What is inverted again and again: all signs for the suspected targets; without any, the weak or doubtful ones.

    Doubtful ones decide no verdict, but a backdoor that no family fits well shows no others. Spot and patch are both a
    mark at one place: the weaker one of a target comes after the other kinds. But a lone patch has the spot beside it
    that is no dearer than usual, sign or not: the cheapest patch that works may be scattered pixels of a part of the
    mark (a half transparent watermark: ASR 27.9, 0.2 and 0.0% on three seeds; with the spot 0.0% on each).
    """
    targets = screening.suspected(screened)
    pieces = [e for e in screening.evidence(screened, screening.WEAK) if e.target in targets or not targets]
    pieces = pieces or screening.evidence(screened, screening.DOUBTFUL)
    if [piece.family for piece in pieces] == [PatchBank.family]:
        spots = screening.evidence([s for s in screened if s.family is SpotBank], 0.0)
        pieces += [spot for spot in spots if spot.target == pieces[0].target]
    kinds = [(PatchBank.family if e.family == SpotBank.family else e.family, e.target) for e in pieces]
    order = sorted(range(len(pieces)), key=lambda i: kinds[i] in kinds[:i])
    return [pieces[i] for i in order[:MOST_MARKED]]


def _say(found: Inverted, classes: tuple[str, ...], progress: Progress) -> None:
    """Tell what the inversion found, in words."""
    names = ", ".join(f"{t} ({classes[t]})" for t in found.targets)
    none = "no single one" if found.verdict == "backdoored" else "none"
    progress.note(f"verdict: {found.verdict}; suspected target labels: {names or none}")
    for piece in found.marked:
        progress.note(
            f"  {piece.family} to {name_of(piece.target, classes)}: gap {piece.gap:.1f} bits, cost {piece.cost:.3f},"
            f" works on {piece.success:.0%} of held-out images"
        )


def screen_figures(found: Inverted) -> dict[str, dict[str, list[Any]]]:
    """What every family's candidates reached: their target labels (-1: any other), gap, cost and success."""
    return {
        s.family.family: {
            "target": s.found.targets.tolist(),
            "gap": s.gap.tolist(),
            "cost": s.found.cost.tolist(),
            "success": s.found.success.tolist(),
        }
        for s in found.screened
    }


def responses_by_kind(found: Inverted) -> dict[str, float]:
    """How far each kind of synthetic trigger alone leads to the suspected targets."""
    return {kind.__name__: share for kind, share in zip(synthetic.KINDS, found.responses, strict=True)}


def name_of(target: int, classes: Sequence[str]) -> str:
    """The class that a trigger leads to, in words."""
    return classes[target] if target >= 0 else "any other class"
