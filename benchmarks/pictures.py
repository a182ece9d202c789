"""Draw docs/triggers.png: what the attackers of a zoo did, what P makes of it, and what the inversion found.

    python -m benchmarks.pictures --zoo ZOO --stores DIR [--models a,b] [--out docs/triggers.png]

ZOO and DIR as `bench_zoo.py` has them, profile standard and seed 0. A row per suspect that has a store.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detrigger.models.store import VersionStore

F32 = NDArray[np.float32]
SIDE, GAP, LEFT, TOP = 80, 4, 170, 34
COLUMNS = ("attacker's image", "purified", "removed (x4)", "clean image", "inverted on it", "change (x4)")


def row_of(folder: Path, data: Path, store: Path) -> list[F32] | None:
    """The pictures (H,W,C) of one suspect in the order of ``COLUMNS``; None where it has no trigger."""
    if not (folder / "poison_test.npz").exists():
        return None
    bad, clean = np.load(folder / "poison_test.npz")["x"][5], np.load(data / "clean_test.npz")["x"][2]
    opened = VersionStore(store)
    version = opened.version_ids()[-1]

    def run(graph: str, image: F32, output: str) -> F32:
        session = ort.InferenceSession(
            opened.read_file(version, f"{graph}.onnx"), providers=["CPUExecutionProvider"]
        )
        given = {session.get_inputs()[0].name: np.ascontiguousarray(image.transpose(2, 0, 1)[None])}
        found: F32 = session.run([output], given)[0][0].transpose(1, 2, 0)
        return found

    attacked, plain = (x.astype(np.float32) / 255 for x in (bad, clean))
    purified, inverted = run("protected", attacked, "purified"), run("generator", plain, "triggered")
    return [
        attacked, purified, 0.5 + 4 * (attacked - purified),
        plain, inverted, 0.5 + 4 * (inverted - plain),
    ]  # fmt: skip


def main() -> int:
    """Draw what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, nargs="+", required=True)
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--models", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/triggers.png"))
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.models.split(",")))
    found = {}
    for folder in sorted((f for zoo in arguments.zoo for f in zoo.glob("models/*")), key=lambda f: f.name):
        store = arguments.stores / f"{folder.name}-standard-0"
        made = store.exists() and VersionStore(store).version_ids()
        if made and (not wanted or folder.name in wanted):
            data = folder.parent.parent / "data" / folder.name.split("-")[0]
            if pictures := row_of(folder, data, store):
                found[folder.name] = pictures
    sheet = Image.new("RGB", (LEFT + len(COLUMNS) * (SIDE + GAP), TOP + len(found) * (SIDE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for j, words in enumerate(COLUMNS):
        draw.text((LEFT + j * (SIDE + GAP) + SIDE / 2, TOP - 12), words, "black", font, anchor="mm")
    for i, (name, pictures) in enumerate(found.items()):
        top = TOP + i * (SIDE + GAP)
        draw.text((LEFT - 8, top + SIDE / 2), name, "black", font, anchor="rm")
        for j, pixels in enumerate(pictures):
            array = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
            cell = Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).convert("RGB")
            sheet.paste(cell.resize((SIDE, SIDE), Image.Resampling.NEAREST), (LEFT + j * (SIDE + GAP), top))
    sheet.quantize(255).save(arguments.out, optimize=True)
    print(f"{arguments.out}: {len(found)} suspects, {arguments.out.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
