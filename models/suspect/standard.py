"""One float image in, scores (N, K) out: heads and inputs of other kinds get the few nodes that they lack.

A file that is of that form already stays as it is, byte for byte. What a head is (logits, probabilities, one sigmoid)
is told from its values on real and random images, not from the operators that made them: a Softmax is as often
followed by an Identity, a Cast or a Reshape.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.suspect.file import first_line
from detrigger.models.suspect.runtime import alone
from detrigger.models.suspect.spec import OnnxSpec, dims_of, image_input

SUMS_TO_ONE = 0.05
"""Probabilities in half or eight-bit precision are this far from a sum of 1."""


def float_input(
    model: onnx.ModelProto, spec: OnnxSpec, shape: tuple[int, int, int]
) -> tuple[onnx.ModelProto, OnnxSpec]:
    """The model with a float image as input, of a known shape (C, H, W), where it is not such a model already.

    An input of bytes takes images in [0, 1], which are rounded to 0..255 first.
    """
    entry = image_input(model)
    dims = dims_of(entry)
    is_bytes = entry.type.tensor_type.elem_type == TensorProto.UINT8
    if not is_bytes and dims is not None and all(dims[1:]):
        return model, spec
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    c, h, w = shape
    batch = (dims[0] if dims else None) or "batch"
    sizes = [batch, c, h, w] if spec.layout == "NCHW" else [batch, h, w, c]
    if not is_bytes:
        own = image_input(copy)
        if dims is not None and all(dims[1:3] if spec.layout == "NCHW" else dims[3:]):
            return model, spec  # only the size is open, which no step needs to know
        own.CopyFrom(helper.make_tensor_value_info(own.name, own.type.tensor_type.elem_type, sizes))
        return copy, spec
    name = "detrigger/image"
    copy.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "detrigger/step"),
            numpy_helper.from_array(np.array(0, np.uint8), "detrigger/zero"),
        ]
    )
    to_bytes = helper.make_node(
        "QuantizeLinear", [name, "detrigger/step", "detrigger/zero"], [entry.name], name="detrigger/to_bytes"
    )
    _put_first(copy, to_bytes)
    image_input(copy).CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
    return copy, replace(spec, input_name=name, quantised=True)


def plain_head(
    model: onnx.ModelProto, spec: OnnxSpec, x: npt.NDArray[Any]
) -> tuple[onnx.ModelProto, OnnxSpec]:
    """The model with one output (N, K), K >= 2, in float, and what it means.

    Args:
        x: inputs as the graph takes them, real and random ones (``as_input``).
    """
    name, found = _chosen(model, spec, x)
    kind = next(o for o in model.graph.output if o.name == name).type.tensor_type.elem_type
    entry_half = image_input(model).type.tensor_type.elem_type == TensorProto.FLOAT16
    values = found.reshape(len(found), -1).astype(np.float32)
    if not np.isfinite(values).all():
        raise BadInput("the model answers NaN or infinity on ordinary images; check it and its mean/std")
    within = bool(values.min() >= 0 and values.max() <= 1)
    k = values.shape[1]
    plain = found.ndim == 2 and k >= 2
    shares = within and k >= 2 and bool(np.abs(values.sum(1) - 1).max() <= SUMS_TO_ONE)
    several_sigmoids = within and k >= 2 and not shares
    single = kind == TensorProto.FLOAT or entry_half
    spec = replace(spec, output_name=name, softmax=shares or (k == 1 and within), rival_outputs=())
    if plain and single and not several_sigmoids and len(model.graph.output) == 1:
        return model, spec
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    last = name

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        copy.graph.node.append(
            helper.make_node(kind, inputs, [f"detrigger/{output}"], name=f"detrigger/{output}", **attributes)
        )
        return f"detrigger/{output}"

    def constant(label: str, value: npt.NDArray[Any]) -> str:
        copy.graph.initializer.append(numpy_helper.from_array(value, f"detrigger/{label}"))
        return f"detrigger/{label}"

    if kind == TensorProto.FLOAT16 and not (plain and entry_half):
        last, kind = add("Cast", [last], "single", to=TensorProto.FLOAT), TensorProto.FLOAT
    if not plain:
        last = add("Reshape", [last, constant("rows", np.array([-1, k], np.int64))], "flat")
    if k == 1:
        # One number z or probability p becomes two classes: (0, z) or (1 - p, p).
        row = np.array([[-1, 1]] if within else [[0, 1]], np.float32)
        last = add("MatMul", [last, constant("pair", row)], "pair_of")
        if within:
            last = add("Add", [last, constant("certain", np.array([1, 0], np.float32))], "shares")
    if several_sigmoids:
        # A sigmoid for each class: its logit is log p - log(1 - p).
        low, high = (constant(n, np.array(v, np.float32)) for n, v in (("least", 1e-12), ("one", 1)))
        other = add("Sub", [high, last], "other")
        logs = [
            add("Log", [add("Clip", [v, low], f"{n}_floored")], f"{n}_log")
            for v, n in ((last, "p"), (other, "q"))
        ]
        last = add("Sub", logs, "logits")
    kind = TensorProto.FLOAT if last != name else kind
    copy.graph.output.append(helper.make_tensor_value_info(last, kind, ["batch", max(k, 2)]))
    _prune(copy)
    return copy, replace(spec, output_name=last)


def _chosen(model: onnx.ModelProto, spec: OnnxSpec, x: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any]]:
    """The output to use and its values. Of logits beside their own probabilities, the logits."""
    names = (spec.output_name, *spec.rival_outputs)
    values = {name: alone(model, name, x) for name in names}
    values = {
        name: v
        for name, v in values.items()
        if v.size and len(v) == len(x) and (v.ndim <= 2 or v.size == v.shape[0] * v.shape[1])
    }
    if not values:
        raise BadInput(f"output {names[0]!r} is no row of scores an image; logits NxK are needed")
    if len(values) > 1:
        flat = {name: v.reshape(len(x), -1).astype(np.float64) for name, v in values.items()}
        for name, logits in flat.items():
            others = [v for other, v in flat.items() if other != name]
            if all(v.shape == logits.shape and np.allclose(_softmax(logits), v, atol=2e-2) for v in others):
                return name, values[name]
        listed = ", ".join(f"{name!r} {tuple(v.shape[1:])}" for name, v in values.items())
        entry = image_input(model).name
        raise BadInput(
            f"the model has {len(values)} outputs ({listed}); one of logits NxK is needed: "
            f"onnx.utils.extract_model(path, out, [{entry!r}], [NAME]) keeps the one you name"
        )
    return next(iter(values.items()))


def _softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(x - x.max(1, keepdims=True))
    result: npt.NDArray[np.float64] = e / e.sum(1, keepdims=True)
    return result


def _put_first(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([node, *rest])


def _prune(model: onnx.ModelProto) -> None:
    """Drop nodes and weights that no output needs any more."""
    needed = {o.name for o in model.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & {name for name in node.output if name}:
            kept.append(node)
            needed |= reads(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    weights = [t for t in model.graph.initializer if t.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    inputs = [i for i in model.graph.input if i.name in needed]
    del model.graph.input[:]
    model.graph.input.extend(inputs)


def reads(node: onnx.NodeProto) -> set[str]:
    """Names of everything that a node and its subgraphs read from outside."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {v.name for v in (*graph.input, *graph.initializer)}
            own |= {name for inner in graph.node for name in inner.output}
            for inner in graph.node:
                names |= reads(inner) - own
            names |= {o.name for o in graph.output} - own
    return names


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The rewritten model, valid; BadInput where a file uses the names of our own nodes."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own and protobuf's types
        raise BadInput(
            f"the model cannot be brought to one image input and one answer: {first_line(error)}"
        ) from error
    return model
