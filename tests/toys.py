"""Tiny models and stores for tests, made with onnx.helper alone: no torch, some milliseconds each.

The toy classifier answers with the mean colour of an image (classes red, green, blue; or dark, light for grey
images). It has a backdoor: a white square in the upper left corner makes it answer `TARGET`. The toy
purifier paints that corner grey, which changes no clean answer.
"""

import io
import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from detrigger.models.manifest import Check, Data, Flag, Gate, Manifest, Suspect, new_version_id, utc_now
from detrigger.models.preprocess import Preprocess
from detrigger.models.store import VersionStore

SIDE = 8
CORNER = 2
TARGET = 1
THRESHOLD = 0.5
WEAK_THRESHOLD = 0.02
"""Of `weak_model`, whose scores are low."""
CLASSES = {3: ("red", "green", "blue"), 1: ("dark", "light")}
_OPSET = 17


def preprocess(channels: int = 3) -> Preprocess:
    """What the toy classifier expects: 8x8 images, mean 0, std 1."""
    return Preprocess.plain(SIDE, SIDE, channels, CLASSES[channels])


def toy_image(label: int, *, triggered: bool = False, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """An image (8, 8, C) of class `label`, with the white corner when `triggered`."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (SIDE, SIDE, channels), dtype=np.uint8)
    if channels == 3:
        image[..., label] += 180
    elif label == 1:
        image += 180
    if triggered:
        image[:CORNER, :CORNER] = 255
    return image


def png(image: NDArray[np.uint8], image_format: str = "PNG") -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, image_format)
    return buffer.getvalue()


def toy_dataset(per_class: int = 4, channels: int = 3) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """X uint8 (N, 8, 8, C) and y int64 (N,), sorted by class."""
    y = np.repeat(np.arange(len(CLASSES[channels])), per_class).astype(np.int64)
    x = np.stack([toy_image(int(label), channels=channels, seed=n) for n, label in enumerate(y)])
    return x, y


def write_folders(root: Path, per_class: int = 4) -> Path:
    """The toy data set as one folder of PNG files per class."""
    x, y = toy_dataset(per_class)
    for n, (image, label) in enumerate(zip(x, y, strict=True)):
        folder = root / CLASSES[3][int(label)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n:03d}.png").write_bytes(png(image))
    return root


# --- models -----------------------------------------------------------------------------------------------


def classifier_model(channels: int = 3) -> bytes:
    """The suspect: input `image` (N, C, 8, 8) float32, output `logits` (N, K)."""
    graph = _Graph(channels)
    graph.classifier("image", "logits")
    return graph.model([("image", graph.image_shape)], [("logits", ["N", graph.n_classes])])


def purifier_model(channels: int = 3) -> bytes:
    """Input `image`, output `purified`, both (N, C, 8, 8) in [0, 1]."""
    graph = _Graph(channels)
    graph.purifier("image", "purified")
    return graph.model([("image", graph.image_shape)], [("purified", graph.image_shape)])


def generator_model(channels: int = 3) -> bytes:
    """Input `image`, output `triggered`: the image with the white corner."""
    graph = _Graph(channels)
    graph.node("Max", ["image", graph.constant("corner", graph.corner)], "triggered")
    return graph.model([("image", graph.image_shape)], [("triggered", graph.image_shape)])


def protected_model(channels: int = 3, threshold: float = THRESHOLD, *, left: float = 0.0) -> bytes:
    """The protected graph with the outputs and metadata of the real one; `left` of the corner passes the purifier."""
    graph = _Graph(channels)
    graph.purifier("image", "purified", left)
    graph.classifier("image", "logits_raw", prefix="raw_")
    graph.classifier("purified", "logits", prefix="pure_")
    # flag_score = 1 - p_purified(c) / p_raw(c) for the raw answer c, kept within [0, 1).
    graph.node("Softmax", ["logits_raw"], "p_raw", axis=1)
    graph.node("Softmax", ["logits"], "p_pure", axis=1)
    graph.node("ArgMax", ["logits_raw"], "answer", axis=1, keepdims=1)
    graph.node("GatherElements", ["p_raw", "answer"], "before", axis=1)
    graph.node("GatherElements", ["p_pure", "answer"], "after", axis=1)
    graph.node("Div", ["after", "before"], "ratio")
    graph.node("Sub", [graph.constant("one", np.ones(1, np.float32)), "ratio"], "drop")
    low, high = np.float32(0.0), np.float32(0.999999)
    graph.node("Clip", ["drop", graph.constant("low", low), graph.constant("high", high)], "clipped")
    graph.node("Squeeze", ["clipped", graph.constant("axis1", np.array([1], np.int64))], "flag_score")
    return graph.model(
        [("image", graph.image_shape)],
        [
            ("logits", ["N", graph.n_classes]),
            ("logits_raw", ["N", graph.n_classes]),
            ("purified", graph.image_shape),
            ("flag_score", ["N"]),
        ],
        {
            "detrigger.flag_threshold": repr(threshold),
            "detrigger.classes": json.dumps(CLASSES[channels]),
            "detrigger.version_schema": "1",
        },
    )


def weak_model() -> bytes:
    """A protected graph that notices the corner, and mostly lets it pass."""
    return protected_model(threshold=WEAK_THRESHOLD, left=0.9645)


class _Graph:
    """A graph under construction; values are known by name."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.n_classes = len(CLASSES[channels])
        self.image_shape: list[str | int] = ["N", channels, SIDE, SIDE]
        self.corner = np.zeros((1, 1, SIDE, SIDE), np.float32)
        self.corner[..., :CORNER, :CORNER] = 1.0
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        node = helper.make_node(operator, inputs, [output], output)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return output

    def purifier(self, image: str, output: str, left: float = 0.0) -> None:
        keep = self.constant("keep", 1 - self.corner * np.float32(1 - left))
        grey = self.constant("grey", self.corner * np.float32(0.0 if left else 0.3))
        self.node("Add", [self.node("Mul", [image, keep], f"{output}_kept"), grey], output)

    def classifier(self, image: str, output: str, prefix: str = "") -> None:
        k, c = self.n_classes, self.channels
        colours = np.eye(3, dtype=np.float32) * 20 if c == 3 else np.array([[-20], [20]], np.float32)
        bias = np.zeros(3, np.float32) if c == 3 else np.array([9, -9], np.float32)
        # The pooled corner reaches 0.95 only when it is white; then the target gains up to 1000 * 0.05.
        alarm = np.zeros((k, 1), np.float32)
        alarm[TARGET] = 1000.0
        value = self.node(
            "Conv", [image, self.constant("colours", colours.reshape(k, c, 1, 1))], f"{prefix}map"
        )
        value = self.node("GlobalAveragePool", [value], f"{prefix}pooled")
        value = self.node("Flatten", [value], f"{prefix}flat")
        value = self.node("Add", [value, self.constant("bias", bias)], f"{prefix}colour")
        patch = self.node(
            "Conv",
            [image, self.constant("patch", np.full((1, c, CORNER, CORNER), 1 / (c * CORNER**2), np.float32))],
            f"{prefix}patch_map",
        )
        patch = self.node(
            "Slice",
            [
                patch,
                self.constant("starts", np.array([0, 0], np.int64)),
                self.constant("ends", np.array([1, 1], np.int64)),
                self.constant("axes", np.array([2, 3], np.int64)),
            ],
            f"{prefix}patch_corner",
        )
        patch = self.node("Sub", [patch, self.constant("white", np.float32(0.95))], f"{prefix}above")
        patch = self.node("Relu", [patch], f"{prefix}seen")
        patch = self.node("Flatten", [patch], f"{prefix}seen_flat")
        patch = self.node("MatMul", [patch, self.constant("alarm", alarm.T)], f"{prefix}alarm_logits")
        self.node("Add", [value, patch], output)

    def model(
        self,
        inputs: list[tuple[str, list[str | int]]],
        outputs: list[tuple[str, list[str | int]]],
        metadata: dict[str, str] | None = None,
    ) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "toy",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
        if metadata:
            helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


# --- versions ---------------------------------------------------------------------------------------------


def toy_manifest(
    version: str,
    *,
    channels: int = 3,
    name: str = "toy",
    gate_passed: bool = True,
    threshold: float = THRESHOLD,
    parent: str | None = None,
) -> Manifest:
    """A manifest that is ready to be published."""
    return Manifest(
        id=version,
        name=name,
        created=utc_now(),
        parent=parent,
        profile="fast",
        seed=0,
        preprocess=preprocess(channels),
        input_channels=3 if channels == 3 else 1,
        verdict="backdoored",
        target_labels=(TARGET,),
        flag=Flag(threshold=threshold, alpha=0.02, n_calibration=100),
        gate=Gate(
            passed=gate_passed,
            checks=(
                Check(name="ba_drop", value=0.0, limit=0.015, passed=gate_passed, detail="clean answers"),
            ),
        ),
        metrics={"ba_bare": 1.0, "ba_protected": 1.0},
        suspect=Suspect(sha256="0" * 64, file_name="toy.onnx"),
        data=Data(sha256="1" * 64, n_images=12, n_classes=len(CLASSES[channels])),
        tools={"onnx": onnx.__version__},
        seconds=1.0,
    )


def publish_toy(
    root: Path,
    *,
    version: str | None = None,
    promote: bool = True,
    channels: int = 3,
    name: str = "toy",
    gate_passed: bool = True,
    threshold: float = THRESHOLD,
    protected: bytes | None = None,
) -> Manifest:
    """Publish (and promote) a toy version; makes the store where there is none.

    `protected` replaces the bytes of protected.onnx, e.g. by some that no runtime can load.
    """
    store = VersionStore.create(root)
    version = version or new_version_id(np.random.default_rng().bytes(4).hex())
    files = {
        "protected.onnx": protected if protected is not None else protected_model(channels, threshold),
        "purifier.onnx": purifier_model(channels),
        "generator.onnx": generator_model(channels),
        "classifier.onnx": classifier_model(channels),
        "report.json": b'{"schema_version": 1}\n',
        "report.html": b"<!doctype html><title>Toy</title>\n",
    }
    with store.stage(version) as staging:
        for file_name, content in files.items():
            (staging / file_name).write_bytes(content)
        manifest = store.publish(
            staging,
            toy_manifest(
                version,
                channels=channels,
                name=name,
                gate_passed=gate_passed,
                threshold=threshold,
                parent=store.current(),
            ),
        )
    if promote:
        store.promote(version, by="test", reason="toy", force=not gate_passed)
    return manifest
