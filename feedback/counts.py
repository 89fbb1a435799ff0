"""Counts of what there is and how steadily people judge, out of what every write keeps up to date."""

from __future__ import annotations

from math import sqrt
from statistics import median
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from . import derived, derived_tables, tables
from .queries import revision
from .results import RaterReliability, Stats

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

Z = 1.959963984540054  # of a two-sided interval of 95 %


def stats(connection: Connection, read_only: str | None) -> Stats:
    """Counts of what is there; judgements that were undone are not counted."""
    tally = derived_tables.tally
    found: dict[str, dict[str, int]] = {"kind": {}, "collection": {}, "store": {}}
    for row in connection.execute(select(tally).order_by(tally.c.name)):
        found[row.what][row.name] = row.value
    kinds, collections = found["kind"], found["collection"]
    return Stats(
        revision=revision(connection),
        images=sum(collections.values()),
        ratings=kinds.get("rating", 0),
        comparisons=kinds.get("comparison", 0),
        comments=kinds.get("comment", 0),
        raters=found["store"].get("raters", 0),
        media_bytes=found["store"].get("media_bytes", 0),
        collections=collections,
        read_only=read_only,
        kinds=kinds,
    )


def reliability(connection: Connection) -> list[RaterReliability]:
    """Everybody who judged, by name."""
    tally, rater = derived_tables.rater_tally, tables.rater
    rows = select(tally, rater.c.name).join(rater, rater.c.id == tally.c.rater_id).where(tally.c.judgements > 0)
    return [_reliability(row) for row in connection.execute(rows.order_by(rater.c.name))]


def _reliability(row: Row[Any]) -> RaterReliability:
    decided, times = row.lefts + row.rights, derived.seconds_in(row.times)
    return RaterReliability(
        rater=row.name,
        judgements=row.judgements,
        left_share=row.lefts / decided if decided else None,
        left_interval=wilson(row.lefts, decided) if decided else None,
        self_agreement=row.same / row.repeats if row.repeats else None,
        repeats=row.repeats,
        median_seconds=median(times) if times else None,
    )


def wilson(hits: int, tries: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of at least one try."""
    share, square = hits / tries, Z * Z
    middle = (share + square / (2 * tries)) / (1 + square / tries)
    half = Z / (1 + square / tries) * sqrt(share * (1 - share) / tries + square / (4 * tries * tries))
    return max(0.0, middle - half), min(1.0, middle + half)
