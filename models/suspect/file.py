"""Bytes to a checked ONNX model: limits, weights in a file beside it, local functions."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx.inliner

from detrigger.models.errors import BadInput

MAX_BYTES = 1 << 30
"""Largest ONNX file, weights beside it included, that is read (1 GiB); protobuf itself ends at 2 GiB."""
MAX_NODES = 20_000
"""More than the largest published image classifiers have."""


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model, its weights in it, and a sha256 of what was read.

    The digest is that of the file's bytes; where weights stand beside it, of those files' bytes as well, in the
    order of their names. Refuses what is not an ONNX file, and what lies outside the folder of the file (BadInput).
    """
    data = _bytes(path, MAX_BYTES)
    digest = hashlib.sha256(data)
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf raises several unrelated types
        raise BadInput(f"{path} is no ONNX file, or is truncated; export it again") from error
    if sum(1 for graph in _graphs(model) for _ in graph.node) > MAX_NODES:
        raise BadInput(f"{path} has more than {MAX_NODES} nodes, which no image classifier needs")
    _load_beside(path, model, digest, MAX_BYTES - len(data))
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own and protobuf's types
        raise BadInput(f"{path} is no valid ONNX model: {first_line(error)}; export it again") from error
    return inlined(model), digest.hexdigest()


def whole_file(path: Path) -> bytes:
    """The file's bytes; with weights beside it, those of one file that holds them."""
    data = _bytes(path, MAX_BYTES)
    model = onnx.load_from_string(data)
    if not any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(model)):
        return data
    _load_beside(path, model, hashlib.sha256(), MAX_BYTES - len(data))
    return bytes(model.SerializeToString())


def size_of(path: Path) -> int:
    """Bytes of the file and of what may stand beside it; 0 where there is none."""
    try:
        beside = path.with_name(path.name + ".data")
        return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    except (OSError, ValueError):
        return 0


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its local functions in place of their calls; the same one where it has none."""
    if not model.functions:
        return model
    try:
        flat = onnx.inliner.inline_local_functions(model, convert_version=True)
        onnx.checker.check_model(flat)
    except Exception as error:  # the inliner is native code and raises what it likes
        named = ", ".join(sorted({f.name for f in model.functions})[:3])
        raise BadInput(
            f"the model's local functions ({named}) cannot be inlined: {first_line(error)}; "
            "export it with torch.onnx.export(..., dynamo=False), or inline them with onnx.inliner"
        ) from error
    return flat


def first_line(error: BaseException) -> str:
    """What a foreign library has to say, in one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def _bytes(path: Path, limit: int, what: str = "an ONNX file") -> bytes:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise BadInput(f"{path}: {reason}; give the path of an .onnx file") from error
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path} is no file; give the path of an .onnx file")
    if not 0 < found.st_size <= limit:
        raise BadInput(f"{path} has {found.st_size} bytes; {what} of 1 byte to {limit >> 20} MiB is needed")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _load_beside(path: Path, model: onnx.ModelProto, digest: hashlib._Hash, limit: int) -> None:
    """Bring weights that stand in files beside ``path`` into the model: plain names in its own folder, no links."""
    outside = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL or t.external_data]
    places = {id(t): {entry.key: entry.value for entry in t.external_data} for t in outside}
    content: dict[str, bytes] = {}
    for name in sorted({place.get("location", "") for place in places.values()}):
        content[name] = _beside(path, name, limit)
        limit -= len(content[name])
        digest.update(content[name])
    for tensor in outside:
        place = places[id(tensor)]
        whole = content[place.get("location", "")]
        try:
            start = int(place.get("offset") or 0)
            length = int(place["length"]) if place.get("length") else len(whole) - start
        except ValueError as error:
            raise BadInput(f"{path}: tensor {tensor.name!r} has no readable offset or length") from error
        if not (start >= 0 and 0 <= length <= len(whole) - start):
            raise BadInput(
                f"{path}: tensor {tensor.name!r} lies outside of {place.get('location')!r} ({len(whole)} bytes); "
                "it is truncated or belongs to another export: copy both files again"
            )
        try:
            item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except Exception as error:  # unknown and string types
            raise BadInput(f"{path}: tensor {tensor.name!r} beside the file has no numeric type") from error
        if length > item * math.prod(tensor.dims) or min(tensor.dims, default=0) < 0:
            raise BadInput(f"{path}: tensor {tensor.name!r} has {length} bytes, more than its shape holds")
        tensor.raw_data = whole[start : start + length]
        tensor.data_location = onnx.TensorProto.DEFAULT
        tensor.ClearField("external_data")


def _beside(path: Path, name: str, limit: int) -> bytes:
    """The bytes of the file ``name`` in the folder of ``path``; never a link, never another folder."""
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise BadInput(f"{path} keeps weights in {name!r}; only a plain name beside the file is read")
    beside = path.parent / name
    if beside.is_symlink():
        raise BadInput(f"{path} keeps weights in {name!r}, which is a link; put the file itself there")
    if not beside.exists():
        raise BadInput(
            f"{path} keeps weights in {name!r}, which is not in its folder; put it there, or save one file: "
            "onnx.save(onnx.load(path), out, save_as_external_data=False)"
        )
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with os.fdopen(os.open(beside, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadInput(f"{path} keeps weights in {name!r}, which is no file")
            if found.st_size > limit:
                raise BadInput(
                    f"{path} and {name!r} have more than {MAX_BYTES >> 20} MiB; a smaller model is needed"
                )
            return file.read(limit + 1)
    except OSError as error:
        raise BadInput(f"{beside} cannot be read: {error.strerror}; check its permissions") from error


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        part = pending.pop()
        yield part
        for node in part.node:
            for attribute in node.attribute:
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for part in _graphs(model):
        if isinstance(part, onnx.GraphProto):
            yield from part.initializer
            for sparse in part.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in part.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
