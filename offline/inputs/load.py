"""What every job starts from: what it was asked for, the checked suspect, and the clean images."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect import Suspect, describe, import_suspect, onnx_logits, read_onnx
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import (
    UNLABELLED,
    Dataset,
    check_against_logits,
    load_dataset,
    load_unlabelled,
    with_answers,
)
from detrigger.offline.inputs.logic import Logic, LogicRefused, examine, told_of
from detrigger.offline.inputs.split import as_float
from detrigger.offline.progress import Progress

_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every job is asked for.

    ``device`` is "auto", "cpu" or "cuda"; ``unlabelled``: the images have no classes; ``strict``: no damaged file may
    be left out. ``budget``: minutes that the job may take, or None for as many as it needs. BadInput unless above 0.
    """

    suspect: Path
    data: Path
    preprocess: Path | None = None
    device: str = "auto"
    profile: str = "standard"
    seed: int = 0
    feature_node: str | None = None
    trust_setup: bool = False
    unlabelled: bool = False
    strict: bool = False
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise BadInput(f"--budget {self.budget:g} is no time: give minutes above 0")


@dataclass(frozen=True)
class JobInputs:
    """What the user gave, checked: the suspect, its graph with an open batch, and the clean images.

    Where ``logic`` was found in the graph, suspect and graph are without it.
    ``tunable`` is the graph in float numbers and plain nodes, for weights that are to be changed.
    """

    suspect: Suspect
    graph: onnx.ModelProto
    tunable: onnx.ModelProto
    digest: str
    preprocess: Preprocess
    data: Dataset
    logic: Logic = field(default_factory=Logic)


def load(options: Options, compute: Compute, progress: Progress) -> JobInputs:
    """Read and check everything that the user gave."""
    pre = Preprocess.load(options.preprocess) if options.preprocess else None
    model, own_digest = read_onnx(options.suspect)
    spec = describe(model, channels=pre.channels if pre else None, size=pre.size if pre else None)
    if pre is None and spec.size is not None:
        pre = Preprocess.plain(*spec.size, spec.channels)
    data: Dataset | None = None
    if options.unlabelled:
        x = load_unlabelled(options.data, pre, progress, strict=options.strict)
    else:
        data = load_dataset(options.data, pre, progress, strict=options.strict)
        x = data.x
    if pre is None:
        pre = Preprocess.plain(*x.shape[1:])
    classes = data.classes if data else pre.classes
    with progress.stage("structure", 1) as advance, told_of(classes, len(x), own_digest):
        logic = _looked_at(model, pre, x, progress)
        advance()
    with (
        progress.stage("import", 1) as advance,
        told_of(classes, len(x), own_digest),
        logic.file(options.suspect) as path,
    ):
        try:
            found = import_suspect(path, pre, as_float(x[:8]), options.feature_node)
        except BadInput as error:
            if not logic.findings:
                raise
            raise LogicRefused(
                f"{logic.summary()}; without it the import is refused: {error}", logic
            ) from error
        suspect = found.suspect
        if data is None:
            data = _answered(x, suspect, found.graph, pre)
            progress.note(f"warning: {UNLABELLED}")
        check_against_logits(data, suspect.n_classes)
        advance()
    how = (
        f"searched on its float twin, {found.twin_agreement:.0%} same labels"
        if suspect.spec.quantised
        else "imported exactly"
    )
    progress.note(f"suspect: {suspect.n_classes} classes, features cut at {suspect.cut}, {how}")
    for note in found.notes:
        progress.note(f"suspect: {note}")
    pre = pre.model_copy(update={"classes": data.classes, "layout": suspect.spec.layout})
    digest = found.digest if logic.without is None else own_digest
    return JobInputs(suspect.to(compute.device), found.graph, found.tunable, digest, pre, data, logic)


def _looked_at(model: onnx.ModelProto, pre: Preprocess, x: NDArray[np.uint8], progress: Progress) -> Logic:
    """The graph's logic, said aloud. A graph that cannot be looked at may still be imported, but is never "clean"."""
    try:
        logic = examine(model, pre, x)
    except LogicRefused:
        raise
    except BadInput as error:
        logic = Logic(unseen=f"the graph could not be looked at for logic: {error}")
        progress.note(f"warning: {logic.unseen}")
    for finding in logic.findings:
        progress.note(f"warning: logic in the graph, at node {finding.node}: {finding.why}")
    if logic.findings:
        progress.note(f"it is cut out; {1 - logic.changed:.1%} of the clean images keep their label")
    return logic


def _answered(x: NDArray[np.uint8], suspect: Suspect, graph: onnx.ModelProto, pre: Preprocess) -> Dataset:
    """The images with the suspect's own answers, by ONNX Runtime."""
    classes = pre.classes or tuple(map(str, range(suspect.n_classes)))
    if len(classes) != suspect.n_classes:
        outputs = f"the model has {suspect.n_classes} outputs"
        raise BadInput(f"'classes' has {len(classes)} names and {outputs}; correct 'classes'")
    parts = (as_float(x[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE))
    logits = np.concatenate([onnx_logits(graph, suspect.spec, pre.mean, pre.std, part) for part in parts])
    return with_answers(x, logits.argmax(1).astype(np.int64), classes)


def check_writable(out: Path, suffixes: tuple[str, ...], flag: str = "--out") -> None:
    """BadInput now rather than after minutes of work, where ``out`` cannot become a file."""
    if out.suffix.lower() not in suffixes:
        raise BadInput(f"{flag} {out} has to end in {' or '.join(suffixes)}")
    if out.is_dir():
        raise BadInput(f"{flag} {out} is a folder; give the path of a file")
    if not out.parent.is_dir():
        raise BadInput(f"{flag} {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise BadInput(f"{flag} {out}: the folder {out.parent} cannot be written to; check its permissions")
