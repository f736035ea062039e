"""Accounts, records of events, postings, and the money that came in."""

import sqlalchemy as sa
from alembic import op

from services.local.schema import KEY_TEXT, NUMBER

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "accounts",
        sa.Column("id", KEY_TEXT, primary_key=True),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("available", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("is_frozen", sa.Boolean, nullable=False),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint("available >= 0 AND held >= 0", name="accounts_not_negative"),
    )
    op.create_table(
        "account_standings",
        sa.Column("event", KEY_TEXT, primary_key=True),
        sa.Column("payer", sa.Text, nullable=False),
        sa.Column("payee", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("reserved_ms", sa.BigInteger, nullable=False),
        sa.Column("paid_ms", sa.BigInteger, nullable=False),
        sa.Column("released_ms", sa.BigInteger, nullable=False),
        sa.Column("reversed_ms", sa.BigInteger, nullable=False),
        sa.Column("is_tombstone", sa.Boolean, nullable=False),
        sa.CheckConstraint("paid_ms = 0 OR released_ms = 0", name="account_standings_paid_or_released"),
        sa.CheckConstraint("reversed_ms = 0 OR paid_ms > 0", name="account_standings_paid_then_reversed"),
    )
    op.create_table(
        "account_entries",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=False),
        sa.Column("event", KEY_TEXT, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("debit", sa.Text, nullable=False),
        sa.Column("credit", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount > 0", name="account_entries_positive"),
    )
    op.create_index("account_entries_once", "account_entries", ["event", "operation"], unique=True)
    op.create_index("account_entries_by_time", "account_entries", ["time_ms", "number"])
    op.create_table(
        "account_money",
        sa.Column("currency", sa.Text, primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount >= 0", name="account_money_not_negative"),
    )
