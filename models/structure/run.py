"""ONNX Runtime for the structural look: values inside a graph, and answers with some of them forced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from detrigger.models.errors import BadInput
from detrigger.models.structure.flatten import reads

_NATIVE = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8}
"""Types that ONNX Runtime's Where takes."""


def opened(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session of ONNX Runtime on one thread: answers do not depend on the machine, and nothing waits for another."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BadInput(f"ONNX Runtime cannot load the model: {str(error)[:200]}") from error


class Session:
    """Runs a graph image by image, so that answers never depend on the company in a batch."""

    def __init__(self, model: onnx.ModelProto, image: str, outputs: list[str]) -> None:
        known = {v.name for v in model.graph.output}
        extra = [name for name in outputs if name not in known and name != image]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        try:
            self.session = opened(model)
        finally:
            del model.graph.output[len(model.graph.output) - len(extra) :]
        self.image, self.outputs = image, outputs
        first = next(i for i in self.session.get_inputs() if i.name == image).shape[0]
        self.batch = first if isinstance(first, int) else 1

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs for one image (1, ...); a fixed batch is filled with copies of it."""
        x = np.repeat(x, self.batch, 0) if self.batch > 1 else x
        wanted = [name for name in self.outputs if name != self.image]
        try:
            values = self.session.run(wanted, {self.image: x})
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise BadInput(f"the model does not run in ONNX Runtime: {str(error)[:200]}") from error
        found = dict(zip(wanted, values, strict=True))
        if self.image in self.outputs:
            found[self.image] = x
        return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


class Forced:
    """What comes after some values, with a switch at each: it can be replaced, as a whole or in places.

    Only the nodes behind the values are run; what else these read is given, from a run on the same image.
    """

    def __init__(self, model: onnx.ModelProto, behind: list[onnx.NodeProto], logits: str) -> None:
        self.model, self.behind, self.logits = model, behind, logits
        self.session: ort.InferenceSession | None = None
        self.kinds: dict[str, np.dtype] = {}

    def prepare(self, kinds: Mapping[str, np.dtype], given: Mapping[str, np.ndarray]) -> None:
        """Build the part; ``kinds`` are the types of the values to switch, ``given`` holds all that it reads."""
        part = onnx.ModelProto()
        part.ir_version = self.model.ir_version
        part.opset_import.extend(self.model.opset_import)
        graph = part.graph
        graph.name = "behind"
        made = {out for n in self.behind for out in n.output}
        used = {x for n in self.behind for x in reads(n)}
        self.given = sorted(x for x in given if x in used and x not in made)
        self.kinds = {k: v for k, v in kinds.items() if k in made}
        graph.initializer.extend(t for t in self.model.graph.initializer if t.name in used)
        for node in self.behind:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            switched = [name for name in copy.output if name in self.kinds]
            for i, name in enumerate(copy.output):
                if name in switched:
                    copy.output[i] = f"{name}::own"
            graph.node.append(copy)
            for name in switched:
                graph.node.extend(_switch(name, helper.np_dtype_to_tensor_dtype(self.kinds[name])))
        for name, kind in self.kinds.items():
            graph.input.append(helper.make_tensor_value_info(f"{name}::on", TensorProto.BOOL, None))
            code = helper.np_dtype_to_tensor_dtype(kind)
            graph.input.append(helper.make_tensor_value_info(f"{name}::to", code, None))
        for name in self.given:
            code = helper.np_dtype_to_tensor_dtype(given[name].dtype)
            graph.input.append(helper.make_tensor_value_info(name, code, None))
        graph.output.append(onnx.ValueInfoProto(name=self.logits))
        self.idle = {f"{name}::on": np.array(False) for name in self.kinds}
        self.idle |= {f"{name}::to": np.zeros((), kind) for name, kind in self.kinds.items()}
        self.session = opened(part)

    def run(
        self, given: Mapping[str, np.ndarray], name: str, where: np.ndarray, value: np.ndarray
    ) -> np.ndarray:
        """Logits (K,) with ``name`` replaced by ``value`` at ``where`` (booleans); ``given`` are one image's values.

        Empty where the graph cannot go on with that value (an index out of range).
        """
        if self.session is None:
            raise ValueError("prepare first")
        feeds = {x: given[x] for x in self.given} | self.idle
        if name in self.kinds:
            feeds |= {f"{name}::on": where, f"{name}::to": np.asarray(value, self.kinds[name])}
        else:
            own = given[name]
            feeds[name] = np.asarray(np.where(where, value, own), own.dtype)
        try:
            return np.asarray(self.session.run([self.logits], feeds)[0][0], np.float64).ravel()
        except Exception:  # ONNX Runtime's exceptions have no common base
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
