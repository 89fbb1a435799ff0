"""SIGTERM while a run is on: the step is finished, the state saved, and only then the process ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_requested, _lock = threading.Event(), threading.Lock()
_runs = 0
_before: Any = signal.SIG_DFL


def install() -> None:
    """Takes SIGTERM over; to be called in the main thread, elsewhere it does nothing. A second call changes nothing."""
    global _before
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _on_terminate:
        return
    _before = signal.signal(signal.SIGTERM, _on_terminate)


def _on_terminate(number: int, frame: Any) -> None:
    if _runs:
        _requested.set()
    elif callable(_before):
        _before(number, frame)
    elif _before != signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def watched() -> Iterator[Callable[[], bool]]:
    """Inside the block a SIGTERM waits; what the block is given says whether there was one.

    The process ends after the block, if so: whoever is inside saves and leaves, by SystemExit say.
    """
    global _runs
    with _lock:
        _runs += 1
    try:
        yield _requested.is_set
    finally:
        with _lock:
            _runs -= 1
        if _requested.is_set() and not _runs:
            _requested.clear()
            os.kill(os.getpid(), signal.SIGTERM)
