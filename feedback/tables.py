"""The tables of the feedback database. Types are those that SQLite and PostgreSQL share.

Judgements are append-only: `judgement` has a row for each thing that was said and each undo; an undo supersedes the
row that it names. Every write has its own `revision`, so that a query at a revision always gives the same answer.
The schema is made by `migrations/`; a test holds the two together. What can be counted from these tables and is kept
only to be quick lies in `derived_tables`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
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

from .times import UtcTime

VERSION_TABLE = "feedback_loop_version"

KINDS = ("rating", "comparison", "ranking", "region", "word_mark", "tag", "comment", "interaction", "undo")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


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
    Column("prompt_key", String(32)),  # hash of the prompt's words, the same for a whole prompt group; null without
    Column("rated", Integer, nullable=False, server_default="0"),  # 1 if a rating on the axis "overall" counts
    Index(None, "collection", "revision"),
    Index(None, "collection", "rated", "revision"),
    Index(None, "rated", "revision"),
    Index(None, "prompt_key", "revision"),
    Index(None, "created_at"),
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
    Column("api_prompt_hash", String(80), ForeignKey("document.hash"), index=True),
    Column("workflow_hash", String(80), ForeignKey("document.hash"), index=True),
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
    Column("revision", BigInteger, nullable=False),
    CheckConstraint(f"kind IN {KINDS}", name="kind"),
    CheckConstraint("(kind = 'undo') = (supersedes IS NOT NULL)", name="undo_supersedes"),
    Index(None, "rater_id", "kind", "revision"),
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

ranking = Table(
    "ranking",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    Column("axis", Text, nullable=False),
    Column("lead_time", Float),
)

ranking_entry = Table(
    "ranking_entry",
    metadata,
    Column("ranking_id", String(36), ForeignKey("ranking.id"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),  # 0 is the best
    _reference("image_id", "image.id"),
    Index(None, "image_id"),
)

region = Table(
    "region",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("image_id", "image.id"),
    Column("shape", String(16), nullable=False),
    Column("geometry", Text, nullable=False),  # JSON list of [x, y] in fractions
    Column("label", Text, nullable=False),
    Column("severity", Float),
    Column("comment", Text),
    Column("mask", LargeBinary),  # 8-bit grey PNG of the picture's size
    CheckConstraint("shape IN ('point', 'rect', 'polygon', 'mask')", name="shape"),
    CheckConstraint("(shape = 'mask') = (mask IS NOT NULL)", name="mask"),
    Index(None, "image_id"),
)

word_mark = Table(
    "word_mark",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("image_id", "image.id"),
    Column("word_index", Integer, nullable=False),
    Column("word", Text, nullable=False),
    Column("label", String(16), nullable=False),
    CheckConstraint("label IN ('misaligned', 'missing', 'good')", name="label"),
    Index(None, "image_id"),
)

tag = Table(
    "tag",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("image_id", "image.id"),
    Column("tag", Text, nullable=False),
    Index(None, "image_id"),
    Index(None, "tag"),
)

interaction = Table(
    "interaction",
    metadata,
    Column("id", String(36), ForeignKey("judgement.id"), primary_key=True),
    _reference("image_id", "image.id"),
    _reference("result_id", "image.id", nullable=True),
    Column("kind", String(16), nullable=False),
    CheckConstraint(
        "kind IN ('saved', 'deleted', 'regenerated', 'inpainted', 'upscaled', 'picked')",
        name="kind",
    ),
    Index(None, "image_id"),
    Index(None, "result_id"),
)

api_token = Table(  # of people in team mode; the token itself is nowhere
    "api_token",
    metadata,
    _id(),
    _reference("rater_id", "rater.id"),
    Column("token_hash", String(80), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Index(None, "rater_id"),
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
