"""What is read of pictures: how they were made, the ratings that count, embeddings. All on one snapshot."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sqlalchemy import select

from . import derived_tables, documents, tables
from .derived import JUDGED
from .records import (
    Generation,
    Lora,
    NotFound,
    StoredImage,
    StoredRating,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row, Select

T = TypeVar("T")

CHUNK = 500  # ids in one statement; SQLite takes 999 parameters in its older builds

image, generation, judgement, rating, rater = (
    tables.image,
    tables.generation,
    tables.judgement,
    tables.rating,
    tables.rater,
)
current = derived_tables.current_rating


def revision(connection: Connection) -> int:
    """The number of the last write."""
    return connection.execute(select(tables.counter.c.value).where(tables.counter.c.name == "revision")).scalar_one()


def judgement_revision(connection: Connection) -> int:
    """The number of the last write that changed what people said; 0 before the first."""
    judged = select(tables.counter.c.value).where(tables.counter.c.name == JUDGED)
    return connection.execute(judged).scalar() or 0


def images_by_revision(connection: Connection, revisions: Sequence[int]) -> tuple[StoredImage, ...]:
    """The pictures of these revisions, in their order."""
    rows = _image_rows().where(image.c.revision.in_(revisions))
    found = {row.revision: row for row in connection.execute(rows)} if revisions else {}
    return _with_ratings(connection, [found[revision] for revision in revisions if revision in found])


def images_by_id(connection: Connection, ids: Sequence[str]) -> tuple[StoredImage, ...]:
    """The pictures of these ids that exist."""
    found = [row for some in chunks(ids) for row in connection.execute(_image_rows().where(image.c.id.in_(some)))]
    return _with_ratings(connection, found)


def _image_rows() -> Select:
    return select(image, generation).join(generation, generation.c.image_id == image.c.id)


def _with_ratings(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[StoredImage, ...]:
    ids = [row.id for row in rows]
    ratings, watermarks = _ratings_of(connection, ids), _watermarks_of(connection, ids)
    return tuple(
        StoredImage(
            id=row.id,
            collection=row.collection,
            file_hash=row.file_hash,
            pixel_hash=row.pixel_hash,
            width=row.width,
            height=row.height,
            created_at=row.created_at,
            generation=generation_of(row),
            ratings=tuple(ratings[row.id]),
            watermark=watermarks.get(row.id),
        )
        for row in rows
    )


def generation_of(row: Row[Any]) -> Generation:
    """How the picture was made; the graphs stay in the database, see `graphs`."""
    loras = None if row.loras is None else tuple(Lora(**lora) for lora in json.loads(row.loras))
    names = ("prompt", "negative", "seed", "steps", "cfg", "sampler", "scheduler", "denoise", "checkpoint")
    run = ("prompt_id", "node_id", "batch_index", "checkpoint_hash")
    fields = {name: getattr(row, name) for name in (*names, *run)}
    return Generation(**fields, loras=loras, versions=json.loads(row.versions))


def _ratings_of(connection: Connection, ids: Sequence[str]) -> dict[str, list[StoredRating]]:
    ratings: dict[str, list[StoredRating]] = defaultdict(list)
    for some in chunks(ids):
        for row in connection.execute(current_ratings().where(current.c.image_id.in_(some))):
            scale = (row.scale_min, row.scale_max)
            stored = StoredRating(row.id, row.rater, row.axis, row.value, row.raw, scale, row.created_at)
            ratings[row.image_id].append(stored)
    return ratings


def current_ratings() -> Select:
    """The ratings that count now, oldest first."""
    return (
        select(rating, judgement.c.revision, judgement.c.created_at, rater.c.name.label("rater"))
        .join(current, current.c.rating_id == rating.c.id)
        .join(judgement, judgement.c.id == rating.c.id)
        .join(rater, rater.c.id == judgement.c.rater_id)
        .order_by(judgement.c.revision)
    )


def _watermarks_of(connection: Connection, ids: Sequence[str]) -> dict[str, float]:
    table = derived_tables.watermark_score
    rows = select(table.c.image_id, table.c.value)
    return {
        row.image_id: row.value
        for some in chunks(ids)
        for row in connection.execute(rows.where(table.c.image_id.in_(some)))
    }


def graphs(connection: Connection, image_id: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(API prompt, workflow) of a picture."""
    hashes = select(generation.c.api_prompt_hash, generation.c.workflow_hash).where(generation.c.image_id == image_id)
    if (found := connection.execute(hashes).first()) is None:
        raise NotFound(f"There is no picture {image_id!r} in the feedback database.")
    bodies = select(tables.document.c.hash, tables.document.c.body).where(tables.document.c.hash.in_(list(found)))
    by_hash = {row.hash: documents.unpacked(row.body) for row in connection.execute(bodies)}
    return by_hash.get(found[0]), by_hash.get(found[1])


def without_watermark_score(connection: Connection, limit: int) -> list[str]:
    """The newest pictures that no detector looked at."""
    scored = derived_tables.watermark_score
    there = select(scored.c.image_id).where(scored.c.image_id == image.c.id)
    rows = select(image.c.id).where(~there.exists()).order_by(image.c.revision.desc()).limit(limit)
    return list(connection.execute(rows).scalars())


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
