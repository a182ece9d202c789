#!/usr/bin/env python3
"""Our preprocessing against torchvision's, timm's and Hugging Face's own code, pixel for pixel.

    bench_preprocess.py --photos DIR

To be run in an environment of its own, since nothing else here needs these packages: torchvision, timm, transformers,
pydantic. DIR holds photographs (any depth); the first `PHOTOS` are scaled to odd sizes and aspects, by a fixed seed.
Each case is a file as its users have it (ours, timm's config.json or Hugging Face's preprocessor_config.json), read by
`Preprocess.load`, beside their own transform of the same picture. A row of `results/preprocess.json` says how many
pictures differ, and by how many of the 256 levels at most, after mean and std were undone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from detrigger.models.preprocess import Preprocess, decode_to_array

RESULTS = Path(__file__).parent / "results" / "preprocess.json"
PHOTOS = 100
SAME = 0.01
"""Levels by which two float32 ways to scale a pixel may differ."""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MODES = ("bilinear", "bicubic", "lanczos")

Floats = npt.NDArray[np.float32]
Theirs = Callable[[Image.Image], Floats]
Case = tuple[str, dict[str, Any], Theirs]


def main() -> int:
    """Compare all cases and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    photos = odd_sizes(parser.parse_args().photos)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, content, theirs in (*torchvision_cases(), *timm_cases(), *hugging_face_cases()):
            path = Path(folder) / "preprocess.json"
            path.write_text(json.dumps(content))
            pre = Preprocess.load(path)
            apart = [difference(photo, pre, theirs) for photo in photos]
            differ = sum(value > SAME for value in apart)
            largest = round(max(apart), 2) if differ else 0
            rows.append({"case": name, "images": len(photos), "differ": differ, "largest_levels": largest})
            print(rows[-1], flush=True)
    packages = ("numpy", "pillow", "timm", "torch", "torchvision", "transformers")
    tools = {name: version(name) for name in packages}
    RESULTS.write_text(json.dumps({"tools": tools, "rows": rows}, indent=1) + "\n")
    return 0


def odd_sizes(folder: Path) -> list[Image.Image]:
    """Photographs scaled to sides of 150 to 900 pixels, of all aspects."""
    rng = np.random.default_rng(0)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [files[i] for i in rng.permutation(len(files))[:PHOTOS]]
    photos = []
    for file in chosen:
        width, height = (int(side) for side in rng.integers(150, 900, 2))
        with Image.open(file) as image:
            photos.append(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    return photos


def difference(photo: Image.Image, pre: Preprocess, theirs: Theirs) -> float:
    """The largest difference in levels of 0..255."""
    mean, std = (np.array(value, np.float32).reshape(-1, 1, 1) for value in (pre.mean, pre.std))
    ours = decode_to_array(photo, pre).transpose(2, 0, 1)
    if pre.order == "BGR":
        ours = ours[::-1]
    other = (theirs(photo) * std + mean) * 255
    if other.shape != ours.shape:
        raise SystemExit(f"theirs is {other.shape}, ours {ours.shape}")
    return float(np.abs(other - ours).max())


def torchvision_cases() -> Iterator[Case]:
    """What the reference training scripts evaluate with."""
    from torchvision import transforms as tv  # type: ignore[import-not-found, unused-ignore]

    def case(name: str, content: dict[str, Any], *steps: Any) -> Case:
        whole = tv.Compose([*steps, tv.ToTensor(), tv.Normalize(MEAN, STD)])
        return (
            f"torchvision: {name}",
            {"mean": MEAN, "std": STD, **content},
            lambda image: whole(image).numpy(),
        )

    for mode in MODES:
        way = tv.InterpolationMode(mode)
        shorter = tv.Resize(256, interpolation=way)
        yield case(
            f"Resize(256, {mode}), CenterCrop(224)", {"resize": 256, "crop": 224, "resample": mode},
            shorter, tv.CenterCrop(224),
        )  # fmt: skip
        yield case(
            f"Resize((224, 224), {mode})",
            {"size": 224, "resample": mode},
            tv.Resize((224, 224), interpolation=way),
        )
        yield case(
            f"Resize(235, {mode}), CenterCrop((224, 192))",
            {"size": [224, 192], "resize": 235, "resample": mode},
            tv.Resize(235, interpolation=way), tv.CenterCrop((224, 192)),
        )  # fmt: skip
    yield case("CenterCrop(300), padded where smaller", {"crop": 300}, tv.CenterCrop(300))
    yield case(
        "Resize(200), CenterCrop(300)", {"resize": 200, "crop": 300}, tv.Resize(200), tv.CenterCrop(300)
    )


def timm_cases() -> Iterator[Case]:
    """What `create_transform` makes of a config.json of the hub."""
    from timm.data import create_transform, resolve_data_config  # type: ignore[import-not-found, unused-ignore]

    configs: list[dict[str, Any]] = [
        {"input_size": [3, 224, 224], "interpolation": mode, "crop_pct": share}
        for mode, share in (("bilinear", 0.875), ("bicubic", 0.95), ("bicubic", 0.9), ("lanczos", 1.0))
    ]
    configs += [
        {"input_size": [3, 224, 192], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "squash"},
        {"input_size": [3, 224, 192], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "border"},
        {"input_size": [3, 384, 384], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": [3, 299, 299], "crop_pct": 0.897, "mean": [0.5] * 3, "std": [0.5] * 3},
    ]
    for config in configs:
        transform = create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)
        what = ", ".join(f"{key} {value}" for key, value in config.items() if key not in ("mean", "std"))
        content = {"architecture": "any", "num_classes": 10, "pretrained_cfg": config}

        def theirs(image: Image.Image, transform: Any = transform) -> Floats:
            return np.asarray(transform(image), np.float32)

        yield f"timm: {what}", content, theirs


def hugging_face_cases() -> Iterator[Case]:
    """What the image processors of classifiers do, by Pillow and by torchvision's tensors."""
    import transformers  # type: ignore[import-not-found, unused-ignore]

    side = {"height": 224, "width": 224}
    processors: list[tuple[str, dict[str, Any]]] = [
        ("ViT", {"size": side}),
        ("ViT", {"size": {"height": 224, "width": 192}, "resample": 3, "do_normalize": False}),
        ("DeiT", {"size": {"height": 256, "width": 256}, "crop_size": side}),
        ("Beit", {"size": side}),
        ("CLIP", {"size": {"shortest_edge": 224}, "crop_size": side}),
        ("Siglip", {"size": side}),
        ("Bit", {"size": {"shortest_edge": 256}, "crop_size": side}),
        ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("MobileNetV2", {"size": {"shortest_edge": 256}, "crop_size": side}),
        ("MobileViT", {"size": {"shortest_edge": 288}, "crop_size": {"height": 256, "width": 256}}),
        ("EfficientNet", {"size": {"height": 289, "width": 289}, "include_top": True}),
        (
            "EfficientNet",
            {"size": side, "rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False},
        ),
        ("PoolFormer", {"size": {"shortest_edge": 224}, "crop_size": side, "crop_pct": 0.9}),
        ("Levit", {"size": {"shortest_edge": 224}, "crop_size": side}),
        ("Pvt", {"size": side}),
    ]
    for backend in ("Pil", ""):
        for name, settings in processors:
            processor = getattr(transformers, f"{name}ImageProcessor{backend}")(**settings)
            what = f"Hugging Face{' (Pillow)' if backend else ''}: {name} {json.dumps(settings)}"

            def theirs(image: Image.Image, processor: Any = processor) -> Floats:
                found: Floats = processor(images=image, return_tensors="np")["pixel_values"][0]
                return np.asarray(found, np.float32)

            yield what, json.loads(processor.to_json_string()), theirs


if __name__ == "__main__":
    raise SystemExit(main())
