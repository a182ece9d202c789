"""Coverage-guided fuzzing of what reads strangers' bytes: the image decoder, the V2 codec and the forms of /predict.

    python -m tests.fuzz images|oip|forms FOLDER SECONDS SEED

libFuzzer (by atheris) mutates the hostile corpus, or hand-made valid requests, and keeps what reaches new branches
of our modules and of Pillow's Python parsers; Pillow's C decoders run, but do not guide it. An input fails when
anything but a refusal made for clients comes out, when an answer breaks its promises, when it takes more than 10 s or
2 GB, or crashes the process; it is then kept in FOLDER/found. `benchmarks/bench_serving.py fuzz` runs this at length.
"""

import itertools
import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]
import numpy as np

with atheris.instrument_imports(include=["PIL", "python_multipart", "detrigger.service", "detrigger.models"]):
    # Pillow would load its parsers at first use, too late to be instrumented.
    from PIL import BmpImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

    from detrigger.models.preprocess import Preprocess
    from detrigger.service import forms, images, oip
    from detrigger.service.engine import Outputs
    from detrigger.service.problem import TABLE, Problem

from tests import hostile
from tests.toys import png, toy_image

SHAPE = (3, 8, 8)
PRE = Preprocess.plain(8, 8, 3, ("a", "b"))
MAX_IMAGES = 4
LIMITS = images.Limits(2**20)
OFFERED = ("logits", "logits_raw", "purified", "flag_score", "index", "flagged")
_EVERY = 500  # executions between two notes of what was answered

answers: Counter[str] = Counter()


def refused(code: str) -> None:
    """Refusals must be the sender's fault."""
    assert TABLE[code][0] in (400, 415, 422)
    answers[code] += 1


def fuzz_images(data: bytes) -> None:
    """Pixels of the promised shape, or a refusal with a code of the table."""
    try:
        pixels = images.decode(data, PRE, LIMITS)
    except images.ImageRefused as refusal:
        refused(refusal.code)
    else:
        assert pixels.shape == (8, 8, 3)
        assert pixels.dtype == np.uint8
        answers["ok"] += 1


def fuzz_oip(data: bytes) -> None:
    """A tensor of the promised shape and range, and an answer to it that is JSON; or a problem.

    The first two bytes say what Inference-Header-Content-Length says; 65535: it is not sent.
    """
    if len(data) < 2:
        return
    (length,) = struct.unpack("<H", data[:2])
    try:
        found = oip.parse(data[2:], None if length == 65535 else length, SHAPE, OFFERED, MAX_IMAGES)
    except Problem as problem:
        refused(problem.code)
        return
    n = len(found.pixels)
    assert found.pixels.shape == (n, *SHAPE)
    assert 1 <= n <= MAX_IMAGES
    assert found.pixels.min() >= 0.0
    assert found.pixels.max() <= 1.0
    rows, ones = np.ones((n, 2), np.float32), np.ones(n, np.int64)
    outputs = Outputs(rows, rows, rows[:, 0], found.pixels, rows, ones, ones, ones > 0)
    content, head = oip.answer("m", "v", found, outputs, ones)
    described = json.loads(content[:head])["outputs"]
    binary = sum(tensor.get("parameters", {}).get("binary_data_size", 0) for tensor in described)
    assert binary == len(content) - (len(content) if head is None else head)
    answers["ok"] += 1


def fuzz_forms(data: bytes) -> None:
    """The images of a body, not too many; or a problem. The first byte says which form the body claims to have."""
    kinds = ("multipart/form-data; boundary=b", "application/json", "image/png", "multipart/form-data")
    try:
        found = forms.split(kinds[data[0] % len(kinds)] if data else "", data[1:], MAX_IMAGES)
    except Problem as problem:
        refused(problem.code)
    else:
        assert 1 <= len(found) <= MAX_IMAGES
        assert sum(map(len, found)) <= len(data)
        answers["ok"] += 1


def mend_png(data: bytes) -> bytes:
    """The file with right check sums, as Pillow looks no further where they are wrong."""
    out, at = bytearray(data[:8]), 8
    while len(data) >= at + 12:
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : end]
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at = end + 4
    return bytes(out + data[at:])


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """What libFuzzer makes of an input; PNGs mostly with right check sums."""
    changed = bytes(atheris.Mutate(data, max_size))
    return mend_png(changed)[:max_size] if changed.startswith(b"\x89PNG") and seed % 4 else changed


def image_seeds() -> Iterator[bytes]:
    """The small ones of the hostile corpus."""
    return (data for _, data in hostile.corpus() if len(data) < 4096)


def oip_seeds() -> Iterator[bytes]:
    """Valid requests: JSON, binary, both ways of asking for outputs, raw."""
    pixels = np.random.default_rng(0).random((1, *SHAPE), np.float32)
    for n, binary_in, binary_out in itertools.product((1, 2), (False, True), (False, True)):
        tensor: dict[str, object] = {"name": "image", "datatype": "FP32", "shape": [n, *SHAPE]}
        raw = np.repeat(pixels, n, 0).tobytes()
        if binary_in:
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            tensor["data"] = np.repeat(pixels, n, 0).round(1).ravel().tolist()
        outputs = [{"name": name, "parameters": {"binary_data": binary_out}} for name in OFFERED[:3]]
        request = {"id": "7", "inputs": [tensor], "outputs": outputs}
        text = json.dumps(request).encode()
        yield struct.pack("<H", len(text) if binary_in else 65535) + text + (raw if binary_in else b"")
    yield struct.pack("<H", 0) + pixels.tobytes()


def form_seeds() -> Iterator[bytes]:
    """Valid bodies of each form."""
    image = png(toy_image(0))
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    yield b"\0" + part + image + b"\r\n--b--\r\n"
    yield b"\0" + part + image + b"\r\n" + part + b"abc\r\n--b--\r\n"
    yield b'\1{"images": ["aGVsbG8=", "aGVsbG8="]}'
    yield b"\2" + image


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "images": (fuzz_images, image_seeds),
    "oip": (fuzz_oip, oip_seeds),
    "forms": (fuzz_forms, form_seeds),
}


def main() -> None:
    """Fuzz; libFuzzer ends the process."""
    target, folder, seconds, seed = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    run, seeds = TARGETS[target]
    corpus, found = folder / "corpus", folder / "found"
    corpus.mkdir(parents=True, exist_ok=True)
    found.mkdir(exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / f"{number:05d}").write_bytes(data)
    turns = itertools.count(1)

    def once(data: bytes) -> None:
        run(data)
        if next(turns) % _EVERY == 0:
            (folder / "answers.json").write_text(json.dumps(answers))

    options = {
        "max_total_time": seconds,
        "seed": str(int(seed) + 1),  # 0 would be a random one
        "timeout": "10",
        "rss_limit_mb": "2048",
        "max_len": "8192",
        "artifact_prefix": f"{found}/",
        "print_final_stats": "1",
    }
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items()), str(corpus)]
    atheris.Setup(arguments, once, **({"custom_mutator": mutate} if target == "images" else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
