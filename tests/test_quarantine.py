"""What the quarantine keeps, shares out, forgets and hands on; what the decision log says."""

import io
import json
import random
import re
import resource
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from detrigger.models.errors import BadInput
from detrigger.models.files import folder_name
from detrigger.service import pictures
from detrigger.service.engine import Model, Outputs, softmax
from detrigger.service.fair import FairQueue
from detrigger.service.kept import Kept
from detrigger.service.metrics import Metrics
from detrigger.service.quarantine import SAMPLE_SHARE, Quarantine
from detrigger.service.settings import Settings
from tests.disks import fill, small_disk
from tests.live import AUTH, TOKEN, Server, live_server
from tests.toys import CLASSES, SIDE, png, protected_model, toy_image, toy_manifest

VERSION = "20250131T120000Z-1a2b3c4d"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(toy_manifest(VERSION), protected_model(), device="cpu", threads=1, batch_size=4)


def images(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def answers(raw: int, count: int, *, flagged: bool = True) -> Outputs:
    """As if `count` images had been answered 0 in place of `raw`."""
    logits = np.tile(np.array([[4.0, 0, 0]], np.float32), (count, 1))
    logits_raw = np.full((count, 3), -4, np.float32)
    logits_raw[:, raw] = 4
    return Outputs(
        logits,
        logits_raw,
        np.full(count, 0.9 if flagged else 0.0, np.float32),
        None,
        softmax(logits),
        logits.argmax(axis=1),
        logits_raw.argmax(axis=1),
        np.full(count, flagged),
    )


def quarantine(root: Path, **settings: Any) -> Quarantine:
    given = {"quarantine_rate": 10_000, "quarantine_sample": 0.0} | settings
    return Quarantine(Settings(store=root, **given), Metrics("1"), root / "quarantine")


def feed(kept: Quarantine, model: Model, pixels: Any, raw: int = 1, *, flagged: bool = True) -> None:
    """Offer one image a request, as slowly as they are taken, so that none is dropped for haste."""
    for row in range(len(pixels)):
        kept.offer(model, pixels[row : row + 1], answers(raw, 1, flagged=flagged), f"r{row}")
        if row % 50 == 49:
            settle(kept)
    settle(kept)


def settle(kept: Quarantine) -> None:
    """Wait until nothing changes any more."""
    before, until = None, time.monotonic() + 20
    while (now := [(i.digest, i.seen) for i in kept.find()]) != before and time.monotonic() < until:
        before = now
        time.sleep(0.1)


def disk_bytes(root: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (root / "quarantine").rglob("*") if path.is_file())


def test_an_image_is_kept_once_with_all_that_is_known_of_it(tmp_path: Path, model: Model) -> None:
    kept = quarantine(tmp_path)
    kept.start()
    picture = images(1)
    feed(kept, model, np.concatenate([picture] * 5))
    kept.close()
    (item,) = kept.find()
    assert (item.label, item.raw_label, item.version, item.seen) == ("red", "green", VERSION, 5)
    assert (item.kind, item.request_id, item.review) == ("flagged", "r0", None)
    assert item.score == pytest.approx(0.9647, abs=0.01)
    assert (kept.picture(item.digest) == picture[0]).all()
    names = {path.name for path in (tmp_path / "quarantine" / item.day).iterdir()}
    assert names == {f"{item.digest}.png", f"{item.digest}.json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "quarantine" / item.day).iterdir())


def test_what_is_kept_survives_a_restart_and_damage_costs_one_image(tmp_path: Path, model: Model) -> None:
    kept = quarantine(tmp_path)
    kept.start()
    feed(kept, model, images(6))
    first, second, third, fourth, *_ = kept.find()
    kept.review(fourth.digest, "poisoned", "admin:ada", "a sticker")
    kept.close()
    day = tmp_path / "quarantine" / first.day
    (day / f"{first.digest}.png").unlink()
    (day / f"{second.digest}.json").write_text("{")
    (day / f"{third.digest}.png").write_bytes(png(toy_image(0)))  # another picture under its name
    again = quarantine(tmp_path)
    again.start()
    settle(again)
    assert {item.digest for item in again.find()} == {i.digest for i in kept.find()} - {
        first.digest,
        second.digest,
    }
    review = again.get(fourth.digest).review
    assert review is not None
    assert (review.verdict, review.by, review.note) == ("poisoned", "admin:ada", "a sticker")
    with pytest.raises(KeyError):
        again.picture(third.digest)
    again.close()
    assert not (day / f"{first.digest}.json").exists()
    assert not (day / f"{second.digest}.png").exists()


def test_two_services_do_not_share_a_folder(tmp_path: Path) -> None:
    kept = quarantine(tmp_path)
    with pytest.raises(BadInput, match="belongs to another service"):
        quarantine(tmp_path)
    kept.close()
    quarantine(tmp_path).close()


def test_one_label_cannot_push_the_others_out(tmp_path: Path, model: Model) -> None:
    kept = quarantine(tmp_path, quarantine_max_images=40)
    kept.start()
    feed(kept, model, images(10, seed=1), raw=2)
    feed(kept, model, images(200, seed=2), raw=1)
    labels = Counter(item.raw_index for item in kept.find())
    assert labels[2] == 10
    assert labels.total() == 36  # nine tenths
    kept.close()


def test_samples_of_unflagged_images_have_places_of_their_own(tmp_path: Path, model: Model) -> None:
    random.seed(1)
    kept = quarantine(tmp_path, quarantine_max_images=100, quarantine_sample=0.5)
    kept.start()
    feed(kept, model, images(150, seed=3), flagged=False)
    feed(kept, model, images(150, seed=4), raw=2)
    kinds = Counter(item.kind for item in kept.find())
    assert kinds == {"flagged": 90, "sample": SAMPLE_SHARE * 100}
    kept.close()


def test_caps_hold_at_every_moment(tmp_path: Path, model: Model) -> None:
    limit = 60 * 8192
    kept = quarantine(tmp_path, quarantine_max_images=1000, quarantine_max_bytes=limit)
    kept.start()
    for seed in range(6):
        feed(kept, model, images(30, seed=seed), raw=seed % 3)
        assert disk_bytes(tmp_path) <= limit
    assert len(kept.find()) == int(0.9 * 60)
    kept.close()


def test_reviewed_images_stay_until_they_are_too_old(tmp_path: Path, model: Model) -> None:
    kept = quarantine(tmp_path, quarantine_max_images=20)
    kept.start()
    feed(kept, model, images(18, seed=5))
    mine = [item.digest for item in kept.find()]
    for digest in mine:
        kept.review(digest, "clean", "admin")
    feed(kept, model, images(5, seed=6))
    assert {item.digest for item in kept.find()} == set(mine)
    kept.close()
    older = quarantine(tmp_path, quarantine_max_days=1e-9)
    older.start()
    settle(older)
    time.sleep(1.1)  # records carry whole seconds
    older.close()
    last = quarantine(tmp_path, quarantine_max_days=1e-9)
    last.start()
    settle(last)
    assert last.find() == []
    last.close()
    assert not list((tmp_path / "quarantine").rglob("*.png"))


def test_erasing_leaves_nothing(tmp_path: Path, model: Model) -> None:
    kept = quarantine(tmp_path)
    kept.start()
    feed(kept, model, images(4))
    one, *others = kept.find()
    assert kept.erase(lambda item: item.digest == one.digest) == 1
    assert one.digest not in " ".join(map(str, (tmp_path / "quarantine").rglob("*")))
    assert kept.erase(lambda item: item.day == others[0].day) == 3
    assert [path.name for path in (tmp_path / "quarantine").rglob("*")] == ["lock"]
    kept.close()


def test_the_export_is_a_folder_per_label(tmp_path: Path, model: Model) -> None:
    kept = quarantine(tmp_path)
    kept.start()
    feed(kept, model, images(3))
    bad, good, _ = kept.find()
    kept.review(bad.digest, "poisoned", "admin")
    kept.review(good.digest, "clean", "admin")
    assert kept.export(tmp_path / "out") == 2
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0  # as private as what it is made of
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert names == [f"clean/red/{good.digest}.png", f"poisoned/green/{bad.digest}.png"]
    with zipfile.ZipFile(io.BytesIO(b"".join(kept.archive()))) as archive:
        assert sorted(archive.namelist()) == names
        with Image.open(io.BytesIO(archive.read(names[1]))) as image:
            assert pictures.digest(np.asarray(image)) == bad.digest
    kept.close()


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("stop sign", "stop sign"),
        ("../x", "%2E.%2Fx"),
        ("..", "%2E."),
        ("50%", "50%25"),
        ("猫", "猫"),
        ("", "%"),
    ],
)
def test_class_names_stay_within_their_folder(label: str, name: str) -> None:
    assert folder_name(label) == name


def test_a_full_disk_costs_the_picture_and_is_told_once(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics("1")
    kept = Quarantine(Settings(store=tmp_path, quarantine_rate=10_000), metrics, tmp_path / "quarantine")
    kept.start()
    settle(kept)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # no file may grow beyond that, as on a full disk
    try:
        feed(kept, model, images(5))
        until, dropped = time.monotonic() + 20, 0.0
        while dropped < 5 and time.monotonic() < until:  # nothing is kept, so `settle` sees nothing happen
            time.sleep(0.05)
            dropped = (
                metrics.registry.get_sample_value("detrigger_quarantine_dropped_total", {"reason": "disk"})
                or 0.0
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert dropped == 5
    assert kept.find() == []
    assert caplog.text.count("the quarantine cannot be written") == 1
    assert not [path for path in (tmp_path / "quarantine").rglob("*") if path.suffix in (".png", ".json")]
    feed(kept, model, images(5))
    assert len(kept.find()) == 5
    kept.close()


@pytest.mark.process
def test_a_full_disk_costs_the_picture_and_never_the_answer(tmp_path: Path) -> None:
    """Over HTTP, on a file system that is really full; when there is room again, pictures are kept again."""
    with small_disk(tmp_path / "disk", 256) as disk:
        settings = {"DETRIGGER_QUARANTINE": str(disk / "kept"), "DETRIGGER_QUARANTINE_RATE": "1000"}
        with (
            live_server(tmp_path, settings) as running,
            httpx.Client(base_url=running.url, timeout=30) as client,
        ):

            def ask(seeds: range) -> None:
                for seed in seeds:
                    body = png(toy_image(0, triggered=True, seed=seed))
                    answer = client.post("/predict", content=body, headers={"Content-Type": "image/png"})
                    assert answer.status_code == 200
                    assert answer.json()["predictions"][0]["flagged"]

            def dropped() -> float:
                found = re.search(
                    r'quarantine_dropped_total{reason="disk"} ([0-9.]+)', client.get("/metrics").text
                )
                return float(found[1]) if found else 0.0

            client.get("/admin/flagged", headers=AUTH)  # it has looked at its folder
            filler = fill(disk)
            ask(range(20))
            until = time.monotonic() + 30
            while dropped() < 20 and time.monotonic() < until:
                time.sleep(0.05)
            assert dropped() == 20
            assert running.log().count("the quarantine cannot be written") == 1
            filler.unlink()
            ask(range(100, 103))
            while time.monotonic() < until and client.get("/admin/flagged", headers=AUTH).json()["total"] < 3:
                time.sleep(0.05)
            assert client.get("/admin/flagged", headers=AUTH).json()["total"] == 3


def test_the_queue_gives_everybody_places_and_turns() -> None:
    queue: FairQueue[str] = FairQueue(6)
    dropped = sum(queue.put("loud", f"l{n}") for n in range(10))
    dropped += sum(queue.put("quiet", f"q{n}") for n in range(2))
    assert dropped == 6
    taken = [queue.take(0) for _ in range(6)]
    assert taken == ["l0", "q0", "l1", "q1", "l2", "l3"]
    assert queue.take(0) is None


# --- over HTTP --------------------------------------------------------------------------------------------

REVIEWER = "r" * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("quarantine")
    settings = {
        "DETRIGGER_QUARANTINE": str(folder / "kept"),
        "DETRIGGER_QUARANTINE_RATE": "1000",
        "DETRIGGER_QUARANTINE_SAMPLE": "0",
        "DETRIGGER_DECISION_LOG": str(folder / "decisions.jsonl"),
        "DETRIGGER_REVIEW_TOKEN": REVIEWER,
        "DETRIGGER_POLICY": "reject",
    }
    with live_server(folder, settings) as running:
        with httpx.Client(base_url=running.url) as client:
            for seed in range(4):
                for triggered in (True, False):
                    body = png(toy_image(0, triggered=triggered, seed=seed))
                    client.post("/predict", content=body, headers={"Content-Type": "image/png"})
        yield running


def listed(server: Server, query: str = "", count: int = 4) -> list[Kept]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        body = httpx.get(f"{server.url}/admin/flagged{query}", headers=AUTH).json()
        if body["total"] == count:
            break
        time.sleep(0.1)
    assert body["total"] == count
    return [Kept.model_validate(item) for item in body["images"]]


@pytest.mark.process
def test_flagged_images_are_listed_shown_and_judged(server: Server) -> None:
    item = listed(server)[0]
    assert (item.label, item.raw_label, item.kind) == ("red", CLASSES[3][1], "flagged")
    shown = {
        which: httpx.get(f"{server.url}/admin/flagged/{item.digest}/{which}.png", headers=AUTH)
        for which in ("image", "purified", "difference")
    }
    assert {answer.headers["content-type"] for answer in shown.values()} == {"image/png"}
    before, after = (
        np.asarray(Image.open(io.BytesIO(shown[which].content))) for which in ("image", "purified")
    )
    assert pictures.digest(before) == item.digest
    assert before[0, 0].tolist() == [255] * 3
    assert after[0, 0].tolist() != [255] * 3
    url = f"{server.url}/admin/flagged/{item.digest}/review"
    reviewer = {"Authorization": f"Bearer {REVIEWER}"}
    said = httpx.post(url, json={"verdict": "poisoned", "by": "ada"}, headers=reviewer).json()
    assert (said["review"]["verdict"], said["review"]["by"]) == ("poisoned", "reviewer:ada")
    assert [it.digest for it in listed(server, "?review=poisoned", 1)] == [item.digest]
    listed(server, "?review=none&raw_label=green&kind=flagged", 3)
    audit = [json.loads(line) for line in (server.store / "audit.jsonl").read_text().splitlines()]
    assert (audit[-1]["action"], audit[-1]["by"], audit[-1]["image"]) == (
        "review",
        "reviewer:ada",
        item.digest,
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/admin/rollback"), ("POST", "/admin/retrain"), ("DELETE", "/admin/flagged?day=2020-01-01")],
)
def test_the_second_token_reads_and_reviews_and_nothing_else(server: Server, method: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {REVIEWER}"}
    answer = httpx.request(method, server.url + path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert httpx.get(f"{server.url}/admin/versions", headers=headers).status_code == 200


@pytest.mark.process
def test_the_export_is_no_image_to_be_erased(server: Server) -> None:
    answer = httpx.delete(f"{server.url}/admin/flagged/export", headers=AUTH, timeout=60)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_every_answer_stands_in_the_decision_log(server: Server) -> None:
    listed(server)
    lines = [
        json.loads(line) for line in (server.log_path.parent / "decisions.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 8
    flagged = [line for line in lines if line["flagged"]]
    assert {line["image_digest"] for line in flagged} == {item.digest for item in listed(server)}
    assert {(line["label"], line["raw_label"], line["policy"]) for line in flagged} == {
        ("red", "green", "reject")
    }
    assert all(len(line["version_digest"]) == 64 and line["request_id"] for line in lines)


@pytest.mark.process
def test_a_token_that_was_taken_away_works_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with live_server(tmp_path, {"DETRIGGER_ADMIN_TOKEN_FILE": str(file)}, admin=False) as running:
        assert httpx.get(f"{running.url}/admin/jobs", headers=AUTH).status_code == 200
        file.write_text("n" * 40 + "\n")
        assert httpx.get(f"{running.url}/admin/jobs", headers=AUTH).status_code == 401
        new = {"Authorization": f"Bearer {'n' * 40}"}
        assert httpx.get(f"{running.url}/admin/jobs", headers=new).status_code == 200
        file.write_text("")
        assert httpx.get(f"{running.url}/admin/jobs", headers=new).status_code == 401


@pytest.mark.process
def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    with live_server(tmp_path) as running:
        answer = httpx.get(f"{running.url}/admin/flagged", headers=AUTH)
        assert (answer.status_code, answer.json()["code"]) == (409, "quarantine_off")
        body = png(toy_image(0, triggered=True))
        httpx.post(f"{running.url}/predict", content=body, headers={"Content-Type": "image/png"})
    assert not list(tmp_path.rglob("*.png"))
