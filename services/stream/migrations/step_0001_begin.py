"""Streams, and the offers that may become some."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "streams",
        sa.Column("stream", sa.LargeBinary, primary_key=True),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "stream_offers",
        sa.Column("hash", sa.LargeBinary, primary_key=True),
        sa.Column("stream", sa.LargeBinary, nullable=False),
        sa.Column("terms", sa.LargeBinary, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("stream_offers_by_stream", "stream_offers", ["stream"])
