"""Gathers the facts of the settlement demo: from the event system, proven state of the chain, the account system."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from consensus.ledger.errors import PeerError
from services.accounts.port import ENTRIES_MAX, ORDERS_MAX, Entry, Operation, Standing
from services.demo.agency_till import patiently
from services.demo.chain import Chain
from services.demo.settlement_facts import NO_LIEN, End, Facts, Holding
from services.demo.settlement_network import UNIT, SettlementConsortium
from services.demo.settlement_script import BUYERS, EMPTY, FROZEN, SELLERS, Deal
from services.demo.settlement_story import Story
from services.demo.settlement_till import Till
from services.settlement.interfaces import EventAnswer
from services.settlement.states import Kind

NAMES = tuple(dict.fromkeys((*SELLERS, *BUYERS, FROZEN, EMPTY)))
AGREE_ATTEMPTS, AGREE_PAUSE_S = 100, 0.1
REST_S_MAX = 20.0
"""How long what follows a trade's end may take: liens are lifted, money is freed."""
EVER_MS = 1 << 62
HELD = "HELD"


@dataclass(frozen=True, slots=True)
class Balances:
    """What everybody of the story holds, and how many units there are."""

    units: dict[str, Holding]
    money: dict[str, Holding]
    supply: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What reconciliation says of the days of the story: how many events it compared, and each break."""

    events: int
    breaks: list[str]


@dataclass(frozen=True, slots=True)
class Look:
    """Who is asked for facts about which trades."""

    deals: Sequence[Deal]
    consortium: SettlementConsortium
    chain: Chain
    till: Till

    async def balances(self) -> Balances:
        """Return proven balances of units as of the newest block, and the account system's."""
        height = await self._height()
        units = {}
        for name in NAMES:
            units[name] = Holding(*_pair(await self._state(f"balance/{UNIT}/{self.till.address(name).hex()}", height)))
        supply = await self._state(f"supply/{UNIT}", height)
        if not isinstance(supply, int):
            raise PeerError("bad_answer", f"{supply!r} is no supply")
        accounts = {account.id: account for account in await patiently(self.till.accounts.accounts)}
        money = {name: Holding(accounts[name].available, accounts[name].held) for name in NAMES}
        return Balances(units, money, supply)

    async def facts(self, story: Story, before: Balances, reconcile: Callable[[], Awaitable[Reconciled]]) -> Facts:
        """Ask everyone, once every trade has ended and every lien is lifted."""
        ends = await self.ends()
        after = await self.balances()
        known = {deal.event for deal in self.deals}
        reversals = [event for event in await self.till.listed() if event.kind is Kind.REVERSAL]
        found = await reconcile()
        return Facts(
            deals=self.deals,
            ends=ends,
            supply=(before.supply, after.supply),
            units_before=before.units,
            units_after=after.units,
            money_before=before.money,
            money_after=after.money,
            answers=story.answers,
            repeated=story.repeated,
            accidents=story.accidents,
            silent_states=story.silent_states,
            flagged=story.flagged,
            reversals=Counter(event.state.value for event in reversals if event.original in known),
            breaks=found.breaks,
            reconciled=found.events,
            seals=await self._seals(),
        )

    async def ends(self) -> dict[str, End]:
        """Return how each trade ended, once nothing is under way any more, or after a while as it stands."""
        with trio.move_on_after(REST_S_MAX):
            while True:
                if await self._is_at_rest():
                    break
                await trio.sleep(AGREE_PAUSE_S)
        standings = await self._standings()
        paid = _paid(await self._entries())
        liens = await self._liens()
        ends = {}
        for deal in self.deals:
            shown = await self.till.until(deal.event, lambda _: True)
            ends[deal.event] = _end(shown, *liens[deal.event], standings[deal.event], paid[deal.event])
        return ends

    async def _is_at_rest(self) -> bool:
        """Tell whether every trade has ended, no money is held for it, and its lien is lifted or given back."""
        if any(_is_held(standing) for standing in (await self._standings()).values()):
            return False
        finished = {event.event for event in await self.till.listed() if event.is_finished}
        return all(deal.event in finished for deal in self.deals) and all(
            status != HELD for status, _ in (await self._liens()).values()
        )

    async def _standings(self) -> dict[str, Standing | None]:
        """Return what the account system did for each trade."""
        events = [deal.event for deal in self.deals]
        standings: dict[str, Standing | None] = {}
        for first in range(0, len(events), ORDERS_MAX):
            page = events[first : first + ORDERS_MAX]
            found = await patiently(partial(self.till.accounts.look_up, page))
            standings.update(zip(page, found, strict=True))
        return standings

    async def _liens(self) -> dict[str, tuple[str, int]]:
        """Return each lien's proven status and units, as of the newest block."""
        height = await self._height()
        found = {}
        for deal in self.deals:
            record = await self._state(f"lien/{self.till.address(deal.seller).hex()}/{deal.event}", height)
            match record:
                case {"status": str() as status, "amount": int() as amount}:
                    found[deal.event] = (status, amount)
                case _:
                    found[deal.event] = (NO_LIEN, 0)
        return found

    async def _entries(self) -> list[Entry]:
        found: list[Entry] = []
        after = 0
        while True:
            ask = partial(self.till.accounts.entries, from_ms=0, until_ms=EVER_MS, after=after, limit=ENTRIES_MAX)
            page = await patiently(ask)
            found += page.items
            after = page.next
            if not after:
                return found

    async def _height(self) -> int:
        return max([await self.chain.height_at(name) for name in self.consortium.urls])

    async def _state(self, key: str, height: int) -> object:
        return (await patiently(partial(self.till.client.state, f"tokens/{key}", height_min=height))).value

    async def _seals(self) -> dict[str, tuple[int, bytes]]:
        """Return each node's newest sealed state, once all have the same, or after a while."""
        height, found = await self._height(), {}
        for _ in range(AGREE_ATTEMPTS):
            for name in self.consortium.urls:
                seal = await self.chain.seal_at(name, f"tokens/supply/{UNIT}", height_min=height)
                found[name] = (seal.height, seal.root)
            if len(set(found.values())) == 1:
                break
            await trio.sleep(AGREE_PAUSE_S)
        return found


def _end(shown: EventAnswer, lien: str, units: int, standing: Standing | None, paid: int) -> End:
    event = shown.event
    is_paid = standing is not None and standing.paid_ms > 0 == standing.reversed_ms
    steps = tuple(row.state_after for row in shown.history)
    return End(event.state, event.outcome, event.code, steps, lien, units, is_paid, _is_held(standing), paid)


def _is_held(standing: Standing | None) -> bool:
    return standing is not None and standing.reserved_ms > 0 and not (standing.paid_ms or standing.released_ms)


def _paid(entries: Sequence[Entry]) -> Counter[str]:
    """Return how much went from one account to another for each event."""
    found: Counter[str] = Counter()
    for entry in entries:
        if entry.event and entry.debit.partition("/")[0] != entry.credit.partition("/")[0]:
            found[entry.event] += entry.amount if entry.operation == Operation.PAY else -entry.amount
    return found


def _pair(value: object) -> tuple[int, int]:
    """Return [available, reserved] of a balance record, zeros where there is none."""
    match value:
        case None:
            return 0, 0
        case [int() as available, int() as reserved]:
            return available, reserved
    raise PeerError("bad_answer", f"{value!r} is no balance")
