"""What the event system offers on its local socket ``run/events.sock``: method names, parameters, results.

Callers are the transaction system, the payer and the operator, all of the same institution. Every call may be
repeated: the same again has the first effect. Bytes travel in base64. Amounts are integers: units in smallest units,
prices in 1/100 of the currency.
"""

from typing import Annotated, Protocol, TypeVar

import msgspec

from services.accounts.port import Answer, EventId
from services.settlement.states import Event, HistoryRow, State, Terms

REGISTER_MAX = 500
"""Events in one call of ``register``, ``release``, ``cancel``, ``answers_put``."""
LIST_MAX = 500
WAIT_MS_MAX = 20_000

T = TypeVar("T")

WaitMs = Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)]
EventIds = Annotated[list[EventId], msgspec.Meta(min_length=1, max_length=REGISTER_MAX)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of parameters: JSON objects with camelCase names."""


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """Base of results."""


class Registration(Params, frozen=True):
    """A trade before anything was asked of the chain: its terms and the signed transaction's bytes."""

    event: EventId
    terms: Terms
    raw: Annotated[bytes, msgspec.Meta(max_length=16_384)]


class Register(Params, frozen=True):
    """``register``: keep trades durably before the chain is asked for anything (S2.1). Answered by ``Registered``."""

    trades: Annotated[list[Registration], msgspec.Meta(min_length=1, max_length=REGISTER_MAX)]


class Registered(Result, frozen=True):
    """What is kept for each trade, in order; ``raw`` of it is what is to be sent, also if other bytes were given.

    A trade that cannot be taken has its code instead: ``bad_trade`` (the bytes are no delivery of these terms to this
    chain under our agent, or not valid for 10 s to an hour), ``event_conflict`` (the id has other terms).
    """

    items: list["Kept"]


class Kept(Result, frozen=True):
    """One trade of ``register``, ``release`` or ``cancel``: the event as it stands, or why not."""

    event: Event | None
    code: str = ""
    message: str = ""


class Release(Params, frozen=True):
    """``release``: the buyers' money is held, so the transactions may be sent. Answered by ``Registered``.

    Codes: ``unknown_event``, ``event_cancelled``. A released event is answered as it stands.
    """

    events: EventIds


class Cancel(Params, frozen=True):
    """``cancel``: give events up that were not released, since the money is not there. Answered by ``Registered``.

    Codes: ``unknown_event``, ``event_released`` (then only the chain decides). What was held is released.
    """

    events: EventIds
    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,40}\Z")]


class AnswersPut(Params, frozen=True):
    """``answers_put``: what the account system said; the payer's. Answered when durable, by ``AnswersTaken``."""

    answers: Annotated[list[Answer], msgspec.Meta(min_length=1, max_length=REGISTER_MAX)]


class AnswersTaken(Result, frozen=True):
    """For each answer whether it changed its event, and whether its order has to be asked for again later.

    The scan sees to what is unfinished. Only the hold of a CANCELLED trade is nobody's but the message's that releases
    it: refused, it stays open until it is done.
    """

    changed: list[bool]
    again: list[bool]


class EventQuery(Params, frozen=True):
    """``event``: one event with its history; ``unknown_event``.

    Waits up to ``wait_ms`` while its version is not above ``after_version`` and it is unfinished.
    """

    event: EventId
    after_version: int = 0
    wait_ms: WaitMs = 0


class EventAnswer(Result, frozen=True):
    """An event and its newest 500 changes, oldest first."""

    event: Event
    history: list[HistoryRow]


class EndsQuery(Params, frozen=True):
    """``ends``: which of these events are finished, flagged or unknown; waits up to ``wait_ms`` for a first one.

    Answered by ``Ended``.
    """

    events: EventIds
    wait_ms: WaitMs = 0


class Ended(Result, frozen=True):
    """Of the events that were asked about, those that need no more waiting for, and those that there are not."""

    items: list[Event]
    unknown: list[str]


class EventsQuery(Params, frozen=True):
    """``events``: those of a state, flagged ones alone, registered in a time, by id above ``after``."""

    state: State | None = None
    is_flagged: bool | None = None
    from_ms: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    until_ms: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 1 << 62
    after: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{0,64}\Z")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=LIST_MAX)] = 100


class EventsPage(Result, frozen=True):
    """A page of events; ``next`` is the following page's ``after``, "" at the end."""

    items: list[Event]
    next: str


class Repair(Params, frozen=True):
    """``repair``: an operator's word on an unfinished event. Answered by ``Kept``.

    ``retry`` takes the flag off and notifies at once; ``reverse`` closes an ACCOUNT_PENDING trade in the account
    system and gives the units back. Either sends the reversal again of a trade that moved after it was given up
    (``delivered_late``). Codes: ``unknown_event``, ``event_finished``, ``not_pending``.
    """

    event: EventId
    action: Annotated[str, msgspec.Meta(pattern=r"^(retry|reverse)\Z")]


class StatusQuery(Params, frozen=True):
    """``status``: how the event system stands."""


class EventsStatus(Result, frozen=True):
    """Counts by state, unfinished flagged ones, outbox rows waiting; what runs, and what stands in the way.

    ``trouble``: the last failure of each part by its name (listener, relay, scan, clerk), "" while it works.
    ``ratio``: validators that must agree in a scan. ``height``: how far the chain was read.
    """

    totals: dict[str, int]
    flagged: int
    waiting_notices: int
    height: int
    is_relay_on: bool
    is_scan_on: bool
    ratio: int
    agent: bytes
    trouble: dict[str, str]


class EventsLink(Protocol):
    """The way to the event system; :class:`services.local.link.LocalLink` fills it, errors as there."""

    async def call(self, method: str, params: object, kind: type[T]) -> T:
        """Call a method with its parameters' Struct, and return its result."""
        ...
