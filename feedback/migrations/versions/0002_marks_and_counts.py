"""Marks, rankings, tags, interactions and tokens; and tables from which lists and counts are quick.

The tables of counts are filled by the store when it opens the database next, see `feedback.derived`. There is no way
down: the first schema has no place for the new kinds, so the backup that is made before a migration is the way back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

OLD_KINDS = "kind IN ('rating', 'comparison', 'comment', 'undo')"
NEW_KINDS = (
    "kind IN ('rating', 'comparison', 'ranking', 'region', 'word_mark', 'tag', 'comment', 'interaction', 'undo')"
)


def upgrade() -> None:
    _judgement(OLD_KINDS, NEW_KINDS)
    op.create_index(op.f("ix_judgement_rater_id_kind_revision"), "judgement", ["rater_id", "kind", "revision"])
    op.add_column("image", sa.Column("prompt_key", sa.String(32)))
    op.add_column("image", sa.Column("rated", sa.Integer(), server_default="0", nullable=False))
    for columns in (
        ["collection", "rated", "revision"],
        ["rated", "revision"],
        ["prompt_key", "revision"],
        ["created_at"],
    ):
        op.create_index(op.f(f"ix_image_{'_'.join(columns)}"), "image", columns)
    for column in ("api_prompt_hash", "workflow_hash"):
        op.create_index(op.f(f"ix_generation_{column}"), "generation", [column])
    _create_kinds()
    _create_counts()
    _create_prompt_text()


def _judgement(before: str, after: str) -> None:
    """SQLite can't change a constraint, so the table is made anew there; foreign keys must be off meanwhile."""
    table = sa.Table(
        "judgement",
        sa.MetaData(),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("rater_id", sa.String(36), nullable=False),
        sa.Column("supersedes", sa.String(36), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(kind = 'undo') = (supersedes IS NOT NULL)", name="ck_judgement_undo_supersedes"),
        sa.CheckConstraint(before, name="ck_judgement_kind"),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name="fk_judgement_rater_id"),
        sa.ForeignKeyConstraint(["supersedes"], ["judgement.id"], name="fk_judgement_supersedes"),
        sa.PrimaryKeyConstraint("id", name="pk_judgement"),
        sa.UniqueConstraint("supersedes", name="uq_judgement_supersedes"),
        sa.Index("ix_judgement_revision", "revision"),
    )
    with op.batch_alter_table("judgement", copy_from=table) as batch:
        batch.drop_constraint(op.f("ck_judgement_kind"), type_="check")
        batch.create_check_constraint(op.f("ck_judgement_kind"), after)


def _said(name: str, *columns: sa.schema.SchemaItem) -> None:
    """A table of one kind of judgement: its id is that of a row in `judgement`."""
    op.create_table(
        name,
        sa.Column("id", sa.String(36), nullable=False),
        *columns,
        sa.ForeignKeyConstraint(["id"], ["judgement.id"], name=op.f(f"fk_{name}_id")),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
    )


def _of_image(table: str, column: str = "image_id", nullable: bool = False) -> tuple[sa.schema.SchemaItem, ...]:
    return (
        sa.Column(column, sa.String(36), nullable=nullable),
        sa.ForeignKeyConstraint([column], ["image.id"], name=op.f(f"fk_{table}_{column}")),
    )


def _create_kinds() -> None:
    _said("ranking", sa.Column("axis", sa.Text(), nullable=False), sa.Column("lead_time", sa.Float()))
    op.create_table(
        "ranking_entry",
        sa.Column("ranking_id", sa.String(36), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False, autoincrement=False),
        *_of_image("ranking_entry"),
        sa.ForeignKeyConstraint(["ranking_id"], ["ranking.id"], name=op.f("fk_ranking_entry_ranking_id")),
        sa.PrimaryKeyConstraint("ranking_id", "place", name=op.f("pk_ranking_entry")),
    )
    _said(
        "region",
        *_of_image("region"),
        sa.Column("shape", sa.String(16), nullable=False),
        sa.Column("geometry", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("severity", sa.Float()),
        sa.Column("comment", sa.Text()),
        sa.Column("mask", sa.LargeBinary()),
        sa.CheckConstraint("shape IN ('point', 'rect', 'polygon', 'mask')", name=op.f("ck_region_shape")),
        sa.CheckConstraint("(shape = 'mask') = (mask IS NOT NULL)", name=op.f("ck_region_mask")),
    )
    _said(
        "word_mark",
        *_of_image("word_mark"),
        sa.Column("word_index", sa.Integer(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("label", sa.String(16), nullable=False),
        sa.CheckConstraint("label IN ('misaligned', 'missing', 'good')", name=op.f("ck_word_mark_label")),
    )
    _said("tag", *_of_image("tag"), sa.Column("tag", sa.Text(), nullable=False))
    _said(
        "interaction",
        *_of_image("interaction"),
        *_of_image("interaction", "result_id", nullable=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.CheckConstraint(
            "kind IN ('saved', 'deleted', 'regenerated', 'inpainted', 'upscaled', 'picked')",
            name=op.f("ck_interaction_kind"),
        ),
    )
    for table in ("ranking_entry", "region", "word_mark", "tag", "interaction"):
        op.create_index(op.f(f"ix_{table}_image_id"), table, ["image_id"])
    op.create_index(op.f("ix_tag_tag"), "tag", ["tag"])
    op.create_index(op.f("ix_interaction_result_id"), "interaction", ["result_id"])
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("rater_id", sa.String(36), nullable=False),
        sa.Column("token_hash", sa.String(80), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_api_token_rater_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_token_token_hash")),
    )
    op.create_index(op.f("ix_api_token_rater_id"), "api_token", ["rater_id"])


def _create_counts() -> None:
    op.create_table(
        "current_rating",
        *_of_image("current_rating"),
        sa.Column("axis", sa.Text(), nullable=False),
        sa.Column("rater_id", sa.String(36), nullable=False),
        sa.Column("rating_id", sa.String(36), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("image_revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_current_rating_rater_id")),
        sa.ForeignKeyConstraint(["rating_id"], ["rating.id"], name=op.f("fk_current_rating_rating_id")),
        sa.PrimaryKeyConstraint("image_id", "axis", "rater_id", name=op.f("pk_current_rating")),
        sa.UniqueConstraint("rating_id", name=op.f("uq_current_rating_rating_id")),
    )
    op.create_table(
        "score",
        *_of_image("score"),
        sa.Column("axis", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("ratings", sa.Integer(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("image_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", "axis", name=op.f("pk_score")),
    )
    op.create_table(
        "watermark_score",
        *_of_image("watermark_score"),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("image_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_watermark_score")),
    )
    op.create_table(
        "tally",
        sa.Column("what", sa.String(16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("what", "name", name=op.f("pk_tally")),
    )
    op.create_table(
        "rater_tally",
        sa.Column("rater_id", sa.String(36), nullable=False),
        *[sa.Column(n, sa.BigInteger(), nullable=False) for n in ("judgements", "lefts", "rights", "repeats", "same")],
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_rater_tally_rater_id")),
        sa.PrimaryKeyConstraint("rater_id", name=op.f("pk_rater_tally")),
    )
    for table, first in (("current_rating", "rater_id axis"), ("score", "axis"), ("score", "collection axis")):
        for last in ("image_revision value", "value image_revision"):
            columns = f"{first} {last}".split()
            op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)
    for columns in (["value", "image_revision"], ["collection", "value", "image_revision"]):
        op.create_index(op.f(f"ix_watermark_score_{'_'.join(columns)}"), "watermark_score", columns)


def _create_prompt_text() -> None:
    """The words of prompts by the revision of their picture, in each database's own index of texts."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            "CREATE VIRTUAL TABLE prompt_text USING fts5(words, detail=none, tokenize='unicode61 remove_diacritics 0')"
        )
    else:
        op.execute("CREATE TABLE prompt_text (rowid BIGINT PRIMARY KEY, words TSVECTOR NOT NULL)")
        op.execute("CREATE INDEX ix_prompt_text_words ON prompt_text USING GIN (words)")
