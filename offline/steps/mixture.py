"""Which kinds of synthetic triggers come more often: those that the suspect responds to, or that look like evidence."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.invert import ANY_OTHER
from detrigger.offline.triggers import synthetic
from detrigger.offline.triggers.base import Kind, TriggerBank
from detrigger.offline.types import Answer

PROBES = 320
"""Images that each kind of synthetic trigger is tried on."""
RESPONSE_WEIGHT = 10.0
"""A kind of synthetic trigger that sends every image to a suspected target is drawn this many times more often."""
RESEMBLANCE_WEIGHT = 1.0
"""The same for a kind that looks like evidence: a patch that is not the attacker's own seldom works, yet teaches."""


def synthetic_weights(responses: Sequence[float], families: Collection[type[TriggerBank]]) -> list[float]:
    """How often to draw each of ``synthetic.KINDS`` for a suspect with these ``responses`` and evidence families."""
    like = {kind for family in families for kind in family.resembling}
    return [
        usual * (1 + RESPONSE_WEIGHT * response + RESEMBLANCE_WEIGHT * (kind in like))
        for (kind, usual), response in zip(synthetic.KINDS.items(), responses, strict=True)
    ]


@torch.no_grad()
def responses(answer: Answer, targets: Collection[int], images: CleanImages) -> list[float]:
    """How the suspect responds to each of ``synthetic.KINDS``: 0 as to clean images, 1 with a target every time.

    Random triggers of the kind go on at most ``PROBES`` images of other classes. The response is the share that they
    send to one of ``targets``, above the share that goes there without; with several targets the largest. What to
    expect: docs/experiments.md, Purify.
    """
    x, labels = (part[:PROBES] for part in images.train)
    compute = images.compute

    def answers(kind: Kind | None) -> Tensor:
        # Kinds draw some of their parameters once a batch, so batches are small.
        parts = [part if kind is None else kind(part, compute.generator) for part in x.cpu().split(32)]
        with compute.autocast():
            return torch.cat([answer(compute.channels_last(part.to(x.device))).argmax(1) for part in parts])

    bare = answers(None)
    shares = []
    for kind in synthetic.KINDS:
        with_trigger = answers(kind)
        gains = [0.0]
        for target in targets:
            others = labels != target
            if target != ANY_OTHER and others.any():
                reached = (with_trigger == target).float() - (bare == target).float()
                gains.append(float(reached[others].mean()))
        shares.append(max(gains))
    return shares
