"""A service party's real parts over a contract in memory: store, desk, pages, WebSockets; only nodes are missing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio
from anycorn.typing import ASGIFramework

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import Address, ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.receipt import OK
from consensus.ledger.streams import Terms
from consensus.ledger.transaction import decode_transaction_untrusted
from services.client.errors import Unreachable
from services.local import web
from services.local.pages import LOOPBACK_NAMES
from services.stream.desk import Desk
from services.stream.interfaces import Reading
from services.stream.metrics import ServiceMetrics
from services.stream.owner import Owner
from services.stream.pages import Pages, StreamGate
from services.stream.service_chain import LaneUse, Seen
from services.stream.service_config import StreamServiceFile
from services.stream.servicemachine import Outcome
from services.stream.store import StreamStore, open_store
from services.stream.wire import Hello, Iterate, hello_payload
from tests.contracts.domain.streams import PAYER, SERVICE, UNIT, Streams


@dataclass
class MemoryChain:
    """The contract itself in the place of nodes; ``is_away`` as if none of them answered."""

    streams: Streams
    is_away: bool = False
    trouble: str = ""
    account: str = SERVICE
    sent: list[tuple[str, Outcome]] = field(default_factory=list)
    looks: int = 0

    @property
    def chain_id(self) -> ChainId:
        return self.streams.chain.chain_id

    @property
    def address(self) -> Address:
        return self.streams.chain.address(SERVICE)

    @property
    def key(self) -> PrivateKey:
        return self.streams.key(SERVICE)

    async def look(self, terms: Terms, stream: bytes, *, is_newest: bool = False) -> Seen:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        self._answer()
        chain = self.streams.chain
        try:
            record = self.streams.record(stream)
        except AssertionError:
            return Seen(None, None, chain.time_ms, 0)
        lane = self.streams.lane(stream)
        used = None if lane is None or lane.last_id is None else LaneUse(lane.last_id)
        return Seen(record, used, chain.next_time_ms, chain.next_uptime_ms)

    async def opening_proof(self, stream: bytes) -> dict[str, object]:
        raise Unreachable("there are no proofs in memory")

    async def upload(self, raw: bytes) -> Outcome:
        try:
            receipt = self.streams.upload(decode_transaction_untrusted(raw))
        except PeerError:
            return self._sent("upload", Outcome.REFUSED)
        return self._sent("upload", Outcome.FINAL if receipt.status == OK else Outcome.REFUSED)

    async def claim(self, stream: bytes, raw: bytes) -> Outcome:
        return self._call("claim", {"stream": stream, "raw": raw})

    async def close(self, stream: bytes, due: int, signature: bytes) -> Outcome:
        return self._call("close", {"stream": stream, "due": due, "signature": signature})

    def _call(self, method: str, arguments: dict[str, Value]) -> Outcome:
        receipt = self.streams.chain.call(SERVICE, "streams", method, **arguments)
        return self._sent(method, Outcome.FINAL if receipt.status == OK else Outcome.REFUSED)

    def _sent(self, what: str, outcome: Outcome) -> Outcome:
        self.sent.append((what, outcome))
        return outcome

    def _answer(self) -> None:
        if self.is_away:
            raise Unreachable("no node answers")


@dataclass
class HandMeter:
    """A meter that supplies what a test says, and notes what it was ever allowed."""

    supply: Callable[[int], int] = lambda allowed: allowed
    units: dict[bytes, int] = field(default_factory=dict)
    allowed: dict[bytes, int] = field(default_factory=dict)
    reads: int = 0

    async def read(self, stream: bytes, allowed_units: int) -> Reading:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        self.allowed[stream] = max(self.allowed.get(stream, 0), allowed_units)
        self.units[stream] = max(self.units.get(stream, 0), min(allowed_units, self.supply(allowed_units)))
        return Reading(self.units[stream], False)


def tariff_file(**changes: Any) -> StreamServiceFile:
    """Return a service party's file as its tests need it."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "genesis": "genesis",
        "nodes": ["http://127.0.0.1:1"],
        "keys": "keys",
        "account": SERVICE,
        "unit": UNIT,
        "price": 5,
        "step_max": 10,
        "meter_ms": 1,
        "chain_ms": 10,
        "window_ms": 150_000,
        "validity_ms": 60_000,
        "margin_ms": 10_000,
        "step_ms": 60_000,
    }
    return StreamServiceFile(**values | changes)


@dataclass
class Party:
    """A running service party; ``stop`` ends it."""

    streams: Streams
    chain: MemoryChain
    meter: HandMeter
    store: StreamStore
    desk: Desk
    owner: Owner
    pages: Pages
    port: int = 0

    @property
    def url(self) -> str:
        """Where payers call."""
        return f"http://127.0.0.1:{self.port}"

    async def open(self, number: int = 0, **changes: Any) -> bytes:
        """Offer and open a stream, and return its id."""
        terms = await self.offer(number, **changes)
        return self.streams.open(terms)

    async def offer(self, number: int = 0, **changes: Any) -> Terms:
        """Keep an offer as if it had been asked for."""
        terms = self.streams.terms(number, **({"step_ms": 60_000} | changes))
        await self.store.keep_offer(terms, self.streams.chain.next_time_ms)
        return terms

    def iterate(self, stream: bytes, due: int, **changes: Any) -> Iterate:
        """Return an iteration in a message."""
        return Iterate(stream, self.streams.iteration(stream, due, **changes).raw)

    def hello(self, stream: bytes, nonce: bytes, *, by: str = PAYER) -> Hello:
        """Return a Hello that this party signs."""
        payload = hello_payload(stream, nonce)
        return Hello(stream, nonce, self.streams.key(by).sign(Purpose.STREAM_HELLO, self.chain.chain_id, payload))


@asynccontextmanager
async def open_party(
    folder: Path, *, streams: Streams | None = None, meter: HandMeter | None = None, is_served: bool = True, **file: Any
) -> AsyncIterator[Party]:
    """Give a service party for the time of the block; opened again on the same folder it goes on."""
    streams, meter = streams or Streams(), meter or HandMeter()
    chain, metrics = MemoryChain(streams), ServiceMetrics()
    settings = tariff_file(**file)
    stopping = trio.Event()

    def now_ms() -> int:
        return streams.chain.next_time_ms

    async with open_store(f"sqlite:///{folder / 'streams.db'}") as store:
        desk = Desk(store, chain, meter, metrics, now_ms, meter_ms=settings.meter_ms, chain_ms=settings.chain_ms)
        owner = Owner(settings, store, chain, desk, metrics, now_ms)
        pages = Pages(desk, owner, stopping)
        party = Party(streams, chain, meter, store, desk, owner, pages)
        async with trio.open_nursery() as nursery:
            await nursery.start(desk.run)
            if not is_served:
                yield party
            else:
                app = cast(ASGIFramework, StreamGate(pages.app(), names=LOOPBACK_NAMES, token=""))
                with web.open_socket("127.0.0.1", 0) as listening:
                    party.port = listening.getsockname()[1]
                    async with trio.open_nursery() as serving:
                        serving.start_soon(_serve, listening, app, metrics, stopping)
                        yield party
                        stopping.set()
            nursery.cancel_scope.cancel()


async def _serve(listening: Any, app: ASGIFramework, metrics: ServiceMetrics, stopping: trio.Event) -> None:
    await web.serve(listening, app, connections=metrics.connections, stopping=stopping)
