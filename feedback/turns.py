"""Whose turn it is among several processes that write to one file.

SQLite lets whoever asks at the right moment write, so a process that writes without pause can keep another out for
longer than that one waits. Here each passes two gates, and none passes the first again before the next has left it.
Nothing depends on it but patience: that only one writes at a time is SQLite's own doing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows; there SQLite's own waiting has to do
    fcntl = None

PATIENCE = 30.0  # seconds; then SQLite decides
PAUSE = 0.003


class Turns:
    """The two gates, as bytes 0 and 1 of a file beside the database that are locked and never written."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".turns")
        self._file: int | None = None

    def take(self) -> None:
        """Returns when it is this process's turn, or when it has waited long enough. One thread at a time."""
        if fcntl is None or not self._is_open():
            return
        until = time.monotonic() + PATIENCE
        if self._passes(0, until):
            self._passes(1, until)
            self._leave(0)

    def end(self) -> None:
        """The next one's turn."""
        self._leave(1)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_open(self) -> bool:
        if self._file is None:
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError:  # a full disk or a folder that can't be written to, which SQLite will tell
                return False
        return True

    def _passes(self, gate: int, until: float) -> bool:
        assert fcntl is not None and self._file is not None  # tells types, guards nothing # nosec B101
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, gate)
                return True
            except OSError:
                if time.monotonic() > until:
                    return False
            time.sleep(PAUSE)

    def _leave(self, gate: int) -> None:
        if fcntl is not None and self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, gate)
