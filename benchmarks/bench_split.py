"""What the suspected labels' own threshold brings, and what purifying their images alone brings and gives up.

    python -m benchmarks.bench_split --zoo ZOO --stores DIR [--models a,b] [--profile standard] [--seeds 0]

ZOO is laid out as for `bench_zoo.py`, and DIR holds the stores that it keeps, made with `--purify every`. One graph
answers for three versions: `alike` has one threshold for all labels, `split` one for the suspected ones, and
`suspected` purifies no others. Each is calibrated on the images that the job calibrated on, which its seed tells.
Results go to `results/split.json`, a row per model, profile and seed: the words of `detrigger evaluate` in shares for
each version, and TPR among the triggered images that fool the bare suspect (`TPR_fooled`). `speed` is images a CPU
second, on one thread, of `every` and of `suspected` beside the bare graph's, at a batch of 32: clean test images as
they come (`balanced`), those with a suspected label alone, and those without. Rows that are there are not measured
again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks import rows
from detrigger.models.manifest import Flag, Manifest
from detrigger.models.protected import GROUNDS, GraphSettings, build_protected, raise_opset
from detrigger.models.store import VersionStore
from detrigger.models.suspect import describe, free_batch
from detrigger.offline.compute import Compute
from detrigger.offline.graph.to_onnx import run
from detrigger.offline.inputs.data import load_dataset
from detrigger.offline.inputs.split import as_float, split_data
from detrigger.offline.progress import SilentProgress
from detrigger.offline.steps.calibrate import (
    ALPHA_SUSPECTED,
    CONTAMINATED,
    conformal_threshold,
    second_mode,
    suspected_threshold,
    trustworthy,
)
from detrigger.offline.types import Labels, Pixels

RESULTS = Path(__file__).parent / "results" / "split.json"
BATCH, TURNS = 32, 15


@dataclass(frozen=True)
class Seen:
    """What a graph says of images with labels ``y`` (N,): logits (N, K) twice, and scores (N,) of labels all alike."""

    y: Labels
    raw: Pixels
    logits: Pixels
    alike: Pixels
    asked: NDArray[np.bool_]

    def answers(self, version: str) -> Labels:
        """The label of each image in this version."""
        kept = self.asked if version == "suspected" else np.ones(len(self.y), bool)
        found: Labels = np.where(kept, self.logits.argmax(1), self.raw.argmax(1))
        return found

    def scores(self, version: str) -> Pixels:
        """The flag scores in this version."""
        if version == "alike":
            return self.alike
        s = self.alike / (1 - self.alike)
        s = np.where(self.asked, s, 0.0 if version == "suspected" else s / GROUNDS)
        found: Pixels = (s / (1 + s)).astype(np.float32)
        return found


def main() -> int:
    """Measure what is not measured yet."""
    arguments = rows.parser(__doc__).parse_args()
    if arguments.zoo is None or arguments.stores is None:
        print("bench_split: no zoo or no stores given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "profile", "seed"))
    for seed in rows.seeds_of(arguments):
        for name in rows.attacked(arguments):
            key = {"model": name, "profile": arguments.profile, "seed": seed}
            store = arguments.stores / rows.job_name(arguments, name, seed)
            if not results.has(key) and store.exists() and VersionStore(store).version_ids():
                results.add(key | measure(arguments.zoo, name, VersionStore(store)))
    return 0


def measure(zoo: Path, name: str, store: VersionStore) -> dict[str, Any]:
    """The three versions of a store's newest one."""
    manifest = store.manifest(store.version_ids()[-1])
    suspected, data = manifest.flag.suspected or manifest.target_labels, zoo / "data" / name.split("-")[0]
    row: dict[str, Any] = {"verdict": manifest.verdict, "labels": list(suspected)}
    if not suspected or manifest.verdict != "backdoored":
        return row
    see = Look(
        onnx.load_from_string(store.read_file(manifest.id, "protected.onnx")), manifest.flag, suspected
    )
    given = load_dataset(data / "clean_defense.npz", manifest.preprocess, SilentProgress())
    x, y = split_data(given, manifest.seed, Compute("cpu", manifest.seed)).calibration
    clean, bad = np.load(data / "clean_test.npz"), np.load(zoo / "models" / name / "poison_test.npz")
    calibration = see(x, y)
    good = see(as_float(clean["x"]), clean["y"])
    triggered = see(as_float(bad["x"]), bad["y"])
    for version in ("alike", "split", "suspected"):
        threshold, alpha = calibrated(calibration, version, suspected)
        row[version] = {"threshold": threshold, "alpha": alpha} | shares(
            version, threshold, good, triggered, bad["t"]
        )
    raw = good.raw.argmax(1)
    row["BA_bare"], row["ASR_bare"] = (
        round(float(hit.mean()), 4) for hit in (raw == good.y, triggered.raw.argmax(1) == bad["t"])
    )
    mixes = {"balanced": clean["x"], "suspected": clean["x"][good.asked], "others": clean["x"][~good.asked]}
    speeds = Speeds.of(store, manifest, suspected)
    return row | {
        "share_suspected": round(float(good.asked.mean()), 4),
        "speed": {mix: speeds.beside_bare(as_float(images)) for mix, images in mixes.items()},
        "device": rows.device(),
    }


@dataclass(frozen=True)
class Look:
    """A protected graph, with the flag rule and the labels that are suspected."""

    graph: onnx.ModelProto
    flag: Flag
    suspected: tuple[int, ...]

    def __call__(self, x: Pixels, y: Labels) -> Seen:
        """What the graph says of images (N, C, H, W), its own split of the scores undone."""
        logits, raw, score = run(self.graph, x, ["logits", "logits_raw", "flag_score"])
        label = raw.argmax(1)
        s = score / (1 - score)
        if self.flag.suspected:
            s = s * np.where(np.isin(label, self.flag.suspected), 1, self.flag.grounds)
        return Seen(y, raw, logits, (s / (1 + s)).astype(np.float32), np.isin(label, self.suspected))


def calibrated(images: Seen, version: str, suspected: tuple[int, ...]) -> tuple[float, float]:
    """Threshold and alpha of a version, as `publish` chooses them."""
    scores = images.scores(version)
    alarming = second_mode(scores, CONTAMINATED if version == "alike" else ALPHA_SUSPECTED)[1]
    kept = trustworthy(scores, images.y, suspected) if alarming else np.ones(len(scores), bool)
    if version == "alike":
        threshold, alpha = conformal_threshold(scores[kept])
    else:
        threshold, alpha = suspected_threshold(scores[kept], images.asked[kept])
    return round(threshold, 4), round(alpha, 5)


def shares(version: str, threshold: float, good: Seen, triggered: Seen, t: Labels) -> dict[str, float]:
    """BA, FPR, ASR, PA and TPR of a version, on clean images and on triggered ones with their targets ``t``."""
    flagged = triggered.scores(version) > threshold
    answers = triggered.answers(version)
    found = {
        "BA": good.answers(version) == good.y,
        "FPR": good.scores(version) > threshold,
        "ASR": (answers == t)[triggered.y != t],
        "PA": answers == triggered.y,
        "TPR": flagged,
        "TPR_fooled": flagged[triggered.raw.argmax(1) == t],
    }
    return {name: round(float(hits.mean()), 4) for name, hits in found.items()}


@dataclass(frozen=True)
class Speeds:
    """Sessions and names of inputs: the bare graph, and those that purify `every` or only `suspected` images.

    The suspect stands for its copy: the same nodes take the same time.
    """

    bare: tuple[Any, str]
    protected: dict[str, tuple[Any, str]]

    @classmethod
    def of(cls, store: VersionStore, manifest: Manifest, suspected: tuple[int, ...]) -> Speeds:
        """From a store's version."""
        purifier, classifier = (
            onnx.load_from_string(store.read_file(manifest.id, f"{part}.onnx"))
            for part in ("purifier", "classifier")
        )
        bare = free_batch(classifier)
        suspect = raise_opset(bare, purifier.opset_import[0].version)
        settings = GraphSettings(
            preprocess=manifest.preprocess,
            softmax=False,
            penalty=[0.0] * len(manifest.classes),
            threshold=0.0,
            suspected=suspected,
        )
        graphs = {
            purify: build_protected(purifier, suspect, suspect, replace(settings, only=purify == "suspected"))
            for purify in ("every", "suspected")
        }
        return cls(
            (session(bare), describe(bare).input_name),
            {purify: (session(graph), "image") for purify, graph in graphs.items()},
        )

    def beside_bare(self, x: Pixels) -> dict[str, float]:
        """Images a CPU second beside the bare graph's, on batches drawn from ``x``, in turns."""
        rng = np.random.default_rng(0)
        spent = dict.fromkeys(("bare", *self.protected), 0.0)
        for turn in range(TURNS + 1):
            batch = x[rng.integers(0, len(x), BATCH)]
            for name, (runner, entry) in {"bare": self.bare, **self.protected}.items():
                took = [cpu_seconds(runner, entry, batch) for _ in range(2)]
                spent[name] += min(took) * (turn > 0)  # the first turn sets up
        return {purify: round(spent["bare"] / spent[purify], 3) for purify in self.protected}


def cpu_seconds(runner: Any, entry: str, batch: Pixels) -> float:
    """Of one run."""
    began = time.process_time()
    runner.run(None, {entry: batch})
    return time.process_time() - began


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """On one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    raise SystemExit(main())
