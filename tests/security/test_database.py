"""A database from somebody else: what acts by itself in it is not let in."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from feedback_loop.feedback.commands import CommandError, restored
from feedback_loop.feedback.records import Generation
from feedback_loop.feedback.store import FeedbackStore

ACTS = {
    "a trigger": "CREATE TRIGGER lose AFTER INSERT ON rating BEGIN DELETE FROM rating; END",
    "a view in a table's place": "CREATE VIEW more AS SELECT load_extension('x')",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a picture in it."""
    store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite3'}", tmp_path / "media")
    store.add_image(np.zeros((8, 8, 3), np.uint8), Generation(), "mine")
    store.close()
    return tmp_path


@pytest.mark.parametrize("statement", ACTS.values(), ids=list(ACTS))
def test_a_backup_that_acts_by_itself_is_refused_and_nothing_changes(data: Path, statement: str) -> None:
    current = data / "feedback.sqlite3"
    foreign = data / "foreign.sqlite3"
    with closing(sqlite3.connect(current)) as old, closing(sqlite3.connect(foreign)) as new:
        old.backup(new)
        new.execute(statement)
        new.commit()
    before = current.read_bytes()
    with pytest.raises(CommandError, match="triggers or views.*Nothing was changed"):
        restored(data, str(foreign))
    assert current.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(200), b"<svg onload=alert(1)>"])
def test_what_is_no_database_of_ours_is_refused_and_nothing_changes(data: Path, content: bytes) -> None:
    (data / "foreign.sqlite3").write_bytes(content)
    before = (data / "feedback.sqlite3").read_bytes()
    with pytest.raises(CommandError, match="Nothing was changed"):
        restored(data, str(data / "foreign.sqlite3"))
    assert (data / "feedback.sqlite3").read_bytes() == before
