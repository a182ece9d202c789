"""What pages tell a browser: nothing from elsewhere, nothing inside the page that runs, in nobody's frame."""

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""For every page: nothing from elsewhere, no script and no style inside the page, in nobody's frame."""


def headers(policy: str) -> dict[str, str]:
    """What every answer bears to a browser."""
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",  # no-referrer would blank the Origin that `same_origin` looks at
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


class Headers:
    """Adds headers to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp, values: Mapping[str, str]) -> None:
        self.app = app
        self.values = {name.lower().encode(): value.encode() for name, value in values.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection scope."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", ()))
                names = {name.lower() for name, _ in given}
                given += [(name, value) for name, value in self.values.items() if name not in names]
                message["headers"] = given
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)
