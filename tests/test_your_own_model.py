"""The README's "Your own model", run as it is written, but for the size of the images and the number of steps."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from detrigger import cli
from detrigger.offline.inputs.profile import PROFILES
from tests import blobs

CLASSES, SIDE = 6, 40
SMALLER = {"224": "32", "256": "36"}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def section() -> tuple[str, str, list[str]]:
    """The code that exports, the preprocess file, and the commands."""
    text = (Path(__file__).parent.parent / "README.md").read_text().split("## Your own model")[1]
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    code, pre, shell = (
        re.findall(rf"```{language}\n(.*?)```", text, re.S)[0] for language in ("python", "json", "sh")
    )
    return code, pre, shell.splitlines()


def photograph(label: int, rng: np.random.Generator) -> Image.Image:
    """A bright square at the class's place."""
    pixels = rng.integers(20, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    top, left = 8 + 14 * (label // 3), 6 + 10 * (label % 3)
    pixels[top : top + 8, left : left + 8] += 140
    return Image.fromarray(pixels)


def seen(image: Image.Image) -> NDArray[np.float32]:
    """`Resize(36)`, `CenterCrop(32)`, `ToTensor()` and `Normalize(mean, std)`."""
    small = np.asarray(image.resize((36, 36), Image.Resampling.BILINEAR))[2:34, 2:34] / 255
    normalised: NDArray[np.float32] = ((small - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)
    return normalised


def trained() -> nn.Module:
    """A network for these photographs."""
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    y = torch.arange(240) % CLASSES
    x = torch.from_numpy(np.stack([seen(photograph(label, rng)) for label in y.tolist()]))
    net = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, CLASSES)
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(x), y))
        optimizer.step()
    return net


@pytest.mark.slow
def test_the_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PROFILES, "standard", blobs.short_profile(screen_steps=4))
    code, pre, commands = section()
    exec(code, {"torch": torch, "model": trained()})  # noqa: S102 - the README's own lines
    (tmp_path / "preprocess.json").write_text(pre)
    rng = np.random.default_rng(2)
    for label in range(CLASSES):
        folder = tmp_path / "clean" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(30):
            photograph(label, rng).save(folder / f"{i:04d}.jpg")
    assert [command.split()[:2] for command in commands] == [["detrigger", "scan"], ["detrigger", "protect"]]
    scanned, protected = (cli.main([*shlex.split(command)[1:], "--device", "cpu"]) for command in commands)
    assert (scanned, protected) in ((0, 0), (0, 3))  # after so few steps the gate may refuse
    right = re.search(r"accuracy  ([0-9.]+)%", capsys.readouterr().out)
    assert right
    assert float(right[1]) > 90
    assert len(list((tmp_path / "store/versions").iterdir())) == 1
