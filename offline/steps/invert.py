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
from detrigger.offline.triggers.base import Jitter, TriggerBank, image_shape
from detrigger.offline.types import Answer

ANY_OTHER = -1
"""In place of a target label: any label but the image's own."""
FIRST_WEIGHT, PRESSURE = 0.5, 1.3
"""lambda at the first step, and by how much a step changes it."""
GENTLY = (0.05, 1.15)
"""The same where a cap bounds the cost."""
AIM = 0.9
"""Success rate above which a candidate is pressed to become cheaper."""
PROBES = 16
"""Images that each possible start is tried on."""
EXPLORED_STEPS, EXPLORED_AT_ONCE = 15, 128
"""Steps that each possible start may learn for, one image in each, and how many images share a step."""
EXPLORED_FOR_ANY = 4
"""The images in each of these steps where the target is ``ANY_OTHER``."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard an inversion tries.

    ``steps`` of the optimiser, with ``images_each`` images a candidate in each. ``aim``: success rate above which a
    candidate is pressed to become cheaper. ``cap``: cost above which a candidate is pushed back; without it an
    inversion through a purifier ends in adversarial noise that is stronger than any trigger. ``advance`` is called
    once a step.
    """

    steps: int
    images_each: int
    seed: int = 0
    aim: float = AIM
    cap: float | None = None
    advance: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class InversionResult:
    """A bank after inversion; ``success`` (n,) is measured on images that the inversion did not use."""

    bank: TriggerBank
    targets: Tensor
    success: Tensor
    cost: Tensor


def invert(
    answer: Answer, bank: TriggerBank, targets: Tensor, images: CleanImages, effort: Effort
) -> InversionResult:
    """Run the objective above for all candidates of ``bank`` at once.

    Kept of each candidate is the cheapest state in which it succeeded (as Neural Cleanse does): the last one is
    wherever the changing lambda happened to leave it. One that never succeeds is kept as it ends. With a cap the
    search is for what works within it, not for the cheapest. Lambda moves gently then, and every candidate is kept as
    it ends. A purifier that meets triggers which barely work lets the stronger real one pass.

    Args:
        answer: the suspect, or the suspect behind the purifier.
        targets: (n,) target label of each candidate, or ``ANY_OTHER``.
        images: those of a candidate's own target are left out.
    """
    train, compute, aim, cap = images.train, images.compute, effort.aim, effort.cap
    n = len(targets)
    others = _others(targets, train[1])
    optimizer = torch.optim.Adam(bank.parameters(), lr=bank.learning_rate, betas=(0.5, 0.9))
    first, pressure = (FIRST_WEIGHT, PRESSURE) if cap is None else GENTLY
    weight = torch.full((n,), first, device=targets.device)
    smooth = torch.zeros(n, device=targets.device)
    kept = bank.pick(torch.arange(n))
    lowest = torch.full((n,), torch.inf, device=targets.device)
    for _ in range(effort.steps):
        chosen = _draw(others, effort.images_each, compute)
        optimizer.zero_grad(set_to_none=True)
        _, hits = _backward(answer, bank, targets, chosen, images)
        price = weight * bank.cost()
        if cap is not None:
            price = price + 10 * (bank.cost() / cap - 1).relu()
        if price.requires_grad:
            price.sum().backward()
        tried = bank.pick(torch.arange(n)) if cap is None else None
        price = bank.cost().detach()
        optimizer.step()
        hit = hits.mean(1)
        smooth = 0.8 * smooth + 0.2 * hit
        if tried is not None:
            good = (smooth >= aim) & (hit >= aim)
            better = good & (price < lowest) | (lowest == torch.inf)
            lowest = torch.where(good & better, price, lowest)
            for best, now in zip(kept.parameters(), tried.parameters(), strict=True):
                best[better] = now[better]
        weight = torch.where(smooth > aim, weight * pressure, weight / pressure).clamp(1e-4, 1e3)
        effort.advance()
    if cap is not None:
        kept = bank.pick(torch.arange(n))
    rates = success_rates(answer, kept, targets, images)
    return InversionResult(kept, targets, rates, kept.cost().detach())


def start(
    answer: Answer, family: type[TriggerBank], targets: Tensor, images: CleanImages, effort: Effort
) -> TriggerBank:
    """A bank to invert, a candidate for each of ``targets`` (n,): the best of the family's own starts, or fresh.

    ``effort.advance`` is called ``steps_to_start`` times.
    """
    train, compute = images.train, images.compute
    shape = image_shape(train[0])
    known = family.candidates(shape)
    if known is None:
        return family.start(len(targets), shape, effort.seed).to(train[0].device)
    known = known.to(train[0].device)
    if family.tries_all_starts:
        return _explore(answer, known, targets, images, effort)
    chosen = compute.randint(len(train[0]), PROBES)
    x, labels = (part[chosen] for part in train)
    rates = []
    for i in range(len(known)):
        with torch.no_grad(), compute.autocast():
            logits = answer(compute.channels_last(known(x, torch.full((PROBES,), i, device=x.device))))
        hit = torch.stack([reached(logits, t, labels) & (labels != t) for t in targets])
        rates.append(hit.float().mean(1))
    best = torch.stack(rates).argmax(0)
    bank = known.pick(best)
    return bank.requires_grad_(True)


def steps_to_start(family: type[TriggerBank], targets: int, shape: tuple[int, int, int]) -> int:
    """Steps that ``start`` takes for so many target labels and ``ANY_OTHER``."""
    known = family.candidates(shape) if family.tries_all_starts else None
    if known is None:
        return 0
    together = _explored_together(known)
    return EXPLORED_STEPS * (-(-targets // together[0]) + 1)


def _explored_together(known: TriggerBank) -> tuple[int, int]:
    """Targets that are explored in one batch: labels, and ``ANY_OTHER``."""
    starts = len(known)
    return max(1, EXPLORED_AT_ONCE // starts), max(1, EXPLORED_AT_ONCE // (EXPLORED_FOR_ANY * starts))


def _explore(
    answer: Answer, known: TriggerBank, targets: Tensor, images: CleanImages, effort: Effort
) -> TriggerBank:
    """For each of ``targets`` (n,) the start of ``known`` whose loss is lowest after a few steps, as it is then.

    All starts see the same images, or luck with them would decide. Those towards ``ANY_OTHER`` see more, because
    whatever covers the object loses some labels.
    """
    best_starts = known.pick(torch.zeros(len(targets), dtype=torch.long))
    kinds = ((targets != ANY_OTHER, 1), (targets == ANY_OTHER, EXPLORED_FOR_ANY))
    for (asked, per_start), at_once in zip(kinds, _explored_together(known), strict=True):
        indices = asked.nonzero().squeeze(1)
        for first in range(0, len(indices), at_once):
            part = indices[first : first + at_once]
            wanted = targets[part].repeat_interleave(len(known))
            bank = known.pick(torch.arange(len(wanted)) % len(known)).requires_grad_(True)
            others = _others(targets[part], images.train[1])
            optimizer = torch.optim.Adam(bank.parameters(), lr=bank.learning_rate, betas=(0.5, 0.9))
            smooth = torch.zeros(len(wanted), device=wanted.device)
            for _ in range(EXPLORED_STEPS):
                chosen = _draw(others, per_start, images.compute).repeat_interleave(len(known), 0)
                optimizer.zero_grad(set_to_none=True)
                losses, _ = _backward(answer, bank, wanted, chosen, images)
                optimizer.step()
                smooth = 0.8 * smooth + 0.2 * losses.mean(1)
                effort.advance()
            losses = smooth.view(-1, len(known))
            best = losses.argmin(1) + len(known) * torch.arange(len(losses), device=losses.device)
            best_starts.put(part, bank.pick(best))
    return best_starts.requires_grad_(True)


def _others(targets: Tensor, labels: Tensor) -> list[Tensor]:
    """For each target the images of other classes; for ``ANY_OTHER`` these are all."""
    return [(labels != t).nonzero().squeeze(1) for t in targets.tolist()]


def _draw(others: list[Tensor], n: int, compute: Compute) -> Tensor:
    """(len(others), n) images, drawn for each candidate from its own."""
    return torch.stack([own[compute.randint(len(own), n)] for own in others])


def _backward(
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
