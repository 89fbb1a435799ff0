"""Keeps the tables of `derived_tables` in step with every write, in its transaction, or makes them from nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, case, delete, func, insert, literal, select, text, update

from . import derived_tables as derived
from . import tables
from .pairs import Agreement, agreement, prompt_key
from .prompt_words import begin_anew, insert_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, Row, Select

    from .records import Rating

VERSION = 3
"""Raised when the tables are to be made anew in every database that is opened."""

COUNTED = "derived"  # the counter that says with which VERSION they were made
JUDGED = "judged"  # the counter with the revision of the last judgement, undo or deletion
ROWS = 1000  # at once
OVERALL = "overall"  # the axis of stars, on which a picture counts as rated

image, judgement, rating, comparison = tables.image, tables.judgement, tables.rating, tables.comparison
current, score, tally, rater_tally = derived.current_rating, derived.score, derived.tally, derived.rater_tally

_undo = judgement.alias("undo")
COUNTS = ~select(_undo.c.id).where(_undo.c.supersedes == judgement.c.id).exists()
"""The condition that nobody took a judgement back."""

SAID = judgement.c.kind != "undo"


ADD_TO_TALLY = text(
    "INSERT INTO tally (what, name, value) VALUES (:what, :name, :change) "
    "ON CONFLICT (what, name) DO UPDATE SET value = tally.value + excluded.value"
)
COUNTS_OF_RATER = ("judgements", "lefts", "rights", "repeats", "same")
TIMES = 400  # letters in which the latest times of a rater are kept
ADD_TO_RATER = text(
    f"INSERT INTO rater_tally (rater_id, {', '.join(COUNTS_OF_RATER)}, times) "  # constants of ours # nosec B608
    f"VALUES (:rater_id, :{', :'.join(COUNTS_OF_RATER)}, :times) ON CONFLICT (rater_id) DO UPDATE SET "
    + ", ".join(f"{name} = rater_tally.{name} + excluded.{name}" for name in COUNTS_OF_RATER)
    + f", times = substr(excluded.times || rater_tally.times, 1, {TIMES})"
)
SET_CURRENT = text(
    "INSERT INTO current_rating (image_id, axis, rater_id, rating_id, value, image_revision) "
    "VALUES (:image_id, :axis, :rater_id, :rating_id, :value, :image_revision) "
    "ON CONFLICT (image_id, axis, rater_id) DO UPDATE SET rating_id = excluded.rating_id, value = excluded.value"
)
SET_SCORE = text(
    "INSERT INTO score (image_id, axis, value, ratings, collection, image_revision) "
    "SELECT image_id, axis, avg(value), count(*), :collection, image_revision FROM current_rating "
    "WHERE image_id = :image_id AND axis = :axis GROUP BY image_id, axis, image_revision "
    "ON CONFLICT (image_id, axis) DO UPDATE SET value = excluded.value, ratings = excluded.ratings"
)
"""Statements that every judgement takes; each one saved is time in which nobody else can write."""


def add_to_tally(connection: Connection, what: str, name: str, change: int) -> None:
    """Changes how many there are; what falls to 0 is forgotten."""
    connection.execute(ADD_TO_TALLY, {"what": what, "name": name, "change": change})
    if change < 0:
        connection.execute(delete(tally).where(tally.c.what == what, tally.c.name == name, tally.c.value == 0))


def add_to_rater(connection: Connection, rater_id: str, seconds: float | None = None, **changes: int) -> None:
    """Changes the counts of one rater. seconds: what the latest judgement took, where that is known."""
    times = "" if seconds is None else _times([seconds])
    counts = {**dict.fromkeys(COUNTS_OF_RATER, 0), **changes}
    connection.execute(ADD_TO_RATER, {"rater_id": rater_id, "times": times, **counts})


def _times(seconds: Iterable[float]) -> str:
    return "".join(f"{some:.4g}," for some in seconds)


def seconds_in(times: str) -> list[float]:
    """The times that a row of `rater_tally` holds, the latest first; the last may have been cut off."""
    return [float(some) for some in times.split(",")[:-1]]


def refresh_times(connection: Connection, rater_id: str) -> None:
    """Finds anew which times of a rater are the latest."""
    found: list[tuple[int, float]] = []
    for table in (rating, comparison, tables.ranking):
        rows = (
            select(judgement.c.revision, table.c.lead_time)
            .join(table, table.c.id == judgement.c.id)
            .where(judgement.c.rater_id == rater_id, judgement.c.kind == table.name, table.c.lead_time.is_not(None))
        )
        latest = connection.execute(rows.order_by(judgement.c.revision.desc()).limit(TIMES // 2))
        found += [(row.revision, row.lead_time) for row in latest]
    times = _times(seconds for _, seconds in sorted(found, reverse=True))[:TIMES]
    connection.execute(update(rater_tally).where(rater_tally.c.rater_id == rater_id).values(times=times))


def count_rating(connection: Connection, rating_id: str, rater_id: str, given: Rating, of: Row[Any]) -> None:
    """The newest rating of a rater is the one that counts. of: the picture's row."""
    about = {"image_id": given.image_id, "axis": given.axis}
    mine = {"rater_id": rater_id, "rating_id": rating_id, "value": given.value, "image_revision": of.revision}
    connection.execute(SET_CURRENT, {**about, **mine})
    connection.execute(SET_SCORE, {**about, "collection": of.collection})
    if given.axis == OVERALL and not of.rated:
        connection.execute(update(image).where(image.c.id == given.image_id).values(rated=1))


def refresh_rating(connection: Connection, image_id: str, axis: str, rater_id: str) -> None:
    """Finds anew which rating of a rater counts, and what follows for the picture."""
    latest = (
        select(rating.c.id.label("rating_id"), rating.c.value)
        .join(judgement, judgement.c.id == rating.c.id)
        .where(rating.c.image_id == image_id, rating.c.axis == axis, judgement.c.rater_id == rater_id, COUNTS)
        .order_by(judgement.c.revision.desc())
        .limit(1)
    )
    found = connection.execute(latest).first()
    mine = {"image_id": image_id, "axis": axis, "rater_id": rater_id}
    of = connection.execute(select(image.c.revision, image.c.collection).where(image.c.id == image_id)).one()
    connection.execute(delete(current).where(*[current.c[name] == value for name, value in mine.items()]))
    if found is not None:
        connection.execute(SET_CURRENT, {**mine, **found._mapping, "image_revision": of.revision})
    connection.execute(delete(score).where(score.c.image_id == image_id, score.c.axis == axis))
    scored = connection.execute(SET_SCORE, {"image_id": image_id, "axis": axis, "collection": of.collection})
    if axis == OVERALL:
        connection.execute(update(image).where(image.c.id == image_id).values(rated=scored.rowcount))


def choices(connection: Connection, rater_id: str, axis: str, left: str, right: str) -> dict[str, str]:
    """Which of two pictures a rater chose, by comparison, in either order of the sides; oldest first, ties left out."""
    same = and_(comparison.c.left_id == left, comparison.c.right_id == right)
    swapped = and_(comparison.c.left_id == right, comparison.c.right_id == left)
    rows = (
        select(comparison.c.id, comparison.c.left_id, comparison.c.right_id, comparison.c.winner)
        .join(judgement, judgement.c.id == comparison.c.id)
        .where(same | swapped, comparison.c.axis == axis, judgement.c.rater_id == rater_id, COUNTS)
        .where(comparison.c.winner.in_(("left", "right")))
        .order_by(judgement.c.revision)
    )
    return {row.id: row.left_id if row.winner == "left" else row.right_id for row in connection.execute(rows)}


def agreement_on(connection: Connection, rater_id: str, axis: str, left: str, right: str) -> Agreement:
    """How often a rater chose the same of two pictures as the time before."""
    return agreement(list(choices(connection, rater_id, axis, left, right).values()))


def count_judgement(
    connection: Connection, rater_id: str, kind: str, change: int, seconds: float | None = None, **counts: int
) -> None:
    """One judgement of a kind more or less, the time it took, and what else there is to count of it."""
    add_to_tally(connection, "kind", kind, change)
    add_to_rater(connection, rater_id, seconds, judgements=change, **counts)


def count_comparison(connection: Connection, rater_id: str, said: Mapping[str, Any], change: int) -> None:
    """A comparison more or less, asked while it counts: after it was added or before it is taken back."""
    chosen = choices(connection, rater_id, said["axis"], said["left_id"], said["right_id"])
    others = [choice for id_, choice in chosen.items() if id_ != said["id"]]
    whole, rest = agreement(list(chosen.values())), agreement(others)
    counts = {"same": change * (whole.same - rest.same), "repeats": change * (whole.repeats - rest.repeats)}
    if said["winner"] in ("left", "right"):
        counts[f"{said['winner']}s"] = change
    count_judgement(connection, rater_id, "comparison", change, said["lead_time"] if change > 0 else None, **counts)


def set_revision(connection: Connection, revision: int) -> None:
    """Notes the number of a write that changed what people said."""
    counter = tables.counter
    connection.execute(update(counter).where(counter.c.name.in_(("revision", JUDGED))).values(value=revision))


def is_current(connection: Connection) -> bool:
    """Whether the tables were made by this version."""
    counter = tables.counter
    return connection.execute(select(counter.c.value).where(counter.c.name == COUNTED)).scalar() == VERSION


def rebuild(connection: Connection) -> None:
    """Makes all of it anew from the judgements. Takes minutes for millions of them."""
    for table in (current, score, tally, rater_tally):
        connection.execute(delete(table))
    _rebuild_ratings(connection)
    _rebuild_pictures(connection)
    _rebuild_tallies(connection)
    _rebuild_raters(connection)
    _rebuild_counters(connection)


def _rebuild_ratings(connection: Connection) -> None:
    same = (rating.c.image_id, rating.c.axis, judgement.c.rater_id)
    place = func.row_number().over(partition_by=same, order_by=judgement.c.revision.desc()).label("place")
    every = (
        select(*same, rating.c.id, rating.c.value, image.c.revision, place)
        .join(judgement, judgement.c.id == rating.c.id)
        .join(image, image.c.id == rating.c.image_id)
        .where(COUNTS)
        .subquery()
    )
    latest = select(*[column for column in every.c if column.name != "place"]).where(every.c.place == 1)
    names = ["image_id", "axis", "rater_id", "rating_id", "value", "image_revision"]
    connection.execute(insert(current).from_select(names, latest))
    mean = (
        select(
            current.c.image_id,
            current.c.axis,
            func.avg(current.c.value),
            func.count(),
            image.c.collection,
            image.c.revision,
        )
        .join(image, image.c.id == current.c.image_id)
        .group_by(current.c.image_id, current.c.axis, image.c.collection, image.c.revision)
    )
    names = ["image_id", "axis", "value", "ratings", "collection", "image_revision"]
    connection.execute(insert(score).from_select(names, mean))
    rated = select(score.c.image_id).where(score.c.image_id == image.c.id, score.c.axis == OVERALL).exists()
    connection.execute(update(image).values(rated=case((rated, 1), else_=0)))


def _rebuild_pictures(connection: Connection) -> None:
    """The words and the group of every prompt, some pictures at a time."""
    begin_anew(connection)
    rows = (
        select(image.c.id, image.c.revision, tables.generation.c.prompt)
        .join(tables.generation, tables.generation.c.image_id == image.c.id)
        .order_by(image.c.revision)
        .limit(ROWS)
    )
    last = -1
    while found := connection.execute(rows.where(image.c.revision > last)).all():
        insert_words(connection, [(row.revision, row.prompt) for row in found])
        keyed = [{"mine": row.id, "key": prompt_key(row.prompt)} for row in found if row.prompt is not None]
        if keyed:
            connection.execute(text("UPDATE image SET prompt_key = :key WHERE id = :mine"), keyed)
        last = found[-1].revision


def _rebuild_tallies(connection: Connection) -> None:
    files = select(func.max(image.c.bytes).label("bytes")).group_by(image.c.file_hash).subquery()
    size = func.coalesce(func.sum(files.c.bytes), 0)
    counts: list[Select] = [
        select(literal("kind"), judgement.c.kind, func.count()).where(COUNTS, SAID).group_by(judgement.c.kind),
        select(literal("collection"), image.c.collection, func.count()).group_by(image.c.collection),
        select(literal("store"), literal("raters"), func.count()).select_from(tables.rater),
        select(literal("store"), literal("media_bytes"), size),
    ]
    for rows in counts:
        connection.execute(insert(tally).from_select(["what", "name", "value"], rows))


def _rebuild_raters(connection: Connection) -> None:
    judged = select(judgement.c.rater_id, func.count()).where(COUNTS, SAID).group_by(judgement.c.rater_id)
    for rater_id, judgements in connection.execute(judged).all():
        add_to_rater(connection, rater_id, judgements=judgements)
        refresh_times(connection, rater_id)
    decided = (
        select(judgement.c.rater_id, comparison.c.winner, func.count())
        .join(comparison, comparison.c.id == judgement.c.id)
        .where(COUNTS, comparison.c.winner.in_(("left", "right")))
        .group_by(judgement.c.rater_id, comparison.c.winner)
    )
    for rater_id, winner, count in connection.execute(decided).all():
        add_to_rater(connection, rater_id, **{f"{winner}s": count})
    low = case((comparison.c.left_id < comparison.c.right_id, comparison.c.left_id), else_=comparison.c.right_id)
    high = case((comparison.c.left_id < comparison.c.right_id, comparison.c.right_id), else_=comparison.c.left_id)
    pair = (judgement.c.rater_id, comparison.c.axis, low, high)
    again = (
        select(*pair)
        .join(comparison, comparison.c.id == judgement.c.id)
        .where(COUNTS)
        .group_by(*pair)
        .having(func.count() > 1)
    )
    for rater_id, axis, left, right in connection.execute(again).all():
        found = agreement_on(connection, rater_id, axis, left, right)
        add_to_rater(connection, rater_id, same=found.same, repeats=found.repeats)


def _rebuild_counters(connection: Connection) -> None:
    counter = tables.counter
    known = connection.execute(select(counter.c.value).where(counter.c.name == JUDGED)).scalar() or 0
    judged = max(known, connection.execute(select(func.coalesce(func.max(judgement.c.revision), 0))).scalar_one())
    connection.execute(delete(counter).where(counter.c.name.in_((COUNTED, JUDGED))))
    connection.execute(insert(counter), [{"name": COUNTED, "value": VERSION}, {"name": JUDGED, "value": judged}])
