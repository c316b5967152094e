"""What of gradio a browser reaches: the page and its events, with plain values, from this page.

Gradio's own server also serves files by their path, fetches addresses, takes uploads and runs its
functions for other programs. None of that is needed, and all of it is refused here, before it gets
to gradio: an input of an event is text, a number or a list of these, never the description of a
file, whose path gradio would open.
"""

import json
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from emu_jax.people.headers import HEADERS as STRICT

MOST_BYTES = 2**27  # of a request: a photograph of 67 megapixels has less
_PAGE = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_READ = ("/gradio_api/queue/data", "/gradio_api/startup-events")
_JOIN = "/gradio_api/queue/join"
_WRITTEN = (_JOIN, "/gradio_api/cancel", "/gradio_api/reset")
HEADERS = STRICT | {  # gradio's page has scripts and styles inside, and compiles templates
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "form-action 'self'; base-uri 'self'; frame-ancestors 'none'",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = 404
        if scope["type"] == "http" and _is_known(scope["method"], scope["path"]):
            status = 200 if _is_own(Headers(scope=scope)) else 403
        if status == 200 and scope["method"] == "POST":
            body = await _body(receive)
            receive = _again(body or b"", receive)
            if body is None:
                status = 413
            elif scope["path"] == _JOIN and not _is_plain_event(body):
                status = 400
        answer = self._app if status == 200 else PlainTextResponse("", status)
        await answer(scope, receive, send)


def _is_known(method: str, path: str) -> bool:
    if method in ("GET", "HEAD"):
        return path in (*_PAGE, *_READ) or path.startswith(_BELOW)
    return method == "POST" and path in _WRITTEN


def _is_own(headers: Headers) -> bool:
    """Whether a request comes from the page itself, or from no page."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return False
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def _is_plain_event(body: bytes) -> bool:
    try:
        sent = json.loads(body)
        return isinstance(sent, dict) and _is_plain(sent.get("data", []))
    except (ValueError, RecursionError):
        return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None: it is too large."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body, and then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> Message:
        return first.pop() if first else await receive()

    return given
