"""The listener on real nodes: certified outcomes reach the store once, whatever breaks in between."""

from pathlib import Path

import trio

from services.settlement.listener import Listener
from services.settlement.states import State, Topic
from tests.client.support import NOW_MS, SoloNode, client_of, running
from tests.settlement.chain import BellStore, event_of, give_units, transaction_of


async def test_outcomes_reach_the_store(tmp_path: Path) -> None:
    node, store = SoloNode(tmp_path / "a"), BellStore()
    async with running(node), client_of(node) as client:
        await give_units(client)
        good, bad = event_of("e-1"), event_of("e-2", units=2_000)
        await store.register([good, bad])
        listener = Listener(client, store, now_ms=lambda: NOW_MS)
        async with trio.open_nursery() as nursery:
            await nursery.start(listener.run)
            await client.submit_many([transaction_of(good), transaction_of(bad)])
            await store.until(lambda: all(event.state != State.REGISTERED for event in store.events.values()))
            nursery.cancel_scope.cancel()
    paid, refused = store.events["e-1"], store.events["e-2"]
    assert (paid.state, paid.height) == (State.ACCOUNT_PENDING, 2)
    assert (refused.state, refused.code) == (State.CANCELLED, "insufficient_funds")
    assert [(notice.event, notice.topic) for notice in store.outbox.values()] == [
        ("e-1", Topic.PAY),
        ("e-2", Topic.RELEASE),
    ]
