"""What an ONNX graph says of itself: which input is the image, which output the answer."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from detrigger.models.errors import BadInput

TOLERANCE = 1e-3
"""Largest difference of logits between torch and ONNX Runtime, relative to the largest logit."""
FLOAT16_TOLERANCE = 2e-2
"""The same where the file's weights have half precision."""
QUANTISED_TOLERANCE = 0.1
"""The same between a quantised file and its float twin: integer kernels round in other places."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
LABELS = ("ArgMax", "TopK", "ArgMin")
"""Operators that end in a label."""


@dataclass(frozen=True)
class OnnxSpec:
    """What the graph says of itself.

    ``layout`` is "NCHW" or "NHWC"; ``size`` is (H, W) or None where the graph leaves it open. ``softmax`` is true where
    the answers are probabilities, which the import turns back into logits. ``float16`` says that some weights have half
    precision, ``quantised`` that some are integers. ``rival_outputs`` are other float outputs that might be the answer.
    ``bgr`` is what the user says of the order of its channels; images are RGB everywhere else.
    """

    input_name: str
    output_name: str
    layout: str
    channels: int
    size: tuple[int, int] | None
    softmax: bool
    float16: bool
    quantised: bool = False
    rival_outputs: tuple[str, ...] = ()
    bgr: bool = False

    @property
    def tolerance(self) -> float:
        """Largest difference of logits between torch and ONNX Runtime, relative to the largest logit."""
        exact = FLOAT16_TOLERANCE if self.float16 else TOLERANCE
        return QUANTISED_TOLERANCE if self.quantised else exact


def describe(
    model: onnx.ModelProto, *, channels: int | None = None, size: tuple[int, int] | None = None
) -> OnnxSpec:
    """Find the image input and the logits output, or refuse with what was found (BadInput).

    ``channels`` and ``size`` are what the user says of the images; they count where the graph leaves its own open.
    """
    image = image_input(model)
    layout, found, own_size = _image_shape(image, channels, size)
    names = _answers(model)
    maker = next((n for n in model.graph.node if names[0] in n.output), None)
    kinds = {t.data_type for t in model.graph.initializer}
    return OnnxSpec(
        input_name=image.name,
        output_name=names[0],
        layout=layout,
        channels=found,
        size=own_size,
        softmax=maker is not None and maker.op_type == "Softmax",
        float16=TensorProto.FLOAT16 in kinds or image.type.tensor_type.elem_type == TensorProto.FLOAT16,
        quantised=any(is_quantised(node) for node in model.graph.node),
        rival_outputs=tuple(names[1:]),
    )


def is_quantised(node: onnx.NodeProto) -> bool:
    """Does the node compute with integers that stand for real numbers?"""
    kind: str = node.op_type
    return kind.startswith("QLinear") or kind in (
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm",
    )  # fmt: skip


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input that is not a weight."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(i.name for i in inputs)
        raise BadInput(
            f"the model has {len(inputs)} inputs ({names}); one is needed, the image batch: "
            "fix the others as initializers before you export"
        )
    image: onnx.ValueInfoProto = inputs[0]
    return image


def dims_of(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The sizes that are fixed, None for the open ones; None altogether where the graph does not say."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim]


def _image_shape(
    image: onnx.ValueInfoProto, given: int | None, given_size: tuple[int, int] | None
) -> tuple[str, int, tuple[int, int] | None]:
    """Layout, channels and (H, W) or None."""
    kind = image.type.tensor_type.elem_type
    if kind not in (*FLOATS, TensorProto.UINT8):
        name = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else kind
        raise BadInput(
            f"input {image.name!r} is of type {name}; a float image batch is needed (or uint8, with the "
            "preprocessing inside the graph): export the model in float32"
        )
    dims = dims_of(image)
    if dims is None:
        dims = [None] * 4
    shown = "x".join("?" if d is None else str(d) for d in dims)
    if len(dims) != 4:
        raise BadInput(f"input {image.name!r} has shape {shown}; an image batch NxCxHxW or NxHxWxC is needed")
    first, last = dims[1], dims[3]
    if first in (1, 3):
        layout, channels, size = "NCHW", first, (dims[2], dims[3])
    elif last in (1, 3):
        layout, channels, size = "NHWC", last, (dims[1], dims[2])
    elif first is not None and last is not None:
        raise BadInput(f"input {image.name!r} has shape {shown}; 1 or 3 channels are needed")
    elif given not in (1, 3):
        raise BadInput(
            f"input {image.name!r} has shape {shown}, which leaves the channels open; give a preprocess file whose "
            "'mean' has one number a channel"
        )
    elif last is None and (first is None or (given_size is not None and first != given_size[0])):
        layout, channels, size = "NCHW", given, (dims[2], dims[3])
    else:
        layout, channels, size = "NHWC", given, (dims[1], dims[2])
    assert channels is not None  # noqa: S101 - for the type checker
    return layout, channels, (size[0], size[1]) if size[0] and size[1] else None


def _answers(model: onnx.ModelProto) -> list[str]:
    """Outputs that may be the classes' scores, the likeliest first; others (labels, features) are left out."""
    floats = [o for o in model.graph.output if o.type.tensor_type.elem_type in FLOATS]
    if not floats:
        raise BadInput(_labels_only(model))
    shaped = [o for o in floats if _is_score(dims_of(o))]
    if not shaped:
        out = floats[0]
        shown = "x".join("?" if d is None else str(d) for d in dims_of(out) or [])
        raise BadInput(f"output {out.name!r} has shape {shown}; logits NxK (or NxKx1x1, Nx1) are needed")
    return [o.name for o in shaped]


def _is_score(dims: list[int | None] | None) -> bool:
    return dims is None or len(dims) in (1, 2) or (len(dims) == 4 and dims[2:] == [1, 1]) or None in dims[2:]


def _labels_only(model: onnx.ModelProto) -> str:
    """Why a model without float outputs is refused, with the tensor that would do."""
    out = model.graph.output[0].name if model.graph.output else "?"
    makers = {name: node for node in model.graph.node for name in node.output}
    name, seen = out, set()
    while name in makers and name not in seen:
        seen.add(name)
        node = makers[name]
        if node.op_type in LABELS:
            node_name = node.name or node.op_type
            entry = image_input(model).name
            if _gives(model, node.input[0]):
                return (
                    f"output {out!r} is a label ({node.op_type} node {node_name!r}); logits are needed: "
                    f"onnx.utils.extract_model(path, out, [{entry!r}], [{node.input[0]!r}]) keeps them"
                )
            return f"output {out!r} is a label ({node.op_type} node {node_name!r}); logits are needed"
        name = node.input[0] if node.input else ""
    return f"output {out!r} is not float; logits are needed (no argmax, no labels)"


def _gives(model: onnx.ModelProto, name: str) -> bool:
    """Was the mend tried? With ``name`` as its output the model is valid and gives two dimensions of floats."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.output[:]
    other.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    try:
        inferred = onnx.shape_inference.infer_shapes(other)
        dims = dims_of(next(v for v in inferred.graph.output if v.name == name))
    except Exception:  # native code: whatever it raises, the mend is not proven
        return False
    return dims is None or len(dims) in (2, 4)
