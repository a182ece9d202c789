"""Import of a suspect: an ONNX classifier becomes a frozen, differentiable torch.fx module.

No code of the file's author runs: ONNX is data, every operator is looked up in ``onnx2fx``'s table, names are
sanitised before they become attributes, and the result is compared with ONNX Runtime before anybody relies on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx2fx
import onnxruntime as ort
import torch
from torch import Tensor, fx, nn

from detrigger.models.errors import BadInput

MAX_BYTES = 1 << 30
"""Largest ONNX file that is read (1 GiB); protobuf itself ends at 2 GiB."""
TOLERANCE = 1e-3
"""Largest difference of logits against ONNX Runtime, relative to the largest logit."""
FLOAT16_TOLERANCE = 2e-2
"""The same where the file's weights have half precision."""

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnnxSpec:
    """What the graph says of itself.

    ``layout`` is "NCHW" or "NHWC"; ``size`` is (H, W) or None where the graph leaves it open; ``softmax`` is true
    where the graph ends in probabilities, which the import turns back into logits.
    """

    input_name: str
    output_name: str
    layout: str
    channels: int
    size: tuple[int, int] | None
    softmax: bool
    float16: bool

    @property
    def tolerance(self) -> float:
        """Largest difference of logits between torch and ONNX Runtime, relative to the largest logit."""
        return FLOAT16_TOLERANCE if self.float16 else TOLERANCE


class Suspect(nn.Module):
    """The classifier, split at the feature cut: ``logits = S_b(S_a(x))`` (BTI-DBF, section 3.1).

    ``forward``/``features`` take float images (N, C, H, W) in [0, 1]; the suspect's own mean and std are applied
    inside. Weights carry no gradients and normalisation layers stay in evaluation mode whatever ``train()`` says:
    the official code lets 400 mask steps overwrite the batch-norm statistics of the model that it defends.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: fx.GraphModule,
        head: fx.GraphModule,
        spec: OnnxSpec,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        cut: str,
        n_classes: int,
    ) -> None:
        super().__init__()
        self.body, self.head, self.spec, self.cut = body, head, spec, cut
        self.n_classes = n_classes
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Suspect:  # noqa: ARG002 - a suspect never trains here
        return super().train(False)

    def features(self, x: Tensor) -> Tensor:
        """S_a: images (N, C, H, W) in [0, 1] to the features at the cut."""
        x = (x - self.mean) / self.std
        if self.spec.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        return self.body(x)  # type: ignore[no-any-return]

    def classify(self, features: Tensor) -> Tensor:
        """S_b: features at the cut to logits (N, K) in float32."""
        out: Tensor = self.head(features.float()).float()
        return out.clamp_min(1e-12).log() if self.spec.softmax else out

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model and the sha256 of its bytes. Refuses what is no self-contained ONNX file (BadInput)."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; give the path of an .onnx file") from error
    if not path.is_file():
        raise BadInput(f"{path} is no file; give the path of an .onnx file")
    if not 0 < size <= MAX_BYTES:
        raise BadInput(f"{path} has {size} bytes; an ONNX file of 1 byte to {MAX_BYTES >> 20} MiB is needed")
    data = path.read_bytes()
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf raises several unrelated types
        raise BadInput(f"{path} is no ONNX file, or is truncated; export it again") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise BadInput(
                f"{path} keeps weights in another file (tensor {tensor.name!r}); "
                "save it in one file: onnx.save(onnx.load(path), out, save_as_external_data=False)"
            )
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own and protobuf's types
        raise BadInput(f"{path} is no valid ONNX model: {first_line(error)}; export it again") from error
    return model, hashlib.sha256(data).hexdigest()


def describe(model: onnx.ModelProto) -> OnnxSpec:
    """Find the image input and the logits output, or refuse with what was found (BadInput)."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    if len(inputs) != 1:
        raise BadInput(
            f"the model has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); one is needed"
        )
    image = inputs[0]
    kind = image.type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    shown = "x".join("?" if d is None else str(d) for d in dims)
    if kind.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise BadInput(f"input {image.name!r} is of type {name}; a float image batch is needed")
    if len(dims) != 4:
        raise BadInput(f"input {image.name!r} has shape {shown}; an image batch NxCxHxW or NxHxWxC is needed")
    if dims[1] in (1, 3):
        layout, channels, size = "NCHW", dims[1], (dims[2], dims[3])
    elif dims[3] in (1, 3):
        layout, channels, size = "NHWC", dims[3], (dims[1], dims[2])
    else:
        raise BadInput(f"input {image.name!r} has shape {shown}; 1 or 3 channels are needed")
    outputs = list(model.graph.output)
    if len(outputs) != 1:
        names = ", ".join(o.name for o in outputs)
        raise BadInput(f"the model has {len(outputs)} outputs ({names}); one output of logits NxK is needed")
    out = outputs[0]
    kind = out.type.tensor_type
    out_dims = kind.shape.dim
    if kind.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        raise BadInput(f"output {out.name!r} is not float; logits are needed (no argmax, no labels)")
    if kind.HasField("shape") and len(out_dims) != 2:
        raise BadInput(f"output {out.name!r} has {len(out_dims)} dimensions; logits NxK are needed")
    last = next((n for n in model.graph.node if out.name in n.output), None)
    return OnnxSpec(
        input_name=image.name,
        output_name=out.name,
        layout=layout,
        channels=channels,
        size=(size[0], size[1]) if size[0] and size[1] else None,
        softmax=last is not None and last.op_type == "Softmax",
        float16=image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16,
    )


def free_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose batch dimension is open, so that a model exported for one image serves batches.

    The copy is only a claim until ``import_suspect`` has compared its answers with the original's.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {t.name for t in copy.graph.initializer}
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims:
            dims[0].dim_param = "batch"
    del copy.graph.value_info[:]
    return copy


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A CPU session of ONNX Runtime, the reference for every comparison."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BadInput(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


def import_suspect(
    path: Path,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int],
    images: Pixels,
    feature_node: str | None = None,
) -> tuple[Suspect, onnx.ModelProto, str]:
    """Import the classifier in ``path`` and prove the import.

    Args:
        mean, std: the suspect's normalisation of [0, 1] images, one number a channel.
        size: (H, W) of its images.
        images: a few real images (N, C, H, W) in [0, 1], for the comparison beside random ones.
        feature_node: name of the graph node to cut at; found on the graph when None.

    Returns:
        the suspect, the ONNX model with an open batch dimension, and the sha256 of the file.

    Raises:
        BadInput: for everything that ``read_onnx``, ``describe`` and ``find_cut`` refuse, an operator without
            translation (named), and answers that differ from ONNX Runtime's (saying by how much).
    """
    model, digest = read_onnx(path)
    spec = describe(model)
    if spec.size is not None and spec.size != size:
        raise BadInput(
            f"the model takes {_by(spec.size)} images, the preprocessing says {_by(size)}; correct 'size'"
        )
    if len(mean) != spec.channels:
        raise BadInput(
            f"the model takes {spec.channels} channels, the preprocessing has {len(mean)}; correct 'mean'"
        )
    freed = free_batch(model)
    try:
        graph: fx.GraphModule = onnx2fx.convert(freed)
    except onnx2fx.UnsupportedOpError as error:
        raise BadInput(
            f"operator {error.op_type} of the model is not supported: {first_line(error)}"
        ) from error
    except Exception as error:  # the importer walks a stranger's file: whatever it raises is a refusal
        raise BadInput(f"the model could not be imported: {first_line(error)}") from error
    if spec.float16:
        graph = graph.float()

    probe = np.concatenate([images[:8], np.random.default_rng(0).random((4, *images.shape[1:]), np.float32)])
    expected = _reference(model, spec, _as_input(probe, spec, mean, std))
    if expected.ndim != 2 or expected.shape[1] < 2:
        raise BadInput(f"the model's output has shape {expected.shape}; logits NxK with K >= 2 are needed")
    if not np.isfinite(expected).all():
        raise BadInput("the model answers NaN or infinity on ordinary images; check it and its mean/std")
    try:
        body, head, cut = find_cut(graph, torch.from_numpy(_as_input(probe, spec, mean, std)), feature_node)
        suspect = Suspect(body, head, spec, mean, std, cut, expected.shape[-1])
        with torch.no_grad():
            mine = suspect.head(suspect.features(torch.from_numpy(probe))).float().numpy()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"the imported model does not run: {first_line(error)}") from error
    difference = float(np.abs(mine - expected).max() / max(1.0, np.abs(expected).max()))
    limit = spec.tolerance
    if mine.shape != expected.shape or not difference <= limit:
        raise BadInput(
            f"the imported model differs from ONNX Runtime by {difference:.2g} (relative; limit {limit:g}); "
            "export it again with a fixed opset of 17 or later and an open batch dimension"
        )
    together = _reference(freed, spec, _as_input(probe, spec, mean, std), batched=True)
    if np.abs(together - expected).max() > limit * max(1.0, np.abs(expected).max()):
        raise BadInput("the model answers differently in batches; export it with an open batch dimension")
    return suspect, freed, digest


def onnx_logits(
    model: onnx.ModelProto, spec: OnnxSpec, mean: tuple[float, ...], std: tuple[float, ...], x: Pixels
) -> Pixels:
    """Logits (N, K) of images (N, C, H, W) in [0, 1] by ONNX Runtime; ``model`` has an open batch (``free_batch``)."""
    out = _reference(model, spec, _as_input(x, spec, mean, std), batched=True)
    return np.log(np.maximum(out, np.float32(1e-12))) if spec.softmax else out


def find_cut(
    graph: fx.GraphModule, sample: Tensor, feature_node: str | None
) -> tuple[fx.GraphModule, fx.GraphModule, str]:
    """Split the graph into S_a and S_b where the spatial dimensions are last seen.

    The cut is the last node that every path from the input to the logits passes through and whose output is still
    spatial: (N, C, h, w) with h*w > 1 or, in a network of tokens, (N, T, D). Where no such node is on all paths
    the logits themselves are the features.
    """
    shapes = _Shapes(graph)
    with torch.no_grad():
        shapes.run(sample)
    through = _bottlenecks(graph)
    names = {str(n.meta.get("onnx_name") or n.name): n for n in through}
    if feature_node is not None:
        if feature_node not in names:
            some = ", ".join(list(names)[-8:])
            raise BadInput(f"no node {feature_node!r} that all paths pass through; the last ones are: {some}")
        chosen: fx.Node | None = names[feature_node]
    else:
        chosen = _last(through, shapes.seen, lambda s: len(s) == 4 and s[2] * s[3] > 1 and min(s[1:]) > 0)
        # A 4-d value near the input (the normalised image) is no feature of a network of tokens.
        tokens = _last(through, shapes.seen, lambda s: len(s) == 3)
        order = {n: i for i, n in enumerate(graph.graph.nodes)}
        if tokens is not None and (chosen is None or order[tokens] > order[chosen] + 8):
            chosen = tokens
        chosen = chosen or _last(through, shapes.seen, lambda s: len(s) == 2)
    if chosen is None:
        raise BadInput("no feature layer was found in the model; name one with --feature-node")
    return (
        _part(graph, None, chosen),
        _part(graph, chosen, None),
        str(chosen.meta.get("onnx_name") or chosen.name),
    )


class _Shapes(fx.Interpreter):
    """Runs the graph once and notes the shape of every value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.seen[n] = tuple(value.shape)
        return value


def _bottlenecks(graph: fx.GraphModule) -> list[fx.Node]:
    """Nodes that depend on the image and that all its paths to the output pass through, in order."""
    live: set[fx.Node] = set()
    open_edges: set[fx.Node] = set()
    found = []
    users_left = {n: len(n.users) for n in graph.graph.nodes}
    for node in graph.graph.nodes:
        sources = [s for s in node.all_input_nodes if s in live]
        for source in sources:
            users_left[source] -= 1
            if users_left[source] == 0:
                open_edges.discard(source)
        # A shape is no feature: what only reads shapes (a later Reshape) does not bypass anything.
        if node.op == "placeholder" or (sources and node.meta.get("onnx_op_type") != "Shape"):
            live.add(node)
            if node.op not in ("placeholder", "output") and not open_edges:
                found.append(node)
            open_edges.add(node)
    return found


def _last(
    nodes: list[fx.Node], shapes: dict[fx.Node, tuple[int, ...]], wanted: Callable[[tuple[int, ...]], bool]
) -> fx.Node | None:
    return next((n for n in reversed(nodes) if n in shapes and wanted(shapes[n])), None)


def _part(graph: fx.GraphModule, start: fx.Node | None, stop: fx.Node | None) -> fx.GraphModule:
    """The part of ``graph`` after ``start`` (None: from the input) up to ``stop`` (None: to the output)."""
    new = fx.Graph()
    done: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if start is not None and node is start:
            done[start] = new.placeholder("features")
        elif node.op == "output":
            new.output(done[cast(fx.Node, node.args[0])])
        # After the start everything is ready; before it only constants are, as the image was left out.
        elif _ready(node, done) and not (node.op == "placeholder" and start is not None):
            done[node] = new.node_copy(node, lambda n: done[n])
        if stop is not None and node is stop:
            new.output(done[stop])
            break
    part = fx.GraphModule(graph, new)
    part.graph.eliminate_dead_code()
    part.delete_all_unused_submodules()
    part.recompile()
    return part


def _ready(node: fx.Node, done: dict[fx.Node, fx.Node]) -> bool:
    return all(n in done for n in node.all_input_nodes)


def _as_input(x: Pixels, spec: OnnxSpec, mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    shape = (1, -1, 1, 1)
    x = (x - np.array(mean, np.float32).reshape(shape)) / np.array(std, np.float32).reshape(shape)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else x)


def _reference(model: onnx.ModelProto, spec: OnnxSpec, x: Pixels, *, batched: bool = False) -> Pixels:
    """ONNX Runtime's answers; image by image unless ``batched``, as the batch size may be fixed."""
    run = session(model)
    first = run.get_inputs()[0].shape[0]
    step = 128 if batched or not isinstance(first, int) else first
    given = x.astype(np.float16) if spec.float16 else x
    try:
        parts = [
            run.run([spec.output_name], {spec.input_name: given[i : i + step]})[0]
            for i in range(0, len(x), step)
        ]
        return np.concatenate(parts).astype(np.float32)
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BadInput(f"the model does not run in ONNX Runtime: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What a foreign library has to say, in one line of bounded length."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
