"""What a classifier expects of its images, and the one function that brings an image there.

The offline job and the service both call `decode_to_array`, so both see the same pixels.
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from detrigger.models.errors import BadInput, first_problem
from detrigger.models.foreign import translated
from detrigger.models.spelling import spelled

# Formats that Pillow may try on bytes of strangers; its other decoders stay out of reach.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
MAX_IMAGE_PIXELS = 50_000_000
MAX_SIDE = 4096
MAX_RESIZED_PIXELS = 2**25
"""Pixels of an image while it is resized: one of 1x100000 with its shorter side brought to 256 has far more."""
_MAX_FILE_BYTES = 1_000_000
_RESAMPLE = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Scale = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Level = Annotated[int, Field(ge=0, le=255)]


class Preprocess(BaseModel):
    """The preprocess file: JSON `{"size":[H,W],"mean":[...],"std":[...],"classes":[...]}` and what stands below.

    An image is turned by its EXIF orientation where `exif_transpose` is set, and converted to 8-bit RGB (or grey).
    Then it is brought to `size`, in one of three ways:

    - plainly: resized to exactly `size`, without keeping its aspect;
    - `crop`: resized by `resize` (one number: the shorter side, keeping the aspect; [H,W]: exactly; left out: not at
      all), and its centre of `size` is cut out; where it is smaller, it is padded with `padding`, else black. Where
      the rest is odd, `crop_rest` says whether half of it is rounded to even (torchvision) or down (Hugging Face);
    - `padding` without `crop`: resized to fit into `size`, keeping its aspect, and padded around.

    Scaled to [0,1], its channels in the given `order` (`channels` in the file; L is grey), `(x - mean) / std` then goes
    into the classifier in its `layout`; mean and std stand in the same order. `"range": 255` is another way to write
    mean and std: they are divided by 255. `classes` may be left out: the data then names them. Other ways to write it
    are in `spelling`; Hugging Face's and timm's files are read by `foreign`.

    `alpha` says what becomes of transparent pixels, whose colours nobody sees but the classifier: the image is refused,
    the transparency is dropped (as most training pipelines do), or the image is laid on white or black.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    size: tuple[Side, Side]
    mean: tuple[FiniteFloat, ...] = (0.0, 0.0, 0.0)
    std: tuple[Scale, ...] = (1.0, 1.0, 1.0)
    classes: tuple[ClassName, ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    order: Literal["RGB", "BGR", "L"] = Field(default="RGB", alias="channels")
    resize: Side | tuple[Side, Side] | None = None
    crop: bool = False
    crop_rest: Literal["even", "down"] = "even"
    padding: Level | tuple[Level, Level, Level] | None = None
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    exif_transpose: bool = False
    alpha: Literal["refuse", "drop", "white", "black"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, content: Any) -> Any:
        return spelled(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) not in (1, 3):
            raise ValueError(f"mean needs 1 value (grey) or 3 (RGB), not {len(self.mean)}")
        if len(self.std) != len(self.mean):
            raise ValueError(f"std has {len(self.std)} values and mean has {len(self.mean)}")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must be different from each other")
        if len(self.classes) == 1:
            raise ValueError("classes must name 2 classes or more, or be left out")
        if self.channels == 1 and isinstance(self.padding, tuple):
            raise ValueError("a grey image (one value of mean) has no coloured padding")
        if not self.crop and self.resize not in (None, self.size):
            raise ValueError(
                f"resize {self.resize} without crop does not lead to size {list(self.size)}; "
                'set "crop": true to cut out the centre'
            )
        if not self.crop and self.resize is not None and self.padding is not None:
            raise ValueError("padding fits the image into size; leave resize out, or crop as well")
        return self

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB, whatever `order` the classifier wants)."""
        return len(self.mean)

    @classmethod
    def plain(cls, height: int, width: int, channels: int, classes: tuple[str, ...] = ()) -> Self:
        """Mean 0 and std 1: what holds when the user gives no preprocess file."""
        return cls(size=(height, width), mean=(0.0,) * channels, std=(1.0,) * channels, classes=classes)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a preprocess file of ours, of Hugging Face or of timm, in UTF-8, 16 or 32.

        BadInput names the file and the first thing that is wrong in it.
        """
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise BadInput(
                f"cannot read the preprocess file {path}: {error.strerror}", code="bad_preprocess"
            ) from error
        if len(raw) > _MAX_FILE_BYTES:
            raise BadInput(
                f"the preprocess file {path} is larger than {_MAX_FILE_BYTES} bytes; it should be a small"
                " JSON object",
                code="bad_preprocess",
            )
        try:
            content = json.loads(raw.decode(json.detect_encoding(raw)))
            if isinstance(content, dict):
                content = translated(content)
                if isinstance(names := content.get("classes"), list):
                    content["classes"] = [same_text(n) if isinstance(n, str) else n for n in names]
            return cls.model_validate(content)
        except ValidationError as error:
            reason = first_problem(error)
        except (ValueError, RecursionError) as error:
            reason = str(error)
        raise BadInput(
            f"the preprocess file {path} is not valid: {reason}; it should look like"
            ' {"size":[H,W],"mean":[0,0,0],"std":[1,1,1],"classes":["a","b"]}',
            code="bad_preprocess",
        )


def same_text(name: str) -> str:
    """A name in Unicode's composed form: an accent may be written in two ways that look alike."""
    return unicodedata.normalize("NFC", name)


def decode_to_array(image: Image.Image, pre: Preprocess) -> NDArray[np.uint8]:
    """Bring an opened image to the classifier's size and channels: uint8 (H, W, C), 0..255, RGB or grey.

    Pixel for pixel what torchvision's and timm's evaluation transforms make of an image of Pillow's.

    Decodes the image's pixels, so everything that Pillow raises on damaged files may come out of it;
    the caller bounds `image.size` beforehand. BadInput for pixel formats that have no 8-bit meaning, transparent
    pixels that `alpha` refuses, and shapes so long that resizing them would take more than MAX_RESIZED_PIXELS.
    """
    if pre.exif_transpose:
        image = ImageOps.exif_transpose(image)
    image = _eight_bit(_opaque(image, pre.alpha), "L" if pre.channels == 1 else "RGB")
    height, width = pre.size
    if pre.crop:
        fitted = _centre(_resize(image, _before_crop(image, pre), pre), pre)
    elif pre.padding is not None:
        ratio = max(image.height / height, image.width / width)
        inside = max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
        fitted = _centre(_resize(image, inside, pre), pre)
    else:
        fitted = _resize(image, (width, height), pre)
    return np.asarray(fitted, dtype=np.uint8).reshape(height, width, pre.channels)


def _before_crop(image: Image.Image, pre: Preprocess) -> tuple[int, int]:
    """Width and height that the image is resized to before its centre is cut out."""
    if pre.resize is None:
        return image.size
    if isinstance(pre.resize, tuple):
        return pre.resize[1], pre.resize[0]
    # Cut off, not rounded, as torchvision and Hugging Face do.
    shorter = min(image.size)
    width, height = (int(pre.resize * side / shorter) for side in image.size)
    return width, height


def _resize(image: Image.Image, size: tuple[int, int], pre: Preprocess) -> Image.Image:
    if image.size == size:
        return image
    # Pillow resizes rows first, then columns.
    if size[0] * max(image.height, size[1]) > MAX_RESIZED_PIXELS:
        raise BadInput(
            f"the image is too long and thin: resizing its {image.width}x{image.height} pixels to"
            f" {size[0]}x{size[1]} takes too much memory",
            code="bad_image",
        )
    # Pillow widens the filter when it shrinks, i.e. it antialiases.
    return image.resize(size, _RESAMPLE[pre.resample])


def _centre(image: Image.Image, pre: Preprocess) -> Image.Image:
    """The centre of an image, padded where the image is smaller."""
    height, width = pre.size
    pad_x, pad_y = max(0, width - image.width), max(0, height - image.height)
    if pad_x or pad_y:
        fill = pre.padding or 0
        colour = (fill,) * 3 if isinstance(fill, int) and image.mode == "RGB" else fill
        padded = Image.new(image.mode, (image.width + pad_x, image.height + pad_y), colour)
        padded.paste(image, (pad_x // 2, pad_y // 2))
        image = padded
    half = round if pre.crop_rest == "even" else math.floor
    left, top = half((image.width - width) / 2), half((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _opaque(image: Image.Image, alpha: str) -> Image.Image:
    """The image without transparency. Decodes the pixels where the format may be transparent."""
    if alpha == "drop" or not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        raise BadInput(
            "the image has 16 bits and transparency; send 8 bits or opaque pixels", code="bad_image"
        )
    full = image.convert("RGBA")
    if alpha != "refuse":
        return Image.alpha_composite(Image.new("RGBA", image.size, alpha), full).convert("RGB")
    lowest = full.getchannel("A").getextrema()[0]
    if isinstance(lowest, (int, float)) and lowest < 255:
        raise BadInput(
            "the image has transparent pixels, which hide colours: flatten it, or choose what becomes of them with"
            ' "alpha": "drop", "white" or "black" in preprocess.json',
            code="bad_image",
        )
    return image


def _eight_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion would clip everything above 255 to white.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")
    elif image.mode == "F":
        raise BadInput("the image holds floating-point pixels; send 8-bit pixels", code="bad_image")
    return image if image.mode == mode else image.convert(mode)
