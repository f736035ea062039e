"""The ports of settlement's parts, over a world's models; each call goes through the world's gate, where faults are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import Call, Transaction, sign_transaction
from services.accounts.ledger import Books
from services.accounts.port import Answer, Order
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome, Submitted
from services.messages.store import NewMessage, Published, Record, State
from services.settlement.decision import Tally
from services.settlement.states import Event
from tests.client.support import CONSORTIUM
from tests.settlement.memory import MemoryStore
from tests.settlement.models import NODES, Center, Chain
from tests.settlement.parts import DirectLink

T = TypeVar("T")

CHAIN_ID = CONSORTIUM.genesis.chain_id()

CODES = {
    "events": "program_unreachable",
    "accounts": "accounts_unreachable",
    "center": "center_unreachable",
    "store": "database_unreachable",
    "chain": "node_unreachable",
    "census": "node_unreachable",
}


class Crash(BaseException):
    """The process that made this call is gone."""


class Stage(Protocol):
    """What the ports want of a world."""

    chain: Chain
    center: Center
    accounts_up: bool
    books: Books
    memory: MemoryStore
    link: DirectLink
    agent: bytes
    sent: set[bytes]

    async def gate(self, port: str, effect: Callable[[], T]) -> T:
        """Do a call, with the fault that is planned for it."""
        ...

    def start_events(self) -> None:
        """Start the event system anew."""
        ...

    def true_ms(self) -> int:
        """Return the true time."""
        ...

    def now_ms(self) -> int:
        """Return what this machine takes for the time."""
        ...


class StorePort:
    """The event store; each call may be lost, or the last of its process."""

    def __init__(self, world: Stage) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._world.memory, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await self._world.gate("store", lambda: _now(method(*arguments, **options)))

        return call


class EventsPort:
    """The way to the event system. If a call there ends its process, the caller only hears that nobody answers."""

    def __init__(self, world: Stage) -> None:
        self._world = world

    async def call(self, method: str, params: object, kind: type[T]) -> T:
        world = self._world
        await world.gate("events", lambda: None)
        try:
            answer = await world.link.call(method, params, kind)
        except Crash:
            world.start_events()
            raise Unreachable("the event system stopped", CODES["events"]) from None
        return await world.gate("events", lambda: answer)


class BankPort:
    """The account system, by its real rules."""

    def __init__(self, world: Stage) -> None:
        self._world = world

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        world = self._world
        if not world.accounts_up:
            raise Unreachable("the account system is away", CODES["accounts"])

        def effect() -> list[Answer]:
            world.books.time_ms = max(world.books.time_ms, world.true_ms())
            return [world.books.run(order) for order in orders]

        return await world.gate("accounts", effect)


class CenterPort:
    """The message centre, for who publishes."""

    def __init__(self, world: Stage) -> None:
        self._world = world

    async def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        if not self._world.center.is_up:
            raise Unreachable("the centre is away", CODES["center"])
        published = await self._world.gate("center", lambda: self._world.center.publish(messages))
        assert not any(one.is_conflict for one in published)
        return published

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        return self._world.center.ended(state)

    async def replay(self, sequences: Sequence[int]) -> int:
        return await self._world.gate("center", lambda: self._world.center.replay(sequences))


class CensusPort:
    def __init__(self, world: Stage) -> None:
        self._world = world

    async def ask(self, event: Event) -> Tally:
        return await self._world.gate("census", lambda: self._world.chain.tally(event))


class SubmitterPort:
    """Brings the agent's lifts to the chain and returns when they are final."""

    trouble = ""

    def __init__(self, world: Stage) -> None:
        self._world = world

    async def submit(self, calls: Sequence[Call]) -> Outcome:
        world = self._world

        def effect() -> list[Receipt]:
            chain = world.chain
            if not chain.seal(0, world.true_ms(), is_empty=True):
                raise Crash  # it would wait for ever; whoever ends it starts anew
            codes = [chain.call(world.agent, call) for call in calls]
            return [Receipt(bytes(32), at, 1 if code else OK, code, [], [], 0) for at, code in enumerate(codes)]

        receipts = await world.gate("chain", effect)
        return Outcome(None, tuple(receipts), _Verified(world.chain.height))


@dataclass(frozen=True)
class _Verified:
    height: int


class ClientPort:
    """The client of the chain, as far as the parts use it: it signs, and submits to one node after the other."""

    chain_id = CHAIN_ID
    node_count = NODES
    genesis = CONSORTIUM.genesis

    def __init__(self, world: Stage) -> None:
        self._world = world
        self._signed = 0
        self.node = 0
        self._decoded: dict[bytes, Transaction] = {}

    def apart(self) -> "ClientPort":
        return self

    def each_node(self) -> dict[str, "ClientPort"]:
        return {"node": self}

    def lanes(self, signer: Signer, *, count: int = 1, prefix: bytes = b"") -> None:
        return None

    def leave_node(self) -> None:
        self.node = (self.node + 1) % NODES

    async def pause(self) -> None:
        self._world.clock.jump(0.1)

    def sign(
        self, signer: Signer, calls: Sequence[Call], *, sequence: int, lane: bytes, validity_ms: int, mode: int = 0
    ) -> Transaction:
        self._signed += 1
        until_ms = self._world.now_ms() + validity_ms - self._signed % 7
        transaction = sign_transaction(
            signer.key, CHAIN_ID, list(calls), sequence=sequence, valid_until_ms=until_ms, lane=lane
        )
        self._decoded[transaction.raw] = transaction
        return transaction

    def decode(self, raw: bytes) -> Transaction:
        return self._decoded[raw]

    async def submit_many(self, transactions: Sequence[Transaction]) -> list[Submitted]:
        world = self._world

        def effect() -> list[Submitted]:
            for transaction in transactions:
                (event,) = [one for one in world.memory.events.values() if one.transaction_id == transaction.id]
                assert event.is_released, "sent before it was released"
                assert event.original or world.books.standings[event.event].reserved_ms, "sent, and no money was held"
                world.sent.add(event.transaction_id)
            return [Submitted(one.id, world.chain.submit(self.node, one)) for one in transactions]

        if not world.chain.nodes[self.node].is_up:
            raise Unreachable("this node is away")
        return await world.gate("chain", effect)


def _now(coroutine: Any) -> Any:
    """Return what a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")
