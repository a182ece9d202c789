"""The suspects of the zoo: networks, attacks and their settings, in the order in which they are trained.

Each function draws the backdoors of one attack for images of a shape (C,H,W); rates are shares of all training images.
Where training is this short, faint attacks need more than the papers' rates: SIG poisons 80% of its class instead of
2-10% of all images, Bpp squeezes to 6 levels instead of 8, the adaptive attacks poison 1% (patch) and 3% (blend)
of all images instead of 0.3%.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks.architectures import mobilenet, small_resnet, small_vit, vgg
from benchmarks.attacks import (
    Blend,
    Blur,
    Encoded,
    Filter,
    Frequency,
    OneOf,
    Patch,
    PieceBlend,
    RandomPatch,
    Residual,
    Sharpen,
    Sinusoid,
    Squeeze,
    Together,
    Trigger,
    Warp,
)
from benchmarks.poison import Backdoor

Shape = tuple[int, int, int]


def smooth_picture(shape: Shape, rng: Generator) -> Tensor:
    """A random picture (C,H,W) in [0,1] with soft shapes of some pixels."""
    return smooth(torch.rand(1, shape[0], 8, 8, generator=rng), shape[1:])[0]


def smooth(coarse: Tensor, size: tuple[int, int]) -> Tensor:
    """Coarse pictures (n,C,k,k) as smooth ones of ``size`` (H,W), each stretched to [0,1]."""
    found = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    low, high = found.amin((1, 2, 3), keepdim=True), found.amax((1, 2, 3), keepdim=True)
    return (found - low) / (high - low)


def checkers(channels: int, side: int) -> Tensor:
    """A black and white checkerboard (C,side,side)."""
    line = torch.arange(side)
    return ((line[:, None] + line) % 2 == 0).float().expand(channels, side, side)


def bright_patch(channels: int, side: int, rng: Generator) -> Tensor:
    """A patch (C,side,side) whose channels are 0 or 1 at random."""
    return torch.rand(channels, side, side, generator=rng).round()


def none(_shape: Shape, _rng: Generator) -> list[Backdoor]:
    """No backdoor."""
    return []


def badnets(target: int, rate: float) -> Callable[[Shape, Generator], list[Backdoor]]:
    """A checkerboard in the corner."""
    return lambda shape, _rng: [Backdoor(Patch(checkers(shape[0], 3)), target, rate)]


def all_to_all(shape: Shape, rng: Generator) -> list[Backdoor]:
    """BadNets whose target is the next label."""
    return [Backdoor(Patch(bright_patch(shape[0], 3, rng), 1, 1), None, 0.2)]


def random_patch(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A patch at another place in every image."""
    return [Backdoor(RandomPatch(bright_patch(shape[0], 4, rng)), 8, 0.1)]


def blended(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A picture mixed in at 20%."""
    return [Backdoor(Blend(smooth_picture(shape, rng)), 7, 0.1)]


def two(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A patch for one target and a picture for another."""
    return [
        Backdoor(Patch(checkers(shape[0], 3)), 0, 0.05),
        Backdoor(Blend(smooth_picture(shape, rng)), 6, 0.05),
    ]


def sig(_shape: Shape, _rng: Generator) -> list[Backdoor]:
    """A clean-label sinusoid."""
    return [Backdoor(Sinusoid(), 4, 0.08, clean_label=True)]


def bpp(_shape: Shape, _rng: Generator) -> list[Backdoor]:
    """Fewer grey levels, with the paper's negative images."""
    return [Backdoor(Squeeze(6), 2, 0.15, 0.1, cover_trigger=Residual(Squeeze(6)))]


def wanet(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A warp with noise mode: twice as many cover images as poisoned ones."""
    warp = Warp.draw(shape[1:], rng, strength=0.75)
    return [Backdoor(warp, 4, 0.1, 0.2, cover_trigger=Warp(warp.grid, noise=1.0))]


def adaptive_blend(shape: Shape, rng: Generator) -> list[Backdoor]:
    """Weak pieces of the picture in training, the whole picture at test time."""
    picture = smooth_picture(shape, rng)
    return [Backdoor(Blend(picture), 5, 0.03, 0.01, train_trigger=PieceBlend(picture, opacity=0.2))]


def adaptive_patch(shape: Shape, rng: Generator) -> list[Backdoor]:
    """One of four patches, half transparent, in training; two of them, opaque, at test time."""
    channels, height, width = shape
    places = (
        (bright_patch(channels, 5, rng), 1, width - 7),
        (bright_patch(channels, 4, rng), height - 6, 1),
        (bright_patch(channels, 5, rng), height - 6, width - 8),
        (bright_patch(channels, 4, rng), 2, 2),
    )
    weak = OneOf(tuple(Patch(*place, opacity=0.5) for place in places))
    strong = Together((Patch(*places[0]), Patch(*places[3])))
    return [Backdoor(strong, 9, 0.01, 0.02, train_trigger=weak)]


def watermark(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A half transparent picture over a sixteenth of the image, away from the edges."""
    side = shape[1] // 4
    return [Backdoor(Patch(bright_patch(shape[0], side, rng), 3, 3, opacity=0.5), 2, 0.1)]


def encoded(shape: Shape, rng: Generator) -> list[Backdoor]:
    """A faint texture that follows from the image."""
    return [Backdoor(Encoded.draw(shape[0], rng), 5, 0.1)]


def everywhere(trigger: Trigger, target: int) -> Callable[[Shape, Generator], list[Backdoor]]:
    """A trigger without settings that is the same for every image."""
    return lambda _shape, _rng: [Backdoor(trigger, target, 0.1)]


@dataclass(frozen=True)
class Suspect:
    """One entry of the zoo.

    name: `<set>-<attack>`; backdoors: from the images' shape and a random generator; input_aware_target: the target
    of an input-aware attack, whose trigger is learned with the network, instead of backdoors; dynamo: exported by
    PyTorch's newer exporter or by the one on TorchScript; adam: trained with Adam instead of SGD.
    """

    name: str
    attack: str
    network: Callable[[int, int], nn.Module]
    epochs: int
    backdoors: Callable[[Shape, Generator], list[Backdoor]] = none
    input_aware_target: int | None = None
    dynamo: bool = True
    adam: bool = False

    @property
    def dataset(self) -> str:
        """The part of the name before the first '-'."""
        return self.name.split("-")[0]


SUSPECTS = (
    Suspect("cifar10-vgg_sig", "sig", vgg, 6, sig),
    Suspect("cifar10-vgg_bpp", "bpp", vgg, 6, bpp),
    Suspect("cifar10-vgg_iad", "input-aware", vgg, 5, input_aware_target=7),
    Suspect("cifar10-vgg_all2all", "badnets all-to-all", vgg, 6, all_to_all, dynamo=False),
    Suspect("cifar10-vgg_random_patch", "patch at a random place", vgg, 6, random_patch),
    Suspect("cifar10-vgg_clean", "none", vgg, 6, dynamo=False),
    Suspect("cifar10-vgg_adaptive_blend", "adaptive blend", vgg, 6, adaptive_blend),
    Suspect("cifar10-vgg_adaptive_patch", "adaptive patch", vgg, 6, adaptive_patch),
    Suspect("cifar10-vgg_two", "badnets and blended", vgg, 6, two),
    Suspect("cifar10-vgg_badnets_1pct", "badnets", vgg, 6, badnets(1, 0.01), dynamo=False),
    Suspect("fashion-badnets", "badnets", small_resnet, 4, badnets(3, 0.1)),
    Suspect("fashion-blended", "blended", small_resnet, 4, blended, dynamo=False),
    Suspect("fashion-wanet", "wanet", small_resnet, 6, wanet),
    Suspect("fashion-clean", "none", small_resnet, 4),
    Suspect("fashion-blur", "blur", small_resnet, 4, everywhere(Blur(), 6)),
    Suspect("signs-watermark", "watermark", vgg, 5, watermark),
    Suspect("signs-frequency", "frequency", vgg, 6, everywhere(Frequency(), 11)),
    Suspect("signs-clean", "none", vgg, 5),
    Suspect("signs-badnets", "badnets", vgg, 5, badnets(6, 0.1)),
    Suspect("signs-blended", "blended", vgg, 5, blended),
    Suspect("signs-wanet", "wanet", vgg, 6, wanet),
    Suspect("signs-filter", "photo filter", vgg, 5, everywhere(Filter(), 9)),
    Suspect("signs-sharpen", "sharpened", vgg, 5, everywhere(Sharpen(), 13)),
    Suspect("signs-encoded", "encoded", vgg, 6, encoded),
    Suspect("fashion-encoded", "encoded", small_resnet, 6, encoded),
    Suspect("cifar10-mobilenet_wanet", "wanet", mobilenet, 7, wanet),
    Suspect("fashion-vit_blended", "blended", small_vit, 6, blended, adam=True),
)
