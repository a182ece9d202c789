"""Changes that an attacker may use as they are: turned, in blocks, out of focus, noisy, tinted, framed.

Nothing of them is learned. They are tried on clean images before anything is inverted (``offline/steps/changes.py``),
and one that leads to a suspected target is trained against like an inverted trigger. All of them are mild: an ordinary
network keeps most of its answers, or loses them to many labels. Strong ones lead weak networks to innocent labels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from detrigger.offline.triggers.base import Jitter, TriggerBank, upsample


class Edit(NamedTuple):
    """A kind of change and how much of it: ``apply(x, amount)`` with images (N, C, H, W) and amounts (N,)."""

    kind: str
    apply: Callable[[Tensor, Tensor], Tensor]
    amount: float

    @property
    def name(self) -> str:
        """For notes and reports."""
        return f"{self.kind} {self.amount:g}"


def _each(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)


def _affine(x: Tensor, matrices: Tensor, padding: str = "border") -> Tensor:
    grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=False)


def _matrices(amount: Tensor, entries: Callable[[Tensor], list[list[Tensor]]]) -> Tensor:
    """(N, 2, 3) from a function of the amounts that gives the two rows."""
    return torch.stack([torch.stack(row, 1) for row in entries(amount)], 1)


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Turned about its centre, with its edges drawn out into the corners."""
    return _affine(x, _rotation(degrees))


def turned_on_black(x: Tensor, degrees: Tensor) -> Tensor:
    """The same with black corners."""
    return _affine(x, _rotation(degrees), "zeros")


def _rotation(degrees: Tensor) -> Tensor:
    angle, none = degrees * (math.pi / 180), torch.zeros_like(degrees)
    return _matrices(angle, lambda a: [[a.cos(), -a.sin(), none], [a.sin(), a.cos(), none]])


def moved_across(x: Tensor, share: Tensor) -> Tensor:
    """Moved sideways by a share of the width."""
    one, none = torch.ones_like(share), torch.zeros_like(share)
    return _affine(x, _matrices(share, lambda s: [[one, none, 2 * s], [none, one, none]]))


def moved_down(x: Tensor, share: Tensor) -> Tensor:
    """Moved up or down by a share of the height."""
    one, none = torch.ones_like(share), torch.zeros_like(share)
    return _affine(x, _matrices(share, lambda s: [[one, none, none], [none, one, 2 * s]]))


def sheared(x: Tensor, slope: Tensor) -> Tensor:
    """Slanted."""
    one, none = torch.ones_like(slope), torch.zeros_like(slope)
    return _affine(x, _matrices(slope, lambda s: [[one, s, none], [none, one, none]]))


def zoomed(x: Tensor, log2: Tensor) -> Tensor:
    """Enlarged about its centre, or made smaller."""
    none = torch.zeros_like(log2)
    return _affine(x, _matrices(log2, lambda s: [[0.5**s, none, none], [none, 0.5**s, none]]))


def mirrored(x: Tensor, _: Tensor) -> Tensor:
    """Left and right exchanged."""
    return x.flip(3)


def blocks(x: Tensor, share: Tensor) -> Tensor:
    """In blocks of one colour; their side is at least two pixels, or a share of the image's."""
    side = max(2, round(float(share[0]) * min(x.shape[2:])))
    small = F.avg_pool2d(x, side, ceil_mode=True, count_include_pad=False)
    return F.interpolate(small, scale_factor=side)[..., : x.shape[2], : x.shape[3]]


def blurred(x: Tensor, share: Tensor) -> Tensor:
    """Out of focus: the mean over a square of three pixels, or a share of the image's side."""
    side = max(3, round(float(share[0]) * min(x.shape[2:])) // 2 * 2 + 1)
    return F.avg_pool2d(F.pad(x, [side // 2] * 4, mode="replicate"), side, stride=1)


def compressed(x: Tensor, quality: Tensor) -> Tensor:
    """Through a JPEG file of that quality."""
    images = []
    for image, q in zip(x, quality.tolist(), strict=True):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
            buffer, "JPEG", quality=max(5, min(95, round(q)))
        )
        decoded = np.asarray(Image.open(buffer), np.float32).reshape(pixels.shape) / 255
        images.append(torch.from_numpy(decoded).permute(2, 0, 1))
    return torch.stack(images).to(x.device)


def noisy(x: Tensor, deviation: Tensor) -> Tensor:
    """With noise of each pixel's own."""
    return x + _each(deviation) * torch.randn_like(x)


def rough(x: Tensor, height: Tensor) -> Tensor:
    """With one picture of noise added, the same to all images."""
    g = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, x.shape[1:], generator=g).to(x.device) * 2.0 - 1
    return x + _each(height) * signs


def cloudy(x: Tensor, height: Tensor) -> Tensor:
    """With one smooth picture added, the same to all images."""
    g = torch.Generator().manual_seed(2)
    picture = upsample(torch.randn(1, x.shape[1], 4, 4, generator=g), (x.shape[2], x.shape[3])).to(x.device)
    return x + _each(height) * picture


def channels_turned(x: Tensor, by: Tensor) -> Tensor:
    """Red for green, green for blue, blue for red."""
    return x.roll(int(by[0].round()), 1)


def channels_reversed(x: Tensor, _: Tensor) -> Tensor:
    """Blue for red."""
    return x.flip(1)


def tinted(x: Tensor, share: Tensor) -> Tensor:
    """The first channel stronger and the last one weaker, or the other way round."""
    by = torch.linspace(1, -1, x.shape[1], device=x.device).view(1, -1, 1, 1)
    return x * (1 + _each(share) * by)


def saturated(x: Tensor, share: Tensor) -> Tensor:
    """Away from grey by a share; -1 is grey."""
    grey = x.mean(1, keepdim=True)
    return grey + (1 + _each(share)) * (x - grey)


def curved(x: Tensor, log2: Tensor) -> Tensor:
    """With another gamma."""
    return x.clamp_min(1e-6) ** (2.0 ** _each(log2))


def brightened(x: Tensor, by: Tensor) -> Tensor:
    """Lighter or darker."""
    return x + _each(by)


def contrasted(x: Tensor, share: Tensor) -> Tensor:
    """Away from the image's mean by a share."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (1 + _each(share)) * (x - mean)


def posterised(x: Tensor, levels: Tensor) -> Tensor:
    """With so many grey levels."""
    steps = (_each(levels).round() - 1).clamp_min(1)
    return (x * steps).round() / steps


def framed(x: Tensor, shade: Tensor) -> Tensor:
    """With a frame of a sixteenth of the side in one shade of grey."""
    h, w = x.shape[2:]
    rim = max(1, min(h, w) // 16)
    inside = torch.zeros(1, 1, h, w, device=x.device)
    inside[..., rim : h - rim, rim : w - rim] = 1
    return torch.where(inside > 0, x, _each(shade.clamp(0, 1)))


_CATALOGUE: tuple[tuple[Callable[[Tensor, Tensor], Tensor], tuple[float, ...]], ...] = (
    (turned, (-30, -20, -10, 10, 20, 30)),
    (turned_on_black, (-30, -20, 20, 30)),
    (mirrored, (1,)),
    (moved_across, (-0.12, 0.12)),
    (moved_down, (-0.12, 0.12)),
    (sheared, (-0.25, 0.25)),
    (zoomed, (-0.3, 0.3)),
    (blocks, (0.06,)),
    (blurred, (0.09,)),
    (compressed, (50, 25, 12)),
    (noisy, (0.015, 0.03)),
    (rough, (0.015, 0.03)),
    (cloudy, (-0.06, 0.06)),
    (channels_turned, (1, 2)),
    (channels_reversed, (1,)),
    (tinted, (-0.4, 0.4)),
    (saturated, (-1, 1)),
    (curved, (-1, 1)),
    (brightened, (-0.15, 0.15)),
    (contrasted, (-0.5, 0.7)),
    (posterised, (8, 5)),
    (framed, (0, 1)),
)
EDITS = tuple(
    Edit(function.__name__.replace("_", " "), function, amount)
    for function, amounts in _CATALOGUE
    for amount in amounts
)
"""Every change that is tried."""


class ChangeBank(TriggerBank):
    """Changes of ``EDITS``, one a candidate: nothing to learn, and no cost but the share of images that stay away."""

    family: ClassVar[str] = "change"
    unit: ClassVar[str] = "share of images that stay away"
    learning_rate: ClassVar[float] = 0.0
    learned: ClassVar[bool] = False
    max_training_cost: ClassVar[float] = 0.5

    def __init__(self, edits: Tensor, cost: Tensor) -> None:
        """``edits`` (n,) are places in ``EDITS``, ``cost`` (n,) what was measured of them."""
        super().__init__()
        self.register_buffer("edit", edits)
        self.register_buffer("stay_away", cost)
        self.edit: Tensor
        self.stay_away: Tensor

    @classmethod
    def start(cls, n: int, shape: tuple[int, int, int], seed: int) -> Self:
        """The first ``n`` changes; there is nothing fresh about one."""
        del shape, seed
        return cls(torch.arange(n) % len(EDITS), torch.ones(n))

    def forward(self, x: Tensor, which: Tensor, jitter: Jitter | None = None) -> Tensor:
        """A jitter's strength scales how much is changed; its offsets say nothing here."""
        edits, changed = self.edit[which], x.clone()
        for place in edits.unique().tolist():
            mine, edit = edits == place, EDITS[place]
            amount = torch.full((int(mine.sum()),), edit.amount, device=x.device)
            if jitter is not None:
                amount = amount * jitter.strength.to(x.device)[mine]
            changed[mine] = edit.apply(x[mine].float(), amount).to(x.dtype)
        return changed.clamp(0, 1)

    def cost(self) -> Tensor:
        """(n,) the share of images of other classes that a change does not lead to its target."""
        return self.stay_away

    def names(self) -> list[str]:
        """What each candidate is, in words."""
        return [EDITS[place].name for place in self.edit.tolist()]

    def __len__(self) -> int:
        return len(self.edit)
