"""Small questions to the store: which files came in already, which fit was the latest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sqlalchemy import select

from . import tables
from .records import ModelRun

if TYPE_CHECKING:
    from sqlalchemy import Connection

image, model_run = tables.image, tables.model_run


def sources(connection: Connection, collection: str) -> set[str]:
    """The hashes of the files that came into a collection as files."""
    rows = select(image.c.source_hash).where(image.c.collection == collection, image.c.source_hash.is_not(None))
    return set(connection.execute(rows).scalars())


def shows(connection: Connection, pixel_hash: str, collection: str) -> bool:
    """Whether a picture of the collection has these pixels."""
    rows = select(image.c.id).where(image.c.pixel_hash == pixel_hash, image.c.collection == collection)
    return connection.execute(rows.limit(1)).first() is not None


def latest_run(connection: Connection, kind: str) -> ModelRun | None:
    """The fit of this kind that was noted last."""
    rows = select(model_run).where(model_run.c.kind == kind).order_by(model_run.c.revision.desc())
    if (row := connection.execute(rows.limit(1)).first()) is None:
        return None
    settings, metrics = json.loads(row.settings), json.loads(row.metrics)
    return ModelRun(row.kind, row.name, row.data_revision, row.data_hash, settings, metrics, row.file_hash)
