"""The socket of one's own node: its channels, and what goes out and comes in on them.

A message is durable at the node when :meth:`OwnerLink.send` returns, and what comes in is kept until
:meth:`OwnerLink.done`: so both may be asked again after any failure.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from services.client.answers import HexText, bytes_of, hex_of
from services.client.unix import CALL_TIMEOUT_MS, UnixLink


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what the node answers; fields it knows besides are passed over."""


class OwnerStatus(_Answer, frozen=True):
    """Whose node this is; ``channel_key`` and ``chain_id`` are 0x-hex."""

    node: str
    organisation: str
    channel_key: HexText
    chain_id: HexText
    height: int


class OwnerChannel(_Answer, frozen=True):
    """A channel of the node, see :class:`p2p.private.port.ChannelStatus`; ``channel`` is ``BANK/ISSUER``."""

    channel: str
    bank: str
    issuer: str
    epoch: int
    phase: str
    is_bank: bool
    peer: str
    connected: bool
    waiting: int
    waiting_bytes: int
    sent: int
    delivered: int
    received: int
    last_error: str


class OwnerSent(_Answer, frozen=True):
    """Under which number of which epoch a message stands in the outbox."""

    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class OwnerItem:
    """A message of the peer, or, with ``code``, word that our own message ``id`` will never be taken."""

    position: int
    channel: str
    epoch: int
    number: int
    payload: bytes
    id: str
    code: str


class _Item(_Answer, frozen=True):
    position: int
    channel: str
    epoch: int
    number: int
    payload: HexText
    id: str
    code: str


class _Items(_Answer, frozen=True):
    items: list[_Item]


class OwnerLink:
    """Asks a node on its owner's socket; ``run/owner.sock`` of its home. Errors as of :meth:`UnixLink.call`."""

    def __init__(self, path: Path) -> None:
        self._link = UnixLink(path, unreachable="node_unreachable", timeout="node_timeout")

    async def __aenter__(self) -> Self:
        """Give the link itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the next call makes new ones."""
        await self._link.aclose()

    async def status(self) -> OwnerStatus:
        """Return whose node it is."""
        return await self._link.call("owner_status", {}, OwnerStatus)

    async def channels(self) -> list[OwnerChannel]:
        """Return the node's channels."""
        return await self._link.call("owner_channels", {}, list[OwnerChannel])

    async def send(self, channel: str, message_id: str, payload: bytes) -> OwnerSent:
        """Put a message into the outbox; the same id again has the same number, whatever it holds.

        Raises:
            Refused: ``unknown_channel``, ``channel_closed``, ``channel_revoked``, ``outbox_full``, ``too_large``.
        """
        params = {"channel": channel, "id": message_id, "payload": hex_of(payload)}
        return await self._link.call("owner_send", params, OwnerSent)

    async def receive(self, after: int, *, wait_ms: int = 0, limit: int = 64) -> list[OwnerItem]:
        """Return what stands after a position, oldest first; waits up to ``wait_ms`` for the first."""
        params = {"after": after, "waitMs": wait_ms, "limit": limit}
        page = await self._link.call("owner_receive", params, _Items, timeout_ms=CALL_TIMEOUT_MS + wait_ms)
        return [
            OwnerItem(item.position, item.channel, item.epoch, item.number, bytes_of(item.payload), item.id, item.code)
            for item in page.items
        ]

    async def done(self, position: int) -> None:
        """Let the node forget everything up to a position."""
        await self._link.call("owner_done", {"position": position}, object)
