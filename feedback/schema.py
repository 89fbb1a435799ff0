"""Brings the schema of a database up to date, or finds that a newer version of the pack wrote it."""

from __future__ import annotations

import os
import sqlite3
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .engines import DatabaseUnusable, engine, is_file, named, restore, without_password
from .tables import VERSION_TABLE
from .turns import Turns

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

MIGRATIONS = Path(__file__).parent / "migrations"


def bring_up_to_date(url: URL, migrations: Path = MIGRATIONS) -> str | None:
    """Migrates while no other writes, all or nothing; returns why the database is read-only, or None."""
    from sqlalchemy.exc import DatabaseError

    found = read_only_file(url)
    if found is not None:
        return found
    writer = engine(url, writes=True, foreign_keys=False)
    turns = Turns(Path(str(url.database))) if is_file(url) else None
    try:
        if turns is not None:
            turns.take()  # or else a process that writes without pause would keep this one waiting
        with writer.begin() as connection:
            return _migrate(connection, url, migrations)
    except DatabaseError as error:
        why = without_password(str(error.orig), url)
        advice = restore(url) if is_file(url) else "See that the server runs and that the user may create tables."
        raise DatabaseUnusable(f"The feedback database {named(url)} can't be opened: {why}. {advice}") from None
    finally:
        writer.dispose()
        if turns is not None:
            turns.end()
            turns.close()


def read_only_file(url: URL) -> str | None:
    """Why the file can only be read, where that is so: on a read-only disk, or without the right to write."""
    if not is_file(url):
        return None
    path = Path(str(url.database))
    what = path if path.exists() else path.parent
    if _writable(what) and _writable(path.parent):
        return None
    if not path.exists():
        raise DatabaseUnusable(
            f"The feedback database {path} can't be made: its folder may not be written to. Make it writable, or start "
            "ComfyUI with another --user-directory."
        )
    return (
        f"The feedback database {path} or its folder may not be written to, so it is opened for reading only. Make "
        "both writable and restart ComfyUI."
    )


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _migrate(connection: Connection, url: URL, migrations: Path) -> str | None:
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
            f"The feedback database {named(url)} was written by a newer version of Feedback Loop (schema {current}), "
            "so it is opened for reading only. Update the pack to write to it."
        )
    if tables and is_file(url):
        back_up_beside(Path(str(url.database)), current or "foreign")
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


def back_up_beside(path: Path, version: str) -> Path:
    """Copies the database beside itself; the copy is named after its schema and the time."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    target = path.with_name(f"{path.stem}-{version}-{stamp}.backup")
    copy_file(path, target)
    return target


def copy_file(path: Path, target: Path) -> None:
    """A copy of an SQLite database as it is between two writes, also while it is written to."""
    source, copy = sqlite3.connect(path), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
