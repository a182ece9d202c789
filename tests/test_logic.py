"""A suspect with logic in its graph goes through import without it, and everybody is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.logic_designs import Graft, branch, comparator, loop_until, shifted
from detrigger import cli
from detrigger.offline.compute import Compute
from detrigger.offline.inputs.load import JobInputs, Options, load
from detrigger.offline.inputs.logic import LogicRefused
from detrigger.offline.progress import SilentProgress
from tests.test_structure import CLEAN, K, draw, run


def loaded(model: onnx.ModelProto, folder: Path) -> JobInputs:
    x, y = draw(120, 5)
    onnx.save(model, folder / "suspect.onnx")
    np.savez(folder / "data.npz", x=(x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1), y=y)
    options = Options(suspect=folder / "suspect.onnx", data=folder / "data.npz", device="cpu")
    return load(options, Compute("cpu", 0), SilentProgress())


@pytest.mark.parametrize("design", [comparator, branch, loop_until, shifted], ids=lambda d: d.__name__)
def test_the_logic_is_cut_out_and_named(design: Callable[[Graft], None], tmp_path: Path) -> None:
    graft = Graft(CLEAN)
    design(graft)
    model = graft.finished()
    given = loaded(model, tmp_path)
    (row,) = given.logic.rows()
    assert row["node"] in graft.added
    assert row["sign"]["success"] == 1.0
    assert given.logic.changed == 0.0
    x, y = draw(60, 6)
    x[:, :, 2:6, 2:6] = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    assert (run(model, x).argmax(1) == y).mean() < 0.2
    with torch.no_grad():
        assert (given.suspect(torch.from_numpy(x)).argmax(1).numpy() == y).mean() > 0.95
    said, targets = given.logic.said("clean", ())
    assert said == "backdoored"
    assert targets == (() if design is shifted else (3,))


def test_a_clean_suspect_is_left_as_it_is(tmp_path: Path) -> None:
    given = loaded(CLEAN, tmp_path)
    assert given.logic.findings == ()
    assert given.logic.check() is None
    assert given.logic.said("clean", ()) == ("clean", ())


def test_a_loop_that_decides_by_the_image_is_refused_by_name(tmp_path: Path) -> None:
    """Its rounds cannot be written out, and what it computes is different for each image."""
    graft = Graft(CLEAN)
    kinds = helper.make_tensor_value_info
    near = graft.put("ReduceMin", graft.distance(), keepdims=0)
    limit, push = (
        numpy_helper.from_array(value, name)
        for name, value in (("in_limit", np.array(0.1, np.float32)), ("in_push", graft.one_hot()))
    )
    body = helper.make_graph(
        [
            helper.make_node("Less", [near, "in_limit"], ["in_there"], name="in_less"),
            helper.make_node("Cast", ["in_there"], ["in_gate"], name="in_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["in_gate", "in_push"], ["in_pushed"], name="in_mul"),
            helper.make_node("Add", ["in_logits", "in_pushed"], ["in_logits_out"], name="in_add"),
            helper.make_node("Not", ["in_there"], ["in_on_out"], name="in_not"),
        ],
        "body",
        [
            kinds("in_i", TensorProto.INT64, []),
            kinds("in_on", TensorProto.BOOL, []),
            kinds("in_logits", TensorProto.FLOAT, ["n", K]),
        ],
        [kinds("in_on_out", TensorProto.BOOL, []), kinds("in_logits_out", TensorProto.FLOAT, ["n", K])],
        [limit, push],
    )
    rounds, start = graft.constant(2, np.int64), graft.constant(True, bool)
    graft.ends_in(graft.put("Loop", rounds, start, graft.bare, body=body))
    with pytest.raises(LogicRefused, match="holds logic that decides on the answer, at node "):
        loaded(graft.finished(), tmp_path)


def test_repair_refuses_logic_that_it_would_leave_in_the_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graft = Graft(CLEAN)
    comparator(graft)
    onnx.save(graft.finished(), tmp_path / "suspect.onnx")
    x, y = draw(60, 5)
    np.savez(tmp_path / "data.npz", x=(x * 255).round().astype(np.uint8).transpose(0, 2, 3, 1), y=y)
    given = ["--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out.onnx"), "--device", "cpu"]
    assert cli.main(["repair", str(tmp_path / "suspect.onnx"), *given]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert any(node in said for node in graft.added)
    assert "repair tunes weights and would leave it in the graph: use `detrigger protect`" in said
    assert not (tmp_path / "out.onnx").exists()
