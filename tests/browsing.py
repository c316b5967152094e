"""A real browser and a real server, for tests of pages. A helper, not a test."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 120_000  # milliseconds: the machine may be busy


@contextlib.contextmanager
def served(app) -> Iterator[str]:
    """The address of a server of the application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def chromium() -> Iterator:
    """Debian's chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def open_page(context, problems):
    """A page of a browser; what its console says is added to ``problems``."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    return page
