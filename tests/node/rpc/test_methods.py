"""Every method over real HTTP against a real chain."""

import base64
from functools import partial

import msgspec
import pytest
import trio
import trio.testing

from consensus.ledger.block import decode_block_untrusted
from consensus.ledger.codec import decode, encode
from consensus.ledger.proof import proof_from_json_untrusted, verify_proof_untrusted
from consensus.ledger.transaction import EACH, make_call
from consensus.ledger.validators import certificate_codec
from node.driver import Commit
from node.rpc import methods_chain
from node.rpc.methods import methods
from tests.node.rpc.support import CONSORTIUM, Server, TestNode
from tests.node.support import GENESIS_TIME_MS


def hex_of(data: bytes) -> str:
    return "0x" + data.hex()


async def test_status_blocks_and_raw_bytes(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    status = await server.result("chain_status")
    assert (status["height"], status["node"], status["network"]) == (1, "node-0", "test")
    block = await server.result("chain_getBlock", raw=True, transactions=True)
    assert block["hash"] == status["head"]["hash"]
    assert decode_block_untrusted(bytes.fromhex(block["raw"][2:])).hash.hex() == block["hash"][2:]
    certificate = certificate_codec.decode_untrusted(bytes.fromhex(block["certificateRaw"][2:]))
    assert [vote.signer for vote in certificate.signatures] == block["signers"]
    (transaction,) = block["transactions"]
    assert transaction["calls"][1]["arguments"] == {
        "amount": "1000000",
        "to": hex_of(node.address("user-b")),
        "unit": "cny",
    }
    assert await server.result("chain_getBlock", hash=block["hash"]) == await server.result("chain_getBlock", height=1)
    assert (await server.result("chain_getBlock", height=0))["certificate"] is None
    assert await server.code("chain_getBlock", height=2) == "not_found"
    assert await server.code("chain_getBlock", hash=hex_of(bytes(32))) == "not_found"


async def test_a_page_of_raw_blocks_ends_early_by_its_blocks_and_receipts(
    node: TestNode, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.commit([node.money()])
    node.commit([])
    node.commit([])
    first = await server.result("chain_getBlock", height=1, raw=True)
    both = (len(first["raw"]) + len(first["receiptsRaw"])) // 2
    for limit_bytes, count in ((both, 1), (both + 2, 2)):
        monkeypatch.setattr(methods_chain, "RAW_PAGE_BYTES_MAX", limit_bytes)
        page = await server.result("chain_getBlocks", start=1, order="ascending", raw=True)
        assert (len(page["blocks"]), page["next"]) == (count, 1 + count)


async def test_pages_of_blocks_meet_without_gap(node: TestNode, server: Server) -> None:
    for _ in range(5):
        node.commit([])
    first = await server.result("chain_getBlocks", limit=4)
    second = await server.result("chain_getBlocks", start=first["next"], limit=4)
    assert [block["height"] for block in first["blocks"] + second["blocks"]] == [5, 4, 3, 2, 1, 0]
    assert second["next"] is None
    ascending = await server.result("chain_getBlocks", start=3, order="ascending")
    assert [block["height"] for block in ascending["blocks"]] == [3, 4, 5]


async def test_submit_wait_and_receipt(node: TestNode, server: Server) -> None:
    money = node.money()
    answer = await server.result("tx_submit", transactions=hex_of(money.raw))
    assert answer == {"id": hex_of(money.id), "accepted": True}
    explained = await server.result("tx_explain", id=hex_of(money.id))
    assert (explained["stage"], explained["code"], explained["holders"]) == ("queued", "no_quorum", ["node-0"])
    results: list[object] = []

    async def wait() -> None:
        results.append(await server.result("tx_wait", ids=[hex_of(money.id)], timeoutMs=10_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.02)
        node.commit()
    ((final,),) = results  # type: ignore[misc]
    assert (final["final"], final["height"], final["failedCount"]) == (True, 1, 0)
    assert final["receipts"][0]["status"] == "ok"
    again = await server.result("tx_submit", transactions=[base64.b64encode(money.raw).decode()])
    assert again == [{"id": hex_of(money.id), "accepted": True, "height": 1}]
    receipt = await server.result("chain_getReceipt", id=hex_of(money.id), prove=True)
    verified = verify_proof_untrusted(proof_from_json_untrusted(receipt["proof"]), CONSORTIUM.genesis)
    assert verified.height == 1


async def test_a_list_is_answered_one_by_one(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    good, spent = node.transfer(0), CONSORTIUM.sign("bank-a", [make_call("tokens", "x", {})], sequence=0)
    texts = [base64.b64encode(good.raw).decode(), "0xzz", hex_of(b"\x92\x00"), hex_of(spent.raw), ""]
    answers = await server.result("tx_submit", transactions=texts)
    assert [answer["accepted"] for answer in answers] == [True, False, False, False, False]
    assert [answer.get("code") for answer in answers[1:]] == ["invalid_params", "malformed", "lane_used", "malformed"]
    assert await server.code("tx_submit", transactions=hex_of(spent.raw)) == "lane_used"
    explained = await server.result("tx_explain", id=hex_of(spent.id))
    assert (explained["stage"], explained["code"]) == ("refused", "lane_used")
    assert (await server.result("tx_explain", id=hex_of(bytes(32))))["stage"] == "unknown"


async def test_what_expired_in_the_pool_is_known_to_be_lost(node: TestNode, server: Server) -> None:
    call = make_call("tokens", "define", {"unit": "cny", "decimals": 2, "description": "yuan"})
    brief = node.consortium.sign("bank-a", [call], valid_until_ms=GENESIS_TIME_MS + 1_000)
    await server.result("tx_submit", transactions=hex_of(brief.raw))
    node.clock.ms = GENESIS_TIME_MS + 1_001
    waiting = await server.result("tx_explain", id=hex_of(brief.id))
    assert (waiting["stage"], waiting["code"]) == ("queued", "validity_over")
    node.mempool.expire(GENESIS_TIME_MS + 1_001)
    lost = await server.result("tx_explain", id=hex_of(brief.id))
    assert (lost["stage"], lost["code"]) == ("expired", "expired")
    assert "valid until 2023-11-14 22:13:21 UTC: it can never become final" in lost["message"]


async def test_what_another_under_its_number_made_impossible_is_refused(node: TestNode, server: Server) -> None:
    loser, winner = node.transfer(0), node.transfer(0, amount=2)
    await server.result("tx_submit", transactions=hex_of(loser.raw))
    node.commit([winner])
    explained = await server.result("tx_explain", id=hex_of(loser.id))
    assert (explained["stage"], explained["code"]) == ("refused", "lane_used")


async def test_waiting_ends_with_its_time_and_says_why(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    ahead = node.transfer(3)
    await server.result("tx_submit", transactions=hex_of(ahead.raw))
    answer = await server.result("tx_wait", ids=hex_of(ahead.id), timeoutMs=1)
    assert (answer["final"], answer["stage"], answer["code"]) == (False, "queued", "lane_gap")


async def test_simulation_leaves_no_trace(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    answer = await server.result("tx_simulate", transaction=hex_of(node.transfer(0, amount=10**9).raw))
    assert (answer["receipts"][0]["status"], answer["receipts"][0]["code"]) == ("failed", "insufficient_funds")
    assert (await server.result("tx_simulate", transaction=hex_of(node.transfer(0).raw)))["receipts"][0]["code"] == ""
    assert await server.code("tx_simulate", transaction=hex_of(node.transfer(5).raw)) == "lane_gap"
    account = await server.result("chain_getAccount", account="user-b", lanes=["0x"])
    assert account["lanes"][0]["next"] == 0


async def test_accounts_lanes_and_history(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    transfers = [node.transfer(number) for number in range(3)]
    node.commit(transfers[:2])
    node.commit(transfers[2:])
    by_name = await server.result("chain_getAccount", account="user-b", lanes=["0x", "0x01"])
    assert by_name["address"] == hex_of(node.address("user-b"))
    assert [lane["next"] for lane in by_name["lanes"]] == [3, 0]
    assert by_name["lanes"][0]["lastId"] == hex_of(transfers[2].id)
    first = await server.result("chain_getHistory", account=by_name["address"], limit=2)
    second = await server.result("chain_getHistory", account="user-b", limit=2, cursor=first["cursor"])
    ids = [item["id"] for item in first["items"] + second["items"]]
    assert ids == [hex_of(transfer.id) for transfer in reversed(transfers)]
    assert second["cursor"] is None
    assert await server.code("chain_getAccount", account="nobody") == "unknown_account"
    assert await server.code("chain_getAccount", account="0x00") == "unknown_account"


async def test_each_call_has_its_receipt(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    to = node.address("user-e")
    calls = [make_call("tokens", "transfer", {"unit": "cny", "to": to, "amount": amount}) for amount in (1, 10**9)]
    each = CONSORTIUM.sign("user-b", calls, mode=EACH)
    node.commit([each])
    transaction = await server.result("chain_getTransaction", id=hex_of(each.id), prove=True)
    assert [receipt["status"] for receipt in transaction["receipts"]] == ["ok", "failed"]
    assert (transaction["mode"], transaction["failedCount"]) == ("each", 1)
    verify_proof_untrusted(proof_from_json_untrusted(transaction["proof"]), CONSORTIUM.genesis)
    assert await server.code("chain_getReceipt", id=hex_of(each.id), prove=True, callIndex=2) == "invalid_params"
    assert await server.code("chain_getTransaction", id=hex_of(bytes(32))) == "not_found"


async def test_state_with_proof_of_presence_and_absence(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    page = await server.result("state_scan", prefix="tokens/", limit=1)
    key = page["items"][0]["key"]
    node.commit([])
    answer = await server.result("state_get", key=key, prove=True, minHeight=2)
    assert answer["raw"] == page["items"][0]["raw"]
    verify_proof_untrusted(proof_from_json_untrusted(answer["proof"]), CONSORTIUM.genesis)
    absent = await server.result("state_get", key="tokens/none", prove=True)
    assert (absent["value"], absent["raw"]) == (None, None)
    verify_proof_untrusted(proof_from_json_untrusted(absent["proof"]), CONSORTIUM.genesis)
    assert await server.code("state_get", key=key, minHeight=9, timeoutMs=1) == "height_not_reached"


async def test_state_scan_pages_meet_without_gap(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    whole = await server.result("state_scan", prefix="membership/", limit=500)
    keys: list[str] = []
    cursor: dict[str, object] = {}
    while True:
        page = await server.result("state_scan", prefix="membership/", limit=3, **cursor)
        keys += [item["key"] for item in page["items"]]
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    assert keys == [item["key"] for item in whole["items"]]
    assert whole["cursor"] is None


async def test_contracts_are_described_and_queried(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    listed = await server.result("contract_list")
    assert {"membership", "rights", "tokens"} <= {entry["name"] for entry in listed}
    described = await server.result("contract_describe", contract="tokens")
    assert "transfer" in {method["name"] for method in described["methods"]}
    arguments = {"unit": "cny", "account": hex_of(node.address("user-b"))}
    answer = await server.result("contract_query", contract="tokens", method="balance", arguments=arguments)
    raw = encode({"unit": "cny", "account": node.address("user-b")})
    by_raw = await server.result("contract_query", contract="tokens", method="balance", raw=hex_of(raw))
    assert answer == by_raw
    assert encode(decode(bytes.fromhex(answer["raw"][2:]))).hex() == answer["raw"][2:]
    query = partial(server.code, "contract_query", contract="tokens")
    assert await query(method="balance", arguments={"unit": 5}) == "bad_arguments"
    assert await query(method="nothing") == "unknown_method"
    assert await query(method="transfer") == "unknown_method"
    assert await server.code("contract_query", contract="nothing", method="x") == "unknown_contract"
    assert await server.code("contract_query", contract="nothing", method="x", raw="0x80") == "unknown_contract"
    assert await query(method="balance", raw="0xc1") == "malformed"


async def test_events_by_pages_with_and_without_filter(node: TestNode, server: Server) -> None:
    node.commit([node.money()])
    node.commit([node.transfer(number) for number in range(4)])
    node.commit([])
    node.commit([node.transfer(4)])
    everything = await server.result("events_query")
    assert everything["done"] is True
    for selection in ({"contract": "tokens", "name": "transferred"}, {"contract": "tokens"}, {}):
        whole = [
            item
            for item in everything["items"]
            if not selection or all(item[field] == value for field, value in selection.items())
        ]
        found: list[object] = []
        page = await server.result("events_query", limit=2, **selection)
        while True:
            found += page["items"]
            if page["done"]:
                break
            page = await server.result("events_query", limit=2, cursor=page["cursor"], **selection)
        assert found == whole
        assert len(whole) >= 5
    cursor = everything["cursor"]
    assert (await server.result("events_query", cursor=cursor))["items"] == []
    node.commit([node.transfer(5)])
    assert len((await server.result("events_query", cursor=cursor))["items"]) == 1


async def test_consensus_doctor_and_peers(node: TestNode, server: Server) -> None:
    assert (await server.result("consensus_status"))["quorum"] == 3
    assert len((await server.result("consensus_validators"))["validators"]) == 4
    doctor = await server.result("consensus_doctor")
    assert doctor["healthy"] is False
    assert doctor["findings"][0]["code"] == "no_quorum"
    assert await server.result("net_peers") == []


async def test_openrpc_names_every_method_and_its_parameters(server: Server) -> None:
    document = await server.result("rpc.discover")
    described = {method["name"]: method for method in document["methods"]}
    assert set(described) == set(methods.methods)
    assert all(method["summary"] for method in described.values())
    assert [param["name"] for param in described["tx_wait"]["params"]] == ["ids", "timeoutMs", "receipts"]
    msgspec.json.encode(document)
    assert set((await server.get("/rpc")).json()["methods"]) == set(methods.methods)


async def test_r76_reads_wait_for_a_block_that_is_being_written(node: TestNode, server: Server) -> None:
    """Between the disk's new block and memory's, nothing is read that mixes both."""
    node.commit([node.money()])
    transfer = node.transfer(0)
    time_ms = node.chain.head.header.time_ms + 10
    candidate, _ = node.chain.build("node-0", time_ms, [transfer])
    certificate = CONSORTIUM.certify(candidate)
    node.store.write(node.chain.commit_batch(candidate, certificate))
    assert (await server.result("tx_explain", id=hex_of(transfer.id)))["final"] is False
    assert (await server.result("chain_getHistory", account="user-b"))["items"] == []
    answers: list[object] = []

    async def read() -> None:
        answers.append((await server.result("chain_getAccount", account="user-b", lanes=["0x"]))["lanes"][0]["next"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert answers == []
        node.chain.adopt(candidate, certificate)
        node.backend.on_commit(Commit(candidate, certificate))
    assert answers == [1]
