"""A store that remembers each durable moment, and two nodes with real TLS and one channel between them."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import trio
import trio.testing

from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from p2p.network import Network
from p2p.private.channel_machine import ChannelLimits
from p2p.private.network import PrivateConfig, PrivateNetwork
from p2p.private.port import ChannelFacts, ChannelName, ChannelStatus, Delivery, Phase
from p2p.session import SessionLimits
from tests.p2p.support import CHAIN, Certificates, Inbox, make_network

NAME = ChannelName("bank-a", "issuer-c")
BANK, ISSUER = NodeName("a"), NodeName("b")
KEYS = {BANK: PrivateKey.from_secret(11), ISSUER: PrivateKey.from_secret(12), NodeName("c"): PrivateKey.from_secret(13)}


class MemoryStore:
    """An ordered map; what was written stays when the process that wrote it is gone."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.writes = 0

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        return self.data.get(key)

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs in order."""
        keys = sorted(key for key in self.data if key.startswith(prefix) and key >= prefix + start)
        yield from ((key, self.data[key]) for key in keys)

    def put(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write all at once."""
        for key, value in batch:
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value
        self.writes += 1

    async def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Write all at once, after letting others run."""
        await trio.lowlevel.checkpoint()
        self.put(batch)


def facts_of(
    name: ChannelName = NAME,
    *,
    is_bank: bool,
    epoch: int = 1,
    phase: Phase = Phase.OPEN,
    peer: NodeName | None = None,
    key: PrivateKey | None = None,
) -> ChannelFacts:
    """Return what the registry says to one side of a channel between the nodes a (bank) and b (issuer)."""
    peer = peer or (ISSUER if is_bank else BANK)
    return ChannelFacts(name, epoch, phase, is_bank, peer, (key or KEYS[peer]).public.compressed)


class Site:
    """One node: a network, its private side and a store that outlives it."""

    def __init__(
        self,
        certificates: Certificates,
        name: str,
        store: MemoryStore,
        *,
        port: int,
        peers: dict[str, int],
        key: PrivateKey | None = None,
        limits: ChannelLimits | None = None,
        queue_bytes_max: int = 32 * 1024 * 1024,
        **settings: object,
    ) -> None:
        self.name = NodeName(name)
        self.inbox = Inbox()
        config = PrivateConfig(
            name=self.name,
            chain_id=CHAIN,
            key=key or KEYS[self.name],
            limits=limits or ChannelLimits(),
            session=SessionLimits(clock_ms=0, queue_bytes_max=queue_bytes_max),
            second_dial_ms=50,
            back_off_ms_max=100,
        )
        self.private = PrivateNetwork(config, store, random=Random(name))
        self.network: Network = make_network(
            certificates,
            name,
            self.inbox,
            port=port,
            peers=peers,
            private=self.private,
            **settings,  # type: ignore[arg-type]
        )

    @asynccontextmanager
    async def running(self, *facts: ChannelFacts) -> AsyncIterator["Site"]:
        """Run until the block ends, then stop as if killed."""
        if facts:
            self.private.channels_changed(facts)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: self.network.run(task_status=task_status))
            await nursery.start(lambda task_status: self.private.run(self.network, task_status=task_status))
            yield self
            nursery.cancel_scope.cancel()

    def status(self, name: ChannelName = NAME) -> ChannelStatus:
        """Return how the channel stands."""
        [status] = [status for status in self.private.status() if status.facts.name == name]
        return status

    async def collect(self, count: int, *, after: int = 0, is_done: bool = False) -> list[Delivery]:
        """Wait for so many deliveries and return them; forget them at the node when asked to."""
        found: list[Delivery] = []
        with trio.fail_after(30):
            while len(found) < count:
                await self.private.wait(found[-1].position if found else after)
                found += self.private.receive(
                    found[-1].position if found else after, limit=256, bytes_max=8 * 1024 * 1024
                )
            if is_done:
                await self.private.done(found[-1].position)
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, looked at whenever trio has run everything else."""
        await eventually(condition)


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 30) -> None:
    """Wait until a condition holds."""
    with trio.fail_after(timeout_s):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.001)


def payloads(deliveries: Sequence[Delivery]) -> list[bytes]:
    """Return what was delivered."""
    return [delivery.payload for delivery in deliveries]
