"""Who did what: every administrative act as a log line, and as a line of `STORE/audit.jsonl` for the console."""

import json
import logging
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import Scope

from detrigger.models.errors import BadInput
from detrigger.service.decisions import RotatedLines
from detrigger.service.middleware import info_of

log = logging.getLogger("service.audit")

_MAX_BYTES, _FILES = 10 * 2**20, 5


class Audit:
    """The acts on one store."""

    def __init__(self, store: Path) -> None:
        self._path = store / "audit.jsonl"
        self._lines: RotatedLines | None = None
        self._lock = threading.Lock()

    def record(self, scope: Scope, by: str, action: str, **what: object) -> None:
        """Write down one act that was done; a disk that refuses costs the line in the file, not the act."""
        client = scope.get("client")
        line = {
            "request_id": info_of(scope).id,
            "client": client[0] if client else "",
            "by": by,
            **what,
        }
        log.info(action, extra=line)
        line = {"time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "action": action, **line}
        try:
            with self._lock:
                if self._lines is None:
                    self._lines = RotatedLines(self._path, _MAX_BYTES, _FILES)
                self._lines.append(json.dumps(line, default=str).encode() + b"\n")
        except (OSError, BadInput) as error:
            log.error("the line cannot be added to %s: %s", self._path, error)  # noqa: TRY400

    def last(self, count: int) -> list[dict[str, Any]]:
        """The last acts, newest first; lines that are damaged are left out."""
        found: deque[dict[str, Any]] = deque(maxlen=count)
        for path in (self._path.with_name(f"{self._path.name}.1"), self._path):
            try:
                text = path.read_text("utf-8", "replace")
            except OSError:
                continue
            for line in text.splitlines():
                try:
                    act = json.loads(line)
                except ValueError:
                    continue
                if isinstance(act, dict):
                    found.append(act)
        return list(reversed(found))
