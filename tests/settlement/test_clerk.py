"""The clerk on real nodes: liens of paid trades are lifted, units of unpaid ones go back, each once."""

from pathlib import Path

import trio

from services.settlement.clerk import Clerk
from services.settlement.listener import Listener
from services.settlement.states import Outcome, State, Topic, Wish, changed
from tests.client.support import NOW_MS, SoloNode, client_of, running, signer
from tests.settlement.chain import AGENT, BUYER, SELLER, BellStore, balance, event_of, give_units, transaction_of


async def delivered(store: BellStore, client: object, *names: str) -> None:
    """Register trades and have them delivered."""
    events = [event_of(name) for name in names]
    await store.register(events)
    await client.submit_many([transaction_of(event) for event in events], wait_ms=10_000)  # type: ignore[attr-defined]


async def test_liens_of_paid_trades_are_lifted(tmp_path: Path) -> None:
    node, store = SoloNode(tmp_path / "a"), BellStore()
    async with running(node), client_of(node) as client, trio.open_nursery() as nursery:
        await give_units(client)
        clerk = Clerk(client, store, signer(AGENT), now_ms=lambda: NOW_MS)
        nursery.start_soon(clerk.run)
        names = [f"e-{number}" for number in range(5)]
        await delivered(store, client, *names)
        assert await balance(client, BUYER) == (0, 50)
        await store.apply([changed(store.events[name], "paid", Topic.LIFT, now_ms=NOW_MS) for name in names])
        clerk.wake()
        await store.until(lambda: not store.outbox)
        assert await balance(client, BUYER) == (50, 0)
        nursery.cancel_scope.cancel()


async def test_a_reversal_gives_the_units_back(tmp_path: Path) -> None:
    node, store = SoloNode(tmp_path / "a"), BellStore()
    async with running(node), client_of(node) as client, trio.open_nursery() as nursery:
        await give_units(client)
        listener = Listener(client, store, now_ms=lambda: NOW_MS)
        await nursery.start(listener.run)
        clerk = Clerk(client, store, signer(AGENT), now_ms=lambda: NOW_MS)
        nursery.start_soon(clerk.run)
        await delivered(store, client, "e-1")
        await store.until(lambda: store.events["e-1"].state is State.ACCOUNT_PENDING)
        wish = changed(store.events["e-1"], "closed", Topic.REVERSE, now_ms=NOW_MS, wish=Wish.REVERSE)
        await store.apply([wish])
        clerk.wake()
        await store.until(lambda: store.events["e-1"].state is State.COMPLETED)
        assert store.events["e-1"].outcome is Outcome.REVERSED
        assert store.events["e-1.reverse"].state is State.COMPLETED
        assert (await balance(client, BUYER), await balance(client, SELLER)) == ((0, 0), (1_000, 0))
        nursery.cancel_scope.cancel()
