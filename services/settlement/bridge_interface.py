"""What the settlement bridge offers on ``run/bridge.sock``, and what it asks of the issuer end's ``issuer.sock``."""

from typing import Annotated

import msgspec

from services.settlement.interfaces import Params, Result

FAILED_MAX = 500


class BridgeStatusQuery(Params, frozen=True):
    """``status``: how the bridge stands; failed sales by id above ``after``."""

    after: Annotated[str, msgspec.Meta(max_length=64)] = ""
    limit: Annotated[int, msgspec.Meta(ge=0, le=FAILED_MAX)] = 100


class FailedSale(Result, frozen=True):
    """A sale that moved neither units nor money; ``event`` is its last attempt's, ``code`` why."""

    id: str
    event: str
    code: str
    asset: str
    units: int
    price: int
    currency: str
    payer: str


class BridgeStatus(Result, frozen=True):
    """``totals`` of sales by OPEN, SETTLED, FAILED; ``position`` in the issuer's answers, -1 before the first time.

    ``trouble``: what stands in the way of reading and of settling, "" while it works.
    """

    position: int
    totals: dict[str, int]
    trouble: dict[str, str]
    failed: list[FailedSale]


class Retry(Params, frozen=True):
    """``retry``: try failed sales again, all of them where none is named. Answered by ``Retried``."""

    sales: Annotated[list[Annotated[str, msgspec.Meta(max_length=64)]], msgspec.Meta(max_length=FAILED_MAX)]


class Retried(Result, frozen=True):
    """How many sales are open again."""

    count: int


class ConfirmedNext(Params, frozen=True):
    """The issuer end's ``confirmed``, as the bridge asks it: answers with numbers above ``after``."""

    after: int
    wait_ms: int


class Purchase(Result, frozen=True):
    """A confirmed purchase: ``volume`` in 1/100 units for ``amount`` in 1/100 of the currency, by its three digits."""

    bank: str
    distributor: str
    serial: str
    product: str
    transaction_account: str
    volume: int
    amount: int
    currency: str


class ConfirmedAnswer(Result, frozen=True):
    """The purchases of one of the issuer's answers."""

    number: int
    root: bytes
    round_number: int
    purchases: list[Purchase]


class ConfirmedPage(Result, frozen=True):
    """Answers by number; ``position`` is the next page's ``after``."""

    items: list[ConfirmedAnswer]
    position: int
    newest: int
