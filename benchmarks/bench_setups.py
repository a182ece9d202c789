"""Wrong set-ups: each has to be stopped before a search, with the right hint, and right ones have to go on.

    python -m benchmarks.bench_setups --zoo ZOO [--outside ZOO] --models a,b,c,d [--right e,f]

Every suspect of ``--models`` is given in many wrong ways. Where the graph is unusual, it is the suspect's own behind a
few nodes that undo what a preprocess file would do. Then it is given in its right way as well. These and the suspects
of ``--right`` are also given as they are. Results go to `results/setups.json`, a row per suspect and
set-up; rows that are there are not measured again. Nothing is searched: import, own accuracy and gradient alone.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks import rows
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.run import SetupRefused, begin

RESULTS = Path(__file__).parent / "results" / "setups.json"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
"""CIFAR-10's own, as most people give them."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OWN = {"mean": list(MEAN), "std": list(STD)}
Op = tuple[str, Sequence[np.ndarray], dict[str, Any]]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Setup:
    """A wrong way to give a suspect.

    ``nodes`` stand before its graph, ``wrong`` and ``right`` are additions to the preprocess file (None: no such way),
    ``labels`` mistakes the labels, and ``hint`` are words that the reason has to hold.
    """

    name: str
    hint: str
    nodes: tuple[Op, ...] = ()
    wrong: dict[str, Any] | None = field(default_factory=dict)
    right: dict[str, Any] | None = None
    labels: Callable[[Labels, int], Labels] | None = None


def per_channel(values: Sequence[float]) -> np.ndarray:
    """For an image (N, C, H, W)."""
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


SWAP: Op = ("Gather", [np.array([2, 1, 0], np.int64)], {"axis": 1})
FROM_BYTES: Op = ("Div", [np.array(255, np.float32)], {})
UNNORMALISED: tuple[Op, ...] = (("Mul", [per_channel(STD)], {}), ("Add", [per_channel(MEAN)], {}))
FROM_SIGNED: tuple[Op, ...] = (
    ("Mul", [np.array(0.5, np.float32)], {}),
    ("Add", [np.array(0.5, np.float32)], {}),
)
LAYOUT: tuple[Op, ...] = (
    ("Reshape", [np.array([-1, 32, 32, 3], np.int64)], {}),
    ("Transpose", [], {"perm": [0, 3, 1, 2]}),
)
BYTES_OWN = {"mean": [255 * m for m in MEAN], "std": [255 * s for s in STD]}
BYTES = BYTES_OWN | {"range": 255}
BGR = {"channels": "BGR"}
ASSIGNED = "model's own order"


def swapped(y: Labels, _: int) -> Labels:
    """Labels where the first two folders stand for each other."""
    return np.where(y < 2, 1 - y, y)


def text_order(y: Labels, k: int) -> Labels:
    """Labels of folders that are named by numbers and sorted as text."""
    first = max(1, 12 - k)
    names = sorted(str(first + i) for i in range(k))
    return np.array([names.index(str(first + label)) for label in y], np.int64)


SETUPS = (
    Setup("graph wants BGR", "channels BGR", (SWAP,), {}, BGR),
    Setup("channels BGR given, graph wants RGB", "channels RGB", (), BGR),
    Setup("graph wants 0..255", "values in 0..255", (FROM_BYTES,), {}, {"range": 255}),
    Setup("range 255 given, graph wants 0..1", "values in 0..1 without", (), {"range": 255}),
    Setup("mean and std forgotten", "mean and std", UNNORMALISED, {}, OWN),
    Setup("mean and std of 0..255 given for 0..1", "for values in 0..255", UNNORMALISED, BYTES_OWN, BYTES),
    Setup("mean and std given, graph has them inside", "values in 0..1 without", (), IMAGENET),
    Setup("graph wants -1..1", "values in -1..1", FROM_SIGNED, {}, {"mean": [0.5] * 3, "std": [0.5] * 3}),
    Setup("graph wants BGR in 0..255", "channels BGR, values in 0..255", (FROM_BYTES, SWAP), {}, BGR | {"range": 255}),
    Setup("graph wants BGR, mean and std forgotten", "channels BGR, ", (*UNNORMALISED, SWAP), {}, BGR | OWN),
    Setup("layout mistaken", "layout NHWC", LAYOUT),
    Setup("class order shifted by one", ASSIGNED, labels=lambda y, k: (y + 1) % k),
    Setup("two folders swapped", ASSIGNED, labels=swapped),
    Setup("numbered folders in text order", ASSIGNED, labels=text_order),
)  # fmt: skip
PLAIN = Setup("as it is", "", wrong=None, right={})


def behind(model: onnx.ModelProto, nodes: Sequence[Op]) -> onnx.ModelProto:
    """The classifier behind these operators, each with its constants after what it is given."""
    if not nodes:
        return model
    graph = model.graph
    name = graph.input[0].name
    made = []
    for i, (op, constants, attributes) in enumerate(nodes):
        names = [f"setup_{i}_{j}" for j in range(len(constants))]
        graph.initializer.extend(numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True))
        before = f"setup_{i - 1}" if i else name
        made.append(helper.make_node(op, [before, *names], [f"setup_{i}"], name=f"setup_{i}", **attributes))
    for node in graph.node:
        node.input[:] = [made[-1].output[0] if given == name else given for given in node.input]
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*made, *rest])
    return model


@dataclass(frozen=True)
class Given:
    """A suspect of a zoo."""

    folder: Path
    data: Path

    @classmethod
    def of(cls, folder: Path, zoo: Path) -> Given:
        """A suspect whose images are in its own zoo, or else in ``zoo``."""
        part = folder.name.split("-")[0]
        images = (place / "data" / part / "clean_defense.npz" for place in (folder.parent.parent, zoo))
        return cls(folder, next(data for data in images if data.exists()))

    def tried(self, setup: Setup, *, wrong: bool) -> dict[str, Any]:
        """What a scan says before it searches: the reason why it does not, and the accuracy."""
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            pre = json.loads((self.folder / "preprocess.json").read_text())
            nodes = setup.nodes
            if setup is not PLAIN and "mean" in pre:  # a graph that takes 0..1, as the set-ups mean it
                nodes += (
                    ("Sub", [per_channel(pre.pop("mean"))], {}),
                    ("Div", [per_channel(pre.pop("std"))], {}),
                )
            pre |= (setup.wrong if wrong else setup.right) or {}
            (work / "preprocess.json").write_text(json.dumps(pre))
            model = onnx.load(self.folder / "model.onnx")
            onnx.save(behind(model, nodes), work / "model.onnx")
            with np.load(self.data) as held:
                x, y = held["x"], held["y"]
            if setup.labels and wrong:
                y = setup.labels(y, len(pre["classes"]))
            np.savez(work / "clean.npz", x=x, y=y)
            options = Options(
                suspect=work / "model.onnx", data=work / "clean.npz", preprocess=work / "preprocess.json"
            )
            began, reason = time.monotonic(), ""
            try:
                accuracy = begin(options, Compute("cpu", 0), SilentProgress()).accuracy
            except SetupRefused as refused:
                accuracy, reason = refused.accuracy, refused.reason
        assert accuracy is not None
        return {
            "stopped": bool(reason),
            "accuracy": round(accuracy.overall, 4),
            "reason": reason,
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__, outside=True)
    parser.add_argument("--right", default="", help="suspects that are given as they are alone")
    arguments = parser.parse_args()
    if arguments.zoo is None:
        print("bench_setups: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("wrong", "setup", "model"))
    chosen = rows.models_of(arguments)
    for name in (*chosen, *filter(None, arguments.right.split(","))):
        for setup in (PLAIN, *(SETUPS if name in chosen else ())):
            for wrong in (False, True):
                key = {"model": name, "setup": setup.name, "wrong": wrong}
                if (setup.wrong if wrong else setup.right) is None or results.has(key):
                    continue
                given = Given.of(rows.folder_of(arguments, name), arguments.zoo)
                row = given.tried(setup, wrong=wrong)
                results.add(key | row | ({"hinted": setup.hint in row["reason"]} if wrong else {}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
