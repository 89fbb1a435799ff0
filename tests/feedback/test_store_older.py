"""Databases that older versions wrote."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from feedback_loop.feedback import database, media
from feedback_loop.feedback.database import Database
from feedback_loop.feedback.marks import Tag
from feedback_loop.feedback.results import ImageFilter
from feedback_loop.feedback.store import FeedbackStore

from .conftest import sqlite_only


@pytest.fixture
def first_schema(tmp_path: Path) -> Path:
    """The migrations as they were when there was only the first."""
    folder = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__", "000[!1]_*"))
    return folder


@sqlite_only
def test_a_database_of_the_first_schema_keeps_everything_and_gains_the_counts(
    open_store: Callable[[], FeedbackStore], database_url: str, first_schema: Path, tmp_path: Path
):
    """Two pictures, three ratings of which one is undone, and a comparison asked twice with the same answer."""
    older = Database(database_url, first_schema)
    older.write(_as_it_was)
    older.close()
    store = open_store()
    assert [one.id for one in store.search(ImageFilter(text="red")).items] == ["a"]
    assert [(one.image_id, one.value) for one in store.rated(store.feedback())] == [("a", 0.0), ("b", 1.0)]
    assert [one.id for one in store.search(ImageFilter(), "best").items] == ["b", "a"]
    assert store.stats().kinds == {"rating": 2, "comparison": 2}
    assert store.stats().media_bytes == 30
    (me,) = store.reliability()
    assert (me.judgements, me.self_agreement, me.repeats) == (4, 1.0, 1)
    tag = store.add_tag(Tag("a", "sharp", "me"))
    assert store.marks(["a"])["a"].tags[0].id == tag
    assert store._database.read(lambda c: c.execute(text("PRAGMA foreign_key_check")).all()) == []
    assert list(tmp_path.glob("feedback-0001-*.backup"))


def _as_it_was(connection: Any) -> None:
    """Rows as the first version wrote them."""
    when = "2026-01-01 00:00:00.000000"
    connection.execute(text(f"INSERT INTO rater VALUES ('r', 'me', '{when}')"))
    for n, (id_, prompt) in enumerate((("a", "a red circle"), ("b", "a blue one"))):
        hash_ = media.content_hash(id_.encode())
        values = (
            f"'{id_}', 'c', 'i{id_}', '{hash_}', '{hash_}', NULL, 8, 8, 'image/png', {10 + 10 * n}, '{when}', {1 + n}"
        )
        connection.execute(text(f"INSERT INTO image VALUES ({values})"))
        made = text("INSERT INTO generation (image_id, batch_index, prompt, versions) VALUES (:id, 0, :prompt, '{}')")
        connection.execute(made, {"id": id_, "prompt": prompt})
    said = [("1", "rating"), ("2", "rating"), ("3", "rating"), ("4", "undo"), ("5", "comparison"), ("6", "comparison")]
    for n, (id_, kind) in enumerate(said):
        undone = "'3'" if kind == "undo" else "NULL"
        connection.execute(text(f"INSERT INTO judgement VALUES ('{id_}', '{kind}', 'r', {undone}, '{when}', {3 + n})"))
    for id_, image, value in (("1", "a", 0.0), ("2", "b", 1.0), ("3", "a", 0.5)):
        row = f"'{id_}', '{image}', 'overall', {value}, {1 + 4 * value}, 1, 5, NULL"
        connection.execute(text(f"INSERT INTO rating VALUES ({row})"))
    for id_, left, right, winner in (("5", "a", "b", "right"), ("6", "b", "a", "left")):
        row = f"'{id_}', '{left}', '{right}', 'overall', '{winner}', NULL, NULL, NULL, NULL"
        connection.execute(text(f"INSERT INTO comparison VALUES ({row})"))
    connection.execute(text("UPDATE counter SET value = 8 WHERE name = 'revision'"))
