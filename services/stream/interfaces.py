"""The borders of the streams' programs: how payer and service party are joined, and what stands at the meter."""

from dataclasses import dataclass
from typing import Protocol

from services.stream.wire import Said, Told


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter says: ``units`` in all; ``is_done`` once nothing more will be wanted of it."""

    units: int
    is_done: bool


class Link(Protocol):
    """A payer's way to a service party: WebSocket frames, HTTP requests or a private channel.

    Messages may be lost with the connection; whoever connects again says ``Hello`` and learns from ``Standing`` what
    the other side has.
    """

    async def send(self, messages: list[Said]) -> None:
        """Bring messages over, in their order.

        Raises:
            Unreachable: ``service_unreachable``; what was sent may have come over or not.
        """

    async def receive(self) -> list[Told]:
        """Wait for messages and return those that are there; errors as of :meth:`send`, and of bad bytes."""


class Connection(Protocol):
    """The service party's end of a :class:`Link`."""

    async def send(self, messages: list[Told]) -> None:
        """Bring messages over, in their order.

        Raises:
            Unreachable: ``payer_unreachable``: the connection is over.
        """

    async def receive(self) -> list[Said]:
        """Wait for a frame and return its messages; errors as of :meth:`send`, and of bad bytes."""


class Meter(Protocol):
    """What supplies, and counts what it has supplied."""

    async def read(self, stream: bytes, allowed_units: int) -> Reading:
        """Allow this many units in all, and return what was supplied in all until now, which is never more.

        A stream's count never falls, also over restarts. Units are those of ``Terms.what``.

        Raises:
            Unreachable: ``meter_unreachable``.
            PeerError: ``bad_meter``.
            StorageError: ``disk_failed``, of a meter that counts here.
        """
