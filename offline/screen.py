"""Step 2: which classes look like targets: every family inverts every class, and the outliers are evidence.

A backdoor is a shortcut: to its target leads a trigger that is far cheaper than those to the other classes
(Neural Cleanse, section III-C). The measure is the gap, log2 of how much cheaper the class is than the lower quartile
of all classes: 1 bit is half its cost. Neural Cleanse divides by the median absolute deviation instead, which with
ten classes is a guess: the same clean suspect came out anywhere between z = -1 and -4 as steps and seeds changed,
while gaps of clean suspects stayed below 0.9, those of targets mostly above 1. A family that does not fit the trigger
shows nothing, so all families are asked: a warp stands out in no other family than the warps.

A trigger that sends each class to another one (all-to-all) has no single target. Beside the classes every family
therefore inverts towards ``ANY`` other label, whose gap is that to the cheapest class: without a backdoor the way out
of all classes is about as long as the way to the nearest one.

With more than ``MOST_CLASSES`` classes only that many are inverted, so that the cost does not grow with their number:
those that the triggers towards ``ANY`` end in, and others at random as the population to stand out from.

Limit. With fewer than ``FEWEST`` classes there is no population, and the verdict is "inconclusive", not "clean"; with
fewer than ``FEW`` images it is already where something is doubtful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detrigger.models.manifest import Verdict
from detrigger.offline.compute import Compute
from detrigger.offline.invert import AIM, ANY, Answer, Found, invert, start, success
from detrigger.offline.triggers import UNIVERSAL
from detrigger.offline.triggers.base import TriggerBank, image_shape

STRONG, WEAK, UNSURE = 1.0, 0.85, 0.7
DOUBTFUL, PLAIN = 0.6, 2.0
"""Bits. A gap above STRONG is evidence, one from UNSURE to STRONG inconclusive: eleven jobs on clean suspects ended
with 0.5 and less, one on stripes (a ResNet) with 0.8. From DOUBTFUL to PLAIN a second look is taken unless the target
is plain from another family, and the mean counts. From WEAK on it is inverted again."""
FAR_BELOW, FAR_BELOW_PLAIN = 0.75, 1.5
"""Bits that a lone sign of another target may stand below the strongest one, and a plain one below a plainer one."""
FEWEST = 6
FEW = 200
"""Images that the candidates see. With fewer a backdoor stands out less: stripes by 0.7 and 1.0 bits with 120 images,
by 1.05 and 1.5 with 1,750."""
MOST_CLASSES = 48
RESTARTS = 12
PER_RESTART = 4
"""Candidates that the evidence is inverted with again, and images that each sees in a step. Many that see few: what an
attacker may use is better covered by them than by few that see many (two backdoors: ASR 1.6% instead of 12.3%)."""


@dataclass(frozen=True)
class Screened:
    """One family's look at its candidates ``found``: ``gap`` (n,) in bits, positive where a target is cheap."""

    family: type[TriggerBank]
    found: Found
    gap: Tensor

    def by_target(self) -> list[tuple[int, float]]:
        """Target and gap of every candidate."""
        return list(zip(self.found.targets.tolist(), self.gap.tolist(), strict=True))

    def credible(self) -> Screened:
        """The same with gaps of 0 where a candidate costs more than what is plausible for the family."""
        return replace(self, gap=self.gap.where(self.found.cost <= self.family.plausible, 0.0))

    def cheapest(self, n: int) -> Tensor:
        """At most n candidates that an attacker might use, those that stand out most first."""
        order = self.gap.argsort(descending=True)
        return order[self.found.cost[order] <= self.family.most][:n]


@dataclass(frozen=True)
class Evidence:
    """One target that one family reaches far too cheaply, and the trigger that does it."""

    target: int  # a label, or ANY
    gap: float
    cost: float
    success: float
    bank: TriggerBank
    roams: bool = False  # it works at any place of the image

    @property
    def family(self) -> str:
        """Name of the family that found it."""
        return self.bank.family


def screen(
    answer: Answer,
    n_classes: int,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    *,
    steps: int,
    per_class: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> list[Screened]:
    """Invert all classes in one batch, family by family; families with a doubtful result are asked twice.

    Their gaps are the mean of both answers: chance rarely makes the same class cheap twice, a trigger does. For a
    target that another family has already found strong, the better answer counts: that it is one is settled, and how
    else it can be reached is what the purifier has to know.

    ``per_class`` is what a candidate sees in a step with at most ten classes; with more it falls to two, and ``steps``
    should be ``stretched``.
    """
    device = train[0].device
    shown = max(2, min(per_class, round(10 * per_class / n_classes)))

    def inverted(family: type[TriggerBank], targets: Tensor, steps: int, seed: int) -> Found:
        bank = start(answer, family, targets, train, compute, seed)
        return invert(
            answer, bank, targets, train, held_out, compute,
            steps=steps, per_candidate=shown, advance=advance,
        )  # fmt: skip

    def look(family: type[TriggerBank], targets: Tensor, steps: int, seed: int) -> Screened:
        found = inverted(family, targets, steps, seed)
        bits = gaps(found.cost, found.success, targets, family.bounded, found.bank.dearest())
        return Screened(family, found, bits / family.spread)

    results = []
    any_label = torch.full((1,), ANY, device=device)
    plain: set[int] = set()
    strong: set[int] = set()
    for family in UNIVERSAL:
        classes = torch.arange(n_classes, device=device)
        if n_classes > MOST_CLASSES:
            untargeted = inverted(family, any_label.repeat(4), steps, seed)
            classes = _nominated(untargeted, answer, held_out, compute, n_classes)
        targets = torch.cat([classes, any_label])
        result = look(family, targets, steps, seed)
        unknown = [gap for t, gap in result.by_target() if t not in plain]
        if DOUBTFUL <= max(unknown) < PLAIN:
            result = _both(result, look(family, targets, steps * 2, seed + 1), strong)
        result = result.credible()  # only now: a trigger that is not found yet costs more than it will
        plain |= {t for t, gap in result.by_target() if gap >= PLAIN}
        strong |= {t for t, gap in result.by_target() if gap >= STRONG}
        results.append(result)
    return results


def stretched(steps: int, n_classes: int) -> int:
    """Steps of the screening: with fewer images of a class in each, more of them, at most twice as many.

    Without the additional ones a half transparent watermark on one of 16 traffic signs was missed, and a clean suspect
    of the same kind was taken for backdoored.
    """
    return round(steps * min(2.0, max(1.0, n_classes / 10)))


def _both(first: Screened, longer: Screened, strong: set[int]) -> Screened:
    """The longer look with the mean gaps of both; for targets in ``strong`` the better look's candidate and gap."""
    found, gap = longer.found, (first.gap + longer.gap) / 2
    for i, target in enumerate(found.targets.tolist()):
        if target not in strong:
            continue
        gap[i] = longer.gap[i]
        if first.gap[i] > longer.gap[i]:
            gap[i] = first.gap[i]
            found.bank.put(torch.tensor([i]), first.found.bank.pick(torch.tensor([i])))
            found.success[i], found.cost[i] = first.found.success[i], first.found.cost[i]
    return replace(longer, gap=gap)


@torch.no_grad()
def _nominated(
    found: Found, answer: Answer, held_out: tuple[Tensor, Tensor], compute: Compute, n_classes: int
) -> Tensor:
    """(MOST_CLASSES,) labels: half of them where triggers without a target end, the others at random."""
    images, labels = (part[:128] for part in held_out)
    votes = torch.zeros(n_classes)
    for i in range(len(found.targets)):
        with compute.autocast():
            answers = answer(
                compute.lay(found.bank(images, torch.full((len(images),), i, device=images.device)))
            )
        wrong = answers.argmax(1)[answers.argmax(1) != labels]
        votes += torch.bincount(wrong.cpu(), minlength=n_classes)
    chance = torch.rand(n_classes, generator=compute.generator)
    most = (votes + 0.5 * chance).argsort(descending=True)[: MOST_CLASSES // 2]
    chance[most] = 2.0
    return chance.argsort(descending=True)[:MOST_CLASSES].to(images.device)


def gaps(
    cost: Tensor, success: Tensor, targets: Tensor, bounded: bool = False, dearest: float = torch.inf
) -> Tensor:
    """(n,) bits by which each candidate is cheaper than the lower quartile of the classes, ``ANY`` than the cheapest.

    What counts is the price of success, cost * AIM / success and at most ``dearest``: what ended short of ``AIM`` is
    cheap partly for that. Without it stripes that send two thirds of the images to one class of a clean suspect stand
    out, and failures whose cost never rose hide what does. A candidate that works on less than half of the images
    never stands out. Where most classes fail, failures count with the cost that they reached, which errs towards no
    evidence. In a ``bounded`` family they count as twice the dearest candidate, and success has to be plain.
    """
    aimed, works = targets != ANY, success >= (0.8 if bounded else 0.5)
    price = (cost * AIM / success.clamp(0.5, AIM)).clamp_max(dearest)
    if bounded:
        price = torch.where(works, price, 2.2 * cost.max())
    elif works[aimed].float().mean() < 0.5:
        price = torch.where(works, price, cost)
    bits = price.log2()
    usual = bits[aimed].quantile(0.25)
    cheapest = torch.where(aimed & works, bits, usual).min()
    gap = torch.where(aimed, usual, cheapest) - bits
    return torch.where(works, gap, gap.clamp_max(0.0))


def evidence(results: Sequence[Screened], above: float = STRONG) -> list[Evidence]:
    """Everything that stands out, strongest first; of several candidates for one target the strongest."""
    seen: dict[tuple[str, int], Evidence] = {}
    for result in results:
        for i in (result.gap >= above).nonzero().flatten().tolist():
            piece = Evidence(
                target=int(result.found.targets[i]),
                gap=float(result.gap[i]),
                cost=float(result.found.cost[i]),
                success=float(result.found.success[i]),
                bank=result.found.bank.pick(torch.tensor([i])),
            )
            known = seen.get((piece.family, piece.target))
            if known is None or piece.gap > known.gap:
                seen[piece.family, piece.target] = piece
    return sorted(seen.values(), key=lambda e: -e.gap)


def restart(piece: Evidence, n: int, images: Tensor, compute: Compute, seed: int) -> TriggerBank:
    """N candidates for one piece of evidence: half near the known trigger, half anew."""
    bank = type(piece.bank).start(n, image_shape(images), seed).to(images.device)
    near = n // 2
    with torch.no_grad():
        for fresh, known in zip(bank.parameters(), piece.bank.parameters(), strict=True):
            noise = torch.randn(fresh[:near].shape, generator=compute.generator).to(fresh.device)
            fresh[:near] = known + (0.3 * noise if fresh.dim() > 1 else 0.0)
        for fixed, known_fixed in zip(bank.buffers(), piece.bank.buffers(), strict=True):
            fixed[:] = known_fixed
    return bank


def shared_restarts(pieces: int) -> int:
    """Candidates for each of so many pieces of evidence: one has all, and more share them, but no further than two."""
    return RESTARTS // max(1, min(pieces, 2))


def refine(
    answer: Answer,
    piece: Evidence,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    *,
    restarts: int,
    steps: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Evidence, TriggerBank]:
    """Spend more time where something stood out: the evidence with its cheapest trigger, and all that was found."""
    targets = torch.full((restarts,), piece.target, device=train[0].device)
    found = invert(
        answer, restart(piece, restarts, train[0], compute, seed), targets, train, held_out, compute,
        steps=steps, per_candidate=PER_RESTART, advance=advance,
    )  # fmt: skip
    works = found.success >= 0.9 * found.success.max()
    best = int(torch.where(works, found.cost, torch.inf).argmin())
    if float(found.success[best]) >= 0.5 and float(found.cost[best]) < piece.cost:
        piece = replace(
            piece,
            cost=float(found.cost[best]),
            success=float(found.success[best]),
            bank=found.bank.pick(torch.tensor([best])),
        )
    return replace(piece, roams=_roams(answer, piece, held_out, compute)), found.bank


def _roams(answer: Answer, piece: Evidence, held_out: tuple[Tensor, Tensor], compute: Compute) -> bool:
    """Whether the trigger keeps at least half of its success when it is put anywhere on the image."""
    target = torch.tensor([piece.target], device=held_out[0].device)
    return float(success(answer, piece.bank, target, held_out, compute, anywhere=True)) >= 0.5 * piece.success


def suspected(results: Sequence[Screened]) -> tuple[int, ...]:
    """The targets that stand out strongly, most suspicious first, ``ANY`` among them.

    Beside a plain one another has to be plain, too, and not far below, or strong in two families, or at least as cheap
    as the plain one in a family where that is strong. Less is not enough: stripes led a suspect with a WaNet to a
    second class at 1.4 bits, a colour curve one with a corner sticker at 1.7, and a patch one with a faint pattern at
    2.2 to 2.8 beside 4.6, where nothing was hidden. Without a plain one, a target with one strong sign far below the
    strongest is left out for the same reason (stripes at 1.0 beside a warp at 1.9).
    """
    strong = evidence(results)
    top = strong[0].gap if strong else 0.0
    plain = {e.target for e in strong if e.gap >= max(PLAIN, top - FAR_BELOW_PLAIN)}
    families = Counter(e.target for e in strong)
    level = {e.family: e.gap for e in strong if e.target in plain}
    return tuple(
        dict.fromkeys(
            e.target
            for e in strong
            if (not plain and e.gap >= top - FAR_BELOW)
            or e.target in plain
            or families[e.target] > 1
            or e.gap >= level.get(e.family, torch.inf)
        )
    )


def verdict(results: Sequence[Screened], n_classes: int, n_images: int) -> tuple[Verdict, tuple[int, ...]]:
    """What the screening with so many images says of the suspect, and the target labels, most suspicious first (none
    for all-to-all).
    """
    targets = suspected(results)
    if targets and n_classes >= FEWEST:
        return "backdoored", tuple(t for t in targets if t != ANY)
    if n_classes < FEWEST or evidence(results, DOUBTFUL if n_images < FEW else UNSURE):
        return "inconclusive", ()
    return "clean", ()
