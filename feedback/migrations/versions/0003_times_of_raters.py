"""The latest times that raters took, where they are counted; and an index less that every judgement had to be put into.

That one was by revision alone, which nothing needs: PostgreSQL walked along it to the latest judgement of one rater and
met everybody else's on the way. The times are filled by the store when it opens the database next.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("rater_tally", sa.Column("times", sa.Text(), server_default="", nullable=False))
    op.drop_index(op.f("ix_judgement_revision"), "judgement")


def downgrade() -> None:
    op.create_index(op.f("ix_judgement_revision"), "judgement", ["revision"])
    op.drop_column("rater_tally", "times")
