"""Opening the database: engines, migrations, and the one thread that writes.

SQLite only, so far. Two processes may share the file: every write takes the lock at its beginning (`BEGIN IMMEDIATE`),
because a transaction that reads first and writes later fails when another writer comes between.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from .tables import VERSION_TABLE

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT = 60_000  # milliseconds; with every writer queueing at BEGIN IMMEDIATE, waits of 12 s were measured
BATCH = 100  # changes in one transaction


class DatabaseUnusable(RuntimeError):
    """The database can't be opened, read or written; the message says which one, why, and what to do."""


class DatabaseReadOnly(RuntimeError):
    """The database can be read but not written; the message says why."""


def write_ahead_log_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite library has the fix of the WAL-reset bug, which could lose a committed transaction."""
    fixed = {(3, 44): 6, (3, 50): 7, (3, 51): 3}
    major, minor, patch = version[:3]
    return (major, minor) > (3, 51) or patch >= fixed.get((major, minor), 1_000_000)


def sqlite_engine(url: URL, begin: str, foreign_keys: bool = True) -> Engine:
    """An engine whose transactions open with `begin`, and whose commits are on disk when they return.

    foreign_keys: off for migrations only, because SQLite changes a table by making it anew and dropping the old one.
    """
    from sqlalchemy import create_engine, event

    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT / 1000, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late, so ours replaces it
        journal = "WAL" if write_ahead_log_is_safe(sqlite3.sqlite_version_info) else "TRUNCATE"
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT}")
        if begin != "BEGIN":
            connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA trusted_schema=OFF")  # a triggered file from elsewhere must not run functions

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


class Database:
    """Reads on any thread through `read`, writes one after the other through `write`.

    Raises DatabaseUnusable if the file can't be opened or is none of ours. One that a newer version of the pack wrote
    is opened for reading only, and `read_only` says so.
    """

    def __init__(self, url: str, migrations: Path = MIGRATIONS) -> None:
        self.url = _sqlite_url(url)
        self._reader = sqlite_engine(self.url, "BEGIN")
        self._writer = sqlite_engine(self.url, "BEGIN IMMEDIATE")
        self.read_only = _open(sqlite_engine(self.url, "BEGIN IMMEDIATE", foreign_keys=False), self.url, migrations)
        self._path = Path(str(self.url.database))
        self._file = self._path.stat()
        self._waiting: SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]]] = SimpleQueue()
        self._thread = ThreadPoolExecutor(1, "feedback-writer")

    def read(self, query: Callable[[Connection], T]) -> T:
        """The result of `query` on one consistent snapshot."""
        with self._usable("read"), self._reader.begin() as connection:
            return query(connection)

    def write(self, change: Callable[[Connection], T]) -> T:
        """Runs `change` alone and wholly or not at all, and returns its result once it is on disk.

        Changes that wait at the same time share one transaction, each in a savepoint of its own, because what takes
        long is the disk and not the change.
        """
        if self.read_only is not None:
            raise DatabaseReadOnly(self.read_only)
        self._check_file()
        future: Future[T] = Future()
        self._waiting.put((change, future))
        self._thread.submit(self._write_waiting)
        with self._usable("written"):
            return future.result()

    def _check_file(self) -> None:
        """A removed file can still be written to, but what is written goes with it."""
        if not self._path.exists() or not os.path.samestat(self._path.stat(), self._file):
            raise DatabaseUnusable(
                f"The feedback database {self._path} was removed or replaced while it was open, so nothing is written. "
                "Put it back, or restart ComfyUI to go on with what is there now."
            )

    @contextmanager
    def _usable(self, done: str) -> Iterator[None]:
        """Says in a sentence what SQLite says in a word: a full disk, a lock that is never given up, a lost file."""
        from sqlalchemy.exc import OperationalError

        try:
            yield
        except OperationalError as error:
            raise DatabaseUnusable(
                f"The feedback database {self.url.database} can't be {done}: {error.orig}. Nothing was changed. "
                "See that the disk has room and that the file is there, then try again."
            ) from error

    def _write_waiting(self) -> None:
        batch = [self._waiting.get_nowait() for _ in range(min(self._waiting.qsize(), BATCH))]
        if not batch:
            return  # an earlier turn took more than its own change
        try:
            with self._writer.begin() as connection:
                outcomes = [_attempt(connection, change) for change, _ in batch]
        except Exception as error:  # noqa: BLE001 - raised again by `write`, in every thread that waits
            outcomes = [(None, error)] * len(batch)
        for (_, future), (result, error) in zip(batch, outcomes, strict=True):
            future.set_result(result) if error is None else future.set_exception(error)

    def close(self) -> None:
        """Waits for what was already asked to be written, then lets go of the file."""
        self._thread.shutdown()
        self._reader.dispose()
        self._writer.dispose()


def _attempt(connection: Connection, change: Callable[[Connection], T]) -> tuple[T | None, Exception | None]:
    """(result, None), or (None, error) with everything undone that the change did."""
    savepoint = connection.begin_nested()
    try:
        result = change(connection)
    except Exception as error:  # noqa: BLE001 - raised again by `write`, in the thread that asked
        savepoint.rollback()
        return None, error
    savepoint.commit()
    return result, None


def _sqlite_url(url: str) -> URL:
    from sqlalchemy import make_url

    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseUnusable(
            f"{parsed.render_as_string()} is no SQLite database; use sqlite:/// and the path of a file."
        )
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUnusable("The feedback database must be a file: sqlite:/// and its path.")
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    return parsed


def _open(engine: Engine, url: URL, migrations: Path) -> str | None:
    """Brings the schema up to date; returns why the database is read-only, or None."""
    from sqlalchemy.exc import DatabaseError

    try:
        with engine.begin() as connection:
            return _migrate(connection, Path(str(url.database)), migrations)
    except DatabaseError as error:
        raise DatabaseUnusable(
            f"The feedback database {url.database} can't be opened: {error.orig}. Move it away or put a backup "
            "(feedback*.backup beside it) in its place, then start again."
        ) from error
    finally:
        engine.dispose()


def _migrate(connection: Connection, path: Path, migrations: Path) -> str | None:
    """The files of the migrations are named after their revisions, 0001_..., 0002_..., one after the other."""
    from sqlalchemy import inspect, text

    known = [file.name.split("_")[0] for file in (migrations / "versions").glob("[0-9]*_*.py")]
    tables = inspect(connection).get_table_names()
    current = None
    if VERSION_TABLE in tables:
        query = text(f"SELECT version_num FROM {VERSION_TABLE}")  # a constant of ours # nosec B608
        current = connection.execute(query).scalar_one_or_none()
    if current == max(known):
        return None
    if current is not None and current not in known:
        return (
            f"The feedback database {path} was written by a newer version of Feedback Loop (schema {current}), so it "
            "is opened for reading only. Update the pack to write to it."
        )
    if tables:
        _back_up(path, current or "foreign")
    _upgrade(connection, migrations)
    return None


def _upgrade(connection: Connection, migrations: Path) -> None:
    """Imports alembic only where there is something to do, which is once in a database's life."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    command.upgrade(config, "head")


def _back_up(path: Path, version: str) -> Path:
    """Copies the database beside itself; the copy is named after its schema and the time."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    target = path.with_name(f"{path.stem}-{version}-{stamp}.backup")
    source, copy = sqlite3.connect(path), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
    return target
