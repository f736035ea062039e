"""One of four whole nodes whose k-th write fails, for every k of a life: silent at once, and no contradiction later."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import StorageError
from consensus.ledger.transaction import Transaction, make_call
from consensus.pbft.messages import (
    Commit,
    Message,
    NewView,
    Prepare,
    PrePrepare,
    ViewChange,
    decode_message_untrusted,
    encode_message,
)
from node.storage.store import Store, Write
from p2p.frames import FrameKind
from tests.node.site import Running, Site

pytestmark = pytest.mark.slow

LIFE_WRITES = 13
"""Genesis, incarnation, what it missed, then three a block (proposal, prepared, block) and those of a view change."""
BLOCKS_PER_LIFE = 4


class FaultyStore:
    """The real store, of which one write fails; ``written`` says whether the disk holds it all the same."""

    def __init__(self, store: Store, number: int, *, written: bool) -> None:
        self._store = store
        self._left = number
        self._written = written
        self.failed = False

    def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._store.scan(prefix, start, reverse=reverse)

    def write(self, batch: Iterable[Write]) -> None:
        assert not self.failed, "it writes again after a failure"
        self._left -= 1
        if self._left < 0:
            self.failed = True
            if self._written:
                self._store.write(batch)
            raise StorageError("disk_failed", "Input/output error")
        self._store.write(batch)

    def close(self) -> None:
        self._store.close()


class Ear:
    """Everything that a node says about consensus, and whether the disk had failed before it said it."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.late: list[Message] = []

    def listen(self, running: Running, has_failed: Callable[[], bool]) -> None:
        network = running.node.network
        send, broadcast = network.send, network.broadcast

        def hear(kind: FrameKind, payload: bytes) -> None:
            if kind is FrameKind.CONSENSUS:
                message = decode_message_untrusted(payload)
                (self.late if has_failed() else self.said).append(message)

        def heard_send(peer, kind, payload, *rest, **options):  # type: ignore[no-untyped-def]
            hear(kind, payload)
            return send(peer, kind, payload, *rest, **options)

        def heard_broadcast(kind, payload, *rest, **options):  # type: ignore[no-untyped-def]
            hear(kind, payload)
            return broadcast(kind, payload, *rest, **options)

        network.send, network.broadcast = heard_send, heard_broadcast  # type: ignore[method-assign]


def contradictions(name: str, said: list[Message]) -> list[Message]:
    """Return what one node said in a place where it had said something else."""
    first: dict[tuple[type, int, int], bytes] = {}
    found = []
    for message in said:
        match message:
            case PrePrepare(view=view, block=record):
                content = record.header.hash()
            case (
                Prepare(view=view, block_hash=block_hash, signer=signer)
                | Commit(view=view, block_hash=block_hash, signer=signer)
            ) if signer == name:
                content = block_hash
            case ViewChange(vote=vote) if vote.signer == name:
                view, content = vote.view, encode_message(message)
            case NewView(view=view):
                content = encode_message(message)
            case _:
                continue
        if first.setdefault((type(message), message.height, view), content) != content:
            found.append(message)
    return found


def define(site: Site, number: int) -> Transaction:
    calls = [make_call("tokens", "define", {"unit": f"u{number}", "decimals": 2, "description": "-"})]
    return site.sign("bank-a", calls, sequence=number)


def has(running: Running, transaction: Transaction) -> bool:
    return running.node.chain.reader.locate(transaction.id) is not None


@pytest.mark.parametrize("written", [False, True])
async def test_r47_r48_a_write_that_fails_anywhere_in_a_life_ends_it_and_nothing_later_is_said(
    tmp_path: Path, nursery: trio.Nursery, written: bool
) -> None:
    """``written``: the disk reports a failure and holds the record all the same, as after a failed sync."""
    site = Site(tmp_path, nursery)
    faulty, *others = site.names
    await site.start(*others)
    ear, sequence, hit = Ear(), 0, 0
    numbers = range(0, LIFE_WRITES, 2 if written else 1)
    for number in numbers:
        stores: list[FaultyStore] = []

        def wrap(store: Store, number: int = number, stores: list[FaultyStore] = stores) -> Store:
            stores.append(FaultyStore(store, number, written=written))
            return stores[0]

        try:
            [running] = await site.start(faulty, wrap=wrap)
        except StorageError:
            assert stores[0].failed  # while it was opened
            stores[0].close()
            site.running.pop(faulty, None)
            hit += 1
            continue
        ear.listen(running, lambda stores=stores: stores[0].failed)
        for _ in range(BLOCKS_PER_LIFE):
            last = define(site, sequence)
            site.submit(others[0], last)
            sequence += 1
            await site.until(lambda running=running, last=last: running.ended.is_set() or has(running, last))
        if not stores[0].failed:
            await site.stop(faulty)
            continue
        await running.ended.wait()
        hit += 1
        assert [error.code for error in running.errors if isinstance(error, StorageError)] == ["disk_failed"]
        site.running.pop(faulty)
    assert hit >= len(numbers) - 2
    assert ear.late == []
    await site.start(faulty)
    site.submit(faulty, last := define(site, sequence))
    await site.until(lambda: all(has(running, last) for running in site.running.values()))
    assert contradictions(faulty, ear.said) == []
    assert site.running[faulty].node.driver.engine.status().is_validator
    await site.stop()
