"""What a platform program offers: to its owner on ``run/platform.sock``, to its payers' clients over HTTP.

The owner's calls are ``LocalService`` methods. Each may be repeated: a draft is known by its commitment, a version is
written once, and an order of a merchant is paid once. Over HTTP the same Structs travel as JSON with camelCase names.
Bytes travel in base64 on the socket and in 0x-hex over HTTP; identities are 26 characters everywhere
(:mod:`services.payee.identity`); amounts are integers in 1/100 of the currency. Money is simulated.
"""

from typing import Annotated

import msgspec

from services.accounts.port import AccountId, AmountCents, Currency

PAYLOAD_CHARACTERS_MAX = 10_000
RECORDS_PAGE_MAX = 500
PAYMENTS_PAGE_MAX = 500
CODE_PART_BYTES, PART_BYTES = 16, 32
"""A split key's part in the code, and the institution's (:mod:`services.payee.split`)."""
SPLIT_BYTES_MAX = 2_048
RECORDS_COUNTED_MAX = 10_000

IdentityText = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-hjkmnp-tv-z]{26}\Z")]
"""An identity as codes and people write it: 16 bytes in Crockford's base32, lower case."""
OrderId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,24}\Z")]
"""An order of a merchant, as it fits EMVCo's reference label (62-05)."""
_SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z"
"""Text of one line that is shown to people and steers no screen."""
EnvironmentText = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of parameters: JSON objects with camelCase names."""


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """Base of results."""


class Acquiring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Acquiring information (收单信息): how a platform pays a merchant. A record's plaintext is this as JSON.

    ``account`` is the merchant's in the account system; ``name`` is shown to the payer before the payment.
    """

    account: AccountId
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=_SHOWN)]
    currency: Currency
    terminal: Annotated[str, msgspec.Meta(max_length=64, pattern=_SHOWN)] = ""
    note: Annotated[str, msgspec.Meta(max_length=256, pattern=_SHOWN)] = ""


class SplitAcquiring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Acquiring information under a split key (:mod:`services.payee.split`): the other plaintext a record may have."""

    split: Annotated[bytes, msgspec.Meta(max_length=SPLIT_BYTES_MAX)]


# -- the owner's: run/platform.sock ----------------------------------------------------------------------


class DraftRecord(Params, frozen=True):
    """``draft_record``: encrypt acquiring information for an identity, and say what the merchant has to sign.

    The draft is kept until ``put_record``; drafted again, the same content gives the same draft while its version is
    the next one. With the ``code_part`` of the merchant's codes the record gets a split key, and a record that has one
    is not replaced by one without. Codes: ``unknown_merchant``, ``too_large``, ``record_split``. Answered by ``Draft``.
    """

    identity: IdentityText
    acquiring: Acquiring
    is_shareable: bool = False
    code_part: Annotated[bytes, msgspec.Meta(max_length=CODE_PART_BYTES)] = b""


class Draft(Result, frozen=True):
    """A record that lacks the merchant's signature: over ``content_hash(identity, server, version, commitment, …)``.

    The merchant recomputes the commitment from salt and plaintext, so that it signs what it sees. ``standing`` is how
    the platform's record of it stands now: ``""`` where there was none, ``ACTIVE`` or ``REMOVED``. ``part`` is the
    institution's of a split key, with which and its own the merchant opens what it signs; empty where there is none.
    """

    server: str
    identity: str
    version: int
    commitment: bytes
    salt: bytes
    plaintext: bytes
    is_shareable: bool
    standing: str
    part: bytes = b""


class PutRecord(Params, frozen=True):
    """``put_record``: write a draft to the chain with the merchant's signature. Answered by ``RecordPut``.

    Codes: ``unknown_draft``, ``bad_signature``, ``wrong_version`` (draft again), and the contract's.
    """

    identity: IdentityText
    commitment: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    merchant_signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class RecordPut(Result, frozen=True):
    """A record as it stands on the chain now; ``height`` is of the block that holds the change.

    ``transaction`` is empty where this program does not know it any more.
    """

    identity: str
    version: int
    epoch: int
    transaction: bytes
    height: int


class RemoveRecord(Params, frozen=True):
    """``remove_record``: dissociate from a merchant; leaves a tombstone. Answered by ``RecordPut``.

    Codes: ``unknown_record``, ``record_removed``.
    """

    identity: IdentityText


class Rotate(Params, frozen=True):
    """``rotate``: begin a new epoch with a new key for these environments alone, and encrypt all records anew.

    What an environment could read before stays exposed to it. Interrupted, the same call goes on. Answered by
    ``Rotated``. Codes: ``unknown_environment``.
    """

    environments: Annotated[list[EnvironmentText], msgspec.Meta(min_length=1, max_length=32)]


class Rotated(Result, frozen=True):
    """The epoch in force, and how many records were encrypted anew under it by this call."""

    epoch: int
    encrypted: int


class Register(Params, frozen=True):
    """``register``: register the platform's key on the chain. Answered by ``PlatformStatus``.

    A platform does so by itself where the chain has none. Where it has another one, which is so when the vault was
    lost or is another one's, ``is_replacing`` makes this vault's key the platform's. Codes: ``other_key``.
    """

    is_replacing: bool = False


class Trust(Params, frozen=True):
    """``trust``: give more environments the key of the epoch in force. Answered by ``PlatformStatus``."""

    environments: Annotated[list[EnvironmentText], msgspec.Meta(min_length=1, max_length=32)]


class NoParams(Params, frozen=True):
    """``status``: answered by ``PlatformStatus``."""


class PlatformStatus(Result, frozen=True):
    """A platform as it stands: its epoch, whom it trusts with the epoch's key, how much it has.

    Only the first ``RECORDS_COUNTED_MAX`` records are counted; ``is_more`` tells that there are others. ``key`` is the
    one that signs for it, ``trouble`` what stands in its way, "" while it works. Environments are emulated, without
    hardware isolation.
    """

    server: str
    key: bytes
    trouble: str
    epoch: int
    environments: list[str]
    records: int
    is_more: bool
    outdated: int
    """Active records that are still under an earlier epoch's key."""
    lost: int
    """Active records under a key that the vault does not have: the merchant has to sign them anew."""
    payments: int
    unfinished: int


class RecordsQuery(Params, frozen=True):
    """``records``: the platform's own records by identity, from ``after`` on. Answered by ``Records``."""

    after: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=RECORDS_PAGE_MAX)] = 100


class RecordRow(Result, frozen=True):
    """One of the platform's own records, in the clear: the owner's eyes only.

    ``acquiring`` is None of one that was removed, or that does not open since its key was lost; and of a split one,
    which opens with a code of the merchant's.
    """

    identity: str
    version: int
    epoch: int
    is_shareable: bool
    is_removed: bool
    acquiring: Acquiring | None
    is_split: bool = False


class Records(Result, frozen=True):
    """A page of records; ``next`` is the ``after`` of the following page, "" at the end."""

    items: list[RecordRow]
    next: str


class PaymentsQuery(Params, frozen=True):
    """``payments``: newest first; of one merchant where ``identity`` is given. Answered by ``Payments``."""

    identity: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=PAYMENTS_PAGE_MAX)] = 100


# -- the payers': HTTP, with the platform's payers' token ------------------------------------------------


class Delegate(Params, frozen=True):
    """``POST /delegations``: let a client's key sign queries for the platform. Answered by ``Delegated``."""

    key: Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{66}\Z")]


class Delegated(Result, frozen=True):
    """A delegation, see :class:`consensus.ledger.payees.Delegation`."""

    server: EnvironmentText
    key: str
    until_ms: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    signature: Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{128}\Z")]


class AskPart(Params, frozen=True):
    """``POST /parts``: the institution's part of a split key, for who has the code's. Answered by ``Part``.

    Codes: ``no_platform``; ``no_part`` where the record has none, or the platform has lost it; ``stale_states``.
    """

    identity: IdentityText


class Part(Result, frozen=True):
    """The institution's part of the split key of the record that the chain has now, in 0x-hex."""

    server: str
    identity: str
    part: Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{64}\Z")]

    def __repr__(self) -> str:
        """Say nothing of the part: logs and errors may show any object."""
        return f"Part({self.identity})"


class Pay(Params, frozen=True):
    """``POST /payments``: pay what a code asks for, once for (merchant, order). Answered by ``Payment``.

    The platform reads and checks the code itself. ``amount`` and ``order`` are needed where the code names none, and
    must not differ from it where it does. ``payee`` and ``currency`` are what the client resolved and showed: they must
    be the platform's own. Codes: ``bad_code`` and others of :mod:`services.payee.codes`, ``code_expired``,
    ``unknown_merchant``, ``no_platform``, ``wrong_payee``, ``wrong_amount``, ``wrong_currency``, ``wrong_order``,
    ``amount_missing``, ``order_missing``, ``order_conflict`` (the order was paid on other terms), ``missing_key``,
    ``key_part_missing``, ``no_part``, ``wrong_key_part`` of a split key, ``stale_states`` (the nodes know of no recent
    block), ``busy``. What the account system refuses, as ``insufficient_funds``, is a payment of state REFUSED.
    """

    payload: Annotated[str, msgspec.Meta(max_length=PAYLOAD_CHARACTERS_MAX)]
    payer: AccountId
    payee: AccountId
    amount: AmountCents | None = None
    order: OrderId | None = None
    currency: Currency | None = None


class Payment(Result, frozen=True):
    """A payment: ``state`` is ``PAID``, ``REFUSED`` (``code`` says why; the same may be tried again) or ``OPEN``.

    ``OPEN`` is one whose outcome the account system has not told yet: ask again with the same. ``is_first`` tells
    whether this call made the payment, ``time_ms`` when it was paid, 0 before. The money is simulated.
    """

    server: str
    identity: str
    order: str
    payer: str
    payee: str
    amount: int
    currency: str
    state: str
    code: str
    event: str
    time_ms: int
    is_first: bool


class Payments(Result, frozen=True):
    """A page of payments."""

    items: list[Payment]


class Ready(Result, frozen=True):
    """To ``GET /healthz``, which asks for no token."""

    server: str
    ready: bool = True
    simulated: bool = True
