"""``detrigger export``: a PyTorch classifier as the ONNX file that all other commands take.

The network comes from a function of the user's own code or of a library, which is run with the arguments given. Its
weights come from a safetensors file, which holds numbers alone, or from a state_dict of ``torch.save``, whose numbers
alone are read, in a process of its own (``graph/state_dict.py``). A pickled module is refused: loading one runs
whatever its author put there.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from detrigger.models import files
from detrigger.models.errors import BadInput
from detrigger.models.protected import OPSET
from detrigger.models.suspect import describe, first_line
from detrigger.offline.graph.state_dict import read_state_dict
from detrigger.offline.graph.to_onnx import check_same, run, to_onnx
from detrigger.offline.inputs.load import check_writable

PICKLED = (".pth", ".pt", ".bin")
"""What files of ``torch.save`` are called."""


@dataclass(frozen=True)
class ExportOptions:
    """What ``detrigger export`` is asked for; ``factory`` is "module:function", called with ``arguments`` by name."""

    factory: str
    weights: Path
    size: tuple[int, int]
    channels: int
    out: Path
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What was written; ``difference`` is the largest one of logits between torch and ONNX Runtime."""

    written: str
    n_classes: int
    n_weights: int
    difference: float


def export(options: ExportOptions) -> Exported:
    """Export the classifier; it takes `input` (N, C, H, W) float32 as the network does, and gives `logits` (N, K).

    Raises BadInput where the factory, the weights or the network cannot be used; DetriggerError where ONNX Runtime
    answers differently from torch. Nothing is written then.
    """
    check_writable(options.out, (".onnx",))
    network = load_weights(build(options.factory, options.arguments), options.weights)
    network = network.float().eval().requires_grad_(False)
    shape = (options.channels, *options.size)
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    logits = answer(network, images)
    try:
        model = to_onnx(network, shape, "logits", OPSET, given="input")
    except Exception as error:  # the exporter meets the user's own code: whatever it raises is a refusal
        raise BadInput(f"the network of {options.factory} cannot be exported: {first_line(error)}") from error
    describe(model)
    difference = max(
        check_same("classifier", logits[:n].numpy(), run(model, images[:n].numpy(), ["logits"])[0])
        for n in (1, len(images))
    )
    with files.os_errors("write", options.out):
        files.replace(options.out, model.SerializeToString())
    n_weights = sum(parameter.numel() for parameter in network.parameters())
    return Exported(str(options.out), logits.shape[1], n_weights, difference)


def build(factory: str, arguments: dict[str, Any]) -> nn.Module:
    """What the function returns for the arguments; its module is looked for in the current folder first, as with
    `python -m`.
    """
    module_name, _, function_name = factory.partition(":")
    if not (module_name and function_name):
        raise BadInput(f"--factory {factory!r} has to look like module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        network = getattr(importlib.import_module(module_name), function_name)(**arguments)
    except Exception as error:  # the user's own code
        raise BadInput(f"--factory {factory}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(network, nn.Module):
        raise BadInput(f"--factory {factory} returned {type(network).__name__}; a torch.nn.Module is needed")
    return network


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """The network with exactly the weights of the file."""
    try:
        state = read_state_dict(path) if path.suffix in PICKLED else load_file(path)
    except OSError as error:
        raise BadInput(f"cannot read the weights {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise BadInput(
            f"{path} is no safetensors file ({first_line(error)}): a state_dict of torch.save has to end in"
            f" {' or '.join(PICKLED)}, other weights in .safetensors"
        ) from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        # torch says in a line of its own what is missing, unexpected or of another shape.
        problem = " ".join(str(error).split("\n\t")[1:2]) or str(error)
        raise BadInput(f"the weights {path} do not fit the network: {problem[:300]}") from error
    return network


@torch.no_grad()
def answer(network: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) of images (N, C, H, W); BadInput for anything else that the network gives."""
    try:
        logits = network(images)
    except Exception as error:  # the user's own code
        shape = "x".join(map(str, images.shape[1:]))
        raise BadInput(
            f"the network does not take {shape} images: {first_line(error)}; correct --size"
        ) from error
    if not isinstance(logits, Tensor):
        raise BadInput(f"the network returns {type(logits).__name__}; one tensor of logits is needed")
    if logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise BadInput(
            f"the network returns shape {tuple(logits.shape)}; logits ({len(images)}, classes) are needed"
        )
    return logits
