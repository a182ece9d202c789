"""The engine alone: batches of many requests, runs at the same time, what a graph must be."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from detrigger.models.errors import BadInput
from detrigger.service import engine
from detrigger.service.binding import Bound
from detrigger.service.engine import (
    OUTPUTS,
    PURIFIED,
    Model,
    batch_sizes,
    open_session,
    pin_caller,
    pinned_cores,
)
from tests.toys import classifier_model, protected_model, toy_image, toy_manifest

MANIFEST = toy_manifest("20260101T000000Z-00000000")
IMAGES = np.stack([toy_image(n % 3, triggered=n % 4 == 0, seed=n) for n in range(24)])


def test_runs_at_the_same_time_answer_like_one_after_the_other() -> None:
    model = Model(MANIFEST, protected_model(), device="cpu", threads=2, batch_size=8)
    model.warm(8)
    batches = [IMAGES[start : start + 3] for start in range(0, 24, 3)] * 20
    expected = [model.run([batch], True) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: model.run([batch], True), batches))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, rtol=1e-5)
        np.testing.assert_array_equal(one.flagged, other.flagged)
        assert one.purified is not None
        assert other.purified is not None
        np.testing.assert_allclose(one.purified, other.purified, atol=1e-6)


def test_only_what_takes_little_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(MANIFEST, protected_model(), device="cpu", threads=2, batch_size=8)
    unknown = model.quick
    model.warm(8)
    assert (unknown, model.quick) == (False, True)
    np.testing.assert_array_equal(model.run_here([IMAGES], False).index, model.run([IMAGES], False).index)
    monkeypatch.setattr(engine, "_QUICK", 0.0)
    model.warm(8)
    assert not model.quick


BURST = """
import os, time
import numpy as np
from detrigger.service import memory
from detrigger.service.engine import Model
from tests.toys import protected_model, toy_manifest

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

memory.return_large_blocks()
model = Model(toy_manifest("20260101T000000Z-00000000"), protected_model(), device="cpu", threads=1, batch_size=8)
many, one = (np.zeros((n, 8, 8, 3), np.uint8) for n in (60_000, 1))
model.run([one], False)
found = [resident()]
model.run([many], False)
found.append(resident())
time.sleep(1.1)
model.run([one], False)
found.append(resident())
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_what_a_burst_took_goes_back_when_it_is_over() -> None:
    """In a process of its own, as in this one other tests have set how memory goes back."""
    done = subprocess.run(
        [sys.executable, "-c", BURST], capture_output=True, text=True, check=True, timeout=120
    )
    before, grown, later = map(int, done.stdout.split())
    assert grown > before + 30  # megabytes
    assert later < before + 10


def test_bytes_and_floats_of_many_requests_are_one_batch() -> None:
    model = Model(MANIFEST, protected_model(), device="cpu", threads=1, batch_size=8)
    floats = IMAGES[4:6].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    mixed = model.run([IMAGES[:4], floats, IMAGES[6:8]], False)
    assert mixed.purified is None
    np.testing.assert_allclose(mixed.logits, model.run([IMAGES[:8]], False).logits, rtol=1e-5)
    np.testing.assert_array_equal(mixed.index, [n % 3 for n in range(8)])


def test_another_graph_is_refused() -> None:
    with pytest.raises(BadInput, match="lacks outputs"):
        Model(MANIFEST, classifier_model(), device="cpu", threads=1, batch_size=8)


def test_a_graph_that_does_not_fit_its_manifest_is_refused() -> None:
    graph = onnx.load_from_string(protected_model())
    extra = onnx.helper.make_node("Concat", ["logits_k", "logits_k"], ["logits"], axis=1)
    next(node for node in graph.graph.node if node.output[0] == "logits").output[0] = "logits_k"
    for node in graph.graph.node:
        node.input[:] = ["logits_k" if name == "logits" else name for name in node.input]
    graph.graph.node.append(extra)
    del graph.graph.output[0].type.tensor_type.shape.dim[:]
    model = Model(MANIFEST, graph.SerializeToString(), device="cpu", threads=1, batch_size=8)
    with pytest.raises(BadInput, match="answers shapes"):
        model.warm(8)


@pytest.mark.parametrize(
    ("own", "usable", "threads", "pinned"),
    [
        ({4, 7}, 2, 2, [4, 7]),
        ({4, 7}, 2, 1, []),  # fewer threads than cores: the scheduler knows better which
        ({0, 1, 2, 3}, 2, 2, []),  # a quota: neighbours use the same cores
        ({3}, 1, 1, []),
    ],
)
def test_only_a_service_that_has_its_cores_to_itself_pins_threads(
    own: set[int], usable: int, threads: int, pinned: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: own, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: asked.append(cores), raising=False)
    monkeypatch.setattr(engine, "usable_cores", lambda: usable)
    assert pinned_cores(threads) == pinned
    pin_caller(threads)
    assert asked == ([pinned[:1]] if pinned else [])


@pytest.mark.parametrize("size", batch_sizes(6))
def test_bound_buffers_answer_like_a_plain_run(size: int) -> None:
    session = open_session(protected_model(), "cpu", 1)
    outputs = [(name, (3,) if "logits" in name else ()) for name in OUTPUTS] + [(PURIFIED, (3, 8, 8))]
    bound = Bound(session, size, (3, 8, 8), outputs, device="cpu", replay=False)
    for start in (0, 6, 12):  # the second and third batch find the first one's buffers
        batch = np.ascontiguousarray(
            IMAGES[start : start + size].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        )
        expected = session.run([*OUTPUTS, PURIFIED], {"image": batch})
        for one, other in zip(expected, bound.run(batch, 4), strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(bound.run(batch, 3)) == 3
