"""What the sales end offers on its local socket ``run/sales.sock``: method names, parameters, results.

Whoever may open the socket is the bank's own; nothing leaves the machine. Money is in 1/100 of the currency, units
in 1/100. An order's state is one of :class:`State`. Pages have the ``next`` that the following one is asked for with;
it is "" at first and after the last.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from services.agency.interfaces import Params, Result, WaitMs
from services.agency.orders import Application, Confirmation, Investor
from services.agency.packages import Party

TAKE_MAX = 20_000
"""Applications in one call."""
PROFILES_MAX = 5_000
SALES_PAGE_MAX = 1_024

Source = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,96}\Z")]
OrdersCursor = Annotated[str, msgspec.Meta(pattern=r"^([kw]-[0-9]{1,15}-[0-9]{1,6})?\Z")]
ProfilesCursor = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){0,16}\Z")]
PageLimit = Annotated[int, msgspec.Meta(ge=1, le=SALES_PAGE_MAX)]


class State(StrEnum):
    """How an order stands.

    NEW waits in the window. DROPPED was not sent, PENDING was sent and has no answer. CONFIRMED took effect (or was
    acknowledged, for an initial subscription), ALLOTTED is its second confirmation, REJECTED did not take effect.
    """

    NEW = "NEW"
    DROPPED = "DROPPED"
    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    ALLOTTED = "ALLOTTED"


class ApplicationsTake(Params, frozen=True):
    """``applications_take``: adds applications to the window; durable when it is answered.

    The same ``source`` again (a file's ``sha256:…``, any name that stands for what was brought) changes nothing.
    ``creator`` is the distributor that a file is from, "" where nobody says; orders of others are dropped with
    ``foreign_distributor``. ``closes`` ends the window at once; without it, it ends after the time it is set to.
    """

    source: Source
    applications: Annotated[list[Application], msgspec.Meta(min_length=1, max_length=TAKE_MAX)]
    creator: Annotated[str, msgspec.Meta(max_length=9)] = ""
    closes: bool = True


class Taken(Result, frozen=True):
    """``is_new`` is False where the source was known; ``count`` of its applications."""

    source: str
    count: int
    is_new: bool


class WindowClose(Params, frozen=True):
    """``window_close``: sends what has gathered; returns at once."""


class WindowClosed(Result, frozen=True):
    """How many applications the window held."""

    count: int


class ProgressQuery(Params, frozen=True):
    """``progress``: how the orders of a source stand; waits up to ``wait_ms`` while nothing is newer than ``after``."""

    source: Source
    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    wait_ms: WaitMs = 0


class Total(Result, frozen=True):
    """Orders in one state with one reason word ("" where it took effect): how many, and the amount applied for."""

    state: State
    reason: str
    count: int
    amount: int


class Progress(Result, frozen=True):
    """How a source stands.

    ``version`` is for the next ``after``. ``waiting`` orders are NEW or PENDING; ``unanchored`` are answered and their
    anchor is not final. With both 0 the source is done, until an allotment.
    """

    source: str
    version: int
    count: int
    totals: list[Total]
    waiting: int
    unanchored: int


class OrdersQuery(Params, frozen=True):
    """``orders``: all orders, of one state and one source where these are not "", in the order they were taken."""

    state: State | None = None
    source: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{0,96}\Z")] = ""
    after: OrdersCursor = ""
    limit: PageLimit = 100


class Anchor(Result, frozen=True):
    """Where a round of a package stands on the chain."""

    round_number: int
    transaction_id: bytes
    height: int


class OrderRecord(Result, frozen=True):
    """The bank's record (业务记录) of one order.

    ``place`` counts from 0 within the source. ``root`` names the package, empty where it was not sent. ``confirmation``
    is of round 0, ``allotment`` of round 1, both None before they came.
    """

    source: str
    place: int
    state: State
    reason: str
    issuer: str
    root: bytes
    application: Application
    confirmation: Confirmation | None
    allotment: Confirmation | None
    anchors: list[Anchor]


class Orders(Result, frozen=True):
    """Page of records; a page with a filter may be short and still have a ``next``."""

    items: list[OrderRecord]
    next: str


class OrderQuery(Params, frozen=True):
    """``order``: one order by its serial; ``unknown_order``."""

    serial: str


class SalesSummaryQuery(Params, frozen=True):
    """``summary``: how the sales end stands."""


class SalesSummary(Result, frozen=True):
    """Totals of all orders; ``packages`` sent, ``sources`` taken, ``profiles`` known, ``position`` in the news."""

    organisation: str
    totals: list[Total]
    sources: int
    packages: int
    profiles: int
    position: int


class Profile(Params, frozen=True):
    """An issuer's registered user as the bank knows him."""

    ta_account: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,20}\Z")]
    issuer: Party
    investor: Investor


class ProfilesPut(Params, frozen=True):
    """``profiles_put``: adds or replaces profiles, as for users who were registered elsewhere."""

    profiles: Annotated[list[Profile], msgspec.Meta(min_length=1, max_length=PROFILES_MAX)]


class ProfilesKept(Result, frozen=True):
    """How many were new."""

    new: int


class ProfilesQuery(Params, frozen=True):
    """``profiles``: all of them, or those of one TA account."""

    ta_account: str = ""
    after: ProfilesCursor = ""
    limit: PageLimit = 100


class Profiles(Result, frozen=True):
    """Page of profiles, in no order that means anything."""

    items: list[Profile]
    next: str
