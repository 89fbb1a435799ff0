"""What whoever runs the server does at its command line: tokens of a team's members, backups, going back to one."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from .backups import DATABASE, MEDIA, keep_files
from .checks import InvalidRecord, NotFound
from .tables import VERSION_TABLE

if TYPE_CHECKING:
    from .store import FeedbackStore

PROGRAM = "python -m custom_nodes.feedback_loop"
URL = "FEEDBACK_LOOP_DATABASE_URL"
ACTING = "SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')"
SIDECARS = ("-wal", "-shm", "-journal")


class CommandError(RuntimeError):
    """What was asked can't be done; the message says why, and what to do."""


def main(arguments: Sequence[str]) -> int:
    """Does what the arguments say and returns the exit status."""
    from .database import DatabaseReadOnly, DatabaseUnusable

    asked = _parser().parse_args(arguments)
    try:
        sys.stdout.write(asked.do(asked) + "\n")
    except (CommandError, DatabaseReadOnly, DatabaseUnusable, InvalidRecord, NotFound) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Run it in ComfyUI's folder.")
    parser.add_argument(
        "--data", type=Path, default=Path("user", "__feedback_loop"), help="the data folder (default: %(default)s)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    token = commands.add_parser("token", help="make a token for a member of the team, or withdraw it")
    kinds = token.add_subparsers(required=True, metavar="COMMAND")
    for name, do, about in (
        ("add", _add_token, "print a new token; it can't be shown again"),
        ("withdraw", _withdraw, "end all tokens of a member"),
    ):
        one = kinds.add_parser(name, help=about)
        one.add_argument("rater", metavar="NAME", help="the member's name, under which they judge")
        one.set_defaults(do=do)
    restore = commands.add_parser("restore", help="go back to a backup; close ComfyUI first")
    restore.add_argument("backup", metavar="BACKUP", help="its name in the folder backups, or a path")
    restore.set_defaults(do=lambda asked: restored(asked.data, asked.backup))
    listed = commands.add_parser("backups", help="list the backups")
    listed.set_defaults(do=lambda asked: "\n".join(path.name for path in backups(asked.data)) or "There is none yet.")
    return parser


def _add_token(asked: argparse.Namespace) -> str:
    with closing(_store(asked.data)) as store:
        return store.add_token(asked.rater)


def _withdraw(asked: argparse.Namespace) -> str:
    with closing(_store(asked.data)) as store:
        return f"Withdrawn: {store.revoke_tokens(asked.rater)} of {asked.rater}."


def _store(data: Path) -> FeedbackStore:
    from .store import FeedbackStore

    url = os.environ.get(URL)
    if url is None and not data.is_dir():
        raise CommandError(
            f"There is no data folder {data}. Run this in ComfyUI's folder, once ComfyUI has run with the pack, or "
            "name the folder: --data FOLDER."
        )
    return FeedbackStore(url or f"sqlite:///{data / DATABASE}", data / MEDIA)


def backups(data: Path) -> list[Path]:
    """What can be gone back to, newest first: backups that were asked for, and copies made before an update."""
    asked_for = data / "backups"
    found = [*data.glob("*.backup"), *(asked_for.iterdir() if asked_for.is_dir() else ())]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def restored(data: Path, name: str) -> str:
    """Puts a backup in the place of the database, which is kept beside it. Returns what was done, in a sentence."""
    if os.environ.get(URL):
        raise CommandError(f"{URL} names a server's database: restore it there, with pg_restore.")
    source = _found(data, name)
    database = source / DATABASE if source.is_dir() else source
    _check(database)
    current, stamp = data / DATABASE, datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
    new = data / f"{DATABASE}.restored"
    _copy(database, new)
    kept = _set_aside(current, data / f"feedback-replaced-{stamp}.backup")
    os.replace(new, current)
    if source.is_dir():
        keep_files(source / MEDIA, data / MEDIA)
    before = f" What was there before is kept as {kept.name}." if kept else ""
    return f"The feedback is that of {source.name} again.{before}"


def _found(data: Path, name: str) -> Path:
    for path in (data / "backups" / name, data / name, Path(name)):
        if path.exists():
            return path
    known = ", ".join(path.name for path in backups(data)) or "none yet"
    raise CommandError(f"There is no backup {name!r}. Backups: {known}.")


def _check(database: Path) -> None:
    """Raises CommandError unless the file is a whole database of ours."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA trusted_schema=OFF")
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()  # a constant of ours # nosec B608
            (acting,) = connection.execute(ACTING).fetchone()
    except sqlite3.Error as error:
        raise CommandError(f"{database} is no backup of Feedback Loop: {error}. Nothing was changed.") from error
    if acting:
        raise CommandError(
            f"{database} has triggers or views, which no database of ours has: it was made to do something of its own. "
            "Nothing was changed."
        )
    if found != "ok":
        raise CommandError(f"The backup {database} is damaged: {found}. Nothing was changed; take another.")


def _copy(source: Path, target: Path) -> None:
    """A copy of a database with all that was written to it, on disk when this returns."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def _set_aside(current: Path, kept: Path) -> Path | None:
    """Moves the database away, with what was not yet written into it; one that is damaged is moved as it is."""
    if not current.exists():
        return None
    try:
        _copy(current, kept)
    except sqlite3.Error:
        os.replace(current, kept)
    for end in SIDECARS:  # a journal of the old file would be played into the new one
        current.with_name(current.name + end).unlink(missing_ok=True)
    return kept
