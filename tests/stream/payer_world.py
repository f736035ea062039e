"""A chain that one node decides, a real service party on a real port, and payers and watchers of it.

Time goes on as this machine's, from a fixed moment on, and jumps where a test wants it to.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from consensus.ledger.keys import Purpose
from consensus.ledger.streams import StreamRecord, Terms, make_iteration, stream_lane, terms_hash
from consensus.ledger.transaction import Call, Transaction, make_call
from node.driver import Commit
from services.client.client import Client, open_client
from services.client.outcome import Outcome
from services.stream import service as service_program
from services.stream.iteration_file import Carried, encode_carried
from services.stream.link import open_frames, open_requests
from services.stream.opening import Agreed, read_stream
from services.stream.payer import Payer, Way
from services.stream.payer_store import PayerStore, open_payer_store
from services.stream.service import ServiceSettings, open_service
from services.stream.service_config import StreamServiceFile
from services.stream.service_interface import OfferWanted
from services.stream.watcher import Watcher, WatcherSettings
from services.stream.watcher_store import open_watcher_store
from tests.client.support import CONSORTIUM, NOW_MS, SoloNode, address, running, signer
from tests.node.support import extend

UNIT = "SIM-FEN"
FUNDS = 100_000
PAYER, SERVICE, WATCHER, ISSUER = "user-b", "shop", "user-e", "bank-a"
PRICE, STEP_MAX, DEPOSIT, FINE = 8, 40, 10_000, 500
VALIDITY_MS, MARGIN_MS, WINDOW_MS = 60_000, 10_000, 130_000
TIMEOUT_S = 30


class Wall:
    """A clock from ``NOW_MS`` on, in trio's time and a test's jumps."""

    def __init__(self) -> None:
        self._began_s = trio.current_time()
        self._jumped_ms = 0

    def wall_ms(self) -> int:
        """Return ms UTC."""
        return NOW_MS + self._jumped_ms + int(1_000 * (trio.current_time() - self._began_s))

    def monotonic_ms(self) -> int:
        """Return the same: nothing here sets a clock back."""
        return self.wall_ms()

    def jump(self, ms: int) -> None:
        """Let time pass at once."""
        self._jumped_ms += ms


class Node(SoloNode):
    """Blocks have the wall's time; a quiet one follows the last transaction, so that all is provable."""

    def __init__(self, folder: Path, wall: Wall) -> None:
        super().__init__(folder, clock=wall)
        self.wall = wall

    def decide(self) -> None:
        """Commit what waits, then an empty block."""
        if self.mempool.is_waiting:
            self._commit(self.mempool.select(count_max=500, bytes_max=1 << 20, calls_max=2_000, time_ms=self._next_ms))
        if not self.mempool.is_waiting:
            self._commit([])

    @property
    def _next_ms(self) -> int:
        return max(self.chain.head.header.time_ms + 1, self.wall.wall_ms())

    def _commit(self, ready: list[Transaction]) -> None:
        step_ms = self._next_ms - self.chain.head.header.time_ms
        candidate = extend(self.chain, self.store, self.consortium, ready, step_ms=step_ms)
        self.mempool.committed(candidate.transactions)
        self.backend.on_commit(Commit(candidate, self.consortium.certify(candidate)))


class World:
    """What a test has; made by :func:`world`."""

    def __init__(self, folder: Path, node: Node, wall: Wall, client: Client, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.node = node
        self.wall = wall
        self.client = client
        self.stack = stack
        self.url = ""
        self._numbers = 0
        self._service: trio.Event | None = None
        self._service_over = trio.Event()

    # -- the service party -----------------------------------------------------------------------------

    async def start_service(self, nursery: trio.Nursery, *, port: int = 0, token: str = "", **changes: Any) -> None:
        """Run the service party, and know where it is; the same ``port`` is the same party after a restart."""
        settings = self.service_settings(port=port, token=token, **changes)
        stopping = self._service = trio.Event()
        over = self._service_over = trio.Event()

        async def run(task_status: trio.TaskStatus[int]) -> None:
            try:
                async with open_service(settings, now_ms=self.wall.wall_ms) as service:
                    await service_program.serve(settings, service, stopping, task_status=task_status)
            finally:
                over.set()

        self.url = f"http://127.0.0.1:{await nursery.start(run)}"

    async def stop_service(self) -> int:
        """Stop the service party, if there is one, and return its port."""
        if self._service is None:
            return 0
        self._service.set()
        await self._service_over.wait()
        return int(self.url.rpartition(":")[2])

    def service_settings(self, *, port: int = 0, token: str = "", **changes: Any) -> ServiceSettings:
        """Return what it runs with; ``changes`` are of its file."""
        file = StreamServiceFile(
            listen="127.0.0.1:0",
            genesis="",
            nodes=[self.node.url],
            keys="",
            account=SERVICE,
            unit=UNIT,
            price=PRICE,
            step_max=STEP_MAX,
            window_ms=WINDOW_MS,
            validity_ms=VALIDITY_MS,
            margin_ms=MARGIN_MS,
            step_ms=2_000,
            meter="demo:9:0",
            meter_ms=1,
            chain_ms=100,
        )
        return ServiceSettings(
            file=msgspec.structs.replace(file, **changes),
            run=self.folder / "service" / "run",
            data=self.folder / "service" / "data",
            host="127.0.0.1",
            port=port,
            token=token,
            owner=None,
            watcher_token="",
            database=f"sqlite:///{self.folder}/service/streams.db",
            genesis=CONSORTIUM.genesis,
            signer=signer(SERVICE),
        )

    # -- the payer -------------------------------------------------------------------------------------

    def payer(self, store: PayerStore) -> Payer:
        """Return the payer over a store."""
        return Payer(self.client, signer(PAYER), store, now_ms=self.wall.wall_ms, chain_ms=100)

    def store(self, name: str = "payer") -> PayerStore:
        """Return the store of a folder, open until the world ends."""
        return self.stack.enter_context(open_payer_store(self.folder / name))

    def wanted(self, **changes: Any) -> OfferWanted:
        """Return what a payer wishes."""
        self._numbers += 1
        wanted = OfferWanted(f"0x{address(PAYER).hex()}", self._numbers, DEPOSIT, fine=FINE, count_max=20)
        return msgspec.structs.replace(wanted, **changes)

    async def opened(self, payer: Payer, **changes: Any) -> bytes:
        """Return a stream that was offered and opened."""
        agreed = await payer.agree(self.url, self.wanted(**changes))
        return bytes((await payer.open(agreed, url=self.url)).stream)

    def way(self, *, is_http: bool = False) -> Way:
        """Return the way to the service party as it is now."""
        if is_http:
            return lambda: open_requests(self.url, poll_ms=20)
        return lambda: open_frames(self.url)

    def agreed(self, **changes: Any) -> Agreed:
        """Return terms that the service party has signed, without asking it."""
        self._numbers += 1
        terms = Terms(
            payer=bytes(address(PAYER)),
            service=bytes(address(SERVICE)),
            number=self._numbers,
            what="0.1 kWh",
            unit=UNIT,
            deposit=DEPOSIT,
            fine=FINE,
            price=PRICE,
            step_max=STEP_MAX,
            credit=0,
            mode=0,
            count_max=0,
            amount_max=0,
            duration_ms_max=0,
            window_ms=WINDOW_MS,
            validity_ms=VALIDITY_MS,
            margin_ms=MARGIN_MS,
            step_ms=2_000,
            offer_until_ms=self.wall.wall_ms() + 600_000,
        )
        terms = msgspec.structs.replace(terms, **changes)
        chain_id = CONSORTIUM.genesis.chain_id()
        return Agreed(terms, signer(SERVICE).key.sign(Purpose.STREAM_TERMS, chain_id, terms_hash(terms)))

    # -- the chain -------------------------------------------------------------------------------------

    def pass_ms(self, ms: int) -> None:
        """Let time pass with blocks, none of them later than a minute after the one before."""
        while ms > 0:
            step_ms = min(ms, 50_000)
            self.wall.jump(step_ms)
            self.node.decide()
            ms -= step_ms

    async def record(self, stream: bytes) -> StreamRecord:
        """Return a stream's record."""
        record = await read_stream(self.client, stream, is_newest=True)
        if record is None:
            raise AssertionError("the stream is not open")
        return record

    async def available(self, name: str) -> int:
        """Return what an account has available."""
        balance = await self.client.query("tokens", "balance", {"unit": UNIT, "account": address(name)})
        assert isinstance(balance, dict)
        available = balance["available"]
        assert isinstance(available, int)
        return available

    async def burn(self, stream: bytes) -> Outcome:
        """Have the payer use the stream's number for something else."""
        call: Call = make_call("tokens", "transfer", {"unit": UNIT, "to": address(WATCHER), "amount": 1})
        return await self.client.call_once(signer(PAYER), [call], stream_lane(stream))

    def iteration(self, agreed: Agreed, due: int, *, until_ms: int | None = None) -> Carried:
        """Return what the service party would hand on of a stream's iteration with this total."""
        key = signer(PAYER).key
        until_ms = self.wall.wall_ms() + VALIDITY_MS if until_ms is None else until_ms
        made = make_iteration(key, self.client.chain_id, agreed.terms.payer, agreed.stream, due, until_ms)
        return Carried(agreed.terms, key.public.compressed, made.raw)

    def file(self, carried: Carried) -> str:
        """Return its file."""
        return encode_carried(carried, self.client.chain_id).decode()

    def watcher(self, name: str = "watcher") -> Watcher:
        """Return a watcher; its store is open until the world ends."""
        settings = self.watcher_settings(name)
        store = self.stack.enter_context(open_watcher_store(settings.data))
        return Watcher(settings, store, self.client, now_ms=self.wall.wall_ms)

    def watcher_settings(self, name: str = "watcher") -> WatcherSettings:
        """Return what a watcher runs with."""
        return WatcherSettings(
            run=self.folder / name / "run",
            data=self.folder / name / "data",
            host="127.0.0.1",
            port=0,
            token="",
            host_names=(),
            genesis=CONSORTIUM.genesis,
            nodes=(self.node.url,),
            signer=signer(WATCHER),
            look_ms=50,
        )


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Give a chain whose payer has money; everything ends with the block, in time."""
    with trio.fail_after(TIMEOUT_S):
        wall = Wall()
        node = Node(folder / "node", wall)
        async with running(node), AsyncExitStack() as stack:
            client = await stack.enter_async_context(open_client(CONSORTIUM.genesis, [node.url], now_ms=wall.wall_ms))
            calls = [
                make_call("tokens", "define", {"unit": UNIT, "decimals": 0, "description": "simulated"}),
                make_call("tokens", "issue", {"unit": UNIT, "to": address(PAYER), "amount": FUNDS}),
            ]
            (await client.call_many(signer(ISSUER), calls)).check()
            yield World(folder, node, wall, client, stack)


def in_world(
    folder: Path, test: "Callable[[World, trio.Nursery], Awaitable[None]]", is_served: bool = True, **service: Any
) -> None:
    """Run a test in a world, with a service party whose file has these changes."""

    async def run() -> None:
        async with world(folder) as made, trio.open_nursery() as nursery:
            if is_served:
                await made.start_service(nursery, **service)
            try:
                await test(made, nursery)
            finally:
                await made.stop_service()
            nursery.cancel_scope.cancel()

    trio.run(run)
