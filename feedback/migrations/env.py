"""Run by alembic inside the transaction of `feedback.database`, which hands its connection over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
)
context.run_migrations()
