"""Pixels as the classifier gets them: as bytes, by digest, and as PNGs. Nothing of a sender's file is in them."""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detrigger.service.batcher import Pixels

Picture = NDArray[np.uint8]
_MAX_PIXELS = 2**24


def as_bytes(pixels: Pixels) -> Picture:
    """Images uint8 (n, H, W, C), from that or from float32 (n, C, H, W) in [0, 1]."""
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    return np.asarray(np.rint(pixels.clip(0, 1) * 255), np.uint8).transpose(0, 2, 3, 1)


def digest(picture: Picture) -> str:
    """The sha256 of the pixels (H, W, C), row by row: the same image has the same one, however it was encoded."""
    return hashlib.sha256(np.ascontiguousarray(picture).data).hexdigest()


def to_png(picture: Picture) -> bytes:
    """One image (H, W, C) as a PNG file, without any text or profile."""
    out = io.BytesIO()
    pixels = np.ascontiguousarray(picture.squeeze(2) if picture.shape[2] == 1 else picture)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def from_png(data: bytes) -> Picture:
    """The image (H, W, C) of a file that `to_png` wrote.

    Raises:
        OSError: it is another file by now.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise OSError("no picture of a classifier's size")
            pixels = np.asarray(image)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"no PNG file: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise OSError("no PNG file of 8 bits")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def difference(before: Picture, after: Picture) -> Picture:
    """What was changed, four times as strong around grey, (H, W, C)."""
    change = after.astype(np.int16) - before.astype(np.int16)
    return np.asarray((128 + 4 * change).clip(0, 255), np.uint8)
