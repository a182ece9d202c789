"""Small networks that one CPU core trains in minutes: the suspects, and the input-aware attack's generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def vgg(channels: int, n_classes: int) -> nn.Module:
    """Plain blocks of convolution, batch normalisation and ReLU with max pooling, without shortcuts.

    19 million multiplications for a (3,32,32) image. (N,C,32,32) normalised to logits (N, n_classes). Pooling stands
    before the normalisation, which is faster to train.
    """
    layers: list[nn.Module] = []
    for width, pooled in ((32, True), (64, True), (128, True), (192, False), (192, True)):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        if pooled:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, n_classes))


class _Residual(nn.Module):
    """ReLU(x + two 3x3 convolutions of x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


def small_resnet(channels: int, n_classes: int, widths: tuple[int, ...] = (32, 64, 96)) -> nn.Module:
    """Strided convolutions with a residual block after each. Normalised (N,C,H,W) to logits (N, n_classes)."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Residual(width),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))


class _Inverted(nn.Module):
    """x + (1x1 to three times the width, depthwise 3x3, squeeze and excitation, 1x1 back), hard-swish in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 3 * width
        self.spread = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.Hardswish(),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, width, 1),
            nn.ReLU(),
            nn.Conv2d(width, wide, 1),
            nn.Hardsigmoid(),
        )
        self.back = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.spread(x)
        out: Tensor = x + self.back(wide * self.gate(wide))
        return out


def mobilenet(channels: int, n_classes: int) -> nn.Module:
    """Depthwise convolutions with squeeze and excitation (MobileNetV3). Normalised (N,C,H,W) to (N, n_classes)."""
    layers: list[nn.Module] = []
    for width in (40, 80):
        layers += [
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.Hardswish(),
            _Inverted(width),
            _Inverted(width),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))


class VisionTransformer(nn.Module):
    """Patches of 4x4 pixels as tokens, pre-normalised blocks of attention and a GELU network, the mean token's answer.

    Normalised (N,C,side,side) to logits (N, n_classes).
    """

    def __init__(self, channels: int, n_classes: int, side: int, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.places = nn.Parameter(torch.randn(1, (side // 4) ** 2, width) * 0.02)
        self.blocks = nn.ModuleList(_Attention(width, heads=4) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


class _Attention(nn.Module):
    """Self-attention and a pointwise network, each beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.pointwise = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, count, width = x.shape
        qkv = (
            self.qkv(self.before(x))
            .reshape(n, count, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, count, width))
        out: Tensor = x + self.pointwise(x)
        return out


def small_vit(channels: int, n_classes: int) -> nn.Module:
    """A vision transformer for 28x28 images."""
    return VisionTransformer(channels, n_classes, 28)


class ImageToImage(nn.Module):
    """Encoder and decoder: images (N,C,H,W) in [0,1] to (N,out,H,W) in (0,1), H and W divisible by 4."""

    def __init__(self, channels: int, out: int, width: int = 16) -> None:
        super().__init__()

        def block(c_in: int, c_out: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]

        self.body = nn.Sequential(
            *block(channels, width),
            nn.MaxPool2d(2),
            *block(width, 2 * width),
            nn.MaxPool2d(2),
            *block(2 * width, 2 * width),
            nn.Upsample(scale_factor=2.0),
            *block(2 * width, width),
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(width, out, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(2 * x - 1)
        return torch.sigmoid(2 * out)
