"""Who may administer: the tokens and what each of them allows.

    admin      everything under /admin and /console
    reviewer   reads, and reviews what the quarantine keeps

A token file is read again when it changes, so a token that was taken out of it works no longer, without a restart.
"""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from detrigger.models.errors import BadInput
from detrigger.service.metrics import Metrics
from detrigger.service.problem import Problem
from detrigger.service.settings import Settings

log = logging.getLogger("service.request")

Role = Literal["admin", "reviewer"]
Stamp = tuple[int, int, int] | None

_SLOW_FAILURES = 16
_FAILURE_DELAY = 1.0


class Access:
    """The tokens of one service. Without an admin token there is no /admin and no /console."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Read the tokens.

        Raises:
            BadInput: a token is unusable.
        """
        self._settings = settings
        self._metrics = metrics
        self._failing = 0
        self._stamps = self._look()
        self._roles = self._read()
        self.enabled = bool(self._roles)
        self.port = settings.admin_port

    def keys(self) -> Mapping[bytes, Role]:
        """The sha256 of every token that is accepted now, with its role."""
        stamps = self._look()
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._roles = self._read()
                log.warning("the token files changed and were read again")
            except BadInput as error:
                self._roles = {}  # who took a token away must be able to rely on it
                log.error("no token is accepted until this is mended: %s", error)  # noqa: TRY400
        return self._roles

    def role_of(self, token: bytes) -> Role | None:
        """What a token allows; None for any other bytes. The time taken tells nothing."""
        digest = hashlib.sha256(token).digest()
        found: Role | None = None
        for expected, role in self.keys().items():
            if hmac.compare_digest(digest, expected):
                found = role
        return found

    async def refuse(self, token: bytes, client: str, request_id: str) -> Problem:
        """Count, log and slow down an attempt with a wrong token; what it is to be told."""
        self._metrics.auth_failures.inc()
        log.warning("admin token missing or wrong", extra={"request_id": request_id, "client": client})
        if self._failing >= _SLOW_FAILURES:
            return Problem(
                "auth_throttled", "too many attempts with wrong tokens", headers={"Retry-After": "5"}
            )
        self._failing += 1
        try:
            if token:
                await asyncio.sleep(_FAILURE_DELAY)  # a guess is slow; whoever has the token never waits
        finally:
            self._failing -= 1
        return Problem("unauthorized", "send the header `Authorization: Bearer TOKEN` with a valid token")

    def _read(self) -> dict[bytes, Role]:
        roles: dict[bytes, Role] = {
            hashlib.sha256(token).digest(): "reviewer" for token in self._settings.review_tokens()
        }
        for token in self._settings.tokens():
            roles[hashlib.sha256(token).digest()] = "admin"
        return roles

    def _look(self) -> tuple[Stamp, ...]:
        return tuple(
            _stamp(path) for path in (self._settings.admin_token_file, self._settings.review_token_file)
        )


def _stamp(path: Path | None) -> Stamp:
    """What changes when a file does."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None
