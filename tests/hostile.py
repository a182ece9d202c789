"""Hostile images, made by code: bombs, truncations, polyglots, every mode and format, fuzzed headers.

`corpus()` is the same for the same seed. None of these may crash the service, be answered 5xx, or cost much.
"""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "ICO",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "JPEG2000",
    "DDS",
    "XBM",
)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F")


def picture(width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    """A picture of noise in any of Pillow's modes."""
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "LAB":
        return Image.new("LAB", (width, height), (100, 20, 30))
    if mode == "PA":
        return image.convert("RGBA").convert("PA")
    return image.convert(mode)


def encode(image: Image.Image, image_format: str, **options: object) -> bytes | None:
    """The file's bytes, None where Pillow cannot write this mode in this format."""
    file = io.BytesIO()
    try:
        image.save(file, image_format, **options)
    except (OSError, ValueError, KeyError, SystemError):
        return None
    return file.getvalue()


def png(
    width: int,
    height: int,
    *chunks: tuple[bytes, bytes],
    depth: int = 8,
    colour: int = 2,
    data: bytes = b"\0",
) -> bytes:
    """A PNG whose parts need not agree with each other."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that ask for much."""
    for width, height in (
        (60_000, 60_000),
        (2**31 - 1, 1),
        (1, 2**31 - 1),
        (0, 0),
        (0, 9),
        (2**32 - 1, 2**32 - 1),
    ):
        yield f"png-size-{width}x{height}", png(width, height)
    yield "png-idat-inflates", png(64, 64, data=bytes(60_000_000))
    bomb = zlib.compress(bytes(60_000_000), 9)
    for kind, prefix in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        yield f"png-{kind.decode()}-bomb", png(8, 8, (kind, prefix + bomb))
        many = [(kind, prefix + zlib.compress(bytes(1_000_000), 9))] * 100
        yield f"png-{kind.decode()}-many", png(8, 8, *many)
    yield "png-chunks-many", png(8, 8, *([(b"tEXt", b"k\0v")] * 20_000))
    yield "png-length-lies", png(8, 8)[:33] + b"\xff\xff\xff\xff" + b"IDAT" + bytes(50)
    flat = encode(Image.new("L", (4000, 4000)), "PNG")
    assert flat is not None
    yield "png-16-megapixels-flat", flat
    large = encode(Image.new("L", (5000, 4000)), "PNG")
    assert large is not None
    yield "png-20-megapixels-flat", large
    for fields in (
        (60_000, 60_000, 24, 0),
        (60_000, -60_000, 24, 0),
        (-5, 5, 24, 0),
        (30_000, 30_000, 8, 1),
        (9, 9, 3, 7),
    ):
        width, height, bits, compression = fields
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
        yield f"bmp-{fields}", b"BM" + struct.pack("<IHHI", 54 + 99, 0, 0, 54) + header + bytes(99)
    size = (16_383 - 1).to_bytes(3, "little") * 2
    body = b"VP8X" + struct.pack("<I", 10) + b"\x12\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    yield "webp-vp8x-largest", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    lossless = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", (16_383) | (16_383 << 14))
    yield "webp-vp8l-largest", b"RIFF" + struct.pack("<I", len(lossless) + 4) + b"WEBP" + lossless
    jpeg = encode(picture(64, 64), "JPEG", progressive=True)
    assert jpeg is not None
    start = jpeg.index(b"\xff\xc2") + 5
    yield "jpeg-size-largest", jpeg[:start] + struct.pack(">HH", 65_500, 65_500) + jpeg[start + 4 :]
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    yield "jpeg-scans-5000", jpeg[:-2] + scan[:40] * 5000 + jpeg[-2:]
    frames = [Image.new("RGB", (8, 8), (n % 256, 0, 0)) for n in range(300)]
    for image_format in ("PNG", "WEBP", "GIF"):
        animation = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
        assert animation is not None
        yield f"{image_format}-300-frames", animation


def polyglots() -> Iterator[tuple[str, bytes]]:
    """Files that are two things at once."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "hello")
    tails = {
        "zip": archive.getvalue(),
        "html": b"<script>alert(1)</script>",
        "php": b"<?php system($_GET[0]); ?>",
        "png": png(60_000, 60_000),
        "elf": b"\x7fELF" + bytes(60),
    }
    for image_format in ("PNG", "JPEG", "WEBP", "BMP"):
        data = encode(picture(), image_format)
        assert data is not None
        for name, tail in tails.items():
            yield f"{image_format}+{name}", data + tail
            yield f"{name}+{image_format}", tail + data
    for name, data in (
        ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"),
        ("pdf", b"%PDF-1.4\n"),
        ("mvg", b"push graphic-context\nfill 'url(https://127.0.0.1/x.png)'\n"),
        ("utf16", "hello".encode("utf-16")),
    ):
        yield name, data


def corpus(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Everything: (name, bytes), at least 300 of them."""
    yield from bombs()
    yield from polyglots()
    valid: list[tuple[str, bytes]] = []
    for image_format in FORMATS:
        for mode in MODES:
            data = encode(picture(mode=mode), image_format)
            if data is not None:
                valid.append((f"{image_format}-{mode}", data))
    for width, height in ((1, 1), (1, 5000), (5000, 1), (3, 4093), (8192, 8192)):
        data = encode(Image.new("1", (width, height)), "PNG")
        assert data is not None
        valid.append((f"png-{width}x{height}", data))
    for colour in range(8):
        valid.extend(
            (f"png-colour{colour}-depth{depth}", png(4, 4, depth=depth, colour=colour, data=bytes(200)))
            for depth in (1, 2, 4, 8, 16, 32)
        )
    yield from valid
    rng = random.Random(seed)
    readable = [item for item in valid if item[0].startswith(("PNG", "JPEG-", "WEBP", "BMP"))]
    for name, data in readable:
        for part in (0.1, 0.5, 0.9):
            yield f"{name}-cut-{part}", data[: int(len(data) * part)]
        for turn in range(6):
            damaged = bytearray(data)
            for _ in range(rng.choice((1, 2, 8, 40))):
                where = rng.randrange(min(len(damaged), 200) if turn % 2 else len(damaged))
                damaged[where] = rng.randrange(256)
            yield f"{name}-fuzz-{turn}", bytes(damaged)
