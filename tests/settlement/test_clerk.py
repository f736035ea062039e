"""The clerk on real nodes: liens of paid trades are lifted, units of unpaid ones go back, each once."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.ledger.transaction import Transaction, decode_transaction_untrusted
from services.client.client import Client
from services.client.errors import Unreachable
from services.settlement import clerk
from services.settlement.clerk import LIFTS_MAX, Clerk, reversal_id
from services.settlement.listener import Listener
from services.settlement.states import Event, Outcome, State, Topic, Wish, changed
from tests.client.support import NOW_MS, SoloNode, client_of, running, signer
from tests.settlement.chain import (
    AGENT,
    BUYER,
    SELLER,
    TIMEOUT_S,
    BellStore,
    balance,
    event_of,
    give_units,
    transaction_of,
)


class Office:
    """A node that decides alone, a store, a clerk and, when wanted, a listener."""

    def __init__(self, node: SoloNode, client: Client, store: BellStore, nursery: trio.Nursery) -> None:
        self.node, self.client, self.store, self.nursery = node, client, store, nursery
        self.clerk = self.new_clerk()

    def new_clerk(self) -> Clerk:
        """Return another clerk, as after a restart."""
        return Clerk(self.client, self.store, signer(AGENT), now_ms=lambda: NOW_MS)

    async def deliver(self, *names: str, units: int = 1) -> list[Event]:
        """Register trades and have them delivered."""
        events = [event_of(name, units=units) for name in names]
        await self.store.register(events)
        await self.client.submit_many([transaction_of(event) for event in events], wait_ms=10_000)
        return events

    async def notify(self, topic: Topic, *names: str, **fields: object) -> None:
        """Keep a notice for each of these trades and wake the clerk."""
        await self.store.apply(
            [changed(self.store.events[name], topic, topic, now_ms=NOW_MS, **fields) for name in names]
        )
        self.clerk.wake()

    async def reverse(self, *names: str) -> None:
        """Keep REVERSE notices of trades whose payment was given up."""
        await self.notify(Topic.REVERSE, *names, state=State.ACCOUNT_PENDING, wish=Wish.REVERSE)

    async def seen_to(self) -> None:
        """Wait until no notice is left."""
        await self.store.until(lambda: not self.store.outbox)

    def sent(self) -> list[Transaction]:
        """Return what was submitted, each once, in order."""
        return [decode_transaction_untrusted(raw) for raw in dict.fromkeys(self.node.submitted)]

    def sent_calls(self, method: str) -> list[int]:
        """Return of each transaction with such calls how many it has."""
        counts = [sum(call.method == method for call in item.body.calls) for item in self.sent()]
        return [count for count in counts if count]


@asynccontextmanager
async def office(folder: Path, store: BellStore | None = None, *, is_working: bool = True) -> AsyncIterator[Office]:
    node = SoloNode(folder / "node")
    async with running(node), client_of(node) as client, trio.open_nursery() as nursery:
        await give_units(client)
        made = Office(node, client, store or BellStore(), nursery)
        if is_working:
            nursery.start_soon(made.clerk.run)
        yield made
        nursery.cancel_scope.cancel()


# -- lifts -------------------------------------------------------------------------------------------------------------


async def test_liens_of_paid_trades_are_lifted(tmp_path: Path) -> None:
    async with office(tmp_path) as made:
        names = [f"e-{number}" for number in range(5)]
        await made.deliver(*names)
        assert await balance(made.client, BUYER) == (0, 5)
        await made.notify(Topic.LIFT, *names)
        await made.seen_to()
        assert await balance(made.client, BUYER) == (5, 0)
        assert made.sent_calls("lift") == [5]
        assert made.clerk.trouble == ""


async def test_many_lifts_share_transactions(tmp_path: Path) -> None:
    async with office(tmp_path, is_working=False) as made:
        names = [f"e-{number}" for number in range(2 * LIFTS_MAX + 30)]
        await made.deliver(*names)
        await made.notify(Topic.LIFT, *names)
        made.nursery.start_soon(made.clerk.run)
        await made.seen_to()
        assert await balance(made.client, BUYER) == (len(names), 0)
        assert sorted(made.sent_calls("lift")) == [30, LIFTS_MAX, LIFTS_MAX]


class ForgetfulStore(BellStore):
    """The program ends before a notice is dropped, once."""

    is_down = True

    async def drop_notices(self, numbers: Sequence[int]) -> None:
        if self.is_down:
            self.is_down = False
            raise RuntimeError("killed")
        await super().drop_notices(numbers)


async def test_a_lift_that_was_done_before_a_crash_is_done(tmp_path: Path) -> None:
    async with office(tmp_path, ForgetfulStore(), is_working=False) as made:
        await made.deliver("e-1")
        await made.notify(Topic.LIFT, "e-1")
        with pytest.raises(RuntimeError, match="killed"):
            await made.clerk.run()
        assert made.store.outbox
        made.nursery.start_soon(made.new_clerk().run)
        await made.seen_to()
        assert await balance(made.client, BUYER) == (1, 0)


async def test_a_lift_that_the_chain_refuses_is_kept_for_the_operator(tmp_path: Path) -> None:
    async with office(tmp_path) as made:
        await made.deliver("e-1")
        await made.store.register([event_of("never-sent")])
        await made.notify(Topic.LIFT, "never-sent", "e-1")
        await made.store.until(lambda: len(made.store.outbox) == 1)
        assert [notice.event for notice in made.store.outbox.values()] == ["never-sent"]
        assert made.clerk.trouble == "unknown_lien"
        assert await balance(made.client, BUYER) == (1, 0)
        await made.deliver("e-2")
        await made.notify(Topic.LIFT, "e-2")
        await made.store.until(lambda: len(made.store.outbox) == 1)
        assert made.sent_calls("lift") == [2, 1]  # the refused one waits for its time


# -- reversals ---------------------------------------------------------------------------------------------------------


async def test_a_reversal_gives_the_units_back(tmp_path: Path) -> None:
    async with office(tmp_path) as made:
        await made.nursery.start(Listener(made.client, made.store, now_ms=lambda: NOW_MS).run)
        await made.deliver("e-1")
        await made.store.until(lambda: made.store.events["e-1"].state is State.ACCOUNT_PENDING)
        await made.reverse("e-1")
        await made.store.until(lambda: made.store.events["e-1"].state is State.COMPLETED)
        assert made.store.events["e-1"].outcome is Outcome.REVERSED
        assert made.store.events["e-1.reverse"].state is State.COMPLETED
        assert (await balance(made.client, BUYER), await balance(made.client, SELLER)) == ((0, 0), (1_000, 0))


async def test_doubled_notices_make_one_reversal(tmp_path: Path) -> None:
    async with office(tmp_path, is_working=False) as made:
        await made.deliver("e-1")
        for _ in range(3):
            await made.reverse("e-1")
        made.nursery.start_soon(made.clerk.run)
        await made.seen_to()
        await made.reverse("e-1")
        await made.seen_to()
        assert made.sent_calls("give_back") == [1]
        assert [name for name in made.store.events if "reverse" in name] == ["e-1.reverse"]


class Unlinked(Client):
    """A client that reaches no node when it submits, the first time."""

    is_cut = True

    async def submit_many(self, transactions: Sequence[Transaction], *, wait_ms: int = 0) -> list[object]:  # type: ignore[override]
        if self.is_cut:
            self.is_cut = False
            raise Unreachable("cut off")
        return await super().submit_many(transactions, wait_ms=wait_ms)  # type: ignore[return-value]


async def test_a_reversal_is_registered_before_it_is_sent_and_sent_as_it_was(tmp_path: Path) -> None:
    async with office(tmp_path, is_working=False) as made:
        await made.deliver("e-1")
        await made.reverse("e-1")
        made.client.__class__ = Unlinked
        made.nursery.start_soon(made.clerk.run)
        await made.seen_to()
        kept = made.store.events["e-1.reverse"]
        assert (kept.is_released, kept.original, kept.terms) == (True, "e-1", made.store.events["e-1"].terms)
        assert made.node.submitted.count(kept.raw) == 1
        assert made.sent_calls("give_back") == [1]


async def test_a_cancelled_reversal_is_followed_by_the_next(tmp_path: Path) -> None:
    """Also when so many were cancelled that they are looked up in several steps."""
    async with office(tmp_path) as made:
        (trade,) = await made.deliver("e-1")
        for number in range(1, clerk.NUMBERS_MAX + 2):
            first = made.clerk._signed(trade, number)
            await made.store.register([changed(first, "", now_ms=NOW_MS, state=State.CANCELLED).after])
        await made.reverse("e-1")
        await made.seen_to()
        assert made.store.events[reversal_id("e-1", clerk.NUMBERS_MAX + 2)].state is State.REGISTERED
        assert made.sent_calls("give_back") == [1]


async def test_a_reversal_that_took_effect_ends_its_trade_also_after_a_crash_between_the_two(tmp_path: Path) -> None:
    async with office(tmp_path) as made:
        (trade,) = await made.deliver("e-1")
        done = changed(made.clerk._signed(trade, 1), "took effect", now_ms=NOW_MS, state=State.COMPLETED, height=7)
        await made.store.register([done.after])
        await made.reverse("e-1")
        await made.seen_to()
        ended = made.store.events["e-1"]
        assert (ended.state, ended.outcome) == (State.COMPLETED, Outcome.REVERSED)
        assert made.sent_calls("give_back") == []


async def test_what_was_paid_meanwhile_is_not_reversed(tmp_path: Path) -> None:
    async with office(tmp_path) as made:
        await made.deliver("e-1")
        await made.notify(Topic.REVERSE, "e-1", state=State.COMPLETED, outcome=Outcome.PAID)
        await made.seen_to()
        assert made.sent_calls("give_back") == []


async def test_a_reversal_that_a_node_refuses_is_offered_again(tmp_path: Path) -> None:
    """The validity is over at the node's clock: it is the scan that ends it, and its notice stays until then."""
    async with office(tmp_path) as made:
        (trade,) = await made.deliver("e-1")
        late = made.clerk._signed(trade, 1)
        expired = transaction_of(event_of("e-1", valid_until_ms=NOW_MS - 1))
        await made.store.register([changed(late, "", now_ms=NOW_MS, raw=expired.raw).after])
        await made.reverse("e-1")
        with trio.fail_after(TIMEOUT_S):
            while made.node.submitted.count(expired.raw) < 3:
                await trio.lowlevel.checkpoint()
        assert made.clerk.trouble == "expired"
        assert made.store.outbox
