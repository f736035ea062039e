"""What a gateway offers to the business ends beside it, over its local socket: method names, parameters, results.

The upper one calls the lower one: sales end and issuer end call the gateway, the gateway calls its node. What comes up
is asked for, from a position on that the asker keeps, and waits until it was taken: so each may die at any point.
"""

from typing import Annotated

import msgspec

from services.agency.orders import Application, Confirmation
from services.agency.packages import HashBytes, Party, Round, Salt, SignatureBytes

WAIT_MS_MAX = 20_000
PAGE_MAX = 64

WaitMs = Annotated[int, msgspec.Meta(ge=0, le=WAIT_MS_MAX)]
Position = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of parameters: JSON objects with camelCase names, bytes in base64."""


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """Base of results."""


# -- sales end → gateway ---------------------------------------------------------------------------------


class OrdersSubmit(Params, frozen=True):
    """``orders_submit``: qualified applications of one window. The same ``batch`` again has the first result.

    Its size is bounded by 20,000 applications; the gateway groups them by interface id into packages of up to 1,024.
    """

    batch: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
    applications: Annotated[list[Application], msgspec.Meta(min_length=1, max_length=20_000)]


class Refused(Result, frozen=True):
    """An application that is not sent, and why: ``no_channel``, ``unknown_interface``, ``channel_revoked``, …."""

    serial: str
    code: str
    message: str


class Sent(Result, frozen=True):
    """A package that is kept durably and finds its way to the node's outbox by itself."""

    root: HashBytes
    bank: str
    issuer: str
    epoch: int
    serials: list[str]


class OrdersSubmitted(Result, frozen=True):
    """What became of a batch; packages travel from now on by themselves."""

    packages: list[Sent]
    refused: list[Refused]


class Next(Params, frozen=True):
    """``outcomes_next``, ``packages_next``: what stands after ``after``, waited for up to ``wait_ms``."""

    after: Position
    wait_ms: WaitMs = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_MAX)] = 8


class PackageOutcome(Result, frozen=True):
    """News of a package for the sales end: ``kind`` is ``answered``, ``allotted``, ``refused`` or ``anchored``.

    ``answered`` and ``allotted`` bring confirmations (of the applications at ``places``, of all where that is empty),
    ``refused`` brings code and message about the whole package, ``anchored`` the round's transaction and block.
    """

    position: int
    kind: str
    root: HashBytes
    bank: str
    issuer: str
    round_number: int = 0
    confirmations: list[Confirmation] = []
    places: list[int] = []
    code: str = ""
    message: str = ""
    transaction_id: bytes = b""
    height: int = 0


class OutcomesNext(Result, frozen=True):
    """Page of news, oldest first."""

    items: list[PackageOutcome]


# -- issuer end → gateway --------------------------------------------------------------------------------


class PackageArrived(Result, frozen=True):
    """A package whose root and bank's signature were checked; the issuer end answers each once."""

    position: int
    root: HashBytes
    bank: str
    issuer: str
    epoch: int
    created_ms: int
    signature: SignatureBytes
    salts: list[Salt]
    applications: list[Application]


class PackagesNext(Result, frozen=True):
    """Page of packages, oldest first."""

    items: list[PackageArrived]


class AnswerSubmit(Params, frozen=True):
    """``answer_submit``: the issuer end's signed answer, see :class:`services.agency.packages.Answer`.

    The same again has no effect; another answer to the same package and round is refused with ``answer_exists``.
    """

    bank: Party
    root: HashBytes
    round_number: Round
    places: list[int]
    outcome_root: HashBytes
    previous: HashBytes
    signature: SignatureBytes
    confirmations: list[Confirmation]


class Done(Result, frozen=True):
    """It is kept durably."""


# -- both, and people ------------------------------------------------------------------------------------


class ProductQuery(Params, frozen=True):
    """``product``: a product with the terms in force for this bank, through the own node."""

    product: str
    bank: str


class ProductTerms(Result, frozen=True):
    """A product on the chain and the terms in force for it now; ``terms`` is None where there are none.

    ``terms_before`` is the version just before ``terms`` of the same subject, for orders that were under way when the
    terms changed; None where there is none. ``nav`` in 1/10,000 of the currency a unit; ``risk`` 1…5 for R1–R5.
    """

    product: str
    issuer: str
    interface: str
    type: str
    risk: int
    currency: str
    nav: int
    nav_date: int
    charge_basis_points: int
    is_open: bool
    terms: "Terms | None"
    terms_before: "Terms | None" = None


class Terms(Result, frozen=True):
    """Eligibility terms of one bank and issuer for one subject (``product:CODE`` or ``type:NAME``).

    ``kinds`` are the business codes that may be applied for; the flags say which qualifications are asked for.
    Amounts in 1/100 of the currency, 0 for no bound.
    """

    subject: str
    version: int
    kinds: list[str]
    age_min: int
    needs_identity: bool
    needs_registration: bool
    needs_risk_match: bool
    amount_min: int
    amount_max: int
    effective_ms: int
    expires_ms: int


class RootQuery(Params, frozen=True):
    """``package``: what the gateway has of it; ``claim``: anchors it with one signature; ``ask``: asks the peer."""

    root: HashBytes


class PackageState(Result, frozen=True):
    """How a package stands: ``state`` is ``sent``, ``answered``, ``refused`` or ``received``; anchors by round."""

    root: HashBytes
    bank: str
    issuer: str
    epoch: int
    is_bank: bool
    created_ms: int
    count: int
    state: str
    code: str
    signature: bytes
    rounds: list["RoundState"]


class RoundState(Result, frozen=True):
    """One answer, or a bank's claim, which has no outcome: its root, signature, and the anchoring transaction.

    ``status`` is ``waiting``, ``MUTUAL``, ``CLAIMED`` or the code of a contract that refuses; transaction and height
    are empty and 0 before it is final, the transaction also where the other side anchored it.
    """

    round_number: int
    outcome_root: bytes
    previous: bytes
    signature: bytes
    transaction_id: bytes
    height: int
    status: str


class DiscloseQuery(Params, frozen=True):
    """``disclose``: one order of a package with what proves it; ``serial`` of its application."""

    root: HashBytes
    serial: str
    round_number: Round = 0


class Disclosed(Result, frozen=True):
    """The file's object, see :mod:`services.agency.disclosure`."""

    document: dict[str, object]


class ChannelQuery(Params, frozen=True):
    """``recover``: asks the other side for what the chain's log of this channel has and the gateway has not."""

    bank: Party
    issuer: Party


class Recovered(Result, frozen=True):
    """How many packages the log names, how many of them are missing, how many were asked for now."""

    anchored: int
    missing: int
    asked: int


class ExportQuery(Params, frozen=True):
    """``export``: packages and answers of a channel, by their roots, from behind ``after`` on ("" at first)."""

    bank: Party
    issuer: Party
    after: bytes = b""


class ExportPage(Result, frozen=True):
    """Messages as they travelled, each package before its answers; ``after`` for the next page."""

    messages: list[bytes]
    after: bytes
    is_last: bool


class Import(Params, frozen=True):
    """``import``: takes exported messages back, each checked as if the other side had sent it again."""

    bank: Party
    issuer: Party
    messages: list[bytes]


class Imported(Result, frozen=True):
    """How many packages were new here."""

    packages: int


class StatusQuery(Params, frozen=True):
    """``status``: how the gateway stands."""


class Status(Result, frozen=True):
    """How a gateway stands.

    Args:
        node: name of the node, "" before it has answered.
        chain_id: 0x-hex, as ``business_key``.
        channels: the node's, as ``owner_channels`` answers them; none while it is away.
        packages: how many are in which state.
        waiting_anchors: how many anchorings are not final.
        alarms: the newest, "CODE CHANNEL what about"; newest first.
        trouble: why nothing gets to the chain, "" while it does.
    """

    organisation: str
    node: str
    chain_id: str
    business_key: str
    channels: list[dict[str, object]]
    packages: dict[str, int]
    waiting_anchors: int
    alarms: list[str]
    trouble: str
