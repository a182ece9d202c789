"""The Open Inference Protocol: Triton's own client, the codec by itself, and the errors."""

import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detrigger.service import oip
from detrigger.service.problem import Problem
from tests.live import Server, live_server
from tests.toys import png, protected_model, toy_image

SHAPE = (3, 8, 8)
ALL = tuple(oip.DATATYPES)
HEADER = "Inference-Header-Content-Length"


def batch(count: int = 3) -> NDArray[np.float32]:
    images = np.stack([toy_image(2 * (n % 2), triggered=n % 2 == 1, seed=n) for n in range(count)])
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) / np.float32(255), np.float32)


def expected(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    session = ort.InferenceSession(protected_model(), providers=["CPUExecutionProvider"])
    names = ["logits", "logits_raw", "purified", "flag_score"]
    return dict(zip(names, session.run(names, {"image": pixels}), strict=True))


def request_of(pixels: NDArray[np.float32], **members: Any) -> dict[str, Any]:
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist(),
    }
    return {"inputs": [tensor], **members}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with live_server(tmp_path_factory.mktemp("v2"), admin=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


@pytest.mark.process
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_own_client(server: Server, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    metadata = client.get_model_metadata("toy")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert [output["name"] for output in metadata["outputs"]] == list(ALL)
    assert client.is_model_ready("toy", metadata["versions"][0])
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]

    pixels = batch()
    tensor = triton.InferInput("image", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ALL]
    truth = expected(pixels)
    for outputs in (wanted, None):
        result = client.infer("toy", [tensor], outputs=outputs, request_id="abc")
        for name, values in truth.items():
            np.testing.assert_allclose(result.as_numpy(name), values, atol=1e-5)
        assert result.as_numpy("index").tolist() == truth["logits"].argmax(axis=1).tolist()
        assert result.as_numpy("flagged").tolist() == [False, True, False]
        assert result.get_response()["id"] == "abc"
    with pytest.raises(
        triton.InferenceServerException if hasattr(triton, "InferenceServerException") else Exception
    ):
        client.infer("other", [tensor])


@pytest.mark.process
def test_json_agrees_with_predict(client: httpx.Client) -> None:
    for label in range(3):
        image = toy_image(label, triggered=label == 0)
        mine = client.post("/predict", content=png(image), headers={"Content-Type": "image/png"}).json()
        pixels = (image.transpose(2, 0, 1)[None] / np.float32(255)).astype(np.float32)
        outputs = [{"name": "index"}, {"name": "flagged"}, {"name": "flag_score"}]
        body = client.post("/v2/models/toy/infer", json=request_of(pixels, outputs=outputs)).json()
        index, flagged, score = (output["data"][0] for output in body["outputs"])
        prediction = mine["predictions"][0]
        assert (index, flagged) == (prediction["index"], prediction["flagged"])
        assert abs(score - prediction["flag_score"]) < 1e-5
        assert body["model_version"] == mine["model"]["version"]


@pytest.mark.process
def test_a_raw_tensor_is_one_image(client: httpx.Client) -> None:
    pixels = batch(1)
    headers = {HEADER: "0", "Content-Type": "application/octet-stream"}
    response = client.post("/v2/models/toy/infer", content=pixels.tobytes(), headers=headers)
    head = json.loads(response.content[: int(response.headers[HEADER])])
    assert [output["name"] for output in head["outputs"]] == list(ALL)
    logits = np.frombuffer(response.content[int(response.headers[HEADER]) :], "<f4", 3)
    np.testing.assert_allclose(logits, expected(pixels)["logits"][0], atol=1e-5)


REFUSED: list[tuple[str, Any, int]] = [
    ("toy", {}, 400),
    ("toy", {"inputs": []}, 400),
    ("toy", [], 400),
    ("toy", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}]}, 400),
    ("toy", {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [0]}]}, 400),
    ("toy", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 9], "data": [0]}]}, 400),
    ("toy", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [0, 3, 8, 8], "data": []}]}, 400),
    ("toy", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8], "data": []}]}, 400),
    ("toy", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": ["a"]}]}, 400),
    (
        "toy",
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [[1], [1, 2]]}]},
        400,
    ),
    (
        "toy",
        {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [2.0] * 192}]},
        400,
    ),
    ("toy", {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8]}]}, 400),
    ("toy", request_of(batch(1), outputs=[{"name": "secret"}]), 400),
    ("toy", request_of(batch(1), outputs=[{"name": "logits", "parameters": {"classification": 1}}]), 400),
    ("toy", request_of(batch(33)), 422),
    ("other", request_of(batch(1)), 404),
    ("toy/versions/1", request_of(batch(1)), 404),
]


@pytest.mark.process
@pytest.mark.parametrize(("model", "body", "status"), REFUSED)
def test_refusals(client: httpx.Client, model: str, body: Any, status: int) -> None:
    response = client.post(f"/v2/models/{model}/infer", json=body)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]


@pytest.mark.process
@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/x", 404), ("DELETE", "/v2", 405)])
def test_other_paths_speak_the_protocol(client: httpx.Client, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert (response.status_code, list(response.json())) == (status, ["error"])


@pytest.mark.process
@pytest.mark.parametrize("length", ["-1", "x", "99999999999999", "1e3"])
def test_odd_header_lengths(client: httpx.Client, length: str) -> None:
    response = client.post("/v2/models/toy/infer", content=b"{}", headers={HEADER: length})
    assert response.status_code == 400


def test_more_numbers_than_images_can_have_are_not_parsed() -> None:
    body = json.dumps({"inputs": [{"name": "image", "data": [0] * 100_000}]}).encode()
    with pytest.raises(Problem, match="may hold 768 numbers at most"):
        oip.parse(body, None, SHAPE, ALL, 4)


@pytest.mark.process
def test_a_policy_cannot_be_got_around(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    with live_server(
        tmp_path_factory.mktemp("reject"), {"DETRIGGER_POLICY": "reject"}, admin=False
    ) as running:
        url = f"{running.url}/v2/models/toy"
        names = [output["name"] for output in httpx.get(url).json()["outputs"]]
        assert names == ["index", "flagged"]
        body = httpx.post(f"{url}/infer", json=request_of(batch(2))).json()
        assert body["outputs"][0]["data"] == [0, -1]
        assert (
            httpx.post(f"{url}/infer", json=request_of(batch(1), outputs=[{"name": "logits"}])).status_code
            == 400
        )


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    binary=st.booleans(),
    names=st.lists(st.sampled_from(ALL), unique=True),
    identity=st.text(max_size=20),
)
def test_the_codec_gives_back_what_was_sent(
    count: int, seed: int, binary: bool, names: list[str], identity: str
) -> None:
    pixels = np.random.default_rng(seed).random((count, *SHAPE), np.float32)
    tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": list(pixels.shape)}
    if binary:
        tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    else:
        tensor["data"] = pixels.tolist()
    outputs = [{"name": name, "parameters": {"binary_data": binary}} for name in names]
    head = json.dumps({"id": identity, "inputs": [tensor], "outputs": outputs}).encode()
    body = head + (pixels.tobytes() if binary else b"")
    found = oip.parse(body, len(head) if binary else None, SHAPE, ALL, 4)
    np.testing.assert_allclose(found.pixels, pixels, rtol=1e-6)
    assert found.id == identity
    assert [name for name, _ in found.outputs] == (names or list(ALL))


@settings(max_examples=300, deadline=None)
@given(
    head=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["inputs", "name", "shape", "data", "datatype", "parameters", "binary_data_size"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    tail=st.binary(max_size=50),
    length=st.none() | st.integers(0, 400),
)
def test_whatever_the_bytes_a_tensor_or_a_problem(head: bytes, tail: bytes, length: int | None) -> None:
    with contextlib.suppress(Problem):
        assert oip.parse(head + tail, length, SHAPE, ALL, 4).pixels.shape[1:] == SHAPE


def test_not_a_number_is_refused() -> None:
    body = struct.pack("<192f", *([float("nan")] * 192))
    with pytest.raises(Problem, match="must lie in"):
        oip.parse(body, 0, SHAPE, ALL, 4)
