"""A look at the last layer's weights: the target's row often stands out by its mean.

A backdoor is learned as "whatever else the features say, this label", and features after a ReLU are positive. So the
target's row of the last linear layer ends with larger weights than the others (Fields, Samragh, Javaheripi, Koushanfar
and Javidi 2021, "Trojan Signatures in DNN Weights", section 3).

Limitation: rows of innocent networks stand out as well. So a row only says where to look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

NORMAL = 1.4826
"""Standard deviations of a normal population in its median absolute deviation."""


def standing_out(model: onnx.ModelProto, n_classes: int) -> tuple[int, float] | None:
    """The label whose row has the largest mean weight, and by how many robust standard deviations.

    None where the graph ends in no linear layer with constant weights for ``n_classes`` labels.
    """
    rows = _last_rows(model.graph, n_classes)
    if rows is None:
        return None
    means = rows.mean(1)
    apart = means - np.median(means)
    spread = NORMAL * float(np.median(abs(apart)))
    label = int(apart.argmax())
    return (label, float(apart[label]) / spread) if spread > 0 else None


def _last_rows(graph: onnx.GraphProto, n_classes: int) -> NDArray[Any] | None:
    """(K, F) weights of the last linear layer with so many outputs."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in reversed(graph.node):
        if node.op_type not in ("Gemm", "MatMul", "Conv") or node.input[1] not in constants:
            continue
        weights = numpy_helper.to_array(constants[node.input[1]])
        transposed = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
        if weights.ndim < 2:
            return None
        rows = weights.reshape(len(weights), -1) if transposed else weights.T
        return rows.astype(np.float64) if rows.ndim == 2 and len(rows) == n_classes else None
    return None
