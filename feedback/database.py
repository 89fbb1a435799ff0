"""The open database: reads on any thread, writes one after the other.

Several processes may share it, a file of SQLite or a database of PostgreSQL: every writing transaction takes the
database's one lock at its beginning, because one that reads first and writes later fails when another writer comes
between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, TypeVar

from .engines import (
    DatabaseReadOnly,
    DatabaseUnreachable,
    DatabaseUnusable,
    engine,
    is_file,
    is_whole,
    named,
    parsed_url,
    told,
    write_ahead_log_is_safe,
)
from .schema import MIGRATIONS, bring_up_to_date, copy_file
from .turns import Turns

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

__all__ = [
    "MIGRATIONS",
    "Database",
    "DatabaseReadOnly",
    "DatabaseUnreachable",
    "DatabaseUnusable",
    "write_ahead_log_is_safe",
]

T = TypeVar("T")

BATCH = 100  # changes in one transaction
LOOK_AGAIN = 1.0  # seconds; for a thread that was to go on with a transaction and was interrupted


class _Batch:
    """A transaction that several threads write into, one after the other; the last one commits for all."""

    def __init__(self, writer: Engine, turns: Turns | None) -> None:
        with ExitStack() as opened:
            if turns is not None:
                turns.take()
                opened.callback(turns.end)
            self.connection = opened.enter_context(writer.connect())
            self.transaction = self.connection.begin()
            self._opened = opened.pop_all()  # closed in the other order; closing rolls back what was not committed
        self.changes = 0
        self.ended = Event()
        self.failure: Exception | None = DatabaseUnusable("The transaction was given up, so nothing was written.")

    def commit(self) -> None:
        """Returns once everything is on disk, or else `failure` says why it is not."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self.transaction.commit()
            self.failure = None
        except SQLAlchemyError as error:
            self.failure = error
        finally:
            self._opened.close()
            self.ended.set()

    def give_up(self, why: Exception) -> None:
        """Lets go of a transaction that the database has already ended, as it does on a full disk."""
        self.failure = why
        try:
            self.connection.invalidate()
        finally:
            self._opened.close()
            self.ended.set()


@contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """What is done within is done wholly or not at all; always of one name, so that a server need not read it anew."""
    from sqlalchemy.exc import SQLAlchemyError

    connection.exec_driver_sql("SAVEPOINT change")
    try:
        yield
    except BaseException:
        try:
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT change")
        except SQLAlchemyError:  # the database has ended the transaction; if not, half a change must not stay in it
            connection.invalidate()
        raise
    connection.exec_driver_sql("RELEASE SAVEPOINT change")


class Database:
    """Reads on any thread through `read`, writes one after the other through `write`.

    url: `sqlite:///` and a file, or `postgresql://`. Raises DatabaseUnusable if it can't be opened or is none of ours.
    One that a newer version of the pack wrote is opened for reading only, and `read_only` says so.
    """

    def __init__(self, url: str, migrations: Path = MIGRATIONS) -> None:
        self.url = parsed_url(url)
        self._reader = engine(self.url, writes=False)
        self._writer = engine(self.url, writes=True)
        self.read_only = bring_up_to_date(self.url, migrations)
        self._path = Path(str(self.url.database)) if is_file(self.url) else None
        self._file = self._path.stat() if self._path else None
        self._turns = Turns(self._path) if self._path else None
        self._turn = Lock()
        self._count = Lock()
        self._waiting = 0
        self._batch: _Batch | None = None
        self._closed = False

    def read(self, query: Callable[[Connection], T]) -> T:
        """The result of `query` on one consistent snapshot."""
        with told(self.url, "read"), self._reader.begin() as connection:
            return query(connection)

    def write(self, change: Callable[[Connection], T]) -> T:
        """Runs `change` alone and wholly or not at all, and returns its result once it is on disk.

        Changes that wait at the same time share one transaction, each in a savepoint of its own, because what takes
        long is the disk and not the change.
        """
        self._check()
        with told(self.url, "written"):
            batch, result = self._join(change)
            while not batch.ended.wait(LOOK_AGAIN):
                with self._turn:
                    if not batch.ended.is_set():
                        self._commit(batch)
            if batch.failure is not None:
                raise batch.failure
            return result

    def _check(self) -> None:
        """A removed file can still be written to, but what is written goes with it."""
        if self.read_only is not None:
            raise DatabaseReadOnly(self.read_only)
        if self._closed:
            raise DatabaseUnusable("The feedback database was closed, so nothing is written.")
        if self._path is None or self._file is None:
            return
        if not self._path.exists() or not os.path.samestat(self._path.stat(), self._file):
            raise DatabaseUnusable(
                f"The feedback database {self._path} was removed or replaced while it was open, so nothing is written. "
                "Put it back, or restart ComfyUI to go on with what is there now."
            )

    def _join(self, change: Callable[[Connection], T]) -> tuple[_Batch, T]:
        """Runs the change in the transaction that is open, or a new one; the last in the queue commits."""
        with self._queued():
            batch = self._batch = self._batch or _Batch(self._writer, self._turns)
            try:
                with _savepoint(batch.connection):
                    result = change(batch.connection)
            finally:
                self._go_on(batch)
            return batch, result

    @contextmanager
    def _queued(self) -> Iterator[None]:
        with self._count:
            self._waiting += 1
        try:
            self._turn.acquire()
        finally:
            with self._count:
                self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    def _go_on(self, batch: _Batch) -> None:
        """Leaves the transaction to the next who waits, ends it where nobody does."""
        batch.changes += 1
        if not is_whole(batch.connection):
            self._batch = None
            batch.give_up(self._lost())
        elif self._waiting == 0 or batch.changes >= BATCH:
            self._commit(batch)

    def _commit(self, batch: _Batch) -> None:
        self._batch = None
        batch.commit()

    def _lost(self) -> Exception:
        kind = DatabaseUnusable if is_file(self.url) else DatabaseUnreachable
        return kind(
            f"The feedback database {named(self.url)} ended a transaction by itself; nothing of it was kept. See that "
            "the disk has room and that the server runs, then try again."
        )

    def back_up(self, target: Path) -> None:
        """Writes a copy of the file as it is now, also while it is written to. Raises DatabaseUnusable for a server."""
        if self._path is None:
            raise DatabaseUnusable(f"{named(self.url)} is a server's database; back it up with pg_dump.")
        with told(self.url, "read"):
            copy_file(self._path, target)

    def close(self) -> None:
        """Waits for what was already asked to be written, then lets go of the database."""
        with self._turn:
            self._closed = True
            if self._batch is not None:
                self._commit(self._batch)
            self._reader.dispose()
            self._writer.dispose()
            if self._turns is not None:
                self._turns.close()
