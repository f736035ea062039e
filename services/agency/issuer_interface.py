"""What the issuer end offers on its local socket ``run/issuer.sock``: method names, parameters, results.

Whoever may open the socket is the issuer's own; nothing of it leaves the machine. Units are in 1/100, money in 1/100 of
the currency. Pages are in no order that means anything; ``after`` is the ``next`` of the page before, "" at first and
after the last.
"""

from typing import Annotated

import msgspec

from services.agency.interfaces import Params, Result, WaitMs
from services.agency.orders import Investor
from services.agency.packages import HashBytes

ISSUER_PAGE_MAX = 500
ANSWERS_PAGE_MAX = 32
ALLOT_ALL = 10_000
"""Ratio of an allotment in basis points that gives everybody all."""

PageLimit = Annotated[int, msgspec.Meta(ge=1, le=ISSUER_PAGE_MAX)]
Cursor = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}){0,40}\Z")]
ProductCode = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,12}\Z")]


class UsersQuery(Params, frozen=True):
    """``users``: registered users; ``ta_account`` names one alone, "" for all."""

    ta_account: str = ""
    after: Cursor = ""
    limit: PageLimit = 100


class Registration(Result, frozen=True):
    """Through whom a user may trade: a distributor's code, the bank that speaks for it, the accounts there."""

    distributor: str
    bank: str
    transaction_accounts: list[str]


class User(Result, frozen=True):
    """A holder's account; a closed one stays on record."""

    ta_account: str
    investor: Investor
    is_open: bool
    registrations: list[Registration]


class Users(Result, frozen=True):
    """Page of users."""

    items: list[User]
    next: str


class HoldingsQuery(Params, frozen=True):
    """``holdings``: units held, of one ``ta_account`` and ``product`` alone where these are not ""."""

    ta_account: str = ""
    product: str = ""
    after: Cursor = ""
    limit: PageLimit = 100


class Holding(Result, frozen=True):
    """Units of a product that a holder has in custody of a distributor; ``to`` one to which they are on their way."""

    ta_account: str
    distributor: str
    product: str
    units: int
    to: str = ""


class Holdings(Result, frozen=True):
    """Page of holdings above zero; a page with a filter may be short and still have a ``next``."""

    items: list[Holding]
    next: str


class Allot(Params, frozen=True):
    """``allot``: fix how much of each initial subscription of a product is taken; once for a product.

    ``ratio_basis_points``: 10,000 takes all. From then on the product takes no further initial subscription, and every
    one that was acknowledged is confirmed with code 130.
    """

    product: ProductCode
    ratio_basis_points: Annotated[int, msgspec.Meta(ge=1, le=ALLOT_ALL)] = ALLOT_ALL


class Allotted(Result, frozen=True):
    """The ratio is kept durably. ``packages`` were answered by it; ``waiting`` have other products to be allotted."""

    product: str
    ratio_basis_points: int
    packages: int
    waiting: int


class ProductTotal(Result, frozen=True):
    """All units of a product that were confirmed in and out; their difference is held or on its way."""

    product: str
    units_in: int
    units_out: int
    units: int


class ConfirmedNext(Params, frozen=True):
    """``confirmed``: purchases confirmed for good, by the answers with numbers above ``after``.

    Waits up to ``wait_ms`` for the first such answer. Answers without a purchase are left out.
    """

    after: Annotated[int, msgspec.Meta(ge=0)]
    wait_ms: WaitMs = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=ANSWERS_PAGE_MAX)] = 8


class Purchase(Result, frozen=True):
    """A purchase as it was booked: ``volume`` in 1/100 units for ``amount`` in 1/100, the charge among it.

    An application that comes again in another package is confirmed again the same: bank, distributor and serial tell
    purchases apart. ``currency`` is the three digits of JR/T 0017.
    """

    bank: str
    distributor: str
    serial: str
    product: str
    transaction_account: str
    volume: int
    amount: int
    currency: str


class ConfirmedAnswer(Result, frozen=True):
    """The purchases of one answer, in its order; ``number`` rises from answer to answer."""

    number: int
    root: HashBytes
    round_number: int
    purchases: list[Purchase]


class ConfirmedPage(Result, frozen=True):
    """Answers by number; ``position`` is the next page's ``after``, ``newest`` the number of the newest answer."""

    items: list[ConfirmedAnswer]
    position: int
    newest: int


class SummaryQuery(Params, frozen=True):
    """``summary``: how the issuer end stands."""


class IssuerSummary(Result, frozen=True):
    """Counts since the beginning; ``reasons`` has the rejected orders by reason word, ``unsent`` answers wait."""

    issuer: str
    packages: int
    allotments: int
    unsent: int
    waiting: int
    accepted: int
    rejected: int
    users: int
    reasons: dict[str, int]
    products: list[ProductTotal]


class IssuerPackageQuery(Params, frozen=True):
    """``package``: what the issuer end made of a package. Unknown ones are refused with ``unknown_package``."""

    root: HashBytes


class IssuerAnswer(Result, frozen=True):
    """One answer: what was signed, and how many confirmations it has by reason word, "" for the accepted ones."""

    round_number: int
    outcome_root: HashBytes
    previous: HashBytes
    is_sent: bool
    reasons: dict[str, int]


class IssuerPackage(Result, frozen=True):
    """A package at the issuer end, without its orders; ``is_waiting``: for an allotment."""

    root: HashBytes
    bank: str
    epoch: int
    created_ms: int
    count: int
    is_waiting: bool
    answers: list[IssuerAnswer]
