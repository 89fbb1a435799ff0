"""Rounds of refinement: the picture, the place, what was said, the candidates, and what somebody went on with."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "refinement",
        sa.Column("id", sa.String(36), nullable=False),
        *_of("refinement", "parent_id", "image.id"),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("mask", sa.LargeBinary()),
        sa.Column("settings", sa.Text(), nullable=False),
        *_stamped("refinement"),
    )
    op.create_table(
        "refinement_candidate",
        *_of("refinement_candidate", "refinement_id", "refinement.id"),
        sa.Column("place", sa.Integer(), nullable=False, autoincrement=False),
        *_of("refinement_candidate", "image_id", "image.id"),
        sa.Column("score", sa.Float()),
        sa.PrimaryKeyConstraint("refinement_id", "place", name=op.f("pk_refinement_candidate")),
    )
    op.create_table(
        "refinement_choice",
        sa.Column("id", sa.String(36), nullable=False),
        *_of("refinement_choice", "refinement_id", "refinement.id"),
        *_of("refinement_choice", "image_id", "image.id", nullable=True),
        *_of("refinement_choice", "rater_id", "rater.id"),
        sa.Column("how", sa.String(16), nullable=False),
        *_stamped("refinement_choice"),
    )
    for table, column in (
        ("refinement", "parent_id"),
        ("refinement_candidate", "image_id"),
        ("refinement_choice", "refinement_id"),
        ("refinement_choice", "image_id"),
    ):
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column])


def downgrade() -> None:
    for table in ("refinement_choice", "refinement_candidate", "refinement"):
        op.drop_table(table)


def _of(table: str, column: str, target: str, nullable: bool = False) -> tuple[sa.schema.SchemaItem, ...]:
    return (
        sa.Column(column, sa.String(36), nullable=nullable),
        sa.ForeignKeyConstraint([column], [target], name=op.f(f"fk_{table}_{column}")),
    )


def _stamped(table: str) -> tuple[sa.schema.SchemaItem, ...]:
    return (
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint("revision", name=op.f(f"uq_{table}_revision")),
    )
