"""A house for settlement: event system, message centre, payer and bank around a real chain, each of which may die."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import trio

from node.driver import Commit
from services.accounts.port import AccountSystem
from services.client.client import Client
from services.local.link import LocalLink
from services.messages.queue import Queue
from services.settlement import events as event_system
from services.settlement import payer as payer_program
from services.settlement.database import open_events
from services.settlement.events import EventsSettings, EventSystem
from services.settlement.interfaces import EventAnswer, EventQuery
from services.settlement.payer import PayerSettings
from services.settlement.states import Event, Outcome, State
from services.settlement.trader import Trade, Trader
from tests.client.support import CONSORTIUM, SoloNode, client_of, running
from tests.node.support import extend
from tests.settlement.chain import balance, give_units
from tests.settlement.parts import AGENT, SELLER, TERMS, Bank, Clock, open_center

MONEY, UNITS = 1_000_000, 1_000
PATIENCE_S = 30


class Program:
    """A program that runs in a task; :meth:`kill` leaves it no time to end anything.

    One with a socket ends that in order, since the server cannot be cut off; its parts are cut off.
    """

    def __init__(self, nursery: trio.Nursery, start: Callable[..., object], *, has_socket: bool) -> None:
        self._nursery = nursery
        self._start = start
        self._has_socket = has_socket
        self._scope = trio.CancelScope()
        self._stopping = trio.Event()
        self._ended = trio.Event()
        self._ended.set()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    async def start(self) -> None:
        """Start it, and return when it is ready."""
        self._scope, self._stopping, self._ended = trio.CancelScope(), trio.Event(), trio.Event()
        await self._nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[object]) -> None:
        try:
            with self._scope:
                await self._start(self._stopping, task_status=task_status)  # type: ignore[misc]
        finally:
            self._ended.set()

    async def kill(self) -> None:
        """End it where it stands."""
        if self._has_socket:
            self._stopping.set()
        else:
            self._scope.cancel()
        await self._ended.wait()


class House:
    """What is running, and how it stands."""

    def __init__(self, folder: Path, node: SoloNode, client: Client, queue: Queue, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.node = node
        self.client = client
        self.queue = queue
        self.clock = Clock()
        self.bank = Bank(self.clock, user_b=MONEY, shop=0)
        self.accounts: AccountSystem = self.bank
        self.settings = EventsSettings(
            run=folder / "events",
            database=f"sqlite:///{folder}/events.db",
            genesis=CONSORTIUM.genesis,
            nodes=(node.url,),
            agent=AGENT,
            center="",
            center_token="",
            ratio=1,
            scan_interval_ms=20,
        )
        self.events = Program(nursery, self._events, has_socket=True)
        self.payer = Program(nursery, self._payer, has_socket=False)
        self.link = LocalLink(self.settings.socket)
        self.trader = Trader(self.link, self.bank, client, agent=bytes(AGENT.address), now_ms=self.clock)

    def use(self, accounts: AccountSystem) -> None:
        """Take another account system than the bank in memory."""
        self.accounts = accounts
        self.trader = Trader(self.link, accounts, self.client, agent=bytes(AGENT.address), now_ms=self.clock)

    def set(self, **changes: object) -> None:
        """Change how the event system runs from its next start on."""
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]

    async def _events(self, stopping: trio.Event, task_status: trio.TaskStatus[EventSystem]) -> None:
        async with open_events(self.settings.database) as store:
            await event_system.serve(
                self.settings, store, self.client, self.queue, stopping, now_ms=self.clock, task_status=task_status
            )

    async def _payer(self, stopping: trio.Event, task_status: trio.TaskStatus[None]) -> None:
        settings = PayerSettings(self.folder / "payer", self.settings.socket, "", "", "", "")
        async with LocalLink(self.settings.socket) as events:
            await payer_program.serve(settings, self.queue, self.accounts, events, stopping, task_status=task_status)

    # -- the chain -------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Let the chain decide again."""
        self.node.is_deciding = True
        self.node.wake()

    def pass_ms(self, ms: int) -> None:
        """Let so much block time pass, by a block without transactions."""
        candidate = extend(self.node.chain, self.node.store, CONSORTIUM, [], step_ms=ms)
        self.node.backend.on_commit(Commit(candidate, CONSORTIUM.certify(candidate)))
        self.clock.ms += ms

    async def units(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return what the seller and the buyer have available and reserved."""
        return await balance(self.client, "shop"), await balance(self.client, "user-b")

    # -- events ----------------------------------------------------------------------------------------

    async def shown(self, event: str) -> EventAnswer:
        return await self.link.call("event", EventQuery(event), EventAnswer)

    async def until(self, event: str, is_so: Callable[[Event], bool]) -> Event:
        """Wait until something is so of an event; time passes meanwhile."""
        with trio.fail_after(PATIENCE_S):
            while True:
                version = 0
                if self.events.is_running:
                    answer = await self.link.call("event", EventQuery(event, version), EventAnswer)
                    if is_so(answer.event):
                        return answer.event
                    version = answer.event.version
                    await self.link.call("event", EventQuery(event, version, 50), EventAnswer)
                self.clock.ms += 500

    async def until_finished(self, event: str) -> Event:
        return await self.until(event, lambda found: found.is_finished)

    async def check_moved_once(self, count: int = 1) -> None:
        """Check that so many trades have moved both, and the liens are lifted in a while."""
        units, price = count * TERMS.units, count * TERMS.price
        with trio.fail_after(PATIENCE_S):
            while (await self.units())[1][1]:
                await trio.lowlevel.checkpoint()
        assert await self.units() == ((UNITS - units, 0), (units, 0))
        self.check_money(price)

    async def check_neither(self) -> None:
        """Check that nothing has moved, and nothing is held."""
        assert await self.units() == ((UNITS, 0), (0, 0))
        with trio.fail_after(PATIENCE_S):
            while self.bank.parts("user-b")[1]:
                await trio.lowlevel.checkpoint()
        self.check_money(0)

    def check_money(self, paid: int) -> None:
        assert self.bank.parts("user-b") == (MONEY - paid, 0)
        assert self.bank.parts("shop") == (paid, 0)


@asynccontextmanager
async def house(folder: Path, **changes: object) -> AsyncIterator[House]:
    """Give a house in which everything runs, but not yet the event system and the payer."""
    node = SoloNode(folder / "node")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(node))
        client = await stack.enter_async_context(client_of(node))
        await give_units(client, UNITS)
        queue = await stack.enter_async_context(open_center(folder / "center"))
        nursery = await stack.enter_async_context(trio.open_nursery())
        found = House(folder, node, client, queue, nursery)
        found.set(**changes)
        async with found.link:
            yield found
        await found.payer.kill()
        await found.events.kill()
        nursery.cancel_scope.cancel()


def trade(event: str = "T-1", **changes: object) -> Trade:
    """Return a trade of the seller with the buyer."""
    return Trade(event, SELLER, msgspec.structs.replace(TERMS, **changes))


PAID = (State.COMPLETED, Outcome.PAID)
REVERSED = (State.COMPLETED, Outcome.REVERSED)


def end(event: Event) -> tuple[State, Outcome]:
    """Return how an event ended."""
    return event.state, event.outcome
