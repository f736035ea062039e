"""Where a transaction is and why it is not final: one staged case after the other, asked over the RPC."""

from pathlib import Path
from typing import Any

from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import Transaction, make_call, sign_transaction
from contracts.runtime.execution import VALIDITY_MS_MAX
from node.mempool import REFUSALS_MAX, PoolLimits
from node.rpc.render import hex_of
from tests.node.rpc.support import CONSORTIUM, Server, TestNode, make_node, serving
from tests.node.support import GENESIS_TIME_MS

OTHERS = ("node-1", "node-2", "node-3")


async def told(server: Server, transaction: Transaction) -> dict[str, Any]:
    """What ``tx_explain`` says; every answer says what to do, but for what is final."""
    answer: dict[str, Any] = await server.result("tx_explain", id=hex_of(transaction.id))
    assert answer["final"] == (answer["stage"] == "final") == (answer["advice"] is None)
    assert answer["message"]
    return answer


async def offered(server: Server, transaction: Transaction, code: str = "") -> dict[str, Any]:
    """Submit a transaction, expecting a refusal's code or none, and return what ``tx_explain`` says then."""
    if code:
        assert await server.code("tx_submit", transactions=hex_of(transaction.raw)) == code
    else:
        await server.result("tx_submit", transactions=hex_of(transaction.raw))
    answer = await told(server, transaction)
    if code:
        stage = "expired" if code == "expired" else "refused"
        assert (answer["stage"], answer["code"], answer["holders"]) == (stage, code, [])
    return answer


def define(unit: str = "cny", sequence: int = 0, **more: Any) -> Transaction:
    call = make_call("tokens", "define", {"unit": unit, "decimals": 2, "description": unit})
    return CONSORTIUM.sign("bank-a", [call], sequence=sequence, **more)


async def test_a_transaction_whose_turn_it_is(node: TestNode, server: Server) -> None:
    node.meet("node-1", "node-2")
    answer = await offered(server, define())
    assert (answer["stage"], answer["code"]) == ("queued", "waiting_for_block")
    assert answer["holders"] == ["node-0", "node-1", "node-2"]
    assert answer["message"] == "it is next in its lane; node-1 makes the next block"
    node.clock.ms += 700
    assert (await told(server, define()))["waitedMs"] == 700


async def test_a_gap_in_the_lane(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    await offered(server, define("u0"))
    answer = await offered(server, define("u2", sequence=2))
    assert (answer["stage"], answer["code"]) == ("queued", "lane_gap")
    assert answer["message"] == "number 1 of its lane has not come in yet, and it has number 2"
    assert answer["advice"].startswith("submit number 1; it waits until 2023-")
    far = await offered(server, define("u9", sequence=1_000_000), "lane_gap")
    assert "1000000 lies too far ahead" in far["message"]


async def test_earlier_numbers_of_its_lane_wait_before_it(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    for number in range(3):
        answer = await offered(server, define(f"u{number}", sequence=number))
    assert (answer["code"], answer["stage"]) == ("waiting_in_lane", "queued")
    assert answer["message"] == "2 earlier numbers of its lane wait before it, and none is missing"


async def test_a_quorum_is_missing(node: TestNode, server: Server) -> None:
    node.meet("node-3")
    answer = await offered(server, define())
    assert (answer["code"], answer["holders"]) == ("no_quorum", ["node-0", "node-3"])
    assert answer["message"] == "2 of 4 validators vote, 3 are needed"
    assert "hansa consensus doctor" in answer["advice"]


async def test_an_unknown_account(server: Server) -> None:
    stranger = sign_transaction(
        PrivateKey.from_secret(77),
        CONSORTIUM.genesis.chain_id(),
        [make_call("tokens", "define", {})],
        sequence=0,
        valid_until_ms=GENESIS_TIME_MS + 1_000,
    )
    answer = await offered(server, stranger, "unknown_account")
    assert stranger.sender.hex() in answer["message"]
    assert "have the account registered" in answer["advice"]


async def test_a_suspended_account(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    waiting = node.transfer(0)
    await offered(server, waiting)
    suspend = make_call("membership", "suspend_account", {"account": node.address("user-b")})
    node.commit([CONSORTIUM.sign("bank-a", [suspend])])
    dropped = await told(server, waiting)
    assert (dropped["stage"], dropped["code"]) == ("refused", "account_suspended")
    assert dropped["message"] == "its account was suspended while it waited"
    refused = await offered(server, node.transfer(1), "account_suspended")
    assert "user-b" in refused["message"]
    assert "admin" in refused["advice"]


async def test_a_full_pool_and_a_full_share_of_it(tmp_path: Path) -> None:
    limits = PoolLimits(transactions_max=3, transactions_per_sender_max=2)
    with make_node(tmp_path, limits) as node:
        async with serving(node) as server:
            node.meet(*OTHERS)
            await offered(server, define("u0"))
            await offered(server, define("u1", sequence=1))
            share = await offered(server, define("u2", sequence=2), "sender_full")
            assert share["message"] == "2 transactions of this account wait already"
            await offered(server, node.transfer(0))
            full = await offered(server, node.transfer(1), "pool_full")
            assert "3 transactions wait already" in full["message"]
            assert full["advice"].startswith("submit the same bytes again in a moment")
            node.commit()
            assert (await offered(server, node.transfer(1)))["stage"] == "queued"  # now there is room


async def test_its_lane_number_is_taken_by_one_that_waits_or_is_final(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    winner, loser, late = node.transfer(0), node.transfer(0, amount=2), node.transfer(0, amount=3)
    await offered(server, winner)
    answer = await offered(server, loser, "lane_number_taken")
    assert "another transaction with number 0 waits" in answer["message"]
    node.commit()
    assert (await offered(server, late, "lane_used"))["advice"].startswith("another transaction has its number")
    waiting = node.transfer(1)
    await offered(server, waiting)
    node.commit([node.transfer(1, amount=9)])  # another node's pool held this one
    dropped = await told(server, waiting)
    assert (dropped["stage"], dropped["code"]) == ("refused", "lane_used")
    assert dropped["message"] == "another transaction with its lane and number became final"


async def test_a_one_shot_lane_that_was_used(node: TestNode, server: Server) -> None:
    lane = bytes(32)
    node.commit([define("u0", lane=lane)])
    answer = await offered(server, define("u1", lane=lane), "lane_consumed")
    assert "one-shot" in answer["advice"]


async def test_full_blocks_pass_it_by(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    waiting = node.transfer(0)
    await offered(server, waiting)
    for number in range(3):
        node.commit([define(f"u{number}", sequence=number)])
    answer = await told(server, waiting)
    assert (answer["stage"], answer["code"]) == ("queued", "passed_over")
    assert answer["message"].startswith("3 blocks passed it by since it was next in its lane")
    assert "1 transaction of its sender wait, 1 in all" in answer["message"]


async def test_proposals_with_it_came_to_nothing(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    waiting = define()
    await offered(server, waiting)
    for _ in range(REFUSALS_MAX):
        node.mempool.refused([waiting])
    answer = await told(server, waiting)
    assert (answer["code"], answer["stage"]) == ("set_back", "queued")
    assert answer["message"].startswith("2 proposals of this node that held it came to nothing")


async def test_a_node_that_catches_up_may_not_know_that_it_is_final(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    node.certified_height = 12
    answer = await offered(server, define())
    assert (answer["code"], answer["stage"]) == ("catching_up", "queued")
    assert answer["message"] == "this node is at block 0 and catches up to 12: it may be final already"


async def test_final_and_final_but_failed(node: TestNode, server: Server) -> None:
    node.commit([define()])
    answer = await told(server, define())
    assert (answer["stage"], answer["code"], answer["height"]) == ("final", "final", 1)
    poor = node.transfer(0, amount=5)
    node.commit([poor])
    failed = await told(server, poor)
    assert (failed["stage"], failed["code"], failed["failedCount"]) == ("final", "insufficient_funds", 1)
    assert failed["message"].startswith("it is final and failed: insufficient_funds")


async def test_its_validity_is_over(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    brief = define(valid_until_ms=GENESIS_TIME_MS + 1_000)
    await offered(server, brief)
    node.clock.ms = GENESIS_TIME_MS + 1_001
    over = await told(server, brief)
    assert (over["stage"], over["code"]) == ("queued", "validity_over")
    node.mempool.expire(node.clock.ms)
    lost = await told(server, brief)
    assert (lost["stage"], lost["code"]) == ("expired", "expired")
    assert lost["message"].endswith("valid until 2023-11-14 22:13:21 UTC: it can never become final")


async def test_one_that_is_too_old_or_valid_too_far_ahead(server: Server) -> None:
    old = await offered(server, define(valid_until_ms=GENESIS_TIME_MS - 1), "expired")
    assert "later end of validity" in old["advice"]
    assert old["message"].endswith("22:13:19 UTC: it can never become final")
    far = await offered(server, define(valid_until_ms=GENESIS_TIME_MS + 10 * VALIDITY_MS_MAX), "validity_too_long")
    assert far["advice"] == "sign the call again, valid for an hour at most"
    endless = await offered(server, define(valid_until_ms=2**63 - 1), "validity_too_long")
    assert endless["message"]


async def test_its_key_was_replaced_while_it_waited(node: TestNode, server: Server) -> None:
    node.meet(*OTHERS)
    waiting = node.transfer(0)
    await offered(server, waiting)
    call = {"new_public_key": PrivateKey.from_secret(99).public.compressed, "account": node.address("user-b")}
    node.commit([CONSORTIUM.sign("bank-a", [make_call("membership", "rotate_key", call)])])
    answer = await told(server, waiting)
    assert (answer["stage"], answer["code"]) == ("refused", "bad_signature")
    assert "key was replaced while it waited" in answer["message"]
    assert answer["advice"] == "sign the call again with the key that the account has now"


async def test_another_chain(server: Server) -> None:
    foreign = sign_transaction(
        CONSORTIUM.account_keys["bank-a"],
        ChainId(bytes(32)),
        [make_call("tokens", "define", {})],
        sequence=0,
        valid_until_ms=GENESIS_TIME_MS + 1_000,
    )
    assert "chain" in (await offered(server, foreign, "wrong_chain"))["advice"]


async def test_one_that_this_node_has_never_seen(server: Server) -> None:
    answer = await told(server, define("never"))
    assert (answer["stage"], answer["code"], answer["holders"]) == ("unknown", "not_found", [])
    assert "they take effect once" in answer["advice"]


async def test_the_validity_of_one_that_was_refused_is_over(node: TestNode, server: Server) -> None:
    """Nothing is to be waited for then, whatever it was refused for."""
    node.meet(*OTHERS)
    ends_ms = GENESIS_TIME_MS + 15
    await offered(server, node.transfer(0))
    loser = CONSORTIUM.sign("user-b", [make_call("tokens", "define", {})], sequence=0, valid_until_ms=ends_ms)
    await offered(server, loser, "lane_number_taken")
    node.clock.ms = ends_ms
    assert (await told(server, loser))["stage"] == "refused"
    node.clock.ms = ends_ms + 1
    over = await told(server, loser)
    assert (over["stage"], over["code"]) == ("expired", "expired")
    never = "this node refused it with lane_number_taken, and it was valid until 2023-11-14 22:13:20 UTC:"
    assert over["message"].startswith(f"{never} it can never become final, unless a block under way")
    assert over["advice"].startswith("sign the call again")
    while node.chain.head.header.time_ms <= ends_ms:
        node.commit([])
    assert (await told(server, loser))["message"] == f"{never} it can never become final"
