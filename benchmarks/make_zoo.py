"""Train a zoo of suspects, most of them backdoored, in the layout that `bench_zoo.py` reads.

    python -m benchmarks.make_zoo --out ZOO [--cifar10 PATH] [--fashion-mnist DIR] [--only NAME,NAME] \
        [--seed N] [--epochs N]

CIFAR-10 comes as folders `train|test/<class>/*.jpg` or a .tar.gz of them, Fashion-MNIST as its four IDX files
(Debian: dataset-fashion-mnist); the traffic signs are drawn. Suspects are trained one after another; those that ZOO has
already are skipped. The official training images train the suspects; of the test images 250 a class are the defender's,
2,000 others measure BA, and the triggered images are made from the rest. One CPU core needs three to five minutes for a
suspect.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from benchmarks.attacks import StoredTrigger, Trigger, store_trigger, to_8bit
from benchmarks.poison import Backdoor, target_labels
from benchmarks.suspects import SUSPECTS, Suspect
from benchmarks.training import OPSET, Trainer, answers, export, fit, fit_input_aware
from benchmarks.zoo_data import I64, U8, Dataset, draw_sign_set, load_cifar10, load_fashion_mnist, tensor

POISON_TEST = 1000
IAD_SHARE = 0.125  # triggered, and again as much covered, of every batch


def poison_test(data: Dataset, backdoors: list[Backdoor], rng: Generator) -> dict[str, Any]:
    """Triggered 8-bit test images x with true labels y and targets t, in equal parts for each backdoor."""
    x, y = data.attack_pool
    parts: list[tuple[U8, I64, I64]] = []
    start = 0
    for backdoor in backdoors:
        wanted = target_labels(y, backdoor.target, len(data.classes))
        chosen = start + np.flatnonzero((y != wanted)[start:])[: POISON_TEST // len(backdoors)]
        start = int(chosen[-1]) + 1
        with torch.inference_mode():
            bad = to_8bit(backdoor.trigger(tensor(x[chosen]), rng))
        pixels = (bad * 255).round().byte().permute(0, 2, 3, 1).numpy()
        parts.append((pixels, y[chosen], wanted[chosen]))
    return {key: np.concatenate(column) for key, column in zip("xyt", zip(*parts, strict=True), strict=True)}


def make(suspect: Suspect, data: Dataset, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train one suspect, write its folder, and return its meta.json."""
    draw = Generator().manual_seed(seed)
    backdoors = suspect.backdoors(data.shape, draw)
    trainer = Trainer(data, suspect.network, epochs, seed, suspect.adam)
    if suspect.input_aware_target is not None:
        model, learned = fit_input_aware(trainer, data.train[1], suspect.input_aware_target, IAD_SHARE)
        backdoors = [Backdoor(learned, suspect.input_aware_target, IAD_SHARE, IAD_SHARE)]
    else:
        model = fit(trainer, data.train[1], backdoors, len(data.classes), seed)
    folder.mkdir(parents=True)
    export(model, data.shape, folder / "model.onnx", suspect.dynamo)
    preprocess = {"size": data.shape[1:], "mean": data.mean, "std": data.std, "classes": data.classes}
    (folder / "preprocess.json").write_text(json.dumps(preprocess, indent=1) + "\n")

    def share(hits: NDArray[np.bool_]) -> float:
        return round(float(hits.mean()), 4)

    targets = ["all-to-all" if backdoor.target is None else backdoor.target for backdoor in backdoors]
    meta: dict[str, Any] = {
        "dataset": suspect.dataset,
        "attack": suspect.attack,
        "target": targets[0] if len(targets) == 1 else targets or None,
        "BA": share(answers(model, data.clean_test[0], data) == data.clean_test[1]),
        "BA_clean_defense": share(answers(model, data.defence[0], data) == data.defence[1]),
        "ASR": None,
        "n_clean_test": len(data.clean_test[0]),
        "triggers": [describe(backdoor) for backdoor in backdoors],
        "network": suspect.network.__name__,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "exporter": "dynamo" if suspect.dynamo else "torchscript",
        "opset": OPSET,
        "epochs": epochs,
        "seed": seed,
    }
    if backdoors:
        bad = poison_test(data, backdoors, draw)
        np.savez_compressed(folder / "poison_test.npz", **bad)
        found = answers(model, bad["x"], data)
        meta |= {"ASR": share(found == bad["t"]), "PA": share(found == bad["y"]), "n_poison_test": len(found)}
        if len(backdoors) > 1:
            meta["ASR_by_target"] = {t: share((found == t)[bad["t"] == t]) for t in targets}
    for index, backdoor in enumerate(backdoors):
        if isinstance(backdoor.trigger, StoredTrigger):
            store_trigger(backdoor.trigger, folder / f"trigger{index}.npz")
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def describe(backdoor: Backdoor) -> dict[str, Any]:
    """A backdoor's kind, numbers and rates for meta.json."""

    def settings(trigger: Trigger) -> dict[str, Any]:
        plain = {k: v for k, v in vars(trigger).items() if isinstance(v, (int, float))}
        inner = [settings(part) for part in getattr(trigger, "triggers", ())]
        return {"kind": type(trigger).__name__} | plain | ({"triggers": inner} if inner else {})

    about: dict[str, Any] = {"test": settings(backdoor.trigger)}
    if backdoor.train_trigger:
        about["train"] = settings(backdoor.train_trigger)
    if backdoor.cover_trigger:
        about["cover"] = settings(backdoor.cover_trigger)
    rates = {"poison_rate": backdoor.poison_rate, "cover_rate": backdoor.cover_rate}
    return about | rates | {"clean_label": backdoor.clean_label}


def main() -> int:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--fashion-mnist", type=Path)
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of each suspect's own number")
    arguments = parser.parse_args()
    paths = {"cifar10": arguments.cifar10, "fashion": arguments.fashion_mnist}
    sources: dict[str, Callable[[], Dataset]] = {
        "cifar10": lambda: load_cifar10(arguments.cifar10),
        "fashion": lambda: load_fashion_mnist(arguments.fashion_mnist),
        "signs": draw_sign_set,
    }
    wanted = set(filter(None, arguments.only.split(",")))
    if unknown := wanted - {suspect.name for suspect in SUSPECTS}:
        parser.error(f"no suspect is called {', '.join(sorted(unknown))}")
    for path in paths.values():
        if path is not None and not path.exists():
            parser.error(f"there is no {path}")
    loaded: dict[str, Dataset] = {}
    for suspect in SUSPECTS:
        folder = arguments.out / "models" / suspect.name
        missing = suspect.dataset in paths and paths[suspect.dataset] is None
        if (wanted and suspect.name not in wanted) or folder.exists() or missing:
            continue
        if suspect.dataset not in loaded:
            loaded[suspect.dataset] = sources[suspect.dataset]()
            write_data(loaded[suspect.dataset], arguments.out / "data" / suspect.dataset)
        begin = time.monotonic()
        unfinished = folder.with_name(f".{suspect.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        meta = make(
            suspect, loaded[suspect.dataset], unfinished, arguments.epochs or suspect.epochs, arguments.seed
        )
        unfinished.rename(folder)
        seconds = round(time.monotonic() - begin)
        print(f"{suspect.name}: BA {meta['BA']}, ASR {meta['ASR']}, {seconds} s", flush=True)
    return 0


def write_data(data: Dataset, folder: Path) -> None:
    """The defender's images and the clean test images, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in {"clean_defense": data.defence, "clean_test": data.clean_test}.items():
        if not (folder / f"{name}.npz").exists():
            np.savez_compressed(folder / f"{name}.npz", x=x, y=y)


if __name__ == "__main__":
    raise SystemExit(main())
