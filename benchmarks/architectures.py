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


def small_resnet(channels: int, n_classes: int) -> nn.Module:
    """Strided convolutions with a residual block after each. Normalised (N,C,H,W) to logits (N, n_classes)."""
    layers: list[nn.Module] = []
    for width in (32, 64, 96):
        layers += [
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Residual(width),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes))


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
