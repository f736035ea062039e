"""Parts of settlement for tests: real methods behind real encoding, memory instead of a store and a bank."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from consensus.ledger.ids import ChainId
from consensus.ledger.transaction import Transaction, sign_transaction
from services.accounts.ledger import Account, Books
from services.accounts.port import Answer, Entries, Order, Standing
from services.client.connection import decode_answer_untrusted
from services.client.keystore import Signer
from services.local.service import LocalService
from services.messages.embedded import EmbeddedStore
from services.messages.queue import Queue, QueueSettings, open_queue
from services.settlement.engine import Engine, Rules
from services.settlement.interfaces import Registration
from services.settlement.states import Terms
from services.settlement.store import EventStore
from services.settlement.trades import deliver_call, lane_of
from services.settlement.watched import WatchedStore
from tests.client.support import CONSORTIUM, NOW_MS, signer
from tests.settlement.memory import MemoryStore

T = TypeVar("T")

CHAIN = CONSORTIUM.genesis.chain_id()
SELLER, BUYER, AGENT, ISSUER = signer("shop"), signer("user-b"), signer("user-e"), signer("bank-a")
TERMS = Terms(bytes(SELLER.address), bytes(BUYER.address), "BOND-1", 10, 12_550, "CNY", "user-b", "shop")


class Clock:
    """A clock that is set by hand, UTC ms."""

    def __init__(self, ms: int = NOW_MS) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


def delivery(
    event: str,
    terms: Terms = TERMS,
    *,
    signer: Signer = SELLER,
    chain: ChainId = CHAIN,
    agent: bytes = bytes(AGENT.address),
    until_ms: int = NOW_MS + 60_000,
    lane: bytes | None = None,
) -> Transaction:
    """Return the signed delivery of a trade."""
    return sign_transaction(
        signer.key,
        chain,
        [deliver_call(event, terms, agent)],
        sequence=0,
        valid_until_ms=until_ms,
        lane=lane_of(event) if lane is None else lane,
    )


def registration(event: str, terms: Terms = TERMS, **options: object) -> Registration:
    """Return a trade as it is registered."""
    return Registration(event, terms, delivery(event, terms, **options).raw)  # type: ignore[arg-type]


class DirectLink:
    """Calls the methods of a service without a socket, through their real encoding."""

    def __init__(self, service: LocalService) -> None:
        self.service = service
        self.called: list[str] = []
        self.before: Callable[[str], None] = lambda _: None
        """Hears of each call first, and may raise."""
        self.after: Callable[[str], None] = lambda _: None
        """Hears of each call that was done before it is answered, and may raise."""

    async def call(self, method: str, params: object, kind: type[T]) -> T:
        self.called.append(method)
        self.before(method)
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        answer = await self.service.answer(body)
        self.after(method)
        return decode_answer_untrusted(answer, kind, method)


class Bank:
    """An account system in memory, by the real rules; one that misbehaves when told."""

    def __init__(self, clock: Callable[[], int], **balances: int) -> None:
        names = {name.replace("_", "-"): amount for name, amount in balances.items()}
        accounts = [Account(id=name, currency="CNY", available=amount) for name, amount in names.items()]
        self.books = Books(accounts=accounts, issued={"CNY": sum(names.values())}, time_ms=1)
        self.orders: list[Order] = []
        self.before: Callable[[Sequence[Order]], None] = lambda _: None
        """Hears of orders before they are done, and may raise."""
        self.after: Callable[[Sequence[Order]], None] = lambda _: None
        """Hears of orders that were done before they are answered, and may raise."""
        self._clock = clock

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        self.before(orders)
        self.orders += orders
        self.books.time_ms = max(self.books.time_ms, self._clock())
        answers = [self.books.run(order) for order in orders]
        self.after(orders)
        return answers

    async def look_up(self, events: Sequence[str]) -> list[Standing | None]:
        return [self.books.standings.get(event) for event in events]

    async def entries(self, *, from_ms: int, until_ms: int, after: int, limit: int) -> Entries:
        found = [entry for entry in self.books.entries if from_ms <= entry.time_ms < until_ms and entry.number > after]
        return Entries(found[:limit], found[limit - 1].number if len(found) > limit else 0)

    def parts(self, account: str) -> tuple[int, int]:
        """Return what an account has available, and what is held."""
        found = self.books.accounts[account]
        return found.available, found.held


class Desk:
    """The event system's methods over a store, without what follows the chain."""

    def __init__(self, store: EventStore | None = None, *, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.memory = MemoryStore()
        self.store = WatchedStore(store or self.memory)
        self.chain_ms = 0
        self.repaired = 0
        self.service = LocalService()
        self.engine = Engine(
            self.store,
            Rules(CHAIN, bytes(AGENT.address)),
            chain_time_ms=lambda: self.chain_ms,
            on_repair=self._on_repair,
            now_ms=self.clock,
        )
        self.engine.add_methods(self.service)
        self.link = DirectLink(self.service)

    def _on_repair(self) -> None:
        self.repaired += 1


@asynccontextmanager
async def open_center(folder: Path, **settings: object) -> AsyncIterator[Queue]:
    """Run a real message centre's queue on disk for the time of the block."""
    queue = QueueSettings(rate_per_s=100_000.0, backoff_first_ms=1, **settings)  # type: ignore[arg-type]
    async with open_queue(EmbeddedStore(folder), queue) as opened:
        yield opened
