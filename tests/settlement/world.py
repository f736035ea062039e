"""Settlement's real parts on models of chain, centre and account system, one step at a time, with a fault in any step.

The trader, the event system's methods, relay, scan, listener, clerk and payer are the product's own; the account system
has its real rules. Each part does one round per step. In a round any call of a port can be the one that is lost before
or after it took effect, or kills who made it, or is preceded by a whole step of somebody else.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from consensus.ledger.errors import HansaError, InvariantError, StorageError
from consensus.ledger.transaction import make_call, sign_transaction
from services.accounts.ledger import Account, Books
from services.accounts.port import Operation, Order
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local.service import LocalService
from services.messages.port import Delivery, Verdict
from services.messages.store import State as MessageState
from services.settlement.clerk import Clerk
from services.settlement.decision import Verdict as Said
from services.settlement.decision import may_reverse
from services.settlement.engine import Engine, Rules
from services.settlement.interfaces import Repair
from services.settlement.listener import Certified, Listener, _Place
from services.settlement.payer import Payer
from services.settlement.relay import Relay, order_untrusted
from services.settlement.scanner import Scanner
from services.settlement.states import CHAIN, MESSAGES, Event, State, Terms
from services.settlement.store import Cursor
from services.settlement.trader import Trade, Trader
from services.settlement.trades import lane_of
from services.settlement.watched import WatchedStore
from tests.client.support import NOW_MS, signer
from tests.settlement.memory import MemoryStore
from tests.settlement.models import NODES, Center, Chain, Message
from tests.settlement.parts import DirectLink
from tests.settlement.ports import (
    CHAIN_ID,
    CODES,
    BankPort,
    CensusPort,
    CenterPort,
    ClientPort,
    Crash,
    EventsPort,
    StorePort,
    SubmitterPort,
)

T = TypeVar("T")

SELLER, OTHER, BUYER, AGENT = signer("shop"), signer("bank-a"), signer("user-b"), signer("user-e")
POOR_PRICE, PRICE, MONEY, UNITS = 50_000, 6_000, 10_000, 100


def _trade(event: str, seller: Signer, payee: str, units: int, price: int) -> Trade:
    terms = Terms(bytes(seller.address), bytes(BUYER.address), "BOND-1", units, price, "CNY", "user-b", payee)
    return Trade(event, seller, terms)


TRADES = (
    _trade("good", SELLER, "shop", 10, PRICE),
    _trade("poor", SELLER, "shop", 10, POOR_PRICE),
    _trade("empty", OTHER, "bank-a", UNITS, 1_000),
    _trade("second", SELLER, "shop", 20, PRICE),
)
"""All buyers' money is one account: for both ``good`` and ``second`` it is not enough."""

FAULTS = ("", "crash before", "crash after", "lost before", "lost after", "meanwhile")


@dataclass(frozen=True)
class Step:
    """One round of ``name``; ``a`` and ``b`` choose what it is about. At call number ``at`` of it comes the fault."""

    name: str
    a: int = 0
    b: int = 0
    fault: str = ""
    at: int = 0
    inner: "Step | None" = None
    """What happens ``meanwhile``, and its own ``inner`` after it."""
    more: "Step | None" = None
    """Its fault comes later in the same round."""


class World:
    """All parts and what they stand on; :meth:`act`, and in the end :meth:`rest`."""

    def __init__(self, *, is_relay_on: bool = True) -> None:
        """Begin; without relay nobody follows the chain, and only the scan brings notices to the centre."""
        self.is_relay_on = is_relay_on
        self.clock = MockClock(autojump_threshold=0)
        self.skew_ms = 0
        self.chain = Chain(NOW_MS, {bytes(SELLER.address): UNITS, bytes(OTHER.address): 5})
        self.center = Center()
        self.accounts_up = True
        accounts = [Account(id="user-b", currency="CNY", available=MONEY)]
        accounts += [Account(id=name, currency="CNY") for name in ("shop", "bank-a")]
        self.books = Books(accounts=accounts, issued={"CNY": MONEY}, time_ms=1)
        self.memory = MemoryStore()
        self.memory._cursor = Cursor(0, bytes(32))
        self.agent = bytes(AGENT.address)
        self.deposits = 0
        self.sent: set[bytes] = set()
        self.rogue: set[bytes] = set()
        self.counts: Counter[str] = Counter()
        self.calls: list[str] = []
        self.alarms: list[str] = []
        self._plan: Step | None = None
        self._crashed_inside = False
        self._busy: set[str] = set()
        self._client = ClientPort(self)
        self.start_events()

    # -- time and processes ------------------------------------------------------------------------------------------

    def true_ms(self) -> int:
        return NOW_MS + int(self.clock.current_time() * 1000)

    def now_ms(self) -> int:
        return self.true_ms() + self.skew_ms

    def start_events(self) -> None:
        """Start the event system, from what is kept."""
        store = WatchedStore(StorePort(self))
        self.relay = Relay(store, CenterPort(self))
        self.scanner = Scanner(store, CensusPort(self), self._client, self.relay, interval_ms=1_000, now_ms=self.now_ms)
        self.listener = Listener(self._client, store, now_ms=self.now_ms)
        kept = self.memory._cursor
        self.listener._place = _Place(kept.height, kept.block_hash, 0, None, None)
        self.listener._kept_height = kept.height
        self.clerk = Clerk(self._client, store, AGENT, now_ms=self.now_ms)
        self.clerk._submitter = SubmitterPort(self)
        engine = Engine(
            store,
            Rules(CHAIN_ID, bytes(AGENT.address)),
            chain_time_ms=lambda: self.listener.time_ms,
            on_repair=self.scanner.wake,
            now_ms=self.now_ms,
        )
        service = LocalService()
        engine.add_methods(service)
        store.ring(MESSAGES, self.relay.wake)
        store.ring(CHAIN, self.clerk.wake)
        self.link = DirectLink(service)

    # -- faults ------------------------------------------------------------------------------------------------------

    async def gate(self, port: str, effect: Callable[[], T]) -> T:
        """Do a call of a port, with the fault that is planned for it."""
        self.calls.append(port)
        plan = self._plan
        if plan is None or not plan.fault or plan.at != len(self.calls) - 1:
            return effect()
        self.counts[f"{plan.fault} at {port}"] += 1
        match plan.fault:
            case "crash before":
                raise Crash
            case "lost before":
                raise Unreachable(f"{port} is away", CODES[port])
            case "meanwhile" if plan.inner is not None:
                calls, self.calls, self._plan = self.calls, [], None
                inner: Step | None = plan.inner
                while inner is not None:
                    await self._do(inner)
                    inner = inner.inner
                self.calls, self._plan = calls, plan.more
                return effect()
        result = effect()
        if plan.fault == "crash after":
            raise Crash
        if plan.fault == "lost after":
            raise Unreachable(f"{port} does not answer", CODES[port])
        return result

    def act(self, *steps: Step) -> None:
        """Do steps, whatever comes of them, and check after each what must always hold."""
        with capture_logs() as logs:
            trio.run(self._steps, steps, clock=self.clock)
        self.alarms += [
            f"{line['event']}: {line}"
            for line in logs
            if line["log_level"] == "error" and line.get("code") != "not_allowed"
        ]
        broken = [line for line in logs if line["event"] in ("a method is broken", "failed")]
        assert broken == []

    async def _steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.calls = []
            self._plan = step
            await self._do(step)
            self._plan = None
            self.check()

    async def _do(self, step: Step) -> None:
        owner = OWNERS.get(step.name, "")
        if not self.is_relay_on and step.name in RELAY:
            return
        lock = LOCKS.get(step.name, owner and step.name)
        if lock in self._busy:
            return  # it runs already
        self._busy |= {lock} - {""}
        try:
            with single_errors():
                await getattr(self, f"_{step.name}")(step)
        except Crash:
            self.counts[f"{step.name} crashed"] += 1
            if owner == "events":
                self.start_events()
        except HansaError as error:
            if isinstance(error, InvariantError | StorageError):
                raise
        finally:
            self._busy -= {lock}

    # -- steps: the product's parts ----------------------------------------------------------------------------------

    async def _trade(self, step: Step) -> None:
        trades = [TRADES[step.a % len(TRADES)]]
        if step.b % 4 == 1:
            trades.append(TRADES[(step.a + 1) % len(TRADES)])
        if step.b % 4 == 2:  # the same id, other terms
            trades = [replace(trades[0], terms=_other_terms(trades[0].terms))]
        trader = Trader(EventsPort(self), BankPort(self), self._client, agent=bytes(AGENT.address), now_ms=self.now_ms)
        for kept in await trader.place(trades):
            self.counts[f"placed {kept.code or 'sent'}"] += 1
            assert step.b % 4 != 2 or kept.code or kept.event.terms == trades[0].terms

    async def _listen(self, step: Step) -> None:
        start = self.listener.height + 1
        end = min(self.chain.height, self.listener.height + 1 + step.a % 3)
        if end < start:
            return
        certified = {
            name: Certified(is_ok, code, height)
            for height in range(start, end + 1)
            for name, (is_ok, code) in self.chain.blocks[height].outcomes.items()
        }
        place = _Place(end, end.to_bytes(32, "big"), self.chain.blocks[end].time_ms, None, None)
        await self.listener._keep(certified, place)
        self.listener._place = place

    async def _scan(self, step: Step) -> None:
        await self.scanner.scan()

    async def _drain(self, step: Step) -> None:
        await self.relay.drain()

    async def _lift(self, step: Step) -> None:
        if self.chain.is_deciding:
            await self.clerk._lift_some()

    async def _reverse(self, step: Step) -> None:
        await self.clerk._reverse_some()

    async def _pay(self, step: Step) -> None:
        waiting = self.center.waiting()
        if not waiting or not self.center.is_up:
            return
        first = step.a % len(waiting)
        await self._ask(waiting[first : first + 1 + step.b % 3])

    async def _ask(self, batch: Sequence[Message]) -> None:
        deliveries = []
        for message in batch:
            message.attempts += 1
            new = message.new
            deliveries.append(Delivery(message.sequence, 1, message.attempts, new.key, new.lane, new.body))
        settlements = {}
        try:
            payer = Payer(None, BankPort(self), EventsPort(self))
            said = await payer.pay(deliveries)
            settlements = await self.gate("center", lambda: {one.sequence: one.verdict for one in said})
        finally:
            for message in batch:
                if settlements.get(message.sequence) is Verdict.DONE:
                    message.state = MessageState.DONE
                else:
                    self.center.failed(message)

    async def _double(self, step: Step) -> None:
        """A message that was settled long ago comes once more."""
        messages = list(self.center.messages.values())
        if messages:
            order = order_untrusted(messages[step.a % len(messages)].new.body)
            await Payer(None, BankPort(self), EventsPort(self)).ask([order])

    # -- steps: people and the world ---------------------------------------------------------------------------------

    async def _repair(self, step: Step) -> None:
        events = sorted(self.memory.events)
        if events:
            action = ("retry", "reverse")[step.b % 2]
            await EventsPort(self).call("repair", Repair(events[step.a % len(events)], action), object)

    async def _freeze(self, step: Step) -> None:
        self.books.freeze(("user-b", "shop")[step.a % 2], is_frozen=step.b % 2 == 0)

    async def _deposit(self, step: Step) -> None:
        self.deposits += 1
        self.books.deposit(f"d{self.deposits}", "user-b", PRICE)

    async def _bank_release(self, step: Step) -> None:
        """Somebody closes an event in the account system by hand, which need not be known elsewhere."""
        trade = TRADES[step.a % len(TRADES)]
        if trade.event in self.memory.events:
            self.books.run(_order(self.memory.events[trade.event], Operation.RELEASE))

    async def _center(self, step: Step) -> None:
        self.center.is_up = step.a % 2 == 0

    async def _accounts(self, step: Step) -> None:
        self.accounts_up = step.a % 2 == 0

    async def _seal(self, step: Step) -> None:
        if step.a % 2:
            self.chain.gossip()
        self.chain.seal(step.b % NODES, self.true_ms(), is_empty=step.a % 5 == 4)

    async def _node(self, step: Step) -> None:
        node = self.chain.nodes[step.a % NODES]
        match step.b % 6:
            case 0:
                node.is_up = False
                node.pool = {}
            case 1:
                node.is_lagging = True
            case 2:
                node.lie = (Said.LIAR, Said.HELD, Said.UNKNOWN)[step.a % 3]
            case 3:
                self._client.node = step.a % NODES
            case _:
                node.is_up, node.is_lagging, node.lie = True, False, None

    async def _suspend(self, step: Step) -> None:
        self.chain.is_agent_suspended = step.a % 2 == 1

    async def _time(self, step: Step) -> None:
        self.clock.jump((0.5, 5, 30, 61, 600)[step.a % 5])

    async def _skew(self, step: Step) -> None:
        self.skew_ms = (0, -7_200_000, 7_200_000, -5_000, 5_000)[step.a % 5]

    async def _restart(self, step: Step) -> None:
        if not self._busy:
            self.start_events()

    async def _rogue(self, step: Step) -> None:
        """A seller sends its transaction by itself, or another one in the same lane."""
        trade = TRADES[step.a % len(TRADES)]
        event = self.memory.events.get(trade.event)
        if event is None:
            return
        transaction = self._client.decode(event.raw)
        if step.b % 3 == 0:
            call = make_call("tokens", "describe", {})
            until_ms = self.true_ms() + 60_000
            transaction = sign_transaction(
                trade.signer.key, CHAIN_ID, [call], sequence=0, valid_until_ms=until_ms, lane=lane_of(trade.event)
            )
        self.rogue.add(event.transaction_id)
        self.chain.submit(step.b % NODES, transaction)

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Check what holds after each step."""
        accounts = self.books.accounts.values()
        assert sum(one.available + one.held for one in accounts) == MONEY + self.deposits * PRICE
        assert all(one.available >= 0 and one.held >= 0 for one in accounts)
        held = sum(lien.amount for lien in self.chain.liens.values() if lien.status == "HELD")
        assert sum(self.chain.units.values()) + held == self.chain.supply
        postings = Counter((entry.event, entry.operation) for entry in self.books.entries)
        assert all(count == 1 for count in postings.values()), postings
        for event in self.memory.events.values():
            self._check_event(event)

    def _check_event(self, event: Event) -> None:
        rows = self.memory.rows[event.event]
        assert [row.version for row in rows] == list(range(1, event.version + 1))
        assert {(row.state_before, row.state_after) for row in rows[1:]} <= WAYS
        if event.original:
            return
        status, is_paid = self.fate(event)
        assert not is_paid or status in ("HELD", "LIFTED"), "paid, and no asset moved"
        assert status != "LIFTED" or is_paid, "the asset is free, and nobody paid"
        match (event.state, event.outcome):
            case (State.COMPLETED, "PAID"):
                assert is_paid
            case (State.COMPLETED, "REVERSED"):
                assert (status, is_paid) == ("GIVEN_BACK", False)
            case (State.CANCELLED, _):
                assert (status, is_paid) in (("", False), ("HELD", False), ("GIVEN_BACK", False))
                assert not status or event.transaction_id in self.rogue, "cancelled, and it moved"
                assert event.transaction_id not in self.sent or not self._may_come(event), "cancelled while pending"
            case (State.ACCOUNT_PENDING, _):
                assert status
            case _:
                assert not is_paid

    def _may_come(self, event: Event) -> bool:
        lane = (event.terms.seller, lane_of(event.event))
        return lane not in self.chain.lanes and self.chain.blocks[-1].time_ms <= event.valid_until_ms

    def fate(self, event: Event) -> tuple[str, bool]:
        """Return what became of a trade's lien ("" where there is none), and whether it is paid."""
        lien = self.chain.liens.get((event.terms.seller, event.event))
        standing = self.books.standings.get(event.event)
        return "" if lien is None else lien.status, standing is not None and bool(standing.paid_ms)

    # -- the end -----------------------------------------------------------------------------------------------------

    def rest(self, choice: int) -> None:
        """Heal everything and go on until nothing moves; an operator then resolves what is flagged."""
        for node in self.chain.nodes:
            node.is_up, node.is_lagging, node.lie = True, False, None
        self.center.is_up = self.accounts_up = True
        self.chain.is_agent_suspended = False
        self.skew_ms = 0
        self._run_out()
        for number, event in enumerate(sorted(self.memory.events.values(), key=lambda one: one.event)):
            if event.is_finished and not may_reverse(event):
                continue
            assert event.is_flagged
            assert event.is_finished or event.state is State.ACCOUNT_PENDING
            self.counts["resolved by an operator"] += 1
            is_closed = event.event in self.books.standings and self.books.standings[event.event].released_ms
            if event.is_finished or is_closed or (choice + number) % 2:
                self.act(Step("repair", sorted(self.memory.events).index(event.event), 1))
            else:
                for account in ("user-b", "shop"):
                    self.books.freeze(account, is_frozen=False)
                while self.books.accounts["user-b"].available < event.terms.price:
                    self.act(Step("deposit"))
                self.act(Step("repair", sorted(self.memory.events).index(event.event), 0))
        self._run_out()
        for event in self.memory.events.values():
            self._check_end(event)
        assert not any(account.held for account in self.books.accounts.values()), "money stays held"
        assert not self.memory.outbox

    def _run_out(self) -> None:
        """Go on until nothing is under way, and what is unfinished waits for an operator."""
        for round_number in range(80):
            self.act(Step("seal", 1), *(Step(name, 2) for name in ("listen", "listen", "scan", "drain")))
            while waiting := self.center.waiting():
                self.act(*(Step("pay", 0, 2) for _ in waiting))
            self.act(
                *(Step("reverse"), Step("seal", 1), Step("listen", 2), Step("lift")),
                Step("time", 3 if round_number < 10 else 4),
            )
            if self._is_quiet():
                return
        raise AssertionError([one for one in self.memory.events.values() if not one.is_finished])

    def _is_quiet(self) -> bool:
        unfinished = [one for one in self.memory.events.values() if not one.is_finished]
        messages = {one.state for one in self.center.messages.values()} - {MessageState.DONE}
        is_stuck = all(one.is_flagged and one.state is State.ACCOUNT_PENDING and not one.wish for one in unfinished)
        is_read = self.listener.height == self.chain.height or not self.is_relay_on
        return is_stuck and is_read and not messages and not self.memory.outbox

    def _check_end(self, event: Event) -> None:
        if event.original:
            assert event.is_finished
            return
        status, is_paid = self.fate(event)
        end = f"{event.state}{f'/{event.outcome}' if event.outcome else f' ({event.code})'}"
        self.counts[end] += 1
        match (event.state, event.outcome):
            case (State.COMPLETED, "PAID"):
                assert (status, is_paid) == ("LIFTED", True)
            case (State.COMPLETED, "REVERSED"):
                assert (status, is_paid) == ("GIVEN_BACK", False)
            case (State.CANCELLED, _):
                assert (status, is_paid) in (("", False), ("GIVEN_BACK", False))
            case _:
                raise AssertionError(event)


OWNERS = dict.fromkeys(("listen", "scan", "drain", "lift", "reverse"), "events")
LOCKS = {"scan": "outbox", "drain": "outbox"}
RELAY = ("listen", "drain", "rogue")
"""Steps that there are with a relay only; of what a seller sends after its trade was given up only a listener hears."""
PARTS = ("trade", "listen", "scan", "drain", "pay", "lift", "reverse", "repair", "double")
"""Steps that call ports, and so may meet faults."""
STEPS = (
    *PARTS,
    *(
        "seal",
        "node",
        "time",
        "skew",
        "freeze",
        "deposit",
        "bank_release",
        "center",
        "accounts",
        "restart",
        "rogue",
        "suspend",
    ),
)
WAYS = {
    ("REGISTERED", "REGISTERED"),
    ("REGISTERED", "ACCOUNT_PENDING"),
    ("REGISTERED", "CANCELLED"),
    ("REGISTERED", "COMPLETED"),
    ("ACCOUNT_PENDING", "ACCOUNT_PENDING"),
    ("ACCOUNT_PENDING", "COMPLETED"),
    ("CANCELLED", "CANCELLED"),
}


def _other_terms(terms: Terms) -> Terms:
    return Terms(
        terms.seller, terms.buyer, terms.asset, terms.units, terms.price + 1, terms.currency, terms.payer, terms.payee
    )


def _order(event: Event, operation: Operation) -> Order:
    terms = event.terms
    return Order(event.event, operation, terms.payer, terms.payee, terms.price, terms.currency)
