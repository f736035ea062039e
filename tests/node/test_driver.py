"""Real drivers together: they commit, catch up, observe, shrug off rubbish, and stop before they could lie."""

from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.block import Block
from consensus.ledger.errors import StorageError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import Call, make_call
from consensus.ledger.validators import certificate_codec, vote_payload
from consensus.pbft.events import Effect, Event, EvidenceKind, Tick, Work
from consensus.pbft.messages import Commit, Decided, Message, Prepare, PrePrepare, Status, encode_message
from node.driver import INBOX_EVENTS_MAX
from node.program import Node
from node.storage.leveldb import LevelStore
from node.storage.store import Store, Write
from node.sync import CatchUp, FinalBlock, SyncResponse, request_codec, response_codec
from p2p.frames import FrameKind
from tests.node.site import Puppet, Site


def define(unit: str) -> list[Call]:
    return [make_call("tokens", "define", {"unit": unit, "decimals": 2, "description": unit})]


def signers(site: Site, name: str, height: int) -> set[str]:
    certificate = site.running[name].node.chain.reader.certificate(height)
    assert certificate is not None
    return {vote.signer for vote in certificate.signatures}


def points(site: Site, at: str, of: str) -> int:
    return next(peer.penalty_points for peer in site.running[at].node.network.peers() if peer.name == of)


@pytest.mark.parametrize("validators", [1, 2, 3, 4])
async def test_a_transaction_becomes_final_on_every_node(
    tmp_path: Path, nursery: trio.Nursery, validators: int
) -> None:
    site = Site(tmp_path, nursery, validators=validators)
    await site.start()
    transaction = site.sign("bank-a", define("cny"))
    site.submit(site.names[-1], transaction)
    await site.reach(1)
    found = {name: item.node.chain.reader.locate(transaction.id) for name, item in site.running.items()}
    assert all(location is not None and location.receipt_count == 1 for location in found.values())
    blocks = {item.node.chain.reader.block(1).hash for item in site.running.values()}  # type: ignore[union-attr]
    assert len(blocks) == 1
    assert all(transaction.id not in item.node.mempool for item in site.running.values())
    await site.stop()


async def test_a_node_that_was_away_catches_up_and_votes_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    away, *others = site.names
    await site.start()
    site.submit(away, site.sign("bank-a", define("u0")))
    await site.reach(1)
    await site.stop(away)
    for number in range(1, 6):
        site.submit(others[0], site.sign("bank-a", define(f"u{number}"), sequence=number))
        await site.reach(number + 1, *others)
    await site.start(away)
    await site.reach(6)
    await site.stop(others[0])
    before = site.running[others[1]].height
    site.submit(away, site.sign("bank-a", define("u6"), sequence=6))
    await site.reach(before + 1)
    assert away in signers(site, others[1], before + 1)  # Three of four are left: without its vote nothing is final.
    await site.stop()


async def test_r49_a_node_with_a_wiped_store_follows_and_does_not_vote(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    wiped, *others = site.names
    await site.start()
    site.submit(wiped, site.sign("bank-a", define("u0")))
    await site.reach(1)
    await site.stop(wiped)
    site.wipe(wiped)
    await site.start(wiped)
    await site.reach(1)
    for number in range(1, 4):
        site.submit(wiped, site.sign("bank-a", define(f"u{number}"), sequence=number))
        await site.reach(number + 1)
    assert not site.running[wiped].node.driver.engine.status().is_validator
    assert all(wiped not in signers(site, others[0], height) for height in range(2, 5))
    await site.stop()


async def test_a_new_vote_key_observes_until_it_is_admitted_and_nobody_minds(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Site(tmp_path, nursery)
    late, *others = site.names
    site.config(late).vote_key.write_bytes(PrivateKey.generate().to_pem(None))
    await site.start()
    for number in range(4):
        site.submit(others[0], site.sign("bank-a", define(f"u{number}"), sequence=number))
        await site.reach(number + 1)
    assert not site.running[late].node.driver.engine.status().is_validator
    assert [points(site, other, late) for other in others] == [0, 0, 0]
    await site.stop()


async def test_a_transaction_reaches_every_pool_without_a_quorum(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    first, second = await site.start(*site.names[:2])
    transaction = site.sign("bank-a", define("cny"))
    site.submit(site.names[0], transaction)
    with trio.fail_after(60):
        while transaction.id not in second.node.mempool:
            await trio.lowlevel.checkpoint()
    assert first.height == second.height == 0
    await site.stop()


@pytest.mark.parametrize(
    "kind", [FrameKind.CONSENSUS, FrameKind.TRANSACTIONS, FrameKind.SYNC_REQUEST, FrameKind.SYNC_RESPONSE]
)
async def test_who_sends_rubbish_pays_and_the_rest_goes_on(
    tmp_path: Path, nursery: trio.Nursery, kind: FrameKind
) -> None:
    site = Site(tmp_path, nursery)
    *honest, bad = site.names
    puppet = await site.puppet(bad)
    await site.start(*honest)
    await puppet.meet(*honest)
    if kind is FrameKind.SYNC_RESPONSE:
        await asked(site, puppet, honest)
    rubbish = cycle([b"", b"\xc1", b"\x93\x01\x02", b"\xff" * 2_000])

    def everyone_minds() -> bool:
        """Send again to who has not minded yet."""
        patient = [name for name in honest if points(site, name, bad) < 20]
        for name in patient:
            puppet.network.send(name, kind, next(rubbish))  # type: ignore[arg-type]
        return not patient

    await site.until(everyone_minds)
    site.submit(honest[0], site.sign("bank-a", define("cny")))
    await site.reach(1)
    puppet.network.stop()
    await site.stop()


async def asked(site: Site, puppet: Puppet, honest: Iterable[str]) -> None:
    """Make every node ask the puppet for blocks: its certificate of height 2 is a real one."""
    block = Block.of(
        msgspec.structs.replace(site.running[site.names[0]].node.chain.head.header, height=2, time_ms=2), []
    )
    puppet.say(Decided(site.certify(block)))
    wanted = set(honest)
    await site.until(lambda: wanted <= {peer for peer, kind, _ in puppet.frames if kind is FrameKind.SYNC_REQUEST})


async def test_r41_a_proposal_with_another_result_gets_no_vote(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    bad = site.names[1]  # The primary of height 1.
    honest = [name for name in site.names if name != bad]
    puppet = await site.puppet(bad)
    first = (await site.start(*honest))[0]
    await puppet.meet(*honest)
    candidate, _ = first.node.chain.build(bad, first.node.clock.wall_ms(), [site.sign("bank-a", define("cny"))])
    header = msgspec.structs.replace(candidate.block.header, receipts_root=b"\7" * 32)
    block = Block.of(header, candidate.block.transactions)
    signature = site.vote_key(bad).sign(Purpose.PROPOSAL, site.chain_id, vote_payload(1, 0, block.hash))
    puppet.say(PrePrepare(0, block.record(), signature))
    site.submit(honest[0], site.sign("bank-a", define("cny")))
    await site.reach(1)
    assert all(block.hash != item.node.chain.head.hash for item in site.running.values())
    votes = [message for name in honest for message in puppet.messages(name) if isinstance(message, Prepare | Commit)]
    assert votes
    assert all(message.block_hash != block.hash for message in votes)
    evidence = [item.node.driver.evidence[0] for item in site.running.values()]
    assert {(item.kind, item.signer, item.code) for item in evidence} == {
        (EvidenceKind.INVALID_PROPOSAL, bad, "result_mismatch")
    }
    puppet.network.stop()
    await site.stop()


class FaultyStore:
    """The real store, whose writes fail from the nth on."""

    def __init__(self, store: Store, writes_left: int) -> None:
        self._store = store
        self.writes_left = writes_left

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._store.scan(prefix, start, reverse=reverse)

    def write(self, batch: Iterable[Write]) -> None:
        if not self.writes_left:
            raise StorageError("disk_failed", "no space left on device")
        self.writes_left -= 1
        self._store.write(batch)

    def close(self) -> None:
        self._store.close()


OPENING_WRITES = 2
"""Genesis and incarnation."""


@pytest.mark.parametrize(
    ("faulty_index", "writes", "said"),
    [
        (1, 0, []),
        (1, 1, [PrePrepare]),
        (1, 2, [PrePrepare, Commit]),
        (0, 0, []),
        (0, 1, [Prepare]),
        (0, 2, [Prepare, Commit]),
    ],
)
async def test_r47_after_a_failed_write_nothing_that_depends_on_it_is_said(
    tmp_path: Path, nursery: trio.Nursery, faulty_index: int, writes: int, said: list[type[Message]]
) -> None:
    """At height 1 names[1] proposes: accepted → PRE-PREPARE or PREPARE, prepared → COMMIT, block → height 2."""
    site = Site(tmp_path, nursery, timeout_ms=5_000)
    faulty, watcher = site.names[faulty_index], site.names[3]
    others = [name for name in site.names if name not in (faulty, watcher)]
    puppet = await site.puppet(watcher)
    await site.start(*others)
    [running] = await site.start(faulty, wrap=lambda store: FaultyStore(store, OPENING_WRITES + writes))
    await puppet.meet(faulty, *others)
    site.submit(others[0], site.sign("bank-a", define("cny")))
    await site.until(running.ended.is_set)
    await site.until(lambda: faulty not in puppet.network.connected())
    assert [error.code for error in running.errors if isinstance(error, StorageError)] == ["disk_failed"]
    spoken = [message for message in puppet.messages(faulty) if isinstance(message, PrePrepare | Prepare | Commit)]
    # What was queued when the node fell may be lost; what was never allowed must not be there.
    assert {type(message) for message in spoken} <= set(said)
    assert running.height == 0
    await site.start(faulty)
    await site.reach(1)
    puppet.network.stop()
    await site.stop()


@pytest.mark.parametrize("forged", [True, False])
async def test_r43_a_forged_body_under_a_certified_header_costs_the_peer_not_the_node(
    tmp_path: Path, nursery: trio.Nursery, forged: bool
) -> None:
    site = Site(tmp_path, nursery)
    name, liar = site.names[0], site.names[2]
    puppet = await site.puppet(liar)
    [running] = await site.start(name)
    chain = running.node.chain
    transaction = site.sign("bank-a", define("cny"))
    candidate, _ = chain.build(site.names[1], chain.head.header.time_ms + 5, [transaction])
    certificate = site.certify(candidate.block)
    body = [site.sign("bank-a", define("other"))] if forged else [transaction]
    block = Block.of(candidate.block.header, [item.raw for item in body])

    def answer(peer: str, kind: FrameKind, payload: bytes) -> None:
        if kind is FrameKind.SYNC_REQUEST:
            number = request_codec.decode_untrusted(payload).number
            items = [FinalBlock(block.encode(), certificate_codec.encode(certificate))]
            response = response_codec.encode(SyncResponse(number, items))
            puppet.network.send(peer, FrameKind.SYNC_RESPONSE, response)  # type: ignore[arg-type]

    puppet.answer = answer
    await puppet.meet(name)
    puppet.say(Decided(certificate), name)
    if forged:
        await site.until(lambda: points(site, name, liar) > 0)
        assert (running.height, running.ended.is_set()) == (0, False)
        block = candidate.block
        puppet.say(Decided(certificate), name)
    await site.reach(1)
    assert chain.reader.locate(transaction.id) is not None
    puppet.network.stop()
    await site.stop()


async def test_the_engine_hears_what_the_pool_holds_now_not_what_it_held_when_asked(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, nursery, validators=1)
    node = Node(site.config("bank-a"), LevelStore.open(site.config("bank-a").data))
    heard: list[Event] = []
    ticked = trio.Event()

    def step(event: Event) -> list[Effect]:
        heard.append(event)
        if isinstance(event, Tick):
            ticked.set()
        return []

    monkeypatch.setattr(node.driver.engine, "step", step)
    transaction = site.sign("bank-a", define("cny"))
    node.intake.submit_untrusted([transaction.raw])
    node.mempool.remove(transaction, code="dropped")
    await nursery.start(node.driver.run)
    with trio.fail_after(60):
        await ticked.wait()
    assert [event for event in heard if isinstance(event, Work)] == []
    nursery.cancel_scope.cancel()


async def test_r61_a_made_up_height_that_mute_peers_never_deny_does_not_keep_a_node_from_proposing(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_ends(_: CatchUp) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(CatchUp, "_round", never_ends)
    site = Site(tmp_path, nursery, validators=1)
    await site.start()
    site.running["bank-a"].node.driver._catch_up.want(2**60, NodeName("issuer-c"))
    site.submit("bank-a", site.sign("bank-a", define("cny")))
    await site.reach(1)
    assert site.running["bank-a"].node.driver._catch_up.is_running
    await site.stop()


async def test_r63_one_peer_s_flood_leaves_room_for_the_others(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    flooder, other = NodeName("permission"), NodeName("issuer-c")
    node = Node(site.config("bank-a"), LevelStore.open(site.config("bank-a").data))
    payload = encode_message(Status(1, 0, False))
    taken = {flooder: 0, other: 0}

    async def send(peer: NodeName, count: int) -> None:
        for _ in range(count):
            await node.driver.receive_untrusted(peer, payload)
            taken[peer] += 1

    nursery.start_soon(send, flooder, 2 * INBOX_EVENTS_MAX)
    await trio.testing.wait_all_tasks_blocked()
    assert 0 < taken[flooder] < INBOX_EVENTS_MAX // 2
    await send(other, 10)
    await nursery.start(node.driver.run)
    with trio.fail_after(60):
        while taken[flooder] < 2 * INBOX_EVENTS_MAX:
            await trio.lowlevel.checkpoint()
    nursery.cancel_scope.cancel()
