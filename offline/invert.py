"""Step 2: trigger inversion. Every family screens every class; what is found is inverted again through P.

For a bank of n candidates with targets t (Neural Cleanse's objective, for any family T with parameters theta_i)

    min_theta  sum_i  E_{x: y != t_i} CE( f(P(T_i(x))), t_i )  +  lambda_i * cost(T_i)

where lambda_i rises while candidate i succeeds and falls while it does not, so that the cheapest trigger that
still works remains. P is the identity at first and the purifier in training later: what the attacker can still do
*through* the purifier is what the purifier has to learn next (METHOD: the paper's alternation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offline.compute import Compute
from offline.triggers.base import TriggerBank

Answer = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) in [0, 1] to logits (N, K)."""


@dataclass(frozen=True)
class Found:
    """A bank after inversion; ``success`` (n,) is measured on images that the inversion did not use."""

    bank: TriggerBank
    targets: Tensor
    success: Tensor
    cost: Tensor


def invert(
    answer: Answer,
    bank: TriggerBank,
    targets: Tensor,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    *,
    steps: int,
    per_candidate: int,
    aim: float = 0.9,
    cap: float | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Found:
    """Run the objective above for all candidates of ``bank`` at once.

    Args:
        answer: the suspect, or the suspect behind the purifier.
        targets: (n,) target label of each candidate.
        train, held_out: (images, labels); images of a candidate's own target are left out.
        steps, per_candidate: optimiser steps, and images a candidate sees in each.
        aim: success rate above which a candidate is pressed to become cheaper.
        cap: cost above which a candidate is pushed back; without it the inversion through a purifier ends in
            adversarial noise that is stronger than any trigger.
    """
    images, labels = train
    n = len(targets)
    which = torch.arange(n).repeat_interleave(per_candidate).to(images.device)
    wanted = targets.repeat_interleave(per_candidate)
    others = [(labels != t).nonzero().squeeze(1) for t in targets.tolist()]
    optimizer = torch.optim.Adam(bank.parameters(), lr=bank.learning_rate, betas=(0.5, 0.9))
    weight = torch.full((n,), 0.05, device=images.device)
    smooth = torch.zeros(n, device=images.device)
    for _ in range(steps):
        chosen = torch.cat([o[compute.randint(len(o), per_candidate)] for o in others])
        with compute.autocast():
            logits = answer(compute.lay(bank(images[chosen], which))).float()
        loss = F.cross_entropy(logits, wanted, reduction="none").view(n, -1).mean(1) + weight * bank.cost()
        if cap is not None:
            loss = loss + 10 * (bank.cost() / cap - 1).relu()
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimizer.step()
        hit = (logits.detach().argmax(1) == wanted).float().view(n, -1).mean(1)
        smooth = 0.8 * smooth + 0.2 * hit
        weight = torch.where(smooth > aim, weight * 1.15, weight / 1.15).clamp(1e-4, 1e3)
        advance()
    bank = bank.pick(torch.arange(n))
    return Found(bank, targets, success(answer, bank, targets, held_out, compute), bank.cost().detach())


@torch.no_grad()
def success(
    answer: Answer, bank: TriggerBank, targets: Tensor, held_out: tuple[Tensor, Tensor], compute: Compute
) -> Tensor:
    """(n,) share of at most 64 held-out images of other classes that each candidate sends to its target."""
    images, labels = held_out
    rates = []
    for i, target in enumerate(targets.tolist()):
        x = images[labels != target][:64]
        with compute.autocast():
            logits = answer(compute.lay(bank(x, torch.full((len(x),), i, device=x.device))))
        rates.append((logits.argmax(1) == target).float().mean())
    return torch.stack(rates)
