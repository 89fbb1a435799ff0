"""What people said, as a Feedback query asks for it. Every function runs on one snapshot.

A judgement counts unless an undo supersedes it; of the ratings of one rater on one axis of a picture, the latest does.
Both are taken as they were at the query's revision.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, select

from . import tables
from .derived import OVERALL
from .pairs import split_of
from .queries import current_ratings, generation_of, judgement_revision
from .results import ComparedImages, Feedback, RatedImage

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

image, generation, judgement, rater = tables.image, tables.generation, tables.judgement, tables.rater
rating, comparison, tag, interaction = tables.rating, tables.comparison, tables.tag, tables.interaction
entry = tables.ranking_entry

MADE = [column for column in generation.c if column.name != "image_id"]

CONCLUDED = {"saved": 1.0, "picked": 1.0, "upscaled": 1.0, "inpainted": 0.0, "regenerated": -1.0, "deleted": -1.0}
"""What an interaction says of a picture, on a scale of its own from -1 to 1. Inpainting says both yes and no."""


def rated(connection: Connection, feedback: Feedback) -> list[RatedImage]:
    """What is said of single pictures, one for each picture and rater, oldest first."""
    if feedback.tag is not None:
        rows = _tagged(connection, feedback, feedback.tag)
    else:
        given = _rated(connection, feedback)
        rows = [one for one in given if _in_time(one, feedback)] if "rating" in feedback.kinds else []
        if "interaction" in feedback.kinds and feedback.interaction_weight > 0 and feedback.axis == OVERALL:
            rows += _concluded(connection, feedback, {(one.image_id, one.rater) for one in given})
    kept = [one for one in rows if _in_split(one.prompt, feedback)]
    return _often_enough(sorted(kept, key=lambda one: one.created_at), feedback.min_ratings)


def _in_time(one: RatedImage, feedback: Feedback) -> bool:
    after = feedback.since is None or one.created_at >= feedback.since
    return after and (feedback.until is None or one.created_at < feedback.until)


def _in_split(prompt: str | None, feedback: Feedback) -> bool:
    return feedback.split == "all" or (split_of(prompt) == "test") == (feedback.split == "held_out")


def _often_enough(rows: list[RatedImage], least: int) -> list[RatedImage]:
    times: dict[str, int] = defaultdict(int)
    for row in rows:
        times[row.image_id] += 1
    return [row for row in rows if times[row.image_id] >= least]


# Ratings


def _rated(connection: Connection, feedback: Feedback, any_axis: bool = False) -> list[RatedImage]:
    """The ratings that count, whenever they were given."""
    which = [] if any_axis else [rating.c.axis == feedback.axis]
    which += _of_whom_and_where(feedback, rating.c.image_id)
    if feedback.revision >= judgement_revision(connection):
        rows = current_ratings().where(*which).add_columns(*MADE)
    else:
        latest = _latest_ratings(which, feedback.revision).subquery()
        rows = select(latest, *MADE).where(latest.c.place == 1).order_by(latest.c.revision)
        return [_rating(row) for row in connection.execute(rows.join(generation, _made(latest.c.image_id)))]
    return [_rating(row) for row in connection.execute(rows.join(generation, _made(rating.c.image_id)))]


def _made(image_id: ColumnElement[str]) -> ColumnElement[bool]:
    return generation.c.image_id == image_id


def _of_whom_and_where(feedback: Feedback, image_id: ColumnElement[str]) -> list[ColumnElement[bool]]:
    which: list[ColumnElement[bool]] = [rater.c.name.in_(feedback.raters)] if feedback.raters else []
    if feedback.collection is not None:
        which.append(image_id.in_(select(image.c.id).where(image.c.collection == feedback.collection)))
    return which


def counts_at(revision: int) -> list[ColumnElement[bool]]:
    """Conditions under which a judgement counted at this revision."""
    undo = judgement.alias("undo")
    undone = select(undo.c.id).where(undo.c.supersedes == judgement.c.id, undo.c.revision <= revision)
    return [judgement.c.revision <= revision, ~undone.exists()]


def _latest_ratings(which: Iterable[ColumnElement[bool]], at: int) -> Select:
    """Ratings that counted, with `place` 1 for the latest of a rater on an axis of a picture."""
    same = (rating.c.image_id, rating.c.axis, judgement.c.rater_id)
    place = func.row_number().over(partition_by=same, order_by=judgement.c.revision.desc()).label("place")
    columns = (rating, judgement.c.revision, judgement.c.created_at, rater.c.name.label("rater"), place)
    return (
        select(*columns)
        .join(judgement, judgement.c.id == rating.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .where(*which, *counts_at(at))
    )


def _rating(row: Row[Any]) -> RatedImage:
    return RatedImage(
        rating_id=row.id,
        image_id=row.image_id,
        prompt=row.prompt,
        value=row.value,
        raw=row.raw,
        scale=(row.scale_min, row.scale_max),
        rater=row.rater,
        axis=row.axis,
        created_at=row.created_at,
        generation=generation_of(row),
    )


# Tags and interactions


def _said_of_images(table: Any, feedback: Feedback) -> Select:
    """Rows of a kind that is said of one picture, with how it was made."""
    rows = (
        select(table, judgement.c.created_at, rater.c.name.label("rater"), *MADE)
        .join(judgement, judgement.c.id == table.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .join(generation, _made(table.c.image_id))
        .where(*counts_at(feedback.revision), *_of_whom_and_where(feedback, table.c.image_id))
        .order_by(judgement.c.revision)
    )
    return rows.where(*_within(feedback))


def _within(feedback: Feedback) -> list[ColumnElement[bool]]:
    since = [] if feedback.since is None else [judgement.c.created_at >= feedback.since]
    return since + ([] if feedback.until is None else [judgement.c.created_at < feedback.until])


def _tagged(connection: Connection, feedback: Feedback, wanted: str) -> list[RatedImage]:
    """1 for pictures with the tag; 0 for those that its users tagged or rated and did not give it to."""
    if "tag" not in feedback.kinds:
        return []
    found: dict[tuple[str, str], RatedImage] = {}
    for row in connection.execute(_said_of_images(tag, feedback)):
        value = float(row.tag == wanted)
        if value or (row.image_id, row.rater) not in found:
            found[row.image_id, row.rater] = _from_row(row, wanted, value, value, (0.0, 1.0), "tag", 1.0)
    users = {one.rater for one in found.values() if one.value}
    if "rating" in feedback.kinds:
        for one in _rated(connection, feedback, any_axis=True):
            if _in_time(one, feedback):
                without = _unlike(one, wanted)
                found.setdefault((one.image_id, one.rater), without)
    return [one for one in found.values() if one.rater in users]


def _unlike(one: RatedImage, wanted: str) -> RatedImage:
    """A picture that was looked at and not given the tag."""
    who = (one.rater, wanted, one.created_at, one.generation, "tag", 1.0)
    return RatedImage(one.rating_id, one.image_id, one.prompt, 0.0, 0.0, (0.0, 1.0), *who)


def _concluded(connection: Connection, feedback: Feedback, rated: set[tuple[str, str]]) -> list[RatedImage]:
    """The mean of what a rater's interactions with a picture say; nothing where that rater also rated it."""
    done: dict[tuple[str, str], list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(_said_of_images(interaction, feedback)):
        if (row.image_id, row.rater) not in rated:
            done[row.image_id, row.rater].append(row)
    found = []
    for rows in done.values():
        raw = fmean(CONCLUDED[row.kind] for row in rows)
        how = ((raw + 1) / 2, raw, (-1.0, 1.0), "interaction", feedback.interaction_weight)
        found.append(_from_row(rows[-1], feedback.axis, *how))
    return found


def _from_row(
    row: Row[Any], axis: str, value: float, raw: float, scale: tuple[float, float], kind: Any, weight: float
) -> RatedImage:
    about = (row.rater, axis, row.created_at, generation_of(row))
    return RatedImage(row.id, row.image_id, row.prompt, value, raw, scale, *about, kind, weight)


# Pairs


def compared(connection: Connection, feedback: Feedback) -> list[ComparedImages]:
    """The comparisons that count, and all pairs out of rankings, oldest first.

    With a collection, both pictures are of it; in a split, both prompts are.
    """
    if feedback.tag is not None:
        return []
    found = list(_comparisons(connection, feedback)) if "comparison" in feedback.kinds else []
    if "ranking" in feedback.kinds:
        found += _ranked_pairs(connection, feedback)
    prompts = ("left_prompt", "right_prompt")
    kept = [one for one in found if all(_in_split(getattr(one, name), feedback) for name in prompts)]
    return sorted(kept, key=lambda one: one.created_at)


def _comparisons(connection: Connection, feedback: Feedback) -> Iterator[ComparedImages]:
    left, right, left_made, right_made = image.alias(), image.alias(), generation.alias(), generation.alias()
    prompts = (left_made.c.prompt.label("left_prompt"), right_made.c.prompt.label("right_prompt"))
    rows = (
        select(comparison, judgement.c.created_at, rater.c.name.label("rater"), *prompts)
        .join(judgement, judgement.c.id == comparison.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .join(left, left.c.id == comparison.c.left_id)
        .join(right, right.c.id == comparison.c.right_id)
        .join(left_made, left_made.c.image_id == comparison.c.left_id)
        .join(right_made, right_made.c.image_id == comparison.c.right_id)
        .where(comparison.c.axis == feedback.axis, *counts_at(feedback.revision), *_within(feedback))
        .order_by(judgement.c.revision)
    )
    if feedback.raters:
        rows = rows.where(rater.c.name.in_(feedback.raters))
    if feedback.collection is not None:
        rows = rows.where(left.c.collection == feedback.collection, right.c.collection == feedback.collection)
    for row in connection.execute(rows):
        who = (row.winner, row.strength, row.rater, row.axis, row.created_at)
        yield ComparedImages(row.id, row.left_id, row.right_id, *who, row.left_prompt, row.right_prompt)


def _ranked_pairs(connection: Connection, feedback: Feedback) -> Iterator[ComparedImages]:
    ranking = tables.ranking
    rows = (
        select(ranking.c.id, entry.c.place, entry.c.image_id, generation.c.prompt)
        .add_columns(judgement.c.created_at, rater.c.name.label("rater"))
        .join(judgement, judgement.c.id == ranking.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .join(entry, entry.c.ranking_id == ranking.c.id)
        .join(generation, _made(entry.c.image_id))
        .where(ranking.c.axis == feedback.axis, *counts_at(feedback.revision), *_within(feedback))
        .where(*_of_whom_and_where(feedback, entry.c.image_id))
        .order_by(judgement.c.revision, entry.c.place)
    )
    orders: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(rows):
        orders[row.id].append(row)
    for order in orders.values():
        for better, worse in combinations(order, 2):
            yield _ranked_pair(better, worse, order[-1].place - order[0].place, feedback.axis)


def _ranked_pair(better: Row[Any], worse: Row[Any], span: int, axis: str) -> ComparedImages:
    """Which is left changes from pair to pair, so that no habit can be learned from it; far apart is a clear choice."""
    first = (better.place + worse.place) % 2 == 1
    left, right = (better, worse) if first else (worse, better)
    id_, strength = f"{better.id}:{better.place}:{worse.place}", (worse.place - better.place) / span
    who = ("left" if first else "right", strength, better.rater, axis, better.created_at)
    return ComparedImages(id_, left.image_id, right.image_id, *who, left.prompt, right.prompt, "ranking")
