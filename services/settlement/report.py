"""What a reconciliation says: totals, counts, and a line for each event. Ready for JSON."""

import msgspec

from services.settlement.reconciling import Verdict


class AssetTotal(msgspec.Struct, rename="camel"):
    """What moved of an asset in the day, in smallest units, and how often; one unit has ``decimals`` of them."""

    asset: str
    decimals: int = 0
    deliveries: int = 0
    delivered: int = 0
    lifted: int = 0
    given_back: int = 0


class MoneyTotal(msgspec.Struct, rename="camel"):
    """What was posted for events in a currency in the day, in 1/100."""

    currency: str
    reserved: int = 0
    paid: int = 0
    payments: int = 0
    released: int = 0
    reversed: int = 0


class Fault(msgspec.Struct, frozen=True):
    """One break of an event; ``kind`` is a :class:`services.settlement.reconciling.BreakKind`."""

    kind: str
    why: str


class Line(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One event of the report. Units in smallest units, prices in 1/100, times in ms UTC and 0 where nothing was.

    ``units`` and ``price`` are those of the terms, ``delivered_units`` and ``paid`` what chain and accounts say.
    ``lien`` is how the delivery stands now, "" for none; ``proofs`` are file names.
    """

    event: str
    verdict: Verdict
    breaks: list[Fault]
    kind: str = ""
    state: str = ""
    outcome: str = ""
    code: str = ""
    asset: str = ""
    units: int = 0
    delivered_units: int = 0
    lien: str = ""
    price: int = 0
    paid: int = 0
    currency: str = ""
    payer: str = ""
    payee: str = ""
    registered_ms: int = 0
    delivered_ms: int = 0
    closed_ms: int = 0
    paid_ms: int = 0
    height: int = 0
    transaction: str = ""
    proofs: list[str] = []


class Report(msgspec.Struct, kw_only=True, rename="camel"):
    """What a reconciliation found.

    ``is_complete``: the chain has a block of the day's end or later, so nothing of the day can follow. Ages are counted
    to ``now_ms``, the time of the newest certified block. ``listed`` holds open and broken events, at most
    ``LISTED_MAX``. Money is simulated.
    """

    date: str
    from_ms: int
    until_ms: int
    now_ms: int
    is_complete: bool
    first_height: int
    last_height: int
    events: int = 0
    matched: int = 0
    open: int = 0
    broken: int = 0
    breaks: dict[str, int] = {}
    assets: list[AssetTotal] = []
    currencies: list[MoneyTotal] = []
    proofs: int = 0
    proofs_folder: str = ""
    listed: list[Line] = []
    simulated: bool = True
