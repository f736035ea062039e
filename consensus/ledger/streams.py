"""What payer and service party of a payment stream agree on and sign, and what an iteration is.

A stream is agreed by *terms* that the service party signs (:func:`terms_hash`, ``Purpose.STREAM_TERMS``) and the payer
accepts by opening it on the chain with a deposit. Each *iteration* is a whole signed transaction of the payer in the
stream's one-shot lane with one call, ``streams.settle(stream, due)``; ``due`` is the total so far. A close needs a
signature of its own kind (:func:`close_hash`, ``Purpose.STREAM_CLOSE``): an iteration is no consent to close.

Contract and programs spell it the same: the hashes here are those that a contract gets from ``context.hash``. Pure.
"""

from enum import IntEnum
from typing import Annotated, Final, TypeAlias

import msgspec

from consensus.ledger import ids
from consensus.ledger.block import UPTIME_STEP_MS_MAX
from consensus.ledger.codec import Record, RecordCodec, Value, decode_untrusted, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ADDRESS_BYTES, ChainId, Hash, tagged_hash
from consensus.ledger.keys import PrivateKey, PublicKey
from consensus.ledger.transaction import ATOMIC, Transaction, decode_transaction_untrusted, make_call, sign_transaction

CONTRACT: Final = "streams"
AMOUNT_MAX = 10**15
WINDOW_MS_MIN, WINDOW_MS_MAX = 60_000, 30 * 24 * 3_600 * 1_000
"""How long a payer waits for its deposit at the least and at the most, in ``uptime_ms``."""
OUTAGE_MS: Final = UPTIME_STEP_MS_MAX
"""What an outage of the chain, in which nobody can claim, counts of a window at the most."""
ITERATION_BYTES_MAX = 1_024

Address: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES)]
Amount: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Unit: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}\Z")]
Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
What: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=32, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z")
]
"""What is metered, with its size: ``0.1 kWh``; one line that steers no screen."""


class Mode(IntEnum):
    """Who goes first in each step."""

    SERVICE_FIRST = 0
    """A step is supplied, then paid (S4.12)."""
    PAYMENT_FIRST = 1
    """A step is paid, then supplied (S4.13)."""


class Terms(Record, frozen=True):
    """What both agree on. Amounts in smallest units of ``unit``; 0 of an end condition: none.

    ``number`` is the payer's own and makes the stream's id. ``price`` is of one metered unit (``what``). ``step_max``
    is the most by which ``due`` may rise from one iteration to the next, and so what either side can lose. ``credit``
    is what ``due`` may exceed ``deposit − fine`` by. ``validity_ms`` is how long an iteration is valid when it is made,
    and ``margin_ms`` how long before its expiry the service party uploads it. ``window_ms`` counts ``uptime_ms`` and is
    at least ``validity_ms + margin_ms + OUTAGE_MS``, so that whatever cannot be settled expires, and can be claimed,
    before the deposit goes back. ``step_ms`` is how long either waits for the other's next step before it takes the
    stream for ended.
    """

    payer: Address
    service: Address
    number: Natural
    what: What
    unit: Unit
    deposit: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
    fine: Amount
    price: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
    step_max: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
    credit: Amount
    mode: Annotated[int, msgspec.Meta(ge=0, le=1)]
    count_max: Natural
    amount_max: Amount
    duration_ms_max: Natural
    window_ms: Annotated[int, msgspec.Meta(ge=WINDOW_MS_MIN, le=WINDOW_MS_MAX)]
    validity_ms: Annotated[int, msgspec.Meta(ge=10_000, le=3_600_000)]
    margin_ms: Annotated[int, msgspec.Meta(ge=1_000, le=3_000_000)]
    step_ms: Annotated[int, msgspec.Meta(ge=100, le=3_600_000)]
    offer_until_ms: Natural


terms_codec: RecordCodec[Terms] = RecordCodec(Terms, bytes_max=1_024)


def terms_fault(terms: Terms) -> str:
    """Return why the contract would not open a stream on these terms, whoever signed them; empty where it would."""
    if terms.payer == terms.service:
        return "payer and service party are two accounts"
    if terms.fine >= terms.deposit:
        return "the fine is part of the deposit, and not all of it"
    if terms.margin_ms >= terms.validity_ms:
        return "an iteration is valid for longer than the margin"
    least_ms = terms.validity_ms + terms.margin_ms + OUTAGE_MS
    return f"the window is {least_ms} ms at least" if terms.window_ms < least_ms else ""


class StreamRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A stream as the state holds it: a map with camelCase keys under :func:`stream_key`.

    ``deposit`` is all that was ever put in, ``taken`` what went out of it to the service party as due, ``paid`` all
    that the service party got as due, out of balance or deposit. ``settled_by`` is the transaction that settled (32
    bytes), empty before. ``withdraw_at_uptime_ms`` is 0 while nobody asked.
    """

    payer: bytes
    service: bytes
    payer_key: bytes
    unit: str
    deposit: int
    taken: int
    paid: int
    fine: int
    is_fined: bool
    settled_by: bytes
    terms_hash: bytes
    credit: int
    window_ms: int
    withdraw_at_uptime_ms: int
    opened_at_ms: int
    status: str
    """``OPEN`` or ``CLOSED``."""

    @property
    def limit(self) -> int:
        """The most that is due in all by the deposit and the agreed credit."""
        return self.deposit - self.fine + self.credit


def read_record(value: Value) -> StreamRecord:
    """Return a stream's record from the value that the state proves under its key.

    Raises:
        PeerError: ``malformed``.
    """
    try:
        return msgspec.convert(value, StreamRecord)
    except msgspec.ValidationError as error:
        raise PeerError("malformed", f"no record of a stream: {error}") from None


def stream_id(payer: bytes, service: bytes, number: int) -> Hash:
    """Return the id of a payer's stream with this number to this service party; it is used once, ever."""
    return _hash("stream", payer, service, number)


def stream_lane(stream: bytes) -> Hash:
    """Return the payer's one-shot lane that the stream's iterations stand in."""
    return _hash("stream-lane", stream)


def terms_hash(terms: Terms) -> Hash:
    """Return what the service party signs, for ``Purpose.STREAM_TERMS``."""
    return _hash("stream-terms", *_values(terms))


def close_hash(stream: bytes, due: int) -> Hash:
    """Return what the other side signs so that a stream is closed at once with this total, for ``STREAM_CLOSE``."""
    return _hash("stream-close", stream, due)


def stream_key(stream: bytes) -> str:
    """Return the state key of a stream's record."""
    return f"{CONTRACT}/stream/{stream.hex()}"


def make_iteration(
    key: PrivateKey, chain_id: ChainId, payer: bytes, stream: bytes, due: int, valid_until_ms: int
) -> Transaction:
    """Sign the iteration by which ``due`` is paid in all."""
    call = make_call(CONTRACT, "settle", {"stream": stream, "due": due})
    lane = stream_lane(stream)
    return sign_transaction(
        key, chain_id, [call], sequence=0, valid_until_ms=valid_until_ms, lane=lane, sender=ids.Address(payer)
    )


class Iteration(msgspec.Struct, frozen=True, gc=False):
    """An iteration that was checked: what is due in all, until when it may be uploaded, and its transaction."""

    stream: Hash
    due: int
    valid_until_ms: int
    transaction: Transaction


def read_iteration_untrusted(
    raw: bytes, *, chain_id: ChainId, payer: bytes, stream: bytes, key: PublicKey
) -> Iteration:
    """Check that these bytes are an iteration of this stream, signed by the key that was pinned at its opening.

    Raises:
        PeerError: ``too_large``, ``malformed``, ``bad_version``, ``bad_lane``; ``wrong_chain``, ``wrong_stream``,
            ``bad_iteration`` (another call, mode or argument), ``bad_signature``.
    """
    if len(raw) > ITERATION_BYTES_MAX:
        raise PeerError("too_large", f"an iteration has at most {ITERATION_BYTES_MAX} bytes")
    transaction = decode_transaction_untrusted(raw)
    body = transaction.body
    if body.chain_id != chain_id:
        raise PeerError("wrong_chain", "an iteration of another chain")
    if body.sender != payer or body.lane != stream_lane(stream):
        raise PeerError("wrong_stream", "an iteration of another payer's or another stream")
    call = body.calls[0]
    is_settle = len(body.calls) == 1 and (call.contract, call.method) == (CONTRACT, "settle")
    arguments = decode_untrusted(call.arguments)
    due = arguments.get("due") if isinstance(arguments, dict) else None
    if not is_settle or body.mode != ATOMIC or not isinstance(due, int) or arguments != {"stream": stream, "due": due}:
        raise PeerError("bad_iteration", "it is not one call that settles this stream")
    # A bool is an int to Python and to ==, but not to the contract, where it would fail and use the number up.
    if isinstance(due, bool) or not 0 < due <= AMOUNT_MAX:
        raise PeerError("bad_iteration", f"what is due is 1 to {AMOUNT_MAX}")
    if not transaction.signed_by(key):
        raise PeerError("bad_signature", "not signed by the stream's payer")
    return Iteration(Hash(stream), due, body.valid_until_ms, transaction)


def _values(terms: Terms) -> list[Value]:
    return [getattr(terms, name) for name in Terms.__struct_fields__]


def _hash(*parts: Value) -> Hash:
    return tagged_hash("contract-data", encode([*parts]))
