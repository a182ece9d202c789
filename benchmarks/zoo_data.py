"""The data sets that suspects are trained on, and who of attacker, defender and judge gets which images."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detrigger.demo.signs import CLASSES, draw_signs

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

PER_CLASS_DEFENCE, CLEAN_TEST = 250, 2000


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


def draw_sign_set() -> Dataset:
    """The demo's synthetic traffic signs, drawn from nothing."""
    x, y = draw_signs(1000, seed=7)
    train = np.arange(len(y)) % 1000 < 500
    return split(CLASSES, (x[train], y[train]), (x[~train], y[~train]))


def tensor(x: U8) -> Tensor:
    """(N,H,W,C) uint8 to (N,C,H,W) in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).float() / 255
