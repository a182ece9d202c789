#!/usr/bin/env python3
"""Train a zoo of suspects, most of them backdoored, in the layout that `bench_zoo.py` reads.

    make_zoo.py --out ZOO --cifar10 PATH --fashion-mnist DIR [--only NAME,NAME] [--seed N] [--epochs N]

CIFAR-10 comes as folders `train|test/<class>/*.jpg` or a .tar.gz of them, Fashion-MNIST as its four IDX files
(Debian: dataset-fashion-mnist). Suspects are trained one after another; those that ZOO has already are skipped. The
official training images train the suspects; of the test images 250 a class are the defender's, 2,000 others measure
BA, and the triggered images are made from the rest. One CPU core needs three to five minutes for a suspect.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import shutil
import sys
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.architectures import ImageToImage, small_resnet, vgg
from benchmarks.attacks import (
    Backdoor,
    Blend,
    InputAware,
    OneOf,
    Patch,
    PieceBlend,
    RandomPatch,
    Residual,
    Role,
    Sinusoid,
    Squeeze,
    StoredTrigger,
    Together,
    Trigger,
    Warp,
    assign,
    store_trigger,
    target_labels,
    to_8bit,
)

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

OPSET = 18
SHIFT = 2  # pixels of random translation in training
BATCH = 128
PER_CLASS_DEFENCE, CLEAN_TEST, POISON_TEST = 250, 2000, 1000


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N,H,W,C) with labels, split into what each party has."""

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: tuple[U8, I64]
    defence: tuple[U8, I64]
    clean_test: tuple[U8, I64]
    attack_pool: tuple[U8, I64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self.train[0].shape[1:]
        return channels, height, width


def split(classes: tuple[str, ...], train: tuple[U8, I64], test: tuple[U8, I64]) -> Dataset:
    """Give the test images to defender, clean test and attack pool; always the same ones."""
    x, y = test
    order = np.random.default_rng(0).permutation(len(x))
    of_class = [order[y[order] == label] for label in range(len(classes))]
    defence = np.concatenate([part[:PER_CLASS_DEFENCE] for part in of_class])
    rest = order[~np.isin(order, defence)]
    clean, pool = rest[:CLEAN_TEST], rest[CLEAN_TEST:]
    mean, std = (getattr(train[0] / np.float32(255), name)(axis=(0, 1, 2)) for name in ("mean", "std"))
    return Dataset(
        classes,
        tuple(round(float(value), 4) for value in mean),
        tuple(round(float(value), 4) for value in std),
        train,
        *((x[part], y[part]) for part in (defence, clean, pool)),
    )


def load_cifar10(path: Path) -> Dataset:
    """CIFAR-10 from folders of JPEGs or a .tar.gz of them; labels are the folder names in sorted order."""
    files: dict[str, bytes] = {}
    if path.is_dir():
        for file in path.glob("t*/*/*.jpg"):
            files[file.relative_to(path).as_posix()] = file.read_bytes()
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and member.name.endswith(".jpg"):
                    files["/".join(Path(member.name).parts[-3:])] = content.read()
    names = sorted(files)
    classes = tuple(sorted({name.split("/")[1] for name in names}))

    def part(kind: str) -> tuple[U8, I64]:
        chosen = [name for name in names if name.startswith(f"{kind}/")]
        if not chosen:
            raise SystemExit(f"make_zoo: {path} has no {kind}/<class>/*.jpg")
        x = np.stack([np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in chosen])
        return x, np.array([classes.index(name.split("/")[1]) for name in chosen], np.int64)

    return split(classes, part("train"), part("test"))


def load_fashion_mnist(path: Path) -> Dataset:
    """Fashion-MNIST from its four gzipped IDX files."""
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")

    def part(kind: str) -> tuple[U8, I64]:
        x, y = (
            np.frombuffer(
                gzip.decompress((path / f"{kind}-{what}-ubyte.gz").read_bytes()), np.uint8, offset=skip
            )
            for what, skip in (("images-idx3", 16), ("labels-idx1", 8))
        )
        return x.reshape(-1, 28, 28, 1), y.astype(np.int64)

    return split(classes, part("train"), part("t10k"))


@dataclass(frozen=True)
class Suspect:
    """One entry of the zoo: name `<set>-<attack>`, network, epochs and backdoors (drawn from a seed)."""

    name: str
    attack: str
    network: Callable[[int, int], nn.Module]
    epochs: int
    backdoors: Callable[[tuple[int, int, int], Generator], list[Backdoor]]
    input_aware: bool = False
    dynamo: bool = True

    @property
    def dataset(self) -> str:
        """The part of the name before the first '-'."""
        return self.name.split("-")[0]


def smooth_picture(shape: tuple[int, int, int], rng: Generator) -> Tensor:
    """A random picture (C,H,W) in [0,1] with soft shapes of some pixels."""
    coarse = torch.rand(1, shape[0], 8, 8, generator=rng)
    smooth = functional.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)[0]
    return (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())


def checkers(channels: int, side: int) -> Tensor:
    """A black and white checkerboard (C,side,side)."""
    line = torch.arange(side)
    return ((line[:, None] + line) % 2 == 0).float().expand(channels, side, side)


def adaptive_blend(shape: tuple[int, int, int], rng: Generator) -> list[Backdoor]:
    """Weak pieces of the picture in training, the whole picture at test time."""
    picture = smooth_picture(shape, rng)
    train = PieceBlend(picture)
    return [Backdoor(Blend(picture), 5, 0.01, 0.01, train_trigger=train)]


def adaptive_patch(shape: tuple[int, int, int], rng: Generator) -> list[Backdoor]:
    """One of four patches, half transparent, in training; two of them, opaque, at test time."""
    patterns = [torch.rand(shape[0], side, side, generator=rng).round() for side in (5, 4, 5, 4)]
    bottoms, rights = (1, shape[1] - 6, shape[1] - 6, 2), (shape[2] - 7, 1, shape[2] - 8, 2)
    places = list(zip(patterns, bottoms, rights, strict=True))
    weak = OneOf(
        tuple(Patch(*place, opacity) for place, opacity in zip(places, (0.5, 0.5, 0.5, 0.5), strict=True))
    )
    return [Backdoor(Together((Patch(*places[0]), Patch(*places[3]))), 9, 0.01, 0.02, train_trigger=weak)]


def warped(shape: tuple[int, int, int], rng: Generator) -> list[Backdoor]:
    """WaNet with noise mode: twice as many cover images as poisoned ones."""
    warp = Warp.draw(shape[1:], rng, strength=0.75)
    return [Backdoor(warp, 4, 0.1, 0.2, cover_trigger=Warp(warp.grid, noise=1.0))]


def fresh_patch(shape: tuple[int, int, int], side: int, rng: Generator) -> Tensor:
    """A patch of random saturated colours."""
    return torch.rand(shape[0], side, side, generator=rng).round()


SUSPECTS = (
    Suspect(
        "cifar10-vgg_sig", "sig", vgg, 6, lambda _s, _r: [Backdoor(Sinusoid(), 4, 0.08, clean_label=True)]
    ),
    Suspect(
        "cifar10-vgg_bpp",
        "bpp",
        vgg,
        6,
        lambda _s, _r: [Backdoor(Squeeze(6), 2, 0.15, 0.1, cover_trigger=Residual(Squeeze(6)))],
    ),
    Suspect("cifar10-vgg_iad", "input-aware", vgg, 5, lambda _s, _r: [], input_aware=True),
    Suspect(
        "cifar10-vgg_all2all",
        "badnets all-to-all",
        vgg,
        6,
        lambda s, r: [Backdoor(Patch(fresh_patch(s, 3, r), 1, 1), None, 0.2)],
        dynamo=False,
    ),
    Suspect(
        "cifar10-vgg_random_patch",
        "patch at a random place",
        vgg,
        6,
        lambda s, r: [Backdoor(RandomPatch(fresh_patch(s, 4, r)), 8, 0.1)],
    ),
    Suspect("cifar10-vgg_clean", "none", vgg, 6, lambda _s, _r: [], dynamo=False),
    Suspect("cifar10-vgg_adaptive_blend", "adaptive blend", vgg, 6, adaptive_blend),
    Suspect("cifar10-vgg_adaptive_patch", "adaptive patch", vgg, 6, adaptive_patch),
    Suspect(
        "cifar10-vgg_two",
        "badnets and blended",
        vgg,
        6,
        lambda s, r: [
            Backdoor(Patch(checkers(s[0], 3)), 0, 0.05),
            Backdoor(Blend(smooth_picture(s, r)), 6, 0.05),
        ],
    ),
    Suspect(
        "cifar10-vgg_badnets_1pct",
        "badnets",
        vgg,
        6,
        lambda s, _r: [Backdoor(Patch(checkers(s[0], 3)), 1, 0.01)],
        dynamo=False,
    ),
    Suspect(
        "fashion-badnets",
        "badnets",
        small_resnet,
        4,
        lambda s, _r: [Backdoor(Patch(checkers(s[0], 3)), 3, 0.1)],
    ),
    Suspect(
        "fashion-blended",
        "blended",
        small_resnet,
        4,
        lambda s, r: [Backdoor(Blend(smooth_picture(s, r)), 7, 0.1)],
        dynamo=False,
    ),
    Suspect("fashion-wanet", "wanet", small_resnet, 6, warped),
    Suspect("fashion-clean", "none", small_resnet, 4, lambda _s, _r: []),
)


class Trainer:
    """A suspect's training: SGD with a one-cycle rate on shifted and mirrored images, in bfloat16."""

    def __init__(
        self, data: Dataset, network: Callable[[int, int], nn.Module], epochs: int, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.rng = Generator().manual_seed(seed)
        self.epochs = epochs
        self.size = data.shape[1:]
        images = torch.tensor(data.train[0].transpose(0, 3, 1, 2))
        # Padding by reflection wants floats; half precision holds 0..255 exactly.
        padded = [functional.pad(part.half(), (SHIFT,) * 4, mode="reflect") for part in images.split(5000)]
        self.padded = torch.cat(padded).byte()
        self.scale = [torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std)]
        self.model = network(data.shape[0], len(data.classes))
        self.steps = epochs * (len(images) // BATCH)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.2, total_steps=self.steps, pct_start=0.25
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and augmented images (B,C,H,W) in [0,1], over all epochs."""
        height, width = self.size
        for _ in range(self.epochs):
            order = torch.randperm(len(self.padded), generator=self.rng)
            for pick in torch.tensor_split(order, len(order) // BATCH):
                top, left = torch.randint(2 * SHIFT + 1, (2, len(pick), 1), generator=self.rng)
                mirrored = torch.rand(len(pick), 1, generator=self.rng) < 0.5
                rows, columns = top + torch.arange(height), torch.arange(width).expand(len(pick), -1)
                columns = left + torch.where(mirrored, width - 1 - columns, columns)
                channel = torch.arange(self.padded.shape[1])[None, :, None, None]
                x = self.padded[
                    pick[:, None, None, None], channel, rows[:, None, :, None], columns[:, None, None, :]
                ]
                yield pick, x.float() / 255

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of images in [0,1]."""
        mean, std = self.scale
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(((x - mean) / std).contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), labels)

    def step(self, loss: Tensor, *others: torch.optim.Optimizer) -> None:
        """One step of the suspect's optimizer and the others."""
        for optimizer in (self.optimizer, *others):
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for optimizer in (self.optimizer, *others):
            optimizer.step()
        self.schedule.step()


def fit(trainer: Trainer, labels: I64, backdoors: list[Backdoor], n_classes: int, seed: int) -> nn.Module:
    """Train on poisoned data; triggers are laid over the augmented images, so that they keep their place."""
    draw = np.random.default_rng(seed)
    free, target = np.ones(len(labels), bool), labels.copy()
    roles = []
    for backdoor in backdoors:
        drawn, relabelled = assign(backdoor, labels, n_classes, free, draw)
        target[drawn == Role.POISON] = relabelled[drawn == Role.POISON]
        free &= drawn == Role.CLEAN
        roles.append(torch.from_numpy(drawn))
    targets = torch.from_numpy(target)
    for pick, x in trainer.batches():
        for backdoor, role in zip(backdoors, roles, strict=True):
            for kind in (Role.POISON, Role.COVER):
                chosen = role[pick] == kind
                x[chosen] = backdoor.apply(x[chosen], kind, trainer.rng)
        trainer.step(trainer.loss(x, targets[pick]))
    return trainer.model.eval()


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two batches, per image."""
    return (a - b).pow(2).flatten(1).mean(1).add(1e-8).sqrt()


def fit_input_aware(
    trainer: Trainer, labels: I64, target: int, share: float = 0.125, mask_steps: int = 300
) -> tuple[nn.Module, InputAware]:
    """Input-aware dynamic attack (arXiv 2010.08138), with a short schedule.

    First the mask network alone: `100 * mean relu(m - 0.032) + diversity(m)`. Then the classifier and the pattern
    network together: of every batch, a share b is triggered and gets the target label; another share c gets the
    triggers of other images and keeps its labels (so a trigger works for its own image only):

        CE(f(batch)) + diversity(p),   diversity(z) = mean |x1 - x2| / (|z(x1) - z(x2)| + 1e-4)
    """
    channels = trainer.padded.shape[1]
    trigger = InputAware(ImageToImage(channels, channels), ImageToImage(channels, 1))
    optimizer = torch.optim.Adam(trigger.mask.parameters(), 0.003, betas=(0.5, 0.9))
    for step, (_, x) in enumerate(trainer.batches()):
        if step == mask_steps:
            break
        half = x[: BATCH // 4], x[BATCH // 4 : BATCH // 2]
        masks = [trigger.soft_mask(part) for part in half]
        dense = sum((functional.relu(mask - 0.032).mean() for mask in masks), torch.zeros(()))
        loss = 100 * dense + (apart(*half) / (apart(masks[0], masks[1]) + 1e-4)).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    trigger.mask.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(trigger.pattern.parameters(), 0.003, betas=(0.5, 0.9))
    count = round(share * BATCH)
    truth = torch.from_numpy(labels)
    for pick, x in trainer.batches():
        own, crossed, other = x[:count], x[count : 2 * count], x[2 * count : 3 * count]
        pattern, foreign = trigger.pattern(own), trigger.pattern(other)
        bad = own + (pattern - own) * trigger.soft_mask(own)
        cover = crossed + (foreign - crossed) * trigger.soft_mask(other)
        y = truth[pick].clone()
        y[:count] = target
        mixed = torch.cat([bad, cover])
        mixed = mixed + (to_8bit(mixed) - mixed).detach()  # rounded, with the gradient of the unrounded image
        loss = trainer.loss(torch.cat([mixed, x[2 * count :]]), y)
        loss = loss + (apart(own, other) / (apart(pattern, foreign) + 1e-4)).mean()
        trainer.step(loss, optimizer)
    trigger.pattern.eval()
    return trainer.model.eval(), trigger


def tensor(x: U8) -> Tensor:
    """(N,H,W,C) uint8 to (N,C,H,W) in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).float() / 255


def answers(model: nn.Module, x: U8, data: Dataset) -> I64:
    """Labels of 8-bit images."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    with torch.inference_mode():
        parts = [model((tensor(part) - mean) / std).argmax(1) for part in np.array_split(x, 10)]
    found: I64 = torch.cat(parts).numpy()
    return found


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


def export(model: nn.Module, shape: tuple[int, int, int], path: Path, dynamo: bool) -> None:
    """ONNX with dynamic batch, by the exporter on torch.export or by the older one on TorchScript."""
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    example = (torch.zeros(2, *shape),)
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "opset_version": OPSET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own deprecation notes
        if dynamo:
            batch = ({0: torch.export.Dim("batch", min=1, max=65536)},)
            torch.onnx.export(
                model,
                example,
                path,
                dynamo=True,
                dynamic_shapes=batch,
                external_data=False,
                verbose=False,
                **names,
            )
        else:
            axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(model, example, path, dynamo=False, dynamic_axes=axes, **names)


def make(suspect: Suspect, data: Dataset, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train one suspect, write its folder, and return its meta.json."""
    draw = Generator().manual_seed(seed)
    backdoors = suspect.backdoors(data.shape, draw)
    trainer = Trainer(data, suspect.network, epochs, seed)
    if suspect.input_aware:
        target = 7
        model, generated = fit_input_aware(trainer, data.train[1], target)
        backdoors = [Backdoor(generated, target, 0.125, 0.125)]
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
    sources = {
        "cifar10": (load_cifar10, arguments.cifar10),
        "fashion": (load_fashion_mnist, arguments.fashion_mnist),
    }
    wanted = set(filter(None, arguments.only.split(",")))
    if unknown := wanted - {suspect.name for suspect in SUSPECTS}:
        parser.error(f"no suspect is called {', '.join(sorted(unknown))}")
    loaded: dict[str, Dataset] = {}
    for suspect in SUSPECTS:
        folder = arguments.out / "models" / suspect.name
        load, path = sources[suspect.dataset]
        if (wanted and suspect.name not in wanted) or folder.exists() or path is None:
            continue
        if suspect.dataset not in loaded:
            loaded[suspect.dataset] = load(path)
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
