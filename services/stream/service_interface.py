"""What a service party offers: to its owner on ``run/stream.sock``, to payers over HTTP and WebSocket.

The owner's calls are ``LocalService`` methods; over HTTP the same Structs travel as JSON with camelCase names. Bytes
are 0x-hex in both. Frames (``POST /frames``, ``/frames`` as WebSocket) are binary, :mod:`services.stream.wire`; the
body of ``POST /iterations`` is one iteration's own bytes. Amounts are in smallest units of the stream's unit.
"""

from typing import Annotated, TypeAlias

import msgspec

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.streams import AMOUNT_MAX, Amount, Natural, Terms, stream_id, terms_hash
from services.stream.iteration_file import terms_from_json_untrusted

STREAMS_PAGE_MAX = 500
SERVICE_SOCKET = "stream.sock"
"""In the folder ``run``: where the owner calls."""
FRAME_MEDIA_TYPE = "application/msgpack"
ITERATION_MEDIA_TYPE = "application/octet-stream"

AddressText: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{40}\Z")]
StreamText: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{64}\Z")]
KeyText: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{66}\Z")]
SignatureText: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-f]{128}\Z")]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
TermsText: TypeAlias = dict[str, int | str]
"""Terms as :func:`services.stream.iteration_file.terms_json` writes them."""
StatusText = Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{0,16}\Z")]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of parameters: JSON objects with camelCase names."""


class Result(msgspec.Struct, frozen=True, rename="camel"):
    """Base of results."""


# -- the owner's: run/stream.sock ------------------------------------------------------------------------


class StatusQuery(Params, frozen=True):
    """``status``: how the service party stands. Answered by ``ServiceStatus``."""


class Tariff(Result, frozen=True):
    """What a service party agrees to; see :class:`services.stream.service_config.StreamServiceFile`."""

    unit: str
    what: str
    price: int
    step_max: int
    deposit_min: int
    deposit_max: int
    fine_min: int
    credit_max: int
    modes: list[str]
    window_ms: int
    validity_ms: int
    margin_ms: int
    step_ms: int


class ServiceStatus(Result, frozen=True):
    """``counts``: streams by status. ``iterations`` and ``groups`` (durable writes) since the start.

    ``trouble`` is the code of what stands in the way of uploads now, "" for nothing.
    """

    account: str
    address: str
    chain_id: str
    tariff: Tariff
    counts: dict[str, int]
    connections: int
    iterations: int
    groups: int
    trouble: str


class StreamsQuery(Params, frozen=True):
    """``streams``: those of one status, or all, in the order of their ids from after ``after``. By ``StreamsPage``."""

    status: StatusText = ""
    after: Annotated[str, msgspec.Meta(pattern=r"^(0x[0-9a-f]{64})?\Z")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=STREAMS_PAGE_MAX)] = 100


class StreamQuery(Params, frozen=True):
    """``stream``: one of them, ``unknown_stream``. Answered by ``StreamShown``; so too ``GET /streams/ID``."""

    stream: StreamText


class StreamEnd(Params, frozen=True):
    """``end``: supply nothing more and upload the last iteration (reason ``owner``). Answered by ``StreamShown``."""

    stream: StreamText


class Export(Params, frozen=True):
    """``export``: the last iteration as a file, for a watcher or a claim. Answered by ``Exported``.

    Codes: ``unknown_stream``, ``nothing_due`` before the first iteration.
    """

    stream: StreamText


class Exported(Result, frozen=True):
    """``content`` is the file, as :func:`services.stream.iteration_file.encode_carried` writes it."""

    stream: str
    due: int
    content: str


class StreamShown(Result, frozen=True):
    """A stream as the service party has it.

    ``status`` is STREAMING, ENDING, UPLOADED, SETTLED, CLAIMED, CLOSED or LOST, with the ``reason`` of its end; ``due``
    is what the last of ``count`` iterations pays in all, ``limit`` the most that may be due; ``units`` were supplied of
    ``allowed_units``. ``upload_id`` is the transaction that was sent, "" before.
    """

    stream: str
    status: str
    reason: str
    due: int
    limit: int
    count: int
    units: int
    allowed_units: int
    upload_id: str
    valid_until_ms: int
    opened_ms: int
    heard_ms: int
    terms: TermsText


class StreamsPage(Result, frozen=True):
    """Streams; ``next`` is for the following page's ``after``, "" on the last."""

    items: list[StreamShown]
    next: str


# -- payers': HTTP ---------------------------------------------------------------------------------------


class OfferWanted(Params, frozen=True):
    """``POST /offers``: what a payer wishes; 0 leaves an end condition out. Answered by ``Offer``.

    Codes: ``bad_offer`` with what the service party would take.
    """

    payer: AddressText
    number: Natural
    deposit: Positive
    fine: Amount = 0
    credit: Amount = 0
    mode: Annotated[str, msgspec.Meta(pattern=r"^(service-first|payment-first)\Z")] = "service-first"
    count_max: Natural = 0
    amount_max: Amount = 0
    duration_ms_max: Natural = 0


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Terms that the service party has signed: with these the payer opens the stream."""

    chain_id: StreamText
    stream: StreamText
    terms: TermsText
    service_key: KeyText
    signature: SignatureText

    def check_untrusted(self, chain_id: ChainId) -> tuple[Terms, bytes]:
        """Return terms and signature of an offer that holds together; whose key it is, the chain alone says.

        Raises:
            PeerError: ``wrong_chain``, ``malformed``, ``wrong_stream``, ``bad_key``, ``bad_signature``.
        """
        if bytes_of_hex(self.chain_id) != chain_id:
            raise PeerError("wrong_chain", "an offer of another chain")
        terms = terms_from_json_untrusted(self.terms)
        if stream_id(terms.payer, terms.service, terms.number) != bytes_of_hex(self.stream):
            raise PeerError("wrong_stream", "the offer names another stream than its terms make")
        key, signature = PublicKey.load_untrusted(bytes_of_hex(self.service_key)), bytes_of_hex(self.signature)
        if not key.verifies(signature, Purpose.STREAM_TERMS, chain_id, terms_hash(terms)):
            raise PeerError("bad_signature", "not signed by the key that the offer names")
        return terms, signature


class ChallengeGiven(Result, frozen=True):
    """``POST /challenges``: a nonce to sign in a Hello, once, within ``until_ms``."""

    nonce: str
    until_ms: int


class StoredShown(Result, frozen=True):
    """``POST /iterations``: the iteration with this total is durable."""

    stream: str
    due: int


class Ready(Result, frozen=True):
    """``GET /healthz``."""

    account: str


def bytes_of_hex(text: str) -> bytes:
    """Return the bytes of 0x-hex whose form was checked."""
    return bytes.fromhex(text.removeprefix("0x"))
