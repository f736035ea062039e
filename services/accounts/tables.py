"""The account system's tables. Changes of them are steps in :mod:`services.accounts.migrations`.

Amounts are in 1/100 of a currency, times UTC in ms. What the rules promise the tables check once more: no part of an
account is negative, and an operation of an event posts once.
"""

from sqlalchemy import BigInteger, Boolean, CheckConstraint, Column, Index, MetaData, Table, Text

from services.local.schema import KEY_TEXT, NUMBER

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("id", KEY_TEXT, primary_key=True),
    Column("currency", Text, nullable=False),
    Column("available", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("is_frozen", Boolean, nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    CheckConstraint("available >= 0 AND held >= 0", name="accounts_not_negative"),
)

standings = Table(
    "account_standings",
    metadata,
    Column("event", KEY_TEXT, primary_key=True),
    Column("payer", Text, nullable=False),
    Column("payee", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("reserved_ms", BigInteger, nullable=False),
    Column("paid_ms", BigInteger, nullable=False),
    Column("released_ms", BigInteger, nullable=False),
    Column("reversed_ms", BigInteger, nullable=False),
    Column("is_tombstone", Boolean, nullable=False),
    CheckConstraint("paid_ms = 0 OR released_ms = 0", name="account_standings_paid_or_released"),
    CheckConstraint("reversed_ms = 0 OR paid_ms > 0", name="account_standings_paid_then_reversed"),
)

entries = Table(
    "account_entries",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=False),
    Column("event", KEY_TEXT, nullable=False),
    Column("operation", Text, nullable=False),
    Column("debit", Text, nullable=False),
    Column("credit", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    CheckConstraint("amount > 0", name="account_entries_positive"),
)
Index("account_entries_once", entries.c.event, entries.c.operation, unique=True)
Index("account_entries_by_time", entries.c.time_ms, entries.c.number)

issued = Table(
    "account_money",
    metadata,
    Column("currency", Text, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    CheckConstraint("amount >= 0", name="account_money_not_negative"),
)
"""Simulated money that came from outside, per currency."""
