"""The suspect's weights: which ones are tuned, where they lie in the imported graph, and back into the user's file."""

from __future__ import annotations

import onnx
from onnx import numpy_helper
from torch import Tensor

from detrigger.models.suspect import Suspect

# Operators by their inputs that hold weights. All else stays: statistics, and the mean and std of the input.
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
}


def weight_names(model: onnx.ModelProto) -> frozenset[str]:
    """The initializers that are tuned: weights and biases of linear and normalising operators, of floating point."""
    used = {
        name
        for node in model.graph.node
        for i, name in enumerate(node.input)
        if i in _WEIGHTS.get(node.op_type, ())
    }
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return frozenset(t.name for t in model.graph.initializer if t.name in used and t.data_type in kinds)


def weights(suspect: Suspect, names: frozenset[str]) -> dict[str, Tensor]:
    """The imported graph's tensors by the initializers that they come from; they have the same layout."""
    tensors: dict[str, Tensor] = {}
    for part in (suspect.body, suspect.head):
        for node in part.graph.nodes:
            name = node.meta.get("onnx_name")
            if node.op == "get_attr" and name in names:
                # Where both parts use it, it has to stay one tensor.
                setattr(part, node.target, tensors.setdefault(name, part.get_buffer(node.target)))
    return tensors


def written_back(original: onnx.ModelProto, tuned: Suspect, digest: str) -> onnx.ModelProto:
    """A copy of the suspect's file with the tuned weights in it; ``digest`` of the suspect goes into its metadata."""
    names = weight_names(original)
    tensors = weights(tuned, names)
    model = onnx.ModelProto()
    model.CopyFrom(original)
    for initializer in model.graph.initializer:
        if initializer.name in tensors:
            value = tensors[initializer.name].detach().cpu().numpy()
            kind = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
            initializer.CopyFrom(numpy_helper.from_array(value.astype(kind), initializer.name))
    model.metadata_props.add(key="detrigger.repaired_from", value=digest)
    return model
