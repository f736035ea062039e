"""Calls reach the chain once, whatever nodes, numbers and validity do; receipts of many are proven together."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs

from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import EACH, Call, Transaction, decode_transaction_untrusted, make_call
from node.rpc.backend import Committed
from services.client.answers import LaneState, hex_of
from services.client.client import Client
from services.client.connection import Parameters
from services.client.errors import Refused
from services.client.outcome import Outcome
from services.client.submission import VALIDITY_MS, Submitter
from tests.client.support import NOW_MS, SoloNode, address, client_of, running, signer
from tests.client.test_client import give_points, to_shop
from tests.rights.server_world import pause

PAYER = signer("user-b")
PREFIX = b"lane"
T = TypeVar("T")


def payments(*amounts: int) -> list[Call]:
    return [make_call("tokens", "transfer", to_shop(amount)) for amount in amounts]


def submitter(client: Client, *, now_ms: Callable[[], int] = lambda: NOW_MS) -> Submitter:
    return Submitter(client, PAYER, client.lanes(PAYER, count=1, prefix=PREFIX), step_ms=50, now_ms=now_ms)


def submitted(node: SoloNode) -> list[Transaction]:
    """Return the different transactions that a node was given in the lane, in the order of their first coming."""
    raws = dict.fromkeys(node.submitted)
    return [item for raw in raws if (item := decode_transaction_untrusted(raw)).body.lane == PREFIX]


async def paid(client: Client) -> int:
    balance = await client.query("tokens", "balance", {"unit": "point", "account": address("shop")})
    assert isinstance(balance, dict)
    assert isinstance(balance["available"], int)
    return balance["available"]


@asynccontextmanager
async def started(client: Client, calls: Sequence[Call], **more: object) -> AsyncIterator[list[Outcome]]:
    """Submit calls beside the block, and wait for the outcome at its end."""
    outcomes: list[Outcome] = []

    async def submit() -> None:
        outcomes.append(await submitter(client, **more).submit(calls))  # type: ignore[arg-type]

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            yield outcomes


async def reached(node: SoloNode, count: int, *, sendings: int = 0) -> None:
    """Wait until a node was given so many different transactions, and at least so many in all."""
    while len(submitted(node)) < count or len(node.submitted) < sendings:
        await pause()


async def test_while_the_outcome_is_unknown_the_identical_bytes_are_sent_again(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.is_deciding = False
        before = len(node.submitted)
        async with started(client, payments(1, 2)) as outcomes:
            await reached(node, 1, sendings=before + 4)
            assert outcomes == []
            node.is_deciding = True
            node.wake()
        assert outcomes[0].is_ok
        assert len(submitted(node)) == 1
        assert await paid(client) == 3


async def test_a_silent_node_is_left_for_the_next_one(tmp_path: Path) -> None:
    silent, other = SoloNode(tmp_path / "a"), SoloNode(tmp_path / "b")
    async with running(silent, other), client_of(other) as beside, client_of(silent, other) as client:
        await give_points(beside)
        silent.is_deciding = False
        async with started(client, payments(1)) as outcomes:
            pass
        assert outcomes[0].is_ok
        assert submitted(other) == submitted(silent)


async def test_what_other_calls_have_taken_the_number_of_is_signed_with_the_next(tmp_path: Path) -> None:
    """A program that was killed may have left a transaction in the pool, under the number that is read then."""
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.is_deciding = False
        before = client.sign(PAYER, payments(5), sequence=0, lane=PREFIX, mode=EACH)
        assert (await client.submit(before)).is_accepted
        async with started(client, payments(1)) as outcomes:
            await reached(node, 2)
            node.is_deciding = True
            node.wake()
        assert outcomes[0].transaction.body.sequence == 1
        assert await paid(client) == 6


async def test_the_same_calls_under_the_number_are_the_outcome(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.is_deciding = False
        before = client.sign(PAYER, payments(1), sequence=0, lane=PREFIX, mode=EACH)
        assert (await client.submit(before)).is_accepted
        async with started(client, payments(1)) as outcomes:
            await reached(node, 2)
            node.is_deciding = True
            node.wake()
        assert outcomes[0].transaction.id == before.id
        assert await paid(client) == 1


async def test_a_node_that_names_another_number_s_transaction_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier transaction with the same calls failed; who took its outcome would call refused what was done."""
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client, client_of(node) as deceived:
        await give_points(client)
        lanes = client.lanes(PAYER, prefix=PREFIX)
        (await client.call(PAYER, "tokens", "transfer", to_shop(1_000))).check()
        old = await client.call_many(PAYER, payments(700), mode=EACH, lanes=lanes)
        assert old.receipts[0].code == "insufficient_funds"
        back = {"unit": "point", "to": address("user-b"), "amount": 1_000}
        (await client.call(signer("shop"), "tokens", "transfer", back)).check()

        asked = 0

        async def lies(account: bytes, name: bytes) -> LaneState:
            nonlocal asked
            asked += 1
            state = await client.lane(account, name)
            if asked in (1, 4):
                return state
            return structs.replace(state, next=2, last_id=hex_of(old.transaction.id))

        async def taken(transaction: Transaction, *, timeout_ms: int) -> Outcome:
            (await client.submit_and_wait(transaction, timeout_ms=timeout_ms)).check()
            raise Refused("lane_used")

        monkeypatch.setattr(deceived, "lane", lies)
        monkeypatch.setattr(deceived, "submit_and_wait", taken)
        with trio.fail_after(30), capture_logs() as logs:
            outcome = await submitter(deceived).submit(payments(700))
        assert outcome.is_ok
        assert outcome.transaction.body.sequence == 1
        assert [line.get("code") for line in logs] == ["bad_answer", None]


async def test_once_validity_is_over_the_calls_are_signed_again_under_the_same_number(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    now_ms = NOW_MS
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.is_deciding = False
        async with started(client, payments(1), now_ms=lambda: now_ms) as outcomes:
            await reached(node, 1)
            now_ms += VALIDITY_MS
            await reached(node, 2)
            now_ms -= VALIDITY_MS
            first, second = submitted(node)
            assert first.body.calls == second.body.calls
            assert (first.body.sequence, second.body.sequence) == (0, 0)
            assert first.id != second.id
            node.is_deciding = True
            node.wake()
        assert outcomes[0].transaction.id in (first.id, second.id)
        assert await paid(client) == 1


async def test_a_number_that_a_node_made_up_is_given_up_once_validity_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = SoloNode(tmp_path / "a")
    now_ms = NOW_MS
    async with running(node), client_of(node) as client, client_of(node) as deceived:
        await give_points(client)
        told = [3]

        async def lies(account: bytes, lane: bytes) -> int:
            return told.pop() if told else await client.lane_next(account, lane)

        monkeypatch.setattr(deceived, "lane_next", lies)
        async with started(deceived, payments(1), now_ms=lambda: now_ms) as outcomes:
            await reached(node, 1)
            now_ms += VALIDITY_MS
        assert outcomes[0].transaction.body.sequence == 0
        assert await paid(client) == 1


async def test_nodes_that_are_away_are_waited_for_and_the_log_says_it_once(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with trio.open_nursery() as nursery:
        async with running(node), client_of(node) as client:
            await give_points(client)
        # The node's port is kept, its store is opened anew.
        again = SoloNode(tmp_path / "a")
        again.port = node.port
        with capture_logs() as logs:
            async with client_of(again) as client, started(client, payments(1)) as outcomes:
                while not logs:
                    await pause()
                for _ in range(20):
                    await pause()
                troubles = [line["code"] for line in logs if line["event"] == "chain in trouble"]
                assert troubles == ["node_unreachable"]
                await nursery.start(again.run)
        assert outcomes[0].is_ok
        assert [line["event"] for line in logs][-1] == "chain answers again"
        nursery.cancel_scope.cancel()
    again.store.close()


Receipts = tuple[Receipt, ...]


def forge(node: SoloNode, change: Callable[[Receipts], Receipts]) -> None:
    """Let a node show the receipts of whole blocks changed; what it proves one by one holds."""
    committed = node.backend.final.committed

    def forged(height: int) -> Committed | None:
        shown = committed(height)
        return None if shown is None else replace(shown, receipts=change(shown.receipts))

    node.backend.final.committed = forged  # type: ignore[method-assign]


async def test_receipts_of_many_calls_are_proven(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        outcome = await submitter(client).submit(payments(1, 2, 5_000, 3, 4, 5, 6))
        assert [receipt.code for receipt in outcome.receipts] == ["", "", "insufficient_funds", "", "", "", ""]
        assert [receipt.call_index for receipt in outcome.receipts] == list(range(7))
        assert outcome == await client.outcome(outcome.transaction.id)


async def test_transactions_of_one_block_ask_for_its_receipts_once(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    asked: list[int] = []
    async with running(node), client_of(node) as client:
        await give_points(client)
        lanes = client.lanes(PAYER, count=3, prefix=PREFIX)
        request = client.request

        async def counted(method: str, params: Parameters, kind: type[T], *, timeout_ms: int = 5_000) -> T:
            asked.extend([1] if method == "chain_getBlock" else [])
            return await request(method, params, kind, timeout_ms=timeout_ms)

        client.request = counted  # type: ignore[method-assign]
        outcomes: list[Outcome] = []

        async def submit(*amounts: int) -> None:
            calls = payments(*amounts)
            outcomes.append(await client.call_many(PAYER, calls, mode=EACH, lanes=lanes))

        node.is_deciding = False
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(submit, *range(1, 6 + number))
            while len(set(node.submitted)) < 4:
                await pause()
            node.is_deciding = True
            node.wake()
        assert {outcome.height for outcome in outcomes} == {outcomes[0].height}
        assert sorted(len(outcome.receipts) for outcome in outcomes) == [5, 6, 7]
        assert len(asked) == 1


FORGERIES: dict[str, Callable[[Receipts], Receipts]] = {
    "a failed one that says ok": lambda receipts: tuple(structs.replace(item, status=OK, code="") for item in receipts),
    "two in the other order": lambda receipts: (*receipts[:1], *receipts[2:3], *receipts[1:2], *receipts[3:]),
    "one left out": lambda receipts: receipts[:-1],
    "one too many": lambda receipts: (*receipts, *receipts[-1:]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_node_that_shows_other_receipts_of_a_block_is_caught(tmp_path: Path, forgery: str) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        forge(node, FORGERIES[forgery])
        with pytest.raises(PeerError) as caught:
            await client.call_many(PAYER, payments(1, 2, 5_000, 3, 4, 5), mode=EACH)
        assert caught.value.code == "bad_proof"


async def test_a_node_that_lies_is_left_for_the_next_one(tmp_path: Path) -> None:
    liar, honest = SoloNode(tmp_path / "a"), SoloNode(tmp_path / "b")
    async with running(liar, honest), client_of(liar) as first, client_of(honest) as second:
        await give_points(first)
        await give_points(second)
        forge(liar, FORGERIES["a failed one that says ok"])
        async with client_of(liar, honest) as client:
            with capture_logs() as logs:
                outcome = await submitter(client).submit(payments(1, 2, 5_000, 3, 4, 5))
        assert [receipt.code for receipt in outcome.receipts] == ["", "", "insufficient_funds", "", "", ""]
        assert [line.get("code") for line in logs] == ["bad_proof", None]
