"""Images of strangers into pixels, under limits.

Only Pillow's decoders for four common formats are ever reached. Sizes are read from headers and bounded before a
pixel is decoded, and so is the number of pieces (chunks, segments, scans) that a file consists of. What would not look
to the model as it looks to a person (animation, hidden pixels under transparency) is refused. How an allowed image
becomes the classifier's input is `models.preprocess.decode_to_array`, the same function that the offline job calls.
Nothing is fetched, inflated or stored.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess, decode_to_array

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp")
MAX_JPEG_SCANS = 100
_SCANNED_PIXELS = (
    12  # scans times pixels of a JPEG, in images of the largest size: each scan goes over all pixels
)
_PIECES = 4096  # reads of a file: each is a turn of Python code
_PIECE_BYTES = 512
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


class Stopped(Exception):  # noqa: N818 (named for what it says)
    """Nobody waits for the image any more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one image may be."""

    pixels: int  # width times height
    side: int = 8192  # tall images take many times as long as square ones of as many pixels


@dataclass(frozen=True, slots=True)
class Opened:
    """An image whose header was read and accepted; no pixel of it is decoded."""

    image: Image.Image

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.image.width * self.image.height

    def decode(self, pre: Preprocess) -> NDArray[np.uint8]:
        """The pixels as the classifier wants them: uint8 (H, W, C).

        Raises:
            ImageRefused: damaged, or of a refused kind.
            Stopped: nobody waits for it any more.
        """
        try:
            with _refusing():
                return decode_to_array(self.image, pre)
        finally:
            self.image.close()  # its pixels go at once, whoever still holds it


class _File(BytesIO):
    """The bytes of an image, for Pillow to read: not without end, and not after nobody waits any more."""

    def __init__(self, data: bytes, stopped: Callable[[], bool]) -> None:
        super().__init__(data)
        self._stopped = stopped
        self._left = _PIECES + len(data) // _PIECE_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        """The same as of any file."""
        self._left -= 1
        if self._left < 0:
            raise ImageRefused("image_refused", "the file consists of far too many small pieces")
        if self._stopped():
            raise Stopped
        return super().read(size)


def read_header(data: bytes, limits: Limits, stopped: Callable[[], bool] = lambda: False) -> Opened:
    """One encoded image, as far as its header tells.

    Args:
        data: the file.
        limits: what it may be.
        stopped: whether nobody waits for it any more; asked at every piece that is read, then and while decoding.

    Raises:
        ImageRefused: the bytes are not an image, one of another format, damaged, too large or of a refused kind.
        Stopped: nobody waits for it any more.
    """
    if not data:
        raise ImageRefused("image_undecodable", "the image has no bytes")
    with _refusing():
        try:
            image = Image.open(_File(data, stopped), formats=FORMATS)
        except UnidentifiedImageError:
            if _other_format(data):
                accepted = ", ".join(FORMATS)
                raise ImageRefused("image_format_refused", f"accepted formats are {accepted}") from None
            raise ImageRefused("image_undecodable", "the bytes are no image of an accepted format") from None
        except Image.DecompressionBombError as error:
            raise ImageRefused("image_too_large", f"at most {limits.pixels} pixels are accepted") from error
        _check(image, data, limits)
        return Opened(image)


def decode(data: bytes, pre: Preprocess, limits: Limits) -> NDArray[np.uint8]:
    """The pixels of one encoded image as the classifier wants them: uint8 (H, W, C).

    Raises:
        ImageRefused: see `read_header` and `Opened.decode`.
    """
    return read_header(data, limits).decode(pre)


@contextmanager
def _refusing() -> Iterator[None]:
    """What Pillow says of damaged files, as refusals."""
    try:
        yield
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
        decode(file.getvalue(), pre, Limits(1))


def _check(image: Image.Image, data: bytes, limits: Limits) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageRefused("image_undecodable", f"the image is {width}x{height} pixels")
    if width * height > limits.pixels:
        raise ImageRefused(
            "image_too_large", f"{width}x{height} pixels; at most {limits.pixels} pixels are accepted"
        )
    if max(width, height) > limits.side:
        raise ImageRefused(
            "image_too_large", f"{width}x{height} pixels; at most {limits.side} on a side are accepted"
        )
    # MPO is what phones write: a JPEG followed by previews. The picture is the first frame.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageRefused("image_animated", "the image has several frames; send one of them")
    if image.format in ("JPEG", "MPO"):
        # Thousands of progressive scans make a small file take minutes.
        scans = data.count(b"\xff\xda")
        most = min(MAX_JPEG_SCANS, _SCANNED_PIXELS * limits.pixels // (width * height))
        if scans > most:
            raise ImageRefused(
                "image_refused", f"the JPEG has {scans} scans; {most} are accepted at its size"
            )


def looks_accepted(data: bytes) -> bool:
    """Whether the bytes begin like a file of one of FORMATS."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or (
        data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    )


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
