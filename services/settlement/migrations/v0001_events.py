"""Events, their history, the outbox, and how far the chain was read."""

import sqlalchemy as sa
from alembic import op

from services.local.schema import KEY_TEXT, NUMBER

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    _make_events()
    _index_events()
    _make_others()


def _make_events() -> None:
    op.create_table(
        "settlement_events",
        sa.Column("event", KEY_TEXT, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("original", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("seller", sa.LargeBinary, nullable=False),
        sa.Column("buyer", sa.LargeBinary, nullable=False),
        sa.Column("asset", sa.Text, nullable=False),
        sa.Column("units", sa.BigInteger, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("payer", sa.Text, nullable=False),
        sa.Column("payee", sa.Text, nullable=False),
        sa.Column("transaction_id", sa.LargeBinary, nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.Column("valid_until_ms", sa.BigInteger, nullable=False),
        sa.Column("is_released", sa.Boolean, nullable=False),
        sa.Column("wish", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("is_flagged", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=False),
        sa.Column("height", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("registered_ms", sa.BigInteger, nullable=False),
        sa.Column("changed_ms", sa.BigInteger, nullable=False),
        sa.Column("is_finished", sa.Boolean, nullable=False),
        sa.CheckConstraint("kind IN ('TRADE', 'REVERSAL')", name="settlement_events_kind"),
        sa.CheckConstraint(
            "state IN ('REGISTERED', 'ACCOUNT_PENDING', 'CANCELLED', 'COMPLETED')", name="settlement_events_state"
        ),
        sa.CheckConstraint("outcome IN ('', 'PAID', 'REVERSED')", name="settlement_events_outcome"),
        sa.CheckConstraint("wish IN ('', 'REVERSE')", name="settlement_events_wish"),
        sa.CheckConstraint("is_finished = (state IN ('CANCELLED', 'COMPLETED'))", name="settlement_events_finished"),
    )


def _index_events() -> None:
    op.create_index(
        "settlement_due",
        "settlement_events",
        ["due_ms", "event"],
        sqlite_where=sa.text("is_finished IS 0"),
        postgresql_where=sa.text("is_finished IS false"),
    )
    op.create_index(
        "settlement_flagged",
        "settlement_events",
        ["event"],
        sqlite_where=sa.text("is_flagged IS 1"),
        postgresql_where=sa.text("is_flagged IS true"),
    )
    op.create_index("settlement_states", "settlement_events", ["state", "event"])
    op.create_index("settlement_transactions", "settlement_events", ["transaction_id"])


def _make_others() -> None:
    op.create_table(
        "settlement_history",
        sa.Column("event", KEY_TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("state_before", sa.Text, nullable=False),
        sa.Column("state_after", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("topics", sa.Text, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "settlement_outbox",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint("topic IN ('pay', 'release', 'lift', 'reverse')", name="settlement_outbox_topic"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "settlement_cursor",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("height", sa.BigInteger, nullable=False),
        sa.Column("block_hash", sa.LargeBinary, nullable=False),
    )
