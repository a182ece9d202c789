"""Decoding of strangers' images: limits, refusals, and the same pixels as the offline job."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess, decode_to_array
from detrigger.service.images import FORMATS, MAX_JPEG_SCANS, ImageRefused, Limits, cheap, decode

PRE = Preprocess.plain(8, 8, 3, ("a", "b"))
LIMITS = Limits(1_000_000)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def noise(width: int = 8, height: int = 8, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def refusal(data: bytes, pre: Preprocess = PRE, limits: Limits = LIMITS) -> str:
    with pytest.raises(ImageRefused) as caught:
        decode(data, pre, limits)
    return caught.value.code


def png_header(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG with a right header, `extra` chunks and a single byte of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *extra,
        (b"IDAT", zlib.compress(b"\0")),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_gives_the_pixels_of_the_offline_job(image_format: str) -> None:
    data = encoded(noise(20, 12), image_format)
    found = decode(data, PRE, LIMITS)
    assert found.dtype == np.uint8
    assert found.shape == (8, 8, 3)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(found, decode_to_array(image, PRE))


def test_lossless_pixels_are_exact() -> None:
    image = noise()
    for image_format, options in (("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})):
        np.testing.assert_array_equal(decode(encoded(image, image_format, **options), PRE, LIMITS), image)


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "ICO", "PPM", "PDF", "EPS"])
def test_other_formats_are_refused_by_name(image_format: str) -> None:
    assert refusal(encoded(noise(), image_format)) == "image_format_refused"


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bytes(1000)])
def test_what_is_no_image_is_undecodable(data: bytes) -> None:
    assert refusal(data) == "image_undecodable"


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_truncation_is_undecodable(image_format: str) -> None:
    data = encoded(noise(64, 64), image_format)
    for keep in range(0, len(data) - 64, max(1, len(data) // 40)):
        assert refusal(data[:keep]) == "image_undecodable"


def test_pixels_are_bounded_by_the_header() -> None:
    assert decode(encoded(noise(100, 100)), PRE, Limits(10_000)).shape == (8, 8, 3)
    assert refusal(encoded(noise(100, 101)), limits=Limits(10_000)) == "image_too_large"
    # The claimed size counts; nothing of that size is allocated.
    assert refusal(png_header(60_000, 60_000)) == "image_too_large"
    assert refusal(png_header(2**31 - 1, 2**31 - 1)) == "image_too_large"


def test_inflating_text_is_bounded() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    assert refusal(png_header(8, 8, (b"zTXt", b"k\0\0" + bomb))) == "image_undecodable"


def test_animations_are_refused() -> None:
    frames = [noise(seed=n) for n in range(3)]
    for image_format in ("PNG", "WEBP"):
        data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], duration=10)
        assert refusal(data) == "image_animated"


def test_a_phone_picture_with_previews_is_its_first_frame() -> None:
    data = encoded(noise(), "MPO", save_all=True, append_images=[noise(seed=1)])
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data, PRE, LIMITS), decode_to_array(image, PRE))


def test_scan_bombs_are_refused() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    assert decode(data, PRE, LIMITS).shape == (8, 8, 3)
    begin = data.index(b"\xff\xda")
    scan = data[begin:-2]
    assert refusal(data[:begin] + scan * MAX_JPEG_SCANS + data[-2:]) == "image_refused"


def test_transparent_pixels_are_refused_and_opaque_alpha_is_not() -> None:
    image = noise().convert("RGBA")
    np.testing.assert_array_equal(decode(encoded(image), PRE, LIMITS), noise())
    image.putpixel((3, 3), (255, 0, 0, 254))
    assert refusal(encoded(image)) == "image_refused"
    assert refusal(encoded(image, "WEBP", lossless=True)) == "image_refused"
    palette = noise().quantize(16)
    assert decode(encoded(palette), PRE, LIMITS).shape == (8, 8, 3)
    assert refusal(encoded(palette, transparency=0)) == "image_refused"


def see_through() -> dict[str, bytes]:
    """Files with pixels that are not opaque."""
    image = noise().convert("RGBA")
    image.putpixel((3, 3), (255, 0, 0, 0))
    image.putpixel((4, 4), (255, 0, 0, 100))
    grey, red = image.convert("LA"), (255, 0, 0)
    keyed = noise()
    keyed.putpixel((3, 3), red)
    return {
        "RGBA": encoded(image),
        "WebP": encoded(image, "WEBP", lossless=True),
        "LA": encoded(grey),
        "palette": encoded(noise().quantize(16), transparency=0),
        "palette of alphas": encoded(noise().quantize(4), transparency=b"\x00\x80\xff\x10"),
        "one colour": encoded(keyed, transparency=red),
    }


@pytest.mark.parametrize("kind", see_through())
@pytest.mark.parametrize("alpha", ["refuse", "drop", "white", "black"])
@pytest.mark.parametrize("channels", [3, 1])
def test_transparency_is_the_same_for_the_job_and_the_service(kind: str, alpha: str, channels: int) -> None:
    data = see_through()[kind]
    pre = Preprocess.plain(8, 8, channels, ("a", "b")).model_copy(update={"alpha": alpha})
    if alpha == "refuse":
        with pytest.raises(ImageRefused, match='"alpha"'):
            decode(data, pre, LIMITS)
        with Image.open(io.BytesIO(data)) as image, pytest.raises(BadInput, match='"alpha"'):
            decode_to_array(image, pre)
    else:
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(decode(data, pre, LIMITS), decode_to_array(image, pre))


def test_shapes_that_a_crop_would_blow_up_are_refused() -> None:
    pre = Preprocess.model_validate({"size": 224, "resize": 256})
    assert refusal(encoded(Image.new("L", (1, 8000))), pre) == "image_refused"


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    found = decode(encoded(Image.fromarray(ramp)), PRE, LIMITS)
    np.testing.assert_array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    image_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert decode(encoded(noise().convert(mode), image_format), PRE, LIMITS).shape == (8, 8, 3)


def test_grey_models_get_one_channel() -> None:
    pre = Preprocess.plain(8, 8, 1, ("a", "b"))
    np.testing.assert_array_equal(decode(encoded(noise()), pre, LIMITS)[..., 0], noise().convert("L"))


@pytest.mark.parametrize("transpose", [False, True])
def test_orientation_is_applied_only_where_training_did(transpose: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    data = encoded(noise(), "PNG", exif=exif)
    found = decode(data, PRE.model_copy(update={"exif_transpose": transpose}), LIMITS)
    expected: NDArray[np.uint8] = np.asarray(
        noise().transpose(Image.Transpose.ROTATE_270) if transpose else noise()
    )
    np.testing.assert_array_equal(found, expected)


def test_only_small_plain_png_is_cheap() -> None:
    assert cheap(encoded(noise(32, 32)))
    assert cheap(encoded(noise(64, 64)))
    assert not cheap(encoded(noise(65, 64)))
    assert not cheap(encoded(noise(128, 128)))
    assert not cheap(encoded(noise(), "JPEG"))
    assert not cheap(png_header(8, 8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(10_000)))))
    assert not cheap(png_header(60_000, 60_000))
    assert not cheap(b"")


SEEDS = [
    *(encoded(noise(16, 16), name) for name in FORMATS),
    encoded(noise(16, 16), "JPEG", progressive=True),
    encoded(noise(16, 16).quantize(8), "PNG", transparency=1),
    encoded(noise(16, 16), "WEBP", lossless=True),
    encoded(noise(16, 16).convert("CMYK"), "JPEG"),
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes_an_image_or_a_refusal(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(0, 6))):
        position = data.draw(st.integers(0, len(seed) - 1))
        seed[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        if not seed:
            break
    cheap(bytes(seed))
    try:
        found = decode(bytes(seed), PRE, LIMITS)
    except ImageRefused:
        return
    assert found.shape == (8, 8, 3)
