"""A node whose contract computes another result: it stops before the block, and its bundle says where they part."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.block import Block
from consensus.ledger.codec import encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import Transaction, make_call
from contracts.runtime.execution import Executor
from contracts.runtime.loader import load_contract
from contracts.runtime.registry import DOMAIN_FOLDER
from node.chain import Chain, ResultMismatch
from node.divergence import Divergence, compare, replay, write_bundle
from node.results import (
    _Request,
    _request_codec,
    _Response,
    _response_codec,
    check_results_untrusted,
    serve_results_untrusted,
)
from node.storage import layout
from node.storage.layout import Receipts
from node.storage.leveldb import LevelStore
from node.storage.store import Store
from tests.node.site import Running, Site
from tests.node.support import extend, make_consortium, make_executor

PEER = NodeName("node-1")


def other_result(executor: Executor, change: Callable[[str], str]) -> None:
    """Let an executor's tokens contract run another source, and keep it from being noticed by its hash."""
    registry = executor.registry
    (shipped,) = [contract for contract in registry.newest() if contract.name == "tokens"]
    source = (DOMAIN_FOLDER / "tokens.py").read_text()
    changed = change(source)
    assert changed != source
    loaded = load_contract("tokens.py", changed.encode(), registry.meter)
    registry._contracts["tokens", shipped.version] = replace(loaded, code_hash=shipped.code_hash)


def wrong_supply(source: str) -> str:
    """A contract that writes another supply, and answers with it."""
    return source.replace(
        'context.state.put(f"supply/{unit}", supply + amount)',
        'context.state.put(f"supply/{unit}", supply + amount + 1)',
    ).replace("        return supply + amount\n", "        return supply + amount + 1\n")


async def diverged(site: Site, name: str) -> Divergence:
    """Wait until a node has ended, and return why."""
    running: Running = site.running[name]
    with trio.fail_after(60):
        await running.ended.wait()
    (error,) = running.errors
    assert isinstance(error, Divergence)
    return error


def issue(site: Site) -> list[Transaction]:
    define = make_call("tokens", "define", {"unit": "cny", "decimals": 2, "description": "yuan"})
    to = site.network.key("user-b").public.address
    give = make_call("tokens", "issue", {"unit": "cny", "to": to, "amount": 100})
    return [site.sign("bank-a", [define]), site.sign("bank-a", [give], sequence=1)]


@pytest.mark.slow
async def test_a_node_that_computes_another_result_stops_and_says_where_they_part(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Site(tmp_path, nursery)
    odd, *others = site.names
    await site.start()
    other_result(site.running[odd].node.chain.executor, wrong_supply)
    transactions = issue(site)
    site.submit(others[0], *transactions)
    error = await diverged(site, odd)
    assert error.code == "diverged"
    assert error.block.height >= 1
    assert set(error.differences) >= {"receipts_root", "writes_root"}
    report = error.report
    assert report["certifiedResults"].startswith("told by ")
    assert report["executedAgain"] == "gives the same here as before"
    (listed,) = report["transactions"]
    assert listed["transaction"]["id"] == "0x" + transactions[1].id.hex()
    assert [(listed[side][0]["values"]) for side in ("here", "certified")] == [["101"], ["100"]]
    (write,) = report["writes"]
    assert write["key"] == "tokens/supply/cny"
    assert (write["here"]["value"], write["certified"]["value"]) == ("101", "100")
    assert write["here"]["raw"] == "0x" + encode(101).hex()
    assert write["writtenBy"] == listed["transaction"]["id"]
    assert listed["transaction"]["id"] in str(error)
    bundle = json.loads(write_bundle(tmp_path, error).read_text())
    assert bundle["writes"] == report["writes"]
    assert "hansa chain replay" in bundle["replay"]
    assert "stops here again" in bundle["whatToDo"]
    assert json.loads(write_bundle(tmp_path, Divergence(error.block, PeerError("x"))).read_text())["height"]

    # The others go on; it starts again and stops at the same block, whoever tells it, without a vote for it.
    await site.reach(error.block.height, *others)
    del site.running[odd]
    opened = site.config(odd)
    store = LevelStore.open(opened.data)
    chain = Chain(store, site.genesis, make_executor())
    path = write_bundle(tmp_path, error)
    assert replay(chain, path)["holds"] is True
    other_result(chain.executor, wrong_supply)
    chain._candidates.clear()
    again = replay(chain, path)
    assert again["holds"] is False
    assert again["differences"] == list(error.differences)
    store.close()
    await site.start(odd)
    await site.reach(error.block.height, odd)  # with the right code it goes on by itself
    await site.stop()


@pytest.mark.slow
async def test_a_node_that_starts_again_with_the_cause_stops_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    odd, *others = site.names
    await site.start(*others)
    site.submit(others[0], *issue(site))
    await site.reach(1)
    for _ in range(2):
        await site.start(odd, prepare=lambda node: other_result(node.chain.executor, wrong_supply))
        error = await diverged(site, odd)
        assert error.report["certifiedResults"].startswith("told by ")
        del site.running[odd]
    height = site.running[others[0]].height
    votes = [site.running[others[0]].node.chain.reader.certificate(number) for number in range(1, height + 1)]
    assert all(vote is not None and odd not in {item.signer for item in vote.signatures} for vote in votes)
    await site.stop()


@dataclass
class Pair:
    """A block that an honest chain has made final, and a chain below it that computes something else."""

    store: LevelStore
    odd: Chain
    block: Block
    reason: PeerError


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    consortium = make_consortium()
    stores = [LevelStore.open(tmp_path / name) for name in ("honest", "odd")]
    honest, odd = (Chain(store, consortium.genesis, make_executor()) for store in stores)
    other_result(odd.executor, wrong_supply)
    to = consortium.account_keys["user-b"].public.address
    calls = [
        make_call("tokens", "define", {"unit": "cny", "decimals": 2, "description": "yuan"}),
        make_call("tokens", "issue", {"unit": "cny", "to": to, "amount": 100}),
    ]
    transactions = [consortium.sign("bank-a", [call], sequence=number) for number, call in enumerate(calls)]
    block = extend(honest, stores[0], consortium, transactions).block
    with pytest.raises(ResultMismatch) as refused:
        odd.check_untrusted(block)
    yield Pair(stores[0], odd, block, refused.value)
    for store in stores:
        store.close()


def told(store: Store, height: int) -> bytes:
    return serve_results_untrusted(_request_codec.encode(_Request(height)), store)


def writes_of(pair: Pair) -> bytes:
    return pair.store.get(layout.at_height(layout.WRITES, 1)) or b""


def test_results_of_a_peer_are_proven_by_the_header(pair: Pair) -> None:
    answer = told(pair.store, 1)
    results = check_results_untrusted(pair.block.header, answer, PEER)
    assert results is not None
    assert len(results.receipts.receipts) == 2
    assert check_results_untrusted(pair.block.header, told(pair.store, 2), PEER) is None
    with pytest.raises(PeerError) as foreign:
        check_results_untrusted(msgspec.structs.replace(pair.block.header, writes_root=bytes(32)), answer, PEER)
    assert foreign.value.code == "bad_proof"
    for counts in ([1, 1, 0], [1, 2], [1], [2**62]):
        miscounted = Receipts(results.receipts.receipts, counts)
        response = _Response(1, layout.receipts_codec.encode(miscounted), writes_of(pair))
        with pytest.raises(PeerError) as refused:
            check_results_untrusted(pair.block.header, _response_codec.encode(response), PEER)
        assert refused.value.code == "bad_proof"
    for broken in (b"", answer[:-1], b"\xc1" + answer):
        with pytest.raises(PeerError):
            check_results_untrusted(pair.block.header, broken, PEER)


def test_results_too_large_for_a_frame_are_not_told(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.results.ANSWER_BYTES_MAX", 10)
    assert check_results_untrusted(pair.block.header, told(pair.store, 1), PEER) is None


def test_without_a_peers_results_the_bundle_holds_ours_and_says_so(pair: Pair) -> None:
    report = compare(pair.odd, pair.block, pair.reason, None)
    assert str(report["certifiedResults"]).startswith("not known")
    assert report["transactionsCount"] == 2
    writes = report["writes"]
    assert isinstance(writes, list)
    assert report["writesCount"] == len(writes) >= 4
    assert all(isinstance(write, dict) and write["certified"] is None for write in writes)


def test_a_contract_that_is_not_deterministic_is_told_apart(pair: Pair) -> None:
    results = check_results_untrusted(pair.block.header, told(pair.store, 1), PEER)
    other_result(pair.odd.executor, lambda source: source + "\n")
    report = compare(pair.odd, pair.block, pair.reason, results)
    assert report["executedAgain"] == "gives a third result: something is not deterministic"


def test_a_block_that_cannot_be_executed_at_all_is_reported_without_results(pair: Pair) -> None:
    report = compare(pair.odd, pair.block, PeerError("bad_signature", "no"), None)
    assert list(report) == ["certifiedResults"]


def test_what_is_no_bundle_is_refused(pair: Pair, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    for text in (None, "", "{}", "[]", '{"block": 3}', '{"block": "0xzz"}', '{"block": "0x00"}'):
        if text is not None:
            bundle.write_text(text)
        with pytest.raises(LocalError) as refused:
            replay(pair.odd, bundle)
        assert refused.value.code == "bad_bundle"


def test_a_bundle_of_another_height_is_refused(pair: Pair, tmp_path: Path) -> None:
    path = write_bundle(tmp_path, Divergence(pair.block, pair.reason))
    honest = Chain(pair.store, make_consortium().genesis, make_executor())
    with pytest.raises(LocalError) as refused:
        replay(honest, path)
    assert refused.value.code == "bad_height"
