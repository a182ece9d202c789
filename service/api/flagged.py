"""/admin/flagged: what the quarantine keeps, for people to look at, judge, take along and erase."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from detrigger.service import pictures
from detrigger.service.api import schemas
from detrigger.service.audit import Audit
from detrigger.service.core import Core
from detrigger.service.kept import Kept, Kind
from detrigger.service.middleware import RequestInfo, info_of
from detrigger.service.problem import Problem
from detrigger.service.quarantine import Quarantine

T = TypeVar("T")
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Day = Annotated[str, Query(pattern=r"^\d{4}-\d\d-\d\d$")]
Which = Literal["image", "purified", "difference"]
Reviewed = Literal["none", "poisoned", "clean"]
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


class Filter(BaseModel):
    """The query of GET /admin/flagged."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind | None = Field(default=None, description="flagged, or the sample of images that were not")
    review: Reviewed | None = Field(default=None, description="none: waits for a review")
    raw_label: str | None = Field(default=None, max_length=500, description="class of the image as sent")
    day: str | None = Field(default=None, pattern=r"^\d{4}-\d\d-\d\d$", description="first seen on it, UTC")
    offset: int = Field(default=0, ge=0, le=2**31 - 1)
    limit: int = Field(default=50, ge=1, le=500)

    def wants(self, item: Kept) -> bool:
        """Whether an image is asked for."""
        said = "none" if item.review is None else item.review.verdict
        return (
            self.kind in (None, item.kind)
            and self.review in (None, said)
            and self.raw_label in (None, item.raw_label)
            and self.day in (None, item.day)
        )


class Flagged(BaseModel):
    """A page of the quarantine, newest first."""

    total: int = Field(description="images that fit the filter, on all pages")
    offset: int
    images: list[Kept]


class Judgement(BaseModel):
    """The body of a review."""

    model_config = ConfigDict(extra="forbid", strict=True)

    verdict: Literal["poisoned", "clean"] | None = Field(description="null takes a review back")
    by: str = Field(default="", max_length=100, description="who looked; stands beside the token's role")
    note: str = Field(default="", max_length=500)


class Erased(BaseModel):
    """What was erased."""

    erased: int


def router(quarantine: Quarantine | None, core: Core, audit: Audit) -> APIRouter:
    """The routes, bound to the parts that they use."""
    routes = APIRouter(
        prefix="/admin/flagged",
        tags=["quarantine"],
        responses=schemas.problems(401, 403, 404, 409, 422, 429, 500),
    )

    def kept() -> Quarantine:
        if quarantine is None:
            raise Problem("quarantine_off", "set DETRIGGER_QUARANTINE to a folder to keep flagged images")
        return quarantine

    @routes.get("")
    async def flagged(query: Annotated[Filter, Query()]) -> Flagged:
        """The images that are kept, newest first, with both labels, scores, version, time and review."""
        found = await asyncio.to_thread(kept().find, query.wants)
        page = found[query.offset : query.offset + query.limit]
        return Flagged(total=len(found), offset=query.offset, images=page)

    @routes.delete("", responses=schemas.problems(507))
    async def erase_day(request: Request, day: Day) -> Erased:
        """Erase every image that was first seen on a day (UTC)."""
        count = await on_disk(lambda: kept().erase(lambda item: item.day == day))
        audit.record(request.scope, role_of(request), "erase", day=day, images=count)
        return Erased(erased=count)

    @routes.get(
        "/export",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def export(request: Request) -> StreamingResponse:
        """The reviewed images as a zip: `poisoned/<raw label>/` and `clean/<label>/`, for `protect --reviewed`."""
        chunks = kept().archive()
        audit.record(request.scope, role_of(request), "export")
        headers = {"Content-Disposition": 'attachment; filename="reviewed.zip"', "Cache-Control": "no-store"}
        return StreamingResponse(chunks, media_type="application/zip", headers=headers)

    @routes.delete("/export", include_in_schema=False)
    async def no_erasing() -> None:
        """Else `export` would be taken for a digest."""
        raise Problem("method_not_allowed", "Method Not Allowed", headers={"allow": "GET"})

    @routes.get("/{digest}")
    async def show(digest: Digest) -> Kept:
        """One image's record."""
        return await known(lambda: kept().get(digest))

    @routes.get("/{digest}/{which}.png", response_class=Response, responses=_PNG | schemas.problems(503, 504))
    async def picture(request: Request, digest: Digest, which: Which) -> Response:
        """The image as the classifier got it; purified by the version served now; or what that changes, times 4."""
        data = await drawn(kept(), core, info_of(request.scope), digest, which)
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})

    @routes.post("/{digest}/review", responses=schemas.problems(507))
    async def review(request: Request, digest: Digest, said: Annotated[Judgement, Body()]) -> Kept:
        """Say that an image is poisoned or clean, or take that back."""
        by = f"{role_of(request)}:{said.by}" if said.by else role_of(request)
        item = await known(lambda: kept().review(digest, said.verdict, by, said.note))
        audit.record(request.scope, by, "review", image=digest, verdict=said.verdict, note=said.note)
        return item

    @routes.delete("/{digest}", responses=schemas.problems(507))
    async def erase(request: Request, digest: Digest) -> Erased:
        """Erase one image and all that is known of it."""
        count = await on_disk(lambda: kept().erase(lambda item: item.digest == digest))
        if not count:
            raise Problem("image_unknown", "GET /admin/flagged lists what is kept")
        audit.record(request.scope, role_of(request), "erase", image=digest)
        return Erased(erased=count)

    return routes


def role_of(request: Request) -> str:
    """The role of the token that came with a request under /admin."""
    role: str = request.scope["detrigger.role"]
    return role


async def drawn(quarantine: Quarantine, core: Core, request: RequestInfo, digest: str, which: Which) -> bytes:
    """One of the three pictures of an image, as PNG.

    Raises:
        Problem: it is not kept, or the version that is served does not take images of its size.
    """
    before = await known(lambda: quarantine.picture(digest))
    if which == "image":
        return await asyncio.to_thread(pictures.to_png, before)
    look = await core.look(before[None], request)
    after = pictures.as_bytes(look.purified)[0]
    return await asyncio.to_thread(
        pictures.to_png, after if which == "purified" else pictures.difference(before, after)
    )


async def known(work: Callable[[], T]) -> T:
    """Run on a thread; an image that is not kept becomes a problem."""
    try:
        return await on_disk(work)
    except KeyError:
        raise Problem("image_unknown", "GET /admin/flagged lists what is kept") from None


async def on_disk(work: Callable[[], T]) -> T:
    """Run on a thread; a disk that refuses becomes a problem."""
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise Problem("storage_full", f"the quarantine cannot be written: {error.strerror}") from error
