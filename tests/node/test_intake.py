"""The way in: what peers hand on is admitted or not, and honest peers are not blamed for what our state says."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import ATOMIC, Transaction, make_call, sign_transaction
from node.chain import Chain
from node.intake import BAD_SIGNATURE_PAUSE_S, REPEAT_AFTER_MS, Intake, _Batch, _batch_codec
from node.mempool import Mempool
from node.storage.leveldb import LevelStore
from p2p.frames import FrameKind
from tests.node.support import GENESIS_TIME_MS, extend, make_consortium, make_executor, pass_time

CONSORTIUM = make_consortium()


class HandClock:
    """Both clocks stand where the trio clock stands."""

    def wall_ms(self) -> int:
        return GENESIS_TIME_MS + 1_000 + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        return round(trio.current_time() * 1_000)


class Sent:
    """Keeps what would go to all validators."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []

    def broadcast(self, kind: FrameKind, payload: bytes, *, among: object) -> int:
        assert kind is FrameKind.TRANSACTIONS
        self.batches.append(_batch_codec.decode_untrusted(payload).transactions)
        return 3


class Bench:
    """A node's intake above a real chain."""

    def __init__(self, store: LevelStore) -> None:
        self.store = store
        self.chain = Chain(store, CONSORTIUM.genesis, make_executor())
        self.pool = Mempool(self.chain.executor, self.chain.verifier)
        self.sent = Sent()
        self.intake = Intake(
            chain=self.chain,
            mempool=self.pool,
            network=self.sent,  # type: ignore[arg-type]
            clock=HandClock(),
            on_work=lambda: None,
        )

    async def receive(self, *raws: bytes) -> None:
        await self.intake.receive_untrusted(_batch_codec.encode(_Batch(list(raws))))

    def commit(self, *transactions: Transaction) -> None:
        candidate = extend(self.chain, self.store, CONSORTIUM, list(transactions))
        self.pool.committed(candidate.transactions)
        self.pool.accounts_changed(candidate.execution.writes, self.chain.state)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = LevelStore.open(tmp_path)
    yield Bench(store)
    store.close()


def note(name: str = "user-b", sequence: int = 0, key: PrivateKey | None = None, ahead_ms: int = 60_000) -> Transaction:
    call = make_call("tokens", "transfer", {"unit": "x", "to": bytes(20), "amount": 1})
    valid_until_ms = GENESIS_TIME_MS + ahead_ms
    if key is None:
        return CONSORTIUM.sign(name, [call], sequence=sequence, valid_until_ms=valid_until_ms)
    return sign_transaction(
        key,
        CONSORTIUM.genesis.chain_id(),
        [call],
        sequence=sequence,
        lane=b"",
        mode=ATOMIC,
        valid_until_ms=valid_until_ms,
    )


def forged(transaction: Transaction) -> bytes:
    """The same body under a well-formed signature of something else."""
    envelope = msgspec.msgpack.decode(transaction.raw)
    other = msgspec.msgpack.decode(note(sequence=99).raw)
    if isinstance(envelope, dict):
        envelope["signature"] = other["signature"]
    else:
        envelope[-1] = other[-1]
    return msgspec.msgpack.encode(envelope)


async def test_a_peer_is_not_blamed_for_what_another_state_or_clock_would_allow(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.commit(note("user-e"))
    await bench.receive(
        note("user-e").raw,  # used meanwhile
        note(sequence=9_000).raw,  # too far ahead
        note(ahead_ms=0).raw,  # expired
        note(ahead_ms=3_700_000).raw,  # its clock is ahead of ours
        note(key=PrivateKey.from_secret(99)).raw,  # an account that we have not heard of yet
        forged(note()),  # perhaps a key that was replaced where we have not arrived
        note("shop").raw,
    )
    assert len(bench.pool) == 1


@pytest.mark.parametrize("broken", [b"", b"\xc1", b"\x92\xc4\x00\xc4\x00"])
async def test_a_peer_is_blamed_for_bytes_that_nobody_admits_and_the_rest_counts(
    bench: Bench, autojump_clock: MockClock, broken: bytes
) -> None:
    with pytest.raises(PeerError) as error:
        await bench.receive(broken, note().raw)
    assert error.value.code == "malformed"
    assert len(bench.pool) == 1


async def test_r37_checking_bad_signatures_costs_the_peer_more_time_than_us(
    bench: Bench, autojump_clock: MockClock
) -> None:
    began_s = trio.current_time()
    await bench.receive(*[forged(note(sequence=number)) for number in range(100, 300)])
    assert trio.current_time() - began_s >= 200 * BAD_SIGNATURE_PAUSE_S
    assert len(bench.pool) == 0
    assert bench.chain.verifier.bytes_held == 0


async def test_a_replaced_key_takes_what_it_signed_out_of_the_pool(bench: Bench, autojump_clock: MockClock) -> None:
    new = PrivateKey.from_secret(77).public.compressed
    rotate = make_call("membership", "rotate_key", {"new_public_key": new})
    waiting = [note(sequence=number) for number in (1, 2)]
    await bench.receive(*[item.raw for item in waiting], note("shop").raw)
    first = CONSORTIUM.sign("user-b", [rotate], valid_until_ms=GENESIS_TIME_MS + 60_000)
    bench.commit(first)
    assert [item.id in bench.pool for item in waiting] == [False, False]
    assert len(bench.pool) == 1
    await bench.receive(waiting[0].raw)
    assert len(bench.pool) == 1


async def test_what_a_client_submits_goes_to_all_and_again_while_it_waits(
    bench: Bench, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    transactions = [note(sequence=number) for number in range(3)]
    nursery.start_soon(bench.intake.run)
    bench.intake.submit_untrusted([item.raw for item in transactions])
    await trio.testing.wait_all_tasks_blocked()
    assert bench.sent.batches == [[item.raw for item in transactions]]
    bench.commit(transactions[0])
    await pass_time(2.5 * REPEAT_AFTER_MS / 1_000)
    assert bench.sent.batches[1:] == [[item.raw for item in transactions[1:]]] * len(bench.sent.batches[1:])
    assert len(bench.sent.batches) >= 2


async def test_the_same_again_is_answered_with_its_height(bench: Bench, autojump_clock: MockClock) -> None:
    transaction = note()
    assert bench.intake.submit_untrusted([transaction.raw])[0].code == ""
    assert bench.intake.submit_untrusted([transaction.raw])[0].code == ""
    bench.commit(transaction)
    [answer] = bench.intake.submit_untrusted([transaction.raw])
    assert (answer.code, answer.height) == ("", 1)
    [answer] = bench.intake.submit_untrusted([note(ahead_ms=61_000).raw])
    assert answer.code == "lane_used"
