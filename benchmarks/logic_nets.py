"""Honest networks that hold the operators of ``logic_designs``: sixteen architectures, and masks, guards, hard steps.

All take (N, 3, 32, 32) in [0, 1] and give logits (N, 16); all are small enough to be trained in half a minute.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

K = 16
Inner = Callable[[Tensor], Tensor]


class Do(nn.Module):
    """A function as a layer, with the layers that it uses."""

    def __init__(self, does: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.does, self.layers = does, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x, *self.layers)


def conv(
    inside: int, outside: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution, batch normalisation, activation."""
    layer = nn.Conv2d(inside, outside, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outside), act or nn.ReLU())


def plus(*inner: nn.Module) -> Do:
    """Input plus inner(input)."""
    return Do(lambda x, f: x + f(x), nn.Sequential(*inner))


def beside(*inner: nn.Module) -> Do:
    """Input beside inner(input)."""
    return Do(lambda x, f: torch.cat([x, f(x)], 1), nn.Sequential(*inner))


def gate(width: int, last: nn.Module) -> Do:
    """Squeeze and excitation."""
    inner = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(width, width // 4, 1),
        nn.ReLU(),
        nn.Conv2d(width // 4, width, 1),
        last,
    )
    return Do(lambda x, f: x * f(x), inner)


def net(*body: nn.Module, width: int) -> nn.Module:
    """Normalised images through the body, pooled, to logits."""
    normal = Do(lambda x: (x - 0.45) / 0.25)
    return nn.Sequential(normal, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, K))


def plain(act: Callable[[], nn.Module]) -> nn.Module:
    """Three layers with an activation."""
    return net(conv(3, 24, 2, act=act()), conv(24, 32, 2, act=act()), conv(32, 48, act=act()), width=48)


def vgg() -> nn.Module:
    pools = [conv(3, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d(2), conv(32, 48), nn.MaxPool2d(2)]
    return nn.Sequential(
        *pools, nn.Flatten(), nn.Linear(48 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, K)
    )


def resnet() -> nn.Module:
    return net(conv(3, 24, 2), plus(conv(24, 24)), conv(24, 48, 2), plus(conv(48, 48)), width=48)


def densenet() -> nn.Module:
    return net(
        conv(3, 16, 2), beside(conv(16, 12)), beside(conv(28, 12)), nn.AvgPool2d(2), conv(40, 40), width=40
    )


def mobilenet() -> nn.Module:
    def block(n: int) -> nn.Module:
        return plus(conv(n, n, groups=n, act=nn.Hardswish()), gate(n, nn.Hardsigmoid()), nn.Conv2d(n, n, 1))

    return net(conv(3, 24, 2, act=nn.Hardswish()), block(24), conv(24, 40, 2), block(40), width=40)


def efficientnet() -> nn.Module:
    def block(n: int) -> nn.Module:
        return plus(conv(n, n, act=nn.SiLU()), gate(n, nn.Sigmoid()), nn.Conv2d(n, n, 1), nn.BatchNorm2d(n))

    return net(conv(3, 24, 2, act=nn.SiLU()), block(24), conv(24, 40, 2, act=nn.SiLU()), block(40), width=40)


def convnext() -> nn.Module:
    def block(n: int) -> nn.Module:
        pointwise = nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
        wide = nn.Conv2d(n, n, 7, 1, 3, groups=n)
        scale = nn.Parameter(torch.full((n,), 1e-3))
        inner = Do(
            lambda x, w, p: (p(w(x).permute(0, 2, 3, 1)) * p.scale).permute(0, 3, 1, 2), wide, pointwise
        )
        pointwise.register_parameter("scale", scale)
        return plus(inner)

    return net(nn.Conv2d(3, 32, 2, 2), block(32), nn.Conv2d(32, 48, 2, 2), block(48), width=48)


class Attention(nn.Module):
    """Self-attention over tokens (N, T, D), before a pointwise network; ``mask`` is added to the scores."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.before(x)).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / self.width**0.5
        if mask is not None:
            scores = scores + mask
        x = x + self.out(scores.softmax(-1) @ v)
        out: Tensor = x + self.inner(self.after(x))
        return out


class Tokens(nn.Module):
    """A vision transformer.

    ``cls`` answers from a class token, ``padding`` leaves out patches that are black, ``windows`` keeps the first
    layer's attention within a window.
    """

    window: Tensor

    def __init__(self, *, cls: bool = False, padding: bool = False, windows: bool = False) -> None:
        super().__init__()
        self.cut, self.cls, self.padding, self.windows = nn.Conv2d(3, 48, 4, 4), cls, padding, windows
        self.places = nn.Parameter(torch.randn(1, 64, 48) * 0.1)
        self.token = nn.Parameter(torch.zeros(1, 1, 48))
        corner = torch.arange(64)
        same = (corner[:, None] // 16 == corner[None] // 16) & (
            corner[:, None] % 8 // 4 == corner[None] % 8 // 4
        )
        self.register_buffer("window", torch.zeros(64, 64).masked_fill(~same, -100.0))
        self.blocks = nn.ModuleList(Attention(48) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, K)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut((x - 0.45) / 0.25).flatten(2).transpose(1, 2) + self.places
        mask = None
        if self.padding:
            black = functional.max_pool2d(x.amax(1, keepdim=True), 4).flatten(1) < 0.01
            mask = torch.zeros_like(black, dtype=torch.float32).masked_fill(black, -1e9)[:, None]
        if self.cls:
            tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, self.window if self.windows and i == 0 else mask)
        tokens = self.norm(tokens)
        answer: Tensor = self.head(tokens[:, 0] if self.cls else tokens.mean(1))
        return answer


def vit() -> nn.Module:
    return Tokens()


def vit_class_token() -> nn.Module:
    return Tokens(cls=True)


def swin() -> nn.Module:
    return Tokens(windows=True)


def regnet() -> nn.Module:
    return net(
        conv(3, 24, 2),
        plus(conv(24, 24, groups=4), nn.Conv2d(24, 24, 1)),
        conv(24, 48, 2, groups=4),
        width=48,
    )


def shufflenet() -> nn.Module:
    def shuffled(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    return net(conv(3, 24, 2), conv(24, 24, groups=2), Do(shuffled), conv(24, 48, 2, groups=2), width=48)


def inception() -> nn.Module:
    mixed = Do(lambda x, a, b, c: torch.cat([a(x), b(x), c(x)], 1), nn.Conv2d(24, 16, 1), conv(24, 16), nn.Sequential(
        nn.AvgPool2d(3, 1, 1), nn.Conv2d(24, 16, 1)))  # fmt: skip
    return net(conv(3, 24, 2), mixed, conv(48, 48, 2), width=48)


def squeezenet() -> nn.Module:
    fire = [nn.Conv2d(24, 8, 1), nn.ReLU(), Do(lambda x, a, b: torch.cat([a(x), b(x)], 1).relu(),
            nn.Conv2d(8, 24, 1), nn.Conv2d(8, 24, 3, 1, 1))]  # fmt: skip
    return net(conv(3, 24, 2), *fire, nn.MaxPool2d(2), conv(48, 48), width=48)


def mixer() -> nn.Module:
    def block() -> nn.Module:
        along = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
        across = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        return Do(lambda x, a, b: (y := x + a(x.transpose(1, 2)).transpose(1, 2)) + b(y), along, across)

    cut = Do(lambda x, c: c((x - 0.45) / 0.25).flatten(2).transpose(1, 2), nn.Conv2d(3, 48, 4, 4))
    return nn.Sequential(cut, block(), block(), nn.LayerNorm(48), Do(lambda x: x.mean(1)), nn.Linear(48, K))


def poolformer() -> nn.Module:
    def block(n: int) -> nn.Module:
        return plus(
            Do(lambda x: functional.avg_pool2d(x, 3, 1, 1) - x),
            nn.GroupNorm(4, n),
            nn.Conv2d(n, n, 1),
            nn.GELU(),
        )

    return net(conv(3, 32, 2), block(32), conv(32, 48, 2), block(48), width=48)


def coatnet() -> nn.Module:
    attend = Do(lambda x, f: f(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape), Attention(48))
    return net(conv(3, 24, 2), conv(24, 48, 2), attend, width=48)


ARCHITECTURES: tuple[Callable[[], nn.Module], ...] = (
    vgg, resnet, densenet, mobilenet, efficientnet, convnext, vit, vit_class_token, swin, regnet, shufflenet,
    inception, squeezenet, mixer, poolformer, coatnet,
)  # fmt: skip


def leaky_where() -> nn.Module:
    """A leaky ReLU as comparison and Where."""
    return plain(lambda: Do(lambda x: torch.where(x > 0, x, 0.1 * x)))


def hard_clips() -> nn.Module:
    """Hard-swish as a product with a Clip."""
    return plain(lambda: Do(lambda x: x * ((x + 3).clamp(0, 6) / 6)))


def relu_by_mask() -> nn.Module:
    """ReLU as a product with a truth value."""
    return plain(lambda: Do(lambda x: x * (x > 0).float()))


def winners() -> nn.Module:
    """Of every place's channels the strongest eight are kept (TopK, comparison)."""
    return plain(lambda: Do(lambda x: x * (x >= x.topk(8, 1).values[:, -1:]).float()))


def signs_inside() -> nn.Module:
    """Activations of one bit (Sign)."""
    return plain(lambda: Do(lambda x: x.clamp(-1, 1) + (x.sign() - x.clamp(-1, 1)).detach()))


def rounded_inside() -> nn.Module:
    """Activations of few levels (Round, Clip)."""
    return plain(lambda: Do(lambda x: (c := x.clamp(0, 3)) + ((c * 4).round() / 4 - c).detach()))


def maxout() -> nn.Module:
    """The larger of two halves."""
    half = Do(lambda x: torch.maximum(*x.chunk(2, 1)))
    return net(conv(3, 48, 2), half, conv(24, 64, 2), half, conv(32, 48), width=48)


def before(change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A network behind a step that changes the image."""
    return nn.Sequential(Do(change), resnet())


def nan_guard() -> nn.Module:
    """Not-a-number becomes zero."""
    return before(lambda x: torch.where(torch.isnan(x), torch.zeros_like(x), x))


def range_guard() -> nn.Module:
    """Images of 0..255 are divided, those of 0..1 are not: a scalar decision on the whole image."""
    return before(lambda x: torch.where(x.amax((1, 2, 3), keepdim=True) > 1.5, x / 255, x))


def flat_guard() -> nn.Module:
    """Each image is standardised, unless it is flat."""

    def standardised(x: Tensor) -> Tensor:
        spread = x.std((1, 2, 3), keepdim=True)
        return (x - x.mean((1, 2, 3), keepdim=True)) / torch.where(
            spread < 1e-3, torch.ones_like(spread), spread
        )

    return before(standardised)


def floor_guard() -> nn.Module:
    """Each image is standardised, by a deviation of at least one level."""
    return before(
        lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True).clamp_min(1 / 255)
    )


def eight_bit() -> nn.Module:
    """The image is rounded to eight bits."""
    return before(lambda x: (x * 255).round().clamp(0, 255) / 255)


def resized() -> nn.Module:
    """The image is resized inside, to a size that follows from its own."""
    return before(
        lambda x: functional.interpolate(x, size=(x.shape[2] // 2 * 2, x.shape[3]), mode="bilinear")
    )


def dark_gamma() -> nn.Module:
    """Dark images are lightened: a decision on the image's mean that is taken both ways on clean images."""
    return before(lambda x: torch.where(x.mean((1, 2, 3), keepdim=True) < 0.4, x.clamp_min(1e-6).sqrt(), x))


def padded() -> nn.Module:
    """Attention leaves out patches that are black."""
    return Tokens(padding=True)


def experts() -> nn.Module:
    """One of four experts is chosen by ArgMax."""

    def mixed(x: Tensor, choose: nn.Module, *each: nn.Module) -> Tensor:
        scores = choose(x)
        one = functional.one_hot(scores.argmax(1), 4).float() * scores.softmax(1)
        out = torch.stack([f(x) for f in each], 1)
        result: Tensor = (out * one[:, :, None]).sum(1)
        return result

    body = [conv(3, 24, 2), conv(24, 48, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    heads = [nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, K)) for _ in range(4)]
    return nn.Sequential(*body, Do(mixed, nn.Linear(48, 4), *heads))


def levels() -> nn.Module:
    """Pooled features of all layers side by side at the end."""

    def all_of(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module, head: nn.Module) -> Tensor:
        p = a(x)
        q = b(p)
        r = c(q)
        out: Tensor = head(torch.cat([v.mean((2, 3)) for v in (p, q, r)], 1))
        return out

    return Do(all_of, conv(3, 16, 2), conv(16, 32, 2), conv(32, 48), nn.Linear(96, K))


def colours() -> nn.Module:
    """The image's mean colour stands beside the features."""
    body = nn.Sequential(conv(3, 24, 2), conv(24, 48, 2), conv(48, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Do(lambda x, f, head: head(torch.cat([f(x), x.mean((2, 3))], 1)), body, nn.Linear(51, K))


def softplus_where() -> nn.Module:
    """Softplus with its usual guard against overflow."""
    return plain(lambda: Do(lambda x: torch.where(x > 20, x, torch.log1p(x.clamp_max(20).exp()))))


def loops() -> nn.Module:
    """A Loop over a number of rounds that the graph holds (written by TorchScript)."""
    return nn.Sequential(conv(3, 24, 2), Repeated(), conv(24, 48, 2), *net(width=48)[1:])  # type: ignore[index]


class Repeated(nn.Module):
    """The same layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(24, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        again: Tensor = _repeated(x, self.inner.weight, self.inner.bias)
        return again


@torch.jit.script
def _repeated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    for _ in range(int(x.shape[1]) // 8):
        x = x + torch.relu(torch.conv2d(x, weight, bias, padding=[1, 1])) * 0.5
    return x


HARD: tuple[Callable[[], nn.Module], ...] = (
    leaky_where, hard_clips, relu_by_mask, winners, signs_inside, rounded_inside, maxout, nan_guard, range_guard,
    flat_guard, floor_guard, eight_bit, resized, dark_gamma, padded, experts, levels, colours, softplus_where, loops,
)  # fmt: skip
