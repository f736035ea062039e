"""Settlement as real processes with proxies between them: trades whose end is known, and what must hold at the end."""

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

import msgspec
import trio

from cli.settlement_trial import SettlementTrial, settlement_trial
from node.network import programs
from services.demo.chain import open_chain
from services.demo.settlement_facts import both_or_neither, moved_so
from services.demo.settlement_gather import Balances, Look
from services.demo.settlement_network import ACCOUNTS, CENTER, EVENTS, PAYER, Doors, Wishes
from services.demo.settlement_script import BUYERS, PAID, SELLERS, Deal, Wanted
from services.demo.settlement_till import Till, open_till
from services.local.files import F, read_service, write_service
from services.settlement.config import EventsFile, PayerFile
from services.settlement.states import State
from tests.network.settlement_proxy import Proxy, tcp_proxy, unix_proxy
from tests.network.support import pass_time

NODE = "permission"
"""The node that is killed, frozen, or lies."""
HEALING_S = 60
CANCELLED = Wanted(State.CANCELLED)
TRADER = "trader"


@dataclass(frozen=True, slots=True)
class Link:
    """A way between two programs, by the names of who calls and who is called."""

    name: str
    caller: str
    called: str


LINKS = (
    Link("trader-events", TRADER, EVENTS),
    Link("trader-accounts", TRADER, ACCOUNTS),
    Link("trader-node", TRADER, NODE),
    Link("events-node", EVENTS, NODE),
    Link("events-center", EVENTS, CENTER),
    Link("payer-center", PAYER, CENTER),
    Link("payer-accounts", PAYER, ACCOUNTS),
    Link("payer-events", PAYER, EVENTS),
)
"""Every way between two programs that a trade takes."""


@dataclass
class System:
    """A running system behind proxies, and what was traded.

    ``doors`` are those of the proxies, ``node_url`` too; ``till`` goes to the programs themselves, to look at them.
    """

    trial: SettlementTrial
    till: Till
    look: Look
    doors: Doors
    node_url: str
    proxies: dict[str, Proxy]
    before: Balances
    deals: list[Deal]
    random: Random = field(default_factory=lambda: Random(1))

    def draw(self, name: str, count: int = 1, **fixed: object) -> list[Deal]:
        """Return trades between random parties; how each must end is found out at the end where it is not given."""
        found = [
            Deal(
                f"{name}-{at}",
                self.random.choice(SELLERS),
                self.random.choice(BUYERS),
                self.random.randint(1, 9),
                self.random.randint(1, 900),
                PAID,
            )
            for at in range(count)
        ]
        found = [replace(deal, **fixed) for deal in found]  # type: ignore[arg-type]
        self.deals += found
        return found

    async def kill(self, name: str) -> None:
        """End a node or program with SIGKILL."""
        await (self.trial.kill(name) if name in self.trial.urls else self.trial.kill_program(name))

    async def start(self, name: str) -> None:
        """Start it again."""
        await (self.trial.start(name) if name in self.trial.urls else self.trial.start_program(name))

    def freeze(self, name: str) -> None:
        """Freeze a program or node with SIGSTOP."""
        if name in self.trial.urls:
            self.trial.freeze(name)
        else:
            programs.freeze(self.trial.program(name))

    def resume(self, name: str) -> None:
        """Wake it."""
        if name in self.trial.urls:
            self.trial.resume(name)
        else:
            programs.resume(self.trial.program(name))

    async def begin_anew(self, wishes: Wishes) -> None:
        """Let the programs run otherwise, with stores of their own that hold nothing yet."""
        await self.trial.open_settlement(wishes)
        self.deals.clear()
        self.before = await self.look.balances()

    async def state_of(self, deal: Deal) -> str:
        """Return the state of a trade's event."""
        return (await self.till.until(deal.event, lambda _: True)).event.state.value

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something holds."""
        with trio.fail_after(HEALING_S):
            while not await holds():
                await pass_time(20)

    async def faults(self, *, may_cancel: bool = False) -> list[str]:
        """Wait for every trade's end and return what is not as it must be.

        ``may_cancel`` lets a trade come to nothing that would have been paid: whoever made it may not have come back.
        """
        ended = {deal.event: (await self.till.end(deal.event)).event for deal in self.deals}
        found = []
        for at, deal in enumerate(self.deals):
            event = ended[deal.event]
            if may_cancel and event.state is State.CANCELLED:
                self.deals[at] = replace(deal, wanted=CANCELLED)
            elif (event.state, event.outcome) != (deal.wanted.state, deal.wanted.outcome):
                found.append(f"{deal.event} is {event.state} {event.outcome} {event.code}, not {deal.wanted}")
        ends = await self.look.ends()
        found += [
            f"{deal}: {ends.get(deal.event)}" for deal in self.deals if not both_or_neither(deal, ends.get(deal.event))
        ]
        after = await self.look.balances()
        paid = [deal for deal in self.deals if deal.wanted == PAID]
        if not moved_so([(deal.seller, deal.buyer, deal.units) for deal in paid], self.before.units, after.units):
            found.append(f"units: {self.before.units} became {after.units}")
        if not moved_so([(deal.buyer, deal.seller, deal.price) for deal in paid], self.before.money, after.money):
            found.append(f"money: {self.before.money} became {after.money}")
        if self.before.supply != after.supply:
            found.append(f"{self.before.supply} units became {after.supply}")
        for holding in (*after.units.values(), *after.money.values()):
            if holding.aside:
                found.append(f"{holding} is left aside")
        return found


def change_file(trial: SettlementTrial, program: str, kind: type[F], **changes: object) -> None:
    """Change fields of a program's ``service.toml``; it must not run."""
    home = trial.program(program).folder
    write_service(home, msgspec.structs.replace(read_service(home, kind), **changes))


async def put_between(trial: SettlementTrial, nursery: trio.Nursery, doors: Doors, folder: Path) -> dict[str, Proxy]:
    """Let the programs reach each other through proxies of their own; they run again when this returns."""
    payer = read_service(trial.program(PAYER).folder, PayerFile)
    tcp = partial(tcp_proxy, nursery)
    proxies = {}
    proxies["events-node"], node = await tcp("events-node", trial.urls[NODE])
    proxies["events-center"], center = await tcp("events-center", payer.center)
    proxies["payer-center"], payers_center = await tcp("payer-center", payer.center)
    proxies["payer-accounts"], accounts = await tcp("payer-accounts", payer.accounts)
    proxies["payer-events"] = await unix_proxy(nursery, "payer-events", doors.events, folder / "payer.sock")
    for program in (PAYER, EVENTS):
        await trial.stop_program(program)
    # The node behind the proxy is asked first, so that its accidents are met.
    others = [url for name, url in trial.urls.items() if name != NODE]
    change_file(trial, EVENTS, EventsFile, nodes=[node, *others], center=center)
    socket = str(folder / "payer.sock")
    change_file(trial, PAYER, PayerFile, center=payers_center, accounts=accounts, events=socket)
    for program in (EVENTS, PAYER):
        await trial.start_program(program)
    return proxies


@asynccontextmanager
async def running_settlement(
    folder: Path, *, wishes: Wishes | None = None, has_proxies: bool = False
) -> AsyncIterator[System]:
    """Give the whole system on four nodes; all processes end with the block."""
    async with AsyncExitStack() as stack:
        # Paths of sockets have to be short.
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hansa-")))
        trial = await stack.enter_async_context(settlement_trial(folder))
        nursery = await stack.enter_async_context(trio.open_nursery())
        doors = await trial.open_settlement(wishes or Wishes(allow_faults=True))
        proxies: dict[str, Proxy] = {}
        through, node_url = doors, trial.urls[NODE]
        if has_proxies:
            proxies = await put_between(trial, nursery, doors, sockets)
            socket = sockets / "trader.sock"
            proxies["trader-events"] = await unix_proxy(nursery, "trader-events", doors.events, socket)
            proxies["trader-accounts"], accounts = await tcp_proxy(nursery, "trader-accounts", doors.accounts_url)
            proxies["trader-node"], node_url = await tcp_proxy(nursery, "trader-node", node_url)
            through = Doors(socket, accounts, doors.accounts_token)
        urls = trial.urls
        async with (
            open_chain(trial.genesis, urls, [name for name in urls if name != NODE]) as chain,
            open_till(trial.genesis, list(urls.values()), doors, trial.key) as till,
        ):
            deals: list[Deal] = []
            look = Look(deals, trial, chain, till)
            yield System(trial, till, look, through, node_url, proxies, await look.balances(), deals)
        nursery.cancel_scope.cancel()


def lines(found: Sequence[str]) -> str:
    """Return faults for people."""
    return "\n".join(found) or "both or neither, money and units conserved"
