"""The first step of a store for tests."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "things", sa.Column("name", sa.Text, primary_key=True), sa.Column("number", sa.BigInteger, nullable=False)
    )
