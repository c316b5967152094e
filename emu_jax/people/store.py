"""The database of a study: SQLite in its folder, or PostgreSQL by URL.

A write is committed, and on the disk, before it returns: SQLite in WAL mode syncs its log with
every commit (``synchronous=FULL``), PostgreSQL by default. Threads of this process write one after
the other, which SQLite needs and which keeps answers quick where 100 annotators work at once.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from emu_jax.errors import UserError
from emu_jax.people import tables

SYNCHRONOUS = "FULL"  # SQLite's log is synced with every commit
_FILE = "study.sqlite"


class Store:
    """The folder of a study, and connections to its database."""

    def __init__(self, folder: epath.PathLike, database: str = ""):
        self.folder = epath.Path(folder)
        self.engine = _engine(database or f"sqlite:///{self.folder / _FILE}")
        own = self.engine.dialect.name == "sqlite"
        self._lock = threading.Lock() if own else None
        # PostgreSQL takes a snapshot for each statement anyway: no BEGIN and ROLLBACK around reads.
        self._reading = (
            self.engine if own else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        )

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        with self._reading.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction; it is on the disk when the block ends without an error."""
        with (
            self._lock or contextlib.nullcontext(),
            self.engine.connect().execution_options(writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    def study(self) -> Any:
        """The row of the study."""
        with self.read() as connection:
            return connection.execute(select(tables.study)).one()

    @functools.cached_property
    def kind(self) -> str:
        """What the study is: compare, or a stage of curation."""
        return self.study().kind

    @property
    def settings(self) -> dict[str, Any]:
        return self.study().settings

    def image(self, file: str) -> epath.Path:
        """The file of an image; its name comes from the database."""
        return self.folder / "images" / file

    def close(self) -> None:
        self.engine.dispose()


def create_store(folder: epath.PathLike, database: str = "") -> Store:
    """The store of a new study, or of one that is not complete yet."""
    place = epath.Path(folder)
    (place / "images").mkdir(parents=True, exist_ok=True)
    store = Store(place, database)
    with store.write() as connection:
        tables.metadata.create_all(connection)
    return store


def open_store(folder: epath.PathLike, database: str = "") -> Store:
    """The store of a complete study.

    Raises:
      UserError: there is no study, or some of its images are missing.
    """
    place = epath.Path(folder)
    if not database and not (place / _FILE).exists():
        raise UserError(
            f"There is no study in {folder}; make one with emu-jax people compare, or name its "
            "--database."
        )
    store = Store(place, database)
    with store.read() as connection:
        there = store.engine.dialect.has_table(connection, tables.study.name)
        ready = there and connection.execute(select(tables.study.c.ready)).scalar()
    if not ready:
        raise UserError(
            f"The study in {folder} is not complete: run the command that makes it again."
        )
    return store


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_size=16, max_overflow=32)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise UserError(
            f"--database={url} cannot be used ({error}); use postgresql://USER@HOST/NAME, with "
            "psycopg installed."
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        try:
            engine.connect().close()
        except OperationalError as error:
            raise UserError(f"The database cannot be reached: {error.orig}") from error
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    pragmas = dict(
        journal_mode="WAL", synchronous=SYNCHRONOUS, foreign_keys="ON", busy_timeout="30000"
    )
    for name, value in pragmas.items():
        connection.execute(f"PRAGMA {name}={value}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could lose to another process.
    writes = connection.get_execution_options().get("writes")
    connection.execute(text("BEGIN IMMEDIATE" if writes else "BEGIN"))
