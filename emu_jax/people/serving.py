"""Serves a study over HTTP."""

import ipaddress
from urllib.parse import urlsplit

from emu_jax.errors import UserError
from emu_jax.people.access import lab_token
from emu_jax.people.lab import lab_routes
from emu_jax.people.store import Store
from emu_jax.people.web import load_strings, make_app

_LOCAL = ("localhost", "127.0.0.1", "[::1]")


def serve(store: Store, host: str, port: int, url: str = "", language: str = "en") -> None:
    """Serves until it is interrupted. ``url`` is the address that annotators use, where that is not
    this machine: of a reverse proxy, which ends TLS.

    Raises:
      UserError: the address is not usable, or ``host`` is open to others without ``url``.
    """
    import uvicorn

    if not url and not is_loopback(host):
        raise UserError(
            f"--host={host} opens the study to other machines; name the address that annotators "
            "use with --url=https://NAME."
        )
    url = (url or f"http://{host}:{port}").rstrip("/")
    name = urlsplit(url).hostname
    if urlsplit(url).scheme not in ("http", "https") or not name:
        raise UserError(f"--url={url} is not an address; use https://NAME.")
    app = make_app(store, load_strings(language), (*_LOCAL, name), lab_routes(store, url))
    print(f"lab: {url}/lab/enter/{lab_token(store)}", flush=True)
    # Only a proxy on this machine may say which scheme and address a browser used.
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # links have tokens in their paths
        server_header=False,
        proxy_headers=True,
        forwarded_allow_ips="127.0.0.1,::1",
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
