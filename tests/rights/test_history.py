"""Histories as files: fetched from a node that decides alone, and every way to tamper with one found offline."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import tagged_hash
from consensus.ledger.proof import Proof, StateClaim, proof_to_json
from consensus.ledger.state_tree import prove, update
from consensus.ledger.transaction import EACH, make_call
from services.client.client import Client
from services.rights import history
from services.rights.history import (
    HistoryFile,
    decode_history_untrusted,
    encode_history,
    fetch_history,
    load_untrusted,
    save,
    verify_history,
)
from tests.client.support import CONSORTIUM, NOW_MS, SoloNode, address, client_of, running, signer
from tests.ledger.builders import certify, make_block, make_genesis, make_genesis_block, make_keys, make_set, refusal
from tests.node.support import make_consortium

GENESIS = CONSORTIUM.genesis
SHOP = address("shop")


@asynccontextmanager
async def a_shop(folder: Path, orders: int) -> AsyncIterator[tuple[SoloNode, Client]]:
    """Give a node on which user u1 has so many entries and u2 one."""
    node = SoloNode(folder)
    async with running(node), client_of(node) as client:
        await client.call(signer("shop"), "rights", "open_campaign", {"campaign": "sale", "quota": 10**6})
        await create(client, 0, orders)
        await client.call(signer("shop"), "rights", "create", creation(0, "u2"))
        node.decide()
        yield node, client


def creation(number: int, user: str = "u1") -> dict[str, Value]:
    return {"campaign": "sale", "order": f"{user}-{number}", "user": user, "amount": number + 1, "event": "e"}


async def create(client: Client, first: int, end: int) -> None:
    calls = [make_call("rights", "create", creation(number)) for number in range(first, end)]
    for start in range(0, len(calls), 50):
        await client.call_many(signer("shop"), calls[start : start + 50], mode=EACH)


def broken(file: HistoryFile) -> str:
    """Return the code with which a file is refused, after it went through its bytes."""
    return refusal(verify_history, decode_history_untrusted(encode_history(file)), GENESIS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HistoryFile]:
    """Histories of a user with six entries, of another, and of nobody."""

    async def fetch() -> dict[str, HistoryFile]:
        async with a_shop(tmp_path_factory.mktemp("node"), 6) as (_, client):
            return {user: await fetch_history(client, user, SHOP) for user in ("u1", "u2", "nobody")}

    return trio.run(fetch)


def test_a_history_is_verified_with_genesis_alone(files: dict[str, HistoryFile], tmp_path: Path) -> None:
    path = tmp_path / "u1.history"
    save(files["u1"], path)
    proven = verify_history(load_untrusted(path), GENESIS)
    assert (proven.user, proven.server, len(proven.entries)) == ("u1", SHOP, 6)
    assert proven.balance == {**dict.fromkeys(history.FIGURES, 0), "created": 21, "reserved": 21}
    assert [entry.reference for entry in proven.entries] == [f"u1-{number}" for number in range(6)]
    assert len(proven.signers) == 3
    assert proven.height > 0
    assert proven.time_ms <= NOW_MS + 60_000


def test_that_nobody_has_a_history_is_proven_too(files: dict[str, HistoryFile]) -> None:
    proven = verify_history(files["nobody"], GENESIS)
    assert proven.entries == ()
    assert set(proven.balance.values()) == {0}
    assert broken(msgspec.structs.replace(files["nobody"], entries=files["u2"].entries)) == "history_broken"


def changed(file: HistoryFile, place: int, **changes: Any) -> HistoryFile:
    entries = list(file.entries)
    entries[place] = msgspec.structs.replace(entries[place], **changes)
    return msgspec.structs.replace(file, entries=entries)


def renumbered(file: HistoryFile, numbers: list[int]) -> HistoryFile:
    """The entries with these numbers, given new numbers in turn so that nothing shows but the hash."""
    entries = [msgspec.structs.replace(file.entries[old], number=new) for new, old in enumerate(numbers)]
    return msgspec.structs.replace(file, entries=entries)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda file: changed(file, 2, changes={"created": 4, "reserved": 3}),
        lambda file: changed(file, 2, type="create_by_rule"),
        lambda file: changed(file, 5, reference="u1-9"),
        lambda file: changed(file, 0, event="f"),
        lambda file: changed(file, 3, height=9),
        lambda file: changed(file, 3, time_ms=9),
        lambda file: changed(file, 3, number=4),
        lambda file: renumbered(file, [0, 1, 3, 4, 5]),
        lambda file: renumbered(file, [0, 1, 2, 3, 4]),
        lambda file: renumbered(file, []),
        lambda file: renumbered(file, [0, 1, 2, 2, 3, 4, 5]),
        lambda file: renumbered(file, [0, 1, 2, 2, 4, 5]),
        lambda file: renumbered(file, [0, 2, 1, 3, 4, 5]),
        lambda file: msgspec.structs.replace(file, entries=file.entries[::-1]),
        lambda file: msgspec.structs.replace(file, entries=[*file.entries[:5], *file.entries[4:]]),
    ],
)
def test_what_is_changed_dropped_doubled_or_moved_is_found(
    files: dict[str, HistoryFile], tamper: Callable[[HistoryFile], HistoryFile]
) -> None:
    assert broken(tamper(files["u1"])) == "history_broken"


def test_amounts_moved_between_entries_are_found_although_the_sum_holds(files: dict[str, HistoryFile]) -> None:
    moved = changed(files["u1"], 0, changes={"created": 2, "reserved": 2})
    assert broken(changed(moved, 1, changes={"created": 1, "reserved": 1})) == "history_broken"


def test_a_history_under_another_name_is_found(files: dict[str, HistoryFile]) -> None:
    for other in (
        {"user": "u2"},
        {"server": "0x" + address("bank-a").hex()},
        {"proof": files["u2"].proof},
        {"proof": files["nobody"].proof},
    ):
        assert broken(msgspec.structs.replace(files["u1"], **other)) == "bad_proof"
    stolen = msgspec.structs.replace(files["u1"], user="u2", proof=files["u2"].proof)
    assert broken(stolen) == "history_broken"


def test_a_proof_that_does_not_hold_is_found(files: dict[str, HistoryFile]) -> None:
    document = files["u1"].proof
    claim: Any = document["claim"]
    forged = {**document, "claim": {**claim, "value": claim["value"][:-2] + "00"}}
    assert broken(msgspec.structs.replace(files["u1"], proof=forged)) in ("bad_proof", "malformed")
    absent = {**document, "claim": {**claim, "value": None}}
    assert broken(msgspec.structs.replace(files["u1"], proof=absent, entries=[])) == "bad_proof"
    assert broken(msgspec.structs.replace(files["u1"], proof={})) == "malformed"


def test_a_chain_whose_balance_is_not_the_sum_of_its_entries_is_found() -> None:
    """What the contract never writes: validators certify a record that does not fit its own entries."""
    keys = make_keys(4)
    genesis = make_genesis(keys)
    entry = history.Entry(0, "create", "o1", "e", {"created": 5, "reserved": 5}, 1, 1)
    head = tagged_hash("contract-data", encode([bytes(32), ["create", "o1", "e", {"created": 5, "reserved": 5}, 1, 1]]))
    for balance, code in (([5, 5, 0, 0, 0, 0, 0], ""), ([5, 4, 1, 0, 0, 0, 0], "history_broken")):
        key, value = f"rights/user/u1/{SHOP.hex()}".encode(), encode([1, head, [*balance], []])
        tree = update({}, {key: value})
        nodes = {path: blob for path, blob in tree.nodes.items() if blob is not None}
        validators = make_set(keys)
        parent = make_genesis_block(genesis.chain_id(), validators).header
        header = make_block(parent, validators, sealed_root=tree.root).header
        claim = StateClaim(key, value, prove(nodes, key))
        proof = Proof(genesis.chain_id(), (), header, certify(header, keys), claim)
        file = HistoryFile(history.FORMAT, "u1", "0x" + SHOP.hex(), [entry], proof_to_json(proof))
        assert refusal(verify_history, file, genesis) == code


def test_another_genesis_is_another_chain(files: dict[str, HistoryFile]) -> None:
    for genesis in (make_consortium(7).genesis, make_genesis(make_keys(4))):
        assert refusal(verify_history, files["u1"], genesis) == "wrong_chain"


def test_files_that_are_no_histories(files: dict[str, HistoryFile], tmp_path: Path) -> None:
    good: dict[str, Any] = msgspec.json.decode(encode_history(files["u2"]))
    entry = good["entries"][0]
    for bad in (
        {**good, "format": "hansa-rights-history-2"},
        {**good, "server": "0x00"},
        {**good, "user": "a/b"},
        {**good, "more": 1},
        {**good, "entries": [{**entry, "changes": {"money": 1}}]},
        {**good, "entries": [{**entry, "changes": {"created": 2**63}}]},
        {**good, "entries": [{**entry, "changes": {"created": 1.0}}]},
        {**good, "entries": [{**entry, "number": -1}]},
        [],
    ):
        assert refusal(decode_history_untrusted, msgspec.json.encode(bad)) == "malformed"
    for data in (b"", b"{", b"\xff", b"[" * 100_000, encode_history(files["u2"])[:-3]):
        assert refusal(decode_history_untrusted, data) == "malformed"
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(history.FILE_BYTES_MAX + 1)
    assert refusal(load_untrusted, path) == "too_large"


async def test_a_long_history_comes_in_pages_and_may_grow_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_shop(tmp_path / "a", 205) as (node, client):
        assert len((await fetch_history(client, "u1", SHOP)).entries) == 205
        query = client.query

        async def query_of_a_longer_history(contract: str, method: str, arguments: dict[str, Value]) -> Value:
            await create(client, 205, 210)
            return await query(contract, method, arguments)

        monkeypatch.setattr(client, "query", query_of_a_longer_history)
        assert len((await fetch_history(client, "u1", SHOP)).entries) == 205
        monkeypatch.undo()
        request = client.request

        async def request_that_seals(method: str, params: Any, kind: type[Any]) -> Any:
            if params.get("minHeight"):
                node.decide()
            return await request(method, params, kind)

        monkeypatch.setattr(client, "request", request_that_seals)
        assert len((await fetch_history(client, "u1", SHOP)).entries) == 210


async def test_a_node_that_answers_less_than_is_proven_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_shop(tmp_path / "a", 6) as (_, client):
        query = client.query

        async def query_of_less(contract: str, method: str, arguments: dict[str, Any]) -> Value:
            answer = await query(contract, method, arguments)
            return answer[: max(4 - arguments["start"], 0)] if isinstance(answer, list) else answer

        async def no_pause() -> None:
            """Take no time."""

        monkeypatch.setattr(client, "query", query_of_less)
        monkeypatch.setattr(client, "pause", no_pause)
        with pytest.raises(PeerError) as given_up:
            await fetch_history(client, "u1", SHOP)
        assert given_up.value.code == "history_broken"
        with pytest.raises(LocalError) as misnamed:
            await fetch_history(client, "u1/x", SHOP)
        assert misnamed.value.code == "bad_id"
        monkeypatch.setattr(history, "ENTRIES_MAX", 5)
        with pytest.raises(LocalError) as too_long:
            await fetch_history(client, "u1", SHOP)
        assert too_long.value.code == "history_too_long"
