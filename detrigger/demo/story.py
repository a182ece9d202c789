"""What the demo measures and shows: the bare model beside the service, on the same images."""

import base64
import io
import json
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detrigger.demo.signs import I64, U8
from detrigger.models.errors import DetriggerError
from detrigger.models.preprocess import Preprocess

Floats = NDArray[np.float32]

_BATCH = 32
_TILE = 112
_GAP = 12
_TEXT = 36
_HEADING = 150
_FOOT = 24
_INK = (32, 36, 42)
_GOOD = (20, 120, 60)
_BAD = (185, 28, 28)


@dataclass(frozen=True)
class Answers:
    """What was answered for n images."""

    index: I64  # (n,) labels
    score: Floats  # (n,) of that label
    flagged: NDArray[np.bool_]  # (n,)
    purified: U8 | None = None  # (n, H, W, 3), where asked for


class Bare:
    """The suspect as its user would have run it: preprocessing and ONNX Runtime, nothing else."""

    def __init__(self, model: Path, preprocess: Path) -> None:
        self._pre = Preprocess.load(preprocess)
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def answers(self, x: U8) -> Answers:
        """Labels and scores for images (n, H, W, 3) uint8 of the model's size."""
        mean, std = np.asarray(self._pre.mean, np.float32), np.asarray(self._pre.std, np.float32)
        inputs = ((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        logits = np.asarray(self._session.run(None, {self._input: np.ascontiguousarray(inputs)})[0])
        odds = np.exp(logits - logits.max(1, keepdims=True))
        scores = odds / odds.sum(1, keepdims=True)
        return Answers(logits.argmax(1), scores.max(1), np.zeros(len(x), bool))


class Client:
    """`POST /predict` with the JSON form, in batches, over HTTP like any client."""

    def __init__(self, url: str) -> None:
        self.url = url

    def answers(self, x: U8, *, purified: bool = False) -> Answers:
        """The service's answers for images (n, H, W, 3) uint8, sent as PNG. DetriggerError on a refusal."""
        rows: list[dict[str, Any]] = []
        for start in range(0, len(x), _BATCH):
            images = [base64.b64encode(png(image)).decode() for image in x[start : start + _BATCH]]
            request = urllib.request.Request(  # noqa: S310 - the demo's own service on loopback
                f"{self.url}/predict?purified={'true' if purified else 'false'}",
                json.dumps({"images": images}).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                    rows += json.load(response)["predictions"]
            except urllib.error.HTTPError as error:
                raise DetriggerError(f"/predict answered {error.code}: {error.read(300)!r}") from error
        pictures = None
        if purified:
            found = [Image.open(io.BytesIO(base64.b64decode(row["purified_png"]))) for row in rows]
            pictures = np.stack([np.asarray(image.convert("RGB")) for image in found])
        return Answers(
            np.array([row["index"] for row in rows], np.int64),
            np.array([row["score"] for row in rows], np.float32),
            np.array([row["flagged"] for row in rows], bool),
            pictures,
        )

    def metric(self, name: str) -> float:
        """The sum of all series of a metric in `/metrics`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:  # noqa: S310
            lines = response.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
        )


def png(image: U8) -> bytes:
    """(H, W, 3) uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Figures:
    """Shares, 0..1, in the words of the README: BA, ASR, PA, TPR, FPR."""

    n_clean: int
    n_triggered: int
    ba_bare: float
    ba: float
    asr_bare: float
    asr: float
    pa_bare: float
    pa: float
    tpr: float
    fpr: float

    @property
    def held(self) -> bool:
        """Whether the demo's story is true: the bare model is fooled, Detrigger is not, at little cost."""
        fooled = self.ba_bare >= 0.95 and self.asr_bare >= 0.95
        return fooled and self.asr <= 0.05 and self.ba_bare - self.ba <= 0.03 and self.tpr >= 0.8

    def to_json(self) -> dict[str, float]:
        """As plain numbers, rounded to a hundredth of a percent."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure(bare: Bare, client: Client, x: U8, y: I64, triggered: U8, target: int) -> Figures:
    """Send clean images (n) and triggered ones whose true label is not the target.

    x, triggered: (n, H, W, 3) uint8, y: (n,), the same signs in the same order.
    """
    other = y != target
    clean_bare, clean = bare.answers(x), client.answers(x)
    fooled, saved = bare.answers(triggered[other]), client.answers(triggered[other])

    def share(hits: NDArray[np.bool_]) -> float:
        return float(hits.mean())

    return Figures(
        n_clean=len(x),
        n_triggered=int(other.sum()),
        ba_bare=share(clean_bare.index == y),
        ba=share(clean.index == y),
        asr_bare=share(fooled.index == target),
        asr=share(saved.index == target),
        pa_bare=share(fooled.index == y[other]),
        pa=share(saved.index == y[other]),
        tpr=share(saved.flagged),
        fpr=share(clean.flagged),
    )


@dataclass(frozen=True)
class Tile:
    """One picture of the contact sheet with two lines under it."""

    image: U8
    caption: str
    detail: str
    good: bool  # green or red


def contact_sheet(rows: dict[str, list[Tile]], footer: str) -> Image.Image:
    """Rows of equally many tiles, each with its heading on the left (lines split at newlines)."""
    columns = len(next(iter(rows.values())))
    sheet = Image.new(
        "RGB",
        (_HEADING + columns * (_TILE + _GAP), len(rows) * (_TILE + _TEXT + _GAP) + _GAP + _FOOT),
        (250, 250, 248),
    )
    draw = ImageDraw.Draw(sheet)
    small, bold = ImageFont.load_default(12), ImageFont.load_default(14)
    for number, (heading, tiles) in enumerate(rows.items()):
        top = _GAP + number * (_TILE + _TEXT + _GAP)
        draw.multiline_text((_GAP, top + _TILE // 3), heading, _INK, bold, spacing=6)
        for column, tile in enumerate(tiles):
            left = _HEADING + column * (_TILE + _GAP)
            picture = Image.fromarray(tile.image).resize((_TILE, _TILE), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top))
            ink = _GOOD if tile.good else _BAD
            draw.text((left, top + _TILE + 3), tile.caption, ink, bold)
            draw.text((left, top + _TILE + 20), tile.detail, ink, small)
    draw.text((_GAP, sheet.height - _FOOT), footer, _INK, small)
    return sheet
