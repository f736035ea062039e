"""A message centre on a socket of its own in this process, and a peer that speaks frames by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from services.client.tasks import single_errors
from services.messages import wire
from services.messages.center import Center, address_of, listen
from services.messages.embedded import EmbeddedStore
from services.messages.line import Line, boot_id, connect, next_frame
from services.messages.metrics import CenterMetrics
from services.messages.queue import Queue, QueueSettings, open_queue
from services.messages.store import NewMessage

TOKEN = "a secret of the tests"
PATIENCE_S = 20.0
QUICK = QueueSettings(rate_per_s=1_000_000)


@dataclass(frozen=True, slots=True)
class RunningCenter:
    """A centre that serves, and how to stop it in order."""

    address: str
    queue: Queue
    center: Center
    stopping: trio.Event
    ended: trio.Event


@asynccontextmanager
async def running_center(
    folder: Path, settings: QueueSettings = QUICK, *, address: str = "127.0.0.1:0", token: str = TOKEN
) -> AsyncIterator[RunningCenter]:
    """Serve a queue with an embedded store for the time of the block."""
    with single_errors():
        async with open_queue(EmbeddedStore(folder), settings) as queue:
            with listen(address, token=token) as listening:
                center = Center(queue, token=token, metrics=CenterMetrics())
                running = RunningCenter(address_of(listening), queue, center, trio.Event(), trio.Event())

                async def serve() -> None:
                    await center.serve(listening, running.stopping)
                    running.ended.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve)
                    yield running
                    running.stopping.set()


class Peer:
    """Says what it is told to, and hands out every frame that comes."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._reader = wire.Reader(wire.center_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX)

    def say(self, *frames: wire.Frame) -> None:
        self.line.send(b"".join(wire.encode(frame) for frame in frames))

    async def hear(self) -> wire.FromCenter | None:
        """Return the next frame, None at the end."""
        with trio.fail_after(PATIENCE_S):
            return await next_frame(self.line, self._reader)

    async def hears_the_end(self) -> bool:
        return await self.hear() is None


@asynccontextmanager
async def peer_at(
    address: str, *, token: str = TOKEN, window: int = 0, boot: str | None = None, version: int = wire.VERSION
) -> AsyncIterator[Peer]:
    """Connect, say hello, and leave the answer to it to be heard."""
    async with raw_peer_at(address) as peer:
        peer.say(wire.Hello(version, "peer", token, boot_id() if boot is None else boot, window))
        yield peer


@asynccontextmanager
async def raw_peer_at(address: str) -> AsyncIterator[Peer]:
    """Connect and say nothing."""
    line = await connect(address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.run)
        try:
            yield Peer(line)
        finally:
            line.close()


def messages(count: int, *, first: int = 0, lanes: int = 1_000, size: int = 32) -> Sequence[NewMessage]:
    """Return messages ``m0``, ``m1``, … in lanes that come round."""
    return [
        NewMessage(f"m{number}", f"lane{number % lanes}", number.to_bytes(4) * (size // 4))
        for number in range(first, first + count)
    ]
