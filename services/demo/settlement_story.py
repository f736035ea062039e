"""The story of the settlement demo.

::

    sellers get units, buyers get simulated money · trades that nothing happens to · bad input · one trade asked for
    many times at once · money or units that are not there · a validator dies; in each round a program of the system
    dies while trades are under way; answers of the account system are lost and doubled; the validator comes back · an
    account is frozen before it pays: an operator takes some units back, frees the account, and tries the others again
    · relay and scan are off: nothing goes on; the scan alone finishes what was left
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import msgspec
import trio

from services.accounts.faults import Fault
from services.client.errors import Refused
from services.demo.agency_till import patiently
from services.demo.settlement_facts import Accident
from services.demo.settlement_network import (
    ACCOUNTS,
    CENTER,
    EVENTS,
    PAYER,
    SettlementConsortium,
    Wishes,
)
from services.demo.settlement_script import FROZEN, REPEATS, Deal, Script
from services.demo.settlement_till import Till
from services.demo.watch import Watch
from services.settlement.interfaces import Register, Registered, Registration, Release
from services.settlement.states import State

VICTIM_NODE = "permission"
ROUNDS = 6
"""Programs that die in turn, and two ways in which the account system misbehaves."""
FINAL_MS_MAX = 30_000

Round = Callable[[], Awaitable[None]]


class Story:
    """One run of the story."""

    def __init__(
        self, script: Script, consortium: SettlementConsortium, till: Till, watch: Watch, wishes: Wishes
    ) -> None:
        self.wishes = wishes
        self.answers: dict[str, tuple[str, str]] = {}
        self.accidents: list[Accident] = []
        self.repeated = (0, 0)
        self.silent_states: list[str] = []
        self.flagged = 0
        self.alone_ms: list[float] = []
        self.burst = (0, 0.0)
        self._script = script
        self._consortium = consortium
        self._till = till
        self._watch = watch

    async def prepare(self) -> None:
        """Give every seller the units that it will sell, and every buyer the money."""
        self._watch.say("simulated money is paid in")
        await self._till.endow(self._script.deals)

    async def play(self) -> None:
        """Play it."""
        await self._plain()
        await self._bad_input()
        await self._repeat()
        self._watch.say("money or units that are not there")
        await self._till.trade([*self._script.poor, *self._script.empty])
        await self._die_in_turn()
        await self._freeze_account()
        await self._fall_silent()

    async def _plain(self) -> None:
        alone, together = self._script.alone, self._script.plain
        self._watch.say(f"{len(alone)} trades one after the other, {len(together)} at once")
        for deal in alone:
            began = time.monotonic()
            await self._till.trade([deal])
            self.alone_ms.append(1_000 * (time.monotonic() - began))
        began = time.monotonic()
        await self._till.trade(together)
        self.burst = (len(together), time.monotonic() - began)

    @property
    def alone_p50_ms(self) -> float:
        """Median time of a trade alone, from signing to COMPLETED."""
        return median(self.alone_ms)

    # -- what is refused -------------------------------------------------------------------------------

    async def _bad_input(self) -> None:
        """Ask for what must not happen."""
        self._watch.say("bad input is refused")
        known = self._script.alone[0]
        trade = self._till.trade_of(known)
        dearer = replace(known, price=known.price + 1)
        await self._refused("a known event with another price", "event_conflict", self._place(dearer))
        stranger = replace(trade, event=f"{known.event}-stranger")
        terms = msgspec.structs.replace(stranger.terms, payer="nobody-at-all")
        stranger = replace(stranger, terms=terms)
        await self._refused("a buyer without an account", "unknown_account", self._placed(stranger))
        raw = (await self._till.end(known.event)).event.raw
        foreign = Registration(f"{known.event}-foreign", trade.terms, raw)
        await self._refused("bytes of another event", "bad_trade", self._registered(foreign))
        release = partial(self._till.events.call, "release", Release([f"{known.event}-none"]), Registered)
        await self._refused("the release of an unknown event", "unknown_event", self._first(release))
        await self._refused("the reversal of a finished trade", "event_finished", self._repaired(known.event))

    async def _refused(self, title: str, wanted: str, ask: Awaitable[str]) -> None:
        try:
            code = await ask
        except Refused as error:
            code = error.code
        self.answers[title] = (code, wanted)

    async def _place(self, deal: Deal) -> str:
        return (await self._till.place([deal]))[0].code

    async def _placed(self, trade: object) -> str:
        return (await self._till.trader.place([trade]))[0].code  # type: ignore[list-item]

    async def _registered(self, registration: Registration) -> str:
        return await self._first(partial(self._till.events.call, "register", Register([registration]), Registered))

    async def _first(self, ask: Callable[[], Awaitable[Registered]]) -> str:
        return (await patiently(ask)).items[0].code

    async def _repaired(self, event: str) -> str:
        return (await self._till.repair(event, "reverse")).code

    async def _repeat(self) -> None:
        """Ask for one trade many times at once, signed anew each time."""
        deal = self._script.repeated
        self._watch.say(f"one trade is asked for {REPEATS} times at once")
        found: list[bytes] = []

        async def ask() -> None:
            await self._till.place([deal])
            found.append((await self._till.end(deal.event)).event.transaction_id)

        async with trio.open_nursery() as nursery:
            for _ in range(REPEATS):
                nursery.start_soon(ask)
        self.repeated = (len(found), len(set(found)))

    # -- accidents -------------------------------------------------------------------------------------

    async def _die_in_turn(self) -> None:
        """Let a validator be dead, and in each round something else go wrong while trades are under way."""
        await self._consortium.kill(VICTIM_NODE)
        rounds: list[tuple[str, Round]] = [
            (EVENTS, partial(self._crash, EVENTS)),
            (PAYER, partial(self._crash, PAYER)),
            (CENTER, partial(self._crash, CENTER)),
            (ACCOUNTS, partial(self._crash, ACCOUNTS)),
            ("payment answers lost", self._lose_answers),
            ("payments answered twice", self._double_answers),
        ]
        for (name, accident), deals in zip(rounds, self._script.rounds, strict=True):
            self._watch.say(f"{len(deals)} trades are under way; {name}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._till.place, deals)
                await accident()
            ended = [await self._till.end(deal.event) for deal in deals]
            self.accidents.append(Accident(name, len(ended)))
        await patiently(self._till.accounts.clear_faults)
        await self._consortium.start(VICTIM_NODE)
        died_meanwhile = sum(accident.ended for accident in self.accidents)
        self.accidents.append(Accident(f"validator {VICTIM_NODE}", died_meanwhile))

    async def _crash(self, program: str) -> None:
        await self._consortium.kill_program(program)
        await self._consortium.start_program(program)

    async def _lose_answers(self) -> None:
        await patiently(partial(self._till.accounts.set_fault, Fault(kind="lose_answer", operation="pay", count=2)))

    async def _double_answers(self) -> None:
        await patiently(partial(self._till.accounts.set_fault, Fault(kind="answer_twice", operation="pay", count=5)))

    # -- what cannot be paid ---------------------------------------------------------------------------

    async def _freeze_account(self) -> None:
        """Freeze an account whose trades have taken effect; an operator reverses some and tries others again."""
        deals = [*self._script.frozen, *self._script.thawed]
        self._watch.say(f"the account of {FROZEN} is frozen before {len(deals)} trades are paid")
        await self._consortium.kill_program(PAYER)
        await self._till.place(deals)
        for deal in deals:
            await self._till.until(deal.event, lambda event: event.state is not State.REGISTERED)
        await patiently(partial(self._till.accounts.freeze, FROZEN))
        await self._consortium.start_program(PAYER)
        for deal in deals:
            self.flagged += (await self._till.until(deal.event, lambda event: event.is_flagged)).event.is_flagged
        self._watch.say("an operator takes units back")
        for deal in self._script.frozen:
            await self._till.repair(deal.event, "reverse")
        for deal in self._script.frozen:
            await self._till.end(deal.event)
        await patiently(partial(self._till.accounts.unfreeze, FROZEN))
        for deal in self._script.thawed:
            await self._till.repair(deal.event, "retry")
        for deal in self._script.thawed:
            await self._till.end(deal.event)

    # -- relay and scan --------------------------------------------------------------------------------

    async def _fall_silent(self) -> None:
        """Trade with relay and scan off, and let the scan alone finish it."""
        deals: Sequence[Deal] = self._script.silent
        self._watch.say(f"{len(deals)} trades with relay and scan off")
        await self._consortium.open_settlement(replace(self.wishes, is_relay_on=False, is_scan_on=False))
        kept = await self._till.place(deals)
        ids = [item.event.transaction_id for item in kept if item.event is not None]
        await self._till.client.wait_final(ids, timeout_ms=FINAL_MS_MAX)
        found = {event.event: event for event in await self._till.listed()}
        self.silent_states = [found[deal.event].state.value for deal in deals]
        self._watch.say("the scan alone finishes them")
        await self._consortium.open_settlement(replace(self.wishes, is_relay_on=False))
        for deal in deals:
            await self._till.end(deal.event)
        await self._consortium.open_settlement(self.wishes)
