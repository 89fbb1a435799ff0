"""Tables that could be counted anew from the others at any time, kept so that lists and counts stay quick.

`derived.rebuild` makes them from nothing, but for the watermark scores, which take a detector and a long time. Beside
them stands `prompt_text`, the words of every prompt, which each database indexes in its own way: see `prompt_words`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table, Text

from .tables import metadata

current_rating = Table(  # the rating that counts of each rater on each axis of a picture
    "current_rating",
    metadata,
    Column("image_id", String(36), ForeignKey("image.id"), primary_key=True),
    Column("axis", Text, primary_key=True),
    Column("rater_id", String(36), ForeignKey("rater.id"), primary_key=True),
    Column("rating_id", String(36), ForeignKey("rating.id"), nullable=False, unique=True),
    Column("value", Float, nullable=False),
    Column("image_revision", BigInteger, nullable=False),
    Index(None, "rater_id", "axis", "image_revision", "value"),
    Index(None, "rater_id", "axis", "value", "image_revision"),
)

score = Table(  # the mean of those over raters
    "score",
    metadata,
    Column("image_id", String(36), ForeignKey("image.id"), primary_key=True),
    Column("axis", Text, primary_key=True),
    Column("value", Float, nullable=False),
    Column("ratings", Integer, nullable=False),
    Column("collection", Text, nullable=False),
    Column("image_revision", BigInteger, nullable=False),
    Index(None, "axis", "image_revision", "value"),
    Index(None, "axis", "value", "image_revision"),
    Index(None, "collection", "axis", "image_revision", "value"),
    Index(None, "collection", "axis", "value", "image_revision"),
)

watermark_score = Table(  # what a detector says, not people
    "watermark_score",
    metadata,
    Column("image_id", String(36), ForeignKey("image.id"), primary_key=True),
    Column("value", Float, nullable=False),
    Column("collection", Text, nullable=False),
    Column("image_revision", BigInteger, nullable=False),
    Index(None, "value", "image_revision"),
    Index(None, "collection", "value", "image_revision"),
)

tally = Table(  # how many there are: of what, under which name
    "tally",
    metadata,
    Column("what", String(16), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

rater_tally = Table(  # counts of the judgements that count, of each rater
    "rater_tally",
    metadata,
    Column("rater_id", String(36), ForeignKey("rater.id"), primary_key=True),
    Column("judgements", BigInteger, nullable=False),
    Column("lefts", BigInteger, nullable=False),
    Column("rights", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),
    Column("same", BigInteger, nullable=False),
    Column("times", Text, nullable=False, server_default=""),  # seconds that the latest took, see `derived.seconds_in`
)
