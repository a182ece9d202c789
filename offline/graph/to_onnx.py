"""From torch to ONNX, and the proof that both say the same."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from typing import cast

import numpy as np
import onnx
import torch
from torch import nn

from detrigger.models.errors import DetriggerError
from detrigger.models.protected import strip_traces
from detrigger.models.suspect import TOLERANCE, session
from detrigger.offline.compute import at_once
from detrigger.offline.types import Pixels

_BATCH = 128


def to_onnx(
    network: nn.Module, shape: tuple[int, int, int], output: str, opset: int, *, given: str = "image"
) -> onnx.ModelProto:
    """Export a network on images (N, C, H, W), N open; input and output are named ``given`` and ``output``."""
    network = network.cpu().eval()
    example = torch.rand(2, *shape)
    # The exporter reports on its own progress; what matters of it is checked by ``difference``.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[given],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    return strip_traces(cast(torch.onnx.ONNXProgram, program).model_proto)


def images_a_run(x: Pixels) -> int:
    """How many of the images (N, C, H, W) are answered in one run: fewer where they are large."""
    return min(_BATCH, at_once(*x.shape[-2:]))


def run(model: onnx.ModelProto, x: Pixels, outputs: list[str]) -> list[Pixels]:
    """The named outputs of ``model`` in ONNX Runtime on the CPU for images (N, C, H, W)."""
    runner, batch = session(model), images_a_run(x)
    name = runner.get_inputs()[0].name
    parts = [runner.run(outputs, {name: x[i : i + batch]}) for i in range(0, len(x), batch)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def check_same(name: str, ours: Pixels, exported: Pixels, limit: float = TOLERANCE) -> float:
    """Largest difference, relative to the largest value where that is above 1; DetriggerError above ``limit``."""
    difference = float(np.abs(ours - exported).max() / max(1.0, float(np.abs(ours).max())))
    if not difference <= limit:
        raise DetriggerError(
            f"the exported {name} differs from the trained one by {difference:.2g} (limit {limit:g}); "
            "nothing is written",
            code="export_differs",
        )
    return difference
