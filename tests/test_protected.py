"""The protected graph says what its equations say, with a purifier that is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detrigger.models.errors import BadInput
from detrigger.models.nodes import prefixed
from detrigger.models.preprocess import Preprocess
from detrigger.models.protected import (
    CONFIDENCE,
    GROUNDS,
    OPSET,
    SAY,
    SURE,
    GraphSettings,
    build_protected,
    default_opset,
    raise_opset,
    set_threshold,
    strip_traces,
    trusted,
)
from detrigger.models.suspect import session
from detrigger.offline.types import Hits, Pixels
from tests.test_suspect import CLASSES, SIDE, images, network

OUTPUTS = ["logits", "logits_raw", "purified", "flag_score"]


def purifier() -> onnx.ModelProto:
    """Half as bright: image (N, 3, 12, 12) to purified."""
    shape: list[str | int | None] = ["batch", 3, SIDE, SIDE]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "half"], ["purified"])],
        "purifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("purified", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def scaled(model: onnx.ModelProto, by: float) -> onnx.ModelProto:
    """The model with other weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((value * by).astype(value.dtype), tensor.name))
    return copy


def log_softmax(logits: Pixels) -> Pixels:
    shifted = logits - logits.max(1, keepdims=True)
    found: Pixels = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def answer(
    model: onnx.ModelProto, x: Pixels, layout: str, last: str, dtype: type[np.floating] = np.float32
) -> Pixels:
    """The classifier alone, on images as the protected graph should give them to it."""
    given = x.transpose(0, 2, 3, 1) if layout == "NHWC" else x
    said = session(model).run(None, {"input": given.astype(dtype)})[0].astype(np.float32)
    found: Pixels = np.log(said.clip(1e-12)) if last else said
    return found


@pytest.mark.parametrize("penalty", [(0.0, 3.0, 0.0, 0.5), (3.0, 0.0, 0.0, 0.5), (0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize(
    ("layout", "last", "half", "bgr"),
    [("NCHW", "", False, False), ("NHWC", "Softmax", False, True), ("NCHW", "", True, False)],
)
def test_every_output_is_what_the_equations_say(
    layout: Literal["NCHW", "NHWC"], last: str, half: bool, bgr: bool, penalty: tuple[float, ...]
) -> None:
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    suspect = network(layout=layout, last=last, dtype=dtype)
    repaired = scaled(suspect, 0.8)
    mean, std = (0.4, 0.3, 0.2), (0.25, 0.5, 1.0)
    pre = Preprocess(
        size=(SIDE, SIDE),
        mean=mean,
        std=std,
        channels="BGR" if bgr else "RGB",
        layout=layout,
        classes=tuple("abcd"),
    )
    settings = GraphSettings(preprocess=pre, softmax=bool(last), penalty=penalty, threshold=0.25)
    protected = build_protected(purifier(), suspect, repaired, settings)
    x = images()
    logits, raw, purified, score = session(protected).run(OUTPUTS, {"image": x})
    np.testing.assert_allclose(purified, x * 0.5, atol=1e-6)

    def normalised(x: Pixels) -> Pixels:
        x = x[:, ::-1] if bgr else x
        found: Pixels = (x - np.array(mean).reshape(1, 3, 1, 1)) / np.array(std).reshape(1, 3, 1, 1)
        return found.astype(np.float32)

    kind = np.float16 if half else np.float32
    near = 2e-2 if half else 1e-4
    said = answer(suspect, normalised(x), layout, last, kind)
    own = answer(repaired, normalised(x * np.float32(0.5)), layout, last, kind)
    np.testing.assert_allclose(raw, said, atol=near)
    before, after = log_softmax(said), log_softmax(own)
    label, rows = said.argmax(1), np.arange(len(x))
    c = np.array(penalty, np.float32)
    sure = np.exp(before) ** CONFIDENCE
    lost = (before - after).clip(0)
    doubt = (1 - sure[rows, label]) * ((c[label] == 0) & c.any())
    expected = own - c * sure * lost + doubt[:, None] * (before - after).clip(-SAY, SAY)
    np.testing.assert_allclose(logits, expected, atol=4 * near)
    s = (lost * np.exp(before) ** SURE)[rows, label]
    np.testing.assert_allclose(score, s / (1 + s), atol=near)
    assert score.shape == (len(x),)


def test_the_graph_says_what_it_is() -> None:
    model = network()
    pre = Preprocess.plain(SIDE, SIDE, 3, ("a", "b", "é", "d"))
    settings = GraphSettings(preprocess=pre, softmax=False, penalty=(0.0,) * CLASSES, threshold=0.25)
    protected = build_protected(purifier(), model, model, settings)
    noted = {p.key: p.value for p in protected.metadata_props}
    assert noted["detrigger.flag_threshold"] == "0.25"
    assert json.loads(noted["detrigger.classes"]) == ["a", "b", "é", "d"]
    assert noted["detrigger.version_schema"] == "1"
    assert [o.name for o in protected.graph.output] == OUTPUTS
    assert [d.dim_value for d in protected.graph.input[0].type.tensor_type.shape.dim][1:] == [3, SIDE, SIDE]
    assert protected.ir_version == 9
    newer = onnx.ModelProto.FromString(model.SerializeToString())
    newer.ir_version = 12  # above what an older ONNX Runtime reads
    assert build_protected(purifier(), newer, model, settings).ir_version == 10
    # Images that need no normalisation get none.
    assert not any("_centred" in node.name or "_scaled" in node.name for node in protected.graph.node)
    one = session(protected).run(["logits"], {"image": images()[:1]})[0]
    np.testing.assert_allclose(one, session(protected).run(["logits"], {"image": images()})[0][:1], atol=1e-4)


SUSPECTED = (1, 3)


def both(
    layout: Literal["NCHW", "NHWC"] = "NCHW", last: str = "", half: bool = False
) -> dict[bool, onnx.ModelProto]:
    """The graph that purifies every image and the one that purifies the asked ones only, by ``only``."""
    suspect = network(layout=layout, last=last, dtype=TensorProto.FLOAT16 if half else TensorProto.FLOAT)
    mean, std = (0.4, 0.3, 0.2), (0.25, 0.5, 1.0)
    pre = Preprocess(size=(SIDE, SIDE), mean=mean, std=std, layout=layout, classes=tuple("abcd"))
    usual = GraphSettings(
        preprocess=pre,
        softmax=bool(last),
        penalty=(0.0, 3.0, 0.0, 3.0),
        threshold=0.25,
        suspected=SUSPECTED,
    )
    return {
        only: build_protected(purifier(), suspect, scaled(suspect, 0.8), replace(usual, only=only))
        for only in (False, True)
    }


def some_of_each(graph: onnx.ModelProto) -> tuple[Pixels, Hits]:
    """Images (16, 3, 12, 12) of one colour each, some with a suspected label, and which those are."""
    colours = np.random.default_rng(0).random((16, 3, 1, 1), np.float32)
    x = np.broadcast_to(colours, (16, 3, SIDE, SIDE)).copy()
    asked: Hits = np.isin(session(graph).run(["logits_raw"], {"image": x})[0].argmax(1), SUSPECTED)
    assert 2 <= asked.sum() <= len(x) - 2
    return x, asked


def test_a_second_opinion_answers_what_is_flagged_and_nothing_else() -> None:
    suspect = network()
    pre = Preprocess.plain(SIDE, SIDE, 3, tuple("abcd"))
    usual = GraphSettings(preprocess=pre, softmax=False, penalty=(0.0,) * CLASSES, threshold=0.0)
    opinion = scaled(suspect, -0.5)
    always = build_protected(purifier(), suspect, opinion, usual)
    graph = build_protected(purifier(), suspect, opinion, replace(usual, if_flagged=True))
    x = np.random.default_rng(0).random((16, 3, SIDE, SIDE), np.float32)
    answers, _, purified, score = session(always).run(OUTPUTS, {"image": x})
    threshold = float(np.median(score))
    set_threshold(graph, threshold)
    logits, raw, *same = session(graph).run(OUTPUTS, {"image": x})
    flagged = score > np.float32(threshold)
    assert 0 < flagged.sum() < len(x)
    np.testing.assert_allclose(logits, np.where(flagged[:, None], answers, raw), atol=1e-6)
    np.testing.assert_array_equal(same[0], purified)
    np.testing.assert_array_equal(same[1], score)
    noted = {p.key: p.value for p in graph.metadata_props}
    assert float(noted["detrigger.flag_threshold"]) == threshold


def test_a_label_that_is_not_suspected_has_to_lose_more_for_the_same_score() -> None:
    split = both()[False]
    plain = onnx.ModelProto()
    plain.CopyFrom(split)
    plain.graph.output.append(helper.make_tensor_value_info("grounds", TensorProto.FLOAT, None))
    x, asked = some_of_each(split)
    score, grounds = session(plain).run(["flag_score", "grounds"], {"image": x})
    s = np.where(asked, grounds[:, 0], grounds[:, 0] / GROUNDS)
    np.testing.assert_allclose(score, s / (1 + s), atol=1e-5)
    assert (s[~asked] > 0).any()


@pytest.mark.parametrize(
    ("layout", "last", "half"), [("NCHW", "", False), ("NHWC", "Softmax", False), ("NCHW", "", True)]
)
def test_only_images_with_a_suspected_label_are_purified(
    layout: Literal["NCHW", "NHWC"], last: str, half: bool
) -> None:
    graphs = both(layout, last, half)
    x, asked = some_of_each(graphs[True])
    near = 2e-2 if half else 1e-4
    runs = {only: session(graph) for only, graph in graphs.items()}
    every, some = (runs[only].run(OUTPUTS, {"image": x}) for only in (False, True))
    for mine, theirs in zip(some, every, strict=True):
        np.testing.assert_allclose(mine[asked], theirs[asked], atol=near)
    logits, raw, purified, score = some
    assert (logits[~asked] == raw[~asked]).all()
    assert (purified[~asked] == x[~asked]).all()
    assert (score[~asked] == 0).all()
    # Nobody, everybody, and one by one.
    for chosen in (x[~asked], x[asked], *np.split(x, len(x))):
        here = [i for i in range(len(x)) if any((x[i] == one).all() for one in chosen)]
        for mine, theirs in zip(runs[True].run(OUTPUTS, {"image": chosen}), some, strict=True):
            np.testing.assert_allclose(mine, theirs[here], atol=near)


def test_labels_without_a_penalty_are_trusted_where_others_have_one() -> None:
    assert trusted((0.0, 2.0, 0.0)).tolist() == [1.0, 0.0, 1.0]
    assert trusted((0.0, 0.0)).tolist() == [0.0, 0.0]
    assert trusted((1.0, 1.0)).tolist() == [0.0, 0.0]


def test_a_newer_opset_stays_and_one_that_nobody_converts_is_refused() -> None:
    model = network()
    for version in (OPSET + 1, OPSET):
        model.opset_import[0].version = version
        assert raise_opset(model, OPSET) is model
    model.opset_import[0].version = 13
    assert default_opset(raise_opset(model, OPSET)) == OPSET
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BadInput, match=f"opset 13 and cannot be converted to {OPSET}"):
        raise_opset(model, OPSET)
    del model.opset_import[:]
    assert default_opset(model) == 1


def looping() -> onnx.ModelProto:
    """A model with a body: returns its input where that is positive, else nothing of it."""
    body = [
        helper.make_graph(
            [helper.make_node("Identity", ["x"], [name], name=f"node_{name}", doc_string="/home/somebody")],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])],
        )
        for name in ("then", "other")
    ]
    node = helper.make_node("If", ["yes"], ["y"], then_branch=body[0], else_branch=body[1])
    graph = helper.make_graph(
        [node],
        "looping",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = "/home/somebody"
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, doc_string="/home/somebody"
    )


def test_bodies_get_the_prefix_as_well_and_lose_their_traces() -> None:
    model = looping()
    other = prefixed(model, "p/")
    assert other.graph.input[0].name == "p/x"
    x = np.array([1, 2], np.float32)
    assert session(other).run(["p/y"], {"p/x": x})[0].tolist() == [1, 2]
    assert model.graph.input[0].name == "x"
    assert b"/home/somebody" in other.SerializeToString()
    assert b"/home/somebody" not in strip_traces(other).SerializeToString()
    plain = prefixed(network(), "p/")
    assert {t.name for t in plain.graph.initializer} == {"p/w1", "p/w2", "p/w3"}
