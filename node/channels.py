"""Which private channels this node has, as the newest state says, and when that changes by itself.

The contract ``cooperation`` keeps parties and channels; here they are read for ``p2p.private``, as :mod:`node.members`
reads membership. A record that is none of the expected shape counts as absent: what members have agreed to write
must not end a node. Deadlines are block times: a channel expires, and its grace time ends, with the first block
whose time has reached them, on every node alike.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec
import structlog

from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PUBLIC_KEY_BYTES
from contracts.runtime.state import StateReader
from p2p.private.port import ChannelFacts, ChannelName, Phase

CHANNEL_PREFIX = b"cooperation/channel/"
PARTY_PREFIX = b"cooperation/party/"
SCAN_PAGE = 256

T = TypeVar("T")

log = structlog.get_logger("node")

_Key = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]


class ChannelRecord(msgspec.Struct, frozen=True, rename="camel"):
    """A channel as the registry has it; times are ms UTC of blocks."""

    bank: str
    issuer: str
    epoch: Annotated[int, msgspec.Meta(ge=1)]
    status: Literal["OPEN", "REVOKED"]
    bank_node: str
    issuer_node: str
    opened_ms: int
    expires_ms: int
    grace_until_ms: int

    def phase(self, now_ms: int) -> Phase:
        """Return what may pass at this block time."""
        if self.status == "OPEN" and now_ms < self.expires_ms:
            return Phase.OPEN
        return Phase.GRACE if now_ms < self.grace_until_ms else Phase.CLOSED

    def deadlines(self) -> tuple[int, ...]:
        """Return the times at which the phase may change without a transaction."""
        return (self.expires_ms, self.grace_until_ms)


class _Party(msgspec.Struct, frozen=True, rename="camel"):
    node: str
    channel_key: _Key


_channel_decoder = msgspec.msgpack.Decoder(ChannelRecord)
_party_decoder = msgspec.msgpack.Decoder(_Party)


@dataclass(frozen=True, slots=True)
class ChannelRegistry:
    """All channels of the chain by name, and where and with which key each party answers."""

    channels: Mapping[ChannelName, ChannelRecord]
    _parties: Mapping[str, _Party]

    @staticmethod
    def read(state: StateReader) -> "ChannelRegistry":
        """Return what the state says."""
        parties = dict(_records(state, PARTY_PREFIX, _party_decoder))
        return ChannelRegistry(read_channels(state), parties)

    @staticmethod
    def touched_by(writes: Mapping[bytes, bytes | None]) -> bool:
        """Tell whether a block with these writes may have changed a channel."""
        return any(key.startswith((CHANNEL_PREFIX, PARTY_PREFIX)) for key in writes)

    def facts(self, node: NodeName, now_ms: int) -> tuple[ChannelFacts, ...]:
        """Return the channels that end at this node, by name, as they are at this block time.

        A channel holds between the two nodes that it was opened for; a party that answers elsewhere now has no key
        there, so it is closed until it is opened anew.
        """
        found: list[ChannelFacts] = []
        for name, record in sorted(self.channels.items()):
            if node not in (record.bank_node, record.issuer_node):
                continue
            is_bank = node == record.bank_node
            peer = record.issuer_node if is_bank else record.bank_node
            party = self._parties.get(name.issuer if is_bank else name.bank)
            if party is None or record.bank_node == record.issuer_node:
                continue
            phase = record.phase(now_ms) if party.node == peer else Phase.CLOSED
            found.append(ChannelFacts(name, record.epoch, phase, is_bank, NodeName(peer), party.channel_key))
        return tuple(found)

    def key_of(self, node: NodeName) -> bytes | None:
        """Return the channel key under which a node's organisation is a party, None when it is none."""
        return next((party.channel_key for party in self._parties.values() if party.node == node), None)

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """Return the first block time after this one at which a channel may change by itself."""
        later = [time for record in self.channels.values() for time in record.deadlines() if time > now_ms]
        return min(later, default=None)


def read_channels(state: StateReader) -> dict[ChannelName, ChannelRecord]:
    """Return all channels that were ever opened, in order of their names."""
    found: dict[ChannelName, ChannelRecord] = {}
    for text, record in _records(state, CHANNEL_PREFIX, _channel_decoder):
        name = ChannelName(record.bank, record.issuer)
        if text == str(name):
            found[name] = record
    return found


def _records(state: StateReader, prefix: bytes, decoder: msgspec.msgpack.Decoder[T]) -> Iterator[tuple[str, T]]:
    """Yield all records under a prefix that have the expected shape."""
    start = prefix
    while True:
        page = state.scan(prefix, start, SCAN_PAGE)
        for key, data in page:
            try:
                yield key[len(prefix) :].decode(), decoder.decode(data)
            except (msgspec.MsgspecError, ValueError):
                log.warning("channel record not readable", key=key.decode(errors="replace"))
        if len(page) < SCAN_PAGE:
            return
        start = page[-1][0] + b"\0"
