"""What reviewed images teach: the trigger, taken from images that people confirmed, and these images as examples.

Images of one label t that people called poisoned, and that the suspect answers with t, are held against clean images
of other classes. A fixed trigger is x' = (1 - m) x + m p, so over the images, at every pixel,

    spread(x') = (1 - m) spread(x)      middle(x') = (1 - m) middle(x) + m p

(median, and median absolute deviation). That gives m and p of a mark, and p of a faint picture for each weight m in
``WEIGHTS``. What was taken is stamped on clean images of other classes. Where it leads fewer than ``CONFIRMED`` of them
to t, the suspect does not confirm it and it is dropped. The others train like inverted triggers, and are a start of the
inversions through the defence.

The images are examples as well, whatever the trigger's kind: purified, they may have any label but t. Images that the
suspect cannot tell from its clean images of t are none (``told_apart``): a defence that answers those with another
label has lost a class.

Limitations. A trigger that moves, bends or follows the image cannot be taken; only its examples teach. So few examples
teach few places and strengths. Nobody's word is taken for a label that the suspect does not give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detrigger.offline.inputs.reviewed import Reviewed
from detrigger.offline.inputs.split import as_float
from detrigger.offline.steps.pool import Entry
from detrigger.offline.steps.run import Run
from detrigger.offline.steps.verdict import Evidence
from detrigger.offline.triggers.base import TriggerBank, image_shape
from detrigger.offline.triggers.blend import BlendBank
from detrigger.offline.triggers.patch import PatchBank
from detrigger.offline.types import Labelled, Pixels

FEWEST = 8
"""Images of a label that people have to confirm before anything is learned from them."""
CONFIRMED = 0.5
"""Share of clean images of other classes that a trigger taken from images has to lead to their label."""
WEIGHTS = (0.1, 0.15, 0.2, 0.3)
"""Weights that are tried of a faint picture."""
NOISE = 2.5
"""Times 1 / sqrt(N): what the share of a pixel that is covered seems to be by chance, with N images."""
ASIDE = 0.2
"""Share of the images that nothing is learned from; they tell what was learned (docs/experiments.md, Reviewed)."""
EXAMPLES = 8
"""Images in a training step."""
PERMUTATIONS, SURE = 200, 0.01
"""Of the test whether images differ from clean ones."""


@dataclass(frozen=True)
class Lessons:
    """What reviewed images taught.

    ``taken``: confirmed triggers; ``examples``: images and the labels that they must lose; ``aside``: the same, seen by
    nothing; ``clean``: images (N, C, H, W) in [0, 1] that people called clean; ``rows``: what became of each label;
    ``source``: the folder's name.
    """

    taken: tuple[Evidence, ...] = ()
    examples: Labelled | None = None
    aside: Labelled | None = None
    clean: Pixels | None = None
    rows: tuple[dict[str, Any], ...] = ()
    source: str = ""

    @property
    def targets(self) -> tuple[int, ...]:
        """Labels that something was learned of."""
        return tuple(row["target"] for row in self.rows if row["learned"])

    @property
    def entries(self) -> list[Entry]:
        """The triggers, to train on."""
        return [Entry(piece.bank) for piece in self.taken]

    def draw(self, generator: torch.Generator) -> Labelled | None:
        """Examples (n, C, H, W) of one training step and the labels (n,) that they must lose, if there are any."""
        if self.examples is None:
            return None
        x, labels = self.examples
        chosen = torch.randint(len(x), (EXAMPLES,), generator=generator).to(x.device)
        return x[chosen], labels[chosen]


def still(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log(1 - p_t): how far answers (N, K) are still ``labels`` (N,)."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def learn(run: Run, reviewed: Reviewed) -> Lessons:
    """What can be learned of ``reviewed`` images, label by label; what cannot is said in a note."""
    clean = None if reviewed.clean is None or not len(reviewed.clean) else as_float(reviewed.clean)
    if reviewed.poisoned is None:
        return Lessons(clean=clean, source=reviewed.source)
    classes, device = run.inputs.preprocess.classes, run.compute.device
    every, said = (torch.from_numpy(part) for part in reviewed.poisoned)
    rows, taken, kept, apart = [], [], [], []
    for target in said.unique().tolist():
        x = torch.from_numpy(as_float(every[said == target].numpy())).to(device)
        x, n_said = x[_answers(run, x) == target], len(x)
        row: dict[str, Any] = {"target": target, "label": classes[target], "n_images": n_said}
        row |= {"n_confirmed": len(x), "learned": False, "taken": []}
        rows.append(row)
        if len(x) < FEWEST:
            row["note"] = f"the suspect gives this label to {len(x)} of {n_said} images; {FEWEST} are needed"
        else:
            order = torch.randperm(len(x), generator=run.compute.generator).to(device)
            n_aside = int(ASIDE * len(x))
            aside, x = x[order[:n_aside]], x[order[n_aside:]]
            found = take(run, x, target)
            example = told_apart(run, x, target)
            row |= {
                "learned": bool(found) or example,
                "examples": example,
                "taken": [{"family": e.family, "success": round(e.success, 3)} for e in found],
                "note": "" if found or example else "the images look like clean ones of this label",
            }
            if row["learned"]:
                taken += found
                apart.append((aside, torch.full((len(aside),), target, device=device)))
            if example:
                kept.append((x, torch.full((len(x),), target, device=device)))
        run.progress.note(_in_words(row))
    return Lessons(tuple(taken), _joined(kept), _joined(apart), clean, tuple(rows), reviewed.source)


def _joined(parts: list[Labelled]) -> Labelled | None:
    if not parts:
        return None
    x, labels = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(labels)


def _in_words(row: dict[str, Any]) -> str:
    head = (
        f"reviewed: {row['n_confirmed']} of {row['n_images']} poisoned images are answered “{row['label']}”"
    )
    if not row["learned"]:
        return f"{head}; nothing is learned of them: {row['note']}"
    marks = [f"a {it['family']} that works on {it['success']:.0%} of clean images" for it in row["taken"]]
    return f"{head}; learned: {', '.join([*marks, *(['the images themselves'] if row['examples'] else [])])}"


@torch.no_grad()
def _answers(run: Run, x: Tensor) -> Tensor:
    """The suspect's labels (N,) of images (N, C, H, W)."""
    return torch.cat([run.suspect(run.compute.channels_last(part)).argmax(1) for part in x.split(256)])


# --- the trigger ------------------------------------------------------------------------------------------


def take(run: Run, x: Tensor, target: int) -> list[Evidence]:
    """The mark and the faint picture that images ``x`` (N, C, H, W) share, as far as the suspect confirms them."""
    clean, labels = (torch.cat(pair) for pair in zip(run.images.train, run.images.held_out, strict=True))
    others = clean[labels != target]
    middle, spread = _middle(x)
    usual, usual_spread = _middle(torch.cat([others, others.flip(3)]))
    covered = (1 - (spread / usual_spread.clamp_min(0.02)).mean(0, keepdim=True)).clamp(0, 1)
    pictures = [
        BlendBank(_logit(torch.tensor([w])), _logit((usual + (middle - usual) / w)[None]), image_shape(x)[1:])
        for w in WEIGHTS
    ]
    kinds: list[list[TriggerBank]] = [list(pictures)]
    mask = torch.where(covered > NOISE * len(x) ** -0.5, covered, 0.0)
    if mask.any():
        pattern = (middle - (1 - mask) * usual) / mask.clamp_min(0.05)
        kinds.append([PatchBank(_logit(mask[None]), _logit(pattern[None]))])
    confirmed = []
    for kind in kinds:
        tried = [
            (_success(run, bank.to(x.device), others, target), bank.pick(torch.tensor([0]))) for bank in kind
        ]
        success, bank = max(tried, key=lambda it: it[0])
        if success >= CONFIRMED:
            cost = float(bank.cost())
            confirmed.append(Evidence(target=target, gap=0.0, cost=cost, success=success, bank=bank))
    return sorted(confirmed, key=lambda piece: -piece.success)


def _middle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Median (C, H, W) of images (N, C, H, W), and the median absolute deviation from it."""
    middle = x.median(0).values
    return middle, (x - middle).abs().median(0).values


def _logit(share: Tensor) -> Tensor:
    return share.clamp(1e-4, 1 - 1e-4).logit()


@torch.no_grad()
def _success(run: Run, bank: TriggerBank, x: Tensor, target: int) -> float:
    which = torch.zeros(len(x), dtype=torch.long, device=x.device)
    stamped = (bank(x, which).clamp(0, 1) * 255).round() / 255
    return float((_answers(run, stamped) == target).float().mean())


# --- the examples -----------------------------------------------------------------------------------------


@torch.no_grad()
def told_apart(run: Run, x: Tensor, target: int) -> bool:
    """Whether the suspect's features tell images ``x`` (N, C, H, W) from its clean images of ``target``.

    The energy distance of both samples against that of ``PERMUTATIONS`` random divisions of them (Székely and Rizzo
    2004). Clean images that somebody calls poisoned pass with probability ``SURE``.
    """
    clean, labels = (torch.cat(pair) for pair in zip(run.images.train, run.images.held_out, strict=True))
    own = clean[labels == target]
    if len(own) < 2:
        return True
    features = torch.cat([_pooled(run, part) for part in torch.cat([x, own]).split(256)])
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-6)
    between = torch.cdist(features, features)
    order = torch.arange(len(features), device=x.device)

    def energy(order: Tensor) -> float:
        a, b = order[: len(x)], order[len(x) :]
        cross, first, second = between[a][:, b].mean(), between[a][:, a].mean(), between[b][:, b].mean()
        return float(2 * cross - first - second)

    seen, generator = energy(order), run.compute.generator
    shuffled = (torch.randperm(len(order), generator=generator).to(x.device) for _ in range(PERMUTATIONS))
    larger = sum(energy(each) >= seen for each in shuffled)
    return (larger + 1) / (PERMUTATIONS + 1) <= SURE


def _pooled(run: Run, x: Tensor) -> Tensor:
    """Features (N, F) at the cut, averaged over the places of a picture."""
    features = run.suspect.features(run.compute.channels_last(x)).float()
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)
