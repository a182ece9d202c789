"""Signatures of versions: what is unsigned, altered or signed by another key is neither promoted nor served."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from detrigger.cli import main
from detrigger.models import signing
from detrigger.models.errors import BadInput, DetriggerError
from detrigger.models.manifest import Manifest
from detrigger.models.store import VersionStore
from detrigger.service.registry import load
from detrigger.service.settings import Settings
from tests.live import launch
from tests.toys import publish_toy

pytest.importorskip("model_signing", reason="the extra `sign` is not installed")

TAMPERED = 300


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str, str]:
    """A folder with a store of two versions of one key, its public key, and the two ids."""
    folder = tmp_path_factory.mktemp("signed")
    private, public = keys(folder, "ours")
    with signing.signed_with(private):
        versions = [publish_toy(folder / "store").id for _ in range(2)]
    return folder / "store", public, versions[0], versions[1]


def serves(store: Path, version: str, key: Path) -> bool:
    try:
        load(Settings(store=store, device="cpu", threads=1, require_signature=key), version)
    except DetriggerError:
        return False
    return True


def test_a_signed_version_is_promoted_verified_and_served(signed: tuple[Path, Path, str, str]) -> None:
    store, key, first, second = signed
    given = ["--store", str(store), "--require-signature", str(key)]
    assert main(["promote", *given, first]) == 0
    assert main(["promote", *given, second]) == 0
    assert main(["rollback", *given]) == 0
    assert main(["verify", *given]) == 0
    assert serves(store, first, key)


def test_unsigned_and_foreign_versions_are_refused(
    tmp_path: Path, signed: tuple[Path, Path, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    other_private, other_public = keys(tmp_path, "theirs")
    unsigned = publish_toy(tmp_path / "store").id
    with signing.signed_with(other_private):
        foreign = publish_toy(tmp_path / "store", promote=False).id
    before = VersionStore(tmp_path / "store").promotions()
    for version in (unsigned, foreign):
        code = main(
            ["promote", "--store", str(tmp_path / "store"), "--require-signature", str(signed[1]), version]
        )
        assert code == 2
        assert "signature" in capsys.readouterr().err
        assert not serves(tmp_path / "store", version, signed[1])
    assert VersionStore(tmp_path / "store").promotions() == before
    assert serves(tmp_path / "store", foreign, other_public)


def flip(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    write(path, bytes(data))


def swap(folder: Path, rng: random.Random) -> None:
    one, two = rng.sample([path for path in sorted(folder.iterdir()) if path.suffix == ".onnx"], 2)
    first, second = one.read_bytes(), two.read_bytes()
    write(one, second)
    write(two, first)


def reseal(folder: Path, rng: random.Random) -> None:
    """Another threshold, with all digests made anew: only the signature can tell."""
    path = folder / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_bytes())
    flag = manifest.flag.model_copy(update={"threshold": rng.uniform(0.6, 1)})
    changed = manifest.model_copy(update={"flag": flag}).sealed(dict(manifest.files))
    write(path, changed.model_dump_json().encode())


def strip(folder: Path, _rng: random.Random) -> None:
    (folder / signing.SIGNATURE).unlink()


def add(folder: Path, rng: random.Random) -> None:
    (folder / f"extra-{rng.randrange(99)}").write_bytes(b"x")


def payload(folder: Path, rng: random.Random) -> None:
    """A signature file that is JSON of another shape."""
    path = folder / signing.SIGNATURE
    content = json.loads(path.read_bytes())
    name = rng.choice(list(content))
    content[name] = rng.choice([None, [], {}, "x", 5])
    write(path, json.dumps(content).encode())


def write(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.slow
def test_of_300_tampered_stores_none_is_served(tmp_path: Path, signed: tuple[Path, Path, str, str]) -> None:
    store, key, version, other = signed
    kinds: list[Callable[[Path, random.Random], None]] = [flip, flip, swap, reseal, strip, add, payload]
    rng = random.Random(7)
    for number in range(TAMPERED):
        copy = tmp_path / "store"
        shutil.copytree(store, copy)
        folder = copy / "versions" / version
        kind = kinds[number % len(kinds)]
        if number % 10 == 9:  # the signature or manifest of another version that we signed
            name = rng.choice([signing.SIGNATURE, "manifest.json"])
            write(folder / name, (copy / "versions" / other / name).read_bytes())
        else:
            kind(folder, rng)
        assert not serves(copy, version, key), (number, kind.__name__)
        assert main(["promote", "--store", str(copy), "--require-signature", str(key), version]) != 0
        shutil.rmtree(copy)


def test_a_manifest_that_was_swapped_while_it_was_read_is_refused(
    tmp_path: Path, signed: tuple[Path, Path, str, str]
) -> None:
    store, key, version, _ = signed
    manifest = VersionStore(store).manifest(version)
    flag = manifest.flag.model_copy(update={"threshold": 0.99})
    with pytest.raises(DetriggerError, match="not the signed one"):
        signing.require(store / "versions" / version, manifest.model_copy(update={"flag": flag}), key)


def test_a_key_that_cannot_be_used_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("no key")
    for key in (tmp_path / "bad.pem", tmp_path / "missing.pem"):
        with pytest.raises(BadInput, match="EC key"), signing.signed_with(key):
            pass
        with pytest.raises(BadInput, match="EC key"):
            signing.check_public(key)


@pytest.mark.process
def test_a_service_that_requires_a_signature_does_not_start_without_it(
    tmp_path: Path, signed: tuple[Path, Path, str, str]
) -> None:
    publish_toy(tmp_path / "store")
    process = launch(
        tmp_path / "store", tmp_path / "log", {"DETRIGGER_REQUIRE_SIGNATURE": str(signed[1].absolute())}
    )
    try:
        assert process.wait(60) != 0
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert "does not carry the signature" in (tmp_path / "log").read_text()
