"""The listener on real nodes: certified outcomes reach the store once, whatever breaks or lies in between."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace
from structlog.testing import capture_logs

from consensus.ledger.receipt import Receipt
from consensus.ledger.validators import Certificate
from node.rpc.backend import Committed
from services.client.answers import RawBlocksAnswer
from services.client.client import Client
from services.client.connection import Parameters
from services.client.errors import Unreachable
from services.settlement.listener import BLOCKS_MAX, CURSOR_BLOCKS, Listener
from services.settlement.states import Change, Event, State, Topic, changed
from services.settlement.store import Cursor
from tests.client.support import NOW_MS, SoloNode, client_of, running
from tests.settlement.chain import (
    TIMEOUT_S,
    BellStore,
    Peer,
    Seats,
    commit,
    event_of,
    peers,
    seated,
    transaction_of,
)

PENDING = State.ACCOUNT_PENDING


def listener_of(client: Client, store: BellStore) -> Listener:
    """Return a listener that is quick to ask other nodes."""
    return Listener(client, store, now_ms=lambda: NOW_MS, quiet_ms=50)


async def listened(nodes: Sequence[SoloNode], store: BellStore, *names: str) -> None:
    """Listen at these nodes until events have changed."""
    async with client_of(*nodes) as client, trio.open_nursery() as nursery:
        await nursery.start(listener_of(client, store).run)
        await store.until(lambda: all(store.events[name].state is not State.REGISTERED for name in names))
        nursery.cancel_scope.cancel()


async def registered(store: BellStore, *events: Event) -> None:
    await store.register(events)


def cursor_at(node: SoloNode) -> Cursor:
    """Return the cursor of a node's head."""
    return Cursor(node.chain.head.header.height, node.chain.head.hash)


# -- the good path -----------------------------------------------------------------------------------------------------


async def test_outcomes_reach_the_store_once(tmp_path: Path) -> None:
    nodes, store = peers(tmp_path, 1), BellStore()
    good, bad = event_of("e-1"), event_of("e-2", units=2_000)
    await registered(store, good, bad)
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        assert (listener.height, listener.time_ms) == (0, 0)
        await nursery.start(listener.run)
        commit(nodes, transaction_of(good), transaction_of(bad))
        await store.until(lambda: all(event.state is not State.REGISTERED for event in store.events.values()))
        assert await store.cursor() == cursor_at(nodes[0])
        commit(nodes, transaction_of(event_of("e-3")))
        while listener.height < 3:
            await trio.lowlevel.checkpoint()
        assert listener.time_ms == nodes[0].chain.head.header.time_ms
        assert listener.trouble == ""
        nursery.cancel_scope.cancel()
    paid, refused = store.events["e-1"], store.events["e-2"]
    assert (paid.state, paid.height, paid.version) == (PENDING, 2, good.version + 1)
    assert (refused.state, refused.code) == (State.CANCELLED, "insufficient_funds")
    notices = [(notice.event, notice.topic) for notice in store.outbox.values()]
    assert sorted(notices) == [("e-1", Topic.PAY), ("e-2", Topic.RELEASE)]


async def test_it_begins_at_the_head_and_goes_on_from_its_cursor(tmp_path: Path) -> None:
    """What was final before the first start is the scan's; what became final while nobody listened is heard."""
    nodes, store = peers(tmp_path, 1), BellStore()
    before, first, later = event_of("before"), event_of("first"), event_of("later")
    await registered(store, before, first, later)
    commit(nodes, transaction_of(before))
    async with running(*nodes):
        async with client_of(*nodes) as client, trio.open_nursery() as nursery:
            await nursery.start(listener_of(client, store).run)
            assert await store.cursor() == cursor_at(nodes[0])
            nursery.cancel_scope.cancel()
        commit(nodes, transaction_of(first))
        for _ in range(70):
            commit(nodes)
        commit(nodes, transaction_of(later))
        await listened(nodes, store, "first", "later")
    assert store.events["before"].state is State.REGISTERED


async def test_a_chain_at_its_genesis_is_listened_to(tmp_path: Path) -> None:
    nodes, store, event = [Peer(tmp_path, 0)], BellStore(), event_of("e-1")
    await registered(store, event)
    async with running(*nodes):
        async with client_of(*nodes) as client, trio.open_nursery() as nursery:
            await nursery.start(listener_of(client, store).run)
            nursery.cancel_scope.cancel()
        assert await store.cursor() == Cursor(0, bytes(32))
        commit(nodes, transaction_of(event))
        await listened(nodes, store, "e-1")
    assert (store.events["e-1"].state, store.events["e-1"].code) == (State.CANCELLED, "unknown_unit")


async def test_empty_blocks_cost_no_write_each(tmp_path: Path) -> None:
    nodes, store = peers(tmp_path, 1), BellStore()
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        await nursery.start(listener.run)
        first = await store.cursor()
        for _ in range(CURSOR_BLOCKS - 1):
            commit(nodes)
        while listener.height < CURSOR_BLOCKS:
            await trio.lowlevel.checkpoint()
        assert await store.cursor() == first
        commit(nodes)
        while listener.height <= CURSOR_BLOCKS:
            await trio.lowlevel.checkpoint()
        assert await store.cursor() == cursor_at(nodes[0])
        nursery.cancel_scope.cancel()


async def test_a_changed_validator_set_is_followed(tmp_path: Path) -> None:
    nodes, leave = seated(tmp_path)
    store = BellStore()
    genesis = nodes[0].consortium.genesis
    async with running(*nodes), client_of(*nodes, genesis=genesis) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        await nursery.start(listener.run)
        commit(nodes, *leave)
        commit(nodes)
        commit(nodes)
        with trio.fail_after(TIMEOUT_S):
            while listener.height < 3:
                await trio.lowlevel.checkpoint()
        assert len(nodes[0].chain.head.validators.validators) == 3
        nursery.cancel_scope.cancel()


async def test_blocks_that_are_too_large_for_one_answer_are_read_in_smaller_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node counts transactions when it ends a page; the receipts of many calls can be larger than they are."""
    nodes, store, event = peers(tmp_path, 1), BellStore(), event_of("e-1")
    await registered(store, event)
    await store.apply([], cursor=cursor_at(nodes[0]))
    for _ in range(2 * BLOCKS_MAX):
        commit(nodes)
    commit(nodes, transaction_of(event))
    monkeypatch.setattr("node.rpc.protocol.ANSWER_BYTES_MAX", 8_000)
    async with running(*nodes):
        await listened(nodes, store, "e-1")
    assert store.events["e-1"].state is PENDING


# -- the store ---------------------------------------------------------------------------------------------------------


class RacingStore(BellStore):
    """Somebody else changes an event between its reading and its change, once."""

    async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
        if changes and self.events["e-1"].attempts == 0:
            await super().apply([changed(self.events["e-1"], "looked at", now_ms=NOW_MS, attempts=1)])
        return await super().apply(changes, cursor=cursor)


async def test_a_lost_race_is_decided_anew(tmp_path: Path) -> None:
    nodes, store, event = peers(tmp_path, 1), RacingStore(), event_of("e-1")
    await registered(store, event)
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        await nursery.start(listener_of(client, store).run)
        commit(nodes, transaction_of(event))
        await store.until(lambda: store.events["e-1"].state is PENDING)
        nursery.cancel_scope.cancel()
    assert store.events["e-1"].attempts == 0
    assert [row.why for row in store.rows["e-1"]][1:] == ["looked at", "chain: took effect"]
    assert await store.cursor() == cursor_at(nodes[0])


class AwayStore(BellStore):
    """A database that is away for the first changes."""

    left = 2

    async def apply(self, changes: Sequence[Change], *, cursor: Cursor | None = None) -> list[bool]:
        if changes and self.left:
            self.left -= 1
            raise Unreachable("away", "database_unreachable")
        return await super().apply(changes, cursor=cursor)


async def test_a_block_that_could_not_be_kept_is_read_again(tmp_path: Path) -> None:
    nodes, store, event = peers(tmp_path, 2), AwayStore(), event_of("e-1")
    await registered(store, event)
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        await nursery.start(listener_of(client, store).run)
        commit(nodes, transaction_of(event))
        await store.until(lambda: store.events["e-1"].state is PENDING)
        nursery.cancel_scope.cancel()
    assert store.left == 0


async def test_another_history_than_was_read_is_not_followed(tmp_path: Path) -> None:
    nodes, store, event = peers(tmp_path, 1), BellStore(), event_of("e-1")
    await registered(store, event)
    await store.apply([], cursor=Cursor(1, b"x" * 32))
    commit(nodes, transaction_of(event))
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        nursery.start_soon(listener.run)
        with trio.fail_after(TIMEOUT_S):
            while listener.trouble != "cursor_conflict":
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert store.events["e-1"].state is State.REGISTERED


async def test_an_outcome_against_what_is_known_is_an_alarm_and_changes_nothing(tmp_path: Path) -> None:
    nodes, store = peers(tmp_path, 1), BellStore()
    event = event_of("e-1")
    finished = changed(event, "said to have failed", now_ms=NOW_MS, state=State.CANCELLED, code="lien_exists", height=1)
    await registered(store, finished.after)
    with capture_logs() as logs:
        async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
            listener = listener_of(client, store)
            await nursery.start(listener.run)
            commit(nodes, transaction_of(event))
            with trio.fail_after(TIMEOUT_S):
                while listener.height < 2:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert store.events["e-1"] == finished.after
    assert [line["is_ok"] for line in logs if line["event"] == "certified against what is known"] == [True]


# -- nodes -------------------------------------------------------------------------------------------------------------


def forged(committed: Committed | None, lie: str) -> Committed | None:
    """Return a block of which a node lies."""
    if committed is None or committed.certificate is None or committed.block.height == 0:
        return committed
    ids, counts, receipts, certificate = (
        committed.transaction_ids,
        committed.receipt_counts,
        committed.receipts,
        committed.certificate,
    )
    match lie:
        case "outcome":
            receipts = tuple(Receipt(one.transaction_id, 0, 1, "made_up", [], [], one.steps) for one in receipts)
        case "left out":
            ids, counts, receipts = ids[1:], counts[1:], receipts[1:]
        case _:
            fewer = certificate.signatures[:-1]
            certificate = Certificate(certificate.height, certificate.view, certificate.block_hash, fewer)
    return Committed(committed.block, certificate, ids, counts, receipts)


@pytest.mark.parametrize(
    ("lie", "code"), [("outcome", "bad_proof"), ("left out", "bad_proof"), ("certificate", "bad_certificate")]
)
async def test_r62_a_block_without_its_proof_is_read_elsewhere(tmp_path: Path, lie: str, code: str) -> None:
    """A failure in place of a success, a receipt left out, one signature less than a quorum: nothing is taken of it."""
    nodes, store = peers(tmp_path, 2), BellStore()
    event, other = event_of("e-1"), event_of("e-2")
    await registered(store, event)
    told = nodes[0].backend.final.committed
    nodes[0].backend.final.committed = lambda height: forged(told(height), lie)  # type: ignore[method-assign]
    with capture_logs() as logs:
        async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
            await nursery.start(listener_of(client, store).run)
            commit(nodes, transaction_of(event), transaction_of(other))
            await store.until(lambda: store.events["e-1"].state is not State.REGISTERED)
            nursery.cancel_scope.cancel()
    assert store.events["e-1"].state is PENDING
    assert code in {line.get("code") for line in logs if line["event"] == "chain cannot be followed"}


async def test_r84_a_first_block_of_another_chain_of_the_same_validators_is_not_taken(tmp_path: Path) -> None:
    """Nothing of ours is in it, but the next block of this chain would not follow it, ever."""
    nodes, _ = seated(tmp_path / "ours")
    genesis = nodes[0].consortium.genesis
    other = Seats(replace(genesis, time_ms=genesis.time_ms + 1), nodes[0].consortium.vote_keys, {})
    stranger = Peer(tmp_path / "theirs", 0, other)
    commit([stranger])
    commit(nodes)
    nodes[0].backend.final.committed = stranger.backend.final.committed  # type: ignore[method-assign]
    store = BellStore()
    await store.apply([], cursor=Cursor(0, bytes(32)))
    async with running(*nodes[:2]), client_of(*nodes[:2], genesis=genesis) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        await nursery.start(listener.run)
        with trio.fail_after(TIMEOUT_S):
            while listener.height < 1:
                await trio.lowlevel.checkpoint()
        assert listener.time_ms == nodes[1].chain.head.header.time_ms
        nursery.cancel_scope.cancel()
    stranger.store.close()


async def test_r60_a_node_that_stands_still_is_left(tmp_path: Path) -> None:
    nodes, store, event = peers(tmp_path, 2), BellStore(), event_of("e-1")
    await registered(store, event)
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        await nursery.start(listener_of(client, store).run)
        commit(nodes[1:], transaction_of(event))
        await store.until(lambda: store.events["e-1"].state is PENDING)
        nursery.cancel_scope.cancel()


async def test_r60_a_node_that_stands_still_where_the_validators_change_is_left(tmp_path: Path) -> None:
    """As one does that has no seat any more: it cannot prove the set of the block after."""
    nodes, leave = seated(tmp_path)
    genesis = nodes[0].consortium.genesis
    commit(nodes, *leave)
    store = BellStore()
    await store.apply([], cursor=cursor_at(nodes[0]))
    commit(nodes[1:])
    async with running(*nodes), client_of(*nodes, genesis=genesis) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        await nursery.start(listener.run)
        with trio.fail_after(TIMEOUT_S):
            while listener.height < 2:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_r61_a_node_that_shows_blocks_one_by_one_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has always one more, and is far behind the others."""
    nodes, store, event = peers(tmp_path, 2), BellStore(), event_of("e-1")
    await registered(store, event)
    monkeypatch.setattr("services.settlement.listener.FOLLOW_MS", 0)
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        await nursery.start(listener.run)
        for _ in range(100):
            commit(nodes[1:])
        commit(nodes[1:], transaction_of(event))

        async def drip() -> None:
            while True:
                if listener.height == nodes[0].chain.head.header.height:
                    commit(nodes[:1])
                await trio.lowlevel.checkpoint()

        nursery.start_soon(drip)
        await store.until(lambda: store.events["e-1"].state is PENDING)
        assert nodes[0].chain.head.header.height < 100
        nursery.cancel_scope.cancel()


async def test_r61_what_a_node_says_of_blocks_that_it_does_not_show_holds_up_nobody(tmp_path: Path) -> None:
    """It claims a height that nobody has, and gives notice of new blocks all the time."""
    nodes, store, event = peers(tmp_path, 2), BellStore(), event_of("e-1")
    await registered(store, event)
    async with running(*nodes), client_of(*nodes) as client, trio.open_nursery() as nursery:
        await nursery.start(listener_of(client, store).run)
        connection = await client.connection()
        asked = connection.request

        async def boast(method: str, params: Parameters, kind: type, **options: object) -> object:
            answer = await asked(method, params, kind, **options)
            return replace(answer, head=10**9) if isinstance(answer, RawBlocksAnswer) else answer

        connection.request = boast  # type: ignore[method-assign]

        async def cry_wolf() -> None:
            while True:
                connection._notify("subscription", b"{}")
                await trio.lowlevel.checkpoint()

        nursery.start_soon(cry_wolf)
        commit(nodes[1:], transaction_of(event))
        await store.until(lambda: store.events["e-1"].state is PENDING)
        nursery.cancel_scope.cancel()


async def test_a_node_that_dies_is_left(tmp_path: Path) -> None:
    nodes, store, event = peers(tmp_path, 2), BellStore(), event_of("e-1")
    await registered(store, event)
    async with running(nodes[1]), trio.open_nursery() as nursery:
        await nursery.start(nodes[0].run)
        async with client_of(*nodes) as client, trio.open_nursery() as listening:
            await listening.start(listener_of(client, store).run)
            nursery.cancel_scope.cancel()
            commit(nodes[1:], transaction_of(event))
            await store.until(lambda: store.events["e-1"].state is PENDING)
            listening.cancel_scope.cancel()
    nodes[0].store.close()


async def test_it_waits_while_no_node_answers(tmp_path: Path) -> None:
    nodes, store = peers(tmp_path, 1), BellStore()
    async with client_of(*nodes) as client, trio.open_nursery() as nursery:
        listener = listener_of(client, store)
        nursery.start_soon(listener.run)
        with trio.fail_after(TIMEOUT_S):
            while listener.trouble != "node_unreachable":
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    nodes[0].store.close()
