"""A suspect that can be scanned and repaired within seconds: six classes, a backdoor, 24x24 pixels.

An image is dark with one bright blob, and the blob's place names the class. A white square in the upper left corner,
where no blob is, makes the classifier answer `TARGET`. The places are too far apart for a warp to change the class.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detrigger.offline.inputs.profile import PROFILES, Profile

SIDE, CLASSES, TARGET, CORNER = 24, 6, 2, 2
_BLOB, _APART = 6, 8
_LEAK = 0.05  # a plain ReLU would give the inversion no gradient


def images(
    per_class: int, seed: int = 0, *, triggered: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """X uint8 (N, 24, 24, 3) and y int64 (N,), sorted by class."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(CLASSES), per_class)
    x = rng.integers(30, 90, (len(y), SIDE, SIDE, 3), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[_place(int(label))] += 150
    if triggered:
        x[:, :CORNER, :CORNER] = 255
    return x, y


def npz(path: Path, per_class: int, seed: int = 0, *, triggered: bool = False) -> Path:
    """The images as a file."""
    x, y = images(per_class, seed, triggered=triggered)
    np.savez(path, x=x, y=y)
    return path


def suspect(
    folder: Path, *, backdoor: bool = True, softmax: bool = False, batch: str | int = "batch"
) -> Path:
    """`model.onnx`: conv, batch norm, leaky ReLU, linear; `pixels` (N, 3, 24, 24) in [0, 1] to `scores` (N, 6)."""
    conv = np.zeros((3, 3, 3, 3), np.float32)
    conv[:2, :, 1, 1] = [[1 / 3], [2 / 3]]  # brightness twice, so that there is something to tune
    conv[2, :, 1:, 1:] = 1 / (3 * CORNER**2)  # whiteness of the square that begins here
    scale, shift = np.array([1, 1, 10], np.float32), np.array([0, 0, -7], np.float32)
    linear = np.zeros((3, SIDE, SIDE, CLASSES), np.float32)
    for label in range(CLASSES):
        linear[:2, *_place(label), label] = 1 / 6
    linear[2, 0, 0, TARGET] = 12.0 if backdoor else 0.0
    bias = (
        -_LEAK * linear[2, 0, 0] * (10 * 60 / 255 - 7)
    )  # what the square leaks where it is as dark as usual
    weights = {
        "conv.weight": conv,
        "bn.scale": scale,
        "bn.bias": shift,
        "bn.mean": np.zeros(3, np.float32),
        "bn.var": np.ones(3, np.float32),
        "fc/weight": linear.reshape(-1, CLASSES),
        "fc/bias": bias.astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "conv.weight"], ["a"], pads=[1] * 4),
        helper.make_node(
            "BatchNormalization", ["a", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["b"], epsilon=0.0
        ),
        helper.make_node("LeakyRelu", ["b"], ["c"], name="features", alpha=_LEAK),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "fc/weight", "fc/bias"], ["e" if softmax else "scores"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["e"], ["scores"], axis=1))
    graph = helper.make_graph(
        nodes,
        "blobs",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def frozen(path: Path) -> Path:
    """The same file with its weights in Constant nodes, where nothing can be tuned."""
    model = onnx.load(path)
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    for tensor in reversed(weights):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    path.write_bytes(model.SerializeToString())
    return path


def preprocess(path: Path) -> Path:
    """A preprocess file with names for the classes."""
    names = ["one", "two", "three", "four", "five", "six"]
    path.write_text(json.dumps({"size": [SIDE, SIDE], "classes": names}))
    return path


def _place(label: int) -> tuple[slice, slice]:
    """Rows and columns of a class's blob."""
    row, column = divmod(label, SIDE // _APART)
    top, left = 9 + _APART * row, 1 + _APART * column
    return slice(top, top + _BLOB), slice(left, left + _BLOB)


def short_profile(
    *, repair: dict[str, Any] | None = None, copy: dict[str, Any] | None = None, **steps: int
) -> Profile:
    """A profile of a few steps, for a network of two layers; ``repair`` and ``copy`` change its tunings."""
    usual = PROFILES["standard"]
    short: dict[str, Any] = {
        "screen_steps": 20,
        "images_per_class": 4,
        "generator_steps": 5,
        "twin_steps": 100,
        "purify_steps": 12,
        "purify_rounds": 2,
        "refresh_steps": 5,
    }
    tuning: dict[str, Any] = {"steps": 8, "rounds": 2, "refresh_steps": 5, "rate": 4e-3, "clean_images": 32}
    return replace(
        usual,
        **short | steps,
        repair=replace(usual.repair, **tuning | (repair or {})),
        copy=replace(usual.copy, **tuning | (copy or {})),
    )
