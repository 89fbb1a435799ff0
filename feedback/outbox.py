"""Judgements that a database server could not take yet, on this machine's disk until it can.

A judgement that comes while the server is away is acknowledged once it stands in a file here, and goes to the server in
its turn when that is back. Until then all others go behind it, so that their order stays. Each process has a file of
its own, which another takes over when the process ended without emptying it.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from . import said as records
from .checks import Conflict, InvalidRecord, NotFound, NotYours
from .engines import DatabaseUnreachable, DatabaseUnusable
from .locked_files import hold
from .said import Said

if TYPE_CHECKING:
    from .database import Database

LOG = logging.getLogger("feedback_loop")

MAX_BYTES = 256 * 2**20
FIRST_PAUSE, LAST_PAUSE = 0.5, 15.0  # seconds between attempts
REFUSED = "refused.jsonl"


class Outbox:
    """Writes judgements to `database`, or to a file in `folder` while that does not answer."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self._database = folder, database
        self._lock = threading.Lock()
        self._waiting: list[Said] = []
        self._file: BinaryIO | None = None
        self._path = folder / f"{uuid.uuid4()}.jsonl"
        self._stop, self._more = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        for left in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
            if left.name != REFUSED:
                self._take_over(left)

    @property
    def waiting(self) -> int:
        """How many judgements are not in the database yet."""
        return len(self._waiting)

    def write(self, *said: Said) -> str:
        """Returns the last judgement's id once all are on disk, there or here.

        Raises what the database says of it, and DatabaseUnusable if it could be written neither there nor here.
        """
        if not self._waiting:
            try:
                return self._database.write(lambda c: records.insert(c, *said))
            except DatabaseUnreachable as error:
                LOG.warning("%s What people say meanwhile is kept in %s.", error, self._folder)
        with self._lock:
            return self._earlier(said[-1]) or self._append(list(said))

    def _earlier(self, said: Said) -> str | None:
        """The id of the same request, if it waits here already."""
        for one in self._waiting if said.key is not None else ():
            if one.key is not None and said.key is not None and one.key.key == said.key.key:
                if one.key.body_hash != said.key.body_hash:
                    raise Conflict("This Idempotency-Key was used before with another request; take a new one.")
                return one.stamp.id
        return None

    def _append(self, said: list[Said]) -> str:
        """On disk when it returns, or else not there at all. The lock is held."""
        lines = b"".join(one.as_line() for one in said)
        try:
            file = self._file = self._file or _new_file(self._path)
            end = os.fstat(file.fileno()).st_size
            if end + len(lines) > MAX_BYTES:
                raise OSError(f"it holds {MAX_BYTES >> 20} MB already")
            _append(file, lines, end)
        except OSError as error:
            raise DatabaseUnusable(
                f"The feedback database does not answer, and nothing can be kept in {self._path} either: {error}. "
                "Nothing was written; see that the database runs and that the disk has room, then try again."
            ) from error
        self._waiting += said
        self._begin()
        return said[-1].stamp.id

    def _take_over(self, path: Path) -> None:
        """What a process that ended left here. One that still runs holds its file."""
        with path.open("rb+") as file:
            if not hold(file):
                return
            left, unreadable = _parsed(file.read())
        if unreadable:
            LOG.error("Some of %s can't be read; it is kept in %s.", path, REFUSED)
            self._set_aside(unreadable)
        with self._lock:
            if left:
                self._append(left)
        path.unlink(missing_ok=True)

    # To the database

    def _begin(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._send, name="feedback-outbox", daemon=True)
            self._thread.start()
        self._more.set()

    def _send(self) -> None:
        """Until the store is closed: tries, and after each failure waits twice as long."""
        while not self._stop.is_set():
            self._more.wait()
            self._more.clear()
            pause = FIRST_PAUSE
            while not self._stop.is_set() and not self.empty():
                self._stop.wait(pause)
                pause = min(2 * pause, LAST_PAUSE)

    def empty(self) -> bool:
        """Sends what waits, oldest first; returns whether nothing waits any more."""
        sent = 0
        try:
            while sent < len(self._waiting):
                self._send_one(self._waiting[sent])
                sent += 1
        except DatabaseUnusable:
            return False
        finally:
            self._forget(sent)
        return not self._waiting

    def _send_one(self, said: Said) -> None:
        from sqlalchemy.exc import DBAPIError

        try:
            self._database.write(lambda c: records.insert_again(c, said))
        except (InvalidRecord, NotFound, NotYours, Conflict, DBAPIError) as error:
            LOG.error("A judgement of %s that waited was refused: %s It is kept in %s.", said.stamp.at, error, REFUSED)
            self._set_aside(said.as_line())

    def _set_aside(self, lines: bytes) -> None:
        """Keeps what can't be used, for people to look at."""
        with (self._folder / REFUSED).open("ab") as file:
            _append(file, lines, os.fstat(file.fileno()).st_size)

    def _forget(self, sent: int) -> None:
        """Empties the file once nothing waits. If that is interrupted they are sent again, which changes nothing."""
        with self._lock:
            del self._waiting[:sent]
            if sent and not self._waiting and self._file is not None:
                self._file.truncate(0)
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Stops sending. What still waits stays on disk for the next time."""
        self._stop.set()
        self._more.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            self._file.close()
            if not self._waiting:
                self._path.unlink(missing_ok=True)


def _new_file(path: Path) -> BinaryIO:
    """An empty file that is this process's, whose name is on disk too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab", buffering=0)
    hold(file)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return file


def _append(file: BinaryIO, lines: bytes, end: int) -> None:
    whole = False
    try:
        written = 0
        while written < len(lines):
            written += file.write(lines[written:])
        file.flush()
        os.fsync(file.fileno())
        whole = True
    finally:
        if not whole:  # half a line would spoil the next one
            file.truncate(end)


def _parsed(content: bytes) -> tuple[list[Said], bytes]:
    """The lines that were finished, those that can't be read apart. One without its end was never acknowledged."""
    found, unreadable = [], b""
    for line in content.split(b"\n")[:-1]:
        try:
            found.append(records.from_line(line))
        except (ValueError, KeyError, TypeError):
            unreadable += line + b"\n"
    return found, unreadable
