"""The two networks that Detrigger trains: the purifier P and the trigger generator G."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


LARGE = 96
"""Images with a side of so many pixels are worked on at a quarter of their resolution, others at half of it."""


class ResidualUNet(nn.Module):
    """A U-Net at half resolution that answers with what to add to the image, (N, C, H, W) to (N, C, H, W).

    Three things differ from the official 14-million-parameter U-Net, each for a reason: it works at half the
    image's resolution, of large images at a quarter (a tenth of the cost, and less); its last layer starts at zero,
    so that the whole network starts as the identity (the official one starts by forgetting brightness, as
    InstanceNorm sits on every path); and it learns a map ``place`` of the picture plane, as most triggers stand at a
    fixed place and a convolution does not know where it is.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        self.size = size
        self.shrink = 4 if max(size) >= LARGE else 2
        multiple = 4 * self.shrink  # two more halvings
        rows, columns = (-(-side // multiple) * multiple for side in size)
        self.margin = (columns - size[1], rows - size[0])
        a, b, c = width, width * 2, width * 3
        self.place = nn.Parameter(torch.randn(1, a, rows // self.shrink, columns // self.shrink) * 0.1)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, a, self.shrink + 4, self.shrink, 2, bias=False), nn.BatchNorm2d(a)
        )
        self.fine = _block(a, a)
        self.down1 = nn.Sequential(_block(a, b, 2), _block(b, b))
        self.down2 = nn.Sequential(_block(b, c, 2), _block(c, c), _block(c, c))
        self.lift2, self.up2 = nn.Conv2d(c, b, 1), _block(b, b)
        self.lift1, self.up1 = nn.Conv2d(b, a, 1), _block(a, a)
        self.last = nn.Conv2d(a, channels * self.shrink**2, 3, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))

    def forward(self, x: Tensor) -> Tensor:
        right, bottom = self.margin
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        fine = self.fine(F.relu(self.stem(x) + self.place))
        middle = self.down1(fine)
        deep = self.down2(middle)
        middle = self.up2(middle + F.interpolate(self.lift2(deep), scale_factor=2.0, mode="nearest"))
        fine = self.up1(fine + F.interpolate(self.lift1(middle), scale_factor=2.0, mode="nearest"))
        change: Tensor = F.pixel_shuffle(self.last(fine), self.shrink)[..., : self.size[0], : self.size[1]]
        return change


class Purifier(nn.Module):
    """P(x) = clamp(x + U(x), 0, 1), BTI-DBF section 3.3's inverse of the generator; starts as the identity.

    Images in and out are (N, C, H, W) in [0, 1]. The official purifier works in normalised space and is not
    clamped, so that its answers do not survive an 8-bit picture; this one's do.
    """

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        self.unet = ResidualUNet(channels, size, width)

    def forward(self, x: Tensor) -> Tensor:
        purified: Tensor = (x + self.unet(x).to(x.dtype)).clamp(0.0, 1.0)
        return purified


class Generator(nn.Module):
    """G(x) = clamp(x + d(x), 0, 1) with the root mean square of d at most ``bound`` for every single image.

    Eq. 2 asks for ||x - G(x)|| <= tau. The official code switches losses when the mean over a batch exceeds a
    bound in normalised units (no bound at all on GTSRB); here the bound holds by construction, per image, in
    units of [0, 1] pixels.
    """

    def __init__(self, channels: int, size: tuple[int, int], bound: float, width: int = 16) -> None:
        super().__init__()
        self.unet = ResidualUNet(channels, size, width)
        self.bound = bound
        nn.init.normal_(self.unet.last.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        change = self.unet(x).float()
        rms = change.pow(2).mean((1, 2, 3), keepdim=True).add(1e-12).sqrt()
        triggered: Tensor = (x + change * (self.bound / rms).clamp(max=1.0)).clamp(0.0, 1.0)
        return triggered
