"""Log lines on stderr: plain text for people, or one JSON object a line for collectors."""

import json
import logging
import sys
from datetime import UTC, datetime

from detrigger.service.settings import Settings

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "color_message",
    "taskName",
}


class JsonLines(logging.Formatter):
    """`{"time","level","logger","message",...}`; what is passed as `extra` become members of the object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """`time level logger: message key=value ...`, each record on one line unless it carries a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of text; control characters in values cannot forge another line."""
        extra = "".join(
            f" {name}={json.dumps(value, default=str)}"
            for name, value in record.__dict__.items()
            if name not in _STANDARD
        )
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = f"{time} {record.levelname.lower():7} {record.name}: {record.getMessage()!s}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(settings: Settings) -> None:
    """Send all log records of this process to stderr in the format that the settings ask for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if settings.log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger("uvicorn.error").setLevel("WARNING")  # we announce the address ourselves
    logging.getLogger("python_multipart").setLevel("CRITICAL")  # a line for each malformed body otherwise
