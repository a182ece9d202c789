"""OpenSSF model signatures of versions, with keys in files: the library `model-signing`, an extra (`detrigger[sign]`).

A signature covers every file of a version's folder, its manifest included, and lies among them as `model.sig`. The
private key is an EC key as PEM (`openssl ecparam -name prime256v1 -genkey -noout`), its public half verifies.
"""

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from detrigger.models.errors import BadInput, StoreError
from detrigger.models.files import read_regular
from detrigger.models.manifest import Manifest

SIGNATURE = "model.sig"
_MAX_SIGNATURE, _MAX_MANIFEST = 1_000_000, 8_000_000
_key: ContextVar[Path | None] = ContextVar("signing key", default=None)


@contextmanager
def signed_with(key: Path | None) -> Iterator[None]:
    """Within this, every version that is published is signed with the private key; None signs nothing.

    Raises:
        BadInput: the key cannot be used, found before any work is done.
    """
    if key is not None:
        _try(lambda: _library().signing.Config().use_elliptic_key_signer(private_key=key), key, "private")
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def sign(folder: Path) -> None:
    """Sign a complete folder where a key is set; for `VersionStore.publish`."""
    if (key := _key.get()) is not None:
        config = _library().signing.Config().use_elliptic_key_signer(private_key=key)
        config.set_hashing_config(_hashing(folder)).sign(folder, folder / SIGNATURE)


def check_public(key: Path) -> None:
    """BadInput where this is not a public key that can verify."""
    _try(lambda: _library().verifying.Config().use_elliptic_key_verifier(public_key=key), key, "public")


def require(folder: Path, manifest: Manifest, key: Path) -> None:
    """Hold a version against its signature.

    All files are hashed. The manifest that counts is the one given, which its caller may have read at another moment:
    it must be the signed one, so that swapping files in between gains nothing.

    Args:
        folder: of the version.
        manifest: as it was read; the digests in it are what files are held against when they are loaded.
        key: the public key.

    Raises:
        StoreError: `signature_refused`: there is no signature, it is another key's, or something was altered.
        BadInput: the key cannot be used.
    """
    check_public(key)
    try:
        signature = read_regular(folder / SIGNATURE, _MAX_SIGNATURE)
    except OSError as error:
        raise _refused(manifest.id, "it has none") from error
    with tempfile.TemporaryDirectory() as private:
        copy = (
            Path(private) / SIGNATURE
        )  # what is verified is what is read below, whatever happens to the folder
        copy.write_bytes(signature)
        verifier = _library().verifying.Config().use_elliptic_key_verifier(public_key=key)
        try:
            verifier.set_hashing_config(_hashing(folder)).verify(folder, copy)
            signed = _digests(signature)["manifest.json"]
            data = read_regular(folder / "manifest.json", _MAX_MANIFEST)
            found = (
                hashlib.sha256(data).hexdigest() == signed and Manifest.model_validate_json(data) == manifest
            )
        except (
            Exception
        ) as error:  # the library's own, of its parts, and of whatever a stranger wrote into the file
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise _refused(manifest.id, reason) from error
    if not found:
        raise _refused(manifest.id, "the manifest is not the signed one")


def _digests(signature: bytes) -> dict[str, str]:
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    return {it["name"]: it["digest"] for it in statement["predicate"]["resources"]}


def _hashing(folder: Path) -> Any:
    config = _library().hashing.Config()
    return config.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise BadInput(
            "signatures need the package model-signing, which is not installed: pip install 'detrigger[sign]'"
        ) from error
    return model_signing


def _try(make: Any, key: Path, kind: str) -> None:
    try:
        make()
    except BadInput:
        raise
    except Exception as error:  # cryptography's errors share no base
        raise BadInput(
            f"{key} is not a {kind} EC key in PEM format that can be read; make one with `openssl ecparam -name"
            " prime256v1 -genkey -noout` and `openssl ec -pubout`"
        ) from error


def _refused(version: str, reason: str) -> StoreError:
    return StoreError(
        f"version {version} does not carry the signature that is required: {reason}; promote a signed version",
        code="signature_refused",
    )
