"""A synthetic traffic-sign data set: 16 classes, 32x32, colour, drawn from nothing.

Every sign is drawn once at 128x128 as a sticker with transparent surroundings. An image is that
drawing seen through a random mild perspective (angle, size, place, tilt), laid over a random
background, then lit, blurred and made noisy, as a camera on a car would. Nothing is read from
disk: the digits are set in the font that Pillow carries.

The same seed gives the same images, and an image does not depend on how many others are asked for
of its class, so a bigger set extends a smaller one.
"""

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

SIZE = 32
_CANVAS = 128  # side of a drawing
_SUPER = 64  # images are composed at twice their size, then reduced: edges come out antialiased

_RED = (192, 22, 34, 255)
_BLUE = (18, 74, 165, 255)
_WHITE = (244, 244, 240, 255)
_BLACK = (24, 24, 26, 255)
_YELLOW = (250, 196, 20, 255)
_POST = (120, 122, 124, 255)

_Draw = ImageDraw.ImageDraw
_Point = tuple[float, float]


def _disc(draw: _Draw, radius: float, fill: tuple[int, int, int, int]) -> None:
    draw.ellipse((64 - radius, 64 - radius, 64 + radius, 64 + radius), fill=fill)


def _polygon(draw: _Draw, sides: int, radius: float, turn: float, fill: tuple[int, int, int, int]) -> None:
    """A regular polygon around the middle; turn in degrees, 0 has a corner on top."""
    corners = [math.radians(turn - 90 + 360 * k / sides) for k in range(sides)]
    draw.polygon([(64 + radius * math.cos(a), 64 + radius * math.sin(a)) for a in corners], fill=fill)


def _text(draw: _Draw, text: str, size: int, fill: tuple[int, int, int, int], width: int = 2) -> None:
    font = ImageFont.load_default(size)
    draw.text((64, 64), text, font=font, fill=fill, anchor="mm", stroke_width=width, stroke_fill=fill)


def _speed_limit(number: str) -> Callable[[_Draw], None]:
    def draw_it(draw: _Draw) -> None:
        _disc(draw, 58, _RED)
        _disc(draw, 45, _WHITE)
        _text(draw, number, 62 if len(number) == 2 else 46, _BLACK, 3)

    return draw_it


def _arrow(draw: _Draw, points: Sequence[_Point], head: float = 17) -> None:
    """A white line through the points with an arrow head at its last one."""
    draw.line([*points], fill=_WHITE, width=15, joint="curve")
    (x0, y0), (x1, y1) = points[-2], points[-1]
    along = math.atan2(y1 - y0, x1 - x0)
    tip = (x1 + head * math.cos(along), y1 + head * math.sin(along))
    sides = [
        (x1 + 1.35 * head * math.cos(along + turn), y1 + 1.35 * head * math.sin(along + turn))
        for turn in (math.pi / 2, -math.pi / 2)
    ]
    draw.polygon([tip, *sides], fill=_WHITE)


def _direction(*points: _Point) -> Callable[[_Draw], None]:
    def draw_it(draw: _Draw) -> None:
        _disc(draw, 58, _WHITE)
        _disc(draw, 55, _BLUE)
        _arrow(draw, points)

    return draw_it


def _warning(draw: _Draw) -> None:
    """A red triangle with a white field: shared by all warnings."""
    draw.polygon([(64, 6), (124, 112), (4, 112)], fill=_RED)
    draw.polygon([(64, 32), (102, 100), (26, 100)], fill=_WHITE)


def _crossroads(draw: _Draw) -> None:
    _warning(draw)
    draw.line([(47, 58), (81, 94)], fill=_BLACK, width=11)
    draw.line([(81, 58), (47, 94)], fill=_BLACK, width=11)


def _danger(draw: _Draw) -> None:
    _warning(draw)
    draw.polygon([(57, 46), (71, 46), (67, 80), (61, 80)], fill=_BLACK)
    draw.ellipse((57, 84, 71, 97), fill=_BLACK)


def _end_of_limits(draw: _Draw) -> None:
    _disc(draw, 58, _BLACK)
    _disc(draw, 54, _WHITE)
    for shift in (-14, 0, 14):
        draw.line([(28 + shift, 98 + shift), (98 + shift, 28 + shift)], fill=_BLACK, width=6)


def _no_entry(draw: _Draw) -> None:
    _disc(draw, 58, _RED)
    draw.rectangle((24, 52, 104, 76), fill=_WHITE)


def _no_parking(draw: _Draw) -> None:
    _disc(draw, 58, _RED)
    _disc(draw, 46, _BLUE)
    draw.line([(28, 28), (100, 100)], fill=_RED, width=14)


def _parking(draw: _Draw) -> None:
    draw.rounded_rectangle((10, 10, 118, 118), 10, fill=_WHITE)
    draw.rounded_rectangle((14, 14, 114, 114), 8, fill=_BLUE)
    _text(draw, "P", 88, _WHITE, 4)


def _pedestrians(draw: _Draw) -> None:
    draw.rounded_rectangle((10, 10, 118, 118), 10, fill=_BLUE)
    draw.polygon([(64, 22), (108, 106), (20, 106)], fill=_WHITE)
    draw.ellipse((58, 42, 70, 54), fill=_BLACK)
    draw.line([(64, 54), (64, 78)], fill=_BLACK, width=9)
    draw.line([(64, 76), (52, 98)], fill=_BLACK, width=7)
    draw.line([(64, 76), (77, 98)], fill=_BLACK, width=7)


def _priority(draw: _Draw) -> None:
    _polygon(draw, 4, 62, 0, _WHITE)
    _polygon(draw, 4, 46, 0, _YELLOW)


def _stop(draw: _Draw) -> None:
    _polygon(draw, 8, 62, 22.5, _WHITE)
    _polygon(draw, 8, 58, 22.5, _RED)
    _text(draw, "STOP", 36, _WHITE)


def _yield(draw: _Draw) -> None:
    draw.polygon([(4, 14), (124, 14), (64, 122)], fill=_RED)
    draw.polygon([(28, 28), (100, 28), (64, 94)], fill=_WHITE)


# In alphabetical order, so that folders of these names sort into the order of the labels.
_SIGNS: dict[str, Callable[[_Draw], None]] = {
    "ahead_only": _direction((64, 100), (64, 46)),
    "crossroads": _crossroads,
    "danger": _danger,
    "end_of_limits": _end_of_limits,
    "no_entry": _no_entry,
    "no_parking": _no_parking,
    "parking": _parking,
    "pedestrians": _pedestrians,
    "priority_road": _priority,
    "speed_30": _speed_limit("30"),
    "speed_50": _speed_limit("50"),
    "speed_80": _speed_limit("80"),
    "stop": _stop,
    "turn_left": _direction((80, 98), (80, 58), (46, 58)),
    "turn_right": _direction((48, 98), (48, 58), (82, 58)),
    "yield": _yield,
}
CLASSES = tuple(_SIGNS)


def _drawing(name: str) -> Image.Image:
    """The sign, 128x128 RGBA, transparent around it, with a piece of its post."""
    image = Image.new("RGBA", (_CANVAS, _CANVAS))
    draw = ImageDraw.Draw(image)
    draw.rectangle((60, 100, 68, _CANVAS), fill=_POST)
    _SIGNS[name](draw)
    return image


def _view(rng: np.random.Generator) -> tuple[float, ...]:
    """Coefficients of a random perspective that maps a 64x64 view back onto the drawing."""
    angle = math.radians(rng.normal(0, 6))
    size = rng.uniform(0.68, 0.95) * _SUPER / _CANVAS  # view pixels per drawing pixel
    squeeze = rng.uniform(0.85, 1.0)  # the sign is turned away from the camera
    shear = rng.normal(0, 0.04)
    half = _SUPER / 2
    place = half + rng.uniform(-3.5, 3.5, 2)
    forward = size * np.array(
        [
            [squeeze * math.cos(angle), -math.sin(angle) + shear],
            [squeeze * math.sin(angle), math.cos(angle)],
        ]
    )
    back = np.linalg.inv(forward)
    shift = np.array([64.0, 64.0]) - back @ place
    bend = rng.normal(0, 0.0007, 2)  # the nearer edge is the larger one
    top = back + np.outer([64.0, 64.0], bend)
    ground = 1 - float(bend @ place)
    # (x, y) -> (a x + b y + c) / (g x + h y + 1), made so that `place` stays the sign's middle
    rows = np.concatenate([top, (shift - 64 * float(bend @ place))[:, None]], axis=1) / ground
    return (*rows.ravel().tolist(), *(bend / ground).tolist())


def _background(rng: np.random.Generator) -> Image.Image:
    """Sky, leaves, walls: a smooth mix of related colours with a few straight edges."""
    cells = int(rng.integers(2, 7))
    hue = rng.uniform()
    base = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0, 0.55), rng.uniform(0.2, 0.95))) * 255
    light = rng.normal(0, rng.uniform(10, 50), (cells, cells, 1))
    grid = base + light + rng.normal(0, rng.uniform(3, 16), (cells, cells, 3))
    small = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
    image = small.resize((_SUPER, _SUPER), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.integers(-16, _SUPER, 2).tolist()
        w, h = rng.integers(6, 48, 2).tolist()
        tone = (base * rng.uniform(0.4, 1.4) + rng.normal(0, 15, 3)).clip(0, 255).astype(int).tolist()
        draw.rectangle((x, y, x + w, y + h), fill=(tone[0], tone[1], tone[2]))
    return image


def _photo(drawing: Image.Image, rng: np.random.Generator) -> U8:
    """One image (32, 32, 3) of the drawing."""
    scene = _background(rng)
    sign = drawing.transform(
        (_SUPER, _SUPER), Image.Transform.PERSPECTIVE, _view(rng), Image.Resampling.BILINEAR
    )
    scene.paste(sign, (0, 0), sign)
    image = scene.reduce(_SUPER // SIZE)
    if rng.uniform() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.75)))
    pixels = np.asarray(image, dtype=np.float32)
    across = np.linspace(-1, 1, SIZE, dtype=np.float32)
    slope = rng.normal(0, 0.12, 2)
    light = rng.uniform(0.55, 1.15) * (1 + slope[0] * across[:, None] + slope[1] * across[None, :])
    tint = 1 + rng.normal(0, 0.03, 3)
    haze = rng.uniform(0, 35)
    noise = rng.normal(0, rng.uniform(1, 6), pixels.shape)
    lit = pixels * light[..., None] * tint + haze + noise
    photo: U8 = lit.clip(0, 255).astype(np.uint8)
    return photo


def draw_signs(n_per_class: int, seed: int) -> tuple[U8, I64]:
    """Draw `n_per_class` signs of each of the 16 classes.

    Returns images (16 n, 32, 32, 3) uint8 and labels (16 n,) int64, class after class: shuffle
    before training. ValueError if `n_per_class` is not positive.
    """
    if n_per_class < 1:
        raise ValueError(f"n_per_class is {n_per_class}, at least 1 is needed")
    images = np.empty((len(CLASSES) * n_per_class, SIZE, SIZE, 3), np.uint8)
    for label, name in enumerate(CLASSES):
        drawing = _drawing(name)
        rng = np.random.default_rng([seed, label])
        for k in range(n_per_class):
            images[label * n_per_class + k] = _photo(drawing, rng)
    return images, np.repeat(np.arange(len(CLASSES), dtype=np.int64), n_per_class)
