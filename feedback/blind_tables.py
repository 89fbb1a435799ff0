"""Tables of blind trials. Which model made a picture stands here alone, and no route tells it."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, String, Table, Text

from .tables import UtcTime, metadata

trial = Table(
    "blind_trial",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("collection", Text, nullable=False, index=True),
    Column("created_at", UtcTime, nullable=False),
    Column("closed_at", UtcTime),  # from when on nobody is asked any more
    Column("revision", BigInteger, nullable=False),
)

pair = Table(
    "blind_pair",
    metadata,
    Column("trial_id", String(36), ForeignKey("blind_trial.id"), primary_key=True),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("a_id", String(36), ForeignKey("image.id"), nullable=False),
    Column("b_id", String(36), ForeignKey("image.id"), nullable=False),
    Index(None, "a_id"),
    Index(None, "b_id"),
)
