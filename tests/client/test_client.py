"""The client against real RPC servers: calls, lanes, unknown outcomes, fail-over, and nodes that lie."""

from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import EACH, make_call
from services.client.calls import call_typed, explain, query_typed
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.events import Events
from services.client.keystore import Signer
from services.client.lanes import one_shot_lane
from tests.client.support import CONSORTIUM, LyingNode, SoloNode, address, client_of, running, signer
from tests.node.support import make_consortium

DEFINE = {"unit": "point", "decimals": 0, "description": "points"}


async def give_points(client: Client, amount: int = 1_000) -> None:
    calls = [
        make_call("tokens", "define", DEFINE),
        make_call("tokens", "issue", {"unit": "point", "to": address("user-b"), "amount": amount}),
    ]
    (await client.call_many(signer("bank-a"), calls)).check()


def to_shop(amount: int) -> dict[str, object]:
    return {"unit": "point", "to": address("shop"), "amount": amount}


async def test_a_call_returns_its_proven_receipt(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        outcome = await client.call(signer("user-b"), "tokens", "transfer", to_shop(250))
        assert outcome.is_ok
        assert outcome.height == 2
        assert len(outcome.verified.signers) == CONSORTIUM.genesis.validator_set().quorum
        balance = await client.query("tokens", "balance", {"unit": "point", "account": address("shop")})
        assert isinstance(balance, dict)
        assert balance["available"] == 250
        assert (await client.outcome(outcome.transaction.id)).receipts == outcome.receipts


async def test_where_a_transaction_is_says_the_node_that_knows_most(tmp_path: Path) -> None:
    first, second, dead = SoloNode(tmp_path / "a"), SoloNode(tmp_path / "b"), SoloNode(tmp_path / "c")
    second.is_deciding = False
    async with running(first, second), client_of(second) as other:
        calls = [make_call("tokens", "transfer", to_shop(1))]
        transaction = other.sign(signer("user-b"), calls, sequence=0)
        assert (await other.submit(transaction)).is_accepted
        dead.port = 1
        async with client_of(dead, first, second) as client:
            told = await explain(client, "0x" + transaction.id.hex())
        assert (told["stage"], told["node"]) == ("queued", second.url)
        assert told["stages"] == {first.url: "unknown", second.url: "queued"}
    dead.store.close()


async def test_a_node_that_cannot_read_a_request_refuses_it_at_once(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        with pytest.raises(Refused) as caught:
            await client.request("chain_getBlock", {"height": 10**23}, dict[str, object])
        assert caught.value.code == "parse_error"


async def test_a_failed_receipt_is_an_outcome_and_raises_when_asked(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        outcome = await client.call(signer("user-e"), "tokens", "transfer", to_shop(1))
        assert not outcome.is_ok
        with pytest.raises(Refused) as caught:
            outcome.value()
        assert caught.value.code == outcome.receipts[0].code == "insufficient_funds"


async def test_each_call_has_its_own_proven_receipt(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        calls = [make_call("tokens", "transfer", to_shop(amount)) for amount in (1, 5_000, 2)]
        outcome = await client.call_many(signer("user-b"), calls, mode=EACH)
        assert [receipt.code for receipt in outcome.receipts] == ["", "insufficient_funds", ""]


async def test_parallel_calls_run_in_lanes_of_their_own(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        lanes = client.lanes(signer("user-b"), count=8, prefix=b"p")

        async def pay() -> None:
            (await client.call(signer("user-b"), "tokens", "transfer", to_shop(1), lanes=lanes)).check()

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(pay)
        balance = await client.query("tokens", "balance", {"unit": "point", "account": address("shop")})
        assert isinstance(balance, dict)
        assert balance["available"] == 40


async def test_two_programs_with_one_lane_both_succeed(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as one, client_of(node) as other:
        await give_points(one)

        async def pay(client: Client, amount: int) -> None:
            for _ in range(5):
                (await client.call(signer("user-b"), "tokens", "transfer", to_shop(amount))).check()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pay, one, 1)
            nursery.start_soon(pay, other, 2)
        assert (await one.lane_next(address("user-b"), b"")) == 10


async def test_a_call_is_not_signed_anew_while_its_number_is_open(tmp_path: Path) -> None:
    """Another transaction with the same number waits at the second node, ours at the first that is cut off."""
    first, second = SoloNode(tmp_path / "first"), SoloNode(tmp_path / "second")
    async with running(first, second), client_of(first, second) as client, client_of(second) as rival:
        first.is_deciding = second.is_deciding = False
        other = rival.sign(signer("bank-a"), [make_call("tokens", "define", DEFINE)], sequence=0)
        await rival.submit(other)
        with pytest.raises(Unreachable) as caught:
            await client.call(signer("bank-a"), "tokens", "define", DEFINE, timeout_ms=2_500)
        assert caught.value.code == "outcome_unknown"
        assert "a node refused it with lane_number_taken: another transaction with number 0" in caught.value.message
        signed = set(first.submitted + second.submitted) - {other.raw}
        assert len(signed) == 1
        assert signed <= set(second.submitted)


async def test_bulk_submission_waits_for_all(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        call = make_call("tokens", "transfer", to_shop(1))
        made = [client.sign(signer("user-b"), [call], sequence=number) for number in range(50)]
        answers = await client.submit_many(made, wait_ms=10_000)
        assert all(answer.is_accepted and answer.height and not answer.failed_count for answer in answers)
        finals = await client.wait_final([item.id for item in made])
        assert [final.height for final in finals] == [answer.height for answer in answers]
        assert (await client.submit_many(made[:1]))[0].height == answers[0].height
        doubled = client.sign(signer("user-b"), [call, call], sequence=0)
        assert [answer.code for answer in await client.submit_many([doubled])] == ["lane_used"]


async def test_a_one_shot_call_takes_effect_once(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        tokens = ["unit=point", "to=shop", "amount=7"]
        first = await call_typed(client, signer("user-b"), "tokens", "transfer", tokens, once="order-1")
        again = await call_typed(client, signer("user-b"), "tokens", "transfer", tokens, once="order-1")
        assert again.transaction.id == first.transaction.id
        with pytest.raises(Refused) as caught:
            await call_typed(client, signer("user-b"), "tokens", "transfer", [*tokens[:2], "amount=8"], once="order-1")
        assert caught.value.code == "once_used"
        assert one_shot_lane("order-1") != one_shot_lane("order-2")
        balance = await query_typed(client, "tokens", "balance", ["unit=point", "account=shop"])
        assert isinstance(balance, dict)
        assert balance["available"] == 7


async def test_a_name_that_only_the_chain_knows_is_found_in_proven_state(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.decide()  # a quiet block seals
        with pytest.raises(LocalError, match="no account is named newcomer"):
            await query_typed(client, "tokens", "balance", ["unit=point", "account=newcomer"])
        key = PrivateKey.from_secret(4242).public
        register = ["name=newcomer", f"public_key=0x{key.compressed.hex()}", "roles:=[]"]
        (await call_typed(client, signer("bank-a"), "membership", "register_account", register)).check()
        node.decide()  # a quiet block seals
        await call_typed(client, signer("user-b"), "tokens", "transfer", ["unit=point", "to=newcomer", "amount=3"])
        balance = await client.query("tokens", "balance", {"unit": "point", "account": key.address})
        assert isinstance(balance, dict)
        assert balance["available"] == 3


async def test_state_is_proven_with_presence_and_absence(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.decide()
        found = await client.state("membership/validators", is_newest=True)
        assert found.value == CONSORTIUM.genesis.validator_set().encode()
        assert (await client.state("membership/nothing")).value is None


async def test_another_node_gets_the_same_bytes_when_the_first_dies(tmp_path: Path) -> None:
    """The first node takes the transaction and never answers again; the second makes it final."""
    dead, alive = SoloNode(tmp_path / "dead"), SoloNode(tmp_path / "alive")
    dead.is_deciding = False
    async with trio.open_nursery() as nursery:
        await nursery.start(alive.run)
        async with trio.open_nursery() as first:
            await first.start(dead.run)
            async with client_of(dead, alive) as client:
                transaction = client.sign(signer("bank-a"), [make_call("tokens", "define", DEFINE)], sequence=0)
                assert (await client.submit(transaction)).is_accepted
                assert dead.submitted == [transaction.raw]
                first.cancel_scope.cancel()
                outcome = await client.wait(transaction, timeout_ms=20_000)
                assert outcome.is_ok
                assert alive.submitted == [transaction.raw]
        nursery.cancel_scope.cancel()
    dead.store.close()
    alive.store.close()


async def test_no_node_at_all_is_an_unknown_outcome(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node):
        node.is_deciding = False
        async with client_of(node) as client:
            transaction = client.sign(signer("bank-a"), [make_call("tokens", "define", DEFINE)], sequence=0)
            await client.submit(transaction)
            with pytest.raises(Unreachable) as caught:
                await client.wait(transaction, timeout_ms=300)
            assert caught.value.code == "outcome_unknown"
            assert "refused" not in caught.value.message
    async with client_of(node) as client:
        with pytest.raises(Unreachable) as caught:
            await client.query("tokens", "units")
        assert caught.value.code == "node_unreachable"


async def test_a_refused_transaction_is_refused_by_its_code(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        stranger = CONSORTIUM.vote_keys["node-1"]
        with pytest.raises(Refused) as caught:
            await client.call_once(Signer.of("stranger", stranger), [make_call("tokens", "define", DEFINE)], b"x" * 32)
        assert caught.value.code == "unknown_account"
        expired = client.sign(signer("bank-a"), [make_call("tokens", "define", DEFINE)], sequence=0, validity_ms=-1)
        with pytest.raises(Refused) as caught:
            await client.submit_and_wait(expired)
        assert caught.value.code == "expired"


async def test_events_follow_the_chain_and_resume_by_cursor(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        seen: list[tuple[str, str]] = []

        async def pay() -> None:
            for amount in (5, 6):
                await client.call(signer("user-b"), "tokens", "transfer", to_shop(amount))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pay)
            async for event in Events(client, contract="tokens", name="transferred"):
                seen.append((str(event.data["amount"]), event.cursor))
                if len(seen) == 2:
                    break
        assert [amount for amount, _ in seen] == ["5", "6"]
        async for event in Events(client, contract="tokens", name="transferred", cursor=seen[0][1]):
            assert (str(event.data["amount"]), event.cursor) == seen[1]
            break


@pytest.mark.parametrize(
    ("lie", "code"), [("status", "bad_proof"), ("certificate", "bad_certificate"), ("other receipt", "bad_proof")]
)
async def test_a_node_that_lies_about_a_receipt_is_caught(tmp_path: Path, lie: str, code: str) -> None:
    node = LyingNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.backend.lie = lie  # type: ignore[attr-defined]
        with pytest.raises(PeerError) as caught:
            await client.call(signer("user-b"), "tokens", "transfer", to_shop(1))
        assert caught.value.code == code


async def test_a_node_that_shows_one_calls_receipt_for_another_is_caught(tmp_path: Path) -> None:
    node = LyingNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.backend.lie = "other call"  # type: ignore[attr-defined]
        calls = [make_call("tokens", "transfer", to_shop(amount)) for amount in (1, 5_000)]
        with pytest.raises(PeerError) as caught:
            await client.call_many(signer("user-b"), calls, mode=EACH)
        assert caught.value.code == "bad_proof"


@pytest.mark.parametrize("lie", ["value", "absence", "other key"])
async def test_a_node_that_lies_about_state_is_caught(tmp_path: Path, lie: str) -> None:
    node = LyingNode(tmp_path / "a")
    async with running(node), client_of(node) as client:
        await give_points(client)
        node.backend.lie = lie  # type: ignore[attr-defined]
        with pytest.raises(PeerError) as caught:
            await client.state("membership/validators")
        assert caught.value.code == "bad_proof"


async def test_a_node_of_another_chain_is_not_used(tmp_path: Path) -> None:
    node = SoloNode(tmp_path / "a")
    other = make_consortium(validators=5).genesis
    async with running(node), client_of(node, genesis=other) as client:
        with pytest.raises(PeerError) as caught:
            await client.query("tokens", "units")
        assert caught.value.code == "wrong_chain"
