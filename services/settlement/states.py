"""What an event is: exactly four states, and beside them what was asked for and what is known. Pure.

    REGISTERED ──chain: final, took effect──▶ ACCOUNT_PENDING ──paid, or reversed──▶ COMPLETED
        └──chain: final, failed; absence proven; or given up before it was released──▶ CANCELLED

Every change is a :class:`Change` from one version of an event to the next. A store takes it if the event still has
the version that it was made from, together with the history's row and the outbox rows, in one transaction.
"""

from enum import StrEnum

import msgspec

from services.accounts.port import AccountId, AmountCents, Currency, EventId


class State(StrEnum):
    """The four states of an event."""

    REGISTERED = "REGISTERED"
    """登记: signed and kept; the chain has not decided, as far as is known here."""
    ACCOUNT_PENDING = "ACCOUNT_PENDING"
    """待账户系统处理: took effect on the chain; the account system has not finished."""
    CANCELLED = "CANCELLED"
    """取消: neither asset nor money has moved, and neither will."""
    COMPLETED = "COMPLETED"
    """完成: paid, or reversed on the chain with nothing paid."""


FINISHED = frozenset({State.CANCELLED, State.COMPLETED})


class Kind(StrEnum):
    """What an event's transaction does."""

    TRADE = "TRADE"
    """Units go from seller to buyer under a lien; then the buyer pays."""
    REVERSAL = "REVERSAL"
    """The units of a trade that cannot be paid go back, by its lien; nobody pays."""


class Outcome(StrEnum):
    """How a COMPLETED trade ended."""

    NONE = ""
    PAID = "PAID"
    REVERSED = "REVERSED"


class Wish(StrEnum):
    """What an operator has asked for an ACCOUNT_PENDING trade."""

    NONE = ""
    REVERSE = "REVERSE"
    """Close the event in the account system, then give the units back."""


class Topic(StrEnum):
    """What an outbox row asks for. The first two go through the message system, the others to the chain."""

    PAY = "pay"
    RELEASE = "release"
    LIFT = "lift"
    """Free the buyer's units of their lien: the trade is paid."""
    REVERSE = "reverse"
    """Register and send the trade's reversal."""


MESSAGES = (Topic.PAY, Topic.RELEASE)
CHAIN = (Topic.LIFT, Topic.REVERSE)


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is traded. ``units`` in smallest units of ``asset``, ``price`` for all of them in 1/100 of the currency.

    ``seller`` and ``buyer`` are addresses on the chain (20 bytes), ``payer`` and ``payee`` their accounts in the
    account system.
    """

    seller: bytes
    buyer: bytes
    asset: str
    units: int
    price: AmountCents
    currency: Currency
    payer: AccountId
    payee: AccountId


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event at one version.

    Args:
        event: its id; also the key of the one-shot lane, of the lien, and of every operation of the account system.
        kind: what its transaction does; ``original`` is the trade of a REVERSAL, "" for a trade.
        state: one of four; ``outcome`` of a COMPLETED one.
        terms: what is traded.
        transaction_id: of the signed transaction, 32 bytes; ``raw`` its bytes, sent again as they are.
        valid_until_ms: block time after which no block can hold it.
        is_released: the transaction may be sent: the buyer's money is held. CANCELLED sets it too, so that nobody
            releases afterwards.
        wish: what an operator asked for.
        code: why it is CANCELLED, or what last stood in the way of an unfinished one; a code of ``docs/errors.md``.
        is_flagged: waits for an operator.
        attempts: how often the scan has looked at it or notified; the next time is ``due_ms`` (UTC).
        height: of the block that holds the transaction, 0 while none is known.
        version: counts changes from 1.
        registered_ms, changed_ms: UTC, of this machine's clock.
    """

    event: EventId
    kind: Kind
    original: str
    state: State
    outcome: Outcome
    terms: Terms
    transaction_id: bytes
    raw: bytes
    valid_until_ms: int
    is_released: bool
    wish: Wish
    code: str
    is_flagged: bool
    attempts: int
    due_ms: int
    height: int
    version: int
    registered_ms: int
    changed_ms: int

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will change but a repaired flag."""
        return self.state in FINISHED


class Notice(msgspec.Struct, frozen=True):
    """An outbox row: what is to be done for an event. ``number`` rises; ``version`` is of the change it came with."""

    number: int
    event: str
    topic: Topic
    version: int
    created_ms: int


class HistoryRow(msgspec.Struct, frozen=True):
    """One change of an event, kept for ever: from which state to which, when, why, and what was sent for it."""

    event: str
    version: int
    state_before: str
    state_after: str
    outcome: str
    code: str
    why: str
    topics: list[str]
    time_ms: int


class Change(msgspec.Struct, frozen=True):
    """An event's step from one version to the next, with what has to go out for it."""

    before: Event
    after: Event
    why: str
    topics: tuple[Topic, ...] = ()


def changed(event: Event, why: str, *topics: Topic, now_ms: int, **fields: object) -> Change:
    """Return the change of an event's fields; version and time follow by themselves."""
    after = msgspec.structs.replace(event, **fields, version=event.version + 1, changed_ms=now_ms)
    return Change(event, after, why, topics)
