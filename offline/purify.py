"""Step 4: the purifier P, an inverse of the triggers (BTI-DBF (P), section 3.3).

Rounds of two halves, the paper's alternation: train P on the pool; invert again *through* P, for the classes that
stood out, and add what is found to the pool. A step's loss, x clean, T a trigger of the pool or a synthetic one:

    CE( f(P(T(x))), y )  +  KL( f(P(x)) || f(x) )  +  |S_a(P(.)) - S_a(x)|^2 / E|S_a|^2
                         +  L1 |P(.) - x|  +  L2 |P(.) - x|^2                        (. is T(x) and x)

Differences from the official purifier, which sees 13 triggered images in a batch of 128, noise on every input and the
labels on clean ones: six tenths of the batch are triggered; clean images are distilled to the suspect's own answers
(with labels, P learns to correct the suspect on its training images and costs BA elsewhere); no noise, so the served
graph is deterministic; P starts as the identity and needs no pretraining; new triggers are held near the cost of what
the suspect itself gave away (``CAP``), since without a bound the inversion through P ends in adversarial noise.

Limitation: P removes what the pool taught it. What the strongest inversion through P still achieves is measured
and reported (``Purified.remaining``), and the gate reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detrigger.models.networks import Purifier
from detrigger.models.suspect import Suspect
from detrigger.offline.calibrate import SECOND_MODE
from detrigger.offline.compute import Compute
from detrigger.offline.invert import AIM, Answer, invert
from detrigger.offline.pool import Entry, Pool
from detrigger.offline.progress import Progress
from detrigger.offline.screen import PER_RESTART, RESTARTS, Evidence, restart, shared_restarts
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.triggers.generator import GeneratorBank
from detrigger.offline.triggers.sticker import StickerBank

BATCH, TRIGGERED = 64, 38
"""Images in a step, and how many of them carry a trigger."""
LEARNING_RATE = 4e-3
L1, L2 = 10.0, 60.0
CAP = 3.5
"""A new trigger may cost this many times the one that gave the class away."""
INPUT_AWARE = 0.5
"""A generator's change beside that of the sticker which gave its target away: at 1 it finds adversarial noise instead
(IAD: ASR 17.5% instead of 2.1%; 15.3% without a generator)."""
RESISTED = 0.1
"""Where an inversion through P reaches less it is not tried again, except that of the strongest evidence."""
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Purified:
    """The trained purifier, in evaluation mode; ``remaining`` is the success of each round's inversion through it."""

    purifier: Purifier
    remaining: list[dict[str, float]]


class Teacher:
    """What the suspect says of the clean training images and their mirror images, computed once.

    Features are kept in bfloat16; where they would not fit into ``CACHE_BYTES`` they are computed as needed.

    Clean images that carry the trigger have the target's label and get it from the suspect, too: who learns from them
    learns to keep the trigger. So images of suspected labels are set aside, and those are taken back whose answers stay
    the same through a defence that has not met them.
    """

    def __init__(self, suspect: Suspect, images: Tensor, labels: Tensor, compute: Compute) -> None:
        self.images = torch.cat([images, images.flip(3)])
        self.labels = torch.cat([labels, labels])
        self.usable = torch.arange(len(self.images), device=images.device)
        self.aside = self.usable[:0]
        self._suspect, self._compute = suspect, compute
        features, logits = zip(*(self._look(part) for part in self.images.split(256)), strict=True)
        self.log_probabilities = torch.cat(logits).log_softmax(1)
        self.scale = torch.stack([f.float().pow(2).mean() for f in features]).mean()
        small = features[0][0].numel() * 2 * len(self.images) <= CACHE_BYTES
        self._features = torch.cat(features) if small else None

    def features(self, chosen: Tensor) -> Tensor:
        """Features at the cut of the images ``chosen`` (N,), in float32."""
        if self._features is not None:
            return self._features[chosen].float()
        return self._look(self.images[chosen])[0].float()

    def draw(self, n: int) -> Tensor:
        """Which images a step sees, (n,)."""
        return self.usable[self._compute.randint(len(self.usable), n)]

    def set_aside(self, labels: Collection[int]) -> None:
        """Train on no images of these labels for now; unless there are no others."""
        out = torch.isin(self.labels, torch.tensor(list(labels), dtype=torch.long, device=self.labels.device))
        if not out.all():
            self.usable, self.aside = (~out).nonzero().squeeze(1), out.nonzero().squeeze(1)

    @torch.no_grad()
    def take_back(self, answer: Answer) -> None:
        """Train on those set aside again whose label keeps most of its confidence in ``answer``."""
        if not len(self.aside):
            return
        kept = []
        for part in self.aside.split(256):
            before = self.log_probabilities[part]
            after = answer(self._compute.lay(self.images[part])).log_softmax(1)
            k = before.argmax(1, keepdim=True)
            lost = (before.gather(1, k) - after.gather(1, k)).squeeze(1)
            kept.append(lost / (1 + lost.clamp_min(0)) <= SECOND_MODE)
        back = torch.cat(kept)
        self.usable, self.aside = torch.cat([self.usable, self.aside[back]]), self.aside[~back]

    @torch.no_grad()
    def _look(self, part: Tensor) -> tuple[Tensor, Tensor]:
        with self._compute.autocast():
            features = self._suspect.features(self._compute.lay(part))
        return features.bfloat16(), self._suspect.classify(features)


def train_purifier(
    suspect: Suspect,
    teacher: Teacher,
    pool: Pool,
    marked: list[Evidence],
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    progress: Progress,
    *,
    steps: int,
    rounds: int,
    refresh_steps: int,
    seed: int,
) -> Purified:
    """Train P for ``steps`` steps in ``rounds`` rounds; ``marked`` says what is inverted again between them."""
    c, h, w = train[0].shape[1:]
    purifier = Purifier(c, (h, w)).to(train[0].device)
    optimizer = torch.optim.AdamW(purifier.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15
    )

    def through(x: Tensor) -> Tensor:
        logits: Tensor = suspect(compute.lay(purifier(x).float()))
        return logits

    remaining: list[dict[str, float]] = []
    strongest = f"{marked[0].family}:{marked[0].target}" if marked else ""
    resisted: set[str] = set()
    refreshes = (rounds - 1) * inversions(marked) * refresh_steps
    with progress.stage("purify", steps + refreshes) as advance:
        for r in range(rounds):
            if r > 0 and marked:
                purifier.eval().requires_grad_(False)  # nor do its weights need gradients
                entries, left = invert_again(
                    through, marked, train, held_out, compute,
                    steps=refresh_steps, seed=seed + r, resisted=resisted, advance=advance,
                )  # fmt: skip
                pool.add_round(entries)
                remaining.append(left)
                resisted |= {key for key, rate in left.items() if rate < RESISTED and key != strongest}
            if r == rounds // 2:
                purifier.eval()
                teacher.take_back(through)
            purifier.train().requires_grad_(True)
            for _ in range(steps // rounds + (steps % rounds if r == 0 else 0)):
                loss = _step_loss(suspect, purifier, teacher, pool, compute)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
    purifier.eval().requires_grad_(False)
    return Purified(purifier, remaining)


def _step_loss(
    suspect: Suspect, purifier: Purifier, teacher: Teacher, pool: Pool, compute: Compute
) -> Tensor:
    chosen = teacher.draw(BATCH)
    clean, bare = teacher.images[chosen], BATCH - TRIGGERED
    given = compute.lay(torch.cat([clean[:bare], pool.trigger(clean[bare:])]))
    with compute.autocast():
        purified = purifier(given)
        features = suspect.features(compute.lay(purified.float()))
    logits = suspect.classify(features)
    right = F.cross_entropy(logits[bare:], teacher.labels[chosen[bare:]])
    unchanged = F.kl_div(
        logits[:bare].log_softmax(1),
        teacher.log_probabilities[chosen[:bare]],
        log_target=True,
        reduction="batchmean",
    )
    near = (features.float() - teacher.features(chosen)).pow(2).mean() / teacher.scale
    difference = purified.float() - clean
    loss: Tensor = right + unchanged + near + L1 * difference.abs().mean() + L2 * difference.pow(2).mean()
    return loss


def invert_again(
    answer: Answer,
    marked: list[Evidence],
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    compute: Compute,
    *,
    steps: int,
    seed: int,
    aim: float = AIM,
    resisted: Collection[str] = (),
    advance: Callable[[int], None],
) -> tuple[list[Entry], dict[str, float]]:
    """Invert every piece of evidence again through ``answer``: half the restarts near the known trigger, half anew.
    Several pieces share the restarts; the keys in ``resisted`` are left out.

    A sticker says that the trigger's place depends on the image, so perhaps does its shape (input-aware attacks): for
    its target a generator is inverted as well, whose change has ``INPUT_AWARE`` times the sticker's root mean square.

    Returns what was found and, by family:target, the best success on held-out images.
    """
    entries: list[Entry] = []
    left: dict[str, float] = {}
    restarts = shared_restarts(len(marked))

    for piece in marked:
        for family in _families(piece):
            key = f"{family}:{piece.target}"
            if key in resisted:
                advance(steps)
                continue
            if family == piece.family:
                bank = restart(piece, restarts, train[0], compute, seed)
                per_candidate, roams = PER_RESTART, piece.roams
                cap = min(CAP * piece.cost, bank.most)
            else:
                cap = INPUT_AWARE * visibility(piece.bank, held_out[0][:64])
                bank = GeneratorBank.start(1, image_shape(train[0]), seed, cap).to(train[0].device)
                per_candidate, roams = RESTARTS * PER_RESTART, False
            targets = torch.full((len(bank),), piece.target, device=train[0].device)
            found = invert(
                answer, bank, targets, train, held_out, compute,
                steps=steps, per_candidate=per_candidate, aim=aim, cap=cap, advance=lambda: advance(1),
            )  # fmt: skip
            entries.append(Entry(found.bank, roams))
            left[key] = max(float(found.success.max()), left.get(key, 0.0))
    return entries, left


def inversions(marked: list[Evidence]) -> int:
    """How many inversions ``invert_again`` runs."""
    return sum(len(_families(piece)) for piece in marked)


def _families(piece: Evidence) -> list[str]:
    """What a piece of evidence is inverted again as."""
    return [piece.family, *([GeneratorBank.family] if isinstance(piece.bank, StickerBank) else [])]


@torch.no_grad()
def visibility(bank: TriggerBank, images: Tensor) -> float:
    """Root mean square of what the first candidate changes of ``images`` (N, C, H, W), in [0, 1] units."""
    which = torch.zeros(len(images), dtype=torch.long, device=images.device)
    return float((bank(images, which) - images).pow(2).mean().sqrt())
