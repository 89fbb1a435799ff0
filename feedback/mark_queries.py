"""The marks that count, by picture."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from . import order_queries, tables
from .derived import COUNTS
from .marks import Marks, StoredComment, StoredRegion, StoredTag, StoredWordMark
from .queries import chunks

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Table


def marks(connection: Connection, image_ids: Sequence[str]) -> dict[str, Marks]:
    """What counts on each of the pictures, also on those that have nothing."""
    regions = _of(connection, tables.region, image_ids, _region)
    words = _of(connection, tables.word_mark, image_ids, _word_mark)
    tags = _of(connection, tables.tag, image_ids, _tag)
    comments = _of(connection, tables.comment, image_ids, _comment)
    compared, ranked = order_queries.comparisons(connection, image_ids), order_queries.rankings(connection, image_ids)
    return {
        id_: Marks(
            regions=tuple(regions[id_]),
            word_marks=tuple(words[id_]),
            tags=tuple(tags[id_]),
            comments=tuple(comments[id_]),
            comparisons=tuple(compared[id_]),
            rankings=tuple(ranked[id_]),
        )
        for id_ in image_ids
    }


def _of(
    connection: Connection, table: Table, image_ids: Sequence[str], made: Callable[[Row[Any]], Any]
) -> dict[str, list[Any]]:
    judgement, rater = tables.judgement, tables.rater
    found: dict[str, list[Any]] = defaultdict(list)
    for some in chunks(image_ids):
        rows = (
            select(table, judgement.c.created_at, rater.c.name.label("rater"))
            .join(judgement, judgement.c.id == table.c.id)
            .join(rater, rater.c.id == judgement.c.rater_id)
            .where(table.c.image_id.in_(some), COUNTS)
            .order_by(judgement.c.revision)
        )
        for row in connection.execute(rows):
            found[row.image_id].append(made(row))
    return found


def _head(row: Row[Any]) -> tuple[str, str, datetime, str]:
    return row.id, row.rater, row.created_at, row.image_id


def _region(row: Row[Any]) -> StoredRegion:
    geometry = tuple((x, y) for x, y in json.loads(row.geometry))
    return StoredRegion(*_head(row), row.shape, geometry, row.label, row.severity, row.comment, row.mask)


def _word_mark(row: Row[Any]) -> StoredWordMark:
    return StoredWordMark(*_head(row), row.word_index, row.word, row.label)


def _tag(row: Row[Any]) -> StoredTag:
    return StoredTag(*_head(row), row.tag)


def _comment(row: Row[Any]) -> StoredComment:
    return StoredComment(*_head(row), row.text, row.about)
