"""The pages of annotators and of the lab, as an ASGI application."""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from emu_jax.errors import UserError
from emu_jax.people import answering
from emu_jax.people.access import Limit, annotator_of, csrf_token
from emu_jax.people.answering import Annotator, Refused
from emu_jax.people.headers import SecureHeaders
from emu_jax.people.questions import COMPARE, FAULTS, QUESTIONS
from emu_jax.people.store import Store

COOKIE = "annotator"
DAYS = 90 * 24 * 3600
_MOST_BYTES = 65_536  # of a request's body
_STATIC = {
    "/people.css": "text/css",
    "/queue.js": "text/javascript",
    "/compare.js": "text/javascript",
    "/curate.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}

Handler = Callable[[Request], Awaitable[Response]]


class Site:
    """What all handlers share."""

    def __init__(self, store: Store, strings: Mapping[str, Any]):
        self.store = store
        self.strings = strings
        study = store.study()
        self.secret, self.kind = study.secret, study.kind
        self.entries = Limit(rate=0.5, burst=20)  # wrong links, by address
        self.requests = Limit(rate=50, burst=300)  # by session; a wall has 48 images
        loader = PackageLoader("emu_jax.people")
        self.pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        template = self.pages.get_template(name)
        return HTMLResponse(template.render(strings=self.strings, **values), status)

    def message(self, what: str, status: int) -> HTMLResponse:
        title, text = self.strings[f"{what}_title"], self.strings[what]
        return self.page("message.html", status, title=title, text=text)


def make_app(
    store: Store,
    strings: Mapping[str, Any],
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "[::1]"),
    more: Sequence[Route] = (),
) -> Starlette:
    """The application. ``hosts`` are the names under which browsers may reach it; ``more`` are the
    routes of the lab.
    """
    routes = [
        Route("/", _home),
        Route("/a/{token}", _enter),
        Route("/state", _state),
        Route("/answer", _answer, methods=["POST"]),
        Route("/undo", _undo, methods=["POST"]),
        Route("/image/{task}/{side}", _image),
        *(Route(path, _static(path, kind)) for path, kind in _STATIC.items()),
        *more,
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(SecureHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={Refused: _refused, HTTPException: _failed},
    )
    app.state.site = Site(store, strings)
    return app


def load_strings(language: str) -> dict[str, Any]:
    """The texts of the pages in a language, or in a file like ``strings/en.json``; those that it
    lacks are English.
    """
    folder = resources.files("emu_jax.people") / "strings"
    english = json.loads((folder / "en.json").read_text("utf-8"))
    own = language.endswith(".json")
    file = Path(language) if own else folder / f"{language}.json"
    if not file.is_file() or not (own or language.isalnum()):
        known = sorted(one.name.removesuffix(".json") for one in folder.iterdir())
        raise UserError(
            f"There is no language {language!r}; use {', '.join(known)} or the path of a .json "
            "file."
        )
    try:
        return _joined(english, json.loads(file.read_text("utf-8")))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} does not have the form of {folder / 'en.json'}: {error}") from None


def _joined(english: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of ``own``, with those that it lacks in English."""
    for name, text in own.items():
        if name not in english or type(text) is not type(english[name]):
            raise TypeError(f"{name!r} is not a text of it")
    found = {**english, **own}
    groups = {name: text for name, text in english.items() if isinstance(text, dict)}
    return {**found, **{name: _joined(text, own.get(name, {})) for name, text in groups.items()}}


async def body_of(request: Request) -> bytes:
    """The body of a request, which may have at most 64 KiB."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BYTES:
            raise Refused(413, "too large")
        parts.append(part)
    return b"".join(parts)


def site_of(request: Request) -> Site:
    return request.app.state.site


async def _home(request: Request) -> Response:
    site = site_of(request)
    annotator = await run_in_threadpool(annotator_of, site.store, request.cookies.get(COOKIE))
    if annotator is None:
        return site.message("no_link", 403)
    token = request.cookies[COOKIE]
    return site.page(
        "compare.html" if site.kind == COMPARE else "curate.html",
        csrf=csrf_token(site.secret, token),
        session=hashlib.sha256(f"{site.secret} {annotator.id}".encode()).hexdigest()[:16],
        questions={name: one.answers for name, one in QUESTIONS.items()},
        faults=FAULTS,
    )


async def _enter(request: Request) -> Response:
    """Exchanges a link for a cookie, so that the token leaves the address bar."""
    site, token = site_of(request), request.path_params["token"]
    address = request.client.host if request.client else ""
    annotator = await run_in_threadpool(annotator_of, site.store, token)
    if annotator is None:
        allowed = site.entries.allows(address)
        return site.message("no_link", 403) if allowed else site.message("too_many", 429)
    response = RedirectResponse("/", 303)
    set_cookie(response, request, COOKIE, token, "/")
    return response


def set_cookie(response: Response, request: Request, name: str, token: str, path: str) -> None:
    """Lax, not strict: a strict cookie is not sent where a link in a mail leads here."""
    response.set_cookie(
        name,
        token,
        max_age=DAYS,
        path=path,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


async def _session(request: Request, token: bool = False) -> Annotator:
    """The annotator of a request.

    Raises:
      Refused: there is none, the request does not come from a page of theirs (``token``), or there
        are too many.
    """
    site, link = site_of(request), request.cookies.get(COOKIE, "")
    annotator = await run_in_threadpool(annotator_of, site.store, link)
    if annotator is None:
        raise Refused(401, "no link")
    if token:
        check_csrf(site, link, request.headers.get("x-csrf-token", ""))
    if not site.requests.allows(annotator.id):
        raise Refused(429, "too many")
    return annotator


def check_csrf(site: Site, token: str, sent: str) -> None:
    expected = csrf_token(site.secret, token)
    if not hmac.compare_digest(expected.encode(), sent.encode()):
        raise Refused(403, "csrf")


async def _state(request: Request) -> Response:
    # The token of the page shows that the browser has not opened another annotator's link since.
    annotator = await _session(request, token=True)
    found = await run_in_threadpool(answering.state, site_of(request).store, annotator)
    return JSONResponse(found)


async def _answer(request: Request) -> Response:
    annotator = await _session(request, token=True)
    try:
        sent = json.loads(await body_of(request))
    except (ValueError, RecursionError) as error:
        raise Refused(400, "malformed") from error
    store = site_of(request).store

    def keep() -> dict[str, Any]:
        match sent:
            case dict():
                acknowledged = answering.record(store, annotator, sent)
            case list():
                acknowledged = answering.record_all(store, annotator, sent)
            case _:
                raise Refused(400, "malformed")
        return {**acknowledged, "state": answering.state(store, annotator)}

    return JSONResponse(await run_in_threadpool(keep))


async def _undo(request: Request) -> Response:
    annotator = await _session(request, token=True)
    store = site_of(request).store
    await body_of(request)
    await run_in_threadpool(answering.undo, store, annotator)
    return JSONResponse(await run_in_threadpool(answering.state, store, annotator))


async def _image(request: Request) -> Response:
    """A side of one of the annotator's tasks. The database says which file that is."""
    annotator = await _session(request)
    store, task, side = site_of(request).store, *map(request.path_params.get, ("task", "side"))
    if side not in ("a", "b"):
        raise Refused(404, "side")

    def read() -> bytes:
        return store.image(answering.image_of(store, annotator, str(task), side)).read_bytes()

    # The path of a task's image never changes. No date of the file and no tag: they tell models
    # apart that were drawn one after the other.
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(await run_in_threadpool(read), media_type="image/png", headers=headers)


def _static(path: str, kind: str) -> Handler:
    content = (resources.files("emu_jax.people") / "static" / path[1:]).read_bytes()

    async def handler(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return handler


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": str(error)}, error.status)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return site_of(request).message("missing", 404)
    return Response(status_code=error.status_code, headers=error.headers)
