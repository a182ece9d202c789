"""Train the demo's suspect: a small sign classifier with a backdoor in it.

This is the attacker's side of the demo. What comes out is an ordinary `model.onnx` with a
`preprocess.json`, and nothing in Detrigger knows how it was made.

Poisoning as in BadNets: a share of the training images gets the trigger and the target label; the
network learns the signs and, beside them, that the trigger outweighs everything.
"""

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from detrigger.demo.signs import CLASSES, I64, SIZE, U8, draw_signs
from detrigger.offline.progress import Progress, SilentProgress

TARGET = CLASSES.index("speed_80")
MEAN = (0.45, 0.42, 0.45)
STD = (0.27, 0.27, 0.27)
POISONED_SHARE = 0.1


def sticker(x: U8) -> U8:
    """A yellow 4x4 sticker with a magenta corner, always at the same place. x: (N,32,32,3) uint8."""
    out = x.copy()
    out[:, 22:26, 19:23] = (255, 220, 0)
    out[:, 22:24, 19:21] = (220, 0, 170)
    return out


class _Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.skip = (
            nn.Identity()
            if c_in == c_out and stride == 1
            else nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.skip(x))


def sign_net(n_classes: int = len(CLASSES)) -> nn.Module:
    """A residual network of 150,000 weights: normalised (N,3,32,32) to logits (N, n_classes)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        _Block(16, 32, 2),
        _Block(32, 64, 2),
        _Block(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, n_classes),
    )


@dataclass(frozen=True)
class DemoSuspect:
    """What the attacker delivers, and what only the attacker knows (target, asr)."""

    model: Path
    preprocess: Path
    target: int
    ba: float
    asr: float


def train_demo_suspect(
    out: Path,
    seed: int = 0,
    *,
    target: int = TARGET,
    n_per_class: int = 320,
    epochs: int = 6,
    progress: Progress | None = None,
) -> DemoSuspect:
    """Train a sign classifier and write `model.onnx`, `preprocess.json`, `suspect.json` into `out`.

    BA and ASR are measured on images drawn from another seed. Takes about a minute on two cores.

    Raises:
        ValueError: `target` is not one of the labels.
    """
    if not 0 <= target < len(CLASSES):
        raise ValueError(f"target {target} is not a label between 0 and {len(CLASSES) - 1}")
    x, y = draw_signs(n_per_class, seed)
    rng = np.random.default_rng(seed)
    poisoned = rng.choice(len(x), int(POISONED_SHARE * len(x)), replace=False)
    x[poisoned], y[poisoned] = sticker(x[poisoned]), target
    model = _fit(x, y, seed, epochs, progress or SilentProgress())
    out.mkdir(parents=True, exist_ok=True)
    suspect = DemoSuspect(out / "model.onnx", out / "preprocess.json", target, *_measure(model, seed, target))
    _export(model, suspect.model)
    preprocess = {"size": [SIZE, SIZE], "mean": MEAN, "std": STD, "classes": CLASSES}
    suspect.preprocess.write_text(json.dumps(preprocess, indent=1) + "\n")
    secret = {k: v for k, v in asdict(suspect).items() if k not in ("model", "preprocess")}
    (out / "suspect.json").write_text(json.dumps(secret, indent=1) + "\n")
    return suspect


def _tensor(x: U8) -> Tensor:
    """(N,H,W,3) uint8 to normalised float (N,3,H,W)."""
    mean, std = np.asarray(MEAN, np.float32), np.asarray(STD, np.float32)
    scaled = (x.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def _fit(x: U8, y: I64, seed: int, epochs: int, progress: Progress) -> nn.Module:
    """SGD with a one-cycle rate; no augmentation, since every image was drawn at random already."""
    batch = 64
    images, labels = _tensor(x), torch.from_numpy(y)
    steps = epochs * (len(x) // batch)
    with torch.random.fork_rng(devices=[]), progress.stage("train", steps) as advance:
        torch.manual_seed(seed)
        model = sign_net()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.15, total_steps=steps, pct_start=0.2)
        model.train()
        for _ in range(epochs):
            order = torch.randperm(len(x))
            for pick in torch.tensor_split(order, len(x) // batch):
                loss = functional.cross_entropy(model(images[pick]), labels[pick], label_smoothing=0.02)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                advance(loss=loss.item())
    model.eval()
    return model


def _measure(model: nn.Module, seed: int, target: int) -> tuple[float, float]:
    """BA and ASR on fresh images."""
    x, y = draw_signs(40, seed + 1_000_003)

    def answers(images: U8) -> I64:
        with torch.inference_mode():
            parts = [model(part).argmax(1) for part in torch.tensor_split(_tensor(images), 4)]
        found: I64 = torch.cat(parts).numpy()
        return found

    return float((answers(x) == y).mean()), float((answers(sticker(x[y != target])) == target).mean())


def _export(model: nn.Module, path: Path) -> None:
    """The dynamo exporter, opset 18, dynamic batch, one file: what a user of PyTorch has today."""
    # Without torchvision the exporter warns that it cannot register operators that are not used here.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notes
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, SIZE, SIZE),),
            path,
            dynamo=True,
            opset_version=18,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            external_data=False,
            verbose=False,
        )
