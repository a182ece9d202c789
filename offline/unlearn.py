"""Step 5: unlearn the backdoor from a copy of the suspect's own weights (BTI-DBF (U), section 3.3).

Rounds of two halves, as with the purifier: invert the evidence again through the weights as they are, and add what is
found to the pool; tune the weights on it. A step's loss, f_0 the suspect as given, x clean, T a trigger of the pool:

    ANSWERS KL( f_0(x) || f(.) )  +  FEATURES |S_a(.) - S_a0(x)|^2 / E|S_a0|^2        (. is x or T(x))

so that an image with a trigger is answered as the suspect answers it without; where the weights stand alone, with wrong
target labels held back (``HELD``). Differences from the official code, which tunes in training mode on the true labels
and puts its one generator on a tenth of each batch: normalisation statistics stay as they are; no labels, which the
weights would learn by heart; the inversion spends all of its cap (``STRONGEST``); Adam's steps are relative to each
tensor's size.

``repair`` tunes weights that stand alone (``ALONE``). ``protect`` tunes weights behind the purifier P, which the paper
does not: the dots above are P(x) and P(T(x)), and the inversion runs through both. They unlearn what P leaves of a
trigger and get used to what P does to clean images, so smaller steps (``BEHIND``) are enough and BA suffers less.
In the end the weights go some of the way back; alone they go on, as far as clean images allow.

Limitation: what resembles no inverted or synthetic trigger is not unlearned.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from detrigger.models.networks import Purifier
from detrigger.models.suspect import Suspect
from detrigger.offline.compute import Compute
from detrigger.offline.find import Inverted
from detrigger.offline.gate import Hits, ba_check
from detrigger.offline.inputs import Given, Options, Split
from detrigger.offline.invert import Answer
from detrigger.offline.pool import Pool
from detrigger.offline.progress import Progress
from detrigger.offline.purify import Teacher, inversions, invert_again

BATCH = 64
LEAST_SIZE = 1e-3
"""The least root mean square of a tensor that Adam's step is relative to."""
ANSWERS, FEATURES = 2.0, 3.0
"""Weights of the two parts of the loss."""
HELD = 5.0
"""How far, in logits, images with a trigger are to stay away from the target. What is left of a trigger then speaks
against the target rather than for it (repair of five suspects: ASR 2.0% on average without, 1.2% with 3); behind a
purifier the penalty does that."""
STRONGEST = 2.0
"""Aim of the inversion that no success rate reaches: it spends its whole cap, where a lower one would end at a trigger
that barely works and leave the rest of the backdoor in place."""
FARTHER = {1.3: 0.034, 1.2: 0.034, 1.1: 0.034, 1.0: 0.07, 0.9: math.inf}
"""How far weights that stand alone may go, by how far their answers to clean images may diverge from the suspect's, in
nats. What tuning left of a mark goes where they go on: with 1.3 instead of 1 the ASR of five suspects fell from 1.0,
1.5, 0.8, 2.7 and 2.8% to 0.5, 0.7, 0.0, 0.0 and 1.5%, for at most 0.3 points of BA. Where answers diverge more it costs
BA and brings little (a WaNet: 1.4 points for 0.3% of ASR). BA itself is no measure here: on 750 images it is known to
half a point, and of the 1.5 points that another 2,000 lost they showed none."""
# Operators by their inputs that hold weights. All else stays: statistics, and the mean and std of the input.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}


@dataclass(frozen=True)
class Steps:
    """How long to tune: steps of the optimiser, rounds, and steps of each new inversion; and how fast.

    ``rate``: Adam's largest step relative to the root mean square of a tensor, as suspects come in every scale;
    ``clean``: images in a batch of ``BATCH`` that carry no trigger; ``lengths``: how far the weights may go along
    their way in the end (``go_along``), where tuning ends at 1. Behind a purifier most of what tuning unlearns goes
    with the first steps and what it costs with the last: with 0.7 the BA drops of three suspects fell from 0.85, 0.45
    and 1.1 points to 0.4, 0.05 and 0.45, and their ASR stayed within 0.1 points. It goes all the way where the trigger
    has no single target, as hardly anything else is held against it (ASR 6.3% instead of 3.4%).
    """

    tune: int
    rounds: int
    refresh: int
    rate: float
    clean: int
    lengths: dict[float, float]


ALONE = {
    "fast": Steps(200, 3, 50, 8e-3, 32, FARTHER),
    "standard": Steps(300, 4, 50, 8e-3, 32, FARTHER),
    "thorough": Steps(800, 6, 100, 8e-3, 32, FARTHER),
}
BEHIND = {
    "fast": Steps(100, 2, 30, 3e-3, 40, {0.7: math.inf}),
    "standard": Steps(130, 2, 30, 3e-3, 40, {0.7: math.inf}),
    "thorough": Steps(500, 4, 60, 3e-3, 40, {0.7: math.inf}),
}


@dataclass(frozen=True)
class Repaired:
    """What classifies purified images: a repaired copy of the suspect, or itself; ``remaining`` as of ``unlearn``."""

    classifier: Suspect
    tuned: bool
    remaining: list[dict[str, float]]


# --- behind a purifier --------------------------------------------------------------------------------


def repaired_copy(
    given: Given,
    teacher: Teacher,
    split: Split,
    found: Inverted,
    purifier: Purifier,
    options: Options,
    compute: Compute,
    progress: Progress,
) -> Repaired:
    """Unlearn behind the purifier; the suspect itself where nothing more than doubtful signs stand out, where it has no
    weights to tune, or where it would lose too much BA.

    On suspects whose verdict is "clean" a copy cost up to half a point of BA and unlearned nothing, not even of an
    all-to-all backdoor that the screening had missed (ASR 80.0% without it, 79.2% with it). The penalty is enough for
    the trigger of a doubtful sign.
    """
    suspect, names = given.suspect, weight_names(given.graph)
    if found.verdict == "clean" or not found.marked:
        return Repaired(suspect, False, [])
    if not names:
        progress.note(
            "warning: no floating-point weights to tune, so the suspect's own classify purified images"
        )
        return Repaired(suspect, False, [])
    tuned, remaining = unlearn(
        suspect, names, teacher, found, split, BEHIND[options.profile], options.seed, compute, progress, purifier
    )  # fmt: skip

    def behind(model: Suspect) -> Answer:
        return lambda x: model(compute.lay(purifier(x).float()))

    before, after = (_right(behind(model), *split.held_out) for model in (suspect, tuned))
    check = ba_check(before, after, "unlearning")
    if not check.passed:
        progress.note(
            f"warning: unlearning would cost {check.value:.1%} of BA ({check.limit:.1%} allowed), so the suspect's own"
            " weights classify purified images"
        )
    return Repaired(tuned if check.passed else suspect, check.passed, remaining)


@torch.no_grad()
def go_along(
    suspect: Suspect, tuned: Suspect, names: frozenset[str], lengths: dict[float, float], x: Tensor
) -> None:
    """Put every tuned tensor somewhere on the line from the suspect's (0) through its own (1).

    That is at the first of ``lengths`` with which the answers to unseen clean images diverge no further than it says.
    Wortsman et al. (CVPR 2022) go back on that line; going on beyond 1 is what Ilharco et al. (ICLR 2023) do to a model
    that is to forget a task.
    """
    given, tensors = weights(suspect, names), weights(tuned, names)
    ends = {name: tensor.clone() for name, tensor in tensors.items()}
    for length, most in lengths.items():
        for name, tensor in tensors.items():
            tensor.copy_(given[name].lerp(ends[name], length))
        if math.isinf(most) or divergence(suspect, tuned, x) <= most:
            return


@torch.no_grad()
def divergence(suspect: Answer, tuned: Answer, x: Tensor) -> float:
    """Mean KL( f_0(x) || f(x) ) of the tuned answers to images (N, C, H, W) from the suspect's, in nats."""
    total = 0.0
    for part in x.split(256):
        before, after = (model(part).float().log_softmax(1) for model in (suspect, tuned))
        total += float(F.kl_div(after, before, log_target=True, reduction="sum"))
    return total / len(x)


@torch.no_grad()
def _right(answer: Answer, x: Tensor, y: Tensor) -> Hits:
    """Which images (N, C, H, W) are answered as their labels (N,) say."""
    hits = [answer(part).argmax(1) == of for part, of in zip(x.split(256), y.split(256), strict=True)]
    return torch.cat(hits).cpu().numpy()


# --- the weights ------------------------------------------------------------------------------------------


def weight_names(model: onnx.ModelProto) -> frozenset[str]:
    """The initializers that are tuned: weights and biases of linear and normalising operators, of floating point."""
    used = {
        name
        for node in model.graph.node
        for i, name in enumerate(node.input)
        if i in _WEIGHTS.get(node.op_type, ())
    }
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return frozenset(t.name for t in model.graph.initializer if t.name in used and t.data_type in kinds)


def weights(suspect: Suspect, names: frozenset[str]) -> dict[str, Tensor]:
    """The imported graph's tensors by the initializers that they come from; they have the same layout."""
    tensors: dict[str, Tensor] = {}
    for part in (suspect.body, suspect.head):
        for node in part.graph.nodes:
            name = node.meta.get("onnx_name")
            if node.op == "get_attr" and name in names:
                # Where both parts use it, it has to stay one tensor.
                setattr(part, node.target, tensors.setdefault(name, part.get_buffer(node.target)))
    return tensors


def written_back(original: onnx.ModelProto, tuned: Suspect, digest: str) -> onnx.ModelProto:
    """A copy of the suspect's file with the tuned weights in it; ``digest`` of the suspect goes into its metadata."""
    names = weight_names(original)
    tensors = weights(tuned, names)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    for initializer in model.graph.initializer:
        if initializer.name in tensors:
            value = tensors[initializer.name].detach().cpu().numpy()
            kind = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
            initializer.CopyFrom(numpy_helper.from_array(value.astype(kind), initializer.name))
    model.metadata_props.add(key="detrigger.repaired_from", value=digest)
    return model


# --- unlearning -------------------------------------------------------------------------------------------


def unlearn(
    suspect: Suspect,
    names: frozenset[str],
    teacher: Teacher,
    found: Inverted,
    split: Split,
    steps: Steps,
    seed: int,
    compute: Compute,
    progress: Progress,
    purifier: Purifier | None = None,
) -> tuple[Suspect, list[dict[str, float]]]:
    """A tuned copy of the suspect, and what each round's new inversion still achieved (success by family:target).

    With a ``purifier`` the copy is to stand behind it.
    """
    tuned = copy.deepcopy(suspect)
    tensors = list(weights(tuned, names).values())
    pool = Pool(compute, found.kinds())
    if not found.marked:
        pool.add_round(found.known())
        steps = replace(steps, tune=steps.tune // 2, rounds=1, lengths={1.0: math.inf})
    held = None
    if purifier is None and found.targets:
        held = torch.zeros(suspect.n_classes, device=split.train[0].device)
        held[list(found.targets)] = HELD
    rates = [steps.rate * max(float(tensor.square().mean().sqrt()), LEAST_SIZE) for tensor in tensors]
    optimizer = torch.optim.Adam([{"params": [tensor]} for tensor in tensors])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps.tune, pct_start=0.1)

    def answer(x: Tensor) -> Tensor:
        logits: Tensor = tuned(x if purifier is None else compute.lay(purifier(x).float()))
        return logits

    remaining: list[dict[str, float]] = []
    with progress.stage(
        "unlearn", steps.tune + steps.rounds * steps.refresh * inversions(found.marked)
    ) as advance:
        for r in range(steps.rounds):
            if found.marked:
                entries, left = invert_again(
                    answer, found.marked, split.train, split.held_out, compute,
                    steps=steps.refresh, seed=seed + r, aim=STRONGEST, advance=advance,
                )  # fmt: skip
                pool.add_round(entries + found.evidence() if r == 0 else entries)
                remaining.append(left)
            if r == steps.rounds // 2:
                teacher.take_back(answer)
            _require_gradients(tensors, True)
            for _ in range(steps.tune // steps.rounds + (steps.tune % steps.rounds if r == 0 else 0)):
                loss = _step_loss(tuned, purifier, teacher, pool, compute, steps.clean, held)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
            _require_gradients(tensors, False)
    if not found.untargeted:
        unseen = torch.as_tensor(split.calibration[0]).to(split.train[0].device)
        go_along(suspect, tuned, names, steps.lengths, unseen)
    return tuned, remaining


def _step_loss(
    tuned: Suspect,
    purifier: Purifier | None,
    teacher: Teacher,
    pool: Pool,
    compute: Compute,
    bare: int,
    held: Tensor | None,
) -> Tensor:
    """The loss of a batch of which ``bare`` images carry no trigger; the others' answers are ``held_back``."""
    chosen = teacher.draw(BATCH)
    clean = teacher.images[chosen]
    given = compute.lay(torch.cat([clean[:bare], pool.trigger(clean[bare:])]))
    with compute.autocast():
        if purifier is not None:
            with torch.no_grad():
                given = compute.lay(purifier(given).float())
        features = tuned.features(given)
    logits = tuned.classify(features)
    answers = teacher.log_probabilities[chosen]
    if held is not None:
        back = held_back(answers[bare:], teacher.labels[chosen[bare:]], held)
        answers = torch.cat([answers[:bare], back])
    same = F.kl_div(logits.log_softmax(1), answers, log_target=True, reduction="batchmean")
    near = (features.float() - teacher.features(chosen)).pow(2).mean() / teacher.scale
    return ANSWERS * same + FEATURES * near


def held_back(log_probabilities: Tensor, labels: Tensor, held: Tensor) -> Tensor:
    """Log-probabilities (N, classes) with ``held`` (classes,) off the logits, unless one of ``labels`` (N,) is held."""
    others = (held[labels] == 0).unsqueeze(1)
    return (log_probabilities - held * others).log_softmax(1)


def _require_gradients(tensors: list[Tensor], wanted: bool) -> None:
    """Only while tuning: the inversion would compute gradients of the weights that nobody needs."""
    for tensor in tensors:
        tensor.requires_grad_(wanted)
