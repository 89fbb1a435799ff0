"""A judgement on its way to the database: with its id and time from the beginning, so that it is the same one whenever
and however often it arrives; and as a line of JSON, for the time in between.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import judging, tables
from .judging import Stamp
from .marks import Interaction, Ranking, Region, Tag, WordMark
from .records import Comment, Comparison, NotFound, Rating, RequestKey
from .writes import once

if TYPE_CHECKING:
    from sqlalchemy import Connection

ALIAS = "outbox:"  # begins the key under which it is noted that a judgement goes by another id


@dataclass(frozen=True)
class Undo:
    """That a judgement is taken back; see FeedbackStore.undo."""

    judgement_id: str
    rater: str | None
    clear: bool


Record = Rating | Comparison | Ranking | Region | WordMark | Tag | Comment | Interaction | Undo

KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Rating, Comparison, Ranking, Region, WordMark, Tag, Comment, Interaction, Undo)
}

INSERT: dict[type, Any] = {
    Rating: judging.insert_rating,
    Comparison: judging.insert_comparison,
    Ranking: judging.insert_ranking,
    Region: lambda c, region, stamp: judging.insert_region(c, region, region.mask, stamp),
    WordMark: judging.insert_word_mark,
    Tag: judging.insert_tag,
    Comment: judging.insert_comment,
    Interaction: judging.insert_interaction,
    Undo: lambda c, undo, stamp: judging.insert_undo(c, undo.judgement_id, undo.rater, undo.clear, stamp),
}


@dataclass(frozen=True)
class Said:
    """What somebody said, when, under which id, and the key that the client sent with it."""

    record: Record
    stamp: Stamp
    key: RequestKey | None = None

    def as_line(self) -> bytes:
        """One line of JSON, with its end."""
        fields = asdict(self.record)
        if isinstance(self.record, Region) and self.record.mask is not None:
            fields["mask"] = base64.b64encode(self.record.mask).decode()
        line = {
            "id": self.stamp.id,
            "at": self.stamp.at.isoformat(),
            "kind": type(self.record).__name__,
            "record": fields,
            "key": None if self.key is None else asdict(self.key),
        }
        return json.dumps(line, allow_nan=False).encode() + b"\n"


def from_line(line: bytes) -> Said:
    """The judgement in a line. Raises ValueError, KeyError or TypeError for a line that is none of ours."""
    found = json.loads(line)
    kind, fields = KINDS[found["kind"]], found["record"]
    if kind is Ranking:
        fields["image_ids"] = tuple(fields["image_ids"])
    if kind is Region:
        fields["geometry"] = tuple((x, y) for x, y in fields["geometry"])
        fields["mask"] = None if fields["mask"] is None else base64.b64decode(fields["mask"])
    key = None if found["key"] is None else RequestKey(**found["key"])
    return Said(kind(**fields), Stamp(found["id"], datetime.fromisoformat(found["at"])), key)


def insert(connection: Connection, *said: Said) -> str:
    """Appends what was said in one click; returns the last one's id, or that of the earlier one that it repeats."""

    def every(connection: Connection) -> str:
        return [INSERT[type(one.record)](connection, one.record, one.stamp) for one in said][-1]

    return once(connection, said[-1].key, every)


def insert_again(connection: Connection, said: Said) -> str:
    """Appends a judgement that may have been appended before, and that nobody compared with its picture yet."""
    from sqlalchemy import insert as insert_into
    from sqlalchemy import select

    judgement, id_ = tables.judgement, said.stamp.id
    if connection.execute(select(judgement.c.id).where(judgement.c.id == id_)).first() is not None:
        return id_
    found = insert(connection, replace(said, record=_fitting(connection, said.record)))
    if found != id_ and _other_id(connection, id_) is None:
        row = {"key": ALIAS + id_, "body_hash": "", "result": found, "created_at": said.stamp.at}
        connection.execute(insert_into(tables.request).values(**row))
    return found


def _fitting(connection: Connection, record: Record) -> Record:
    """The record with a mask as it is kept, and with the id that is known here of what it takes back."""
    from sqlalchemy import select

    if isinstance(record, Region):
        image = tables.image
        size = select(image.c.width, image.c.height).where(image.c.id == record.image_id)
        if (found := connection.execute(size).first()) is None:
            raise NotFound(f"There is no picture {record.image_id!r} in the feedback database.")
        return replace(record, mask=judging.clean_mask(record, found.width, found.height))
    if isinstance(record, Undo):
        return replace(record, judgement_id=_other_id(connection, record.judgement_id) or record.judgement_id)
    return record


def _other_id(connection: Connection, id_: str) -> str | None:
    from sqlalchemy import select

    request = tables.request
    return connection.execute(select(request.c.result).where(request.c.key == ALIAS + id_)).scalar()
