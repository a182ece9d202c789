"""Detrigger from Python: what the commands do, in three functions.

    from detrigger import load, protect, scan

    found = scan("model.onnx", "clean", preprocess="preprocess.json")      # ScanResult
    made = protect("model.onnx", "clean", "store", profile="fast")          # ProtectResult
    answers = load("store").predict(["photo.png"])                          # list[Prediction]

These run the same jobs, with the same defaults, as `detrigger scan` and `detrigger protect`; `load` answers as
`detrigger serve` does. Torch is imported by `scan` and `protect` when they are called, and never by `load`.

Every function raises `detrigger.models.errors.BadInput` for what is wrong with its arguments or files, in one sentence
that says how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from detrigger.models.manifest import Manifest
    from detrigger.offline.jobs.results import ProtectResult, ScanResult
    from detrigger.offline.progress import Progress
    from detrigger.service.engine import Model

BATCH = 32
"""Images that `Protected.predict` runs at once."""


class Settings(TypedDict, total=False):
    """What both jobs take by name, as the flags of the same names; see `detrigger scan --help`.

    ``budget`` is in minutes. ``verbose`` shows progress as the commands do.
    """

    preprocess: str | Path | None
    device: Literal["auto", "cpu", "cuda"]
    profile: Literal["fast", "standard", "thorough"]
    seed: int
    feature_node: str | None
    trust_setup: bool
    unlabelled: bool
    strict: bool
    budget: float | None
    verbose: bool


class Scanning(Settings, total=False):
    """What `scan` takes besides: ``quick`` looks for seconds instead of minutes, and draws nothing."""

    quick: bool


class Publishing(Settings, total=False):
    """What `protect` takes besides: the served name, whether to promote, which images to purify, reviewed images, and
    a private key to sign.
    """

    name: str | None
    promote: bool
    purify: Literal["every", "suspected"]
    reviewed: str | Path | None
    sign: str | Path | None


def scan(
    model: str | Path, data: str | Path, *, out: str | Path | None = None, **settings: Unpack[Scanning]
) -> ScanResult:
    """Look for a backdoor in the ONNX classifier ``model`` with the clean images ``data``; change nothing.

    ``out`` (.html or .png) gets the pictures. The result's ``verdict`` is "clean", "backdoored" or "inconclusive".
    """
    from detrigger.commands import check_given, job_packages

    check_given(Path(model), Path(data))
    with job_packages():
        from detrigger.offline.jobs.scan import ScanOptions
        from detrigger.offline.jobs.scan import scan as run

    progress = _progress(settings.pop("verbose", False))
    options = ScanOptions(suspect=Path(model), data=Path(data), out=_path(out), **_paths(settings))
    return run(options, progress)


def protect(
    model: str | Path, data: str | Path, store: str | Path, **settings: Unpack[Publishing]
) -> ProtectResult:
    """Run the whole job on ``model`` and publish a version in ``store``, which is made if absent.

    A version whose gate does not pass is published and not promoted: look at the result's ``gate_passed``.
    """
    from detrigger.commands import check_given, job_packages, model_name
    from detrigger.models import signing

    check_given(Path(model), Path(data))
    with job_packages():
        from detrigger.offline.jobs.protect import ProtectOptions
        from detrigger.offline.jobs.protect import protect as run

    name = model_name(settings.pop("name", None), Path(store), Path(model))
    progress, sign = _progress(settings.pop("verbose", False)), _path(settings.pop("sign", None))
    options = ProtectOptions(
        suspect=Path(model), data=Path(data), store=Path(store), name=name, **_paths(settings)
    )
    with signing.signed_with(sign):
        return run(options, progress)


def load(
    store: str | Path, version: str | None = None, *, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Protected:
    """The promoted version of ``store``, or the one named, its digests checked, ready to answer in this process."""
    from detrigger.models.errors import StoreError
    from detrigger.models.store import VersionStore
    from detrigger.service.engine import Model, usable_cores

    opened = VersionStore(Path(store))
    version = version or opened.current()
    if version is None:
        raise StoreError(f"the store {store} promotes no version: name one, or run `detrigger promote`")
    manifest = opened.manifest(version)
    graph = opened.read_file(version, "protected.onnx")
    return Protected(Model(manifest, graph, device=device, threads=usable_cores(), batch_size=BATCH))


@dataclass(frozen=True)
class Prediction:
    """The answer to one image; ``index``, ``label`` and ``score`` (0..1) are of the purified one.

    ``raw_label`` is what the bare classifier says of the image as given. ``flag_score`` (0..1) is larger where more of
    that was taken away. ``purified`` is uint8 (H, W, C).
    """

    index: int
    label: str
    score: float
    raw_label: str
    flagged: bool
    flag_score: float
    purified: NDArray[np.uint8]


class Protected:
    """A published version in this process. Several threads may share it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def manifest(self) -> Manifest:
        """What the version is: classes, thresholds, verdict, gate, digests."""
        return self._model.manifest

    def predict(self, images: Iterable[str | Path | Image | NDArray[np.uint8]]) -> list[Prediction]:
        """The answers to image files, Pillow images, or arrays uint8 (H, W, C) of any size, in their order."""
        import numpy as np

        x = [self._pixels(image) for image in images]
        found: list[Prediction] = []
        for start in range(0, len(x), BATCH):
            found += self._answers(np.stack(x[start : start + BATCH]))
        return found

    def _pixels(self, image: str | Path | Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        import numpy as np
        from PIL import Image

        from detrigger.models.preprocess import decode_to_array
        from detrigger.offline.inputs.images import read_one

        if isinstance(image, (str, Path)):
            return read_one(Path(image), self.manifest.preprocess)
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image[..., 0] if image.shape[-1:] == (1,) else image)
        return decode_to_array(image, self.manifest.preprocess)

    def _answers(self, x: NDArray[np.uint8]) -> Sequence[Prediction]:
        import numpy as np

        out, classes = self._model.run([x], purified=True), self._model.classes
        assert out.purified is not None  # noqa: S101 - asked for
        pictures = np.round(out.purified.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return [
            Prediction(
                index=(k := int(out.index[i])),
                label=classes[k],
                score=float(out.scores[i, k]),
                raw_label=classes[int(out.raw_index[i])],
                flagged=bool(out.flagged[i]),
                flag_score=float(out.flag_score[i]),
                purified=pictures[i],
            )
            for i in range(len(x))
        ]


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with paths where files are named."""
    named = ("preprocess", "reviewed")
    return {name: _path(value) if name in named else value for name, value in settings.items()}


def _progress(verbose: bool) -> Progress:
    from detrigger.offline.progress import SilentProgress, TerminalProgress

    return TerminalProgress() if verbose else SilentProgress()
