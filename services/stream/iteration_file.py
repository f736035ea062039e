"""An iteration in a file: what a service party hands to its watcher, and what anyone can check without any network.

JSON with bytes as 0x-hex: the stream's terms, the last iteration as it was signed, the key that was pinned at the
opening, and, where it was at hand, the proof that the chain has that key and those terms for the stream. Pure.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from consensus.ledger.codec import decode_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PublicKey
from consensus.ledger.proof import StateClaim, Verified, proof_from_json_untrusted, verify_proof_untrusted
from consensus.ledger.streams import (
    Iteration,
    StreamRecord,
    Terms,
    read_iteration_untrusted,
    read_record,
    stream_id,
    stream_key,
    terms_hash,
)

FORMAT: Final = "hansa-stream-1"
FILE_BYTES_MAX = 1024 * 1024

_Hex = Annotated[str, msgspec.Meta(pattern=r"^0x(?:[0-9a-f]{2})*\Z")]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    format: Literal["hansa-stream-1"]
    chain_id: _Hex
    stream: _Hex
    terms: dict[str, int | str]
    payer_key: _Hex
    raw: _Hex
    opening: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """What a file carries.

    Args:
        terms: make the stream's id with its payer, service party and number.
        payer_key: compressed, pinned at the opening.
        raw: the iteration's bytes.
        opening: proof of the stream's state as ``state_get`` gives it, None where there is none.
    """

    terms: Terms
    payer_key: bytes
    raw: bytes
    opening: dict[str, object] | None = None

    @property
    def stream(self) -> bytes:
        """The stream's id."""
        return stream_id(self.terms.payer, self.terms.service, self.terms.number)


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that holds: the iteration, and, where the opening is proven, the stream as it then was and by what."""

    carried: Carried
    iteration: Iteration
    record: StreamRecord | None
    verified: Verified | None


def encode_carried(carried: Carried, chain_id: bytes) -> bytes:
    """Return the file's bytes, indented for people."""
    file = _File(
        format=FORMAT,
        chain_id=_hex(chain_id),
        stream=_hex(carried.stream),
        terms=terms_json(carried.terms),
        payer_key=_hex(carried.payer_key),
        raw=_hex(carried.raw),
        opening=carried.opening,
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def decode_carried_untrusted(data: bytes) -> tuple[Carried, bytes]:
    """Return what a file says and the chain id it names; nothing is checked but its form.

    Raises:
        PeerError: ``too_large``, ``malformed``; ``wrong_stream`` where the terms make another stream.
    """
    if len(data) > FILE_BYTES_MAX:
        raise PeerError("too_large", f"the file of an iteration has at most {FILE_BYTES_MAX} bytes")
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("malformed", f"no file of an iteration: {error}") from None
    carried = Carried(terms_from_json_untrusted(file.terms), _bytes(file.payer_key), _bytes(file.raw), file.opening)
    if _hex(carried.stream) != file.stream:
        raise PeerError("wrong_stream", "the terms are another stream's")
    return carried, _bytes(file.chain_id)


def check_carried_untrusted(data: bytes, genesis: Genesis) -> Checked:
    """Check a file offline: that the iteration is its stream's, and that its key is the one on the chain if proven.

    Raises:
        PeerError: ``too_large``, ``malformed``, ``wrong_chain``, ``wrong_stream``, ``bad_key``, those of
            ``read_iteration_untrusted`` and of ``verify_proof_untrusted``; ``bad_terms`` where the chain has others.
    """
    carried, chain_id = decode_carried_untrusted(data)
    if chain_id != genesis.chain_id():
        raise PeerError("wrong_chain", f"the iteration belongs to chain {_hex(chain_id)[:18]}…")
    key = PublicKey.load_untrusted(carried.payer_key)
    iteration = read_iteration_untrusted(
        carried.raw, chain_id=genesis.chain_id(), payer=carried.terms.payer, stream=carried.stream, key=key
    )
    if carried.opening is None:
        return Checked(carried, iteration, None, None)
    verified = verify_proof_untrusted(proof_from_json_untrusted(carried.opening), genesis)
    claim = verified.claim
    if not isinstance(claim, StateClaim) or claim.key != stream_key(carried.stream).encode() or claim.value is None:
        raise PeerError("bad_proof", "the proof speaks of something else than this stream")
    record = read_record(decode_untrusted(claim.value))
    if record.payer_key != carried.payer_key:
        raise PeerError("bad_signature", "signed by another key than the one that the chain has for the stream")
    if record.terms_hash != terms_hash(carried.terms):
        raise PeerError("bad_terms", "the chain has other terms for the stream")
    return Checked(carried, iteration, record, verified)


def terms_json(terms: Terms) -> dict[str, int | str]:
    """Return terms as JSON: names in camelCase, addresses in 0x-hex."""
    fields = {_camel(name): getattr(terms, name) for name in Terms.__struct_fields__}
    return {name: _hex(value) if isinstance(value, bytes) else value for name, value in fields.items()}


def terms_from_json_untrusted(found: dict[str, int | str]) -> Terms:
    """Return the terms that :func:`terms_json` has written.

    Raises:
        PeerError: ``malformed``.
    """
    names = {_camel(name): name for name in Terms.__struct_fields__}
    if set(found) != set(names):
        odd = ", ".join(sorted(set(found) ^ set(names)))[:200]
        raise PeerError("malformed", f"terms have other fields: {odd}")
    try:
        values = [
            _bytes(str(found[shown])) if name in ("payer", "service") else found[shown] for shown, name in names.items()
        ]
        return msgspec.convert(values, Terms)
    except (msgspec.ValidationError, ValueError) as error:
        raise PeerError("malformed", f"no terms of a stream: {error}") from None


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
