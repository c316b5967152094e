"""The lab's pages: progress, annotators, export. They need the lab's own token."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import update
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from emu_jax.errors import UserError
from emu_jax.people import tables
from emu_jax.people.access import add_annotators, csrf_token, is_lab, lab_token, renew
from emu_jax.people.answering import Refused
from emu_jax.people.dealing import deal
from emu_jax.people.exchange import as_csv, as_parquet
from emu_jax.people.questions import COMPARE
from emu_jax.people.results import (
    answer_rows,
    coverage,
    item_votes,
    missing_votes,
    names,
    progress,
)
from emu_jax.people.store import Store
from emu_jax.people.web import Site, body_of, check_csrf, set_cookie, site_of

COOKIE = "lab"
_CHANGES = {  # what the buttons of an annotator do
    "stop": {"stopped": True},
    "resume": {"stopped": False},
    "leave_out": {"left_out": True},
    "count": {"left_out": False},
}


def lab_routes(store: Store, url: str) -> list[Route]:
    """The lab's routes; ``url`` begins the links of annotators."""
    expected = lab_token(store)
    thing = "pair" if store.kind == COMPARE else "image"

    def guarded(handler: Callable[[Request, Site, str], Any]) -> Callable[[Request], Any]:
        async def guard(request: Request) -> Response:
            site, token = site_of(request), request.cookies.get(COOKIE, "")
            if not is_lab(token, expected):
                return site.message("no_link", 403)
            if not site.requests.allows(COOKIE):
                raise Refused(429, "too many")
            return await handler(request, site, token)

        return guard

    async def enter(request: Request) -> Response:
        site, token = site_of(request), request.path_params["token"]
        if not is_lab(token, expected):
            address = request.client.host if request.client else ""
            allowed = site.entries.allows(address)
            return site.message("no_link", 403) if allowed else site.message("too_many", 429)
        response = RedirectResponse("/lab", 303)
        set_cookie(response, request, COOKIE, token, "/lab")
        return response

    async def form(request: Request, site: Site, token: str) -> dict[str, str]:
        sent = parse_qs((await body_of(request)).decode("utf-8", "replace"), max_num_fields=20)
        fields = {name: values[0] for name, values in sent.items()}
        check_csrf(site, token, fields.get("csrf", ""))
        return fields

    async def page(request: Request, site: Site, token: str, **more: Any) -> Response:
        def gather() -> dict[str, Any]:
            rows = answer_rows(store)
            votes = item_votes(store, rows)
            return {
                "annotators": progress(store, rows),
                "coverage": coverage(votes),
                "missing": missing_votes(votes),
                "models": names(store),
            }

        found = await run_in_threadpool(gather)
        shown = {"links": {}, "problem": "", **more}
        shown["csrf"] = csrf_token(site.secret, token)
        return site.page("lab.html", thing=thing, settings=store.settings, **found, **shown)

    async def items(request: Request, site: Site, token: str) -> Response:
        found = await run_in_threadpool(lambda: item_votes(store, answer_rows(store)))
        return site.page("items.html", thing=thing, items=found)

    async def add(request: Request, site: Site, token: str) -> Response:
        fields = await form(request, site, token)
        wanted = [name.strip() for name in fields.get("names", "").splitlines() if name.strip()]
        try:
            tokens = await run_in_threadpool(add_annotators, store, wanted)
        except UserError as error:
            return await page(request, site, token, problem=str(error))
        await run_in_threadpool(deal, store)
        links = {name: f"{url}/a/{one}" for name, one in tokens.items()}
        return await page(request, site, token, links=links)

    async def change(request: Request, site: Site, token: str) -> Response:
        fields = await form(request, site, token)
        annotator, action = request.path_params["id"], fields.get("action", "")
        if action == "renew":
            try:
                name, one = await run_in_threadpool(renew, store, annotator)
            except UserError as error:
                return await page(request, site, token, problem=str(error))
            return await page(request, site, token, links={name: f"{url}/a/{one}"})
        if action not in _CHANGES:
            raise Refused(400, "action")

        def apply() -> None:
            people = tables.annotators
            with store.write() as connection:
                changed = update(people).where(people.c.id == annotator)
                connection.execute(changed.values(**_CHANGES[action]))
            deal(store)

        await run_in_threadpool(apply)
        return RedirectResponse("/lab", 303)

    async def export(request: Request, site: Site, token: str) -> Response:
        kind = request.path_params["kind"]
        if kind not in ("csv", "parquet"):
            raise Refused(404, "kind")
        write, media = (
            (as_csv, "text/csv") if kind == "csv" else (as_parquet, "application/octet-stream")
        )
        headers = {"Content-Disposition": f'attachment; filename="answers.{kind}"'}
        return Response(await run_in_threadpool(write, store), media_type=media, headers=headers)

    return [
        Route("/lab/enter/{token}", enter),
        Route("/lab", guarded(page)),
        Route("/lab/items", guarded(items)),
        Route("/lab/add", guarded(add), methods=["POST"]),
        Route("/lab/annotator/{id:int}", guarded(change), methods=["POST"]),
        Route("/lab/answers.{kind}", guarded(export)),
    ]
