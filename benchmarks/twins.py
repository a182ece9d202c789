"""The same classifier in other numbers: quantised by ONNX Runtime, and in half precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

KINDS = ("qdq", "qdq_per_channel", "qoperator", "dynamic", "float16")
CALIBRATION = 32
"""Images that static quantisation looks at."""


def twins(path: Path, x: np.ndarray, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, Path]]:
    """Kind and file of each twin of ``path``, made where it is missing. ``x``: images as the classifier takes them."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # Shapes that the exporter wrote down can contradict what ONNX Runtime's quantiser infers.
    bare = onnx.load(path)
    del bare.graph.value_info[:]
    name = bare.graph.input[0].name
    path = path.with_suffix(".bare")
    onnx.save(bare, path)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter([{name: x[i : i + 1]} for i in range(CALIBRATION)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    logging.getLogger().setLevel(logging.ERROR)
    makers: dict[str, Callable[[Path], Any]] = {
        "qdq": lambda out: quantize_static(path, out, Reader()),
        "qdq_per_channel": lambda out: quantize_static(path, out, Reader(), per_channel=True),
        "qoperator": lambda out: quantize_static(path, out, Reader(), quant_format=QuantFormat.QOperator),
        "dynamic": lambda out: quantize_dynamic(path, out),
        "float16": lambda out: onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), out),
    }
    for kind in kinds:
        out = path.with_name(f"{path.stem}-{kind}.onnx")
        if not out.exists():
            makers[kind](out)
        yield kind, out
