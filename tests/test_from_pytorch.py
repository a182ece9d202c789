"""`detrigger export`: a network of the user's becomes a file that the other commands take, or one line says why not."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detrigger import cli
from detrigger.models.suspect import describe, read_onnx

CODE = """
from torch import nn

def small(channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 5),
    )

def grey():
    return small(1)

def pair():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()
        def forward(self, x):
            return self.net(x), x
    return Two()

def number():
    return 7

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
"""


def network(channels: int = 3) -> nn.Module:
    """What `small` of the user's module returns, with weights that are not its first ones."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )
    net(torch.rand(16, channels, 8, 8))  # moves the statistics of the normalisation
    return net.eval()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the user's module and weights, as the current one."""
    (tmp_path / "users_code.py").write_text(CODE)
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_code", raising=False)


def export(factory: str, *more: object, weights: str = "w.safetensors", out: str = "m.onnx") -> int:
    argv = ["export", "--factory", factory, "--weights", weights, "--size", "8", "8", "--out", out, "--json"]
    return cli.main([*argv, *map(str, more)])


def test_the_file_answers_as_the_network_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("users_code:small") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["written"], answer["n_classes"], answer["error"]) == ("m.onnx", 5, None)
    assert answer["difference"] < 1e-4
    model, _ = read_onnx(tmp_path / "m.onnx")
    spec = describe(model)
    assert (spec.input_name, spec.layout, spec.size, spec.softmax) == ("input", "NCHW", (8, 8), False)
    x = torch.rand(7, 3, 8, 8)
    got = ort.InferenceSession(tmp_path / "m.onnx").run(["logits"], {"input": x.numpy()})[0]
    np.testing.assert_allclose(got, network()(x).detach().numpy(), atol=1e-4)


def test_grey_images(tmp_path: Path) -> None:
    save_file(network(1).state_dict(), tmp_path / "w.safetensors")
    assert export("users_code:grey", "--channels", 1) == 0
    assert describe(read_onnx(tmp_path / "m.onnx")[0]).channels == 1


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("users_code", "module:function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("users_code:large", "no attribute 'large'"),
        ("users_code:number", "returned int"),
        ("users_code:fixed", "do not fit the network: "),
    ],
)
def test_unusable_code_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factory: str, said: str
) -> None:
    assert export(factory) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "m.onnx").exists()


def test_pickles_and_missing_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pt")
    assert export("users_code:small", weights="w.pt") == 2
    assert "never read" in capsys.readouterr().err
    assert export("users_code:small", weights="gone.safetensors") == 2
    assert "gone.safetensors" in capsys.readouterr().err
    assert export("users_code:small", out="m.pt") == 2
    assert "has to end in .onnx" in capsys.readouterr().err


def test_networks_that_are_no_classifiers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({f"net.{k}": v for k, v in network().state_dict().items()}, tmp_path / "two.safetensors")
    assert export("users_code:pair", weights="two.safetensors") == 2
    assert "one tensor of logits" in capsys.readouterr().err
    save_file(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).state_dict(), tmp_path / "f.safetensors")
    argv = ["--factory", "users_code:fixed", "--weights", "f.safetensors", "--out", "m.onnx"]
    assert cli.main(["export", *argv, "--size", "9", "9"]) == 2
    assert "correct --size" in capsys.readouterr().err
