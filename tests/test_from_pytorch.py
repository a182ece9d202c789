"""`detrigger export`: a network of the user's becomes a file that the other commands take, or one line says why not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load, save_file
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

def sized(width, classes, name="", plain=True):
    assert (name, plain) == ("a=b", False)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, classes))

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


def test_the_factory_gets_its_arguments_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 7))
    save_file(net.state_dict(), tmp_path / "sized.safetensors")
    given = ("--arg", "width=2", "--arg", "classes=7", "--arg", "name=a=b", "--arg", "plain=false")
    assert export("users_code:sized", *given, weights="sized.safetensors") == 0
    assert json.loads(capsys.readouterr().out)["n_classes"] == 7


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["width"], "KEY=VALUE"),
        (["=2"], "KEY=VALUE"),
        (["width=2", "width=3"], "each KEY once"),
        (["depth=2"], "unexpected keyword argument 'depth'"),
    ],
)
def test_arguments_that_cannot_be_given_are_one_line(
    capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert export("users_code:sized", *(word for value in given for word in ("--arg", value))) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.process
@pytest.mark.parametrize(("new", "held"), [(True, None), (False, None), (True, "state_dict")])
def test_the_numbers_of_a_state_dict_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: bool, held: str | None
) -> None:
    state = network().state_dict()
    saved = {held: state, "epoch": 3} if held else state
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert export("users_code:small", weights="w.pth") == 0, capsys.readouterr().err
    x = torch.rand(2, 3, 8, 8)
    got = ort.InferenceSession(tmp_path / "m.onnx").run(["logits"], {"input": x.numpy()})[0]
    np.testing.assert_allclose(got, network()(x).detach().numpy(), atol=1e-4)


class Opens:
    """A pickle that makes a file when it is loaded by Python's own reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.process
def test_anything_but_numbers_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(network(), tmp_path / "module.pth")
    torch.save({"a": Opens(tmp_path / "made")}, tmp_path / "hostile.pt")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 9)
    for name, said in (
        ("module.pth", "holds objects"),
        ("hostile.pt", "holds objects"),
        ("list.pth", "holds a list"),
        ("noise.pth", "no state_dict"),
    ):
        assert export("users_code:small", weights=name) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert "safetensors.torch.save_file(model.state_dict()" in captured.err
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.process
def test_the_reader_of_a_state_dict_can_reach_nothing(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "import torch\n"
        "from detrigger.offline.graph import state_dict\n"
        "load = torch.load\n"
        "def hole(file, *given, **named):\n"
        "    if file.getvalue():\n"  # what the process itself tries first
        "        return load(file, *given, **named)\n"
        "    for reach in (lambda: socket.socket(), lambda: open('/etc/hostname'), lambda: bytearray(1 << 36)):\n"
        "        try:\n"
        "            reach()\n"
        "        except (OSError, MemoryError):\n"
        "            continue\n"
        "        sys.exit(7)\n"
        "    return {'a': torch.ones(2)}\n"
        "torch.load = hole\n"
        "sys.exit(state_dict.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout)["a"].tolist() == [1, 1]


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(network().state_dict(), tmp_path / "w.ckpt")
    assert export("users_code:small", weights="w.ckpt") == 2
    assert ".pth" in capsys.readouterr().err
    for gone in ("gone.safetensors", "gone.pth"):
        assert export("users_code:small", weights=gone) == 2
        assert gone in capsys.readouterr().err
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
