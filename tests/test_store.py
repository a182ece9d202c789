"""The version store: what is published is whole, what was edited is refused, what was killed is gone."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detrigger.models import files
from detrigger.models.errors import GateRefused, StoreBusy, StoreError
from detrigger.models.files import write_new
from detrigger.models.promotions import Promotion, serving_stack
from detrigger.models.store import VersionStore
from tests.disks import fill, small_disk
from tests.toys import publish_toy, toy_manifest

ROOT = Path(__file__).parent.parent
IDS = [f"20250131T12000{n}Z-0000000{n}" for n in range(10)]
FILES = ["protected.onnx", "purifier.onnx", "generator.onnx", "classifier.onnx", "report.json", "report.html"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published") / "store"
    for version in IDS[:3]:
        publish_toy(root, version=version)
    return root


@pytest.fixture
def root(published: Path, tmp_path: Path) -> Path:
    """A store with versions 0, 1 and 2, promoted in this order."""
    return Path(shutil.copytree(published, tmp_path / "store"))


def refused(call: Callable[[], object]) -> StoreError:
    """The StoreError that `call` must end with: one line."""
    with pytest.raises(StoreError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file as somebody with an editor would, permissions notwithstanding."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def edit_json(path: Path, **values: object) -> None:
    edit(path, lambda old: json.dumps(json.loads(old) | values).encode())


# --- creating and opening ---------------------------------------------------------------------------------


def test_create_makes_a_store_once_and_opens_it_afterwards(tmp_path: Path) -> None:
    first = VersionStore.create(tmp_path / "deep" / "store")
    assert (first.current(), first.versions(), first.promotions()) == (None, [], [])
    publish_toy(first.root, version=IDS[0])
    assert VersionStore.create(first.root).current() == IDS[0]


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "photo.png"):
        assert refused(lambda path=path: VersionStore(path)).code == "no_store"  # type: ignore[misc]
    assert refused(lambda: VersionStore.create(tmp_path)).code == "no_store"
    refused(lambda: VersionStore.create(tmp_path / "photo.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png"]


def test_a_store_of_another_schema_is_refused(root: Path) -> None:
    edit_json(root / "store.json", schema_version=2)
    assert "schema version" in str(refused(lambda: VersionStore(root)))


# --- publishing and reading -------------------------------------------------------------------------------


def test_a_published_version_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = publish_toy(tmp_path / "store", version=IDS[0])
    store = VersionStore(tmp_path / "store")
    assert store.manifest(IDS[0]) == written
    assert sorted(written.files) == sorted(FILES)
    folder = store.open_version(IDS[0])
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "manifest.json"])
    for name in FILES:
        assert store.read_file(IDS[0], name) == (folder / name).read_bytes()
        assert (folder / name).stat().st_mode & 0o222 == 0
    assert list((store.root / "staging").iterdir()) == []


def test_a_version_is_immutable(root: Path) -> None:
    before = (root / "versions" / IDS[0] / "manifest.json").read_bytes()
    assert refused(lambda: publish_toy(root, version=IDS[0], threshold=0.9)).code == "version_exists"
    assert (root / "versions" / IDS[0] / "manifest.json").read_bytes() == before


def test_a_failed_stage_leaves_nothing(root: Path) -> None:
    store = VersionStore(root)

    def fail() -> None:
        with store.stage(IDS[3]) as staging:
            (staging / "protected.onnx").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.version_ids() == IDS[:3]
    assert list((root / "staging").iterdir()) == []


@pytest.mark.parametrize(
    "version",
    [
        "../../etc",
        "..",
        "",
        ".",
        "a/b",
        f"{IDS[0]}/../{IDS[1]}",
        f"{IDS[0]}\n",
        f"/{IDS[0]}",
        "\0",
        "x" * 999,
    ],
)
def test_names_that_are_no_ids_never_become_paths(root: Path, version: str) -> None:
    store = VersionStore(root)
    for call in (store.manifest, store.open_version, lambda v: store.read_file(v, "protected.onnx")):
        assert refused(lambda call=call: call(version)).code == "bad_version_id"  # type: ignore[misc]
    assert refused(lambda: store.promote(version, "t", "")).code == "bad_version_id"


@pytest.mark.parametrize("name", ["../../../store.json", "manifest.json", "absent.onnx", "", "/etc/passwd"])
def test_only_files_of_the_manifest_are_read(root: Path, name: str) -> None:
    assert refused(lambda: VersionStore(root).read_file(IDS[0], name)).code == "unknown_version"


def test_unknown_versions_are_named(root: Path) -> None:
    error = refused(lambda: VersionStore(root).promote(IDS[9], "t", ""))
    assert error.code == "unknown_version"
    assert IDS[9] in str(error)


# --- an edited store --------------------------------------------------------------------------------------


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": _flip,
    "truncated": lambda data: data[:-2],
    "extended": lambda data: data + b"\0",
    "emptied": lambda data: b"",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_an_edited_file_is_never_handed_out(root: Path, name: str, change: str) -> None:
    edit(root / "versions" / IDS[1] / name, CHANGES[change])
    store = VersionStore(root)
    if not (name == "manifest.json" and change == "extended"):
        error = refused(lambda: store.open_version(IDS[1], [name] if name in FILES else ()))
        assert error.code == "damaged_version"
        assert name in str(error)
        assert refused(lambda: store.promote(IDS[1], "t", "")).code == "damaged_version"
        if name in FILES:
            assert refused(lambda: store.read_file(IDS[1], name)).code == "damaged_version"
            store.open_version(IDS[1], [other for other in FILES if other != name])
    # The others, and what is served, stay as they were.
    store.open_version(IDS[0])
    assert store.current() == IDS[2]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_missing_files_links_and_pipes_are_refused(root: Path, name: str, tmp_path: Path) -> None:
    store = VersionStore(root)
    path = root / "versions" / IDS[1] / name
    (tmp_path / "copy").write_bytes(path.read_bytes())
    path.unlink()
    assert refused(lambda: store.open_version(IDS[1])).code == "damaged_version"
    path.symlink_to(tmp_path / "copy")
    assert refused(lambda: store.open_version(IDS[1])).code == "damaged_version"
    path.unlink()
    os.mkfifo(path)
    assert refused(lambda: store.open_version(IDS[1])).code == "damaged_version"


def test_a_linked_version_is_unknown(root: Path, tmp_path: Path) -> None:
    (root / "versions" / IDS[1]).rename(tmp_path / "elsewhere")
    (root / "versions" / IDS[1]).symlink_to(tmp_path / "elsewhere")
    store = VersionStore(root)
    assert refused(lambda: store.open_version(IDS[1])).code == "unknown_version"
    assert store.version_ids() == [IDS[0], IDS[2]]


def test_an_edited_threshold_is_noticed(root: Path) -> None:
    path = root / "versions" / IDS[1] / "manifest.json"
    edit(path, lambda old: old.replace(b'"threshold": 0.5', b'"threshold": 0.9'))
    assert "edited" in str(refused(lambda: VersionStore(root).manifest(IDS[1])))


def test_a_version_under_a_false_name_is_refused(root: Path) -> None:
    shutil.copytree(root / "versions" / IDS[1], root / "versions" / IDS[5])
    assert refused(lambda: VersionStore(root).manifest(IDS[5])).code == "damaged_version"


def test_damaged_versions_are_listed_apart(root: Path) -> None:
    edit(root / "versions" / IDS[1] / "manifest.json", lambda old: b"{")
    store = VersionStore(root)
    assert [manifest.id for manifest in store.versions()] == [IDS[0], IDS[2]]
    assert list(store.damaged()) == [IDS[1]]


def test_files_that_others_drop_into_the_store_do_not_matter(root: Path) -> None:
    for folder in (root, root / "versions", root / "versions" / IDS[1], root / "promotions"):
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / "notes.txt").write_bytes(b"mine")
    store = VersionStore(root)
    assert [manifest.id for manifest in store.versions()] == IDS[:3]
    store.promote(IDS[1], "t", "")
    assert len(store.promotions()) == 4


# --- the promotion log ------------------------------------------------------------------------------------


def test_rolling_back_twice_goes_back_two_versions(root: Path) -> None:
    store = VersionStore(root)
    assert [store.rollback("t", "").version for _ in range(2)] == [IDS[1], IDS[0]]
    assert refused(lambda: store.rollback("t", "")).code == "nothing_to_roll_back"
    assert store.current() == IDS[0]


def test_a_promotion_after_a_rollback_starts_from_there(root: Path) -> None:
    store = VersionStore(root)
    store.rollback("t", "")
    store.rollback("t", "")
    store.promote(IDS[2], "t", "again")
    assert store.rollback("t", "").version == IDS[0]
    assert [entry.number for entry in store.promotions()] == [1, 2, 3, 4, 5, 6, 7]


def test_promoting_what_is_served_changes_nothing(root: Path) -> None:
    store = VersionStore(root)
    assert store.promote(IDS[2], "t", "").number == 3
    assert len(store.promotions()) == 3


def test_an_entry_says_who_why_and_what_was_before(root: Path) -> None:
    entry = VersionStore(root).promote(IDS[0], "ann", "a\nbetter   one" + "x" * 9999)
    assert (entry.number, entry.version, entry.previous, entry.by) == (4, IDS[0], IDS[2], "ann")
    assert entry.reason.startswith("a\nbetter")
    assert VersionStore(root).last_promotion() == entry


def test_a_refused_gate_needs_force(root: Path) -> None:
    publish_toy(root, version=IDS[3], gate_passed=False, promote=False)
    store = VersionStore(root)
    with pytest.raises(GateRefused):
        store.promote(IDS[3], "t", "")
    assert store.current() == IDS[2]
    assert store.promote(IDS[3], "t", "", force=True).version == IDS[3]


def test_rolling_back_to_a_damaged_version_is_refused(root: Path) -> None:
    edit(root / "versions" / IDS[1] / "protected.onnx", _flip)
    assert refused(lambda: VersionStore(root).rollback("t", "")).code == "damaged_version"
    assert VersionStore(root).current() == IDS[2]


LOG_CHANGES: dict[str, Callable[[Path], None]] = {
    "another version": lambda path: edit_json(path, version=IDS[0]),
    "another reason": lambda path: edit_json(path, reason="better"),
    "another number": lambda path: edit_json(path, number=7),
    "no digest": lambda path: edit_json(path, digest=None),
    "a version that is a path": lambda path: edit_json(path, version="../../x"),
    "an unknown key": lambda path: edit_json(path, more=1),
    "garbage": lambda path: edit(path, lambda old: b"\xff\x00{"),
    "empty": lambda path: edit(path, lambda old: b""),
    "deeply nested": lambda path: edit(path, lambda old: b"[" * 60_000),
    "huge": lambda path: edit(path, lambda old: b" " * 10**6 + old),
}


@pytest.mark.parametrize("change", LOG_CHANGES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_edited_log_entry_is_refused_with_its_name(root: Path, number: int, change: str) -> None:
    path = root / "promotions" / f"{number:08d}.json"
    LOG_CHANGES[change](path)
    store = VersionStore(root)
    if number == 1 and change == "another version":
        return  # it held that version already
    for call in (store.promotions, lambda: store.rollback("t", "")):
        error = refused(call)
        assert error.code == "damaged_log"
        assert path.name in str(error)
    if number == 3:
        assert refused(store.current).code == "damaged_log"
        assert refused(lambda: store.promote(IDS[0], "t", "")).code == "damaged_log"
    else:
        # The newest entry decides what is served, and it is good.
        assert store.current() == IDS[2]
    # The mend of the message works: delete this entry and every higher one.
    for higher in range(number, 4):
        (root / "promotions" / f"{higher:08d}.json").unlink()
    store.promote(IDS[2], "t", "mended")
    assert store.current() == IDS[2]
    assert len(store.promotions()) == number


def test_a_lost_or_swapped_entry_is_noticed(root: Path, tmp_path: Path) -> None:
    log = root / "promotions"
    (log / "00000002.json").rename(tmp_path / "2")
    assert "missing" in str(refused(VersionStore(root).promotions))
    (tmp_path / "2").rename(log / "00000002.json")
    assert len(VersionStore(root).promotions()) == 3
    # A consistent entry of another history: its own digest is right, its predecessor's is not.
    other = (
        VersionStore(root).promotions()[1].model_copy(update={"previous_digest": "0" * 64, "digest": None})
    )
    other = other.model_copy(update={"digest": other.own_digest()})
    edit(log / "00000002.json", lambda old: other.model_dump_json().encode())
    assert "does not follow" in str(refused(VersionStore(root).promotions))


def test_serving_stack_of_a_long_history() -> None:
    def entry(action: str, version: str) -> Promotion:
        return Promotion.model_validate(
            {"number": 1, "action": action, "version": version, "previous": None, "by": "", "reason": "",
             "time": "2025-01-31T12:00:00Z", "previous_digest": None}
        )  # fmt: skip

    history = [
        ("promote", 0),
        ("promote", 1),
        ("rollback", 0),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
    ]
    assert serving_stack([entry(action, IDS[n]) for action, n in history]) == [IDS[0], IDS[2]]


def test_many_writers_never_share_a_number(root: Path) -> None:
    failures: list[Exception] = []

    def work(n: int) -> None:
        try:
            store = VersionStore(root)
            for _ in range(10):
                store.promote(IDS[n % 3], f"writer {n}", "")
                n += 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    entries = VersionStore(root).promotions()
    assert [entry.number for entry in entries] == list(range(1, len(entries) + 1))
    assert len(entries) > 4
    assert not list((root / "promotions").glob(f"{files.TEMPORARY}*"))


# --- the job lock, and death ------------------------------------------------------------------------------


@pytest.fixture
def holder(root: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has staged half a version and holds the lock."""
    script = (
        "import sys, time; from pathlib import Path; from models.store import VersionStore\n"
        f"with VersionStore(Path(sys.argv[1])).stage({IDS[7]!r}) as staging:\n"
        "    (staging / 'protected.onnx').write_bytes(b'half')\n"
        "    print('staged', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.process
def test_a_second_job_is_refused_and_readers_are_not(root: Path, holder: "subprocess.Popen[str]") -> None:
    store = VersionStore(root)
    with pytest.raises(StoreBusy, match=str(holder.pid)), store.job_lock():
        pass
    with pytest.raises(StoreBusy), store.stage(IDS[3]):
        pass
    assert (root / "staging").exists()
    assert store.version_ids() == IDS[:3]
    # Switching versions must work while a job runs.
    assert store.rollback("t", "").version == IDS[1]


@pytest.mark.process
def test_a_killed_job_leaves_a_store_that_works(root: Path, holder: "subprocess.Popen[str]") -> None:
    holder.kill()
    holder.wait()
    assert len(list((root / "staging").iterdir())) == 1
    store = VersionStore(root)
    assert [manifest.id for manifest in store.versions()] == IDS[:3]
    assert store.current() == IDS[2]
    publish_toy(root, version=IDS[7])
    assert list((root / "staging").iterdir()) == []
    assert store.current() == IDS[7]


def test_one_object_may_stage_within_its_own_lock(root: Path) -> None:
    store = VersionStore(root)
    with store.job_lock():
        with store.stage(IDS[3]) as staging:
            (staging / "protected.onnx").write_bytes(b"x")
            store.publish(staging, toy_manifest(IDS[3]))
        with pytest.raises(StoreBusy), VersionStore(root).job_lock():
            pass
    with VersionStore(root).job_lock():
        pass


def test_leftovers_are_removed_when_the_lock_is_taken(root: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"mine")
    staging = root / "staging"
    (staging / "old").mkdir()
    (staging / "old" / "protected.onnx").write_bytes(b"half")
    (staging / "file").write_bytes(b"half")
    (staging / "link").symlink_to(tmp_path / "precious")
    stale, fresh = root / "promotions" / f"{files.TEMPORARY}1", root / "promotions" / f"{files.TEMPORARY}2"
    for path in (stale, fresh):
        path.write_bytes(b"{")
    os.utime(stale, (0, 0))
    with VersionStore(root).job_lock():
        assert list(staging.iterdir()) == []
    assert (fresh.exists(), stale.exists()) == (True, False)
    assert (tmp_path / "precious" / "file").read_bytes() == b"mine"


def test_leftovers_are_removed_even_when_the_disk_is_full(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    (root / "staging" / "old").mkdir()
    (root / "staging" / "old" / "protected.onnx").write_bytes(b"what fills the disk")
    monkeypatch.setattr(os, "pwrite", full)
    with VersionStore(root).job_lock():
        assert list((root / "staging").iterdir()) == []


# --- a full disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["write", "fsync", "rename", "open"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    store = VersionStore(root)
    real = getattr(os, function)

    def full(*arguments: object, **options: object) -> object:
        if function == "open" and not int(arguments[1]) & os.O_CREAT:  # type: ignore[call-overload]
            return real(*arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    def publish() -> None:
        with store.stage(IDS[3]) as staging:
            (staging / "protected.onnx").write_bytes(b"x" * 100)
            monkeypatch.setattr(os, function, full)
            store.publish(staging, toy_manifest(IDS[3]))

    assert refused(publish).code == "disk_full"
    monkeypatch.undo()
    assert store.version_ids() == IDS[:3]
    assert list((root / "staging").iterdir()) == []
    publish_toy(root, version=IDS[3])


def test_a_full_disk_while_the_job_writes(root: Path) -> None:
    def write() -> None:
        with VersionStore(root).stage(IDS[3]):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert refused(write).code == "disk_full"


def test_a_full_disk_while_promoting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        write_new(path, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_new", full)
    store = VersionStore(root)
    assert refused(lambda: store.promote(IDS[0], "t", "")).code == "disk_full"
    assert store.current() == IDS[2]
    assert sorted(path.name for path in (root / "promotions").iterdir()) == [
        f"{n:08d}.json" for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("operation", ["create", "publish", "promote", "rollback"])
def test_a_disk_that_is_really_full_at_every_step(tmp_path: Path, operation: str) -> None:
    """With no page left, with one, with two: until there is room for all of it."""
    with small_disk(tmp_path / "disk", 512) as disk:
        root = disk / "store"
        if operation != "create":
            publish_toy(root, version=IDS[0])
            publish_toy(root, version=IDS[1], promote=operation == "rollback")
        doing: dict[str, Callable[[], object]] = {
            "create": lambda: VersionStore.create(root),
            "publish": lambda: publish_toy(root, version=IDS[2], promote=False),
            "promote": lambda: VersionStore(root).promote(IDS[1], "t", ""),
            "rollback": lambda: VersionStore(root).rollback("t", ""),
        }
        refusals = 0
        for leave in range(60):
            filler = fill(disk, leave)
            try:
                doing[operation]()
            except StoreError as error:
                refusals += 1
                assert (error.code, str(disk) in str(error)) == ("disk_full", True), error  # noqa: PT017
            else:
                break
            if operation != "create":
                store = VersionStore(root)
                assert store.version_ids() == IDS[:2]
                for version in IDS[:2]:
                    store.open_version(version)
                assert len(store.promotions()) == (2 if operation == "rollback" else 1)
                assert not list((root / "staging").iterdir())
            filler.unlink()
        assert refusals > (3 if operation == "publish" else 0)
        filler.unlink()
        store = VersionStore(root)
        assert store.damaged() == {}
        expected = {"create": None, "publish": IDS[0], "promote": IDS[1], "rollback": IDS[0]}
        assert store.current() == expected[operation]


def test_the_full_disk_is_named_and_not_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job writes to the system's temporary folder as well: that may be what is full."""
    with small_disk(tmp_path / "disk", 64) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))

        def write() -> None:
            with VersionStore.create(tmp_path / "store").stage(IDS[0]), tempfile.TemporaryFile() as file:
                file.write(bytes(2**20))

        fill(disk)
        message = str(refused(write))
        assert f"file system {disk} is full" in message
        assert str(tmp_path / "store") not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_may_not_be_written_to(root: Path) -> None:
    (root / "promotions").chmod(0o500)
    try:
        assert "permissions" in str(refused(lambda: VersionStore(root).promote(IDS[0], "t", "")))
    finally:
        (root / "promotions").chmod(0o700)
