"""What people say, written statement by statement, with the counts that follow from it kept in step.

Every function runs in the one writing transaction.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select

from . import derived, media, tables
from .engines import unanswered
from .marks import Interaction, Ranking, Region, Tag, WordMark
from .queries import revision
from .records import Comment, Comparison, Conflict, InvalidRecord, NotFound, NotYours, Rating
from .writes import now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

image, judgement = tables.image, tables.judgement

RATING_FIELDS = ("image_id", "axis", "value", "raw", "scale_min", "scale_max", "lead_time")
COMPARISON_FIELDS = ("axis", "winner", "strength", "policy", "propensity", "lead_time")
REGION_FIELDS = ("image_id", "shape", "label", "severity", "comment")
WORD_FIELDS = ("image_id", "word_index", "word", "label")


@dataclass(frozen=True)
class Stamp:
    """The id and the time of a judgement, given before it is written, so that writing it again is seen as the same."""

    id: str
    at: datetime

    @staticmethod
    def new() -> Stamp:
        return Stamp(str(uuid.uuid4()), now())


_RATER = select(tables.rater.c.id).where(tables.rater.c.name == bindparam("rater")).scalar_subquery()
_LAST = select(tables.counter.c.value).where(tables.counter.c.name == "revision").scalar_subquery()
_FACTS = select(image.c.id, image.c.revision, image.c.collection, image.c.rated).add_columns(
    _RATER.label("rater_id"), _LAST.label("last")
)
_FACTS = _FACTS.where(image.c.id.in_(bindparam("images", expanding=True)))
"""All that a judgement has to know, in one question, because others wait meanwhile."""


def insert_rating(connection: Connection, rating: Rating, stamp: Stamp | None = None) -> str:
    """Appends a rating, and the comment that came with it."""
    rater_id, (of,) = _facts(connection, rating.rater, [rating.image_id])
    row = {name: getattr(rating, name) for name in RATING_FIELDS}
    with unanswered(connection):
        id_ = _append(connection, "rating", rater_id, of.last + 1, stamp)
        derived.count_judgement(connection, rater_id, "rating", 1, rating.lead_time)
        connection.execute(insert(tables.rating), {"id": id_, **row})
        derived.count_rating(connection, id_, rater_id, rating, of)
    if rating.comment is not None:
        _insert_comment(connection, Comment(rating.image_id, rating.comment, rating.rater), about=id_)
    return id_


def insert_comparison(connection: Connection, comparison: Comparison, stamp: Stamp | None = None) -> str:
    """Appends a comparison."""
    pair = [comparison.left, comparison.right]
    id_, rater_id, _ = _judge(connection, "comparison", comparison.rater, pair, stamp)
    row = {name: getattr(comparison, name) for name in COMPARISON_FIELDS}
    row |= {"id": id_, "left_id": comparison.left, "right_id": comparison.right}
    connection.execute(insert(tables.comparison), row)
    derived.count_comparison(connection, rater_id, row, 1)
    return id_


def insert_ranking(connection: Connection, ranking: Ranking, stamp: Stamp | None = None) -> str:
    """Appends a ranking."""
    id_, _, _ = _judge(connection, "ranking", ranking.rater, ranking.image_ids, stamp, ranking.lead_time)
    connection.execute(insert(tables.ranking).values(id=id_, axis=ranking.axis, lead_time=ranking.lead_time))
    entries = [
        {"ranking_id": id_, "place": place, "image_id": image_id} for place, image_id in enumerate(ranking.image_ids)
    ]
    connection.execute(insert(tables.ranking_entry), entries)
    return id_


def insert_region(connection: Connection, region: Region, mask: bytes | None, stamp: Stamp | None = None) -> str:
    """Appends a marked place. mask: as it is to be kept, see `clean_mask`."""
    id_, _, _ = _judge(connection, "region", region.rater, [region.image_id], stamp)
    row = {name: getattr(region, name) for name in REGION_FIELDS}
    geometry = json.dumps(region.geometry, allow_nan=False)
    connection.execute(insert(tables.region).values(id=id_, geometry=geometry, mask=mask, **row))
    return id_


def clean_mask(region: Region, width: int, height: int) -> bytes | None:
    """The mask encoded anew, None where the region has none. Raises InvalidRecord if it doesn't fit the picture."""
    if region.mask is None:
        return None
    try:
        mask = media.decode_mask(region.mask)
    except media.BadPicture as error:
        raise InvalidRecord(f"The mask can't be used: {error}") from error
    if mask.shape != (height, width):
        raise InvalidRecord(
            f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels, the picture {width} x {height}; they must agree."
        )
    if not mask.any():
        raise InvalidRecord("The mask marks nothing; paint what it is to mark.")
    return media.encode_png(mask)


def insert_word_mark(connection: Connection, mark: WordMark, stamp: Stamp | None = None) -> str:
    """Appends a marked word. Raises InvalidRecord unless it stands there in the prompt."""
    id_, _, _ = _judge(connection, "word_mark", mark.rater, [mark.image_id], stamp)
    made = tables.generation
    prompt = connection.execute(select(made.c.prompt).where(made.c.image_id == mark.image_id)).scalar()
    words = [] if prompt is None else prompt.split()
    if words[mark.word_index : mark.word_index + 1] != [mark.word]:
        raise InvalidRecord(
            f"Word {mark.word_index} of the prompt, counted from 0, is not {mark.word[:60]!r}"
            + (f" but {words[mark.word_index][:60]!r}." if mark.word_index < len(words) else "; there is no such word.")
        )
    connection.execute(insert(tables.word_mark).values(id=id_, **{name: getattr(mark, name) for name in WORD_FIELDS}))
    return id_


def insert_tag(connection: Connection, tag: Tag, stamp: Stamp | None = None) -> str:
    """Appends a tag; the id of the one that is there if the rater put it on the picture before."""
    word = tag.tag.strip()
    there = (
        select(tables.tag.c.id)
        .join(judgement, judgement.c.id == tables.tag.c.id)
        .join(tables.rater, tables.rater.c.id == judgement.c.rater_id)
        .where(tables.tag.c.image_id == tag.image_id, tables.tag.c.tag == word, tables.rater.c.name == tag.rater)
        .where(derived.COUNTS)
    )
    if (found := connection.execute(there).scalar()) is not None:
        return found
    id_, _, _ = _judge(connection, "tag", tag.rater, [tag.image_id], stamp)
    connection.execute(insert(tables.tag).values(id=id_, image_id=tag.image_id, tag=word))
    return id_


def insert_interaction(connection: Connection, done: Interaction, stamp: Stamp | None = None) -> str:
    """Appends what somebody did with a picture."""
    images = [done.image_id] if done.result_id is None else [done.image_id, done.result_id]
    id_, _, _ = _judge(connection, "interaction", done.rater, images, stamp)
    row = {"image_id": done.image_id, "result_id": done.result_id, "kind": done.kind}
    connection.execute(insert(tables.interaction).values(id=id_, **row))
    return id_


def insert_comment(connection: Connection, comment: Comment, stamp: Stamp | None = None) -> str:
    """Appends a comment."""
    return _insert_comment(connection, comment, about=None, stamp=stamp)


def _insert_comment(connection: Connection, comment: Comment, about: str | None, stamp: Stamp | None = None) -> str:
    id_, _, _ = _judge(connection, "comment", comment.rater, [comment.image_id], stamp)
    connection.execute(insert(tables.comment).values(id=id_, image_id=comment.image_id, about=about, text=comment.text))
    return id_


def _judge(
    connection: Connection,
    kind: str,
    rater: str,
    images: Sequence[str],
    stamp: Stamp | None = None,
    seconds: float | None = None,
) -> tuple[str, str, list[Row[Any]]]:
    """(id of the new judgement, id of the rater, the pictures' rows). Raises NotFound for an unknown picture."""
    rater_id, rows = _facts(connection, rater, images)
    id_ = _append(connection, kind, rater_id, rows[0].last + 1, stamp)
    if kind != "comparison":
        derived.count_judgement(connection, rater_id, kind, 1, seconds)
    return id_, rater_id, rows


def _facts(connection: Connection, rater: str, images: Sequence[str]) -> tuple[str, list[Row[Any]]]:
    """(id of the rater, who is made known if need be, the pictures' rows). Raises NotFound for an unknown picture."""
    found = {row.id: row for row in connection.execute(_FACTS, {"rater": rater, "images": list(images)})}
    for image_id in images:
        if image_id not in found:
            raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
    rows = [found[image_id] for image_id in images]
    return rows[0].rater_id or rater_named(connection, rater), rows


def _append(
    connection: Connection, kind: str, rater_id: str, revision: int, stamp: Stamp | None, supersedes: str | None = None
) -> str:
    stamp = stamp or Stamp.new()
    derived.set_revision(connection, revision)
    row = {"id": stamp.id, "created_at": stamp.at, "kind": kind, "rater_id": rater_id, "supersedes": supersedes}
    connection.execute(insert(judgement), {**row, "revision": revision})
    return stamp.id


def rater_named(connection: Connection, name: str) -> str:
    """The id of the rater, who is made known if nobody has this name yet."""
    rater = tables.rater
    found = connection.execute(select(rater.c.id).where(rater.c.name == name)).scalar()
    if found is None:
        found = str(uuid.uuid4())
        connection.execute(insert(rater).values(id=found, name=name, created_at=now()))
        derived.add_to_tally(connection, "store", "raters", 1)
    return found


def insert_undo(
    connection: Connection, judgement_id: str, rater: str | None, clear: bool, stamp: Stamp | None = None
) -> str:
    """Supersedes a judgement and the comment that came with it; see FeedbackStore.undo for `clear`."""
    name = tables.rater.c.name
    whose = select(judgement, name.label("rater")).join(tables.rater).where(judgement.c.id == judgement_id)
    found = connection.execute(whose).first()
    if found is None:
        raise NotFound(f"There is no judgement {judgement_id!r} in the feedback database.")
    if found.kind == "undo":
        raise Conflict("An undo can't be undone; judge the picture again.")
    if rater is not None and rater != found.rater:
        raise NotYours("This is the judgement of another rater; everyone can take back only their own.")
    also = select(tables.comment.c.id).where(tables.comment.c.about == judgement_id)
    earlier = _earlier_ratings(connection, found) if clear else []
    for other in [*connection.execute(also).scalars(), *earlier]:
        _supersede(connection, other)
    return _supersede(connection, judgement_id, stamp)


def _supersede(connection: Connection, judgement_id: str, stamp: Stamp | None = None) -> str:
    undo = connection.execute(select(judgement.c.id).where(judgement.c.supersedes == judgement_id)).scalar()
    if undo is not None:
        return undo
    row = connection.execute(select(judgement).where(judgement.c.id == judgement_id)).one()
    if row.kind == "comparison":
        compared = connection.execute(select(tables.comparison).where(tables.comparison.c.id == judgement_id)).one()
        derived.count_comparison(connection, row.rater_id, compared._asdict(), -1)
    else:
        derived.count_judgement(connection, row.rater_id, row.kind, -1)
    undo = _append(connection, "undo", row.rater_id, revision(connection) + 1, stamp, judgement_id)
    if row.kind == "rating":
        of = select(tables.rating.c.image_id, tables.rating.c.axis).where(tables.rating.c.id == judgement_id)
        image_id, axis = connection.execute(of).one()
        derived.refresh_rating(connection, image_id, axis, row.rater_id)
    return undo


def _earlier_ratings(connection: Connection, found: Any) -> list[str]:
    rating = tables.rating
    this = connection.execute(select(rating.c.image_id, rating.c.axis).where(rating.c.id == found.id)).first()
    if this is None:
        return []
    earlier = (
        select(rating.c.id)
        .join(judgement, judgement.c.id == rating.c.id)
        .where(rating.c.image_id == this.image_id, rating.c.axis == this.axis)
        .where(judgement.c.rater_id == found.rater_id, judgement.c.revision < found.revision)
    )
    return list(connection.execute(earlier).scalars())
