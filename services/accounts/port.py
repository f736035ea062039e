"""What an account system does for settlement: four operations, each keyed by (event, operation). A bank fills the port.

An operation that was done is done for ever: the same again gives the first answer and moves nothing. One that was
refused left no trace and may be tried again. RELEASE leaves a tombstone where nothing was reserved yet, so that a
reserve or a payment that comes late finds its event closed. A hold has no time of its own: it ends with PAY or RELEASE.

| before | RESERVE | PAY | RELEASE | REVERSE |
| --- | --- | --- | --- | --- |
| nothing | done: held | done: paid out of what is available | done: tombstone | ``not_paid`` |
| reserved | the same answer | done: paid out of what is held | done: available again | ``not_paid`` |
| paid | ``already_paid``, or the first answer | the same answer | ``already_paid`` | done: back to the payer |
| released | ``released``, or the first answer | ``released`` | the same answer | ``not_paid`` |
| reversed | as paid | the same answer | ``already_paid`` | the same answer |
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Protocol

import msgspec

ORDERS_MAX = 1_000
"""How many orders one call brings."""
ENTRIES_MAX = 1_000
"""How many postings one page holds."""
AMOUNT_MAX = 10**15
"""Largest amount of one order, in 1/100 of the currency; sums of 9,000 of them stay below 2^63."""

EventId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
AccountId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z")]
Currency = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")]
"""ISO 4217, by letters."""
AmountCents = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]


class Operation(StrEnum):
    """What is asked for an event."""

    RESERVE = "reserve"
    """Hold the amount in the payer's account."""
    PAY = "pay"
    """Move it to the payee: what is held, else what is available."""
    RELEASE = "release"
    """Give up the hold for ever; nothing is paid for this event any more."""
    REVERSE = "reverse"
    """Move what was paid back from the payee to the payer."""


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation of one event; amount in 1/100 of the currency. All operations of an event have the same terms."""

    event: EventId
    operation: Operation
    payer: AccountId
    payee: AccountId
    amount: AmountCents
    currency: Currency


class Answer(msgspec.Struct, frozen=True, rename="camel"):
    """What came of an order; ``code`` is "" when it is done, and the message says more where it is not.

    Codes: ``unknown_account``, ``account_frozen``, ``insufficient_funds``, ``wrong_currency``,
    ``operation_conflict`` (the event has other terms), ``released``, ``already_paid``, ``not_paid``.
    ``time_ms`` (UTC) is when it was first done, 0 for a refusal.
    """

    event: EventId
    operation: Operation
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{0,40}\Z")] = ""
    message: str = ""
    time_ms: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the operation took effect, now or before."""
        return not self.code


class Standing(msgspec.Struct, frozen=True, rename="camel"):
    """All that was done for an event: terms, and when (UTC ms, 0: never). ``is_tombstone``: it began with a release."""

    event: str
    payer: str
    payee: str
    amount: int
    currency: str
    reserved_ms: int = 0
    paid_ms: int = 0
    released_ms: int = 0
    reversed_ms: int = 0
    is_tombstone: bool = False


class Entry(msgspec.Struct, frozen=True, rename="camel"):
    """One posting: an amount leaves ``debit`` and enters ``credit``, so that all postings together balance.

    Both name an account and a part of it, ``ACCOUNT/available`` or ``ACCOUNT/held``; ``WORLD/outside`` is where
    simulated money comes from. ``number`` counts all postings from 1.
    """

    number: int
    event: str
    operation: str
    debit: str
    credit: str
    amount: int
    currency: str
    time_ms: int


class Entries(msgspec.Struct, frozen=True, rename="camel"):
    """A page of postings by time and number; ``next`` is the ``after`` of the following page, 0 at the end."""

    items: list[Entry]
    next: int


class AccountSystem(Protocol):
    """A conventional account system, as settlement and reconciliation need it."""

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        """Do 1 to ``ORDERS_MAX`` operations, each for itself; answers in the same order, durable when they come.

        Raises:
            Unreachable: ``accounts_unreachable``: it is unknown what was done; the same again is safe.
            Refused: the system takes nothing at present, with its code.
        """
        ...

    async def look_up(self, events: Sequence[str]) -> list[Standing | None]:
        """Return what was done for up to ``ORDERS_MAX`` events, None for unknown ones; errors as :meth:`run`."""
        ...

    async def entries(self, *, from_ms: int, until_ms: int, after: int, limit: int) -> Entries:
        """Return postings of ``from_ms`` ≤ time < ``until_ms``, by time and number, errors as :meth:`run`.

        ``after`` is the number of the last one that is known, 0 for none: those behind it are returned.
        """
        ...
