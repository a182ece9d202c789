"""What every job starts from: what it was asked for, the checked suspect, and the clean images."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect import Suspect, describe, read_onnx, take_in
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import Dataset, check_against_logits, load_dataset
from detrigger.offline.inputs.logic import Logic, LogicRefused, examine, told_of
from detrigger.offline.inputs.split import as_float
from detrigger.offline.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every job is asked for; ``device`` is "auto", "cpu" or "cuda"."""

    suspect: Path
    data: Path
    preprocess: Path | None = None
    device: str = "auto"
    profile: str = "standard"
    seed: int = 0
    feature_node: str | None = None
    trust_setup: bool = False


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
    data = load_dataset(options.data, pre, progress)
    if pre is None:
        pre = Preprocess.plain(data.x.shape[1], data.x.shape[2], data.x.shape[3])
    with progress.stage("structure", 1) as advance, told_of(data, own_digest):
        logic = _looked_at(model, pre, data, progress)
        advance()
    with (
        progress.stage("import", 1) as advance,
        told_of(data, own_digest),
        logic.file(options.suspect) as path,
    ):
        try:
            found = take_in(
                path,
                mean=pre.mean,
                std=pre.std,
                size=pre.size,
                images=as_float(data.x[:8]),
                feature_node=options.feature_node,
                bgr=pre.order == "BGR",
            )
        except BadInput as error:
            if not logic.findings:
                raise
            raise LogicRefused(
                f"{logic.summary()}; without it the import is refused: {error}", logic
            ) from error
        suspect = found.suspect
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


def _looked_at(model: onnx.ModelProto, pre: Preprocess, data: Dataset, progress: Progress) -> Logic:
    """The graph's logic, said aloud. What stops the look stops the import as well, which says it better."""
    try:
        logic = examine(model, pre, data)
    except LogicRefused:
        raise
    except BadInput as error:
        progress.note(f"warning: the graph was not looked at for logic: {error}")
        return Logic()
    for finding in logic.findings:
        progress.note(f"warning: logic in the graph, at node {finding.node}: {finding.why}")
    if logic.findings:
        progress.note(f"it is cut out; {1 - logic.changed:.1%} of the clean images keep their label")
    return logic


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
