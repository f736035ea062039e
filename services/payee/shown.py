"""What a resolution has shown, kept in a file: whoever has the genesis document checks it later, without any network.

The file holds query, answer and states as they were, and the key that opens the answer, made for it alone. So it shows
that the platform's client asked this, that an environment then trusted by the consortium signed this answer to it, and
what the chain had of the payee at that block. It says the payee in the clear to whoever has it.
"""

from typing import Annotated, Literal

import msgspec

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.payees import (
    ANSWER_BYTES_MAX,
    QUERY_BYTES_MAX,
    STATES_BYTES_MAX,
    Key,
    Query,
    delegation_hash,
    platform_key,
    query_codec,
    query_hash,
)
from consensus.ledger.states import ProvenStates, StatesChecker
from services.client.errors import Refused
from services.payee.resolver import Asked, Resolved, Told, judged_untrusted
from services.payee.sealing import ExchangeKey

FILE_BYTES_MAX = 2 * (STATES_BYTES_MAX + ANSWER_BYTES_MAX + 8 * 1_024)


class ShownFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: JSON, bytes in base64. ``exchange`` is the secret number of the query's key."""

    format: Literal["hansa-payee-1"]
    query: Annotated[bytes, msgspec.Meta(max_length=QUERY_BYTES_MAX)]
    exchange: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    answer: bytes
    states: bytes


class _Platform(msgspec.Struct, frozen=True):
    key: Key


def shown_file(asked: Asked, resolved: Resolved) -> bytes:
    """Return the file of a resolution."""
    file = ShownFile("hansa-payee-1", asked.raw, asked.exchange.secret(), resolved.answer, resolved.states)
    return msgspec.json.encode(file) + b"\n"


def check_shown_untrusted(data: bytes, genesis: Genesis) -> tuple[Query, Resolved]:
    """Check such a file, and return the query with what was shown, as the chain had it at ``height``.

    How old it is, the caller judges by ``time_ms``.

    Raises:
        PeerError: ``too_large``, ``malformed``, ``wrong_chain``, ``bad_certificate``, ``bad_proof``, ``bad_query``,
            ``bad_answer`` and others: the file shows nothing.
    """
    if len(data) > FILE_BYTES_MAX:
        raise PeerError("too_large", f"{len(data)} bytes, such a file has at most {FILE_BYTES_MAX}")
    try:
        file = msgspec.json.decode(data, type=ShownFile)
        exchange = ExchangeKey.from_secret(file.exchange)
    except (msgspec.MsgspecError, ValueError, RecursionError, LocalError) as error:
        raise PeerError("malformed", f"no file of a resolution: {error}") from None
    query = query_codec.decode_untrusted(file.query)
    states = StatesChecker(genesis).check_untrusted(file.states)
    if query.body.chain_id != genesis.chain_id() or query.body.exchange_key != exchange.public:
        raise PeerError("bad_query", "the query belongs to another chain, or to another key")
    _check_signed_untrusted(query, states, genesis)
    asked = Asked(query.body, query_hash(query.body), file.query, exchange)
    try:
        code, resolved = judged_untrusted(asked, Told(file.answer, file.states), states, "")
    except Refused as error:
        raise PeerError("bad_answer", error.message) from None
    if code:
        raise PeerError("bad_answer", f"the answer shows no payee: {code}")
    return query, resolved


def _check_signed_untrusted(query: Query, states: ProvenStates, genesis: Genesis) -> None:
    """Check that the platform signed a query, or let its key sign, by the key that it had on the chain.

    Raises:
        PeerError: ``bad_query``.
    """
    data, chain_id, delegation = states.stored(platform_key(query.body.server)), genesis.chain_id(), query.delegation
    if data is None:
        raise PeerError("bad_query", f"{query.body.server} is no platform")
    signer = key = msgspec.msgpack.decode(data, type=_Platform).key
    if delegation is not None:
        signed = delegation_hash(delegation.server, delegation.key, delegation.until_ms)
        is_own = delegation.server == query.body.server and delegation.until_ms >= states.time_ms
        platform = PublicKey.load_untrusted(key)
        if not is_own or not platform.verifies(delegation.signature, Purpose.PAYEE_PLATFORM, chain_id, signed):
            raise PeerError("bad_query", "the delegation is not the platform's, or not in force")
        signer = delegation.key
    verifier = PublicKey.load_untrusted(signer)
    if not verifier.verifies(query.signature, Purpose.PAYEE_QUERY, chain_id, query_hash(query.body)):
        raise PeerError("bad_query", "the query is not signed by the platform, nor its delegate")
