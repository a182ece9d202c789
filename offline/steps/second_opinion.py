"""A second opinion where nothing stood out: the suspect's weights, tuned on clean images with sharpness-aware steps.

A backdoor that no inversion finds still lies in a sharp place of the weights. Steps towards a flat one leave it without
knowing it (FT-SAM, Zhu et al., ICCV 2023). L is the cross-entropy with the labels, w the weights of two or more
dimensions (adaptive SAM, Kwon et al., ICML 2021):

    e = RHO w^2 g / |w g|,  g = dL/dw            w <- w - rate * dL/dw(w + e)

Alone such weights cost BA. So they are asked beside the suspect and answer flagged images alone
(``models/protected.py``). Statistics of normalisation layers stay as they are. Zhu et al. tune at one rate. Here the
first of ``RATES`` is taken with which most held-out images stay right, as networks without normalisation layers fall
apart at the others; gradients are clipped to the norm ``CLIP``.

Limitation: what a backdoor shares with the task survives, and on networks without normalisation little is unlearned.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from detrigger.models.suspect import Suspect
from detrigger.offline.graph.weights import weight_names, weights
from detrigger.offline.progress import Advance
from detrigger.offline.steps.accuracy import right_on
from detrigger.offline.steps.augment import mirrors, moved
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.tuning import add_cross_entropy

BATCH = 128
RHO, MOMENTUM, DECAY, CLIP = 2.0, 0.9, 5e-4, 2.0
RATES = (5e-2, 1e-2, 3e-3)
MOST_LOST = 0.1
"""Share of held-out images that the suspect is right on and the second opinion may be wrong on, net."""


def second_opinion(run: Run) -> Suspect | None:
    """The tuned copy; None where there are no weights to tune, or where no rate leaves enough of BA."""
    names, steps = weight_names(run.inputs.tunable), run.profile.opinion_steps
    needed = run.budget.pace.seconds(2 * steps * BATCH)
    if not names or not run.budget.allows("a second opinion", needed):
        return None
    x, y = run.images.held_out
    right = float(right_on(run.suspect, x, y).mean())
    mirrored = mirrors(run, right)
    for rate in RATES:
        tuned = copy.deepcopy(run.suspect)
        run.stages.watch(tuned.body)
        with run.progress.stage("second opinion", steps) as advance:
            whole = _tune(run, tuned, list(weights(tuned, names).values()), rate, mirrored, advance)
        if whole and right_on(tuned, x, y).mean() >= right - MOST_LOST:
            return tuned
    return None


def _tune(
    run: Run, tuned: Suspect, tensors: list[Tensor], rate: float, mirrored: bool, advance: Advance
) -> bool:
    """Tune ``tensors`` in place; whether the loss stayed finite to the end."""
    compute, (images, labels) = run.compute, run.images.train
    tensors = [tensor for tensor in tensors if tensor.ndim >= 2]
    steps = run.profile.opinion_steps
    optimizer = torch.optim.SGD(tensors, rate, MOMENTUM, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for tensor in tensors:
        tensor.requires_grad_(True)

    def gradient(x: Tensor, y: Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        return add_cross_entropy(tuned, x, y, compute)

    for _ in range(steps):
        chosen = compute.randint(len(images), BATCH)
        x, y = moved(run, images[chosen], mirrored), labels[chosen]
        gradient(x, y)
        with torch.no_grad():
            uphill = _uphill(tensors)
            torch._foreach_add_(tensors, uphill)
        loss = gradient(x, y)
        with torch.no_grad():
            torch._foreach_sub_(tensors, uphill)
        if not math.isfinite(loss):
            return False
        torch.nn.utils.clip_grad_norm_(tensors, CLIP)
        optimizer.step()
        schedule.step()
        advance(1)
    for tensor in tensors:
        tensor.requires_grad_(False)
    return True


def _uphill(tensors: list[Tensor]) -> list[Tensor]:
    """The step e of each tensor, from its gradient."""
    grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
    norm = torch.stack([(t * g).norm() for t, g in zip(tensors, grads, strict=True)]).norm()
    return [t.square() * g * (RHO / (norm + 1e-12)) for t, g in zip(tensors, grads, strict=True)]
