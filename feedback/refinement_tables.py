"""Tables of rounds of refinement: which picture, what was said, what came out, and what somebody went on with."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from .tables import UtcTime, metadata

refinement = Table(  # one round: a picture, a place in it, what was said of it
    "refinement",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("parent_id", String(36), ForeignKey("image.id"), nullable=False),
    Column("comment", Text, nullable=False),
    Column("labels", Text, nullable=False),  # JSON list of the labels of the marks
    Column("mask", LargeBinary),  # 8-bit grey PNG of the parent's size, null where all of the picture was free
    Column("settings", Text, nullable=False),  # JSON
    Column("created_at", UtcTime, nullable=False),
    Column("revision", BigInteger, nullable=False, unique=True),
    Index(None, "parent_id"),
)

candidate = Table(  # what came out, the best first
    "refinement_candidate",
    metadata,
    Column("refinement_id", String(36), ForeignKey("refinement.id"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("image_id", String(36), ForeignKey("image.id"), nullable=False),
    Column("score", Float),
    Index(None, "image_id"),
)

choice = Table(  # what somebody went on with; the latest counts
    "refinement_choice",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("refinement_id", String(36), ForeignKey("refinement.id"), nullable=False),
    Column("image_id", String(36), ForeignKey("image.id")),  # null: none of them was good
    Column("rater_id", String(36), ForeignKey("rater.id"), nullable=False),
    Column("how", String(16), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revision", BigInteger, nullable=False, unique=True),
    Index(None, "refinement_id"),
    Index(None, "image_id"),
)
