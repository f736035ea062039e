"""A chain, a message centre and rights servers in one process, for tests of the rights server.

The chain is real, but for its consensus: one node decides alone, its blocks carry real certificates.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import trio

from consensus.ledger.codec import Value
from consensus.ledger.keys import PrivateKey
from services.client.client import Client
from services.client.keystore import Signer
from services.messages.embedded import EmbeddedStore
from services.messages.port import MessageCenter, Stats
from services.messages.queue import Queue, QueueSettings, open_queue
from services.messages.store import NewMessage, Record
from services.rights.events import Event, Kind, SignedEvent, sign_events, signed_codec
from services.rights.server import ServerSettings, serve
from tests.client.support import CONSORTIUM, SoloNode, client_of, running, signer

EVENT_KEY = PrivateKey.from_secret(77)
SHOP = signer("shop")
RELAY = signer("user-b")
WAIT_S = 60
LOOK_AGAIN_S = 0.02


def settings_of(folder: Path, name: str = "server-1", account: Signer = RELAY, **changes: object) -> ServerSettings:
    """Return a rights server's settings for a world."""
    return ServerSettings(
        name=name,
        run=folder / f"{name}-{account.address.hex()}",
        genesis=CONSORTIUM.genesis,
        nodes=(),
        account=account,
        center="",
        center_token="",
        **changes,  # type: ignore[arg-type]
    )


@dataclass
class World:
    """What the tests hold; ``client`` reads and writes the chain beside the rights servers."""

    folder: Path
    node: SoloNode
    client: Client
    queue: Queue
    nursery: trio.Nursery
    events: list[Event] = field(default_factory=list)

    async def prepare(self, *, quota: int = 10_000, rule: tuple[int, int] = (10_000, 1_000)) -> None:
        """Open the campaign ``summer``, name the event key and the rights server, price coffee at 30."""
        await self.call("open_campaign", campaign="summer", quota=quota, order_max=rule[1], share_basis_points=rule[0])
        await self.call("set_price", item="coffee", price=30)
        await self.appoint(RELAY)

    async def appoint(self, *accounts: Signer) -> None:
        """Name the rights servers of the shop."""
        await self.call(
            "appoint",
            event_keys=[EVENT_KEY.public.compressed],
            rights_servers=[account.address for account in accounts],
        )

    async def call(self, method: str, **arguments: Value) -> Value:
        """Call the contract as the shop."""
        return (await self.client.call(SHOP, "rights", method, arguments)).check().value()

    async def query(self, method: str, **arguments: Value) -> dict[str, Value]:
        """Ask the contract."""
        answer = await self.client.query("rights", method, arguments)
        assert isinstance(answer, dict)
        return answer

    async def publish(self, *events: Event, key: PrivateKey = EVENT_KEY) -> list[SignedEvent]:
        """Sign events as one batch and publish them."""
        signed = sign(*events, key=key)
        await self.queue.publish([message(item) for item in signed])
        self.events += events
        return signed

    def start(self, **changes: object) -> "RunningServer":
        """Run a rights server."""
        server = RunningServer(self, settings_of(self.folder, **changes))  # type: ignore[arg-type]
        self.nursery.start_soon(server.run)
        return server

    async def drained(self) -> Stats:
        """Return the queue's figures once nothing waits."""
        with trio.fail_after(WAIT_S):
            while (stats := await self.queue.stats()).waiting:
                await pause()
        return stats

    async def ends(self, *keys: str) -> list[str]:
        """Return how messages ended: state, and the first word of what was said, which is a height when done."""
        records = await self.queue.find(list(keys))
        return [said(record) for record in records if record is not None]


class RunningServer:
    """A rights server that runs in this process."""

    def __init__(self, world: World, settings: ServerSettings, center: MessageCenter | None = None) -> None:
        self._world = world
        self._settings = settings
        self._center = center or world.queue
        self.stopping = trio.Event()
        self.stop_timeout_s = float(WAIT_S)
        self.ended = trio.Event()
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            async with client_of(self._world.node) as client:
                await serve(self._settings, self._center, client, self.stopping, stop_timeout_s=self.stop_timeout_s)
        self.ended.set()

    async def stop(self) -> None:
        """End it in order."""
        self.stopping.set()
        await self.ended.wait()

    async def kill(self) -> None:
        """End it at once, as far as that goes in one process: nothing more is settled or submitted."""
        self.scope.cancel()
        await self.ended.wait()


def sign(*events: Event, key: PrivateKey = EVENT_KEY) -> list[SignedEvent]:
    """Return events signed by the shop as one batch."""
    return sign_events(key, CONSORTIUM.genesis.chain_id(), SHOP.address, events)


def message(signed: SignedEvent) -> NewMessage:
    """Return the message that carries an event."""
    event = signed.event
    lane = f"redemption:{event.reference}" if event.kind in (Kind.REDEEM, Kind.REVERSE) else f"order:{event.reference}"
    mark = sha256(event.key.encode()).digest()
    return NewMessage(event.key, lane, signed_codec.encode(signed), mark)


def said(record: Record) -> str:
    """Return a message's end in two words."""
    word = record.detail.split(" ")[0]
    return f"{record.state.value} {'' if word.isdecimal() else word}".strip()


def create(order: str, amount: int = 100, *, user: str = "u1", campaign: str = "summer") -> Event:
    """Return the creation of an order."""
    return Event(Kind.CREATE, order, "1", user, campaign, amount, [], 1_000)


def about(kind: Kind, order: str, amount: int = 0, number: str = "1") -> Event:
    """Return an event about an order or a redemption; 0 is all that is left."""
    return Event(kind, order, number, "", "", amount, [], 1_000)


def redeem(redemption: str, amount: int = 0, *, user: str = "u1", items: Sequence[tuple[str, int]] = ()) -> Event:
    """Return a redemption."""
    return Event(Kind.REDEEM, redemption, "1", user, "", amount, list(items), 1_000)


async def pause() -> None:
    """Let other tasks go on for a moment."""
    with trio.move_on_after(LOOK_AGAIN_S):
        await trio.sleep_forever()


@asynccontextmanager
async def world_in(folder: Path, queue: QueueSettings | None = None) -> AsyncIterator[World]:
    """Give a chain and a message centre for the time of the block, and end the rights servers after it."""
    settings = queue or QueueSettings(rate_per_s=100_000, backoff_first_ms=20, backoff_max_ms=100)
    node = SoloNode(folder / "node")
    async with (
        running(node),
        client_of(node) as client,
        open_queue(EmbeddedStore(folder / "queue"), settings) as opened,
        trio.open_nursery() as nursery,
    ):
        yield World(folder, node, client, opened, nursery)
        nursery.cancel_scope.cancel()
