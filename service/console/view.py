"""Templates into pages."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined


class View:
    """The templates of the console; whatever they are given is escaped."""

    def __init__(self, version: str) -> None:
        self._templates = Environment(
            loader=PackageLoader("detrigger.service.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"percent": percent, "seconds": seconds, "moment": moment}
        self._templates.globals["detrigger_version"] = version

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page; `part` tells templates whether only a fragment was asked for."""
        path = request.scope["path"].removeprefix("/console").strip("/").partition("/")[0]
        values = {"session": None, "model": None, "here": path} | values
        return HTMLResponse(self._templates.get_template(name).render(values), status)

    def download(self, chunks: Iterator[bytes], name: str) -> StreamingResponse:
        """A zip file to be saved."""
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(chunks, media_type="application/zip", headers=headers)


def percent(share: float | None, digits: int = 1) -> str:
    """A share for people; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"  # noqa: RUF001 - a dash


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return "–"  # noqa: RUF001 - a dash
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min"


def moment(text: str) -> str:
    """A time of the records, without what nobody reads."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text
