"""Preprocess files, ours and theirs, and the way of an image into the classifier's shape."""

import codecs
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess, decode_to_array

RGB = Preprocess.plain(4, 6, 3)
GREY = Preprocess.plain(4, 6, 1)


def load(tmp_path: Path, text: str | bytes | dict[str, Any]) -> Preprocess:
    path = tmp_path / "preprocess.json"
    text = json.dumps(text) if isinstance(text, dict) else text
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


SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"size": 32}, {"size": [32, 32]}),
    ({"size": 32, "mean": 0.5, "std": 0.2}, {"size": [32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}),
    ({"size": 32, "channels": "L"}, {"size": [32, 32], "mean": [0], "std": [1]}),
    ({"size": 32, "channels": 1, "mean": 0.5}, {"size": [32, 32], "mean": [0.5], "std": [1]}),
    ({"size": 32, "channels": "bgr"}, {"size": [32, 32], "channels": "BGR"}),
    ({"size": 32, "channels": 3}, {"size": [32, 32], "channels": "RGB"}),
    ({"size": 32, "range": 1}, {"size": [32, 32]}),
    ({"size": 32, "range": 255}, {"size": [32, 32], "std": [1 / 255] * 3}),
    (
        {"size": 32, "range": [0, 255], "mean": [51, 102, 255], "std": 51},
        {"size": [32, 32], "mean": [0.2, 0.4, 1], "std": [0.2] * 3},
    ),
    ({"resize": 256, "crop": 224}, {"size": [224, 224], "resize": 256, "crop": True}),
    ({"size": 224, "resize": 256}, {"size": [224, 224], "resize": 256, "crop": True}),
    ({"size": 224, "resize": [256], "crop": "center"}, {"size": [224, 224], "resize": 256, "crop": True}),
    ({"size": [9, 8], "crop": [9, 8]}, {"size": [9, 8], "crop": True}),
    ({"resize": [9, 8]}, {"size": [9, 8], "resize": [9, 8]}),
    ({"size": 32, "resample": "BICUBIC"}, {"size": [32, 32], "resample": "bicubic"}),
]


@pytest.mark.parametrize(("written", "meant"), SPELLINGS)
def test_there_are_several_ways_to_write_the_same(
    tmp_path: Path, written: dict[str, Any], meant: dict[str, Any]
) -> None:
    pre = load(tmp_path, written)
    assert pre == Preprocess.model_validate(meant)
    assert load(tmp_path, pre.model_dump_json()) == pre


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    text = '{"size": 8, "classes": ["caf\u00e9", "th\u00e9"]}'
    assert load(tmp_path, text.encode(encoding)).classes == ("caf\u00e9", "th\u00e9")
    assert load(tmp_path, codecs.BOM_UTF8 + text.encode()).size == (8, 8)


REFUSED: list[tuple[str | bytes, str]] = [
    ("", "Expecting value"),
    ("{", "Expecting property name"),
    ("[]", "dictionary"),
    ("null", "dictionary"),
    ("{}", "size"),
    ('{"size":"big"}', "size"),
    ('{"size":[32]}', "size"),
    ('{"size":[0,32]}', "size"),
    ('{"size":0}', "size"),
    ('{"size":true}', "size"),
    ('{"size":[32,99999]}', "size"),
    ('{"size":[32,32],"scale":255}', "scale"),
    ('{"size":[32,32],"mean":[0,0],"std":[1,1]}', "mean needs 1 value"),
    ('{"size":[32,32],"mean":[0],"std":[1,1,1]}', "std has 3 values"),
    ('{"size":[32,32],"mean":[NaN,0,0]}', "mean"),
    ('{"size":[32,32],"mean":[1e999,0,0]}', "mean"),
    ('{"size":[32,32],"mean":"0.5"}', "mean"),
    ('{"size":[32,32],"std":[0,1,1]}', "std"),
    ('{"size":[32,32],"std":[-1,1,1]}', "std"),
    ('{"size":[32,32],"classes":["a","a"]}', "different"),
    ('{"size":[32,32],"classes":["a"]}', "2 classes"),
    ('{"size":[32,32],"classes":["caf\u00e9","cafe\u0301"]}', "different"),
    ('{"size":[32,32],"classes":["a",""]}', "classes"),
    ('{"size":[32,32],"layout":"CHWN"}', "layout"),
    ('{"size":[32,32],"channels":"RBG"}', "RGB, BGR or L"),
    ('{"size":[32,32],"channels":"BGR","mean":[0],"std":[1]}', "mean has 1 values"),
    ('{"size":[32,32],"channels":1,"mean":[0,0,0]}', "mean has 3 values"),
    ('{"size":[32,32],"range":100}', "1 or 255"),
    ('{"size":[32,32],"range":"255"}', "1 or 255"),
    ('{"size":[32,32],"range":255,"mean":["a",0,0]}', "mean"),
    ('{"size":[32,32],"resize":40,"crop":false}', '"crop": true'),
    ('{"size":[32,32],"resize":[40,40]}', '"crop": true'),
    ('{"size":[32,32],"crop":40}', "differ"),
    ('{"size":[32,32],"crop":"left"}', "crop must be"),
    ('{"size":[32,32],"crop":0.875}', "crop must be"),
    ('{"size":[32,32],"resize":{"short":40}}', "resize"),
    ('{"size":[32,32],"resize":[32,32],"padding":0}', "leave resize out"),
    ('{"size":[32,32],"padding":256}', "padding"),
    ('{"size":[32,32],"padding":[1,2,3],"channels":"L"}', "coloured padding"),
    ('{"size":[32,32],"resample":"nearest"}', "resample"),
    ('{"size":[32,32],"alpha":"blend"}', "alpha"),
    (b"\xff\xfe\x00", "decode"),
    (b"\x89PNG\r\n", "decode"),
    ("[" * 100_000, "recursion"),
    (" " * 2_000_000, "larger than"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED, ids=lambda item: str(item)[:40])
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(BadInput, match=r"preprocess\.json") as caught:
        load(tmp_path, text)
    assert caught.value.code == "bad_preprocess"
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BadInput, match=path.name):
            Preprocess.load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(-10, 5000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["height", "width"]), inner),
    max_leaves=5,
)
OURS = list(Preprocess.model_json_schema()["properties"])
THEIRS = ["do_resize", "crop_size", "image_mean", "image_std", "rescale_factor", "crop_pct", "do_center_crop"]
TIMM = ["pretrained_cfg", "architecture", "input_size", "crop_mode", "interpolation", "label_names"]


@given(
    st.dictionaries(st.sampled_from([*OURS, "range", "x"]), json_values)
    | st.dictionaries(st.sampled_from(["size", "resample", *THEIRS]), json_values)
    | st.dictionaries(st.sampled_from(["mean", "std", *TIMM]), json_values)
)
@example({"crop": [3, 3], "size": None})
@example({"crop": [3, 3], "size": 3.5})
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=200)
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
    assert load(path.parent, pre.model_dump_json()) == pre


# --- files of others --------------------------------------------------------------------------------------

HALF = [0.5, 0.5, 0.5]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VIT = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_std": HALF,
    "resample": 2,
    "size": 224,
}
CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_processor_type": "CLIPImageProcessor",
    "resample": 3,
    "size": {"shortest_edge": 224},
    **IMAGENET,
}
THEIR_FILES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (VIT, {"size": 224, "mean": 0.5, "std": 0.5}),
    (VIT | {"feature_extractor_type": "ViTFeatureExtractor"}, {"size": 224, "mean": 0.5, "std": 0.5}),
    (VIT | {"size": {"height": 32, "width": 48}}, {"size": [32, 48], "mean": 0.5, "std": 0.5}),
    (VIT | {"do_rescale": True, "rescale_factor": 1 / 255}, {"size": 224, "mean": 0.5, "std": 0.5}),
    (VIT | {"do_rescale": False}, {"size": 224, "mean": 0.5 / 255, "std": 0.5 / 255}),
    (VIT | {"do_normalize": False}, {"size": 224}),
    (VIT | {"do_normalize": False, "do_rescale": False}, {"size": 224, "range": 255}),
    (
        CLIP,
        {"size": 224, "resize": 224, "crop": True, "resample": "bicubic", "mean": IMAGENET["image_mean"]}
        | {"std": IMAGENET["image_std"]},
    ),
    (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}
        | VIT
        | {"crop_pct": 0.875},
        {"size": 224, "resize": 256, "crop": True, "mean": 0.5, "std": 0.5},
    ),
    (
        VIT | {"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 384}},
        {"size": 384, "mean": 0.5, "std": 0.5},
    ),
    (
        {"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 288}, "crop_size": 256}
        | {"do_flip_channel_order": True, "do_rescale": True},
        {"size": 256, "resize": 288, "crop": True, "resample": "bicubic", "channels": "BGR"},
    ),
    (
        {"pretrained_cfg": {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95}}
        | {"architecture": "resnet18"},
        {"size": 224, "resize": 235, "crop": True, "resample": "bicubic", "mean": IMAGENET["image_mean"]}
        | {"std": IMAGENET["image_std"]},
    ),
    (
        {"pretrained_cfg": {"input_size": [3, 64, 96], "crop_mode": "squash", "mean": HALF, "std": HALF}}
        | {"label_names": ["b", "a"]},
        {"size": [64, 96], "resize": [73, 109], "crop": True, "resample": "bicubic", "mean": 0.5, "std": 0.5}
        | {"classes": ["b", "a"]},
    ),
    (
        {
            "pretrained_cfg": {
                "input_size": [3, 64, 96],
                "crop_mode": "border",
                "crop_pct": 1,
                "mean": HALF,
                "std": HALF,
            }
        },
        {"size": [64, 96], "padding": [128, 128, 128], "resample": "bicubic", "mean": 0.5, "std": 0.5},
    ),
]


@pytest.mark.parametrize(("theirs", "meant"), THEIR_FILES)
def test_files_of_hugging_face_and_timm_are_read(
    tmp_path: Path, theirs: dict[str, Any], meant: dict[str, Any]
) -> None:
    found, wanted = load(tmp_path, theirs), Preprocess.model_validate(meant)
    for name in ("mean", "std"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), rel=1e-12)
    same = {"mean": wanted.mean, "std": wanted.std, "crop_rest": "even"}
    assert (found.crop_rest == "down") == ("do_normalize" in theirs or "image_processor_type" in theirs)
    normal = found.resize if found.resize != found.size else None
    assert found.model_copy(update=same | {"resize": normal}) == wanted


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (VIT | {"resample": 0}, "resample 0"),
        (VIT | {"resample": [2]}, "not of the kind"),
        (VIT | {"do_pad": True}, "'do_pad'"),
        (VIT | {"do_thumbnail": True}, "'do_thumbnail'"),
        (
            VIT | {"image_processor_type": "PerceiverImageProcessor"},
            "'PerceiverImageProcessor' are not known",
        ),
        (VIT | {"size": {"longest_edge": 300}}, "no height and width"),
        (VIT | {"size": {"shortest_edge": 300}}, "no fixed height and width"),
        (VIT | {"do_resize": False}, "no fixed height and width"),
        (VIT | {"image_mean": None}, "neither image_mean"),
        (VIT | {"rescale_factor": 0}, "not of the kind"),
        (VIT | {"image_std": [0, 1, 1]}, "std"),
        ({"pretrained_cfg": {"input_size": [3, 224]}}, "input_size"),
        (
            {"pretrained_cfg": {"input_size": [3, 224, 224], "interpolation": "random"}},
            "interpolation 'random'",
        ),
        ({"pretrained_cfg": {"input_size": [3, 224, 192]}}, "crop_mode 'center' with 224x192"),
        ({"model_type": "vit", "architectures": ["ViT"], "id2label": {}}, "preprocessor_config.json"),
    ],
)
def test_what_they_ask_for_beyond_that_is_refused(tmp_path: Path, theirs: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, theirs)
    assert says in str(caught.value)


# --- images -----------------------------------------------------------------------------------------------


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def array(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image, np.uint8)


def test_an_image_that_fits_passes_unchanged() -> None:
    pixels = array(noise(6, 4))
    assert np.array_equal(decode_to_array(Image.fromarray(pixels), RGB), pixels)
    assert np.array_equal(decode_to_array(Image.fromarray(pixels[..., 0]), GREY), pixels[..., :1])


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pre", [RGB, GREY])
@pytest.mark.parametrize("alpha", ["drop", "white", "black"])
def test_every_mode_becomes_eight_bits(mode: str, pre: Preprocess, alpha: str) -> None:
    found = decode_to_array(Image.new(mode, (12, 8)), pre.model_copy(update={"alpha": alpha}))
    assert found.shape == (4, 6, pre.channels)
    assert found.dtype == np.uint8


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(BadInput, match="floating-point"):
        decode_to_array(Image.new("F", (6, 4)), RGB)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 255, 256, 32768, 65535, 1000]] * 4, np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    assert decode_to_array(Image.open(buffer), GREY)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 3]


def clear_pixels() -> dict[str, Image.Image]:
    """Images of one colour, (10, 200, 30), of which nothing can be seen."""
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([10, 200, 30])
    palette.info["transparency"] = b"\x00"
    keyed = Image.new("RGB", (6, 4), (10, 200, 30))
    keyed.info["transparency"] = (10, 200, 30)
    return {"RGBA": Image.new("RGBA", (6, 4), (10, 200, 30, 0)), "P": palette, "RGB": keyed}


@pytest.mark.parametrize("kind", ["RGBA", "P", "RGB"])
@pytest.mark.parametrize(
    ("alpha", "colour"), [("drop", [10, 200, 30]), ("white", [255, 255, 255]), ("black", [0, 0, 0])]
)
def test_what_becomes_of_transparent_pixels_is_a_choice(kind: str, alpha: str, colour: list[int]) -> None:
    found = decode_to_array(clear_pixels()[kind], RGB.model_copy(update={"alpha": alpha}))
    assert (found == colour).all()


@pytest.mark.parametrize("kind", ["RGBA", "P", "RGB"])
def test_without_a_choice_transparent_pixels_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match='"alpha": "drop"'):
        decode_to_array(clear_pixels()[kind], RGB)
    opaque = Image.new("RGBA", (6, 4), (10, 200, 30, 255))
    assert (decode_to_array(opaque, RGB) == [10, 200, 30]).all()


def test_half_transparent_pixels_are_mixed_with_the_ground() -> None:
    image = Image.new("RGBA", (6, 4), (100, 0, 0, 128))
    found = decode_to_array(image, RGB.model_copy(update={"alpha": "white"}))
    assert found[0, 0].tolist() == [177, 127, 127]


def test_shrinking_antialiases() -> None:
    # A checkerboard of single pixels is grey from afar; sampling without a filter would pick one colour.
    board = np.indices((64, 96)).sum(axis=0) % 2 * 255
    found = decode_to_array(Image.fromarray(board.astype(np.uint8)), GREY)
    assert abs(found.astype(int) - 128).max() < 16


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


# Width, height, and where the centre of 8x8 is cut from after the shorter side became 11: left, top, right, bottom.
CROPS = [
    ((40, 40), (11, 11), (2, 2)),
    ((60, 40), (16, 11), (4, 2)),
    ((40, 60), (11, 16), (2, 4)),
    ((47, 40), (12, 11), (2, 2)),  # 12.925 is cut off, and a rest of 3 is halved to 2
    ((48, 40), (13, 11), (2, 2)),  # a rest of 5 is halved to 2
]


@pytest.mark.parametrize(("size", "resized", "corner"), CROPS)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos"])
def test_shorter_side_then_centre(
    size: tuple[int, int], resized: tuple[int, int], corner: tuple[int, int], resample: str
) -> None:
    pre = Preprocess.model_validate({"size": 8, "resize": 11, "crop": True, "resample": resample})
    image = noise(*size)
    whole = array(image.resize(resized, Image.Resampling[resample.upper()]))
    left, top = corner
    np.testing.assert_array_equal(decode_to_array(image, pre), whole[top : top + 8, left : left + 8])


def test_an_odd_rest_is_halved_to_even_or_down() -> None:
    image = noise(11, 9)
    pre = Preprocess.model_validate({"size": 8, "crop": True})
    np.testing.assert_array_equal(decode_to_array(image, pre), array(image)[0:8, 2:10])
    down = pre.model_copy(update={"crop_rest": "down"})
    np.testing.assert_array_equal(decode_to_array(image, down), array(image)[0:8, 1:9])


def test_a_crop_larger_than_the_image_is_padded() -> None:
    image = noise(5, 4)
    for padding, colour in ((None, (0, 0, 0)), (7, (7, 7, 7)), ([1, 2, 3], (1, 2, 3))):
        pre = Preprocess.model_validate({"size": 8, "crop": True, "padding": padding})
        found = decode_to_array(image, pre)
        np.testing.assert_array_equal(found[2:6, 1:6], array(image))
        assert (found[0] == colour).all()
        assert (found[:, 0] == colour).all()
        assert (found[:, 6:] == colour).all()


def test_padding_alone_fits_the_whole_image_in() -> None:
    pre = Preprocess.model_validate({"size": 8, "padding": [1, 2, 3]})
    image = noise(32, 20)
    found = decode_to_array(image, pre)
    np.testing.assert_array_equal(found[1:6], array(image.resize((8, 5), Image.Resampling.BILINEAR)))
    assert (found[0] == (1, 2, 3)).all()
    assert (found[6:] == (1, 2, 3)).all()


def test_grey_images_are_padded_and_cropped_as_well() -> None:
    pre = Preprocess.model_validate({"size": [6, 8], "crop": True, "channels": "L", "padding": 9})
    found = decode_to_array(noise(6, 8, "L"), pre)
    assert (found[:, 0] == 9).all()
    np.testing.assert_array_equal(found[:, 1:7, 0], array(noise(6, 8, "L"))[1:7])


def test_bgr_changes_no_pixels_here() -> None:
    # The purifier works on RGB; the graph turns the channels right before the classifier.
    image = noise(6, 4)
    np.testing.assert_array_equal(
        decode_to_array(image, RGB.model_copy(update={"order": "BGR"})), array(image)
    )


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_long_thin_images_take_no_memory(size: tuple[int, int]) -> None:
    pre = Preprocess.model_validate({"size": 224, "resize": 256})
    with pytest.raises(BadInput, match="too long and thin"):
        decode_to_array(Image.new("L", size), pre)


shapes = st.fixed_dictionaries(
    {"size": st.tuples(st.integers(1, 40), st.integers(1, 40))},
    optional={
        "resize": st.none() | st.integers(1, 40) | st.tuples(st.integers(1, 40), st.integers(1, 40)),
        "crop": st.booleans(),
        "padding": st.none() | st.integers(0, 255) | st.tuples(*[st.integers(0, 255)] * 3),
        "resample": st.sampled_from(["bilinear", "bicubic", "lanczos"]),
        "alpha": st.sampled_from(["refuse", "drop", "white", "black"]),
        "exif_transpose": st.booleans(),
        "channels": st.sampled_from(["RGB", "BGR", "L"]),
    },
)


@given(shapes, st.tuples(st.integers(1, 70), st.integers(1, 70)), st.sampled_from(MODES))
@settings(deadline=None, max_examples=300)
def test_whatever_is_asked_for_has_the_classifiers_shape(
    asked: dict[str, Any], size: tuple[int, int], mode: str
) -> None:
    try:
        pre = Preprocess.model_validate(asked)
    except ValueError:
        return
    try:
        found = decode_to_array(Image.new(mode, size, 0), pre)
    except BadInput as refusal:
        assert "alpha" in str(refusal)  # noqa: PT017 - most are not refused
        return
    assert found.shape == (*asked["size"], pre.channels)
    assert found.dtype == np.uint8
