"""Measure simple purifiers and detectors on the suspects of a zoo, beside Detrigger's own stores.

    python -m benchmarks.bench_baselines --zoo ZOO [--stores DIR] [--models a,b] [--profile standard] [--seeds 0,1,2]

ZOO is laid out as `bench_zoo.py` says, and DIR holds the stores that it keeps. All methods have the defender's clean
images only: the purifiers may train on all of them, and a detector's threshold is the one that flags 1% of the 500
which a job of the same seed keeps unseen (20% of every class). Results go to `results/baselines.json`, a row per
model, method and seed; rows that are there are not measured again.

Purifiers (BA, ASR, PA of the suspect on purified images; of what answers instead of it):
    shrinkpad    shrink by 4 pixels, pad with zeros back at a random place (arXiv 2004.04692)
    autoencoder  a small denoising auto-encoder trained on the clean images
    neural_cleanse  Neural Cleanse's patch inversion, and its unlearning where a label stands out (`neural_cleanse.py`)
    detrigger    the store's protected graph
Detectors (AUROC and ROC on the clean and triggered test images; TPR and FPR at the threshold):
    strip         minus the mean entropy of the answers to the image with clean images added (arXiv 1902.06531)
    scale_up      share of the images n*x, n = 3,5,7,9,11, with the label of x (arXiv 2302.03251, data-free)
    disagreement  label of the purified image is not that of the raw one: flagged as it is, without a threshold
    detrigger_flag  the store's flag score
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks import rows
from benchmarks.neural_cleanse import neural_cleanse
from detrigger.models.preprocess import Preprocess
from detrigger.models.store import VersionStore
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.data import load_dataset
from detrigger.offline.inputs.split import as_float, split_data
from detrigger.offline.jobs.evaluate import auroc
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.calibrate import conformal_threshold

F32 = NDArray[np.float32]

RESULTS = Path(__file__).parent / "results" / "baselines.json"
STRIP_IMAGES = 10
SCALES = (3, 5, 7, 9, 11)
ROC = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""False-positive rates at which a row has the true-positive rate."""
METHODS = ("shrinkpad", "strip", "scale_up", "autoencoder", "neural_cleanse")
OWN = ("detrigger", "disagreement", "detrigger_flag")
"""What is measured of every suspect, and of those that have a store."""


@dataclass(frozen=True)
class Images:
    """What the methods get and are measured on: images (N,C,H,W) in [0,1]."""

    defence: F32
    unseen: F32
    clean: tuple[F32, Any]
    bad: tuple[F32, Any, Any] | None


def in_batches(run: Callable[[F32], Any], x: F32) -> Any:
    """Outputs of 100 images at a time, joined."""
    return np.concatenate([run(x[start : start + 100]) for start in range(0, len(x), 100)])


class Suspect:
    """The classifier of a zoo's folder, for images in [0,1]."""

    def __init__(self, folder: Path) -> None:
        pre = Preprocess.load(folder / "preprocess.json")
        self.mean, self.std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (pre.mean, pre.std))
        self.session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def logits(self, x: F32) -> F32:
        """(N,C,H,W) in [0,1] to (N, classes)."""
        found: F32 = in_batches(
            lambda part: self.session.run(None, {self.input: (part - self.mean) / self.std})[0], x
        )
        return found

    def labels(self, x: F32) -> NDArray[np.int64]:
        """Labels (N,) of images in [0,1]."""
        found: NDArray[np.int64] = self.logits(x).argmax(1)
        return found


class Protected:
    """The protected graph of a store's last version."""

    def __init__(self, store: Path) -> None:
        opened = VersionStore(store)
        model = opened.read_file(opened.version_ids()[-1], "protected.onnx")
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def output(self, name: str, x: F32) -> F32:
        """One output of the graph for images in [0,1]."""
        found: F32 = in_batches(lambda part: self.session.run([name], {"image": part})[0], x)
        return found

    def labels(self, x: F32) -> NDArray[np.int64]:
        """The answers (N,)."""
        found: NDArray[np.int64] = self.output("logits", x).argmax(1)
        return found

    def disagreement(self, x: F32) -> F32:
        """1.0 where purification changes the label."""
        purified, raw = self.output("logits", x), self.output("logits_raw", x)
        changed: F32 = (purified.argmax(1) != raw.argmax(1)).astype(np.float32)
        return changed

    def flag(self, x: F32) -> F32:
        """The flag score."""
        return self.output("flag_score", x)


def shrink_and_pad(x: F32, seed: int, shrink: int = 4) -> F32:
    """Every image made smaller by some pixels and put at a random place of a black image of its size."""
    rng = np.random.default_rng(seed)
    height, width = x.shape[2:]
    smaller = functional.interpolate(
        torch.from_numpy(x), size=(height - shrink, width - shrink), mode="bilinear", antialias=True
    ).numpy()
    out = np.zeros_like(x)
    for image, small, (top, left) in zip(out, smaller, rng.integers(0, shrink + 1, (len(x), 2)), strict=True):
        image[:, top : top + height - shrink, left : left + width - shrink] = small
    return out


class AutoEncoder(nn.Module):
    """Images (N,C,H,W) in [0,1] through a bottleneck of 32 channels at a quarter of the side, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 32, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 64, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 16, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, channels, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out.sigmoid()


def train_autoencoder(clean: F32, seed: int, epochs: int = 20) -> Callable[[F32], F32]:
    """A purifier from clean images alone: squared error of clean images from ones with noise of 0.05."""
    torch.manual_seed(seed)
    rng = Generator().manual_seed(seed)
    model, images = AutoEncoder(clean.shape[1]), torch.from_numpy(clean)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    steps = epochs * (len(images) // 50)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for pick in torch.tensor_split(torch.randperm(len(images), generator=rng), len(images) // 50):
            x = images[pick]
            noisy = (x + 0.05 * torch.randn(x.shape, generator=rng)).clamp(0, 1)
            loss = functional.mse_loss(model(noisy), x)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()

    def purify(x: F32) -> F32:
        with torch.inference_mode():
            out: F32 = in_batches(lambda part: model(torch.from_numpy(part)).numpy(), x)
        return out

    return purify


def strip(suspect: Suspect, overlays: F32, x: F32) -> F32:
    """STRIP's score, higher for triggered images: a trigger answers surely whatever image is added."""
    total = np.zeros(len(x), np.float32)
    for overlay in overlays:
        logits = suspect.logits((x + overlay).clip(0, 1))
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        total += (np.exp(log_p) * log_p).sum(1)
    return total / np.float32(len(overlays))


def scale_up(suspect: Suspect, x: F32) -> F32:
    """SCALE-UP's score: share of brightened copies with the label of the image."""
    label = suspect.labels(x)
    same = [suspect.labels((scale * x).clip(0, 1)) == label for scale in SCALES]
    score: F32 = np.mean(same, axis=0, dtype=np.float32)
    return score


def share(hits: Any) -> float:
    """Mean of booleans, to four digits."""
    return round(float(hits.mean()), 4)


def measure_answers(labels: Callable[[F32], NDArray[np.int64]], images: Images) -> dict[str, Any]:
    """BA of the answers to clean images; ASR and PA of those to triggered ones."""
    x, y = images.clean
    row = {"BA": share(labels(x) == y)}
    if images.bad is not None:
        x, y, target = images.bad
        label = labels(x)
        row |= {"ASR": share(label == target), "PA": share(label == y)}
    return row


def measure_detector(score: Callable[[F32], F32], images: Images, threshold: float | None) -> dict[str, Any]:
    """AUROC, and TPR and FPR at the threshold, by default that of the unseen clean images."""
    if threshold is None:
        threshold, _ = conformal_threshold(score(images.unseen))
    clean = score(images.clean[0])
    row: dict[str, Any] = {"threshold": round(threshold, 6), "FPR": share(clean > threshold)}
    if images.bad is not None:
        bad = score(images.bad[0])
        row |= {"TPR": share(bad > threshold), "AUROC": round(auroc(clean, bad), 4)}
        ordered = np.sort(clean)[::-1]
        row["ROC"] = [share(bad > ordered[int(rate * len(clean))]) for rate in ROC]
    return row


def load_images(zoo: Path, name: str, seed: int) -> Images:
    """The images of one suspect's set, split as a job of this seed splits them."""
    folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0]
    defence = load_dataset(
        data / "clean_defense.npz", Preprocess.load(folder / "preprocess.json"), SilentProgress()
    )
    unseen = split_data(defence, seed, Compute("cpu", seed)).unseen[0]
    clean = np.load(data / "clean_test.npz")
    bad = None
    if (folder / "poison_test.npz").exists():
        found = np.load(folder / "poison_test.npz")
        bad = as_float(found["x"]), found["y"], found["t"]
    return Images(as_float(defence.x), unseen, (as_float(clean["x"]), clean["y"]), bad)


def methods(
    suspect: Suspect,
    images: Images,
    files: tuple[Path, Path],
    seed: int,
    protected: Callable[[], Protected] | None,
    autoencoder: Callable[[], Callable[[F32], F32]],
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Each method's measurement by its name; those that need a store only where there is one."""
    overlays = images.defence[np.random.default_rng(seed).permutation(len(images.defence))[:STRIP_IMAGES]]
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "shrinkpad": lambda: measure_answers(lambda x: suspect.labels(shrink_and_pad(x, seed)), images),
        "strip": lambda: measure_detector(lambda x: strip(suspect, overlays, x), images, None),
        "scale_up": lambda: measure_detector(lambda x: scale_up(suspect, x), images, None),
    }
    if protected is not None:
        found |= {
            "detrigger": lambda: measure_answers(protected().labels, images),
            "disagreement": lambda: measure_detector(protected().disagreement, images, 0.5),
            "detrigger_flag": lambda: measure_detector(protected().flag, images, None),
        }

    def purified() -> dict[str, Any]:
        purify = autoencoder()
        return measure_answers(lambda x: suspect.labels(purify(x)), images)

    def unlearned() -> dict[str, Any]:
        answer, about = neural_cleanse(*files, seed)
        return measure_answers(answer, images) | about

    return found | {"autoencoder": purified, "neural_cleanse": unlearned}


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.zoo is None:
        print("bench_baselines: no zoo given (--zoo or DETRIGGER_ZOO); nothing measured")
        return 0
    zoo = Path(arguments.zoo)
    results = rows.Rows(RESULTS, ("model", "method", "seed"))
    autoencoders: dict[tuple[str, int], Callable[[F32], F32]] = {}
    for seed in rows.seeds_of(arguments):
        for name in rows.models_of(arguments):
            missing = [
                method
                for method in (*METHODS, *(OWN if arguments.stores else ()))
                if not results.has({"model": name, "method": method, "seed": seed})
            ]
            if not missing:
                continue
            folder, data = zoo / "models" / name, zoo / "data" / name.split("-")[0] / "clean_defense.npz"
            suspect, images = Suspect(folder), load_images(zoo, name, seed)

            def autoencoder(
                key: tuple[str, int] = (name.split("-")[0], seed), clean: F32 = images.defence
            ) -> Callable[[F32], F32]:
                if key not in autoencoders:
                    autoencoders[key] = train_autoencoder(clean, key[1])
                return autoencoders[key]

            store = arguments.stores and arguments.stores / rows.job_name(arguments, name, seed)
            protected = (lambda path=store: Protected(path)) if store and store.exists() else None
            ways = methods(suspect, images, (folder, data), seed, protected, autoencoder)
            for method in (method for method in missing if method in ways):
                begin = time.monotonic()
                row = {"model": name, "method": method, "seed": seed} | ways[method]()
                row |= {"seconds": round(time.monotonic() - begin, 1)}
                results.add(row | {"device": rows.device()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
