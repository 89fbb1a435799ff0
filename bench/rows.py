"""Rows of a benchmark that is cut short, gone on with, and shared between processes: each has a file of its own."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def measure(folder: Path, key: str, run: Callable[[], Row]) -> None:
    """Runs, keeps and prints the row `key`, unless it is done or another process is at it.

    A row with the entry "failed" is not kept, so that it is tried again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{re.sub(r'[^a-z0-9.]+', '_', key.lower())}.json"
    with _begun(file) as mine:
        if mine:
            row = run()
            print(key, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            if "failed" not in row:
                file.write_text(json.dumps({"row": key, **row}) + "\n")


@contextmanager
def _begun(file: Path) -> Iterator[bool]:
    """Whether this process is to make the file: nobody has, and nobody is at it."""
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield not file.exists()


def finished(folder: Path, place: Callable[[str], Any]) -> dict[str, Row]:
    """All rows that are done, by key, in the order of `place(key)`."""
    rows = {}
    for file in folder.glob("*.json"):
        row = json.loads(file.read_text())
        rows[row.pop("row")] = row
    return {key: rows[key] for key in sorted(rows, key=place)}
