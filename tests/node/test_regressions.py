"""Bugs of peers that need whole nodes or a whole chain to show, called after their numbers in docs/faults.md."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.block import Block, Header, check_certified_untrusted, decode_block_untrusted
from consensus.ledger.errors import PeerError
from consensus.ledger.transaction import Transaction, make_call
from consensus.ledger.validators import certificate_codec
from consensus.pbft.events import Head
from node.chain import Chain
from node.storage import layout
from node.storage.leveldb import LevelStore
from tests.node.site import Site
from tests.node.support import make_executor
from tests.node.test_set_changes import GENESIS, Members, certify, members  # noqa: F401

RESTARTS = 4


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[tuple[Chain, LevelStore]]:
    store = LevelStore.open(tmp_path / "follower")
    yield Chain(store, GENESIS, make_executor()), store
    store.close()


def altered(value: object) -> object:
    """Return another value of the same type."""
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:]
    return value + 1 if isinstance(value, int) else "node-2" if value != "node-2" else "node-3"


def test_r64_all_that_consensus_decides_from_is_certified(
    members: Members,  # noqa: F811
    follower: tuple[Chain, LevelStore],
) -> None:
    """Blocks as a sync answer gives them: no field can be changed unseen, not even by a quorum, and what the engine
    gets to know of a head follows from them alone."""
    chain, store = follower
    assert Head.__match_args__ == ("header", "hash", "certificate", "validators", "quiet"), "is the new one certified?"
    source = members.chain.reader
    changes = 0
    for height in range(1, members.height + 1):
        stored, certificate = source.block(height), source.certificate(height)
        assert stored is not None
        assert certificate is not None
        block = decode_block_untrusted(stored.encode())
        certificate = certificate_codec.decode_untrusted(certificate_codec.encode(certificate))
        for field in Header.__struct_fields__:
            forged = msgspec.structs.replace(block.header, **{field: altered(getattr(block.header, field))})
            with pytest.raises(PeerError):
                check_certified_untrusted(forged, certificate, chain.head.validators)
            if field != "proposer":  # any validator may stand there; whose turn it was is the voters' to check (P6)
                with pytest.raises(PeerError):
                    chain.check_untrusted(Block.of(forged, block.transactions))
        check_certified_untrusted(block.header, certificate, chain.head.validators)
        candidate = chain.check_untrusted(block)
        own = certify(candidate, chain.head.validators)
        assert own == certificate
        store.write(chain.commit_batch(candidate, certificate))
        head = chain.adopt(candidate, certificate)
        assert head.validators.hash() == head.header.next_validators_hash
        changes += head.header.next_validators_hash != head.header.validators_hash
    assert changes == 4
    assert chain.head == members.chain.head
    for kind in (layout.VALIDATORS, layout.STATE, layout.TREE):
        assert list(store.scan(kind)) == list(members.store.scan(kind))


def conflicting(site: Site, number: int, version: int) -> Transaction:
    """Return one of two transactions with one number of one lane, about one unit."""
    calls = [make_call("tokens", "define", {"unit": f"u{number}", "decimals": version, "description": "-"})]
    return site.sign("bank-a", calls, sequence=number)


async def test_r40_conflicting_transactions_and_a_node_that_keeps_restarting(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Site(tmp_path, nursery)
    *steady, restless = site.names
    await site.start()
    number = 0

    def settled(*names: str) -> bool:
        """Whether these nodes hold one of the two newest transactions, and the same."""
        pair = [conflicting(site, number, version).id for version in (1, 2)]
        found = [{item for item in pair if site.running[name].node.chain.reader.locate(item)} for name in names]
        assert all(len(ids) < 2 for ids in found)
        assert len(set.union(*found)) < 2
        return all(found)

    def race(*names: str) -> None:
        for version, name in enumerate(names, start=1):
            site.submit(name, conflicting(site, number, version))

    for _ in range(RESTARTS):
        race(steady[0], steady[1])
        await site.until(lambda: settled(*steady))
        number += 1
        race(restless, steady[2])
        await site.stop(restless)  # with one of the two in its pool
        await site.until(lambda: settled(*steady))
        number += 1
        race(steady[1], steady[2])
        await site.until(lambda: settled(*steady))
        await site.start(restless)
        await site.until(lambda: settled(*site.names))
        number += 1
    assert len({site.running[name].node.chain.state.get(b"tokens/unit/u0") for name in site.names}) == 1
    await site.stop()
