"""The second step: every thing that is there already is grey."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("things", sa.Column("colour", sa.Text, nullable=False, server_default="grey"))
    op.create_index("colours", "things", ["colour"])
