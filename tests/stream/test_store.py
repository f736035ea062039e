"""What a service party keeps: rows in groups, offers within a bound, and what a row says after a restart."""

from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.errors import StorageError
from services.client.errors import Refused
from services.stream import store as store_module
from services.stream.servicemachine import Kept
from services.stream.store import Entry, StreamStore, open_store
from tests.contracts.domain.streams import Streams

pytestmark = pytest.mark.trio
TERMS = Streams().terms()
KEY = bytes(33)


class Row:
    """A stream that is kept."""

    def __init__(self, number: int, due: int = 0, status: str = "STREAMING") -> None:
        self.name = bytes([number]) * 32
        self.due, self.status = due, status

    def entry(self) -> Entry:
        return Entry(Kept(self.name, TERMS, status=self.status, due=self.due), KEY, 900)


def at(folder: Path) -> str:
    return f"sqlite:///{folder / 'streams.db'}"


async def kept(store: StreamStore, *rows: Row) -> int:
    """Keep rows and wait until they are durable."""
    groups = [store.keep(row.name, row) for row in rows]
    await store.until(groups[-1])
    return groups[-1]


async def test_rows_outlive_the_program(tmp_path: Path) -> None:
    async with open_store(at(tmp_path)) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.write_forever)
        await kept(store, Row(1, 5), Row(2, 7, "CLOSED"), Row(3, 9, "ENDING"))
        nursery.cancel_scope.cancel()
    async with open_store(at(tmp_path)) as store:
        assert await store.find(Row(2).name) == Row(2, 7, "CLOSED").entry()
        assert await store.find(bytes(32)) is None
        assert [entry.kept.due for entry in await store.unfinished(["STREAMING", "ENDING"])] == [5, 9]
        assert [entry.kept.due for entry in await store.page("", Row(1).name, 1)] == [7]
        assert [entry.kept.due for entry in await store.page("ENDING", b"", 9)] == [9]
        assert await store.counts() == {"STREAMING": 1, "CLOSED": 1, "ENDING": 1}


async def test_what_comes_meanwhile_is_the_next_group_and_each_stream_stands_in_it_once(tmp_path: Path) -> None:
    async with open_store(at(tmp_path)) as store, trio.open_nursery() as nursery:
        row = Row(1)
        groups = set()
        for due in range(50):
            row.due = due
            groups.add(store.keep(row.name, row))
        assert groups == {1}
        assert store.durable == 0
        nursery.start_soon(store.write_forever)
        await store.until(1)
        found = await store.find(row.name)
        assert found is not None
        assert found.kept.due == 49
        assert store.keep(row.name, row) == 2
        await store.until(2)
        nursery.cancel_scope.cancel()


async def test_a_group_that_cannot_be_written_is_never_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(at(tmp_path)) as store:
        group = store.keep(Row(1).name, Row(1))

        def broken(*_: object) -> None:
            raise StorageError("disk_full", "no room")

        monkeypatch.setattr(store_module, "_save", broken)
        with pytest.raises(StorageError, match="no room"):
            await store.write_forever()
        with pytest.raises(StorageError, match="no room"):
            await store.until(group)
        assert store.durable == 0


async def test_what_still_waits_at_the_end_is_written(tmp_path: Path) -> None:
    async with open_store(at(tmp_path)) as store:
        store.keep(Row(1).name, Row(1, 3))
        await store.flush()
    async with open_store(at(tmp_path)) as store:
        assert await store.find(Row(1).name) is not None


async def test_offers_make_room_once_their_time_has_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OFFERS_MAX", 3)
    offers = [msgspec.structs.replace(TERMS, number=number, offer_until_ms=1_000 + number) for number in range(5)]
    async with open_store(at(tmp_path)) as store:
        for terms in offers[:3]:
            await store.keep_offer(terms, 500)
    async with open_store(at(tmp_path)) as store:
        with pytest.raises(Refused) as full:
            await store.keep_offer(offers[3], 999)
        assert full.value.code == "busy"
        await store.keep_offer(offers[3], 1_002)  # two are out of date by now
        name = store_module.stream_id(TERMS.payer, TERMS.service, 0)
        assert await store.offered(name) is None
        assert await store.offered(store_module.stream_id(TERMS.payer, TERMS.service, 3)) == offers[3]


async def test_two_offers_of_one_number_are_both_known(tmp_path: Path) -> None:
    async with open_store(at(tmp_path)) as store:
        other = msgspec.structs.replace(TERMS, deposit=2_000)
        await store.keep_offer(TERMS, 0)
        await store.keep_offer(other, 0)
        name = store_module.stream_id(TERMS.payer, TERMS.service, TERMS.number)
        assert await store.offered(name) in (TERMS, other)
        assert [await store.offer(store_module.terms_hash(terms)) for terms in (TERMS, other)] == [TERMS, other]
