"""How a block gets from a decision, or from a peer, to the disk: once, whole, disk first, and only with a quorum."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import make_call
from consensus.ledger.validators import Certificate, certificate_codec
from consensus.pbft.events import CLOCK_CODE
from node.chain import Candidate, Chain
from node.clock import CLOCK_TOLERANCE_MS, is_timely
from node.driver import _Delivery
from node.program import Node
from node.storage import layout
from node.storage.leveldb import LevelStore
from node.storage.store import Write
from node.sync import FinalBlock
from node.verification import Verifier
from tests.node.site import Site
from tests.node.support import GENESIS_TIME_MS, Consortium, extend, make_consortium, make_executor


class SeenStore:
    """A store that keeps which keys each batch had, and what the node's head was then; fails when told to."""

    def __init__(self, store: LevelStore) -> None:
        self._store = store
        self.node: Node | None = None
        self.batches: list[set[bytes]] = []
        self.heights: list[int] = []
        self.is_failing = False

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._store.scan(prefix, start, reverse=reverse)

    def write(self, batch: Iterable[Write]) -> None:
        pairs = list(batch)
        if self.node is not None:
            self.batches.append({key for key, _ in pairs})
            self.heights.append(self.node.chain.head.header.height)
        if self.is_failing:
            raise StorageError("disk_failed", "told to")
        self._store.write(pairs)

    def close(self) -> None:
        self._store.close()


class Bench:
    """One node of four, opened and not running, with a block that a quorum would certify."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.site = Site(folder, nursery)
        config = self.site.config("bank-a")
        self.store = SeenStore(LevelStore.open(config.data))
        self.node = Node(config, self.store)
        self.store.node = self.node
        call = make_call("tokens", "define", {"unit": "cny", "decimals": 2, "description": "yuan"})
        self.transaction = self.site.sign("bank-a", [call])
        self.candidate = self.build(0)
        self.certificate = self.site.certify(self.candidate.block)

    @property
    def height(self) -> int:
        return self.node.chain.head.header.height

    def build(self, ahead_ms: int) -> Candidate:
        """Return a block of this time after our clock's."""
        time_ms = self.node.clock.wall_ms() + ahead_ms
        return self.node.chain.build(self.site.names[1], time_ms, [self.transaction])[0]

    async def deliver(self, certificate: Certificate) -> bool:
        """Hand the block over as a peer's answer does."""
        item = FinalBlock(self.candidate.block.encode(), certificate_codec.encode(certificate))
        delivery = _Delivery(NodeName("issuer-c"), item)
        await self.node.driver._take_final(delivery)
        return delivery.holds


@pytest.fixture
def bench(tmp_path: Path, nursery: trio.Nursery) -> Iterator[Bench]:
    made = Bench(tmp_path, nursery)
    yield made
    made.store.close()


async def test_r52_a_block_and_all_about_it_are_one_write(bench: Bench) -> None:
    await bench.node.driver._commit(bench.candidate.block, bench.certificate)
    assert bench.height == 1
    [keys] = bench.store.batches
    about = (layout.BLOCK, layout.RECEIPTS, layout.WRITES, layout.CERTIFICATE)
    assert {layout.META_HEAD, *(layout.at_height(kind, 1) for kind in about)} <= keys


async def test_r46_no_block_is_shown_before_it_is_on_the_disk(bench: Bench) -> None:
    bench.store.is_failing = True
    with pytest.raises(StorageError):
        await bench.node.driver._commit(bench.candidate.block, bench.certificate)
    assert (bench.height, bench.store.heights) == (0, [0])
    assert bench.node.chain.reader.locate(bench.transaction.id) is None


async def test_r53_a_block_that_was_fetched_meanwhile_is_not_applied_again(bench: Bench) -> None:
    assert await bench.deliver(bench.certificate)
    assert bench.height == 1
    written = len(bench.store.batches)
    assert await bench.node.driver._commit(bench.candidate.block, bench.certificate) == ()
    assert await bench.deliver(bench.certificate)
    assert (bench.height, len(bench.store.batches)) == (1, written)


@pytest.mark.parametrize("case", ["one vote too few", "one signer twice", "a stranger", "a broken signature"])
async def test_r62_a_final_block_without_a_quorum_is_not_taken(bench: Bench, case: str) -> None:
    good = bench.certificate
    first, second, *rest = good.signatures
    votes = {
        "one vote too few": [first, second],
        "one signer twice": [first, first, second],
        "a stranger": [first, second, type(first)("zz-stranger", rest[0].signature)],
        "a broken signature": [first, second, type(first)(rest[0].signer, second.signature)],
    }[case]
    assert not await bench.deliver(Certificate(good.height, good.view, good.block_hash, votes))
    assert bench.height == 0
    assert bench.node.network._penalties.points("issuer-c", now_s=trio.current_time()) > 0
    assert await bench.deliver(good)
    assert bench.height == 1


async def test_r23_only_a_new_block_is_judged_by_the_clock(bench: Bench) -> None:
    driver = bench.node.driver
    for ahead_ms, is_close in ((0, True), (CLOCK_TOLERANCE_MS // 2, True), (2 * CLOCK_TOLERANCE_MS, False)):
        block = bench.build(ahead_ms).block
        fresh = driver._validate(block, first_seen=True)
        assert (fresh.valid, fresh.code) == ((True, "") if is_close else (False, CLOCK_CODE))
        assert driver._validate(block, first_seen=False).valid


@pytest.mark.parametrize(
    ("time_ms", "parent_ms", "wall_ms", "expected"),
    [
        (CLOCK_TOLERANCE_MS, 0, 0, True),
        (CLOCK_TOLERANCE_MS + 1, 0, 0, False),
        (1, 0, CLOCK_TOLERANCE_MS + 1, True),
        (1, 0, CLOCK_TOLERANCE_MS + 2, False),  # behind: a step that small is an old block's
        (3_600_001, 3_600_000, 0, True),
        (3_600_002, 3_600_000, 0, False),
    ],
)
def test_r23_a_chain_ahead_of_the_clock_goes_on_in_the_smallest_steps(
    time_ms: int, parent_ms: int, wall_ms: int, expected: bool
) -> None:
    assert is_timely(time_ms, parent_ms=parent_ms, wall_ms=wall_ms) is expected


def test_a_replaced_key_signs_no_more_where_its_signature_was_found_good(tmp_path: Path) -> None:
    """A proposal brings a transaction that this node has verified before the sender's key was replaced."""
    consortium: Consortium = make_consortium()
    store = LevelStore.open(tmp_path / "data")
    chain = Chain(store, consortium.genesis, make_executor())
    verifier = Verifier()
    call = make_call("membership", "rotate_key", {"new_public_key": PrivateKey.from_secret(77).public.compressed})
    until_ms = GENESIS_TIME_MS + 60_000
    rotation, later = (
        consortium.sign("user-b", [call], sequence=number, valid_until_ms=until_ms) for number in range(2)
    )
    transaction = verifier.decode_untrusted(later.raw)
    verifier.check_signature_untrusted(transaction, chain.state)
    extend(chain, store, consortium, [rotation])
    with pytest.raises(PeerError) as refused:
        verifier.check_signature_untrusted(transaction, chain.state)
    assert refused.value.code == "bad_signature"
    store.close()
