"""Settlement on a node that decides alone: accounts with units, events with signed deliveries, a store in memory."""

from collections.abc import Callable

import trio

from consensus.ledger.transaction import Transaction, decode_transaction_untrusted, make_call
from services.client.client import Client
from services.settlement.decision import opened
from services.settlement.states import Event, Terms, changed
from services.settlement.trades import deliver_call, lane_of
from tests.client.support import CONSORTIUM, NOW_MS, SoloNode, address, signer
from tests.settlement.memory import MemoryStore

UNIT = "BOND-1"
SELLER, BUYER, AGENT = "shop", "user-b", "user-e"
TIMEOUT_S = 20
VALIDITY_MS = 300_000


def terms_of(units: int = 10) -> Terms:
    """Return terms of a trade: ten units for 1,000.00."""
    return Terms(
        seller=address(SELLER),
        buyer=address(BUYER),
        asset=UNIT,
        units=units,
        price=100_000,
        currency="CNY",
        payer=BUYER,
        payee=SELLER,
    )


def event_of(name: str, *, units: int = 10, valid_until_ms: int = NOW_MS + VALIDITY_MS) -> Event:
    """Return a released trade with its signed delivery."""
    terms = terms_of(units)
    transaction = CONSORTIUM.sign(
        SELLER, [deliver_call(name, terms, address(AGENT))], lane=lane_of(name), valid_until_ms=valid_until_ms
    )
    event = opened(
        name,
        terms,
        transaction_id=bytes(transaction.id),
        raw=transaction.raw,
        valid_until_ms=valid_until_ms,
        now_ms=NOW_MS,
    )
    return changed(event, "released", now_ms=NOW_MS, is_released=True).after


def transaction_of(event: Event) -> Transaction:
    """Return an event's transaction."""
    return decode_transaction_untrusted(event.raw)


async def give_units(client: Client, amount: int = 1_000) -> None:
    """Define the unit and give the seller some."""
    calls = [
        make_call("tokens", "define", {"unit": UNIT, "decimals": 0, "description": "a bond"}),
        make_call("tokens", "issue", {"unit": UNIT, "to": address(SELLER), "amount": amount}),
    ]
    (await client.call_many(signer("bank-a"), calls)).check()


async def balance(client: Client, name: str) -> tuple[int, int]:
    """Return what an account has available and reserved."""
    answer = await client.query("tokens", "balance", {"unit": UNIT, "account": address(name)})
    if not isinstance(answer, dict):
        raise TypeError(answer)
    return answer["available"], answer["reserved"]


def decide_at(node: SoloNode, time_ms: int) -> None:
    """Commit one block of what waits, with this block time."""
    head_ms = node.chain.head.header.time_ms
    node.decide(step_ms=time_ms - head_ms)


class BellStore(MemoryStore):
    """A store that tells whoever waits for it that something has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.bell = trio.Event()

    async def apply(self, changes: object, **options: object) -> list[bool]:
        taken = await super().apply(changes, **options)  # type: ignore[arg-type]
        self.ring()
        return taken

    async def drop_notices(self, numbers: object) -> None:
        await super().drop_notices(numbers)  # type: ignore[arg-type]
        self.ring()

    def ring(self) -> None:
        """Let everyone who waits look again."""
        self.bell.set()
        self.bell = trio.Event()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        with trio.fail_after(TIMEOUT_S):
            while not is_so():
                await self.bell.wait()
