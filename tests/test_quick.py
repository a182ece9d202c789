"""`detrigger scan --quick`: plain backdoors within seconds, and never "clean"."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detrigger import cli
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.split import CleanImages
from detrigger.offline.steps.quick import look_quickly
from tests import blobs

NOTHING = "nothing found, not searched in depth"


def scan(capsys: pytest.CaptureFixture[str], *given: object) -> tuple[int, dict[str, Any]]:
    code = cli.main(["scan", *map(str, given), "--quick", "--json", "--device", "cpu"])
    return code, json.loads(capsys.readouterr().out)


def test_a_plain_backdoor_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = blobs.npz(tmp_path / "clean.npz", 30)
    code, answer = scan(capsys, blobs.suspect(tmp_path), "--data", data, "--fail-on", "backdoored")
    assert (code, answer["verdict"], answer["target_labels"]) == (1, "backdoored", [blobs.TARGET])
    assert {sign["family"] for sign in answer["evidence"]} <= set(answer["screen"])
    assert answer["accuracy"]["overall"] == 1.0


def test_nothing_found_is_not_called_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = blobs.suspect(tmp_path, backdoor=False), blobs.npz(tmp_path / "clean.npz", 30)
    code, answer = scan(capsys, model, "--data", data, "--fail-on", "inconclusive")
    assert (code, answer["verdict"], answer["evidence"]) == (0, NOTHING, [])
    assert cli.main(["scan", str(model), "--data", str(data), "--quick", "--device", "cpu"]) == 0
    assert "A scan without --quick searches in depth" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_set_up_is_inconclusive_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = blobs.images(12)
    np.savez(tmp_path / "turned.npz", x=x, y=(y + 1) % blobs.CLASSES)
    model = blobs.suspect(tmp_path)
    code, answer = scan(capsys, model, "--data", tmp_path / "turned.npz", "--fail-on", "inconclusive")
    assert (code, answer["verdict"]) == (1, "inconclusive")
    assert "would be right on" in answer["reason"]


def test_it_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = blobs.npz(tmp_path / "clean.npz", 2)
    code, answer = scan(capsys, blobs.suspect(tmp_path), "--data", data, "--out", tmp_path / "page.html")
    assert code == 2
    assert "leave out --quick or --out" in answer["error"]["message"]


def test_with_few_classes_nobody_is_accused() -> None:
    def always(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0, 0]).repeat(len(x), 1) + 0 * x.mean((1, 2, 3))[:, None]

    x, y = torch.rand(30, 3, 8, 8), torch.arange(30) % 3
    seen = look_quickly(always, 3, CleanImages((x, y), (x, y), Compute("cpu", 0)), 0)
    assert seen.evidence == []


def test_two_labels_that_both_stand_out_accuse_nobody() -> None:
    def weak(x: Tensor) -> Tensor:
        """Dark images are label 0 and light ones label 1, whatever they show."""
        light = x.mean((1, 2, 3)) - 0.55
        return torch.stack([-100 * light, 100 * light, *[0 * light] * 5], 1)

    g = torch.Generator().manual_seed(0)
    x, y = 0.5 + 0.1 * torch.rand(70, 3, 8, 8, generator=g), torch.arange(70) % 7
    seen = look_quickly(weak, 7, CleanImages((x, y), (x, y), Compute("cpu", 0)), 0)
    assert max(float(look.gap.max()) for look in seen.screens) > 1
    assert seen.evidence == []


def lined(x: Tensor) -> Tensor:
    """The brightest of seven bands is the label, unless the line in the middle is bent to and fro: then it is 5."""
    bands = 20 * x[..., :10].mean((1, 3))[:, :21].view(-1, 7, 3).mean(2)
    beside = (x[:, :, :8, 13], x[:, :, 8:16, 11], x[:, :, 16:, 13])
    bent = sum((part.mean((1, 2)).clamp_max(0.6) for part in beside), torch.zeros(())) / 3
    return bands + 150 * torch.nn.functional.leaky_relu(bent - 0.5, 0.05)[:, None] * torch.eye(7)[5]


@pytest.mark.parametrize(
    ("row", "named"), [((5, 9.0), [5]), ((4, 9.0), []), ((5, 2.0), []), (None, [])], ids=str
)
def test_a_warp_is_tried_to_the_label_whose_row_stands_out(
    row: tuple[int, float] | None, named: list[int]
) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = 0.1 + 0.2 * torch.rand(70, 3, 24, 24, generator=g), torch.arange(70) % 7
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 3] += 0.3
    x[..., 12] = 1.0
    assert (lined(x).argmax(1) == y).all()
    seen = look_quickly(lined, 7, CleanImages((x, y), (x, y), Compute("cpu", 0)), 0, row)
    assert [piece.target for piece in seen.evidence] == named
