"""The comparisons and rankings that count, by picture: what the pictures were said to be, beside others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import or_, select

from . import tables
from .derived import COUNTS
from .marks import StoredComparison, StoredRanking
from .queries import chunks

if TYPE_CHECKING:
    from sqlalchemy import Connection


def comparisons(connection: Connection, image_ids: Sequence[str]) -> dict[str, list[StoredComparison]]:
    """Those that each picture is in, oldest first."""
    judgement, rater, comparison = tables.judgement, tables.rater, tables.comparison
    found: dict[str, list[StoredComparison]] = defaultdict(list)
    for some in chunks(image_ids):
        rows = (
            select(comparison, judgement.c.created_at, rater.c.name.label("rater"))
            .join(judgement, judgement.c.id == comparison.c.id)
            .join(rater, rater.c.id == judgement.c.rater_id)
            .where(or_(comparison.c.left_id.in_(some), comparison.c.right_id.in_(some)), COUNTS)
            .order_by(judgement.c.revision)
        )
        for row in connection.execute(rows):
            said = StoredComparison(
                row.id, row.rater, row.created_at, row.left_id, row.right_id, row.winner, row.axis, row.policy
            )
            for id_ in {said.left, said.right} & set(some):
                found[id_].append(said)
    return found


def rankings(connection: Connection, image_ids: Sequence[str]) -> dict[str, list[StoredRanking]]:
    """Those that each picture has a place in, oldest first."""
    judgement, rater, ranking, entry = tables.judgement, tables.rater, tables.ranking, tables.ranking_entry
    orders: dict[str, StoredRanking] = {}
    for some in chunks(image_ids):
        with_some = select(entry.c.ranking_id).where(entry.c.image_id.in_(some))
        rows = (
            select(ranking.c.id, ranking.c.axis, entry.c.image_id, judgement.c.created_at, rater.c.name.label("rater"))
            .join(entry, entry.c.ranking_id == ranking.c.id)
            .join(judgement, judgement.c.id == ranking.c.id)
            .join(rater, rater.c.id == judgement.c.rater_id)
            .where(ranking.c.id.in_(with_some), COUNTS)
            .order_by(judgement.c.revision, entry.c.place)
        )
        places: dict[str, list] = defaultdict(list)
        for row in connection.execute(rows):
            places[row.id].append(row)
        for id_, order in places.items():
            first, ids = order[0], tuple(row.image_id for row in order)
            orders[id_] = StoredRanking(id_, first.rater, first.created_at, ids, first.axis)
    found: dict[str, list[StoredRanking]] = defaultdict(list)
    for order in sorted(orders.values(), key=lambda one: one.created_at):
        for id_ in set(order.image_ids) & set(image_ids):
            found[id_].append(order)
    return found
