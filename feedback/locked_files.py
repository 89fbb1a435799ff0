"""Files that one process (and in it one holder) has for itself; the system lets go when a holder dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PAUSE = 0.02  # seconds between attempts


def hold(file: BinaryIO) -> bool:
    """Takes an open file until it is closed; False if another has it."""
    try:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            _hold_on_windows(file)
    except OSError:
        return False
    return True


def _hold_on_windows(file: BinaryIO) -> None:
    import msvcrt

    file.seek(2**30)  # a byte that is never reached, because a locked one can't be read by others
    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    file.seek(0)


@contextmanager
def holding(path: Path, seconds: float = 0.0) -> Iterator[bool]:
    """Whether the file was free within so many seconds; it is held inside. It is made, and stays: taking it away would
    let two hold two files of one name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + seconds
    with path.open("ab") as file:
        while not (free := hold(file)) and time.monotonic() < until:
            time.sleep(PAUSE)
        yield free
