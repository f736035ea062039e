"""What travels between the account system and who calls it over HTTP: JSON with camelCase names.

Every answer says that the money is simulated.
"""

from typing import Annotated

import msgspec

from services.accounts.faults import FAULTS_MAX, Fault, FaultAt
from services.accounts.ledger import Account
from services.accounts.port import (
    ENTRIES_MAX,
    ORDERS_MAX,
    AccountId,
    AmountCents,
    Answer,
    Currency,
    Entry,
    EventId,
    Order,
    Standing,
)

ACCOUNTS_MAX = 1_000
"""How many accounts one request opens, or one page holds."""
TIME_MS_MAX = 1 << 62

Orders = Annotated[list[Order], msgspec.Meta(min_length=1, max_length=ORDERS_MAX)]
TimeMs = Annotated[int, msgspec.Meta(ge=0, le=TIME_MS_MAX)]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of what is asked."""


class Said(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of what is answered."""

    simulated: bool = True


class Events(Asked, frozen=True):
    """``POST /standings``: what was done for these events?"""

    events: Annotated[list[EventId], msgspec.Meta(min_length=1, max_length=ORDERS_MAX)]


class EntriesQuery(Asked, frozen=True):
    """``GET /entries``: postings of ``from_ms`` ≤ time < ``until_ms``, behind the one of number ``after``."""

    from_ms: TimeMs = 0
    until_ms: TimeMs = TIME_MS_MAX
    after: TimeMs = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=ENTRIES_MAX)] = ENTRIES_MAX


class AccountsQuery(Asked, frozen=True):
    """``GET /accounts``: in the order of their ids, above ``after``."""

    after: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}\Z")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=ACCOUNTS_MAX)] = ACCOUNTS_MAX


class Opening(Asked, frozen=True):
    """An account that is to be open."""

    id: AccountId
    currency: Currency


class Openings(Asked, frozen=True):
    """``POST /accounts``: open these, all or none; what is open stays as it is."""

    accounts: Annotated[list[Opening], msgspec.Meta(min_length=1, max_length=ACCOUNTS_MAX)]


class Deposit(Asked, frozen=True):
    """``POST /accounts/ID/deposits``: bring simulated money in, once for each ``reference``."""

    reference: EventId
    amount: AmountCents


class Faults(Asked, frozen=True):
    """``POST /faults``: more ways to misbehave."""

    faults: Annotated[list[Fault], msgspec.Meta(min_length=1, max_length=FAULTS_MAX)]


class Answered(Said, frozen=True, kw_only=True):
    """To ``POST /orders``: an answer to each, in order."""

    answers: list[Answer]


class Stood(Said, frozen=True, kw_only=True):
    """To ``POST /standings``: in order, null for unknown events."""

    standings: list[Standing | None]


class Posted(Said, frozen=True, kw_only=True):
    """A page of postings; ``next`` is the following page's ``after``, 0 at the end."""

    items: list[Entry]
    next: int


class AccountPage(Said, frozen=True, kw_only=True):
    """A page of accounts; ``next`` is the following page's ``after``, "" at the end. Or the accounts asked for."""

    accounts: list[Account]
    next: str = ""


class AccountSaid(Said, frozen=True, kw_only=True):
    """One account."""

    account: Account


class FaultsSaid(Said, frozen=True, kw_only=True):
    """All faults in force."""

    faults: list[FaultAt]


class Money(Said, frozen=True, kw_only=True):
    """To ``GET /money``: the simulated money that came in, in 1/100, per currency: what all accounts hold together."""

    issued: dict[str, int]


class Ready(Said, frozen=True, kw_only=True):
    """To ``GET /healthz``, which asks for no token."""

    ready: bool = True
