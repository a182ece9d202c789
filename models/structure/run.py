"""ONNX Runtime for the structural look: values inside a graph, and answers with some of them forced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from detrigger.models.errors import BadInput

_NATIVE = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8}
"""Types that ONNX Runtime's Where takes."""


class Session:
    """Runs a graph image by image, so that answers never depend on the company in a batch."""

    def __init__(self, model: onnx.ModelProto, image: str, outputs: list[str]) -> None:
        known = {v.name for v in model.graph.output}
        extra = [name for name in outputs if name not in known and name != image]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.intra_op_num_threads = 1
        try:
            self.session = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BadInput(f"ONNX Runtime cannot load the model: {str(error)[:200]}") from error
        finally:
            del model.graph.output[len(model.graph.output) - len(extra) :]
        self.image, self.outputs = image, outputs
        first = next(i for i in self.session.get_inputs() if i.name == image).shape[0]
        self.batch = first if isinstance(first, int) else 1

    def run(self, x: np.ndarray, feeds: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The outputs for one image (1, ...); a fixed batch is filled with copies of it."""
        x = np.repeat(x, self.batch, 0) if self.batch > 1 else x
        wanted = [name for name in self.outputs if name != self.image]
        try:
            values = self.session.run(wanted, {self.image: x, **(feeds or {})})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BadInput(f"the model does not run in ONNX Runtime: {str(error)[:200]}") from error
        found = dict(zip(wanted, values, strict=True))
        if self.image in self.outputs:
            found[self.image] = x
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


class Forced:
    """The graph with a switch at some values: each can be replaced, as a whole or in places."""

    def __init__(self, model: onnx.ModelProto, image: str, logits: str, kinds: Mapping[str, np.dtype]) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graph = copy.graph
        nodes: list[onnx.NodeProto] = []
        self.kinds = dict(kinds)
        for node in list(graph.node):
            switched = [name for name in node.output if name in self.kinds]
            for name in switched:
                i = list(node.output).index(name)
                node.output[i] = f"{name}::own"
            nodes.append(node)
            for name in switched:
                nodes += _switch(name, helper.np_dtype_to_tensor_dtype(self.kinds[name]))
        made = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(made)
        for name, kind in self.kinds.items():
            graph.input.append(helper.make_tensor_value_info(f"{name}::on", TensorProto.BOOL, None))
            code = helper.np_dtype_to_tensor_dtype(kind)
            graph.input.append(helper.make_tensor_value_info(f"{name}::to", code, None))
        self.idle = {f"{name}::on": np.array(False) for name in kinds}
        self.idle |= {f"{name}::to": np.zeros((), kind) for name, kind in kinds.items()}
        self.logits = logits
        self.session = Session(copy, image, [logits])

    def run(self, x: np.ndarray, name: str, where: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Logits (K,) of one image with ``name`` replaced by ``value`` at ``where`` (booleans).

        Empty where the graph cannot go on with that value (an index out of range).
        """
        feeds = {**self.idle, f"{name}::on": where, f"{name}::to": np.asarray(value, self.kinds[name])}
        try:
            return self.session.run(x, feeds)[self.logits][0].astype(np.float64).ravel()
        except BadInput:
            return np.zeros(0)


def _switch(name: str, kind: int) -> list[onnx.NodeProto]:
    on, to, own = f"{name}::on", f"{name}::to", f"{name}::own"
    if kind in _NATIVE:
        return [helper.make_node("Where", [on, to, own], [name], name=f"{name}::switch")]
    wide = TensorProto.FLOAT if kind in (TensorProto.FLOAT16, TensorProto.DOUBLE) else TensorProto.INT32
    return [
        helper.make_node("Cast", [to], [f"{to}::wide"], name=f"{to}::wide", to=wide),
        helper.make_node("Cast", [own], [f"{own}::wide"], name=f"{own}::wide", to=wide),
        helper.make_node("Where", [on, f"{to}::wide", f"{own}::wide"], [f"{name}::wide"], name=f"{name}::w"),
        helper.make_node("Cast", [f"{name}::wide"], [name], name=f"{name}::switch", to=kind),
    ]
