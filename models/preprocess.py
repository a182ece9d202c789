"""What a classifier expects of its images, and the one function that brings an image there.

The offline job and the service both call `decode_to_array`, so both see the same pixels.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from detrigger.models.errors import BadInput, first_problem

# Formats that Pillow may try on bytes of strangers; its other decoders stay out of reach.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM")
MAX_IMAGE_PIXELS = 50_000_000
MAX_SIDE = 4096
_MAX_FILE_BYTES = 1_000_000

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Scale = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]


class Preprocess(BaseModel):
    """The preprocess file: JSON `{"size":[H,W],"mean":[...],"std":[...],"classes":[...]}`.

    An image is converted to RGB (or grey), resized to exactly `size` without keeping its aspect, scaled to
    [0,1]; then `(x - mean) / std` goes into the classifier in its `layout`. Transparency is dropped, not
    blended, as training pipelines do. `classes` may be left out: the data then names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[Side, Side]
    mean: tuple[FiniteFloat, ...] = (0.0, 0.0, 0.0)
    std: tuple[Scale, ...] = (1.0, 1.0, 1.0)
    classes: tuple[ClassName, ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    exif_transpose: bool = False
    resample: Literal["bilinear"] = "bilinear"

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
        return self

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    @classmethod
    def plain(cls, height: int, width: int, channels: int, classes: tuple[str, ...] = ()) -> Self:
        """Mean 0 and std 1: what holds when the user gives no preprocess file."""
        return cls(size=(height, width), mean=(0.0,) * channels, std=(1.0,) * channels, classes=classes)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a preprocess file; BadInput names the file and the first thing that is wrong in it."""
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
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise BadInput(
                f"the preprocess file {path} is not valid: {first_problem(error)}; it should look like"
                ' {"size":[H,W],"mean":[0,0,0],"std":[1,1,1],"classes":["a","b"]}',
                code="bad_preprocess",
            ) from error


def decode_to_array(image: Image.Image, pre: Preprocess) -> NDArray[np.uint8]:
    """Bring an opened image to the classifier's size and channels: uint8 (H, W, C), 0..255.

    Decodes the image's pixels, so everything that Pillow raises on damaged files may come out of it;
    the caller bounds `image.size` beforehand. BadInput for pixel formats that have no 8-bit meaning.
    """
    if pre.exif_transpose:
        image = ImageOps.exif_transpose(image)
    image = _eight_bit(image, "L" if pre.channels == 1 else "RGB")
    height, width = pre.size
    if image.size != (width, height):
        # Pillow widens the filter when it shrinks, i.e. it antialiases.
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array.reshape(height, width, pre.channels)


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
