"""Who may see what: tokens, cookies, CSRF tokens, rate limits.

Annotators and the lab have links with random tokens of 128 bits. The database has only digests of
them: who reads it cannot answer in another's name.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence

from sqlalchemy import bindparam, insert, select, update

from emu_jax.errors import UserError
from emu_jax.people import tables
from emu_jax.people.answering import Annotator
from emu_jax.people.store import Store

_LAB_FILE = "lab_token.txt"
_LONGEST_NAME = 100
_BY_TOKEN = select(tables.annotators).where(tables.annotators.c.token == bindparam("token"))


def new_token() -> str:
    return secrets.token_urlsafe(16)


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def add_annotators(store: Store, names: Sequence[str]) -> dict[str, str]:
    """Adds annotators and returns their tokens by name.

    Raises:
      UserError: a name is empty, too long, or used already.
    """
    with store.write() as connection:
        there = set(connection.scalars(select(tables.annotators.c.name)))
        for i, name in enumerate(names):
            if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
                raise UserError(
                    f"{name[:_LONGEST_NAME]!r} cannot name an annotator: use 1 to "
                    f"{_LONGEST_NAME} printable characters."
                )
            if name in there or name in names[:i]:
                raise UserError(f"There is an annotator {name!r} already: use another name.")
        tokens = {name: new_token() for name in names}
        rows = [
            {"name": name, "token": digest(token), "stopped": False, "left_out": False}
            for name, token in tokens.items()
        ]
        if rows:
            connection.execute(insert(tables.annotators), rows)
    return tokens


def renew(store: Store, annotator: int) -> tuple[str, str]:
    """(name, token) of an annotator whose old link no longer works."""
    people, token = tables.annotators, new_token()
    with store.write() as connection:
        connection.execute(
            update(people).where(people.c.id == annotator).values(token=digest(token))
        )
        name = connection.execute(select(people.c.name).where(people.c.id == annotator)).scalar()
    if name is None:
        raise UserError("There is no such annotator.")
    return name, token


def annotator_of(store: Store, token: str | None) -> Annotator | None:
    """The annotator whose token this is."""
    if not token:
        return None
    found = digest(token)
    with store.read() as connection:
        row = connection.execute(_BY_TOKEN, {"token": found}).one_or_none()
    if row is None or not hmac.compare_digest(row.token, found):
        return None
    return Annotator(row.id, row.name, row.stopped or row.left_out)


def lab_token(store: Store) -> str:
    """The token of the lab's page, made once and kept in a file that only its owner can read."""
    path = os.fspath(store.folder / _LAB_FILE)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_token())
    except FileExistsError:
        pass
    with open(path) as file:
        token = file.read().strip()
    if len(token) < 22:
        raise UserError(f"{path} has no token: remove the file.")
    return token


def is_lab(token: str | None, expected: str) -> bool:
    return bool(token) and hmac.compare_digest(digest(token or ""), digest(expected))


def csrf_token(secret: str, token: str) -> str:
    """Belongs to one session, and is on its pages only: other sites cannot send it."""
    return hmac.new(secret.encode(), token.encode(), hashlib.sha256).hexdigest()


class Limit:
    """At most ``rate`` requests a second by each client, and ``burst`` at once."""

    def __init__(self, rate: float, burst: int, clients: int = 10_000):
        self._rate, self._burst, self._clients = rate, burst, clients
        self._buckets: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def allows(self, client: object, now: float | None = None) -> bool:
        now = time.monotonic() if now is None else now
        left, then = self._buckets.pop(client, (float(self._burst), now))
        left = min(self._burst, left + (now - then) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - allowed, now)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return allowed
