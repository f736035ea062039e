"""Run by alembic: the steps that are due, on the connection and inside the transaction of who called."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table=context.config.attributes["version_table"]
)
context.run_migrations()
