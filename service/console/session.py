"""Who is logged in: a signed cookie, without any state but the logouts of this process.

    cookie = payload . HMAC(sha256(token), payload)       payload = expires ~ nonce ~ name

The key comes from the token that was typed in, so a session ends when its token is taken away; a restart does not end
it. The cookie is HttpOnly and SameSite=Strict, and is sent under /console only. A form that changes something carries a
second HMAC, over the nonce, and comes from the same origin.
"""

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from fastapi import Request, Response

from detrigger.service.access import Access, Role
from detrigger.service.problem import Problem

COOKIE = "detrigger_session"
HOURS = 8
_NAME_CHARACTERS = 60


@dataclass(frozen=True)
class Session:
    """One login."""

    role: Role
    name: str  # as typed in at login; a courtesy to colleagues, no proof
    nonce: str
    csrf: str

    @property
    def by(self) -> str:
        """How the session signs what it does."""
        return f"{self.role}:{self.name}" if self.name else self.role


class NotLoggedIn(Exception):  # noqa: N818 - it is no error
    """The request has no session that counts."""


class Sessions:
    """The sessions of one service."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._ended: dict[str, float] = {}  # nonce -> when it would have expired

    def begin(self, request: Request, response: Response, token: bytes, name: str) -> None:
        """Log in with a token that was found to be right."""
        label = base64.urlsafe_b64encode(_clean(name).encode()).decode()
        payload = f"{int(time.time() + HOURS * 3600)}~{secrets.token_hex(16)}~{label}"
        signature = _mac(hashlib.sha256(token).digest(), payload)
        response.set_cookie(
            COOKIE,
            f"{payload}.{signature}",
            max_age=HOURS * 3600,
            path="/console",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )

    def end(self, session: Session, response: Response) -> None:
        """Log out: this session counts no longer, wherever its cookie went."""
        now = time.time()
        self._ended = {nonce: until for nonce, until in self._ended.items() if until > now}
        self._ended[session.nonce] = now + HOURS * 3600
        response.delete_cookie(COOKIE, path="/console", httponly=True, samesite="strict")

    def of(self, request: Request) -> Session:
        """The session of a request.

        Raises:
            NotLoggedIn: there is none, it has expired, was ended, or its token counts no longer.
        """
        payload, _, signature = request.cookies.get(COOKIE, "").rpartition(".")
        for key, role in self._access.keys().items():
            if hmac.compare_digest(_mac(key, payload).encode(), signature.encode()):
                expires, nonce, label = payload.split("~")
                if int(expires) < time.time() or nonce in self._ended:
                    break
                name = base64.urlsafe_b64decode(label).decode()
                return Session(role, name, nonce, _mac(key, f"csrf~{nonce}"))
        raise NotLoggedIn

    def check(self, request: Request, session: Session, given: object, *, reviewer: bool = False) -> None:
        """Hold a request that changes something against its session.

        Raises:
            Problem: it was not sent by one of our pages, or the role does not allow it.
        """
        same_origin(request)
        if not (isinstance(given, str) and hmac.compare_digest(given.encode(), session.csrf.encode())):
            raise Problem("forbidden", "the form is from another session; reload the page and send it again")
        if session.role != "admin" and not reviewer:
            raise Problem("forbidden", "this token reads and reviews; this needs the admin token")


def same_origin(request: Request) -> None:
    """Refuse what a browser says was sent by another site's page.

    Raises:
        Problem: it was.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    host = request.headers.get("host", "")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or site not in (None, "same-origin", "none"):
        raise Problem("forbidden", "the form was sent by a page of another site")


def _mac(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _clean(name: str) -> str:
    return "".join(c for c in name.strip() if c.isprintable())[:_NAME_CHARACTERS]
