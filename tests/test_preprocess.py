"""Preprocess files and the way of an image into the classifier's shape."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess, decode_to_array

RGB = Preprocess.plain(4, 6, 3)
GREY = Preprocess.plain(4, 6, 1)


def load(tmp_path: Path, text: str | bytes) -> Preprocess:
    path = tmp_path / "preprocess.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Preprocess.load(path)


# --- the file ---------------------------------------------------------------------------------------------


def test_the_contracts_keys_are_enough(tmp_path: Path) -> None:
    pre = load(tmp_path, '{"size":[32,48],"mean":[0.5,0.5,0.5],"std":[0.2,0.2,0.2],"classes":["b","a"]}')
    assert (pre.size, pre.channels, pre.classes, pre.layout) == ((32, 48), 3, ("b", "a"), "NCHW")
    assert load(tmp_path, pre.model_dump_json()) == pre


def test_mean_std_and_classes_have_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, '{"size":[32,48]}') == Preprocess.plain(32, 48, 3)
    assert load(tmp_path, '{"size":[32,48],"mean":[0],"std":[1]}') == Preprocess.plain(32, 48, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"size":32}',
        '{"size":[32]}',
        '{"size":[0,32]}',
        '{"size":[32,99999]}',
        '{"size":[32,32],"scale":255}',
        '{"size":[32,32],"mean":[0,0],"std":[1,1]}',
        '{"size":[32,32],"mean":[0]}',
        '{"size":[32,32],"mean":[NaN,0,0]}',
        '{"size":[32,32],"mean":[1e999,0,0]}',
        '{"size":[32,32],"std":[0,1,1]}',
        '{"size":[32,32],"std":[-1,1,1]}',
        '{"size":[32,32],"classes":["a","a"]}',
        '{"size":[32,32],"classes":["a"]}',
        '{"size":[32,32],"classes":["a",""]}',
        '{"size":[32,32],"layout":"CHWN"}',
        b"\xff\xfe\x00",
        "[" * 100_000,
        " " * 2_000_000,
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(BadInput, match=r"preprocess\.json") as caught:
        load(tmp_path, text)
    assert caught.value.code == "bad_preprocess"
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput, match=path.name):
            Preprocess.load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(-10, 5000),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["size", "mean", "std", "classes", "layout", "x"]), json_values))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_json_gives_a_preprocess_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        pre = Preprocess.load(path)
    except BadInput:
        return
    assert pre.channels in (1, 3)
    assert len(pre.mean) == len(pre.std)


# --- images -----------------------------------------------------------------------------------------------


def test_an_image_that_fits_passes_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode_to_array(Image.fromarray(pixels), RGB), pixels)
    assert np.array_equal(decode_to_array(Image.fromarray(pixels[..., 0]), GREY), pixels[..., :1])


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pre", [RGB, GREY])
def test_every_mode_becomes_eight_bits(mode: str, pre: Preprocess) -> None:
    array = decode_to_array(Image.new(mode, (12, 8)), pre)
    assert array.shape == (4, 6, pre.channels)
    assert array.dtype == np.uint8


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(BadInput, match="floating-point"):
        decode_to_array(Image.new("F", (6, 4)), RGB)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 255, 256, 32768, 65535, 1000]] * 4, np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    assert decode_to_array(Image.open(buffer), GREY)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 3]


def test_transparency_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (6, 4), (10, 200, 30, 0))
    assert decode_to_array(image, RGB)[0, 0].tolist() == [10, 200, 30]
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([10, 200, 30])
    palette.info["transparency"] = b"\x00"
    assert decode_to_array(palette, RGB)[0, 0].tolist() == [10, 200, 30]


def test_shrinking_antialiases() -> None:
    # A checkerboard of single pixels is grey from afar; sampling without a filter would pick one colour.
    board = np.indices((64, 96)).sum(axis=0) % 2 * 255
    array = decode_to_array(Image.fromarray(board.astype(np.uint8)), GREY)
    assert abs(array.astype(int) - 128).max() < 16


def test_turning_by_exif_is_a_choice() -> None:
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    turned = decode_to_array(Image.open(buffer), RGB.model_copy(update={"exif_transpose": True}))
    assert (turned[:, -1] == 255).all()
    assert turned[:, 0].max() == 0
    plain = decode_to_array(Image.open(buffer), RGB)
    assert plain[0].min() > 100
    assert plain[2:].max() < 100
