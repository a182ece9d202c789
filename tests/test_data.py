"""Clean images from strangers: every way of being unusable is one BadInput that names the file."""

import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from detrigger.models.errors import BadInput
from detrigger.models.preprocess import Preprocess
from detrigger.offline.inputs import data
from detrigger.offline.inputs.data import (
    Dataset,
    check_against_logits,
    load_dataset,
    load_unlabelled,
    with_answers,
)
from detrigger.offline.inputs.folders import as_folder
from detrigger.offline.progress import Advance, SilentProgress
from tests.toys import CLASSES, png, preprocess, toy_dataset, toy_image, write_folders


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "images")


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


class Notes(SilentProgress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def notes(path: Path, pre: Preprocess | None = None) -> list[str]:
    """What loading says."""
    progress = Notes()
    load_dataset(path, pre, progress)
    return progress.said


def refused(
    path: Path, pre: Preprocess | None = None, *, says: str, code: str = "bad_data", strict: bool = False
) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        load_dataset(path, pre, strict=strict)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


# --- what loads -------------------------------------------------------------------------------------------


def test_folders_load_in_class_order(folders: Path) -> None:
    x, y = toy_dataset()
    loaded = load_dataset(folders, preprocess())
    assert loaded.classes == CLASSES[3]
    assert np.array_equal(loaded.x, x)
    assert np.array_equal(loaded.y, y)
    assert loaded.x.dtype == np.uint8
    assert loaded.y.dtype == np.int64
    assert len(loaded) == 12


def test_without_a_preprocess_file_the_classes_are_sorted_folders(folders: Path) -> None:
    loaded = load_dataset(folders, None)
    assert loaded.classes == ("blue", "green", "red")
    assert loaded.x.shape == (12, 8, 8, 3)
    assert loaded.x[loaded.y == 2, ..., 0].mean() > loaded.x[loaded.y == 2, ..., 1].mean() + 100


def test_folders_are_resized_and_converted(folders: Path) -> None:
    Image.new("RGBA", (50, 30), (9, 9, 9, 255)).save(folders / "red" / "big.webp")
    Image.new("L", (3, 3)).save(folders / "red" / "SMALL.BMP")
    Image.new("CMYK", (9, 9)).save(folders / "red" / "print.jpeg")
    Image.new("RGB", (9, 9)).save(folders / "red" / "plain.ppm")
    assert load_dataset(folders, Preprocess.plain(5, 7, 3)).x.shape == (16, 5, 7, 3)
    assert load_dataset(folders, Preprocess.plain(5, 7, 1)).x.shape == (16, 5, 7, 1)


def test_what_is_no_image_file_is_not_looked_at(folders: Path) -> None:
    (folders / "README.txt").write_text("signs")
    (folders / ".git").mkdir()
    (folders / "red" / "labels.csv").write_text("a;b")
    (folders / "red" / ".DS_Store").write_bytes(b"\0")
    (folders / "red" / "._000.png").write_bytes(b"\0")
    (folders / "red" / "more.png").mkdir()
    assert len(load_dataset(folders, None)) == 12


ENDINGS = [
    "png",
    "jpg",
    "jpeg",
    "jpe",
    "jfif",
    "webp",
    "bmp",
    "ppm",
    "pgm",
    "pnm",
    "tif",
    "tiff",
    "TIF",
    "avif",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_that_pillow_reads(folders: Path, ending: str) -> None:
    kinds = {"tif": "TIFF", "tiff": "TIFF", "avif": "AVIF", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
    kind = kinds.get(ending.lower(), "PPM" if ending[0] == "p" else "JPEG")
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(toy_image(0)).save(folders / "red" / f"more.{ending}", kind)
    assert len(load_dataset(folders, preprocess())) == 13


def test_what_is_not_read_is_said_in_one_note(folders: Path) -> None:
    for label, folder in enumerate(("red", "green", "blue")):
        for n in range(2 + label):
            (folders / folder / f"{n}.HEIC5").write_bytes(b"x")
            (folders / folder / f"{n}.gif").write_bytes(b"GIF89a")
        (folders / folder / "LICENSE").write_text("x")
    (folders / "red" / "more" / "deeper").mkdir(parents=True)
    for n in range(5):
        (folders / "red" / "more" / "deeper" / f"{n}.png").write_bytes(png(toy_image(0)))
    (said,) = notes(folders)
    assert said.startswith("21 files were not read: .HEIC5 9, .gif 9, without an ending 3; ")
    assert "1 subfolder was not read: red/more (5 images); move their images up" in said


def test_what_computers_leave_behind_is_no_class_and_no_note(folders: Path) -> None:
    for name in ("__MACOSX", "@eaDir", ".Trashes", "$RECYCLE.BIN"):
        (folders / name).mkdir()
        (folders / name / "0.png").write_bytes(b"x")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._000.png"):
        (folders / "red" / name).write_bytes(b"x")
    (folders / "red" / "@eaDir").mkdir()
    (folders / "red" / "@eaDir" / "000.png").write_bytes(b"x")
    assert notes(folders) == []
    assert len(load_dataset(folders, None)) == 12


def test_folders_match_however_accents_are_composed(folders: Path) -> None:
    (folders / "red").rename(folders / "cafe\u0301")
    pre = preprocess().model_copy(update={"classes": ("caf\u00e9", "green", "blue")})
    assert load_dataset(folders, pre).classes == ("caf\u00e9", "green", "blue")
    assert load_dataset(folders, None).classes == ("blue", "caf\u00e9", "green")
    (folders / "caf\u00e9").mkdir()
    refused(folders, pre, says="two class folders .* are both called")


def test_class_names_that_cannot_be_folders(folders: Path) -> None:
    assert as_folder('a/b\\c:d*e?f"g<h>i|j') == "a_b_c_d_e_f_g_h_i_j"
    (folders / "red").rename(folders / "beware of ice_snow")
    pre = preprocess().model_copy(update={"classes": ("beware of ice/snow", "green", "blue")})
    assert load_dataset(folders, pre).classes == ("beware of ice/snow", "green", "blue")
    twice = preprocess().model_copy(update={"classes": ("beware of ice/snow", "beware of ice_snow", "green")})
    refused(folders, twice, says="would be the folder of 'beware of ice/snow' and 'beware of ice_snow'")
    (folders / "beware of ice_snow").rename(folders / "ice")
    refused(folders, pre, says="missing: 'beware of ice_snow'; unknown: 'ice'")


def test_images_without_classes(folders: Path) -> None:
    (folders / "0.png").write_bytes(png(toy_image(0)))
    (folders / "broken.png").write_bytes(b"x")
    progress = Notes()
    x = load_unlabelled(folders, preprocess(), progress)
    assert len(x) == 13
    assert "1 damaged image was left out" in progress.said[0]
    answers = np.array([0, 1] * 6 + [2])
    loaded = with_answers(x, answers, ("a", "b", "c"))
    assert (loaded.classes, np.bincount(loaded.y).tolist()) == (("a", "b", "c"), [6, 6])
    with pytest.raises(BadInput, match="the same answer"):
        with_answers(x, answers * 0, ("a", "b", "c"))
    (nothing := folders / "nothing").mkdir()
    with pytest.raises(BadInput, match="holds no images"):
        load_unlabelled(nothing, None, progress)


def test_npz_and_folders_are_the_same_data(folders: Path, tmp_path: Path) -> None:
    x, y = toy_dataset()
    one = load_dataset(folders, preprocess())
    two = load_dataset(save(tmp_path / "d.npz", x=x, y=y.astype(">u2"), names=np.array([{}])), preprocess())
    assert np.array_equal(one.x, two.x)
    assert np.array_equal(one.y, two.y)
    assert one.digest == two.digest
    x[0, 0, 0, 0] ^= 1
    assert load_dataset(save(tmp_path / "e.npz", x=x, y=y), preprocess()).digest != one.digest


def test_npz_without_a_preprocess_file_numbers_the_classes(tmp_path: Path) -> None:
    x, y = toy_dataset(channels=1)
    np.savez_compressed(tmp_path / "d.npz", x=x, y=y)
    loaded = load_dataset(tmp_path / "d.npz", None)
    assert (loaded.classes, loaded.x.shape) == (("0", "1"), (8, 8, 8, 1))


def test_loading_tells_how_far_it_is(folders: Path) -> None:
    class Listener:
        seen: list[tuple[str, int]]
        done = 0

        @contextmanager
        def stage(self, name: str, total: int) -> Iterator[Advance]:
            self.seen = [(name, total)]

            def advance(n: int = 1, **metrics: float) -> None:
                self.done += n

            yield advance

        def note(self, text: str) -> None: ...

    listener = Listener()
    load_dataset(folders, None, listener)
    assert (listener.seen, listener.done) == ([("data", 12)], 12)


def test_classes_are_checked_against_the_logits(folders: Path) -> None:
    loaded = load_dataset(folders, None)
    check_against_logits(loaded, 3)
    with pytest.raises(BadInput, match="3 classes and the model answers with 10 logits"):
        check_against_logits(loaded, 10)


# --- folders that are refused -----------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "absent", says="there is no .*absent")
    refused(tmp_path, says="no class folders")
    refused(tmp_path / ("x" * 5000), says="cannot read")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", says="there is no .*pipe")


def test_a_folder_without_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("none")
    refused(tmp_path, says="class folder .*a holds no images")


def test_one_empty_class(folders: Path) -> None:
    (folders / "yellow").mkdir()
    refused(folders, says="yellow holds no images")


def test_one_class_only(tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "0.png").write_bytes(png(toy_image(0)))
    refused(tmp_path, says="one class only")


def test_too_few_images_of_a_class(folders: Path) -> None:
    for path in sorted((folders / "green").iterdir())[1:]:
        path.unlink()
    refused(folders, says=r"class 'green' .* has 1 images \(1 of 3")


def test_classes_that_do_not_match(folders: Path) -> None:
    pre = preprocess().model_copy(update={"classes": ("red", "green", "violet")})
    refused(folders, pre, says="missing: 'violet'; unknown: 'blue'; rename")
    many = preprocess().model_copy(update={"classes": tuple(f"c{n}" for n in range(9))})
    refused(folders, many, says="missing: 'c0', 'c1', 'c2' and 6 more;")


def test_class_names_that_no_terminal_should_see(folders: Path) -> None:
    (folders / "evil\x1b[2J").mkdir()
    refused(folders, says="printable")


def test_class_names_that_are_no_utf8(folders: Path) -> None:
    os.mkdir(os.fsencode(folders) + b"/\xff")  # noqa: PTH102 (Path cannot name it)
    refused(folders, says="printable")


BAD_IMAGES: dict[str, bytes] = {
    "0 bytes": b"",
    "text": b"not an image at all",
    "truncated": png(toy_image(0))[:-30],
    "only a header": png(toy_image(0))[:24],
    "wrong checksum": png(toy_image(0)).replace(b"IDAT", b"IDAX"),
    "gif, which is not read": b"GIF89a" + bytes(20),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


def _png_claiming(width: int, height: int) -> bytes:
    """A small file whose pixels would fill the memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("sized", [True, False])
def test_unreadable_images_are_named_and_left_out_or_refused(folders: Path, kind: str, sized: bool) -> None:
    (folders / "green" / "broken.png").write_bytes(BAD_IMAGES[kind])
    (folders / "blue" / "000_first.png").write_bytes(b"broken as well, and the first")
    pre = preprocess() if sized else None
    assert len(load_dataset(folders, pre)) == 12
    (said,) = notes(folders, pre)
    assert said.startswith("2 damaged images were left out (")
    assert "green/broken.png" in said
    assert "blue/000_first.png" in said
    assert "--strict" in said
    refused(folders, pre, says=r"(blue/000_first|green/broken)\.png", code="bad_image", strict=True)


def test_more_than_a_few_damaged_images_are_refused(folders: Path) -> None:
    for n in range(4):
        (folders / "green" / f"broken{n}.png").write_bytes(b"x")
    refused(folders, preprocess(), says=r"4 of 16 images are damaged; the first: .*green/broken0\.png")
    for path in folders.glob("*/*.png"):
        path.write_bytes(b"x")
    refused(folders, says="cannot be used", code="bad_image")


def test_transparent_images_are_no_damage(folders: Path) -> None:
    Image.new("RGBA", (8, 8)).save(folders / "red" / "glass.png")
    refused(folders, preprocess(), says=r'glass\.png .*"alpha"', code="bad_image")
    assert len(load_dataset(folders, preprocess().model_copy(update={"alpha": "white"}))) == 13


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_decompression_bombs_are_not_decoded(folders: Path, side: int) -> None:
    (folders / "green" / "bomb.png").write_bytes(_png_claiming(side, side))
    refused(folders, preprocess(), says=r"bomb\.png .*50000000", code="bad_image")


def test_first_image_larger_than_any_classifier(folders: Path) -> None:
    Image.new("1", (5000, 1)).save(folders / "blue" / "000.png")
    refused(folders, says=r"000\.png .*4096 pixels", code="bad_image")


def test_different_sizes_need_a_preprocess_file(folders: Path) -> None:
    (folders / "red" / "wide.png").write_bytes(png(np.zeros((8, 9, 3), np.uint8)))
    refused(folders, says=r"red/wide\.png .*9x8 .*--preprocess", code="bad_image")
    assert len(load_dataset(folders, preprocess())) == 13


def test_a_huge_image_file_is_not_read(folders: Path) -> None:
    with (folders / "red" / "huge.png").open("wb") as file:
        file.truncate(200_000_000)
    refused(folders, preprocess(), says=r"huge\.png .*200000000 bytes", code="bad_image")


@pytest.mark.parametrize("target", ["nowhere.png", "odd.png", "/dev/zero"])
def test_links_that_lead_to_no_file_are_named(folders: Path, target: str) -> None:
    (folders / "red" / "odd.png").symlink_to(target)
    refused(folders, preprocess(), says=r"odd\.png", code="bad_image", strict=True)
    assert "odd.png" in notes(folders, preprocess())[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read(folders: Path) -> None:
    (folders / "red").chmod(0)
    try:
        refused(folders, says="permissions")
    finally:
        (folders / "red").chmod(0o700)


def test_more_than_the_memory_allowed(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_DATASET_BYTES", 12 * 8 * 8 * 3 - 1)
    refused(folders, says="GiB are allowed")


def test_of_more_images_than_a_job_takes_some_of_each_class_are_drawn(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = load_dataset(folders, preprocess())
    monkeypatch.setattr(data, "MOST_JOB_BYTES", len(every.classes) * 3 * 8 * 8 * 3)
    drawn = load_dataset(folders, preprocess())
    assert np.bincount(drawn.y).tolist() == [min(3, count) for count in np.bincount(every.y).tolist()]
    assert len(drawn) < len(every)
    assert drawn.digest == load_dataset(folders, preprocess()).digest
    known = {image.tobytes() for image in every.x}
    assert all(image.tobytes() in known for image in drawn.x)
    (said,) = notes(folders, preprocess())
    assert said.startswith(f"{len(drawn)} of {len(every)} clean images are used")


# --- .npz that are refused --------------------------------------------------------------------------------


class Evil:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/detrigger-was-here",)  # noqa: S108


def test_pickles_are_never_read(tmp_path: Path) -> None:
    x, y = toy_dataset()
    objects = np.array([Evil()] * len(y), dtype=object)
    refused(save(tmp_path / "a.npz", x=x, y=objects), says="y of .* holds Python objects")
    refused(save(tmp_path / "b.npz", x=objects, y=y), says="x of .* holds Python objects")
    refused(save(tmp_path / "c.npz", x=x, y=np.zeros(len(y), [("a", object)])), says="Python objects")
    assert not Path("/tmp/detrigger-was-here").exists()  # noqa: S108


X, Y = toy_dataset()
BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no x": ({"y": Y}, "no array 'x'"),
    "no y": ({"x": X}, "no array 'y'"),
    "other names": ({"images": X, "labels": Y}, "no array 'x'"),
    "float pixels": ({"x": X / 255, "y": Y}, "must be uint8"),
    "int64 pixels": ({"x": X.astype(np.int64), "y": Y}, "must be uint8"),
    "NCHW": ({"x": X.transpose(0, 3, 1, 2), "y": Y}, "C = 1 or 3"),
    "no channel axis": ({"x": X[..., 0], "y": Y}, "must be uint8 of shape"),
    "no images": ({"x": X[:0], "y": Y[:0]}, "must be uint8 of shape"),
    "a single number": ({"x": np.uint8(3), "y": Y}, "must be uint8 of shape"),
    "records": ({"x": np.zeros(3, [("r", "u1")]), "y": Y}, "must be uint8 of shape"),
    "float labels": ({"x": X, "y": Y.astype(float)}, "must be integers"),
    "one-hot labels": ({"x": X, "y": np.eye(3, dtype=int)[Y]}, "must be integers of shape"),
    "text labels": ({"x": X, "y": Y.astype(str)}, "must be integers"),
    "boolean labels": ({"x": X, "y": Y.astype(bool)}, "must be integers"),
    "too few labels": ({"x": X, "y": Y[1:]}, "must be integers of shape"),
    "negative labels": ({"x": X, "y": Y - 1}, r"labels -1\.\.1"),
    "labels from 1": ({"x": X, "y": Y + 1}, r"labels 1\.\.3: they must lie in 0\.\.2"),
    "enormous labels": ({"x": X, "y": Y.astype(np.uint64) * 2**62}, "must lie in"),
    "one class only": ({"x": X, "y": Y * 0}, "one class only"),
    "a class without images": ({"x": X[Y != 1], "y": Y[Y != 1]}, "class 'green' .* has 0 images"),
    "a class with one image": ({"x": X[3:], "y": Y[3:]}, "class 'red' .* has 1 images"),
    "another size": ({"x": X[:, :7], "y": Y}, "are 7x8x3 and the classifier takes 8x8x3"),
    "grey for a colour model": ({"x": X[..., :1], "y": Y}, "are 8x8x1 and the classifier takes 8x8x3"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_no_labelled_images(tmp_path: Path, kind: str) -> None:
    arrays, says = BAD_ARRAYS[kind]
    refused(save(tmp_path / "d.npz", **arrays), preprocess(), says=says)


def test_labels_without_names_must_be_dense(tmp_path: Path) -> None:
    refused(save(tmp_path / "d.npz", x=X, y=Y * 5), says="has 0 images")
    refused(save(tmp_path / "e.npz", x=X, y=Y * 10**9), says="must lie in")


def _npy(shape: tuple[int, ...], descr: str = "|u1", body: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + body


HOSTILE_MEMBERS: dict[str, tuple[bytes, str]] = {
    "terabytes by header": (_npy((10**6, 1024, 1024, 3)), "GiB are allowed"),
    "negative shape": (_npy((-4, 8, 8, 3)), "not as long|not a readable"),
    "two negatives": (_npy((-4, -8, 8, 3), body=bytes(4 * 8 * 8 * 3)), "not a readable"),
    "shorter than its header": (_npy((12, 8, 8, 3), body=bytes(10)), "not as long as its header says"),
    "longer than its header": (_npy((12, 8, 8, 3), body=bytes(12 * 192 + 1)), "not as long"),
    "items of no size": (_npy((10**12,), descr="|V0"), "must be uint8|not a readable"),
    "no header": (b"\x93NUMPY", "not a readable"),
    "unknown version": (b"\x93NUMPY\x09\x00" + bytes(100), "not a readable"),
    "code for a header": (
        b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('id')   \n",
        "not a readable",
    ),
    "nested header": (b"\x93NUMPY\x02\x00\x00\x20\x00\x00" + b"[" * 8192, "not a readable"),
    "empty": (b"", "not a readable"),
}


@pytest.mark.parametrize("kind", HOSTILE_MEMBERS)
def test_hostile_members(tmp_path: Path, kind: str) -> None:
    body, says = HOSTILE_MEMBERS[kind]
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", body)
        archive.writestr("y.npy", _npy((12,), "<i8", Y.tobytes()))
    refused(tmp_path / "d.npz", says=says)


def test_a_zip_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MAX_DATASET_BYTES", 10**6)
    np.savez_compressed(
        tmp_path / "d.npz", x=np.zeros((10_000, 32, 32, 3), np.uint8), y=np.zeros(10_000, int)
    )
    assert (tmp_path / "d.npz").stat().st_size < 10**5
    refused(tmp_path / "d.npz", says="GiB are allowed")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    refused(tmp_path / "d.npz", says=r"d\.npz (is not a readable \.npz|has no array)")


# --- properties -------------------------------------------------------------------------------------------


def _npz_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X, y=Y)
    return buffer.getvalue()


SOURCES = {
    "npz": _npz_bytes(),
    **{kind: png(toy_image(0), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM")},
}


def mutate(original: bytes, seed: int) -> bytes:
    """A few bytes changed, removed or doubled, near the start more often than elsewhere."""
    rng = random.Random(seed)
    content = bytearray(original)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not content:
            break
        at = min(int(rng.expovariate(1 / rng.choice([8, 40, len(content)]))), len(content) - 1)
        match rng.randrange(5):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                content[at] ^= 1 << rng.randrange(8)
            case 2:
                del content[at : at + rng.choice([1, 4, 100])]
            case 3:
                content[at:at] = content[at : at + rng.choice([1, 8])]
            case _:
                content[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"])
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SOURCES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_give_a_dataset_or_a_refusal(tmp_path: Path, kind: str, seed: int) -> None:
    content = mutate(SOURCES[kind], seed)
    if kind == "npz":
        path = tmp_path / "d.npz"
        path.write_bytes(content)
    else:
        path = tmp_path / "images"
        for name in ("a", "b"):
            (path / name).mkdir(parents=True, exist_ok=True)
            for n in range(2):
                (path / name / f"{n}.png").write_bytes(SOURCES["PNG"])
        (path / "a" / "0.png").write_bytes(content)
    try:
        loaded = load_dataset(path, Preprocess.plain(8, 8, 3))
    except BadInput as error:
        refusal = str(error)
        assert path.name in refusal
        assert "\n" not in refusal
        return
    assert isinstance(loaded, Dataset)
    assert loaded.x.dtype == np.uint8
    assert loaded.x.shape[1:] == (8, 8, 3)
    assert loaded.y.shape == (len(loaded.x),)
    assert np.bincount(loaded.y, minlength=len(loaded.classes)).min() >= 2
    assert json.dumps(loaded.classes)
