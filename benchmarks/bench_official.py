"""The official BTI-DBF(P) code on a suspect of a zoo: how long its schedule takes, and what it achieves.

    python -m benchmarks.bench_official --official DIR --zoo ZOO --models a,b [--images 500] [--seeds 0]

DIR is a copy of the paper's own repository (github.com/xuxiong0214/BTIDBF), which stays outside of this one. Its
scripts `pretrain.py` and `btidbfp.py` run as they are. Stand-ins take the place of its modules that load checkpoints
and data (they need torchvision and pickles): the same suspect and clean images, its own crops, flips and batches. One
thing differs: the suspect's normalisation statistics stay fixed, where the official code lets them move while it
trains the mask.

The schedule counts epochs, walks through the clean images: with 2,500 of them it takes five hours on two cores, with
500 (drawn as `bench_budget.py` does) a fifth of that. Results go to `results/official.json`, a row per model, number of
images and seed; rows that are there are not measured again.
"""

from __future__ import annotations

import math
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import rows
from benchmarks.bench_budget import few_images
from detrigger.models.suspect import Suspect
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import Options, load
from detrigger.offline.inputs.split import as_float
from detrigger.offline.progress import SilentProgress

RESULTS = Path(__file__).parent / "results" / "official.json"
BATCH, NOISE = 128, 0.03
EPOCHS = {"preround": 50, "mround": 20, "uround": 30, "pur_round": 30}
ROUNDS = 5
STAGES = {
    "Pretrain Generator": "preround",
    "Decoupling Benign Features": "mround",
    "Training Backdoor Generator": "uround",
    "Training Purification Generator": "pur_round",
}
"""What the official code writes in front of the progress bar of an epoch, and the setting for how many there are."""


def main() -> int:
    """Measure what is not measured yet."""
    parser = rows.parser(__doc__)
    parser.add_argument("--official", type=Path, default=os.environ.get("DETRIGGER_OFFICIAL") or None)
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    if arguments.official is None or arguments.zoo is None or not arguments.models:
        print("bench_official: no copy of the official code, no zoo or no models given; nothing measured")
        return 0
    results = rows.Rows(RESULTS, ("model", "images", "seed"))
    for seed in rows.seeds_of(arguments):
        for model in rows.models_of(arguments):
            key = {"model": model, "images": arguments.images, "seed": seed}
            if results.has(key):
                continue
            with tempfile.TemporaryDirectory() as zoo:
                few_images(arguments.zoo, model, arguments.images, seed, Path(zoo))
                row = run(arguments.official, Path(zoo), model, seed)
            results.add(key | row | {"device": rows.device(), "tools": {"torch": torch.__version__}})
    return 0


class Classifier(nn.Module):
    """The suspect as the official code wants one: normalised images, and two halves."""

    def __init__(self, suspect: Suspect, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.suspect, self.mean, self.std = suspect, mean, std

    def from_input_to_features(self, x: Tensor) -> Tensor:
        """(N,C,H,W) normalised to features at the cut."""
        return self.suspect.features(x * self.std + self.mean)

    def from_features_to_output(self, features: Tensor) -> Tensor:
        """Features to logits (N,K)."""
        return self.suspect.classify(features)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) normalised to logits (N,K)."""
        return self.from_features_to_output(self.from_input_to_features(x))


class Batches:
    """Normalised images (N,C,H,W) in random order, cropped out of a margin of 4, half of them flipped."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return math.ceil(len(self.y) / BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        side = self.x.shape[2:]
        for part in torch.randperm(len(self.y)).split(BATCH):
            wide = functional.pad(self.x[part], (4, 4, 4, 4))
            tops, lefts = torch.randint(9, (2, len(part))).tolist()
            crops = [
                image[:, top : top + side[0], left : left + side[1]]
                for image, top, left in zip(wide, tops, lefts, strict=True)
            ]
            flip = torch.rand(len(part), 1, 1, 1) < 0.5
            x = torch.stack(crops)
            yield torch.where(flip, x.flip(3), x), self.y[part]


class Clock:
    """In place of tqdm's progress bar: the seconds of every epoch, by what stands in front of it."""

    epochs: ClassVar[list[tuple[str, float]]] = []

    def __init__(self, batches: Iterable[Any], desc: str) -> None:
        self.batches, self.name = batches, desc

    def __iter__(self) -> Iterator[Any]:
        began = time.monotonic()
        yield from self.batches
        Clock.epochs.append((STAGES[self.name], time.monotonic() - began))

    def set_postfix(self, _: object) -> None:
        """Show nothing."""


def run(official: Path, zoo: Path, model: str, seed: int) -> dict[str, Any]:
    """Pretrain and purify; seconds, and what the purifier does then."""
    folder, data = zoo / "models" / model, zoo / "data" / model.split("-")[0]
    options = Options(
        suspect=folder / "model.onnx",
        data=data / "clean_defense.npz",
        preprocess=folder / "preprocess.json",
        seed=seed,
    )
    given = load(options, Compute("cpu", seed), SilentProgress())
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (given.preprocess.mean, given.preprocess.std))
    classifier = Classifier(given.suspect, mean, std)
    images, labels = torch.from_numpy(as_float(given.data.x)), torch.from_numpy(given.data.y)
    batches = Batches((images - mean) / std, labels)
    Clock.epochs = []
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "pretrain").mkdir()
        settings = EPOCHS | {
            "device": "cpu", "size": images.shape[2], "batch_size": BATCH, "gen_lr": 1e-3, "norm_bound": 0.3,
            "feat_bound": 3, "pur_norm_bound": 0.05, "earlystop": False, "nround": ROUNDS,
        }  # fmt: skip
        stand_in = stand_ins(settings, classifier, batches, temporary)
        run_official(official / "pretrain.py", stand_in)
        left = run_official(official / "btidbfp.py", stand_in)
    return seconds() | measure(left["pur_gen"].eval(), classifier, folder, data)


def stand_ins(
    settings: dict[str, Any], classifier: Classifier, batches: Batches, folder: str
) -> dict[str, ModuleType]:
    """Modules in place of the official ones that load, parse and test."""
    box = SimpleNamespace(
        get_save_path=lambda: folder,
        get_state_dict=lambda: (None, None, classifier),
        get_dataloader=lambda **_: batches,
        tlabel=None,
    )

    @torch.no_grad()
    def get_target_label(midmodel: nn.Module, **_: object) -> int:
        votes = torch.cat([classifier(midmodel(x)).argmax(1) for x, _ in batches])
        return int(votes.mode().values)

    parsed = SimpleNamespace(parse_args=lambda: SimpleNamespace(**settings))
    contents: dict[str, dict[str, Any]] = {
        "cfg": {"get_arguments": lambda: parsed},
        "loader": {"Box": lambda _: box},
        "evaluate": {"test": lambda **_: None, "get_target_label": get_target_label},
        "tqdm": {"tqdm": Clock},
        "pandas": {},  # imported, never used
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)  # torch looks for one
        module.__dict__.update(contents[name])
    return modules


def run_official(script: Path, stand_in: dict[str, ModuleType]) -> dict[str, Any]:
    """Run a script of the official code with these modules in place of its own; what it leaves behind."""
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "models"}
    before = {name: sys.modules.get(name) for name in stand_in}
    for name in hidden:
        del sys.modules[name]  # the official code has a package of that name, too
    sys.modules.update(stand_in)
    sys.path.insert(0, str(script.parent))
    try:
        return runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.path.remove(str(script.parent))
        for name in [name for name in sys.modules if name.split(".")[0] == "models"]:
            del sys.modules[name]
        sys.modules.update(hidden)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def seconds() -> dict[str, Any]:
    """What all epochs took, and one of every stage on average."""
    of = {name: [took for stage, took in Clock.epochs if stage == name] for name in EPOCHS}
    return {
        "seconds": round(sum(map(sum, of.values()))),
        "seconds_an_epoch": {name: round(sum(took) / len(took), 2) for name, took in of.items()},
    }


@torch.no_grad()
def measure(purifier: nn.Module, classifier: Classifier, folder: Path, data: Path) -> dict[str, float]:
    """BA, ASR and PA of the suspect behind the purifier, which gets noise on its input as in the official test."""

    def labels(x: Any, behind: bool) -> Any:
        found = []
        for part in torch.from_numpy(as_float(x)).split(250):
            given = (part - classifier.mean) / classifier.std
            seen = purifier(given + NOISE * torch.randn_like(given)) if behind else given
            found.append(classifier(seen).argmax(1))
        return torch.cat(found).numpy()

    with np.load(data / "clean_test.npz", allow_pickle=False) as clean:
        x, y = clean["x"], clean["y"]
    with np.load(folder / "poison_test.npz", allow_pickle=False) as bad:
        other = bad["y"] != bad["t"]
        bad_x, bad_y, bad_t = bad["x"][other], bad["y"][other], np.broadcast_to(bad["t"], other.shape)[other]
    answers = labels(bad_x, True)
    return {
        "BA_bare": round(float((labels(x, False) == y).mean()), 4),
        "BA": round(float((labels(x, True) == y).mean()), 4),
        "ASR_bare": round(float((labels(bad_x, False) == bad_t).mean()), 4),
        "ASR": round(float((answers == bad_t).mean()), 4),
        "PA": round(float((answers == bad_y).mean()), 4),
    }


if __name__ == "__main__":
    raise SystemExit(main())
