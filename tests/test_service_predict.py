"""POST /predict over real HTTP, in its three forms, with everything that it refuses."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from detrigger.service.api.schemas import Predictions, ProblemBody
from detrigger.service.front import Heads
from detrigger.service.problem import TABLE
from detrigger.service.settings import Settings
from tests.live import Server, live_server
from tests.toys import TARGET, png, protected_model, toy_image

pytestmark = pytest.mark.process
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("predict")
    limits = {"DETRIGGER_MAX_BODY_BYTES": "200000", "DETRIGGER_MAX_PIXELS": "10000"}
    with live_server(folder, limits, admin=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        yield http


def predictions(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    body = Predictions.model_validate_json(response.content)
    assert body.request_id == response.headers["x-request-id"]
    return body.predictions


def problem(response: httpx.Response, code: str) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    ProblemBody.model_validate(body)
    assert body["code"] == code, body
    assert (response.status_code, body["title"]) == TABLE[code]
    assert body["status"] == response.status_code
    assert body["type"] == f"urn:detrigger:problem:{code.replace('_', '-')}"
    assert body["instance"] == f"urn:request:{response.headers['x-request-id']}"
    return body


def counters(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")
    }


def test_raw_multipart_and_json_agree(client: httpx.Client) -> None:
    images = [png(toy_image(label, triggered=label == 2, seed=label)) for label in (0, 1, 2)]
    single = [predictions(client.post("/predict", content=image, headers=PNG))[0] for image in images]
    parts = [("file", (f"{n}.png", image, "image/png")) for n, image in enumerate(images)]
    multipart = predictions(client.post("/predict", files=parts))
    encoded = [base64.b64encode(image).decode() for image in images]
    as_json = predictions(client.post("/predict", json={"images": encoded}))
    assert single == multipart == as_json
    assert [it.label for it in single] == ["red", "green", "blue"]
    assert [it.flagged for it in single] == [False, False, True]
    assert all(it.purified_png is None and len(it.top_k) == 1 for it in single)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_format(client: httpx.Client, image_format: str) -> None:
    image = png(toy_image(0), image_format)
    found = predictions(
        client.post("/predict", content=image, headers={"Content-Type": f"image/{image_format.lower()}"})
    )
    assert found[0].label == "red"


def test_answers_are_those_of_the_bare_graph(client: httpx.Client) -> None:
    images = [toy_image(n % 3, triggered=n % 2 == 0, seed=n) for n in range(32)]
    session = ort.InferenceSession(protected_model(), providers=["CPUExecutionProvider"])
    batch = (np.stack(images).transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    logits, score = session.run(["logits", "flag_score"], {"image": batch})
    parts = [("file", (f"{n}.png", png(image), "image/png")) for n, image in enumerate(images)]
    found = predictions(client.post("/predict", files=parts, params={"top_k": 3}))
    assert [it.index for it in found] == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose([it.flag_score for it in found], score, atol=1e-6)
    for prediction, row in zip(found, logits, strict=True):
        ranked = [it.index for it in prediction.top_k]
        assert ranked == (-row).argsort(kind="stable").tolist()
        assert prediction.top_k[0].model_dump() == {
            "index": prediction.index, "label": prediction.label, "score": prediction.score
        }  # fmt: skip
        assert abs(sum(it.score for it in prediction.top_k) - 1) < 1e-5


def test_purified_images_on_request(client: httpx.Client) -> None:
    image = toy_image(0, triggered=True)
    found = predictions(client.post("/predict?purified=true", content=png(image), headers=PNG))[0]
    with Image.open(io.BytesIO(base64.b64decode(found.purified_png))) as picture:
        purified = np.asarray(picture)
    np.testing.assert_array_equal(purified[2:, 2:], image[2:, 2:])
    assert (purified[:2, :2] < 100).all()


def test_triggered_images_move_the_flag_counter_and_clean_ones_do_not(client: httpx.Client) -> None:
    flagged = 'detrigger_flagged_images_total{detector="log_confidence_drop"}'
    images = 'detrigger_images_total{outcome="ok"}'
    changed = "detrigger_label_changes_total"
    before = counters(client)
    for seed in range(5):
        client.post("/predict", content=png(toy_image(0, seed=seed)), headers=PNG)
    between = counters(client)
    assert (between[flagged], between[changed]) == (before[flagged], before[changed])
    for seed in range(5):
        client.post("/predict", content=png(toy_image(0, triggered=True, seed=seed)), headers=PNG)
    after = counters(client)
    assert after[flagged] == before[flagged] + 5
    assert after[changed] == before[changed] + 5
    assert after[images] == before[images] + 10
    assert TARGET == 1


REFUSED_BODIES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("image/png", b"", "empty_body"),
    "text": ("text/plain", b"hello", "unsupported_media_type"),
    "gif": ("image/gif", b"GIF89a", "unsupported_media_type"),
    "gif as png": ("image/png", b"GIF89a", "image_format_refused"),
    "broken": ("image/png", png(toy_image(0))[:60], "image_undecodable"),
    "large": ("image/png", png(np.zeros((101, 100, 3), np.uint8)), "image_too_large"),
    "no json": ("application/json", b"{", "malformed_body"),
    "deep json": ("application/json", b"[" * 100_000, "malformed_body"),
    "other json": ("application/json", b'{"image": "AAAA"}', "malformed_body"),
    "extra member": ("application/json", b'{"images": ["AAAA"], "x": 1}', "malformed_body"),
    "number": ("application/json", b'{"images": [1]}', "malformed_body"),
    "no base64": ("application/json", b'{"images": ["@@@@"]}', "malformed_body"),
    "url": ("application/json", b'{"images": ["https://example.org/a.png"]}', "url_not_accepted"),
    "data url": ("application/json", b'{"images": ["data:image/png,AAAA"]}', "malformed_body"),
    "empty list": ("application/json", b'{"images": []}', "empty_body"),
    "33 images": (
        "application/json",
        b'{"images": [' + b",".join([b'"AAAA"'] * 33) + b"]}",
        "too_many_images",
    ),
    "no boundary": ("multipart/form-data", b"--x\r\n", "malformed_body"),
    "no parts": ("multipart/form-data; boundary=x", b"--x--\r\n", "empty_body"),
    "cut multipart": ("multipart/form-data; boundary=x", b"--x\r\nContent-Disp", "malformed_body"),
    "other name": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--x--\r\n',
        "empty_body",
    ),
}


@pytest.mark.parametrize("name", REFUSED_BODIES)
def test_refused_bodies(client: httpx.Client, name: str) -> None:
    content_type, body, code = REFUSED_BODIES[name]
    problem(client.post("/predict", content=body, headers={"Content-Type": content_type}), code)


@pytest.mark.parametrize("content_type", ["", "image/jpg", "application/octet-stream"])
def test_the_bytes_say_what_they_are(client: httpx.Client, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    image = png(toy_image(2), "JPEG")
    assert predictions(client.post("/predict", content=image, headers=headers))[0].label == "blue"


def test_forms_and_base64_as_clients_write_them(client: httpx.Client) -> None:
    image = png(toy_image(1))
    parts = {"image": ("a.png", image), "files[]": ("b.png", image)}
    found = predictions(client.post("/predict", files=parts, data={"comment": "hello"}))
    assert [it.label for it in found] == ["green", "green"]
    texts = [base64.encodebytes(image).decode(), f"data:image/png;base64,{base64.b64encode(image).decode()}"]
    assert predictions(client.post("/predict", json={"images": texts})) == found


def test_compressed_bodies_are_refused(client: httpx.Client) -> None:
    headers = PNG | {"Content-Encoding": "gzip"}
    problem(client.post("/predict", content=b"x", headers=headers), "content_encoding_refused")


@pytest.mark.parametrize("query", ["top_k=0", "top_k=11", "top_k=x", "purified=maybe"])
def test_parameters_out_of_range(client: httpx.Client, query: str) -> None:
    body = problem(
        client.post(f"/predict?{query}", content=png(toy_image(0)), headers=PNG), "validation_failed"
    )
    assert body["errors"][0]["field"].startswith("query.")


def test_a_bad_image_is_named_and_none_is_classified(client: httpx.Client) -> None:
    good = base64.b64encode(png(toy_image(0))).decode()
    before = counters(client)
    response = client.post("/predict", json={"images": [good, "AAAA", good, "AAAA"]})
    body = problem(response, "image_undecodable")
    assert [item["index"] for item in body["errors"]] == [1, 3]
    after = counters(client)
    assert after['detrigger_images_total{outcome="ok"}'] == before['detrigger_images_total{outcome="ok"}']
    rejected = 'detrigger_images_total{outcome="rejected"}'
    assert after[rejected] == before[rejected] + 4


def test_bodies_over_the_limit(client: httpx.Client) -> None:
    problem(client.post("/predict", content=bytes(200_001), headers=PNG), "body_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(5000):
            yield bytes(1000)

    with httpx.Client(base_url=client.base_url) as other:  # its connection is closed by the refusal
        try:
            response = other.post("/predict", content=chunks(), headers=PNG)
        except httpx.TransportError:
            return  # closed while we were still sending
        problem(response, "body_too_large")
        assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nope", "not_found"),
        ("GET", "/predict", "method_not_allowed"),
        ("DELETE", "/version", "method_not_allowed"),
        ("GET", "/admin/jobs", "not_found"),
        ("POST", "/admin/retrain", "not_found"),
        ("GET", "/admin", "not_found"),
    ],
)
def test_other_paths_and_methods_are_problems(
    client: httpx.Client, method: str, path: str, code: str
) -> None:
    problem(client.request(method, path), code)


def test_request_ids(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "abc-1_Z"}).headers["x-request-id"] == "abc-1_Z"
    for bad in ("a b", "x" * 65, "a\tb"):
        assert client.get("/livez", headers={"X-Request-ID": bad}).headers["x-request-id"] != bad


def test_health_version_and_docs(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "reason": ""}
    version = client.get("/version").json()
    assert version["engine"]["provider"] == "CPUExecutionProvider"
    assert version["model"]["name"] == "toy"
    assert version["policy"] == "purify"
    assert client.get("/docs").status_code == 200
    assert "/predict" in client.get("/openapi.json").json()["paths"]


def test_server_timing(client: httpx.Client) -> None:
    response = client.post("/predict", content=png(toy_image(0)), headers=PNG)
    assert {part.split(";")[0].strip() for part in response.headers["server-timing"].split(",")} == {
        "decode",
        "defend",
    }


def test_the_server_never_loads_torch(server: Server) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert "libonnxruntime" in maps.read_text() or "onnxruntime" in maps.read_text()
    assert "torch" not in maps.read_text()


def test_grey_models(tmp_path: Path) -> None:
    from tests.toys import publish_toy

    publish_toy(tmp_path / "store", channels=1)
    with live_server(tmp_path, admin=False) as running:
        found = predictions(
            httpx.post(
                f"{running.url}/predict?purified=1", content=png(toy_image(1, channels=1)), headers=PNG
            )
        )
        assert found[0].label == "light"
        with Image.open(io.BytesIO(base64.b64decode(found[0].purified_png))) as picture:
            assert picture.mode == "L"


@pytest.mark.parametrize("policy", ["reject", "shadow"])
def test_policies(tmp_path: Path, policy: str) -> None:
    with live_server(tmp_path, {"DETRIGGER_POLICY": policy}, admin=False) as running:
        images = {
            "images": [base64.b64encode(png(toy_image(0, triggered=odd))).decode() for odd in (False, True)]
        }
        clean, triggered = predictions(httpx.post(f"{running.url}/predict?purified=true", json=images))
        assert (clean.label, clean.flagged, triggered.flagged) == ("red", False, True)
        if policy == "reject":
            assert (triggered.index, triggered.label, triggered.score, triggered.top_k) == (
                None,
                None,
                None,
                [],
            )
            assert (triggered.flag_score, triggered.purified_png) == (None, None)
            assert None not in (clean.flag_score, clean.purified_png)
        else:
            assert triggered.index == TARGET
        assert httpx.get(f"{running.url}/version").json()["policy"] == policy
        assert f'policy="{policy}"' in httpx.get(f"{running.url}/metrics").text


def test_detail_can_be_withheld(tmp_path: Path) -> None:
    with live_server(tmp_path, {"DETRIGGER_RESPONSE_DETAIL": "label"}, admin=False) as running:
        response = httpx.post(f"{running.url}/predict?top_k=2", content=png(toy_image(0)), headers=PNG)
        found = predictions(response)[0]
        assert (found.label, found.score, found.flag_score) == ("red", None, None)
        assert [it.score for it in found.top_k] == [None, None]


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/version", "/metrics", "/docs", "/openapi.json", "/v2"]
)
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert client.get("/livez").status_code == 200  # the connection is still good


def test_head_of_what_is_only_posted_to_is_refused(client: httpx.Client) -> None:
    response = client.head("/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert client.head("/nope").status_code == 404
    assert client.head("/admin/jobs").status_code == 404
    assert client.delete("/version").headers["allow"] == "GET, HEAD"


def test_head_is_counted_by_its_route(client: httpx.Client) -> None:
    name = 'detrigger_requests_total{method="HEAD",route="/livez",status="200"}'
    before = counters(client).get(name, 0)
    client.head("/livez")
    assert counters(client)[name] == before + 1


def test_wrong_doors_lead_on(client: httpx.Client) -> None:
    found = predictions(client.post("/predict/?top_k=2", content=png(toy_image(0)), headers=PNG))
    assert len(found[0].top_k) == 2
    health = client.get("/health")
    assert health.json() == client.get("/readyz").json()
    assert "/readyz" in health.headers["link"]
    root = client.get("/")
    assert (root.status_code, root.headers["location"]) == (307, "/docs")
    assert root.json()["classify"].startswith("POST /predict")
    assert client.get("/", follow_redirects=True).status_code == 200


PAGE, PREFLIGHT = "https://shop.example", {"Access-Control-Request-Method": "POST"}


def test_pages_of_other_origins_may_not_read_answers_unless_named(client: httpx.Client) -> None:
    response = client.get("/version", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in response.headers
    problem(client.options("/predict", headers={"Origin": PAGE} | PREFLIGHT), "method_not_allowed")


def test_named_pages_may_read_answers_but_not_administer(tmp_path: Path) -> None:
    origins = {"DETRIGGER_CORS_ORIGINS": f"http://localhost:3000, {PAGE}"}
    asked = PREFLIGHT | {"Access-Control-Request-Headers": "content-type"}
    with live_server(tmp_path, origins) as running, httpx.Client(base_url=running.url) as client:
        preflight = client.options("/predict", headers={"Origin": PAGE} | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        for image in (png(toy_image(0)), b"no image"):
            answer = client.post("/predict", content=image, headers=PNG | {"Origin": PAGE})
            assert answer.headers["access-control-allow-origin"] == PAGE
        for path, origin in (
            ("/admin/jobs", PAGE),
            ("/predict", "https://other.example"),
            ("/predict", "null"),
        ):
            other = client.options(path, headers={"Origin": origin} | asked)
            assert other.status_code >= 400
            assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origins", ["shop.example", "https://shop.example/page", "https://a https://b"])
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        Settings(store=Path("x"), cors_origins=origins)


def test_head_of_an_endless_stream_ends() -> None:
    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b"drop"
            await asyncio.sleep(0.01)

    app = Heads(Starlette(routes=[Route("/stream", lambda _: StreamingResponse(drops()), methods=["GET"])]))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as http:
            return await asyncio.wait_for(http.head("/stream"), 30)

    assert asyncio.run(ask()).content == b""


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_told_which_one_to_use(client: httpx.Client, method: str) -> None:
    response = client.request(method, "/predict")
    problem(response, "method_not_allowed")
    assert response.headers["allow"] == "POST"
