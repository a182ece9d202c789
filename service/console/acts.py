"""What is done from the console. Each act holds the session's form against its token, and goes to the audit log."""

import asyncio
from base64 import b64encode
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.datastructures import FormData, UploadFile

from detrigger.service import pictures
from detrigger.service.access import Access
from detrigger.service.api.flagged import Digest, known, on_disk
from detrigger.service.console import charts
from detrigger.service.console.pages import JobId, Parts, VersionId
from detrigger.service.console.session import Session, same_origin
from detrigger.service.core import Look
from detrigger.service.engine import softmax
from detrigger.service.kept import Verdict
from detrigger.service.middleware import info_of
from detrigger.service.problem import Problem
from detrigger.service.quarantine import Quarantine
from detrigger.service.settings import Profile

_FIELDS = 20
_REASON, _NOTE = 500, 500


def router(parts: Parts, access: Access) -> APIRouter:
    """The acts, bound to the parts that they change."""
    routes = APIRouter(default_response_class=HTMLResponse)
    sessions, audit = parts.sessions, parts.audit
    LoggedIn = Annotated[Session, Depends(sessions.of)]

    @routes.get("/login")
    async def login_page(request: Request) -> HTMLResponse:
        """Ask for the token."""
        return parts.view.page(request, "login.html", failed=None)

    @routes.post("/login")
    async def login(request: Request) -> Response:
        """Begin a session."""
        same_origin(request)
        form = await read(request)
        token = text(form, "token", 10_000).strip().encode("utf-8", "replace")
        role = access.role_of(token)
        if role is None:
            client = request.client.host if request.client else ""
            problem = await access.refuse(token, client, info_of(request.scope).id)
            said = (
                "too many attempts with wrong tokens; wait a moment"
                if problem.code == "auth_throttled"
                else "that is not a valid token"
            )
            return parts.view.page(request, "login.html", problem.status_code, failed=said)
        name = text(form, "name", 1000)
        response = to("/console/")
        sessions.begin(request, response, token, name)
        audit.record(request.scope, f"{role}:{name[:60]}" if name else role, "login")
        return response

    @routes.post("/logout")
    async def logout(request: Request, session: LoggedIn) -> Response:
        """End the session."""
        await checked(request, session, reviewer=True)
        response = to("/console/login")
        sessions.end(session, response)
        audit.record(request.scope, session.by, "logout")
        return response

    @routes.post("/versions/{version}/activate")
    async def activate(request: Request, session: LoggedIn, version: VersionId) -> Response:
        """Serve a version."""
        form = await checked(request, session)
        reason, force = needed(form, "reason"), form.get("force") == "yes"
        entry = await parts.registry.activate(version, session.by, reason, force=force)
        audit.record(
            request.scope, session.by, "activate",
            version=version, number=entry.number, force=force, reason=reason,
        )  # fmt: skip
        return to("/console/versions")

    @routes.post("/rollback")
    async def rollback(request: Request, session: LoggedIn) -> Response:
        """Serve the version before."""
        form = await checked(request, session)
        reason = needed(form, "reason")
        entry = await parts.registry.rollback(session.by, reason)
        audit.record(
            request.scope, session.by, "rollback", version=entry.version, number=entry.number, reason=reason
        )
        return to("/console/versions")

    @routes.post("/jobs")
    async def retrain(request: Request, session: LoggedIn) -> Response:
        """Start the offline job."""
        form = await checked(request, session)
        base = parts.registry.active
        if base is None:
            raise Problem("nothing_promoted", "there is no version to refresh; run `detrigger protect` first")
        profile = next((it for it in get_args(Profile) if it == form.get("profile")), None)
        given = text(form, "seed", 12).strip()
        if profile is None or not (given == "" or (given.isdecimal() and int(given) < 2**31)):
            raise Problem("validation_failed", "a profile, and a seed of 0 to 2147483647 or none")
        activate = "auto" if form.get("activate") == "auto" else "manual"
        job = await parts.runner.submit(base.version, profile, int(given) if given else None, activate)
        audit.record(
            request.scope,
            session.by,
            "retrain",
            job=job.id,
            profile=profile,
            seed=job.seed,
            activate=activate,
            reviewed=job.reviewed,
        )
        return to(f"/console/jobs/{job.id}")

    @routes.post("/jobs/{job}/cancel")
    async def cancel(request: Request, session: LoggedIn, job: JobId) -> Response:
        """End a running job."""
        await checked(request, session)
        try:
            await parts.runner.cancel(job)
        except KeyError:
            raise Problem("job_unknown", "the list of jobs shows what is remembered") from None
        audit.record(request.scope, session.by, "cancel", job=job)
        return to(f"/console/jobs/{job}")

    @routes.post("/quarantine/erase")
    async def erase_day(request: Request, session: LoggedIn) -> Response:
        """Erase what was first seen on a day."""
        form = await checked(request, session)
        day = text(form, "day", 10)
        count = await on_disk(lambda: kept().erase(lambda item: item.day == day))
        audit.record(request.scope, session.by, "erase", day=day, images=count)
        return to("/console/quarantine")

    @routes.post("/quarantine/export")
    async def export(request: Request, session: LoggedIn) -> Response:
        """Hand out the reviewed images."""
        await checked(request, session, reviewer=True)
        chunks = kept().archive()
        audit.record(request.scope, session.by, "export")
        return parts.view.download(chunks, "reviewed.zip")

    @routes.post("/quarantine/{digest}/review")
    async def review(request: Request, session: LoggedIn, digest: Digest) -> Response:
        """Judge an image."""
        form = await checked(request, session, reviewer=True)
        given, note = form.get("verdict"), text(form, "note", _NOTE)
        said: dict[object, Verdict | None] = {"poisoned": "poisoned", "clean": "clean", "none": None}
        if given not in said:
            raise Problem("validation_failed", "the verdict is poisoned, clean or none")
        verdict = said[given]
        item = await known(lambda: kept().review(digest, verdict, session.by, note))
        audit.record(request.scope, session.by, "review", image=digest, verdict=verdict, note=note)
        if request.headers.get("hx-request"):
            return parts.view.page(request, "card.html", session=session, it=item)
        return to(f"/console/quarantine/{digest}")

    @routes.post("/quarantine/{digest}/erase")
    async def erase(request: Request, session: LoggedIn, digest: Digest) -> Response:
        """Erase an image."""
        await checked(request, session)
        if not await on_disk(lambda: kept().erase(lambda item: item.digest == digest)):
            raise Problem("image_unknown", "the gallery lists what is kept")
        audit.record(request.scope, session.by, "erase", image=digest)
        return to("/console/quarantine")

    @routes.post("/try")
    async def trial(request: Request, session: LoggedIn) -> Response:
        """Look at an image without counting it anywhere."""
        form = await checked(request, session, reviewer=True)
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise Problem("empty_body", "choose an image first")
        look = await parts.core.look(await upload.read(), info_of(request.scope))
        return parts.view.page(
            request, "try.html", session=session, model=look.model, **await asyncio.to_thread(seen, look)
        )

    def seen(look: Look) -> dict[str, Any]:
        before, after = pictures.as_bytes(look.pixels)[0], pictures.as_bytes(look.purified)[0]
        outputs = look.outputs
        raw, index = int(outputs.raw_index[0]), int(outputs.index[0])
        drawing = charts.scores(
            parts.core.watch.scores(), float(look.model.threshold), float(outputs.flag_score[0])
        )
        return {
            "look": look,
            "digest": pictures.digest(before),
            "images": [
                ("As sent", inline(before)),
                ("Purified", inline(after)),
                ("What was changed, x 4", inline(pictures.difference(before, after))),
            ],
            "raw": (look.model.classes[raw], float(softmax(outputs.logits_raw)[0, raw])),
            "answer": (look.model.classes[index], float(outputs.scores[0, index])),
            "flag_score": float(outputs.flag_score[0]),
            "threshold": float(look.model.threshold),
            "flagged": bool(outputs.flagged[0]),
            "scores": drawing,
            "box": (charts.WIDTH, charts.HEIGHT),
        }

    async def checked(request: Request, session: Session, *, reviewer: bool = False) -> FormData:
        form = await read(request)
        sessions.check(request, session, form.get("csrf"), reviewer=reviewer)
        return form

    def kept() -> Quarantine:
        if parts.quarantine is None:
            raise Problem("quarantine_off", "set DETRIGGER_QUARANTINE to a folder to keep flagged images")
        return parts.quarantine

    return routes


async def read(request: Request) -> FormData:
    """The fields of a form, which `middleware.BodyLimits` bounds in size and time."""
    return await request.form(max_files=1, max_fields=_FIELDS)


def text(form: FormData, name: str, limit: int) -> str:
    """A field as text, empty where it is missing."""
    value = form.get(name)
    return value[:limit] if isinstance(value, str) else ""


def needed(form: FormData, name: str) -> str:
    """A field that must not be empty.

    Raises:
        Problem: it is.
    """
    if not (found := text(form, name, _REASON).strip()):
        raise Problem("validation_failed", f"give a {name}: whoever looks later wants to know")
    return found


def to(path: str) -> RedirectResponse:
    """Where to go on."""
    return RedirectResponse(path, 303)


def inline(picture: pictures.Picture) -> str:
    """A picture as a data: URL."""
    return f"data:image/png;base64,{b64encode(pictures.to_png(picture)).decode()}"
