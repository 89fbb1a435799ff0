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
    """Runs, keeps in folder/rows and prints the row `key`, unless it is done or another process is at it.

    A row with the entry "failed" is not kept, so that it is tried again.
    """
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    file = folder / "rows" / f"{slug(key)}.json"
    with _begun(file) as mine:
        if mine:
            row = run()
            print(key, {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            if "failed" not in row:
                file.write_text(json.dumps({"row": key, **row}) + "\n")


def slug(key: str) -> str:
    """The key as a name of a file."""
    return re.sub(r"[^a-z0-9.]+", "_", key.lower())


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
    """All rows that are done, by key, in the order of `place(key)`; gathered in folder/report.json."""
    rows = {}
    for file in folder.glob("rows/*.json"):
        row = json.loads(file.read_text())
        rows[row.pop("row")] = row
    rows = {key: rows[key] for key in sorted(rows, key=place)}
    (folder / "report.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows
