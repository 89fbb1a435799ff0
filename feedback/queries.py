"""What is read: pictures, the judgements that count, embeddings. Every function runs on one snapshot.

A judgement counts unless an undo supersedes it; of the ratings of one rater on one axis of a picture, the latest does.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sqlalchemy import and_, func, select

from . import documents, tables
from .derived import JUDGED
from .records import (
    ComparedImages,
    Feedback,
    Generation,
    Lora,
    NotFound,
    Page,
    RatedImage,
    StoredImage,
    StoredRating,
)

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Row, Select

T = TypeVar("T")

CHUNK = 500  # ids in one statement; SQLite takes 999 parameters in its older builds

image, generation, judgement, rating, comparison, rater = (
    tables.image,
    tables.generation,
    tables.judgement,
    tables.rating,
    tables.comparison,
    tables.rater,
)


def revision(connection: Connection) -> int:
    """The number of the last write."""
    return connection.execute(select(tables.counter.c.value).where(tables.counter.c.name == "revision")).scalar_one()


def judgement_revision(connection: Connection) -> int:
    """The number of the last write that changed what people said; 0 before the first."""
    judged = select(tables.counter.c.value).where(tables.counter.c.name == JUDGED)
    return connection.execute(judged).scalar() or 0


def page(connection: Connection, collection: str | None, before: int | None, limit: int) -> Page:
    """`limit` pictures recorded before revision `before`, newest first."""
    rows = _image_rows().order_by(image.c.revision.desc()).limit(limit + 1)
    if collection is not None:
        rows = rows.where(image.c.collection == collection)
    if before is not None:
        rows = rows.where(image.c.revision < before)
    found = connection.execute(rows).all()
    items = _with_ratings(connection, found[:limit])
    return Page(items, str(found[limit - 1].revision) if len(found) > limit else None)


def images_by_id(connection: Connection, ids: Sequence[str]) -> tuple[StoredImage, ...]:
    """The pictures of these ids that exist."""
    found = [row for some in chunks(ids) for row in connection.execute(_image_rows().where(image.c.id.in_(some)))]
    return _with_ratings(connection, found)


def _image_rows() -> Select[Any]:
    return select(image, generation).join(generation, generation.c.image_id == image.c.id)


def _with_ratings(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[StoredImage, ...]:
    ratings = _ratings_of(connection, [row.id for row in rows])
    return tuple(
        StoredImage(
            id=row.id,
            collection=row.collection,
            file_hash=row.file_hash,
            pixel_hash=row.pixel_hash,
            width=row.width,
            height=row.height,
            created_at=row.created_at,
            generation=_generation(row),
            ratings=tuple(ratings[row.id]),
        )
        for row in rows
    )


def _generation(row: Row[Any]) -> Generation:
    """How the picture was made; the graphs stay in the database, see `graphs`."""
    loras = None if row.loras is None else tuple(Lora(**lora) for lora in json.loads(row.loras))
    names = ("prompt", "negative", "seed", "steps", "cfg", "sampler", "scheduler", "denoise", "checkpoint")
    run = ("prompt_id", "node_id", "batch_index", "checkpoint_hash")
    fields = {name: getattr(row, name) for name in (*names, *run)}
    return Generation(**fields, loras=loras, versions=json.loads(row.versions))


def _ratings_of(connection: Connection, ids: Sequence[str]) -> dict[str, list[StoredRating]]:
    ratings: dict[str, list[StoredRating]] = defaultdict(list)
    for some in chunks(ids):
        latest = _latest_ratings(rating.c.image_id.in_(some), None).subquery()
        for row in connection.execute(select(latest).where(latest.c.place == 1).order_by(latest.c.revision)):
            scale = (row.scale_min, row.scale_max)
            stored = StoredRating(row.id, row.rater, row.axis, row.value, row.raw, scale, row.created_at)
            ratings[row.image_id].append(stored)
    return ratings


def _counts(at: int | None) -> list[ColumnElement[bool]]:
    """Conditions under which a judgement counts at revision `at` (None: now)."""
    undo = judgement.alias("undo")
    undone = select(undo.c.id).where(undo.c.supersedes == judgement.c.id)
    if at is None:
        return [~undone.exists()]
    return [judgement.c.revision <= at, ~undone.where(undo.c.revision <= at).exists()]


def _latest_ratings(which: ColumnElement[bool], at: int | None) -> Select[Any]:
    """Ratings that count, with `place` 1 for the latest of a rater on an axis of a picture."""
    same = (rating.c.image_id, rating.c.axis, judgement.c.rater_id)
    place = func.row_number().over(partition_by=same, order_by=judgement.c.revision.desc()).label("place")
    columns = (rating, judgement.c.revision, judgement.c.created_at, rater.c.name.label("rater"), place)
    return (
        select(*columns)
        .join(judgement, judgement.c.id == rating.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .where(which, *_counts(at))
    )


def rated(connection: Connection, feedback: Feedback) -> list[RatedImage]:
    """The ratings that count, one for each picture and rater, oldest first."""
    which = [rating.c.axis == feedback.axis]
    if feedback.raters:
        which.append(rater.c.name.in_(feedback.raters))
    if feedback.collection is not None:
        which.append(rating.c.image_id.in_(select(image.c.id).where(image.c.collection == feedback.collection)))
    latest = _latest_ratings(and_(*which), feedback.revision).subquery()
    made = [column for column in generation.c if column.name != "image_id"]
    rows = (
        select(latest, *made)
        .join(generation, generation.c.image_id == latest.c.image_id)
        .where(latest.c.place == 1)
        .order_by(latest.c.revision)
    )
    return _often_enough([_rated(row) for row in connection.execute(rows)], feedback.min_ratings)


def _rated(row: Row[Any]) -> RatedImage:
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
        generation=_generation(row),
    )


def _often_enough(rows: list[RatedImage], least: int) -> list[RatedImage]:
    times: dict[str, int] = defaultdict(int)
    for row in rows:
        times[row.image_id] += 1
    return [row for row in rows if times[row.image_id] >= least]


def compared(connection: Connection, feedback: Feedback) -> list[ComparedImages]:
    """The comparisons that count, oldest first. With a collection, both pictures are of it."""
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
        .where(comparison.c.axis == feedback.axis, *_counts(feedback.revision))
        .order_by(judgement.c.revision)
    )
    if feedback.raters:
        rows = rows.where(rater.c.name.in_(feedback.raters))
    if feedback.collection is not None:
        rows = rows.where(left.c.collection == feedback.collection, right.c.collection == feedback.collection)
    return [_compared(row) for row in connection.execute(rows)]


def _compared(row: Row[Any]) -> ComparedImages:
    return ComparedImages(
        comparison_id=row.id,
        left=row.left_id,
        right=row.right_id,
        winner=row.winner,
        strength=row.strength,
        rater=row.rater,
        axis=row.axis,
        created_at=row.created_at,
        left_prompt=row.left_prompt,
        right_prompt=row.right_prompt,
    )


def graphs(connection: Connection, image_id: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(API prompt, workflow) of a picture."""
    hashes = select(generation.c.api_prompt_hash, generation.c.workflow_hash).where(generation.c.image_id == image_id)
    if (found := connection.execute(hashes).first()) is None:
        raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
    bodies = select(tables.document.c.hash, tables.document.c.body).where(tables.document.c.hash.in_(list(found)))
    by_hash = {row.hash: documents.unpacked(row.body) for row in connection.execute(bodies)}
    return by_hash.get(found[0]), by_hash.get(found[1])


def embeddings(connection: Connection, ids: Sequence[str], encoder_id: str) -> dict[str, np.ndarray]:
    """Stored embeddings (F,) float32 by picture."""
    table = tables.embedding
    rows = select(table.c.image_id, table.c.vector).where(table.c.encoder_id == encoder_id)
    return {
        row.image_id: np.frombuffer(row.vector, "<f4").astype(np.float32)
        for some in chunks(ids)
        for row in connection.execute(rows.where(table.c.image_id.in_(some)))
    }


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """Distinct ids, as many at a time as one statement takes."""
    everything = list(dict.fromkeys(ids))
    for start in range(0, len(everything), CHUNK):
        yield everything[start : start + CHUNK]
