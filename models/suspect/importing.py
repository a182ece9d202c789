"""The import of a suspect, step by step, and its comparison with ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import fx

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect.batch import CannotOpen, free_batch, one_by_one, opened, refuse_training
from detrigger.models.suspect.convert import to_fx
from detrigger.models.suspect.cut import find_cut
from detrigger.models.suspect.file import first_line, read_onnx, size_of
from detrigger.models.suspect.guard import tried
from detrigger.models.suspect.network import Suspect
from detrigger.models.suspect.quantised import float_twin
from detrigger.models.suspect.runtime import Pixels, alone, as_input, fixed_batch, together
from detrigger.models.suspect.spec import OnnxSpec, describe, image_input
from detrigger.models.suspect.standard import checked, float_input, plain_head

NOISE = 1e-4
"""Largest difference, relative to the largest answer, between an image's answers alone and in a batch, in a file that
declares an open batch: matrix products of other sizes are summed in another order."""
LABELS_AGREE = 0.9
"""Share of the images on which a quantised file and its float twin have to give the same label."""


@dataclass(frozen=True)
class Imported:
    """A proven import.

    ``graph`` is the file's own graph, with one float image batch in and scores (N, K) out. ``tunable`` is the same in
    float numbers, for weights that are to be changed: ``graph`` itself, except for quantised files. ``notes`` say what
    had to be done to the file, a line each. ``twin_agreement`` is the share of images with the same label in both.
    """

    suspect: Suspect
    graph: onnx.ModelProto
    tunable: onnx.ModelProto
    digest: str
    notes: tuple[str, ...] = ()
    twin_agreement: float = 1.0


def import_suspect(path: Path, pre: Preprocess, images: Pixels, feature_node: str | None = None) -> Imported:
    """Import the classifier in ``path`` and prove the import.

    Args:
        pre: size, mean, std and order of channels that the suspect expects.
        images: a few real images (N, C, H, W) in [0, 1], RGB or grey, for the comparison beside random ones.
        feature_node: name of the graph node to cut at; found on the graph when None.

    Raises:
        BadInput: for everything that the steps refuse, an operator without translation (named), answers that depend
            on the other images in a batch, answers that differ from ONNX Runtime's (saying by how much), and what
            does not survive its trial (``guard.py``).
    """

    def work() -> Imported:
        return unguarded(path, pre, images, feature_node)

    tried(work, size_of(path))
    return work()


def unguarded(path: Path, pre: Preprocess, images: Pixels, feature_node: str | None = None) -> Imported:
    """``import_suspect`` in this process alone, which a hostile file may crash or fill."""
    model, digest = read_onnx(path)
    refuse_training(model)
    spec = replace(describe(model, channels=pre.channels, size=pre.size), bgr=pre.order == "BGR")
    _check_fit(spec, pre, model)
    shape = (spec.channels, *pre.size)
    model, spec = float_input(model, spec, shape)
    probe = np.concatenate([images[:8], np.random.default_rng(0).random((4, *shape), np.float32)])
    x = as_input(probe, spec, pre.mean, pre.std)
    model, spec = plain_head(model, spec, x)
    checked(model)
    expected = alone(model, spec.output_name, x).astype(np.float32)
    graph, wide, notes = _with_open_batch(model, spec, x, expected)
    tunable = checked(float_twin(wide)) if spec.quantised else wide
    body, head, cut = _halves(tunable, x, feature_node)
    suspect = Suspect(body, head, spec, pre.mean, pre.std, cut, expected.shape[1], fixed_batch(tunable))
    agreement = _compare(suspect, probe, expected, len(images[:8]))
    if fixed_batch(tunable) is not None:
        tunable = graph
    return Imported(suspect, graph, tunable, digest, notes, agreement)


def _check_fit(spec: OnnxSpec, pre: Preprocess, model: onnx.ModelProto) -> None:
    if spec.size is not None and spec.size != pre.size:
        raise BadInput(
            f"the model takes {_by(spec.size)} images, the preprocessing says {_by(pre.size)}; correct 'size'"
        )
    if pre.channels != spec.channels:
        raise BadInput(
            f"the model takes {spec.channels} channels, the preprocessing has {pre.channels}; correct 'mean'"
        )
    takes_bytes = image_input(model).type.tensor_type.elem_type == onnx.TensorProto.UINT8
    if takes_bytes and (any(pre.mean) or any(s != 1 for s in pre.std)):
        raise BadInput(
            "the model takes bytes, which have no mean, std or range; take them out of the preprocessing"
        )


def _with_open_batch(
    model: onnx.ModelProto, spec: OnnxSpec, x: Pixels, expected: Pixels
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """The graph to serve, a graph of plain nodes for torch, and notes."""
    b = fixed_batch(model)
    free = free_batch(model)
    difference = _distance(free, x, expected)
    if difference == 0 or (b is None and difference <= max(NOISE, spec.tolerance * spec.float16)):
        return free, free, ()
    dynamic = any(n.op_type == "DynamicQuantizeLinear" for n in model.graph.node)
    if b is None and not dynamic:
        where = _mixing(model, x)
        raise BadInput(
            f"the answer to an image depends on the others in its batch (by {difference:.2g} of the largest answer), "
            f"because of {where}; export the model in evaluation mode, without operations over the batch"
        )
    wide, why, mend = (
        free,
        "activations are quantised over the whole batch",
        "quantise it statically for speed",
    )
    if b is not None:
        mend = "export it with an open batch dimension for speed"
        try:
            wide = checked(opened(model, _repeated(x, 2 * b)))
            difference = _distance(wide, x, expected)
            why = f"in a batch its answers differ by {difference:.1g}"
        except CannotOpen as error:
            wide, why = model, f"{error} holds the batch size {b}"
            difference = float("inf")
        if difference == 0:
            return (
                wide,
                wide,
                (f"the batch size {b} was fixed and is open now; every answer is the same to the bit",),
            )
    single = checked(one_by_one(model, x.shape[1:]))
    if _distance(single, x, expected) > NOISE:
        raise BadInput("the model answers differently when it runs one image after another")
    if b is not None and difference > spec.tolerance and not dynamic:
        wide = model
    return (
        single,
        wide,
        (f"images run one after another, as {why}; {mend}",),
    )


def _distance(model: onnx.ModelProto, x: Pixels, expected: Pixels) -> float:
    """Largest difference in one batch from the answers alone, relative to the largest; infinite where it fails."""
    try:
        found = together(model, model.graph.output[0].name, x).astype(np.float32)
    except BadInput:
        return float("inf")
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _mixing(model: onnx.ModelProto, x: Pixels) -> str:
    """The first node whose value for an image depends on the others, found by running node after node."""
    try:
        opened(model, x[:2])
    except CannotOpen as error:
        return str(error)
    except Exception:  # ONNX Runtime's exceptions have no common base
        return "a node that could not be found"
    return "a node that could not be found"


def _repeated(x: Pixels, n: int) -> Pixels:
    return np.ascontiguousarray(np.resize(x, (n, *x.shape[1:])))


def _halves(
    tunable: onnx.ModelProto, x: Pixels, feature_node: str | None
) -> tuple[fx.GraphModule, fx.GraphModule, str]:
    """The graph in torch as S_a and S_b, and the name of the node between; ``x`` is a batch as the graph takes it."""
    graph = to_fx(tunable)
    try:
        return find_cut(graph, torch.from_numpy(x), feature_node, fixed_batch(tunable))
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"the imported model does not run: {first_line(error)}") from error


@torch.no_grad()
def _compare(suspect: Suspect, probe: Pixels, expected: Pixels, n_real: int) -> float:
    """Share of the real images with the same label; BadInput where the import is not what ONNX Runtime runs."""
    try:
        mine = suspect.answers(torch.from_numpy(probe)).numpy()
    except Exception as error:
        raise BadInput(f"the imported model does not run: {first_line(error)}") from error
    if mine.shape != expected.shape:
        raise BadInput(
            f"the imported model answers with shape {mine.shape}, ONNX Runtime with {expected.shape}"
        )
    agreement = float((mine.argmax(1) == expected.argmax(1))[: max(1, n_real)].mean())
    if suspect.spec.quantised:
        if agreement < LABELS_AGREE:
            raise BadInput(
                f"the quantised model and its float twin give the same label to {agreement:.0%} of the images only "
                f"(at least {LABELS_AGREE:.0%} are needed); give the float model that was quantised"
            )
        return agreement
    difference = float(np.abs(mine - expected).max() / max(1.0, np.abs(expected).max()))
    limit = suspect.spec.tolerance
    if not difference <= limit:
        raise BadInput(
            f"the imported model differs from ONNX Runtime by {difference:.2g} (relative; limit {limit:g})"
        )
    return agreement


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
