"""The event store's tables, as the newest step of :mod:`services.settlement.migrations` leaves them."""

from collections.abc import Iterable
from enum import StrEnum

import sqlalchemy as sa

from services.local.schema import KEY_TEXT, NUMBER
from services.settlement.states import FINISHED, Kind, Outcome, State, Topic, Wish

METADATA = sa.MetaData()


def _one_of(column: str, table: str, values: Iterable[StrEnum]) -> sa.CheckConstraint:
    return sa.CheckConstraint(_among(column, values), name=f"{table}_{column}")


def _among(column: str, values: Iterable[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(one.value) for one in values)})"


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _bytes(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False)


EVENTS = sa.Table(
    "settlement_events",
    METADATA,
    sa.Column("event", KEY_TEXT, primary_key=True),
    *(_text("kind"), _text("original"), _text("state"), _text("outcome")),
    # Terms.
    *(_bytes("seller"), _bytes("buyer"), _text("asset"), _number("units")),
    *(_number("price"), _text("currency"), _text("payer"), _text("payee")),
    *(_bytes("transaction_id"), _bytes("raw"), _number("valid_until_ms"), _flag("is_released")),
    *(_text("wish"), _text("code"), _flag("is_flagged"), _number("attempts"), _number("due_ms")),
    *(_number("height"), _number("version"), _number("registered_ms"), _number("changed_ms")),
    # Says again what the state says: the condition of the index, which a query must repeat word for word.
    _flag("is_finished"),
    _one_of("kind", "settlement_events", Kind),
    _one_of("state", "settlement_events", State),
    _one_of("outcome", "settlement_events", Outcome),
    _one_of("wish", "settlement_events", Wish),
    sa.CheckConstraint(
        f"is_finished = ({_among('state', [state for state in State if state in FINISHED])})",
        name="settlement_events_finished",
    ),
)
UNFINISHED = EVENTS.c.is_finished.is_(sa.false())
FLAGGED = EVENTS.c.is_flagged.is_(sa.true())
# The scan's selection: holds unfinished events alone, so that its cost does not grow with the finished ones.
sa.Index("settlement_due", EVENTS.c.due_ms, EVENTS.c.event, sqlite_where=UNFINISHED, postgresql_where=UNFINISHED)
# The operator's list.
sa.Index("settlement_flagged", EVENTS.c.event, sqlite_where=FLAGGED, postgresql_where=FLAGGED)
sa.Index("settlement_states", EVENTS.c.state, EVENTS.c.event)
sa.Index("settlement_transactions", EVENTS.c.transaction_id)

HISTORY = sa.Table(
    "settlement_history",
    METADATA,
    sa.Column("event", KEY_TEXT, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    *(_text("state_before"), _text("state_after"), _text("outcome"), _text("code"), _text("why"), _text("topics")),
    _number("time_ms"),
    sqlite_with_rowid=False,
)

OUTBOX = sa.Table(
    "settlement_outbox",
    METADATA,
    sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
    *(_text("event"), _text("topic"), _number("version"), _number("created_ms")),
    _one_of("topic", "settlement_outbox", Topic),
    # A number is never given twice, also after the highest was dropped.
    sqlite_autoincrement=True,
)

CURSOR = sa.Table(
    "settlement_cursor",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    _number("height"),
    _bytes("block_hash"),
)
