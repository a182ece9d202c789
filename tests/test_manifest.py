"""The rules by which the manifest grows: what older and newer readers do with it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from detrigger.models.errors import StoreError
from detrigger.models.manifest import SCHEMA, Manifest, NewerSchema
from detrigger.models.store import VersionStore
from tests.live import live_server
from tests.toys import png, publish_toy, toy_image

# Written by Detrigger 0.1.0, before schema 2.
FIRST = (
    '{"schema_version":1,"id":"20260101T000000Z-0123abcd","name":"toy","created":"2026-11-29T12:46:37Z","parent":null,'
    '"profile":"fast","seed":0,"preprocess":{"size":[8,8],"mean":[0.0,0.0,0.0],"std":[1.0,1.0,1.0],"classes":["red",'
    '"green","blue"],"layout":"NCHW","exif_transpose":false,"resample":"bilinear"},"input_channels":3,"verdict":'
    '"backdoored","target_labels":[1],"flag":{"threshold":0.5,"alpha":0.02,"n_calibration":100,"score":'
    '"log_confidence_drop"},"gate":{"passed":true,"checks":[{"name":"ba_drop","value":0.0,"limit":0.015,"passed":true,'
    '"detail":"clean answers"}]},"metrics":{"ba_bare":1.0,"ba_protected":1.0},"files":{"classifier.onnx":{"sha256":'
    '"57516dfb51324a9b3cd369289617435b2c785cefd6868d14939b9adee118a435","size":832},"generator.onnx":{"sha256":'
    '"8a0e5f9fbae2df581f0ee319ee6be7d7c73447fc1436cf32aaa81c9e0410ca00","size":412},"protected.onnx":{"sha256":'
    '"460909743bd28f7271b5656a731e1bff890b7ac9181f96d0c35fbb9bb29b9f2c","size":2960},"purifier.onnx":{"sha256":'
    '"f54c195c999501d5ae1cae688c73c6a152584c6119a4d50aecac1c636b0ed41e","size":741},"report.html":{"sha256":'
    '"9efd001a7688650909b7e621a9730a3677847d4cd4cefe99d3af5dec0b411d2f","size":34},"report.json":{"sha256":'
    '"48e4ce397017e1389eff57a56b84e8a6f8d7eb58a94f893acaa49d55e7718176","size":22}},"suspect":{"sha256":'
    '"0000000000000000000000000000000000000000000000000000000000000000","file_name":"toy.onnx"},"data":{"sha256":'
    '"1111111111111111111111111111111111111111111111111111111111111111","n_images":12,"n_classes":3},"tools":{"onnx":'
    '"1.23.2"},"seconds":1.0,"digest":"9d20c490dd7dccb66bd62e74bf1881ad14443dbaaf14abb7346c02448f6f2df7"}'
)
NEW_IN_PREPROCESS = ("channels", "resize", "crop", "crop_rest", "padding", "alpha")


def sealed(content: dict[str, Any]) -> bytes:
    """The content with a digest that is right."""
    content = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"digest": hashlib.sha256(text.encode()).hexdigest()}, indent=2).encode()


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> VersionStore:
    """The toy store with its manifest changed and sealed again."""
    version = publish_toy(root).id
    path = root / "versions" / version / "manifest.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.chmod(0o644)
    path.write_bytes(sealed(content))
    return VersionStore(root)


def as_first(content: dict[str, Any]) -> None:
    """What the first schema had."""
    content["schema_version"] = 1
    del content["data"]["labelled"]
    for key in NEW_IN_PREPROCESS:
        del content["preprocess"][key]


def test_a_manifest_of_the_first_schema_is_read_as_it_was_meant() -> None:
    found = Manifest.read(FIRST.encode())
    assert (found.schema_version, found.id) == (1, "20260101T000000Z-0123abcd")
    pre = found.preprocess
    assert (pre.order, pre.resize, pre.crop, pre.padding, pre.alpha) == ("RGB", None, False, None, "refuse")
    assert found.data.labelled
    with pytest.raises(ValueError, match="edited"):
        Manifest.read(FIRST.replace('"threshold":0.5', '"threshold":0.6').encode())


@pytest.mark.process
def test_a_store_of_the_first_schema_is_served(tmp_path: Path) -> None:
    rewrite(tmp_path / "store", as_first)
    with live_server(tmp_path, admin=False) as running:
        headers = {"Content-Type": "image/png"}
        answer = httpx.post(f"{running.url}/predict", content=png(toy_image(0)), headers=headers)
        assert answer.json()["predictions"][0]["label"] == "red"


def test_what_is_written_has_the_newest_schema_and_reads_back(tmp_path: Path) -> None:
    manifest = publish_toy(tmp_path / "store")
    assert manifest.schema_version == SCHEMA == 2
    assert VersionStore(tmp_path / "store").manifest(manifest.id) == manifest


def test_fields_that_are_not_known_are_ignored_but_sealed(tmp_path: Path) -> None:
    def later(content: dict[str, Any]) -> None:
        content["invented_later"] = {"a": [1, 2.5, None]}
        content["gate"]["checks"][0]["invented_later"] = True

    store = rewrite(tmp_path / "store", later)
    (manifest,) = store.versions()
    store.open_version(manifest.id)
    path = tmp_path / "store" / "versions" / manifest.id / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"2.5", b"2.6"))
    assert "edited" in store.damaged()[manifest.id]


def test_a_preprocessing_that_is_not_known_is_refused(tmp_path: Path) -> None:
    store = rewrite(tmp_path / "store", lambda content: content["preprocess"].update(blur=3))
    assert "blur" in next(iter(store.damaged().values()))


def test_a_newer_schema_is_refused_in_one_sentence(tmp_path: Path) -> None:
    store = rewrite(
        tmp_path / "store", lambda content: content.update(schema_version=SCHEMA + 1, verdict="unheard of")
    )
    version = store.current()
    assert version is not None
    with pytest.raises(StoreError, match=r"a newer Detrigger wrote it .*update this one") as caught:
        store.manifest(version)
    assert caught.value.code == "version_refused"
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema_version": 1}'])
def test_what_is_no_manifest_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - whatever the reason, but the one below
        Manifest.read(raw)
    assert not isinstance(caught.value, NewerSchema)
