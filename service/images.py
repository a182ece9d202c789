"""Images of strangers into pixels, under limits.

Only Pillow's decoders for four common formats are ever reached; sizes are read from headers and bounded
before a pixel is decoded; what would not look to the model as it looks to a person (animation, hidden
pixels under transparency) is refused. How an allowed image becomes the classifier's input is
`models.preprocess.decode_to_array`, the same function that the offline job calls. Nothing is fetched,
inflated or stored.
"""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess, decode_to_array

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp")
MAX_JPEG_SCANS = 100
_INLINE_BYTES = 16 * 1024
_INLINE_SIDE = 64

# What Pillow's decoders raise on damaged files; anything else is a defect of ours and becomes an opaque 500.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    NotImplementedError,
    AssertionError,  # a palette image without a palette
)


class ImageRefused(Exception):  # noqa: N818 (named for what it says)
    """An image that will not be decoded: a code of `problem.TABLE` and a sentence for its sender."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def decode(data: bytes, pre: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels of one encoded image as the classifier wants them: uint8 (H, W, C).

    Raises:
        ImageRefused: the bytes are no image, one of another format, damaged, too large or of a refused kind.
    """
    if not data:
        raise ImageRefused("image_undecodable", "the image has no bytes")
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        # Thousands of progressive scans make a small file take minutes.
        raise ImageRefused("image_refused", f"the JPEG has more than {MAX_JPEG_SCANS} scans")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check(image, max_pixels)
            if _transparent(image):
                raise ImageRefused(
                    "image_refused",
                    "the image has transparent pixels, which hide colours; flatten it and send it again",
                )
            return decode_to_array(image, pre)
    except UnidentifiedImageError:
        if _other_format(data):
            raise ImageRefused("image_format_refused", f"accepted formats are {', '.join(FORMATS)}") from None
        raise ImageRefused("image_undecodable", "the bytes are no image of an accepted format") from None
    except Image.DecompressionBombError as error:
        raise ImageRefused("image_too_large", f"at most {max_pixels} pixels are accepted") from error
    except BadInput as error:
        raise ImageRefused("image_refused", str(error)) from error
    except _DAMAGE as error:
        raise ImageRefused("image_undecodable", "the image is damaged or cut short") from error


def warm() -> None:
    """Load Pillow's decoders, which it does at first use, so that no request pays for it."""
    pre = Preprocess.plain(1, 1, 3)
    for image_format in FORMATS:
        file = BytesIO()
        Image.new("RGB", (1, 1)).save(file, image_format)
        decode(file.getvalue(), pre, 1)


def decode_all(
    images: Sequence[bytes], pre: Preprocess, max_pixels: int
) -> list[NDArray[np.uint8] | ImageRefused]:
    """`decode` for each image; a refusal stands in its place, so that all of them can be reported."""
    results: list[NDArray[np.uint8] | ImageRefused] = []
    for data in images:
        try:
            results.append(decode(data, pre, max_pixels))
        except ImageRefused as refusal:
            results.append(refusal)
    return results


def _check(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRefused(
            "image_too_large", f"{width}x{height} pixels; at most {max_pixels} pixels are accepted"
        )
    if width < 1 or height < 1:
        raise ImageRefused("image_undecodable", f"the image is {width}x{height} pixels")
    # MPO is what phones write: a JPEG followed by previews. The picture is the first frame.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageRefused("image_animated", "the image has several frames; send one of them")


def _transparent(image: Image.Image) -> bool:
    """Whether any pixel is not fully opaque. Decodes the pixels where the format may be transparent."""
    if not image.has_transparency_data:
        return False
    alpha = image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A")
    lowest = alpha.getextrema()[0]
    return isinstance(lowest, (int, float)) and lowest < 255


def _other_format(data: bytes) -> bool:
    """Whether the bytes begin like a well-known file type that is not accepted, for a more helpful status."""
    return data.startswith(
        (
            b"GIF8",
            b"II*\0",
            b"MM\0*",
            b"%PDF",
            b"%!PS",
            b"8BPS",
            b"\0\0\1\0",
            b"\0\0\0\x0cjP",
            b"<svg",
            b"<?xml",
            b"P6",
            b"P5",
        )
    ) or data[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")


def cheap(data: bytes) -> bool:
    """Whether decoding takes so little that handing it to a thread would cost more.

    Provably bounded without decoding: at most 64x64 pixels by the file's own header, at most 16 KiB of
    file, and nothing in it that inflates (compressed PNG text or profiles) or repeats (progressive JPEG).
    """
    if len(data) > _INLINE_BYTES:
        return False
    if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") and len(data) >= 33:
        width, height = struct.unpack_from(">II", data, 16)
        inflates = b"zTXt" in data or b"iTXt" in data or b"iCCP" in data or b"fdAT" in data
        return width <= _INLINE_SIDE and height <= _INLINE_SIDE and not inflates
    return False
