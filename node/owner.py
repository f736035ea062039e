"""What the owner's programs ask their own node for: private channels, over ``run/owner.sock``.

The socket has mode 0600: whoever may open it is the institution. Everything is asked from below: programs send, and
poll for what came from a position that they keep themselves, so that either may die at any point.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelName, ChannelStatus, Delivery

PAGE_ITEMS_MAX = 1_000
PAGE_BYTES_MAX = PAYLOAD_BYTES_MAX
"""Payloads of one page; as hex twice that, and within what an answer may hold. A single one always fits."""
WAIT_MS_MAX = 60_000
"""Longest time that a poll waits for something to come."""
BODY_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX + 64 * 1024
"""Longest body that the socket takes: the largest payload in hex, and what stands around it."""


class PrivateDesk(Protocol):
    """Private channels as the owner's methods see them."""

    async def send(self, channel: ChannelName, message_id: str, payload: bytes) -> tuple[int, int]:
        """Put a message into the outbox and return its epoch and number once it is on the disk.

        The same id again gives the same answer, whatever it holds.

        Raises:
            LocalError: ``unknown_channel``, ``channel_closed``, ``channel_revoked``, ``outbox_full``, ``too_large``.
        """

    def receive(self, after: int, *, limit: int, bytes_max: int) -> list[Delivery]:
        """Return what came above a position, oldest first, up to these bounds but at least one.

        Raises:
            LocalError: ``position_ahead`` for one that was never given, as after the loss of the private database.
        """

    async def wait(self, after: int) -> None:
        """Return once something above the position is there."""

    async def done(self, position: int) -> None:
        """Forget everything up to a position, durably.

        Raises:
            LocalError: ``position_ahead``.
        """

    def status(self) -> Sequence[ChannelStatus]:
        """Return our channels, by name."""


@dataclass(frozen=True, slots=True)
class OwnerDesk:
    """The owner's side of a node.

    Args:
        path: of the socket.
        organisation: whose node it is.
        channel_key: public key that signs this node's messages and receipts, compressed, 33 bytes.
        private: the channels.
        stopping: set when the node stops; polls end with it.
    """

    path: Path
    organisation: str
    channel_key: bytes
    private: PrivateDesk
    stopping: trio.Event

    async def poll(self, after: int, *, limit: int, wait_ms: int) -> list[Delivery]:
        """Return what came above a position; waits so long for the first, and is empty when none came."""
        found = self.private.receive(after, limit=limit, bytes_max=PAGE_BYTES_MAX)
        if found or not wait_ms or self.stopping.is_set():
            return found
        with trio.move_on_after(wait_ms / 1_000):
            await _first_of(lambda: self.private.wait(after), self.stopping.wait)
        return self.private.receive(after, limit=limit, bytes_max=PAGE_BYTES_MAX)


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when one of them does."""

    async def run(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(run, wait)
