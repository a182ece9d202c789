"""Steps 2 and 3: trigger inversion. Every family screens every class; what is found is inverted again through P.

For a bank of n candidates with targets t (Neural Cleanse's objective, for any family T with parameters theta_i)

    min_theta  sum_i  E_{x: y != t_i} CE( f(P(T_i(x))), t_i )  +  lambda_i * cost(T_i)

where lambda_i rises while candidate i succeeds and falls while it does not, so that the cheapest trigger that
still works remains. The target ``ANY_OTHER`` asks for any label but the true one, with -log(1 - p_y) in place of
the cross-entropy: the one trigger of an all-to-all backdoor sends every class elsewhere. P is the
identity at first and the purifier in training later: what the attacker can still do *through* the purifier is what the
purifier has to learn next (the paper's alternation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.triggers.base import Jitter, TriggerBank
from detrigger.offline.types import Answer

ANY_OTHER = -1
"""In place of a target label: any label but the image's own."""
FIRST_WEIGHT, PRESSURE = 0.5, 1.3
"""lambda at the first step, and by how much a step changes it."""
LEAST_WEIGHT = 0.05
"""lambda falls no further: that little hinders no search, and the way back would take as many steps as the way down
(docs/experiments.md, Screen)."""
GENTLY = (0.05, 1.15)
"""The same where a cap bounds the cost."""
AIM = 0.9
"""Success rate above which a candidate is pressed to become cheaper."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard an inversion tries.

    ``steps`` of the optimiser, with ``images_each`` images a candidate in each. ``aim``: success rate above which a
    candidate is pressed to become cheaper. ``cap``: cost above which a candidate is pushed back; without it an
    inversion through a purifier ends in adversarial noise that is stronger than any trigger. ``at_once``: what works is
    pressed without delay, which takes fewer steps and a few images in each. ``advance`` is called once a step.
    """

    steps: int
    images_each: int
    seed: int = 0
    aim: float = AIM
    cap: float | None = None
    at_once: bool = False
    advance: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class InversionResult:
    """A bank after inversion; ``success`` (n,) is measured on images that the inversion did not use."""

    bank: TriggerBank
    targets: Tensor
    success: Tensor
    cost: Tensor


class Inversion:
    """The objective above for all candidates of ``bank`` at once; ``run`` it for some steps, and again for more.

    Kept of each candidate is the cheapest state in which it succeeded (as Neural Cleanse does): the last one is
    wherever the changing lambda happened to leave it. One that never succeeds is kept as it ends. With a cap the
    search is for what works within it, not for the cheapest. Lambda moves gently then, and every candidate is kept as
    it ends. A purifier that meets triggers which barely work lets the stronger real one pass.
    """

    def __init__(
        self, answer: Answer, bank: TriggerBank, targets: Tensor, images: CleanImages, effort: Effort
    ) -> None:
        """Nothing runs yet.

        Args:
            answer: the suspect, or the suspect behind the purifier.
            targets: (n,) target label of each candidate, or ``ANY_OTHER``.
            images: those of a candidate's own target are left out.
        """
        self._answer, self._bank, self._images, self._effort = answer, bank, images, effort
        self._targets, n = targets, len(targets)
        self._others = images_of_others(targets, images.train[1])
        self._optimizer = torch.optim.Adam(bank.parameters(), lr=bank.learning_rate, betas=(0.5, 0.9))
        first, self._pressure = (FIRST_WEIGHT, PRESSURE) if effort.cap is None else GENTLY
        self._least = LEAST_WEIGHT if effort.at_once else 1e-4
        self._weight = torch.full((n,), first, device=targets.device)
        self._smooth, self._steps = torch.zeros(n, device=targets.device), 0
        self._lowest = torch.full((n,), torch.inf, device=targets.device)
        self._kept = bank.pick(torch.arange(n))

    def run(self, steps: int) -> InversionResult:
        """What is kept after so many steps more."""
        for _ in range(steps):
            self.step()
            self._effort.advance()
        kept = self._kept if self._effort.cap is None else self._bank.pick(torch.arange(len(self._targets)))
        rates = success_rates(self._answer, kept, self._targets, self._images)
        return InversionResult(kept, self._targets, rates, kept.cost().detach())

    def step(self) -> None:
        """One step of the optimiser for all candidates, and of their lambdas."""
        bank, aim, cap, n = self._bank, self._effort.aim, self._effort.cap, len(self._targets)
        chosen = draw(self._others, self._effort.images_each, self._images.compute)
        self._optimizer.zero_grad(set_to_none=True)
        _, hits = add_gradient(self._answer, bank, self._targets, chosen, self._images)
        price = self._weight * bank.cost()
        if cap is not None:
            price = price + 10 * (bank.cost() / cap - 1).relu()
        if price.requires_grad:
            price.sum().backward()
        tried = bank.pick(torch.arange(n)) if cap is None else None
        price = bank.cost().detach()
        self._optimizer.step()
        hit = hits.mean(1)
        self._steps += 1
        # At first it is the mean of all steps: a start that works is pressed from the beginning.
        share = max(0.2, 1 / self._steps) if self._effort.at_once else 0.2
        self._smooth = (1 - share) * self._smooth + share * hit
        if tried is not None:
            good = (self._smooth >= aim) & (hit >= aim)
            better = good & (price < self._lowest) | (self._lowest == torch.inf)
            self._lowest = torch.where(good & better, price, self._lowest)
            for best, now in zip(self._kept.parameters(), tried.parameters(), strict=True):
                best[better] = now[better]
        change = torch.where(self._smooth > aim, self._pressure, 1 / self._pressure)
        self._weight = (self._weight * change).clamp(self._least, 1e3)


def invert(
    answer: Answer, bank: TriggerBank, targets: Tensor, images: CleanImages, effort: Effort
) -> InversionResult:
    """Run an ``Inversion`` to its end."""
    return Inversion(answer, bank, targets, images, effort).run(effort.steps)


def images_of_others(targets: Tensor, labels: Tensor) -> list[Tensor]:
    """For each target the images of other classes; for ``ANY_OTHER`` these are all."""
    return [(labels != t).nonzero().squeeze(1) for t in targets.tolist()]


def draw(others: list[Tensor], n: int, compute: Compute) -> Tensor:
    """(len(others), n) images, drawn for each candidate from its own."""
    return torch.stack([own[compute.randint(len(own), n)] for own in others])


def add_gradient(
    answer: Answer, bank: TriggerBank, wanted: Tensor, chosen: Tensor, images: CleanImages
) -> tuple[Tensor, Tensor]:
    """(n, k) loss and success (0 or 1) of each candidate, ``wanted`` (n,), on the images ``chosen`` (n, k).

    The gradient of every candidate's mean loss is added to the bank's.
    """
    n, k = chosen.shape
    places = chosen.flatten()
    which = torch.arange(n, device=places.device).repeat_interleave(k)
    aims = wanted.repeat_interleave(k)
    losses, hits = places.new_zeros(n * k, dtype=torch.float), places.new_zeros(n * k, dtype=torch.float)
    for piece in images.compute.pieces(n * k, images.train[0].shape):
        x, labels = (part[places[piece]] for part in images.train)
        with images.compute.autocast():
            logits = answer(images.compute.channels_last(bank(x, which[piece]))).float()
        loss = missing(logits, aims[piece], labels)
        (loss.sum() / k).backward()
        losses[piece] = loss.detach()
        hits[piece] = reached(logits.detach(), aims[piece], labels).float()
    return losses.view(n, k), hits.view(n, k)


def missing(logits: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """(N,) loss of answers (N, K) that should be ``wanted``, or for ``ANY_OTHER`` anything but ``labels``."""
    aimed = F.cross_entropy(logits, wanted.clamp_min(0), reduction="none")
    away = logits.logsumexp(1) - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return torch.where(wanted == ANY_OTHER, away, aimed)


def reached(logits: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """(N,) whether the answers are what ``missing`` asks for."""
    answers = logits.argmax(1)
    return torch.where(wanted == ANY_OTHER, answers != labels, answers == wanted)


@torch.no_grad()
def success_rates(
    answer: Answer, bank: TriggerBank, targets: Tensor, images: CleanImages, *, anywhere: bool = False
) -> Tensor:
    """(n,) share of at most 64 held-out images of other classes that each candidate sends to its target.

    ``anywhere`` puts each copy at a random place instead of where it was found.
    """
    held_out, labels = images.held_out
    compute, rates = images.compute, []
    for i, target in enumerate(targets):
        others = (labels != target).nonzero().squeeze(1)[:64]
        x = held_out[others]
        moved = Jitter.anywhere(len(x), (x.shape[2], x.shape[3]), compute.generator) if anywhere else None
        with compute.autocast():
            triggered = bank(x, torch.full((len(x),), i, device=x.device), moved)
            logits = answer(compute.channels_last(triggered))
        rates.append(reached(logits, target, labels[others]).float().mean())
    return torch.stack(rates)
