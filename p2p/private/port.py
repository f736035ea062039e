"""What the node tells private channels, what it gives them, and what it gets from them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from consensus.ledger.ids import NodeName

PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
"""Largest payload of one message."""


class ChannelName(NamedTuple):
    """A channel: the names of the two organisations. Written ``BANK/ISSUER``."""

    bank: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.bank}/{self.issuer}"


class Phase(StrEnum):
    """What the registry lets through: all; in the grace time after a revocation only what goes to the bank; nothing."""

    OPEN = "open"
    GRACE = "grace"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class ChannelFacts:
    """A channel of ours as the newest state has it.

    Args:
        name: the two organisations.
        epoch: counts from 1, one more each time the channel is opened anew; messages of another one are refused.
        phase: what may pass now.
        is_bank: we are the bank's side.
        peer: the other side's node.
        peer_key: its channel key, compressed, 33 bytes: signs its messages and receipts.
    """

    name: ChannelName
    epoch: int
    phase: Phase
    is_bank: bool
    peer: NodeName
    peer_key: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something for the owner's programs, kept until they are done with it; ``position`` ascends over all channels.

    A message of the peer has a payload and no ``code``. A ``code`` says that our own message ``number`` with this
    ``id`` was not and will never be taken by the peer (``channel_closed``, ``channel_revoked``).
    """

    position: int
    channel: ChannelName
    epoch: int
    number: int
    payload: bytes
    id: str
    code: str


@dataclass(frozen=True, slots=True)
class ChannelStatus:
    """How a channel stands, for people and ``channel_list``.

    ``waiting`` messages of ``waiting_bytes`` are not yet received by the peer; ``sent``, ``delivered`` (receipt
    checked) and ``received`` are the highest numbers of this epoch.
    """

    facts: ChannelFacts
    is_connected: bool
    waiting: int
    waiting_bytes: int
    sent: int
    delivered: int
    received: int
    last_error: str


class PrivateStore(Protocol):
    """An ordered map of bytes whose values lie encrypted on the disk."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the pairs whose keys begin with ``prefix``, from ``prefix + start`` on, in order of the keys."""

    async def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write all or nothing, and return once it is on the disk; None removes a key.

        Raises:
            StorageError: the disk refuses; the node has to stop.
        """
