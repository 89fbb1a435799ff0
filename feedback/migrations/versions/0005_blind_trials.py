"""Blind trials: pairs of pictures of two models that people are asked about without being told which is which."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "blind_trial",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blind_trial")),
        sa.UniqueConstraint("name", name=op.f("uq_blind_trial_name")),
    )
    op.create_index(op.f("ix_blind_trial_collection"), "blind_trial", ["collection"])
    op.create_table(
        "blind_pair",
        *_of("trial_id", "blind_trial.id"),
        sa.Column("place", sa.Integer(), nullable=False, autoincrement=False),
        *_of("a_id", "image.id"),
        *_of("b_id", "image.id"),
        sa.PrimaryKeyConstraint("trial_id", "place", name=op.f("pk_blind_pair")),
    )
    for column in ("a_id", "b_id"):
        op.create_index(op.f(f"ix_blind_pair_{column}"), "blind_pair", [column])


def downgrade() -> None:
    for table in ("blind_pair", "blind_trial"):
        op.drop_table(table)


def _of(column: str, target: str) -> tuple[sa.schema.SchemaItem, ...]:
    return (
        sa.Column(column, sa.String(36), nullable=False),
        sa.ForeignKeyConstraint([column], [target], name=op.f(f"fk_blind_pair_{column}")),
    )
