"""ONNX Runtime, the reference for every comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.suspect.file import first_line
from detrigger.models.suspect.spec import OnnxSpec, dims_of, image_input

TINY = np.float32(1e-12)
"""The least probability whose logarithm is taken."""
MOST_IN_BATCH = 1024
"""Images in a batch that a file may be fixed at."""

Pixels = npt.NDArray[np.float32]


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A CPU session of ONNX Runtime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BadInput(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


def as_input(x: Pixels, spec: OnnxSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """What the classifier takes: images (N, C, H, W) in [0, 1], normalised and in the graph's layout."""
    shape = (1, -1, 1, 1)
    x = x[:, ::-1] if spec.bgr else x
    x = (x - np.array(mean, np.float32).reshape(shape)) / np.array(std, np.float32).reshape(shape)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else x)


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The batch size that the graph's input is declared for, None where it is open.

    Raises:
        BadInput: more than ``MOST_IN_BATCH``, as every image would be repeated so often.
    """
    dims = dims_of(image_input(model))
    batch = dims[0] if dims else None
    if batch is not None and batch > MOST_IN_BATCH:
        raise BadInput(
            f"the model takes batches of {batch} images and no others; export it with an open batch dimension"
        )
    return batch


def alone(model: onnx.ModelProto, output: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Answers to inputs of which each is the only one in its batch; a fixed batch is filled with copies of it."""
    n = fixed_batch(model) or 1
    run = session(model)
    parts = []
    for i in range(len(x)):
        part = np.asarray(_run(run, model, output, np.repeat(x[i : i + 1], n, 0)))
        if n == 1 and part.ndim == 1 and part.size > 1:
            part = part[None, :, None]  # the batch of one was squeezed away
        parts.append(part[:1] if part.ndim else part)
    return _concatenated(parts)


def together(model: onnx.ModelProto, output: str, x: npt.NDArray[Any], batch: int = 128) -> npt.NDArray[Any]:
    """Answers to inputs in batches of at most ``batch``; ``model`` has an open batch."""
    run = session(model)
    return _concatenated([_run(run, model, output, x[i : i + batch]) for i in range(0, len(x), batch)])


def onnx_logits(
    model: onnx.ModelProto, spec: OnnxSpec, mean: tuple[float, ...], std: tuple[float, ...], x: Pixels
) -> Pixels:
    """Logits (N, K) of images (N, C, H, W) in [0, 1] by ONNX Runtime; ``model`` has an open batch (``free_batch``)."""
    names = [o.name for o in model.graph.output]
    name = spec.output_name if spec.output_name in names else names[0]
    out = together(model, name, as_input(x, spec, mean, std)).astype(np.float32)
    return np.log(np.maximum(out, TINY)) if spec.softmax else out


def run_node(
    model: onnx.ModelProto, node: onnx.NodeProto, values: dict[str, npt.NDArray[Any]]
) -> list[npt.NDArray[Any]]:
    """The outputs of one node of ``model`` for given values of everything that it and its subgraphs read."""
    wanted = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "node",
        [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in values.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in wanted],
    )
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = ort.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[npt.NDArray[Any]] = run.run(wanted, values)
    return found


def constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    """Values of the initializers and of Constant nodes, by name."""
    found = {t.name: _array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = _array(attribute.t)
                elif attribute.name in ("value_int", "value_ints"):
                    found[node.output[0]] = np.array(helper.get_attribute_value(attribute), np.int64)
                elif attribute.name in ("value_float", "value_floats"):
                    found[node.output[0]] = np.array(helper.get_attribute_value(attribute), np.float32)
    return found


def _array(tensor: TensorProto) -> npt.NDArray[Any]:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"the constant {tensor.name} is not what its shape says: {first_line(error)}"
        ) from error


def _run(run: ort.InferenceSession, model: onnx.ModelProto, output: str, x: npt.NDArray[Any]) -> Any:
    entry = image_input(model)
    half = entry.type.tensor_type.elem_type == TensorProto.FLOAT16
    try:
        return run.run([output], {entry.name: x.astype(np.float16) if half else x})[0]
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BadInput(f"the model does not run in ONNX Runtime: {first_line(error)}") from error


def _concatenated(parts: list[Any]) -> npt.NDArray[Any]:
    try:
        return np.concatenate(parts)
    except (ValueError, TypeError) as error:  # scalars, strings, sequences
        raise BadInput(f"the model's answers cannot be put together: {first_line(error)}") from error
