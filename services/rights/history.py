"""A user's whole rights history as a file, fetched from any node and checked offline by a supervisor.

The file holds every entry of one user at one business server, and one proof of what the chain's state says of
that user: how many entries there are, the head of their hash chain, and the balance. Whoever holds the genesis
document checks three things: the proof; that hashing the entries one after the other ends in the proven head after
the proven count, so that none is missing, added, changed or moved; and that their changes add up to the proven balance.
A user without history is proven by the absence of the record.

The file is a JSON object; the entries are as the contract's query ``history`` answers them:

    format    "hansa-rights-history-1"
    user      the pseudonym
    server    the business server's account, 0x-hex
    entries   [{number, type, reference, event, changes, height, timeMs}], in order from number 0
    proof     the proof file (:mod:`consensus.ledger.proof`) of the state key ``rights/user/USER/SERVER``
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from consensus.ledger.codec import INTEGER_MAX, INTEGER_MIN, Record, RecordCodec, Value, encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.ids import ADDRESS_BYTES, HASH_BYTES, tagged_hash
from consensus.ledger.merkle import HashBytes
from consensus.ledger.proof import StateClaim, Verified, proof_from_json_untrusted, verify_proof_untrusted
from services.client.answers import StateAnswer, bytes_of, hex_of
from services.client.connection import Parameters
from services.client.reader import Reader
from services.rights.events import Id

ENTRIES_MAX = 200_000
FILE_BYTES_MAX = 64 * 1024 * 1024
PAGE_ENTRIES = 100
SHORT_PAGES_MAX = 100
"""How often a node may answer too few entries, because it is behind, before the fetch is given up."""

FORMAT: Final = "hansa-rights-history-1"
FIGURES = ("created", "reserved", "available", "redeemed", "revoked", "clawedBack", "debt")
"""What a balance consists of, in the order in which the contract keeps it."""

_Natural = Annotated[int, msgspec.Meta(ge=0, le=INTEGER_MAX)]
_Change = Annotated[int, msgspec.Meta(ge=INTEGER_MIN, le=INTEGER_MAX)]
_Changes = Annotated[dict[Literal[FIGURES], _Change], msgspec.Meta(max_length=len(FIGURES))]  # type: ignore[valid-type]
_AddressHex = Annotated[str, msgspec.Meta(pattern=rf"^0x[0-9a-f]{{{2 * ADDRESS_BYTES}}}\Z")]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One change of a user's balance: by how many smallest units each figure changes, and which event of what did it.

    ``height`` and ``time_ms`` are the block's.
    """

    number: _Natural
    type: str
    reference: str
    event: str
    changes: _Changes
    height: _Natural
    time_ms: _Natural


class HistoryFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A history file, decoded and not yet verified."""

    format: Literal["hansa-rights-history-1"]
    user: Id
    server: _AddressHex
    entries: Annotated[list[Entry], msgspec.Meta(max_length=ENTRIES_MAX)]
    proof: dict[str, object]


@dataclass(frozen=True, slots=True)
class History:
    """What a history file has proven: all that happened to a user's rights up to the block at ``height``.

    ``balance`` is by name of the figure, in smallest units; ``time_ms`` and ``signers`` are those of the block
    that certifies it.
    """

    user: str
    server: bytes
    entries: tuple[Entry, ...]
    balance: dict[str, int]
    height: int
    time_ms: int
    signers: tuple[str, ...]


class _User(Record, frozen=True):
    """What the contract keeps of a user; ``newest`` repeats its last entries."""

    count: _Natural
    head: HashBytes
    balance: Annotated[list[int], msgspec.Meta(min_length=len(FIGURES), max_length=len(FIGURES))]
    newest: list[object]


_user_codec: RecordCodec[_User] = RecordCodec(_User, bytes_max=64 * 1024)
_nobody = _User(0, bytes(HASH_BYTES), [0] * len(FIGURES), [])
_file_decoder = msgspec.json.Decoder(HistoryFile)


async def fetch_history(client: Reader, user: str, server: bytes) -> HistoryFile:
    """Return a user's whole history at a business server (20 bytes), as of the chain's newest block; it is checked.

    Raises:
        LocalError: ``bad_id`` for what no user is called; ``history_too_long`` above 200,000 entries.
        Refused, Unreachable: as for any request.
        PeerError: what the nodes answer does not hold, as in :func:`verify_history`.
    """
    try:
        msgspec.convert(user, Id)
    except msgspec.ValidationError:
        raise LocalError("bad_id", f"no user is called {user!r}") from None
    key = _state_key(user, server)
    answer = await client.request("state_get", _state_request(key, 0), StateAnswer)
    held, verified = _read_proof_untrusted(answer.proof, key, client.genesis)
    if verified.header.sealed_height < answer.height:
        answer = await client.request("state_get", _state_request(key, answer.height), StateAnswer)
        held, verified = _read_proof_untrusted(answer.proof, key, client.genesis)
    if held.count > ENTRIES_MAX:
        raise LocalError("history_too_long", f"{held.count} entries; a file holds at most {ENTRIES_MAX}")
    entries: list[Entry] = []
    short_pages = 0
    while len(entries) < held.count:
        wanted = min(PAGE_ENTRIES, held.count - len(entries))
        page = await _fetch_page(client, user, server, len(entries), wanted)
        entries += page
        if len(page) < wanted:
            short_pages += 1
            if short_pages > SHORT_PAGES_MAX:
                raise PeerError("history_broken", f"nodes answer {len(entries)} entries where {held.count} are proven")
            client.leave_node()
            await client.pause()
    file = HistoryFile(FORMAT, user, hex_of(server), entries, answer.proof)
    verify_history(file, client.genesis)
    return file


def verify_history(file: HistoryFile, genesis: Genesis) -> History:
    """Check a history file against genesis and return what it proves; that it is whose it should be is for the caller.

    Raises:
        PeerError: ``wrong_chain``, ``bad_certificate``, ``bad_proof`` or ``malformed`` about the proof;
            ``history_broken`` where the entries are not exactly those that the proof speaks of.
    """
    server = bytes_of(file.server)
    held, verified = _read_proof_untrusted(file.proof, _state_key(file.user, server), genesis)
    if len(file.entries) != held.count:
        raise PeerError("history_broken", f"the file has {len(file.entries)} entries, the chain {held.count}")
    head, figures = bytes(HASH_BYTES), dict.fromkeys(FIGURES, 0)
    for number, entry in enumerate(file.entries):
        if entry.number != number:
            raise PeerError("history_broken", f"entry {entry.number} stands where {number} belongs")
        head = _next_head(head, entry)
        for name, change in entry.changes.items():
            figures[name] += change
    if head != held.head:
        raise PeerError("history_broken", "the entries do not hash to the proven head: not all are as they were made")
    if [*figures.values()] != held.balance:
        raise PeerError("history_broken", "the changes do not add up to the proven balance")
    return History(
        user=file.user,
        server=server,
        entries=tuple(file.entries),
        balance=figures,
        height=verified.header.sealed_height,
        time_ms=verified.time_ms,
        signers=verified.signers,
    )


def encode_history(file: HistoryFile) -> bytes:
    """Return the file's bytes, indented for people."""
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def decode_history_untrusted(data: bytes) -> HistoryFile:
    """Decode a history file.

    Raises:
        PeerError: ``too_large`` or ``malformed``.
    """
    if len(data) > FILE_BYTES_MAX:
        raise PeerError("too_large", f"{len(data)} bytes, a history file has at most {FILE_BYTES_MAX}")
    try:
        return _file_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None


def save(file: HistoryFile, path: Path) -> None:
    """Write the file; it replaces what was there."""
    path.write_bytes(encode_history(file))


def load_untrusted(path: Path) -> HistoryFile:
    """Read a file that anyone may have made; errors as for :func:`decode_history_untrusted`, and of the disk."""
    with path.open("rb") as stream:
        return decode_history_untrusted(stream.read(FILE_BYTES_MAX + 1))


def _state_key(user: str, server: bytes) -> str:
    return f"rights/user/{user}/{server.hex()}"


def _state_request(key: str, height_min: int) -> Parameters:
    return {"key": key, "prove": True, "minHeight": height_min}


def _read_proof_untrusted(document: dict[str, object], key: str, genesis: Genesis) -> tuple[_User, Verified]:
    """Return what a proof says that the chain keeps under a user's key."""
    verified = verify_proof_untrusted(proof_from_json_untrusted(document), genesis)
    claim = verified.claim
    if not isinstance(claim, StateClaim) or claim.key != key.encode():
        raise PeerError("bad_proof", f"the proof does not speak of {key}")
    return (_nobody if claim.value is None else _user_codec.decode_untrusted(claim.value)), verified


async def _fetch_page(client: Reader, user: str, server: bytes, start: int, limit: int) -> list[Entry]:
    """Return up to ``limit`` entries from number ``start`` on, as one node has them."""
    arguments: dict[str, Value] = {"user": user, "start": start, "limit": limit, "server": server}
    answer = await client.query("rights", "history", arguments)
    try:
        return msgspec.convert(answer, list[Entry])[:limit]
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"the contract's history is of another shape: {error}") from None


def _next_head(head: bytes, entry: Entry) -> bytes:
    """Return the hash chain's head after an entry, as the contract computes it."""
    changes: dict[str, Value] = {**entry.changes}
    fields: list[Value] = [entry.type, entry.reference, entry.event, changes, entry.height, entry.time_ms]
    return tagged_hash("contract-data", encode([head, fields]))
