"""The first schema: pictures, how they were made, what was said of them, embeddings and model runs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "counter",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counter")),
    )
    op.create_table(
        "document",
        sa.Column("hash", sa.String(length=80), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_document")),
    )
    op.create_table(
        "image",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("collection", sa.Text(), nullable=False),
        sa.Column("identity", sa.String(length=80), nullable=False),
        sa.Column("file_hash", sa.String(length=80), nullable=False),
        sa.Column("pixel_hash", sa.String(length=80), nullable=False),
        sa.Column("source_hash", sa.String(length=80), nullable=True),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("mime", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("identity", name=op.f("uq_image_identity")),
        sa.UniqueConstraint("revision", name=op.f("uq_image_revision")),
    )
    op.create_index(op.f("ix_image_collection_revision"), "image", ["collection", "revision"], unique=False)
    op.create_index(op.f("ix_image_file_hash"), "image", ["file_hash"], unique=False)
    op.create_index(op.f("ix_image_pixel_hash"), "image", ["pixel_hash"], unique=False)
    op.create_table(
        "model_run",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("data_revision", sa.BigInteger(), nullable=False),
        sa.Column("data_hash", sa.String(length=80), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("file_hash", sa.String(length=80), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_run")),
    )
    op.create_table(
        "rater",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rater")),
        sa.UniqueConstraint("name", name=op.f("uq_rater_name")),
    )
    op.create_table(
        "request",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("body_hash", sa.String(length=80), nullable=False),
        sa.Column("result", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_request")),
    )
    op.create_table(
        "embedding",
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("encoder_id", sa.String(length=200), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_embedding_image_id")),
        sa.PrimaryKeyConstraint("image_id", "encoder_id", name=op.f("pk_embedding")),
    )
    op.create_table(
        "generation",
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("batch_index", sa.Integer(), nullable=False),
        sa.Column("prompt_id", sa.Text(), nullable=True),
        sa.Column("node_id", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("negative", sa.Text(), nullable=True),
        sa.Column("seed", sa.String(length=32), nullable=True),
        sa.Column("steps", sa.Integer(), nullable=True),
        sa.Column("cfg", sa.Float(), nullable=True),
        sa.Column("sampler", sa.Text(), nullable=True),
        sa.Column("scheduler", sa.Text(), nullable=True),
        sa.Column("denoise", sa.Float(), nullable=True),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("checkpoint_hash", sa.Text(), nullable=True),
        sa.Column("loras", sa.Text(), nullable=True),
        sa.Column("api_prompt_hash", sa.String(length=80), nullable=True),
        sa.Column("workflow_hash", sa.String(length=80), nullable=True),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["api_prompt_hash"], ["document.hash"], name=op.f("fk_generation_api_prompt_hash")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_generation_image_id")),
        sa.ForeignKeyConstraint(["workflow_hash"], ["document.hash"], name=op.f("fk_generation_workflow_hash")),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_generation")),
    )
    op.create_table(
        "judgement",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("rater_id", sa.String(length=36), nullable=False),
        sa.Column("supersedes", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(kind = 'undo') = (supersedes IS NOT NULL)", name=op.f("ck_judgement_undo_supersedes")),
        sa.CheckConstraint("kind IN ('rating', 'comparison', 'comment', 'undo')", name=op.f("ck_judgement_kind")),
        sa.ForeignKeyConstraint(["rater_id"], ["rater.id"], name=op.f("fk_judgement_rater_id")),
        sa.ForeignKeyConstraint(["supersedes"], ["judgement.id"], name=op.f("fk_judgement_supersedes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgement")),
        sa.UniqueConstraint("supersedes", name=op.f("uq_judgement_supersedes")),
    )
    op.create_index(op.f("ix_judgement_revision"), "judgement", ["revision"], unique=False)
    op.create_table(
        "comment",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("about", sa.String(length=36), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["about"], ["judgement.id"], name=op.f("fk_comment_about")),
        sa.ForeignKeyConstraint(["id"], ["judgement.id"], name=op.f("fk_comment_id")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_comment_image_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comment")),
    )
    op.create_index(op.f("ix_comment_image_id"), "comment", ["image_id"], unique=False)
    op.create_table(
        "comparison",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("left_id", sa.String(length=36), nullable=False),
        sa.Column("right_id", sa.String(length=36), nullable=False),
        sa.Column("axis", sa.Text(), nullable=False),
        sa.Column("winner", sa.String(length=16), nullable=False),
        sa.Column("strength", sa.Float(), nullable=True),
        sa.Column("policy", sa.Text(), nullable=True),
        sa.Column("propensity", sa.Float(), nullable=True),
        sa.Column("lead_time", sa.Float(), nullable=True),
        sa.CheckConstraint("winner IN ('left', 'right', 'tie', 'both_bad', 'skip')", name=op.f("ck_comparison_winner")),
        sa.CheckConstraint("left_id <> right_id", name=op.f("ck_comparison_two_pictures")),
        sa.ForeignKeyConstraint(["id"], ["judgement.id"], name=op.f("fk_comparison_id")),
        sa.ForeignKeyConstraint(["left_id"], ["image.id"], name=op.f("fk_comparison_left_id")),
        sa.ForeignKeyConstraint(["right_id"], ["image.id"], name=op.f("fk_comparison_right_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
    )
    op.create_index(op.f("ix_comparison_left_id"), "comparison", ["left_id"], unique=False)
    op.create_index(op.f("ix_comparison_right_id"), "comparison", ["right_id"], unique=False)
    op.create_table(
        "rating",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("image_id", sa.String(length=36), nullable=False),
        sa.Column("axis", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("raw", sa.Float(), nullable=False),
        sa.Column("scale_min", sa.Float(), nullable=False),
        sa.Column("scale_max", sa.Float(), nullable=False),
        sa.Column("lead_time", sa.Float(), nullable=True),
        sa.CheckConstraint("value >= 0 AND value <= 1", name=op.f("ck_rating_value")),
        sa.ForeignKeyConstraint(["id"], ["judgement.id"], name=op.f("fk_rating_id")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_rating_image_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rating")),
    )
    op.create_index(op.f("ix_rating_image_id_axis"), "rating", ["image_id", "axis"], unique=False)
    op.execute("INSERT INTO counter (name, value) VALUES ('revision', 0)")


def downgrade() -> None:
    op.drop_table("rating")
    op.drop_table("comparison")
    op.drop_table("comment")
    op.drop_table("judgement")
    op.drop_table("generation")
    op.drop_table("embedding")
    op.drop_table("request")
    op.drop_table("rater")
    op.drop_table("model_run")
    op.drop_table("image")
    op.drop_table("document")
    op.drop_table("counter")
