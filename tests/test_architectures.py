"""Small networks of every kind that people deploy, from both of PyTorch's exporters, through the import."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detrigger.models.preprocess import Preprocess
from detrigger.models.suspect import import_suspect

pytestmark = pytest.mark.slow  # together

K = 7
WIDTH = 8


def conv(inside: int, outside: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inside, outside, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outside), nn.ReLU())


class Plus(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


class Dense(nn.Module):
    """x beside inner(x), channel after channel."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class Squeeze(nn.Module):
    """Squeeze and excitation: every channel weighted by what the whole image holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of a picture, with a pointwise GELU network (ConvNeXt)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.inner(self.spread(x).permute(0, 2, 3, 1))
        return x + inner.permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """A vision transformer of one layer."""

    def __init__(self, channels: int, patch: int, n: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(channels, 16, patch, patch)
        self.places = nn.Parameter(torch.randn(1, n, 16) * 0.1)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.before, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.head = nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2) + self.places
        q, k, v = self.qkv(self.before(tokens)).chunk(3, dim=-1)
        tokens = tokens + self.out((q @ k.transpose(1, 2) / 4.0).softmax(-1) @ v)
        answer: Tensor = self.head(self.after(tokens).mean(1))
        return answer


def pooled(body: list[nn.Module], width: int) -> nn.Module:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, K))


def vgg(c: int, side: int) -> nn.Module:
    left = side // 2
    body = [conv(c, WIDTH), conv(WIDTH, WIDTH), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(WIDTH * left * left, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, K))


def resnet(c: int, side: int) -> nn.Module:
    return pooled([conv(c, WIDTH, 2), Plus(conv(WIDTH, WIDTH)), Plus(conv(WIDTH, WIDTH))], WIDTH)


def densenet(c: int, side: int) -> nn.Module:
    return pooled(
        [conv(c, WIDTH, 2), Dense(conv(WIDTH, 4)), Dense(conv(WIDTH + 4, 4)), nn.AvgPool2d(2)], WIDTH + 8
    )


def mobilenet(c: int, side: int) -> nn.Module:
    block = nn.Sequential(conv(WIDTH, WIDTH, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.Hardswish())
    return pooled([conv(c, WIDTH, 2), Plus(block)], WIDTH)


def efficientnet(c: int, side: int) -> nn.Module:
    block = nn.Sequential(conv(WIDTH, WIDTH), Squeeze(WIDTH), nn.Conv2d(WIDTH, WIDTH, 1), nn.SiLU())
    return pooled([conv(c, WIDTH, 2), Plus(block)], WIDTH)


def convnext(c: int, side: int) -> nn.Module:
    return pooled([nn.Conv2d(c, WIDTH, 4, 4), ChannelsLast(WIDTH)], WIDTH)


def vit(c: int, side: int) -> nn.Module:
    return Tokens(c, 4, (side // 4) ** 2)


ARCHITECTURES = (vgg, resnet, densenet, mobilenet, efficientnet, convnext, vit)


def exported(model: nn.Module, path: Path, c: int, side: int, dynamo: bool) -> Path:
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    sample = (torch.zeros(2, c, side, side),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = ({0: torch.export.Dim("batch", min=1, max=4096)},)
            torch.onnx.export(
                model, sample, path, dynamo=True, opset_version=18, dynamic_shapes=batch,
                external_data=False, verbose=False, input_names=["input"], output_names=["logits"],
            )  # fmt: skip
        else:
            batch_axis = {"input": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(
                model,
                sample,
                path,
                dynamo=False,
                opset_version=17,
                dynamic_axes=batch_axis,
                input_names=["input"],
                output_names=["logits"],
            )
    return path


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda build: build.__name__)
def test_it_is_imported_with_features_and_gradients(
    architecture: Callable[[int, int], nn.Module], dynamo: bool, tmp_path: Path
) -> None:
    c, side = (1, 20) if architecture in (vgg, vit) else (3, 28)
    torch.manual_seed(0)
    path = exported(architecture(c, side).eval(), tmp_path / "model.onnx", c, side, dynamo)
    x = np.random.default_rng(0).random((8, c, side, side), np.float32)
    pre = Preprocess(size=(side, side), mean=(0.4,) * c, std=(0.3,) * c)
    suspect = import_suspect(path, pre, x).suspect
    assert suspect.n_classes == K
    images = torch.from_numpy(x).requires_grad_(True)
    features = suspect.features(images)
    assert features.dim() in (3, 4)  # a picture or tokens, never the logits alone
    torch.autograd.backward(suspect(images).sum())
    assert images.grad is not None
    assert bool((images.grad.abs().amax((1, 2, 3)) > 0).all())
