"""What people wrote about pictures, as wishes for the next ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from . import tables
from .derived import COUNTS

if TYPE_CHECKING:
    from sqlalchemy import Connection

comment, image, judgement = tables.comment, tables.image, tables.judgement


def latest_comments(connection: Connection, collection: str, limit: int) -> list[str]:
    """The comments that count on pictures of a collection, the latest last; equal ones only where they came last."""
    rows = (
        select(comment.c.text)
        .join(judgement, judgement.c.id == comment.c.id)
        .join(image, image.c.id == comment.c.image_id)
        .where(image.c.collection == collection, COUNTS)
        .order_by(judgement.c.revision.desc())
        .limit(limit)
    )
    return list(dict.fromkeys(connection.execute(rows).scalars()))[::-1]
