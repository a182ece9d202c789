"""The Open Inference Protocol V2 as bytes: requests into one tensor, outputs into an answer. Knows no HTTP.

A body is JSON, or with the binary tensor extension JSON followed by raw little-endian, row-major tensors;
the header `Inference-Header-Content-Length` then says where the JSON ends, and 0 means that there is none
and the body is the only input, a batch of one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic_core
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detrigger.service.engine import Floats, Outputs
from detrigger.service.problem import Problem

INPUT = "image"
_OTHER_VALUES = 1000  # of a request's JSON beside the numbers of its tensor
DATATYPES: Mapping[str, tuple[str, Any]] = {
    "logits": ("FP32", "<f4"),
    "logits_raw": ("FP32", "<f4"),
    "purified": ("FP32", "<f4"),
    "flag_score": ("FP32", "<f4"),
    "index": ("INT64", "<i8"),
    "flagged": ("BOOL", "?"),
}


class _Tolerant(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Input(_Tolerant):
    name: str
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=8)
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(_Tolerant):
    name: str
    parameters: dict[str, Any] = {}


class _Request(_Tolerant):
    id: str = Field(default="", max_length=200)
    parameters: dict[str, Any] = {}
    inputs: list[_Input] = Field(min_length=1, max_length=1)
    outputs: list[_Output] | None = Field(default=None, max_length=2 * len(DATATYPES))


@dataclass(frozen=True, slots=True)
class Inference:
    """A request understood: one batch of images, and which outputs are wanted in which form."""

    id: str
    pixels: Floats  # (n, C, H, W) in [0, 1]
    outputs: tuple[tuple[str, bool], ...]  # name, whether binary


def parse(
    body: bytes,
    header_length: int | None,
    shape: tuple[int, int, int],
    offered: Sequence[str],
    max_images: int,
) -> Inference:
    """Read the body of an inference request.

    Args:
        body: as received.
        header_length: the value of Inference-Header-Content-Length; None where it was not sent.
        shape: (C, H, W) of the model's images.
        offered: the outputs that this deployment gives.
        max_images: the most images of one request.

    Raises:
        Problem: the body is malformed, or the tensor is not as the model wants it.
    """
    if header_length == 0:
        pixels = _raw(body, (1, *shape))
        return Inference("", pixels, tuple((name, True) for name in offered))
    if header_length is not None and header_length > len(body):
        raise Problem("malformed_body", "Inference-Header-Content-Length is larger than the body")
    text = body if header_length is None else body[:header_length]
    most = max_images * int(np.prod(shape))
    if (
        text.count(b",") > most + _OTHER_VALUES
    ):  # before millions of values take the interpreter from everybody
        raise Problem("tensor_refused", f"a request may hold {most} numbers at most")
    try:
        request = _Request.model_validate(pydantic_core.from_json(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Problem("malformed_body", f"{where}: {first['msg']}") from error
    except ValueError as error:
        raise Problem("malformed_body", "the body is no valid JSON") from error
    tensor = request.inputs[0]
    if tensor.name != INPUT:
        raise Problem("tensor_refused", f"the model has one input, named {INPUT}")
    if tensor.datatype != "FP32":
        raise Problem("tensor_refused", f"{INPUT} must be FP32, pixels scaled to [0, 1]")
    if len(tensor.shape) != 4 or tuple(tensor.shape[1:]) != shape or tensor.shape[0] < 1:
        raise Problem("tensor_refused", f"{INPUT} must have the shape {[-1, *shape]}, not {tensor.shape}")
    if tensor.shape[0] > max_images:
        raise Problem("too_many_images", f"a request may hold {max_images} images at most")
    rest = memoryview(body)[header_length:] if header_length is not None else memoryview(b"")
    pixels = _pixels(tensor, rest)
    return Inference(request.id, pixels, _wanted(request, offered))


def _pixels(tensor: _Input, rest: memoryview) -> Floats:
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if tensor.data is not None or size != len(rest):
            raise Problem("malformed_body", "binary_data_size and what follows the JSON do not agree")
        return _raw(rest, tuple(tensor.shape))
    if tensor.data is None or len(rest):
        raise Problem("malformed_body", f"{INPUT} has neither data nor binary_data_size, or too much of both")
    try:
        values = np.asarray(tensor.data, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise Problem("tensor_refused", f"the data of {INPUT} are not numbers in even rows") from error
    return _in_range(values, tuple(tensor.shape))


def _raw(data: bytes | memoryview, shape: tuple[int, ...]) -> Floats:
    if len(data) != 4 * int(np.prod(shape)):
        raise Problem("tensor_refused", f"{len(data)} bytes are no FP32 tensor of shape {list(shape)}")
    return _in_range(np.frombuffer(data, "<f4"), shape)


def _in_range(values: NDArray[np.float32], shape: tuple[int, ...]) -> Floats:
    if values.size != int(np.prod(shape)):
        raise Problem("tensor_refused", f"{values.size} numbers are no tensor of shape {list(shape)}")
    if not (values.min() >= 0.0 and values.max() <= 1.0):  # false for NaN as well
        raise Problem("tensor_refused", f"the values of {INPUT} must lie in [0, 1]")
    return values.reshape(shape)


def _wanted(request: _Request, offered: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return tuple((name, binary) for name in offered)
    wanted: list[tuple[str, bool]] = []
    for output in request.outputs:
        if output.name not in offered:
            raise Problem("tensor_refused", f"outputs are {', '.join(offered)}, not {output.name[:40]!r}")
        if "classification" in output.parameters:
            raise Problem("tensor_refused", "the classification extension is not offered; ask for index")
        wanted.append((output.name, output.parameters.get("binary_data", binary) is True))
    return tuple(wanted)


def answer(
    name: str, version: str, inference: Inference, outputs: Outputs, index: NDArray[np.int64]
) -> tuple[bytes, int | None]:
    """Write the answer; the second value is for Inference-Header-Content-Length, None for plain JSON.

    Args:
        name: of the model.
        version: of the model.
        inference: the request.
        outputs: of the protected graph.
        index: the class of each image under the deployment's policy, -1 where it gives none.
    """
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output, binary in inference.outputs:
        datatype, numpy_type = DATATYPES[output]
        values = index if output == "index" else getattr(outputs, output)
        entry: dict[str, Any] = {"name": output, "datatype": datatype, "shape": list(values.shape)}
        if binary:
            data = np.ascontiguousarray(values, numpy_type).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = values.ravel().tolist()
        described.append(entry)
    head = {"model_name": name, "model_version": version, "id": inference.id, "outputs": described}
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([text, *tail]), len(text) if tail else None


def tensors(
    shape: tuple[int, int, int], classes: int, offered: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """`inputs` and `outputs` of the model's metadata; -1 is the batch."""
    shapes: dict[str, list[int]] = {
        "logits": [-1, classes],
        "logits_raw": [-1, classes],
        "purified": [-1, *shape],
    }
    return {
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [
            {"name": name, "datatype": DATATYPES[name][0], "shape": shapes.get(name, [-1])}
            for name in offered
        ],
    }
