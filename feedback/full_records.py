"""Judgements read as they were given, with all that they hold, and many written at once: for moving them elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update

from . import judging, tables
from .asked import counts_at
from .marks import Ranking, Region, Tag, WordMark
from .queries import chunks
from .records import Comment, Comparison, Rating
from .writes import now

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Table

Dated = tuple[Any, datetime | None]
"""A record and when it was given, None for now."""

judgement, rater = tables.judgement, tables.rater


def ids_of(connection: Connection, collection: str | None) -> list[str]:
    """The pictures of a collection, or all, oldest first."""
    rows = select(tables.image.c.id).order_by(tables.image.c.revision)
    if collection is not None:
        rows = rows.where(tables.image.c.collection == collection)
    return list(connection.execute(rows).scalars())


def judged(connection: Connection, image_ids: Sequence[str], revision: int) -> list[Dated]:
    """Everything that counted at the revision of these pictures and of no others, oldest first.

    Of a rater's ratings of a picture on an axis the latest counts. A comment that came with a rating is a comment.
    """
    found: list[tuple[int, Dated]] = []
    known = set(image_ids)
    for ids in chunks(image_ids):
        for table, make in _OF_ONE.items():
            rows = _rows(table, revision).where(table.c.image_id.in_(ids))
            found += [(row.revision, (make(row), row.created_at)) for row in connection.execute(rows)]
        pairs = _rows(tables.comparison, revision).where(tables.comparison.c.left_id.in_(ids))
        for row in connection.execute(pairs):
            if row.right_id in known:
                found.append((row.revision, (_comparison(row), row.created_at)))
    latest = {(r.image_id, r.axis, r.rater): n for n, (r, _) in sorted(found, key=_first) if isinstance(r, Rating)}
    found += _rankings(connection, known, revision)
    kept = (pair for pair in found if not isinstance(pair[1][0], Rating) or _is_latest(pair, latest))
    return [dated for _, dated in sorted(kept, key=_first)]


def _first(pair: tuple[int, Dated]) -> int:
    return pair[0]


def _is_latest(pair: tuple[int, Dated], latest: dict[tuple[str, str, str], int]) -> bool:
    rating = pair[1][0]
    return latest[rating.image_id, rating.axis, rating.rater] == pair[0]


def _rows(table: Table, revision: int) -> Any:
    return (
        select(table, judgement.c.created_at, judgement.c.revision, rater.c.name.label("rater"))
        .join(judgement, judgement.c.id == table.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .where(*counts_at(revision))
    )


def _rankings(connection: Connection, known: set[str], revision: int) -> Iterator[tuple[int, Dated]]:
    entry = tables.ranking_entry
    rows = (
        _rows(tables.ranking, revision)
        .join(entry, entry.c.ranking_id == tables.ranking.c.id)
        .add_columns(entry.c.image_id)
        .order_by(judgement.c.revision, entry.c.place)
    )
    orders: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(rows):
        orders.setdefault(row.id, []).append(row)
    for order in orders.values():
        images, first = tuple(row.image_id for row in order), order[0]
        if known.issuperset(images):
            yield first.revision, (Ranking(images, first.rater, first.axis, first.lead_time), first.created_at)


def _rating(row: Row[Any]) -> Rating:
    return Rating(row.image_id, row.raw, row.rater, row.axis, row.scale_min, row.scale_max, row.lead_time)


def _comparison(row: Row[Any]) -> Comparison:
    rest = {name: getattr(row, name) for name in ("strength", "policy", "propensity", "lead_time")}
    return Comparison(row.left_id, row.right_id, row.winner, row.rater, row.axis, **rest)


def _region(row: Row[Any]) -> Region:
    points = tuple((x, y) for x, y in json.loads(row.geometry))
    rest = (row.severity, row.comment, row.mask)
    return Region(row.image_id, row.shape, points, row.label, row.rater, *rest)


_OF_ONE = {
    tables.rating: _rating,
    tables.region: _region,
    tables.word_mark: lambda row: WordMark(row.image_id, row.word_index, row.word, row.label, row.rater),
    tables.tag: lambda row: Tag(row.image_id, row.tag, row.rater),
    tables.comment: lambda row: Comment(row.image_id, row.text, row.rater),
}

_INSERT = {
    Rating: judging.insert_rating,
    Comparison: judging.insert_comparison,
    Ranking: judging.insert_ranking,
    WordMark: judging.insert_word_mark,
    Tag: judging.insert_tag,
    Comment: judging.insert_comment,
}


def insert(connection: Connection, said: Sequence[Dated]) -> str:
    """Appends judgements with their times, none of them in the future; returns the id of the last, "" for none."""
    id_ = ""
    for record, at in said:
        id_ = _insert(connection, record)
        if at is not None:
            mine = judgement.c.id == id_
            connection.execute(update(judgement).where(mine).values(created_at=min(at, now())))
    return id_


def _insert(connection: Connection, record: Any) -> str:
    if isinstance(record, Region):
        size = select(tables.image.c.width, tables.image.c.height).where(tables.image.c.id == record.image_id)
        found = connection.execute(size).first()
        mask = None if found is None else judging.clean_mask(record, found.width, found.height)
        return judging.insert_region(connection, record, mask)
    return _INSERT[type(record)](connection, record)
