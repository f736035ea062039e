"""The agency system as real processes: orders whose end is known, and what must hold whatever died meanwhile."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
import trio

from cli.agency_trial import AgencyTrial, agency_trial
from node.network import programs
from node.network.local import node_process
from node.network.process import ProcessState
from services.agency.interfaces import Status, StatusQuery
from services.agency.issuer_interface import IssuerSummary, SummaryQuery
from services.agency.orders import Application, Code, Investor
from services.agency.sales_interface import OrderRecord, State
from services.client.client import Client, open_client
from services.demo.agency_gather import expected_units
from services.demo.agency_network import BANK, BANK_GATEWAY, ISSUER, ISSUER_END, ISSUER_GATEWAY, SALES
from services.demo.agency_till import Till, open_till, patiently
from services.local.link import LocalLink
from tests.network.support import pass_time

SETTLE_S = 60
HOLDERS = 4
NODES = (BANK, ISSUER)
PROGRAMS = (SALES, BANK_GATEWAY, ISSUER_GATEWAY, ISSUER_END)
STRANGER = "stranger"
BOUGHT, TOO_MUCH = 100_00, 10**12


def application(serial: str, code: str, holder: str, **changes: object) -> Application:
    """Return an order of a holder for the money-market fund."""
    plain = Application(
        *(serial, code, "C-FUNDS", "000198", "", holder, holder, "996", "", 0, 0, "156", 20170427, 93000),
        *(0, False, None, {}),
    )
    return msgspec.structs.replace(plain, **changes)


@dataclass
class System:
    """A running system, what was ordered, and how each order must end."""

    trial: AgencyTrial
    till: Till
    client: Client
    wanted: dict[str, tuple[str, str]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    @property
    def holders(self) -> list[str]:
        """TA accounts that the issuer knows."""
        return [f"holder{at}" for at in range(HOLDERS)]

    async def register(self) -> None:
        """Open the accounts."""
        people = [Investor(f"user {name}", "0", f"{at:018d}", 1980_01_01, 3) for at, name in enumerate(self.holders, 1)]
        openings = [
            application(f"open-{name}", Code.OPEN_ACCOUNT, name, product="", currency="", investor=investor)
            for name, investor in zip(self.holders, people, strict=True)
        ]
        await self.bring("accounts", openings)
        await self.till.until("accounts")

    def mixed(self, random: Random, name: str, count: int) -> list[Application]:
        """Return orders that are confirmed, rejected by the issuer, or dropped by the bank, at random."""
        orders = []
        for at in range(count):
            serial, holder = f"{name}-{at}", random.choice(self.holders)
            match random.randrange(4):
                case 0:
                    orders.append(application(serial, Code.REDEMPTION, holder, volume=TOO_MUCH))
                    self.wanted[serial] = (State.REJECTED, "insufficient_units")
                case 1:
                    orders.append(application(serial, Code.SUBSCRIPTION, STRANGER, amount=BOUGHT))
                    self.wanted[serial] = (State.DROPPED, "unknown_user")
                case _:
                    orders.append(application(serial, Code.SUBSCRIPTION, holder, amount=random.randrange(1, BOUGHT)))
        return orders

    async def bring(self, source: str, orders: list[Application]) -> None:
        """Bring orders to the sales end; what nothing else is known of must be confirmed."""
        for order in orders:
            self.wanted.setdefault(order.serial, (State.CONFIRMED, ""))
        self.sources.append(source)
        await self.till.bring(source, orders)

    async def kill(self, name: str) -> None:
        """End a node or program with SIGKILL."""
        await (self.trial.kill(name) if name in self.trial.urls else self.trial.kill_program(name))

    async def start(self, name: str) -> None:
        """Start it again."""
        await (self.trial.start(name) if name in self.trial.urls else self.trial.start_program(name))

    async def crash(self, name: str, *, after_ms: int) -> None:
        """Kill something a while from now, and start it again."""
        await pass_time(after_ms)
        await self.kill(name)
        await self.start(name)

    async def settle(self) -> None:
        """Wait until everything has ended and is anchored."""
        for source in self.sources:
            await self.till.until(source, timeout_s=SETTLE_S)

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something holds."""
        with trio.fail_after(SETTLE_S):
            while not await holds():
                await pass_time(20)

    async def state_of(self, serial: str) -> tuple[str, str]:
        """Return how an order stands."""
        record = await self.till.record(serial)
        return record.state.value, record.reason

    async def gateway_status(self, program: str) -> Status:
        """Return how a gateway stands."""
        async with LocalLink(self.trial.socket(program)) as link:
            return await patiently(lambda: link.call("status", StatusQuery(), Status))

    async def received(self, count: int) -> bool:
        """Tell whether the issuer's gateway has so many packages."""
        return sum((await self.gateway_status(ISSUER_GATEWAY)).packages.values()) >= count

    async def anchors(self) -> list[dict[str, object]]:
        """Return the channel's anchors on the chain, oldest first."""
        found: list[dict[str, object]] = []
        while True:
            query = {"bank": BANK, "issuer": ISSUER, "start": len(found), "limit": 100}
            page = await self.client.query("evidence", "anchors", query)  # type: ignore[arg-type]
            assert isinstance(page, list)
            found += page  # type: ignore[arg-type]
            if len(page) < 100:
                return found

    async def faults(self) -> list[str]:
        """Return everything that is not as it must be, once all has settled."""
        found: list[str] = []
        records = await self.till.records()
        ends = {record.application.serial: (record.state.value, record.reason) for record in records}
        found += [f"{serial} stands twice" for serial, count in _counts(records).items() if count > 1]
        for serial, wanted in self.wanted.items():
            if ends.get(serial) != wanted:
                found.append(f"{serial} is {ends.get(serial)} and not {wanted}")
        async with LocalLink(self.trial.socket(ISSUER_END)) as link:
            issuer = await patiently(lambda: link.call("summary", SummaryQuery(), IssuerSummary))
        held = {total.product: total.units for total in issuer.products if total.units}
        if held != {product: units for product, units in expected_units(records).items() if units}:
            found.append(f"{held} is held and not {expected_units(records)}")
        counts = Counter(record.state for record in records)
        if (issuer.accepted, issuer.rejected) != (counts[State.CONFIRMED], self._rejected(records)):
            found.append(f"the issuer has {issuer.accepted} accepted, {issuer.rejected} rejected; the bank {counts}")
        anchors = await self.anchors()
        roots = {record.root for record in records if record.confirmation is not None}
        if Counter(item["root"] for item in anchors if item["status"] == "MUTUAL") != Counter(roots):
            found.append(f"{len(anchors)} anchors for {len(roots)} packages")
        for program in (BANK_GATEWAY, ISSUER_GATEWAY):
            found += [f"{program}: {alarm}" for alarm in (await self.gateway_status(program)).alarms]
        return found

    @staticmethod
    def _rejected(records: list[OrderRecord]) -> int:
        return sum(1 for record in records if record.confirmation is not None and not record.confirmation.is_accepted)

    def running(self) -> list[str]:
        """Return which nodes and programs run."""
        homes = {name: node_process(self.trial.network.node(name)).state() for name in self.trial.urls}
        found = [name for name, state in homes.items() if state is ProcessState.RUNNING]
        return found + [item.program.name for item in programs.status(self.trial.all_programs) if item.is_ready]


def _counts(records: list[OrderRecord]) -> Counter[str]:
    return Counter(record.application.serial for record in records)


@asynccontextmanager
async def running_agency(folder: Path) -> AsyncIterator[System]:
    """Give the whole system on four nodes, accounts opened; all processes end with the block."""
    async with agency_trial(folder) as trial:
        await trial.open_agency()
        async with (
            open_till(trial.socket(SALES), trial.socket(BANK_GATEWAY)) as till,
            open_client(trial.genesis, list(trial.urls.values())) as client,
        ):
            system = System(trial, till, client)
            await system.register()
            yield system
