"""Who trades, in demo, benchmark and tests: brings trades to the transaction system, waits for what becomes of them.

Programs may be away at any time: whatever is asked is asked again until somebody answers.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import EACH, make_call
from services.accounts.link import AccountsLink, open_accounts
from services.client.client import Client, open_client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.demo.agency_till import patiently
from services.demo.settlement_network import AGENT, CURRENCY, ISSUER, UNIT, Doors
from services.demo.settlement_script import Deal
from services.local.link import LocalLink
from services.settlement.interfaces import (
    LIST_MAX,
    REGISTER_MAX,
    EventAnswer,
    EventQuery,
    EventsPage,
    EventsQuery,
    EventsStatus,
    Kept,
    Repair,
    StatusQuery,
)
from services.settlement.states import Event, State, Terms
from services.settlement.trader import Trade, Trader

WAIT_MS = 5_000
END_S_MAX = 90.0
"""How long a trade may take to its end."""
POLL_S = 0.05


class Till:
    """Places trades and follows them; made by :func:`open_till`."""

    def __init__(
        self, client: Client, events: LocalLink, accounts: AccountsLink, key: Callable[[str], PrivateKey]
    ) -> None:
        self.client = client
        self.events = events
        self.accounts = accounts
        self._key = key
        self._signers: dict[str, Signer] = {}
        self.trader = Trader(events, accounts, client, agent=self.address(AGENT))

    def signer(self, identity: str) -> Signer:
        """Return an identity, ready to sign."""
        if identity not in self._signers:
            self._signers[identity] = Signer.of(identity, self._key(identity))
        return self._signers[identity]

    def address(self, identity: str) -> bytes:
        """Return the address of an identity's account on the chain."""
        return self.signer(identity).address

    def trade_of(self, deal: Deal) -> Trade:
        """Return a deal as the transaction system takes it; who pays has an account of its own name."""
        terms = Terms(
            seller=self.address(deal.seller),
            buyer=self.address(deal.buyer),
            asset=UNIT,
            units=deal.units,
            price=deal.price,
            currency=CURRENCY,
            payer=deal.buyer,
            payee=deal.seller,
        )
        return Trade(deal.event, self.signer(deal.seller), terms)

    async def endow(self, deals: Sequence[Deal]) -> None:
        """Issue what sellers will sell and pay in what buyers will owe, for trades that must not fail; simulated money.

        Raises:
            Refused: the chain's.
        """
        sold: Counter[str] = Counter()
        owed: Counter[str] = Counter()
        for deal in deals:
            if deal.wanted.state is State.COMPLETED:
                sold[deal.seller] += deal.units
                owed[deal.buyer] += deal.price
        calls = [
            make_call("tokens", "issue", {"unit": UNIT, "to": self.address(name), "amount": amount})
            for name, amount in sorted(sold.items())
        ]
        (await self.client.call_many(self.signer(ISSUER), calls, mode=EACH)).check()
        for name, amount in sorted(owed.items()):
            await patiently(partial(self.accounts.deposit, name, amount, key=f"{deals[0].event}-{name}"))

    async def place(self, deals: Sequence[Deal]) -> list[Kept]:
        """Place trades: registered, money held, released, sent; or why not. Programs may be away meanwhile."""
        kept: list[Kept] = []
        for first in range(0, len(deals), REGISTER_MAX):
            trades = [self.trade_of(deal) for deal in deals[first : first + REGISTER_MAX]]
            kept += await patiently(partial(self.trader.place, trades))
        return kept

    async def end(self, event: str) -> EventAnswer:
        """Wait until an event is finished and return it.

        Raises:
            Unreachable: ``program_timeout``: it takes longer than :data:`END_S_MAX`.
        """
        return await self.until(event, lambda found: found.is_finished)

    async def until(self, event: str, is_enough: Callable[[Event], bool]) -> EventAnswer:
        """Wait until an event is as it should be and return it; errors as :meth:`end`."""
        version = 0
        with trio.move_on_after(END_S_MAX):
            while True:
                query = EventQuery(event, version, WAIT_MS)
                try:
                    shown = await patiently(partial(self.events.call, "event", query, EventAnswer))
                except Refused as error:
                    if error.code != "unknown_event":
                        raise
                    await trio.sleep(POLL_S)
                    continue
                if is_enough(shown.event):
                    return shown
                version = shown.event.version
        raise Unreachable(f"{event} is not as it should be after {END_S_MAX:g} s", code="program_timeout")

    async def trade(self, deals: Sequence[Deal]) -> dict[str, Event]:
        """Place trades, wait until all are finished or wait for an operator, and return the events by id."""
        await self.place(deals)
        ended: dict[str, Event] = {}
        for first in range(0, len(deals), REGISTER_MAX):
            events = [deal.event for deal in deals[first : first + REGISTER_MAX]]
            ended |= await patiently(partial(self.trader.wait_many, events, timeout_ms=int(1_000 * END_S_MAX)))
        return ended

    async def listed(self, *, is_flagged: bool | None = None) -> list[Event]:
        """Return all events, or flagged ones alone."""
        found: list[Event] = []
        after = ""
        while True:
            query = EventsQuery(is_flagged=is_flagged, after=after, limit=LIST_MAX)
            page = await patiently(partial(self.events.call, "events", query, EventsPage))
            found += page.items
            after = page.next
            if not after:
                return found

    async def repair(self, event: str, action: str) -> Kept:
        """Give an operator's word: ``retry`` or ``reverse``."""
        return await patiently(partial(self.events.call, "repair", Repair(event, action), Kept))

    async def status(self) -> EventsStatus:
        """Return how the event system stands."""
        return await patiently(partial(self.events.call, "status", StatusQuery(), EventsStatus))


@asynccontextmanager
async def open_till(
    genesis: Genesis, urls: Sequence[str], doors: Doors, key: Callable[[str], PrivateKey]
) -> AsyncIterator[Till]:
    """Give a till at the doors of a running system.

    Args:
        genesis: the chain's.
        urls: RPC roots of nodes: a trade goes to any of them.
        doors: of the programs.
        key: the key of an identity by its name.
    """
    async with (
        open_client(genesis, urls) as client,
        LocalLink(doors.events) as events,
        open_accounts(doors.accounts_url, token=doors.accounts_token) as accounts,
    ):
        yield Till(client, events, accounts, key)
