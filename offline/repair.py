"""``detrigger repair``: the backdoor is unlearned from the suspect's own weights (BTI-DBF (U), section 3.3).

Rounds of two halves, as with the purifier: invert the evidence again through the weights as they are, and add what is
found to the pool; tune the weights on it. A step's loss, f_0 the suspect as given, x clean, T a trigger of the pool:

    ANSWERS KL( f_0(x) || f(.) )  +  FEATURES |S_a(.) - S_a0(x)|^2 / E|S_a0|^2        (. is x or T(x), in equal parts)

so that an image with a trigger is answered as the suspect answers it without. Differences from the official code, which
tunes in training mode on the true labels and puts its one generator on a tenth of each batch: normalisation statistics
stay as they are; no labels, which the weights would learn by heart; the inversion spends all of its cap
(``STRONGEST``); Adam's steps are relative to each tensor's size. The tuned weights go back into the suspect's own ONNX
file, whose graph stays what it was.

Limitations: what resembles no inverted or synthetic trigger is not unlearned. An unlearned backdoor may be learned
again faster than a new one, so train no further on data that nobody checked. A repaired model flags nothing.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from models import files
from models.errors import BadInput
from models.manifest import Check, Gate, Verdict
from models.suspect import FLOAT16_TOLERANCE, Suspect, free_batch, onnx_logits, read_onnx
from offline.compute import Compute
from offline.export import LIMIT, check_same
from offline.find import Inverted, find_triggers
from offline.gate import MAX_ASR, Labels, Pixels, ba_check
from offline.inputs import PROFILES, Given, Options, Split, check_writable, load, split_data
from offline.pool import Pool
from offline.progress import Progress
from offline.purify import Teacher, inversions, invert_again
from offline.screen import STRONG, Evidence

BATCH = 64
LEARNING_RATE, LEAST_SIZE = 8e-3, 1e-3
"""Adam's step relative to the root mean square of a tensor, as suspects come in every scale; and the least of these."""
ANSWERS, FEATURES = 2.0, 3.0
"""Weights of the two parts of the loss."""
STRONGEST = 2.0
"""Aim of the inversion that no success rate reaches: it spends its whole cap, where a lower one would end at a trigger
that barely works and leave the rest of the backdoor in place."""
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
    """How long a profile tunes: steps of the optimiser, rounds, and steps of each new inversion."""

    tune: int
    rounds: int
    refresh: int


STEPS = {"fast": Steps(200, 3, 50), "standard": Steps(300, 4, 50), "thorough": Steps(800, 6, 100)}


@dataclass(frozen=True, kw_only=True)
class RepairOptions(Options):
    """What ``detrigger repair`` is asked for; ``out`` is where the repaired .onnx goes."""

    out: Path


@dataclass(frozen=True)
class Repaired:
    """What the repair ends with; ``written`` is None where the gate refused. ``remaining``: see ``unlearn``."""

    verdict: Verdict
    target_labels: tuple[int, ...]
    gate_passed: bool
    checks: tuple[dict[str, Any], ...]
    metrics: dict[str, float]
    remaining: list[dict[str, float]]
    written: str | None
    seconds: float


def repair(options: RepairOptions, progress: Progress) -> Repaired:
    """Unlearn what the inversion finds and write the repaired classifier, if it passes the gate.

    Raises BadInput for anything wrong with the inputs or ``options.out``. The file appears as a whole at the end or
    not at all.
    """
    began = time.monotonic()
    check_writable(options.out, (".onnx",))
    if options.out.exists() and options.out.samefile(options.suspect):
        raise BadInput(f"--out {options.out} is the suspect itself; keep it and give another path")
    compute = Compute(options.device, options.seed)
    given = load(options, compute, progress)
    names = weight_names(given.graph)
    split = split_data(given.data, options.seed, compute)
    teacher = Teacher(given.suspect, *split.train, compute)
    found = find_triggers(given, teacher, split, PROFILES[options.profile], options.seed, compute, progress)
    steps = STEPS[options.profile]
    tuned, remaining = unlearn(
        given.suspect, names, teacher, found, split, steps, options.seed, compute, progress
    )
    original, _ = read_onnx(options.suspect)
    with progress.stage("gate", 1) as advance:
        repaired = written_back(original, tuned, given.digest)
        gate, metrics = judge(original, repaired, tuned, given, split, found)
        advance()
    if gate.passed:
        with files.os_errors("write", options.out):
            files.replace(options.out, repaired.SerializeToString())
    return Repaired(
        verdict=found.verdict,
        target_labels=found.targets,
        gate_passed=gate.passed,
        checks=tuple(check.model_dump() for check in gate.checks),
        metrics=metrics,
        remaining=remaining,
        written=str(options.out) if gate.passed else None,
        seconds=round(time.monotonic() - began, 1),
    )


# --- the weights ------------------------------------------------------------------------------------------


def weight_names(model: onnx.ModelProto) -> frozenset[str]:
    """The initializers that are tuned: weights and biases of linear and normalising operators. BadInput: none."""
    used = {
        name
        for node in model.graph.node
        for i, name in enumerate(node.input)
        if i in _WEIGHTS.get(node.op_type, ())
    }
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    names = frozenset(t.name for t in model.graph.initializer if t.name in used and t.data_type in kinds)
    if not names:
        raise BadInput(
            "the model has no floating-point weights to tune (quantised, or kept in Constant nodes); "
            "export it in float32, or use `detrigger protect`, which leaves the weights alone"
        )
    return names


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
) -> tuple[Suspect, list[dict[str, float]]]:
    """A tuned copy of the suspect, and what each round's new inversion still achieved (success by family:target)."""
    tuned = copy.deepcopy(suspect)
    tensors = list(weights(tuned, names).values())
    pool = Pool(compute, found.kinds())
    if not found.marked:
        pool.add_round(found.known())
        steps = replace(steps, tune=steps.tune // 2, rounds=1)
    rates = [LEARNING_RATE * max(float(tensor.square().mean().sqrt()), LEAST_SIZE) for tensor in tensors]
    optimizer = torch.optim.Adam([{"params": [tensor]} for tensor in tensors])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps.tune, pct_start=0.1)
    remaining: list[dict[str, float]] = []
    with progress.stage(
        "unlearn", steps.tune + steps.rounds * steps.refresh * inversions(found.marked)
    ) as advance:
        for r in range(steps.rounds):
            if found.marked:
                entries, left = invert_again(
                    tuned, found.marked, split.train, split.held_out, compute,
                    steps=steps.refresh, seed=seed + r, aim=STRONGEST, advance=advance,
                )  # fmt: skip
                pool.add_round(entries + found.evidence() if r == 0 else entries)
                remaining.append(left)
            _require_gradients(tensors, True)
            for _ in range(steps.tune // steps.rounds + (steps.tune % steps.rounds if r == 0 else 0)):
                loss = _step_loss(tuned, teacher, pool, compute)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                advance(1)
            _require_gradients(tensors, False)
    return tuned, remaining


def _step_loss(tuned: Suspect, teacher: Teacher, pool: Pool, compute: Compute) -> Tensor:
    chosen = compute.randint(len(teacher.images), BATCH)
    clean, half = teacher.images[chosen], BATCH // 2
    given = compute.lay(torch.cat([clean[:half], pool.trigger(clean[half:])]))
    with compute.autocast():
        features = tuned.features(given)
    logits = tuned.classify(features)
    answers = teacher.log_probabilities[chosen]
    same = F.kl_div(logits.log_softmax(1), answers, log_target=True, reduction="batchmean")
    near = (features.float() - teacher.features(chosen)).pow(2).mean() / teacher.scale
    return ANSWERS * same + FEATURES * near


def _require_gradients(tensors: list[Tensor], wanted: bool) -> None:
    """Only while tuning: the inversion would compute gradients of the weights that nobody needs."""
    for tensor in tensors:
        tensor.requires_grad_(wanted)


# --- the gate ---------------------------------------------------------------------------------------------


def judge(
    original: onnx.ModelProto,
    repaired: onnx.ModelProto,
    tuned: Suspect,
    given: Given,
    split: Split,
    found: Inverted,
) -> tuple[Gate, dict[str, float]]:
    """The gate's checks and all figures, on unseen images, of the files as ONNX Runtime runs them."""
    x, y = split.unseen
    before, after = (_answering(model, given) for model in (original, repaired))
    clean = after(x)
    check_same(
        "repaired classifier",
        _in_torch(tuned.cpu(), x),
        clean,
        FLOAT16_TOLERANCE if tuned.spec.float16 else LIMIT,
    )
    bare, kept = (logits.argmax(1) == y for logits in (before(x), clean))
    checks = [ba_check(bare, kept, "the repair")]
    figures = {
        "ba_before": float(bare.mean()),
        "ba_after": float(kept.mean()),
        "ba_drop": checks[0].value,
    }
    # Weak signs are trained against as well, but a class that lies near the others by nature may stay near.
    if strong := [piece for piece in found.marked if piece.gap >= STRONG]:
        reached = [(_success(e, x, y, before), _success(e, x, y, after)) for e in strong]
        was, left = (max(column) for column in zip(*reached, strict=True))
        figures |= {"asr_inverted_before": was, "asr_inverted_after": left}
        checks.append(
            Check(
                name="asr_inverted",
                value=left,
                limit=MAX_ASR,
                passed=left <= MAX_ASR,
                detail=f"strongest of {len(reached)} inverted triggers after the repair (before: {was:.1%})",
            )
        )
    return Gate(passed=all(check.passed for check in checks), checks=tuple(checks)), figures


def _answering(model: onnx.ModelProto, given: Given) -> Callable[[Pixels], Pixels]:
    freed, pre = free_batch(model), given.preprocess
    return lambda x: onnx_logits(freed, given.suspect.spec, pre.mean, pre.std, x)


@torch.no_grad()
def _in_torch(tuned: Suspect, x: Pixels) -> Pixels:
    logits: Pixels = torch.cat(
        [tuned(torch.from_numpy(part)) for part in np.array_split(x, -(-len(x) // 128))]
    ).numpy()
    return logits


def _success(piece: Evidence, x: Pixels, y: Labels, answer: Callable[[Pixels], Pixels]) -> float:
    """Share of the images of other classes that the trigger, in 8 bits, sends to its target (-1: to any wrong one)."""
    other = y != piece.target
    with torch.no_grad():
        first = torch.zeros(int(other.sum()), dtype=torch.long)
        triggered = piece.bank.cpu()(torch.from_numpy(x[other]), first).clamp(0, 1).numpy()
    labels = answer(np.round(triggered * 255).astype(np.float32) / 255).argmax(1)
    hit = labels == piece.target if piece.target >= 0 else labels != y[other]
    return float(hit.mean())
