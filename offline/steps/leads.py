"""What of a screening leads the inversions that follow, and the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from detrigger.offline.steps.verdict import (
    GAP_REINVERT,
    GAP_SECOND_LOOK,
    Evidence,
    FamilyScreen,
    evidence,
    suspected,
)
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.triggers.spot import SpotBank

BESIDE = 2.0
"""Cost of what is inverted beside a lone spot or patch, relative to that one's."""
MOST_LEADS = 3
"""Pieces of evidence that are inverted again in every round, strongest first."""


def choose_leads(screens: Sequence[FamilyScreen]) -> list[Evidence]:
    """What is inverted again and again: all signs for the suspected targets; without any, the weak or doubtful ones.

    Doubtful ones decide no verdict, but a backdoor that no family fits well shows no others. Spot and patch are both a
    mark at one place: the weaker one of a target comes after the other kinds. But where one of them stands alone it
    gets the other beside it where that costs as usual or less, sign or not. The cheapest patch that works may be
    scattered pixels of a part of the mark, and the cheapest spot one of many scattered pixels. Its cost counts as at
    most ``BESIDE`` times the sign's, which bounds what is inverted: a patch that leads to any class is not a trigger
    (docs/experiments.md, Screen).
    """
    targets = suspected(screens)
    pieces = [e for e in evidence(screens, GAP_REINVERT) if e.target in targets or not targets]
    pieces = pieces or evidence(screens, GAP_SECOND_LOOK)
    for one, other in ((PatchBank, SpotBank), (SpotBank, PatchBank)):
        if [piece.family for piece in pieces] == [one.family]:
            beside = evidence([s for s in screens if s.family is other], 0.0)
            most = BESIDE * pieces[0].cost
            pieces += [
                replace(piece, cost=min(piece.cost, most))
                for piece in beside
                if piece.target == pieces[0].target
            ]
            break
    kinds = [(PatchBank.family if e.family == SpotBank.family else e.family, e.target) for e in pieces]
    order = sorted(range(len(pieces)), key=lambda i: kinds[i] in kinds[:i])
    return [pieces[i] for i in order[:MOST_LEADS]]


def is_dear(piece: Evidence) -> bool:
    """Whether the trigger costs more than is counted (``BESIDE``): a cheaper one is looked for, or none is kept."""
    return float(piece.bank.cost()[0]) > 1.001 * piece.cost
