"""Stores to measure on: untrained, seeded graphs of two sizes. What a network has learnt costs no time.

cifar   a ResNet-18 layout of base width 32 (2.8 million weights), as the zoo's suspects have
small   the demo's sign classifier (150,000 weights)

Both have the purifier that the job trains and the graph that it publishes.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from torch import Tensor, nn

from detrigger.demo.train import sign_net
from detrigger.models.manifest import Check, Data, Flag, Gate, Manifest, Suspect, new_version_id, utc_now
from detrigger.models.networks import Purifier
from detrigger.models.preprocess import Preprocess
from detrigger.models.protected import OPSET, GraphSettings, build_protected
from detrigger.models.store import VersionStore
from detrigger.offline.graph.to_onnx import to_onnx

SIDE = 32
CLASSES = tuple(f"class {k}" for k in range(10))
THRESHOLD = 0.5


class _Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.around = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.around(x))


def resnet18(width: int = 32) -> nn.Module:
    """(N, 3, 32, 32) to logits (N, 10)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    ]  # fmt: skip
    inside = width
    for stage in range(4):
        outside = width * 2**stage
        layers += [_Block(inside, outside, 1 if stage == 0 else 2), _Block(outside, outside, 1)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, len(CLASSES)))


def make(root: Path, graph: str, seed: int = 0, versions: int = 1, threshold: float = THRESHOLD) -> Path:
    """A store with `versions` versions of the graph `cifar` or `small`, the last of them promoted."""
    store = VersionStore.create(root)
    for turn in range(versions):
        torch.manual_seed(seed + turn)
        suspect, repaired = (resnet18() if graph == "cifar" else sign_net(len(CLASSES)) for _ in range(2))
        shape = (3, SIDE, SIDE)
        settings = GraphSettings(
            preprocess=Preprocess(size=(SIDE, SIDE), mean=(0.5,) * 3, std=(0.25,) * 3, classes=CLASSES),
            softmax=False,
            penalty=(4.0,) + (0.0,) * (len(CLASSES) - 1),
            threshold=threshold,
        )
        protected = build_protected(
            to_onnx(Purifier(3, (SIDE, SIDE)), shape, "purified", OPSET),
            to_onnx(suspect, shape, "logits", OPSET),
            to_onnx(repaired, shape, "logits", OPSET),
            settings,
        )
        _publish(store, graph, seed + turn, protected, threshold)
    store.promote(store.version_ids()[-1], by="benchmark", reason="to be measured")
    return root


def _publish(
    store: VersionStore, graph: str, seed: int, protected: onnx.ModelProto, threshold: float
) -> None:
    version = new_version_id(f"{seed:08x}")
    manifest = Manifest(
        id=version,
        name=graph,
        created=utc_now(),
        profile="untrained",
        seed=seed,
        preprocess=Preprocess.plain(SIDE, SIDE, 3, CLASSES),
        input_channels=3,
        verdict="inconclusive",
        flag=Flag(threshold=threshold, alpha=0.02, n_calibration=0),
        gate=Gate(passed=True, checks=(Check(name="none", value=0.0, limit=0.0, passed=True),)),
        suspect=Suspect(sha256="0" * 64, file_name=f"{graph}.onnx"),
        data=Data(sha256="0" * 64, n_images=1, n_classes=len(CLASSES)),
    )
    with store.stage(version) as staging:
        (staging / "protected.onnx").write_bytes(protected.SerializeToString())
        store.publish(staging, manifest)


def a_png(seed: int = 0) -> bytes:
    """A 32x32 PNG that does not compress to nothing."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()
