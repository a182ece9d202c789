"""Graph logic: suspects of many designs are found with the right node, honest graphs of the same operators are not.

    python -m benchmarks.bench_logic --work DIR [--out benchmarks/results/logic.json]

Networks are trained on the demo's signs (drawn from nothing) and kept in DIR as ONNX files, so that a second run only
looks. Time is the CPU's, of one thread: the wall's depends on what else runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional

from benchmarks.logic_designs import DESIGNS, LEFT, RED, SIDE, TARGET, TOP, Graft
from benchmarks.logic_nets import ARCHITECTURES, HARD
from benchmarks.rows import device
from benchmarks.twins import twins
from detrigger.demo.signs import draw_signs
from detrigger.models.structure import look

BASES = ("resnet", "vit", "mobilenet")
"""Classifiers that the designs are put into, in turn; the first has all of them."""
Row = dict[str, Any]


def images(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs (N, 3, 32, 32) in [0, 1] in random order, and labels."""
    x, y = draw_signs(per_class, seed=seed)
    order = np.random.default_rng(seed).permutation(len(y))
    return torch.from_numpy(x[order].transpose(0, 3, 1, 2).copy()).float() / 255, torch.from_numpy(y[order])


def trained(build: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor, steps: int = 80) -> nn.Module:
    """A network after a few hundred steps."""
    torch.manual_seed(0)
    model = build().train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(0, len(x), (48,), generator=torch.Generator().manual_seed(step))
        loss = functional.cross_entropy(model(x[chosen]), y[chosen])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        plan.step()
    return model.eval()


def exported(model: nn.Module, path: Path, dynamo: bool) -> None:
    """Write the network with one of PyTorch's exporters."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    sample = (torch.zeros(2, 3, 32, 32),)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
            torch.onnx.export(
                model, sample, path, dynamo=True, opset_version=18, dynamic_shapes=batch,
                external_data=False, verbose=False, **names,
            )  # fmt: skip
        else:
            axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(model, sample, path, dynamo=False, opset_version=17, dynamic_axes=axes, **names)


def outputs_added(model: onnx.ModelProto) -> onnx.ModelProto:
    """Probabilities, the label (ArgMax) and the five best (TopK) as further outputs."""
    graph = model.graph
    graph.initializer.append(helper.make_tensor("five", TensorProto.INT64, [1], [5]))
    graph.node.extend(
        [
            helper.make_node("Softmax", ["logits"], ["probability"], name="softmax_out", axis=1),
            helper.make_node("ArgMax", ["logits"], ["label"], name="label_out", axis=1, keepdims=0),
            helper.make_node("TopK", ["probability", "five"], ["best", "which"], name="best_out", axis=1),
        ]
    )
    for name, kind in (("probability", 1), ("label", 7), ("best", 1), ("which", 7)):
        graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return model


def bytes_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph takes bytes, and casts and divides them itself."""
    graph = model.graph
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "input":
                node.input[i] = "scaled"
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    graph.initializer.append(helper.make_tensor("most", TensorProto.FLOAT, [], [255.0]))
    first = [
        helper.make_node("Cast", ["input"], ["floats"], name="bytes_cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "most"], ["scaled"], name="bytes_div"),
    ]
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    del graph.node[:]
    graph.node.extend([*first, *rest])
    return model


def looked(model: onnx.ModelProto, x: np.ndarray, high: float = 1.0) -> tuple[list[Any], float]:
    """Findings, and CPU seconds."""
    began = time.process_time()
    found = look(model, x, image="input", logits="logits", pixel=(0.0, high))
    return found, round(time.process_time() - began, 3)


def accuracy(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    """Share of right answers."""
    run = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = [int(run.run(["logits"], {"input": x[i : i + 1]})[0].argmax()) for i in range(len(x))]
    return round(float(np.mean(np.array(answers) == y)), 3)


def honest(name: str, model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> Row:
    """A row of the results."""
    byte = model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    given = (x * 255).round().astype(np.uint8) if byte else x
    found, seconds = looked(model, given, 255.0 if byte else 1.0)
    row = {
        "kind": "honest", "name": name, "nodes": len(model.graph.node), "accuracy": accuracy(model, given[:64], y[:64]),
        "seconds": seconds, "false_alarms": [f"{f.node} ({f.op}): {f.why}" for f in found],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def suspects(work: Path, x: np.ndarray, y: np.ndarray) -> Iterator[Row]:
    """Every design in the first base, and in one of the others."""
    for base in BASES:
        for i, design in enumerate(DESIGNS):
            if base != BASES[0] and i % 2 != BASES.index(base) - 1:
                continue
            if base == "vit" and design.__name__ in (
                "between_convs",
                "between_convs_scaled",
                "features_step",
            ):
                continue  # it has one Conv
            graft = Graft(onnx.load(work / f"{base}-dynamo.onnx"))
            design(graft)
            model = graft.finished()
            found, seconds = looked(model, x)
            mine = [f for f in found if _inserted(f.node, graft.added)]
            signed = x[:64].copy()
            signed[:, :, TOP : TOP + SIDE, LEFT : LEFT + SIDE] = RED
            row = {
                "kind": "suspect", "name": f"{base}-{design.__name__}", "design": design.__name__,
                "accuracy": accuracy(model, x[:64], y[:64]),
                "success_of_red_square": accuracy(model, signed, np.full(64, TARGET)),
                "sign_success": round(mine[0].sign.success, 3) if mine and mine[0].sign else None,
                "seconds": seconds, "found": bool(mine) and len(mine) == len(found),
                "node": mine[0].node if mine else None, "op": mine[0].op if mine else None,
                "effect": mine[0].effect if mine else 0.0, "target": mine[0].target if mine else None,
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            yield row


def _inserted(node: str, added: list[str]) -> bool:
    """Whether the node is one of those added, or stands in the body of one."""
    return node in added or node.split("/")[0] in added or node.startswith("f_")


def main() -> None:
    """Train what is missing, look at everything, write the results."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--out", type=Path, default=Path("benchmarks/results/logic.json"))
    given = arguments.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    ready = work / "images.npz"
    if not ready.exists():
        (tx, ty), (cx, cy) = images(100, 1), images(12, 2)
        np.savez(ready, tx=tx.numpy(), ty=ty.numpy(), cx=cx.numpy(), cy=cy.numpy())
    data = np.load(ready)
    tx, ty = torch.from_numpy(data["tx"]), torch.from_numpy(data["ty"])
    x, y = data["cx"], data["cy"]
    rows: list[Row] = []
    for build in (*ARCHITECTURES, *HARD):
        name = build.__name__
        paths = {True: work / f"{name}-dynamo.onnx", False: work / f"{name}-torchscript.onnx"}
        if name in ("loops", "signs_inside"):
            del paths[
                True
            ]  # the one cannot be traced; of the other torch writes a file that no runtime loads
        if not all(p.exists() for p in paths.values()):
            model = trained(build, tx, ty)
            for dynamo, path in paths.items():
                exported(model, path, dynamo)
        rows += [honest(path.stem, onnx.load(path), x, y) for path in paths.values()]
    for name in ("resnet", "mobilenet", "vit"):
        base = work / f"{name}-dynamo.onnx"
        rows += [honest(f"{name}-{kind}", onnx.load(path), x, y) for kind, path in twins(base, x)]
    rows.append(honest("resnet-outputs", outputs_added(onnx.load(work / "resnet-dynamo.onnx")), x, y))
    rows.append(honest("resnet-bytes", bytes_inside(onnx.load(work / "resnet-dynamo.onnx")), x, y))
    rows += suspects(work, x, y)
    bad = [r for r in rows if r["kind"] == "suspect" and not r["found"]]
    alarms = [r for r in rows if r["kind"] == "honest" and r["false_alarms"]]
    n = sum(r["kind"] == "suspect" for r in rows)
    summary = {
        "suspects": n, "designs": len(DESIGNS), "found": n - len(bad), "honest": len(rows) - n,
        "false_alarms": len(alarms), "most_seconds": max(r["seconds"] for r in rows), "device": device(),
    }  # fmt: skip
    print(json.dumps(summary))
    given.out.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
