"""Serves the page over HTTP, on this machine."""

import threading
from collections.abc import Mapping
from importlib import resources

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from emu_jax.app.asking import Asked
from emu_jax.app.guard import HEADERS, Guard
from emu_jax.app.history import History
from emu_jax.app.page import SYSTEM_FONTS, Choices, Page
from emu_jax.app.studio import Main, Studio
from emu_jax.errors import UserError
from emu_jax.people.headers import SecureHeaders
from emu_jax.people.serving import is_loopback

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def make_app(studio: Studio, history: History, choices: Choices) -> FastAPI:
    """The application: gradio's page behind a guard."""
    fonts, mono = SYSTEM_FONTS
    blocks = Page(studio, history, choices).blocks()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=gr.themes.Base(font=fonts, font_mono=mono, primary_hue="blue", radius_size="md"),
        css=(resources.files("emu_jax.app") / "static" / "page.css").read_text("utf-8"),
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
    )
    blocks.has_launched = True  # else gradio does not check the paths of files
    app.add_middleware(Guard)
    app.add_middleware(SecureHeaders, headers=HEADERS)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOCAL), www_redirect=False)
    return app


def serve(
    mains: Mapping[str, Main], out: str, choices: Choices, host: str, port: int, kept: int
) -> None:
    """Serves until it is interrupted; the first model is opened meanwhile.

    Raises:
      UserError: ``host`` is open to other machines.
    """
    import uvicorn

    if not is_loopback(host):
        raise UserError(
            f"--host={host} opens the page to other machines, and it has no accounts: leave it at "
            "127.0.0.1, and reach it from elsewhere through ssh -L."
        )
    studio = Studio(mains, kept)
    app = make_app(studio, History(out), choices)
    (first,) = Asked("draw", "a red fox", choices.checkpoints[0]).commands()
    threading.Thread(target=studio.warm, args=(first,), daemon=True).start()
    address = f"[{host}]" if ":" in host else host
    print(f"page: http://{address}:{port}", flush=True)
    settings: dict = dict(log_level="warning", access_log=False, server_header=False)
    uvicorn.run(app, host=host, port=port, **settings)
