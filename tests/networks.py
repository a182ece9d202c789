"""Small classifiers of 16x16 images that PyTorch's exporters write in their awkward ways; 5 classes, random weights."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

K, SIDE = 5, 16


class View(nn.Module):
    """``view(x.size(0), -1)``: the batch becomes a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Linear(8 * 64, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        logits: Tensor = self.last(x.view(x.size(0), -1))
        return logits


class Shuffle(nn.Module):
    """Channels in two groups, shuffled (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.last = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        logits: Tensor = self.last(self.two(x).relu().mean((2, 3)))
        return logits


class ClassToken(nn.Module):
    """A vision transformer of one layer with a class token and PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16) * 0.3)
        self.places = nn.Parameter(torch.randn(1, 17, 16) * 0.3)
        self.norm, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.after = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.last = nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        n = self.norm(tokens)
        tokens = tokens + self.attention(n, n, n, need_weights=False)[0]
        tokens = tokens + self.after(tokens)
        logits: Tensor = self.last(tokens[:, 0])
        return logits


class Groups(nn.Module):
    """GroupNorm, adaptive pooling and ``flatten(1)``."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(4, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.last = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.body(x).flatten(1))
        return logits


class _Norm(nn.Module):
    """LayerNorm over the channels of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class ConvNext(nn.Module):
    """A ConvNeXt of one block; its head normalises the pooled features before ``Flatten``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), _Norm(8))
        self.spread, self.norm = nn.Conv2d(8, 8, 7, 1, 3, groups=8), nn.LayerNorm(8)
        self.inner = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), _Norm(8), nn.Flatten(1), nn.Linear(8, K))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.inner(self.norm(self.spread(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        logits: Tensor = self.head(x)
        return logits


class Enlarged(nn.Module):
    """Features resized to a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.interpolate(
            self.conv(x).relu(), size=(16, 16), mode="bilinear", align_corners=False
        )
        logits: Tensor = self.last((2 * y).relu().mean((2, 3)))
        return logits


AWKWARD = (View, Shuffle, ClassToken, Groups, ConvNext, Enlarged)


def export(model: nn.Module, path: Path, *, dynamo: bool, batch: int = 1, opened: bool = False) -> Path:
    """``torch.onnx.export(model, (x,), path)`` and nothing else, but for the exporter and, ``opened``, the batch."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    x = torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    more: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if opened else {}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), str(path), dynamo=dynamo, **more)
    return path
