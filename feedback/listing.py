"""Lists of pictures: filtered, sorted, a page at a time.

Each order has a table that is indexed in it, and pages are read along that index: pictures by revision, scores and
watermark scores by value. Everything else that is asked is looked up picture by picture on the way, unless few pictures
can answer it: those are found first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, FromClause, false, func, literal, select, tuple_

from . import derived_tables as derived
from . import tables
from .checks import InvalidRecord
from .prompt_words import prompt_text, with_words
from .queries import images_by_revision
from .results import ImageFilter, Page, Sort

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Select

FEW = 3000
"""So many pictures are found first; where there may be more, they are met often enough on the way."""

OVERALL = "overall"

image, score, current, watermark = tables.image, derived.score, derived.current_rating, derived.watermark_score


def page(connection: Connection, which: ImageFilter, sort: Sort, cursor: str | None, limit: int) -> Page:
    """`limit` pictures after `cursor`. Raises InvalidRecord for a cursor that is none of this order."""
    order = _order(connection, which, sort)
    rows = _filtered(connection, order, which)
    if cursor is not None:
        rows = rows.where(_after(order, cursor))
    columns = [column.asc() if order.rising else column.desc() for column in order.columns]
    found = connection.execute(rows.order_by(*columns).limit(limit + 1)).all()
    items = images_by_revision(connection, [row.place for row in found[:limit]])
    if len(found) <= limit:
        return Page(items, None)
    last = found[limit - 1]
    return Page(items, f"{last.value!r}~{last.place}" if order.by_value else str(last.place))


@dataclass(frozen=True)
class _Order:
    """The table that is read along, the picture's revision in it, and the value that it is sorted by, if any."""

    table: FromClause
    place: ColumnElement[int]
    value: ColumnElement[float] | None
    rising: bool
    conditions: tuple[ColumnElement[bool], ...] = ()
    scored: bool = False
    """Whether the conditions hold what is asked of the ratings already."""

    @property
    def by_value(self) -> bool:
        return self.value is not None

    @property
    def columns(self) -> tuple[ColumnElement[Any], ...]:
        return (self.place,) if self.value is None else (self.value, self.place)


def _order(connection: Connection, which: ImageFilter, sort: Sort) -> _Order:
    rising = sort in ("oldest", "worst")
    if sort == "watermark":
        return _Order(watermark, watermark.c.image_revision, watermark.c.value, rising)
    if sort in ("best", "worst") or (_asks_ratings(which) and not _is_flag(which)):
        table, conditions = _ratings(connection, which)
        value = table.c.value if sort in ("best", "worst") else None
        return _Order(table, table.c.image_revision, value, rising, conditions, scored=True)
    if which.text is not None and (words := with_words(connection, which.text)) is not None:
        if not _is_small(connection, which.collection):
            return _Order(prompt_text, prompt_text.c.rowid, None, rising, (words[0].whereclause,))  # type: ignore[arg-type]
    return _Order(image, image.c.revision, None, rising)


def _asks_ratings(which: ImageFilter) -> bool:
    """Whether only rated pictures can answer."""
    values = (which.min_value, which.max_value)
    return which.rated is True or values != (None, None) or (which.rater is not None and which.rated is None)


def _is_flag(which: ImageFilter) -> bool:
    """Whether the picture's own column says all that is asked of its ratings."""
    values = (which.min_value, which.max_value)
    return which.rater is None and values == (None, None) and which.axis in (None, OVERALL)


def _ratings(connection: Connection, which: ImageFilter) -> tuple[Any, tuple[ColumnElement[bool], ...]]:
    """The table with the ratings asked for, each picture once, and the conditions on it."""
    axis = OVERALL if which.axis is None else which.axis
    if which.rater is None:
        conditions = [score.c.axis == axis]
        if which.collection is not None:
            conditions.append(score.c.collection == which.collection)
    else:
        conditions = [current.c.axis == axis, current.c.rater_id == _rater_id(connection, which.rater)]
    table = score if which.rater is None else current
    return table, (*conditions, *_between(table.c.value, which.min_value, which.max_value))


def _rater_id(connection: Connection, name: str) -> str:
    """The rater's id, or one that nobody has."""
    return connection.execute(select(tables.rater.c.id).where(tables.rater.c.name == name)).scalar() or ""


def _between(column: ColumnElement[Any], low: Any, high: Any) -> list[ColumnElement[bool]]:
    """low <= column <= high, where there is a bound."""
    return ([] if low is None else [column >= low]) + ([] if high is None else [column <= high])


def _filtered(connection: Connection, order: _Order, which: ImageFilter) -> Select:
    value = literal(0) if order.value is None else order.value
    rows = select(order.place.label("place"), value.label("value")).where(*order.conditions)
    rows = rows.where(*_dated(connection, order.place, which.since, which.until))
    rows = rows.where(*_rated(connection, order, which), *_watermarked(connection, order, which))
    if order.table is not prompt_text and which.text is not None:
        rows = rows.where(*_worded(connection, order.place, which.text))
    if not _needs_image(order, which):
        return rows
    if order.table is not image:
        rows = rows.join_from(order.table, image, image.c.revision == order.place)
    if which.collection is not None:
        rows = rows.where(image.c.collection == which.collection)
    if which.since is not None:
        rows = rows.where(image.c.created_at >= which.since)
    return rows if which.until is None else rows.where(image.c.created_at < which.until)


def _needs_image(order: _Order, which: ImageFilter) -> bool:
    """Whether a condition is on the picture itself and not in the table that is read along."""
    if order.table is image or (which.since, which.until) != (None, None):
        return True
    if which.rated is False or (_asks_ratings(which) and not order.scored and _is_flag(which)):
        return True
    return which.collection is not None and order.table is not score


def _dated(
    connection: Connection, place: ColumnElement[int], since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    """Bounds on the revision, which rises with time; the times themselves are compared too."""
    first = select(image.c.revision).order_by(image.c.created_at, image.c.revision).limit(1)
    conditions: list[ColumnElement[bool]] = []
    if since is not None:
        low = connection.execute(first.where(image.c.created_at >= since)).scalar()
        conditions.append(false() if low is None else place >= low)
    if until is not None:
        high = connection.execute(first.where(image.c.created_at >= until)).scalar()
        conditions += [] if high is None else [place < high]
    return conditions


def _rated(connection: Connection, order: _Order, which: ImageFilter) -> list[ColumnElement[bool]]:
    if which.rated is not False:
        if order.scored or not _asks_ratings(which):
            return []
        if _is_flag(which):
            return [image.c.rated == 1]
    elif _is_flag(which):
        return [image.c.rated == 0]
    table, conditions = _ratings(connection, which)
    same = table.c.image_revision == order.place
    if order.table is image:
        same = table.c.image_id == image.c.id
    if which.rated is False:
        return [~select(table.c.image_id).where(same, *conditions).exists()]
    return [_found(connection, order.place, select(table.c.image_revision).where(*conditions), table.c.image_revision)]


def _watermarked(connection: Connection, order: _Order, which: ImageFilter) -> list[ColumnElement[bool]]:
    conditions = _between(watermark.c.value, which.min_watermark, which.max_watermark)
    if not conditions or order.table is watermark:
        return conditions
    return [
        _found(
            connection, order.place, select(watermark.c.image_revision).where(*conditions), watermark.c.image_revision
        )
    ]


def _worded(connection: Connection, place: ColumnElement[int], text: str) -> list[ColumnElement[bool]]:
    if (words := with_words(connection, text)) is None:
        return []
    rows, are_found = words
    if are_found:
        return [place.in_(rows)]  # asked one by one, a common word takes SQLite minutes
    return [rows.where(prompt_text.c.rowid == place).correlate_except(prompt_text).exists()]


def _found(
    connection: Connection, place: ColumnElement[int], rows: Select, column: ColumnElement[int]
) -> ColumnElement[bool]:
    """That the revision at `place` is among the rows: found first if they are few, looked up one by one if not."""
    probe = select(func.count()).select_from(rows.limit(FEW + 1).subquery())
    if connection.execute(probe).scalar_one() <= FEW:
        return place.in_(rows)
    return rows.where(column == place).correlate_except(*rows.get_final_froms()).exists()


def _is_small(connection: Connection, collection: str | None) -> bool:
    if collection is None:
        return False
    tally = derived.tally
    mine = select(tally.c.value).where(tally.c.what == "collection", tally.c.name == collection)
    return (connection.execute(mine).scalar() or 0) <= FEW


def _after(order: _Order, cursor: str) -> ColumnElement[bool]:
    value, _, place = cursor.rpartition("~")
    try:
        if (value != "") != order.by_value or not place.isascii() or not place.isdigit():
            raise ValueError
        last: list[Any] = [float(value), int(place[:19])] if value else [int(place[:19])]
    except ValueError:
        raise InvalidRecord("The cursor is none of this list; begin again without it.") from None
    if order.value is None:
        return order.place > last[0] if order.rising else order.place < last[0]
    here = tuple_(order.value, order.place)
    return here > tuple_(*last) if order.rising else here < tuple_(*last)
