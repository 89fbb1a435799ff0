"""Connections to SQLite and PostgreSQL: how each is asked to lose nothing, and to let one writer in at a time."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InvalidRecord

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

BUSY_TIMEOUT = 60_000  # milliseconds; with every writer queueing at BEGIN IMMEDIATE, waits of 12 s were measured
READERS = 40  # connections that read at once
WRITERS_LOCK = 5_127_409_338_160_041  # of PostgreSQL's advisory locks, ours; the number has no meaning
GIVE_UP = 10  # seconds after which a server that says nothing counts as gone

POSTGRESQL = {
    "connect_timeout": str(GIVE_UP // 2),
    "tcp_user_timeout": str(GIVE_UP * 1000),
    "keepalives_idle": str(GIVE_UP),
    "options": f"-c synchronous_commit=on -c lock_timeout={BUSY_TIMEOUT // 2} -c timezone=UTC",
}
"""What every connection asks for, unless the URL says otherwise."""


class DatabaseUnusable(RuntimeError):
    """The database can't be opened, read or written; the message says which one, why, and what to do."""


class DatabaseUnreachable(DatabaseUnusable):
    """A database server that does not answer or can't write now, and may do so later."""


class DatabaseReadOnly(RuntimeError):
    """The database can be read but not written; the message says why."""


def parsed_url(url: str) -> URL:
    """The database that `url` names. Raises DatabaseUnusable for one that we can't use, never telling its password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # whose own messages may repeat the password
        raise DatabaseUnusable(
            "FEEDBACK_LOOP_DATABASE_URL can't be read. It looks like postgresql://user:password@host:5432/database or "
            "sqlite:////folder/feedback.sqlite3; special characters in the password are written as %40 and the like."
        ) from None
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseUnusable(
            f"{named(parsed)} is neither SQLite nor PostgreSQL; use sqlite:/// and a file, or postgresql://."
        )
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseUnusable("The feedback database must be a file: sqlite:/// and its path.")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseUnusable(
            f"The folder of the feedback database {parsed.database} can't be made: {error.strerror}."
        ) from error
    return parsed


def is_file(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def named(url: URL) -> str:
    """How messages call the database: its file, or its address without the password."""
    if is_file(url):
        return str(url.database)
    return f"{url.username or ''}@{url.host or 'localhost'}:{url.port or 5432}/{url.database or ''}"


def folder_of(url: URL) -> str:
    """A name for files that belong to one database, the same whoever asks it."""
    where = f"{url.host}:{url.port or 5432}/{url.database}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def without_password(text: str, url: URL) -> str:
    """The first line of `text` as it may be shown, without the password in the URL or one in its parameters."""
    passwords = [url.password, url.query.get("password"), url.query.get("sslpassword")]
    for password in passwords:
        if isinstance(password, str) and password:
            text = text.replace(password, "***")
    return text.strip().partition("\n")[0]


def engine(url: URL, writes: bool, foreign_keys: bool = True) -> Engine:
    """An engine whose transactions see one snapshot; or, if it writes, are alone and on disk once committed.

    foreign_keys: off for migrations only, because SQLite changes a table by making it anew and dropping the old one.
    """
    if is_file(url):
        return _sqlite(url, "BEGIN IMMEDIATE" if writes else "BEGIN", foreign_keys)
    return _postgresql(url, writes)


def write_ahead_log_is_safe(version: tuple[int, ...]) -> bool:
    """Whether this SQLite library has the fix of the WAL-reset bug, which could lose a committed transaction."""
    fixed = {(3, 44): 6, (3, 50): 7, (3, 51): 3}
    major, minor, patch = version[:3]
    return (major, minor) > (3, 51) or patch >= fixed.get((major, minor), 1_000_000)


def _sqlite(url: URL, begin: str, foreign_keys: bool) -> Engine:
    from sqlalchemy import create_engine, event

    connect_args = {"timeout": BUSY_TIMEOUT / 1000, "check_same_thread": False}
    made = create_engine(url, connect_args=connect_args, pool_size=READERS)

    @event.listens_for(made, "connect")
    def _settings(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late, so ours replaces it
        journal = "WAL" if write_ahead_log_is_safe(sqlite3.sqlite_version_info) else "TRUNCATE"
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT}")
        if begin != "BEGIN":
            connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA trusted_schema=OFF")  # a triggered file from elsewhere must not run functions

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return made


def _postgresql(url: URL, writes: bool) -> Engine:
    from sqlalchemy import create_engine, event
    from sqlalchemy.exc import ArgumentError

    # A writer takes the lock first and sees what others committed before; a reader sees one state from its beginning.
    isolation = "READ COMMITTED" if writes else "REPEATABLE READ"
    settings = {name: value for name, value in POSTGRESQL.items() if name not in url.query}
    try:
        made = create_engine(
            url, connect_args=settings, pool_size=READERS, pool_pre_ping=True, isolation_level=isolation
        )
    except (ImportError, ArgumentError) as error:
        raise DatabaseUnusable(
            'PostgreSQL needs the package psycopg: run pip install "psycopg[binary]>=3.2" in ComfyUI\'s Python.'
        ) from error

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        first = f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})" if writes else "SET TRANSACTION READ ONLY"
        connection.exec_driver_sql(first)

    return made


@contextmanager
def unanswered(connection: Connection) -> Iterator[None]:
    """For statements that nothing is read from: PostgreSQL gets them all before it has answered the first."""
    if connection.dialect.name == "sqlite":
        yield
        return
    import psycopg
    from sqlalchemy.exc import DBAPIError

    driver: Any = connection.connection.driver_connection
    try:
        with driver.pipeline() if psycopg.Pipeline.is_supported() else nullcontext():
            yield
    except psycopg.Error as error:  # an answer that came when SQLAlchemy did not ask any more
        lost = {"connection_invalidated": driver.closed, "dialect": connection.dialect}
        raise DBAPIError.instance(None, None, error, psycopg.Error, **lost) from error


def is_whole(connection: Connection) -> bool:
    """Whether the transaction still stands: SQLite ends it by itself on a full disk, PostgreSQL when it goes away."""
    if connection.invalidated or not connection.in_transaction():
        return False
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return driver.in_transaction
    return not driver.closed and driver.info.transaction_status.name == "INTRANS"


@contextmanager
def told(url: URL, done: str) -> Iterator[None]:
    """Says in sentences what a database says in a word: a full disk, a lock never given up, a lost file or server."""
    from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, OperationalError, ProgrammingError
    from sqlalchemy.exc import TimeoutError as NoConnection

    try:
        yield
    except NoConnection as error:
        raise DatabaseUnusable(f"Too many ask for the feedback database {named(url)} at once; try again.") from error
    except (DataError, UnicodeEncodeError) as error:  # NUL and surrogates, which the two databases take differently
        raise InvalidRecord("A text holds a NUL or half of a surrogate pair, or a number is too large.") from error
    except (IntegrityError, ProgrammingError):
        raise  # a defect of ours, which no advice would mend
    except DatabaseError as error:
        why = without_password(str(error.orig), url)
        if not is_file(url):
            if not _may_pass(error):
                raise
            raise DatabaseUnreachable(
                f"The feedback database {named(url)} can't be {done} now ({why}). See that the server runs."
            ) from None  # the chain would show the whole connection
        if isinstance(error, OperationalError):
            raise DatabaseUnusable(
                f"The feedback database {named(url)} can't be {done}: {why}. Nothing was changed. "
                "See that the disk has room and that the file is there, then try again."
            ) from error
        raise DatabaseUnusable(f"The feedback database {named(url)} can't be {done}: {why}. {restore(url)}") from error


def restore(url: URL) -> str:
    """What to do about a file that is damaged."""
    folder = Path(str(url.database)).parent
    return (
        f"Close ComfyUI, move the file away, and put a backup in its place: the newest in {folder / 'backups'}, or one "
        f"named feedback*.backup in {folder}. Without one, ComfyUI starts with an empty database; the pictures stay."
    )


def _may_pass(error: Any) -> bool:
    """Whether PostgreSQL's error is about the server and not about what was asked: gone, full, locked, a standby."""
    from psycopg import InterfaceError, OperationalError

    state = getattr(error.orig, "sqlstate", None) or ""
    if error.connection_invalidated or state == "25006":
        return True
    return isinstance(error.orig, (OperationalError, InterfaceError)) and not state.startswith("54")  # a limit
