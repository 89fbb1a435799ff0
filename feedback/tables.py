"""The tables of the feedback database. Types are those that SQLite and PostgreSQL share.

Judgements are append-only: `judgement` has a row for each rating, comparison, comment and undo; an undo supersedes the
row that it names. Every write has its own `revision`, so that a query at a revision always gives the same answer.
The schema is made by `migrations/`; a test holds the two together.
"""

from __future__ import annotations

from datetime import datetime, timezone

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

VERSION_TABLE = "feedback_loop_version"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite drops the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: object) -> datetime | None:
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


def _id() -> Column[str]:
    return Column("id", String(36), primary_key=True)


def _reference(name: str, target: str, nullable: bool = False) -> Column[str]:
    return Column(name, String(36), ForeignKey(target), nullable=nullable)


counter = Table(
    "counter",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

rater = Table(
    "rater",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
)

document = Table(  # workflows and API prompts, zlib-compressed JSON without secrets, each kept once
    "document",
    metadata,
    Column("hash", String(80), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

image = Table(
    "image",
    metadata,
    _id(),
    Column("collection", Text, nullable=False),
    Column("identity", String(80), nullable=False, unique=True),  # what a re-run from cache would give again
    Column("file_hash", String(80), nullable=False, index=True),
    Column("pixel_hash", String(80), nullable=False, index=True),
    Column("source_hash", String(80)),  # of the file that came in, where one did
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("mime", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revision", BigInteger, nullable=False, unique=True),
    Index(None, "collection", "revision"),
)

generation = Table(
    "generation",
    metadata,
    Column("image_id", String(36), ForeignKey("image.id"), primary_key=True),
    Column("batch_index", Integer, nullable=False),
    Column("prompt_id", Text),
    Column("node_id", Text),
    Column("prompt", Text),
    Column("negative", Text),
    Column("seed", String(32)),
    Column("steps", Integer),
    Column("cfg", Float),
    Column("sampler", Text),
    Column("scheduler", Text),
    Column("denoise", Float),
    Column("checkpoint", Text),
    Column("checkpoint_hash", Text),
    Column("loras", Text),  # JSON list, null where unknown
    Column("api_prompt_hash", String(80), ForeignKey("document.hash")),
    Column("workflow_hash", String(80), ForeignKey("document.hash")),
    Column("versions", Text, nullable=False),
)

judgement = Table(
    "judgement",
    metadata,
    _id(),
    Column("kind", String(16), nullable=False),
    _reference("rater_id", "rater.id"),
    Column("supersedes", String(36), ForeignKey("judgement.id"), unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("revision", BigInteger, nullable=False, index=True),
    CheckConstraint("kind IN ('rating', 'comparison', 'comment', 'undo')", name="kind"),
    CheckConstraint("(kind = 'undo') = (supersedes IS NOT NULL)", name="undo_supersedes"),
)

rating = Table(
    "rating",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("image_id", "image.id"),
    Column("axis", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("raw", Float, nullable=False),
    Column("scale_min", Float, nullable=False),
    Column("scale_max", Float, nullable=False),
    Column("lead_time", Float),
    CheckConstraint("value >= 0 AND value <= 1", name="value"),
    Index(None, "image_id", "axis"),
)

comparison = Table(
    "comparison",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("left_id", "image.id"),
    _reference("right_id", "image.id"),
    Column("axis", Text, nullable=False),
    Column("winner", String(16), nullable=False),
    Column("strength", Float),
    Column("policy", Text),
    Column("propensity", Float),
    Column("lead_time", Float),
    CheckConstraint("winner IN ('left', 'right', 'tie', 'both_bad', 'skip')", name="winner"),
    CheckConstraint("left_id <> right_id", name="two_pictures"),
    Index(None, "left_id"),
    Index(None, "right_id"),
)

comment = Table(
    "comment",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("image_id", "image.id"),
    Column("about", String(36), ForeignKey("judgement.id")),  # the rating that it was given with
    Column("text", Text, nullable=False),
    Index(None, "image_id"),
)

embedding = Table(
    "embedding",
    metadata,
    Column("image_id", String(36), ForeignKey("image.id"), primary_key=True),
    Column("encoder_id", String(200), primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian
    Column("created_at", UtcTime, nullable=False),
)

model_run = Table(
    "model_run",
    metadata,
    _id(),
    Column("kind", String(32), nullable=False),
    Column("name", Text, nullable=False),
    Column("data_revision", BigInteger, nullable=False),
    Column("data_hash", String(80), nullable=False),
    Column("settings", Text, nullable=False),  # JSON
    Column("metrics", Text, nullable=False),  # JSON
    Column("file_hash", String(80)),
    Column("created_at", UtcTime, nullable=False),
    Column("revision", BigInteger, nullable=False),
)

request = Table(  # writes that came with an Idempotency-Key
    "request",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(80), nullable=False),
    Column("result", String(36), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)
