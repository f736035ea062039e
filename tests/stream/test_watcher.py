"""The watcher on a real chain: when it settles, what it claims, what it takes from nobody."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from msgspec.structs import replace

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError
from consensus.ledger.ids import Hash
from consensus.ledger.keys import Purpose
from consensus.ledger.streams import CONTRACT, Iteration, StreamRecord, close_hash, make_iteration
from consensus.ledger.transaction import make_call
from services.client.tasks import single_errors
from services.local.link import LocalLink
from services.stream import watcher as watcher_program
from services.stream.iteration_file import check_carried_untrusted
from services.stream.opening import Agreed
from services.stream.watcher import Watcher, settle_or_claim
from services.stream.watcher_interface import StatusQuery, Watch, Watched, WatchedListQuery, WatchedPage, WatcherStatus
from services.stream.watcher_store import Entry, Status, open_watcher_store
from services.stream.watchermachine import CLAIM_AFTER_MS, WITHDRAWAL_MS, Step, next_step
from tests.client.support import CONSORTIUM, signer
from tests.stream.payer_world import (
    DEPOSIT,
    FINE,
    FUNDS,
    MARGIN_MS,
    PAYER,
    SERVICE,
    UNIT,
    VALIDITY_MS,
    WATCHER,
    World,
    in_world,
)

Test = Callable[[World, Agreed, Watcher], Awaitable[None]]


def watched(folder: Path, test: Test, **terms: int) -> None:
    """Run a test with an open stream and a watcher; the service party is offline."""

    async def run(world: World, nursery: trio.Nursery) -> None:
        payer, agreed = world.payer(world.store()), world.agreed(**terms)
        await payer.open(agreed)
        await test(world, agreed, world.watcher())

    in_world(folder, run, is_served=False)


async def attended(watcher: Watcher, stream: bytes) -> Entry:
    """Let a watcher look once, and return what it has then."""
    entry = watcher._store.entry(stream)
    assert entry is not None
    if entry.status is Status.WATCHING:
        await watcher.attend(entry)
    entry = watcher._store.entry(stream)
    assert entry is not None
    return entry


def test_an_iteration_settles_when_its_service_party_would_have_uploaded_it(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        carried = world.iteration(agreed, 80)
        await watcher.watch(Watch(world.file(carried)))
        assert (await attended(watcher, agreed.stream)).status is Status.WATCHING
        world.pass_ms(VALIDITY_MS - MARGIN_MS)
        assert (await attended(watcher, agreed.stream)).status is Status.WATCHING
        world.pass_ms(5_000)
        entry = await attended(watcher, agreed.stream)
        record = await world.record(agreed.stream)
        assert (entry.status, entry.paid, record.paid) == (Status.SETTLED, 80, 80)
        assert entry.transaction == record.settled_by
        assert await world.available(SERVICE) == 80
        assert await world.available(WATCHER) == 0

    watched(tmp_path, test)


def test_a_withdrawal_has_it_settled_in_time(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        await watcher.watch(Watch(world.file(world.iteration(agreed, 80))))
        left = await world.payer(world.store("other")).withdraw(agreed.stream)
        assert left.left_ms > VALIDITY_MS + MARGIN_MS
        assert (await attended(watcher, agreed.stream)).status is Status.WATCHING
        world.pass_ms(WITHDRAWAL_MS)
        assert (await attended(watcher, agreed.stream)).status is Status.SETTLED

    watched(tmp_path, test)


def test_an_expired_iteration_is_claimed_without_a_fine(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        await watcher.watch(Watch(world.file(world.iteration(agreed, 80))))
        world.pass_ms(VALIDITY_MS + CLAIM_AFTER_MS)
        entry = await attended(watcher, agreed.stream)
        assert (entry.status, entry.paid, entry.fine) == (Status.CLAIMED, 80, 0)
        assert await world.available(PAYER) == FUNDS - DEPOSIT
        assert await world.available(SERVICE) == 80

    watched(tmp_path, test)


def test_a_burned_number_is_claimed_with_the_fine_once(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        carried = world.iteration(agreed, 80)
        await watcher.watch(Watch(world.file(carried)))
        await world.burn(agreed.stream)
        entry = await attended(watcher, agreed.stream)
        assert (entry.status, entry.paid, entry.fine) == (Status.CLAIMED, 80, FINE)
        assert await world.available(SERVICE) == 80 + FINE
        checked = check_carried_untrusted(world.file(carried).encode(), CONSORTIUM.genesis)
        done = await settle_or_claim(world.client, signer(WATCHER), checked, now_ms=world.wall.wall_ms())
        assert (done.step, done.amount, done.fine) == (Step.DONE, 0, 0)

    watched(tmp_path, test)


def test_the_payers_own_old_iteration_leaves_the_difference_to_be_claimed(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        await watcher.watch(Watch(world.file(world.iteration(agreed, 80))))
        old = check_carried_untrusted(world.file(world.iteration(agreed, 16)).encode(), CONSORTIUM.genesis)
        await world.client.submit_and_wait(old.iteration.transaction)
        assert await world.available(SERVICE) == 16
        entry = await attended(watcher, agreed.stream)
        assert (entry.status, entry.paid, entry.fine) == (Status.CLAIMED, 80, 0)
        assert await world.available(SERVICE) == 80

    watched(tmp_path, test)


def test_a_payer_without_funds_pays_out_of_the_deposit_with_the_fine(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        most = DEPOSIT - FINE
        await watcher.watch(Watch(world.file(world.iteration(agreed, most + 1)), urgent=True))
        funds = await world.available(PAYER)
        call = make_call("tokens", "transfer", {"unit": UNIT, "to": bytes(signer(WATCHER).address), "amount": funds})
        (await world.client.call_many(signer(PAYER), [call])).check()
        failed = await attended(watcher, agreed.stream)
        assert (failed.status, failed.paid) == (Status.WATCHING, 0)
        assert watcher._shown(failed).trouble == "insufficient_funds"
        entry = await attended(watcher, agreed.stream)
        assert (entry.status, entry.paid, entry.fine) == (Status.CLAIMED, most, FINE)
        assert watcher._shown(entry).trouble == ""

    watched(tmp_path, test, credit=100)


def test_only_the_greatest_iteration_is_kept_and_the_same_again_changes_nothing(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        first = await watcher.watch(Watch(world.file(world.iteration(agreed, 80))))
        for due, kept in ((80, 80), (40, 80), (88, 88), (8, 88)):
            given = await watcher.watch(Watch(world.file(world.iteration(agreed, due))))
            assert (given.stream, given.due) == (first.stream, kept)
        until_ms = world.wall.wall_ms() + VALIDITY_MS
        for renewed_ms, kept_ms in ((until_ms, until_ms), (until_ms - 1, until_ms), (until_ms + 1, until_ms + 1)):
            renewed = await watcher.watch(Watch(world.file(world.iteration(agreed, 88, until_ms=renewed_ms))))
            assert (renewed.due, renewed.valid_until_ms) == (88, kept_ms)
        page = await watcher.streams(WatchedListQuery())
        assert [(item.due, item.valid_until_ms) for item in page.items] == [(88, until_ms + 1)]
        assert (await watcher.streams(WatchedListQuery(page.items[0].stream))).items == []

    watched(tmp_path, test)


def test_a_greater_iteration_after_the_settlement_is_claimed(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        await watcher.watch(Watch(world.file(world.iteration(agreed, 80)), urgent=True))
        assert (await attended(watcher, agreed.stream)).status is Status.SETTLED
        await watcher.watch(Watch(world.file(world.iteration(agreed, 120))))
        entry = await attended(watcher, agreed.stream)
        assert (entry.status, entry.paid, entry.fine) == (Status.CLAIMED, 120, 0)

    watched(tmp_path, test)


def test_what_is_not_the_streams_is_not_taken(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        carried = world.iteration(agreed, 80)
        strangers = signer(WATCHER).key
        other = world.agreed()

        forged = make_iteration(
            strangers, world.client.chain_id, agreed.terms.payer, agreed.stream, 80, world.wall.wall_ms() + VALIDITY_MS
        )
        files = {
            "bad_signature": carried.__class__(agreed.terms, strangers.public.compressed, forged.raw),
            "wrong_stream": carried.__class__(other.terms, carried.payer_key, carried.raw),
            "unknown_stream": world.iteration(other, 80),
            "bad_terms": carried.__class__(replace(agreed.terms, margin_ms=1_000), carried.payer_key, carried.raw),
        }
        for code, file in files.items():
            assert await refusal(watcher, world.file(file)) == code
        assert await refusal(watcher, world.file(carried).replace("hansa-stream-1", "x")) == "malformed"
        assert (
            await refusal(watcher, world.file(carried).replace(world.client.chain_id.hex(), "0" * 64)) == "wrong_chain"
        )
        assert (await watcher.status(StatusQuery())).counts["WATCHING"] == 0

    watched(tmp_path, test)


def test_an_iteration_that_could_not_settle_before_the_deposit_is_gone_is_not_taken(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:
        await watcher.watch(Watch(world.file(world.iteration(agreed, 80))))
        most_ms = world.wall.wall_ms() + VALIDITY_MS + MARGIN_MS // 2
        far = world.iteration(agreed, 88, until_ms=most_ms + 5_000)
        assert await refusal(watcher, world.file(far)) == "bad_validity"
        assert await refusal(watcher, world.file(world.iteration(agreed, 88, until_ms=most_ms))) == ""
        await world.payer(world.store("other")).withdraw(agreed.stream)
        world.pass_ms(WITHDRAWAL_MS)
        assert (await attended(watcher, agreed.stream)).paid == 88

    watched(tmp_path, test)


def test_a_closed_stream_is_not_taken_and_one_that_closes_is_over(tmp_path: Path) -> None:
    async def test(world: World, agreed: Agreed, watcher: Watcher) -> None:

        carried = world.iteration(agreed, 80)
        await watcher.watch(Watch(world.file(carried)))
        signed = close_hash(agreed.stream, 80)
        signature = signer(SERVICE).key.sign(Purpose.STREAM_CLOSE, world.client.chain_id, signed)
        arguments: dict[str, Value] = {"stream": bytes(agreed.stream), "due": 80, "signature": signature}
        (await world.client.call(signer(PAYER), CONTRACT, "close", arguments)).check()
        entry = await attended(watcher, agreed.stream)
        assert (entry.status, entry.paid) == (Status.OVER, 80)
        assert await refusal(watcher, world.file(carried)) == "stream_closed"

    watched(tmp_path, test)


async def refusal(watcher: Watcher, file: str) -> str:
    """Return the code with which a file is not taken."""
    try:
        await watcher.watch(Watch(file))
    except HansaError as error:
        return error.code
    return ""


def test_the_program_takes_files_over_its_socket_and_over_http_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        first, second = world.agreed(), world.agreed()
        for agreed in (first, second):
            await payer.open(agreed)
        settings = world.watcher_settings()

        @asynccontextmanager
        async def running() -> AsyncIterator[int]:
            stopping = trio.Event()
            with single_errors(), open_watcher_store(settings.data) as store:
                watcher = Watcher(settings, store, world.client, now_ms=world.wall.wall_ms)
                async with trio.open_nursery() as nursery:
                    serve = partial(watcher_program.serve, settings, watcher, stopping)
                    yield await nursery.start(serve)
                    stopping.set()

        async with running() as port:
            async with LocalLink(settings.socket) as link:
                given = await link.call("watch", Watch(world.file(world.iteration(first, 80))), Watched)
                assert (given.due, given.status) == (80, "WATCHING")
                assert given.settles_at_ms == given.valid_until_ms - MARGIN_MS // 2
                status = await link.call("status", StatusQuery(), WatcherStatus)
                assert (status.account, status.counts["WATCHING"]) == (WATCHER, 1)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as web:
                body = {"iteration": world.file(world.iteration(second, 96)), "urgent": True}
                answer = await web.post("/iterations", json=body)
                assert (answer.status_code, answer.json()["due"]) == (200, 96)
                assert (await web.get(f"/streams/0x{'0' * 64}")).status_code == 404
                assert (await web.get("/streams/nonsense")).status_code == 400
                assert (await web.get("/healthz")).json() == {"account": WATCHER}
                while (await web.get(f"/streams/{answer.json()['stream']}")).json()["status"] != "SETTLED":
                    await trio.lowlevel.checkpoint()
        world.pass_ms(VALIDITY_MS - MARGIN_MS // 2)
        async with running(), LocalLink(settings.socket) as link:
            while "WATCHING" in [item.status for item in (await page_of(link)).items]:
                await trio.lowlevel.checkpoint()
            assert sorted(item.paid for item in (await page_of(link)).items) == [80, 96]

    in_world(tmp_path, test, is_served=False)


async def page_of(link: LocalLink) -> WatchedPage:
    """Return what a watcher has."""
    return await link.call("streams", WatchedListQuery(), WatchedPage)


# -- the rule ----------------------------------------------------------------------------------------------

NOW = 1_000_000
ITERATION = Iteration(Hash(bytes(32)), 80, NOW, None)  # type: ignore[arg-type]
OURS, OTHERS = b"o" * 32, b"x" * 32
UPTIME = 500_000
ASKED = UPTIME - WITHDRAWAL_MS + 60_000
"""When a window of a minute ends that was asked for just long enough ago."""


def record(**changes: object) -> StreamRecord:
    """Return an open stream's record."""
    made = StreamRecord(
        payer=bytes(20),
        service=bytes(20),
        payer_key=bytes(33),
        unit=UNIT,
        deposit=100,
        taken=0,
        paid=0,
        fine=10,
        is_fined=False,
        settled_by=b"",
        terms_hash=bytes(32),
        credit=0,
        window_ms=60_000,
        withdraw_at_uptime_ms=0,
        opened_at_ms=0,
        status="OPEN",
    )
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("found", "last_id", "now_ms", "time_ms", "step"),
    [
        (record(), None, NOW - 501, NOW - 501, Step.WAIT),
        (record(), None, NOW - 500, NOW - 9_000, Step.SETTLE),
        (record(), None, NOW - 9_000, NOW - 500, Step.SETTLE),
        (record(), None, NOW, NOW, Step.SETTLE),
        (record(), None, NOW + 1, NOW, Step.WAIT),
        (record(), None, NOW + CLAIM_AFTER_MS, NOW, Step.WAIT),
        (record(), None, NOW + CLAIM_AFTER_MS + 1, NOW, Step.CLAIM),
        (record(), None, NOW - 5_000, NOW + 1, Step.CLAIM),
        (record(paid=80), None, NOW + 9_000, NOW + 9_000, Step.DONE),
        (record(withdraw_at_uptime_ms=ASKED), None, NOW - 9_000, NOW - 9_000, Step.SETTLE),
        (record(withdraw_at_uptime_ms=ASKED + 1), None, NOW - 9_000, NOW - 9_000, Step.WAIT),
        (record(status="CLOSED"), None, NOW, NOW, Step.DONE),
        (record(status="CLOSED"), OTHERS, NOW, NOW, Step.DONE),
        (record(settled_by=OURS, paid=80), OURS, NOW - 9_000, NOW - 9_000, Step.DONE),
        (record(settled_by=OURS, paid=80), None, NOW - 9_000, NOW - 9_000, Step.DONE),
        (record(settled_by=OURS, paid=16), OURS, NOW - 9_000, NOW - 9_000, Step.CLAIM),
        (record(), OTHERS, NOW - 9_000, NOW - 9_000, Step.CLAIM),
        (record(paid=80), OTHERS, NOW - 9_000, NOW - 9_000, Step.CLAIM),
        (record(paid=80, is_fined=True), OTHERS, NOW - 9_000, NOW - 9_000, Step.DONE),
        (record(paid=80, fine=0), OTHERS, NOW - 9_000, NOW - 9_000, Step.DONE),
        (record(deposit=50, paid=40), OTHERS, NOW - 9_000, NOW - 9_000, Step.CLAIM),
        (record(deposit=50, paid=40, is_fined=True), OTHERS, NOW - 9_000, NOW - 9_000, Step.DONE),
    ],
)
def test_what_follows_from_a_streams_record_and_its_lane(
    found: StreamRecord, last_id: bytes | None, now_ms: int, time_ms: int, step: Step
) -> None:
    assert (
        next_step(found, last_id, ITERATION, margin_ms=1_000, now_ms=now_ms, time_ms=time_ms, uptime_ms=UPTIME) is step
    )


def test_a_full_watcher_says_so_and_still_takes_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.stream.watcher_store.WATCHED_MAX", 2)
    with open_watcher_store(tmp_path) as store:
        for number in range(2):
            store.take(Entry(bytes([number]) * 32, 8, 1, b""))
        with pytest.raises(HansaError) as caught:
            store.take(Entry(b"z" * 32, 8, 1, b""))
        assert caught.value.code == "watcher_full"
        assert store.take(Entry(bytes(32), 16, 1, b"")).due == 16
        store.put(Entry(bytes(32), 16, 1, b"", Status.SETTLED, paid=16))
        assert store.take(Entry(b"z" * 32, 8, 1, b"")).status is Status.WATCHING


def test_what_came_of_an_iteration_does_not_end_a_greater_one(tmp_path: Path) -> None:
    with open_watcher_store(tmp_path) as store:
        store.take(Entry(bytes(32), 8, 1, b"a"))
        store.take(Entry(bytes(32), 16, 1, b"b"))
        store.put(Entry(bytes(32), 8, 1, b"a", Status.SETTLED, paid=8, transaction=OURS))
        kept = store.entry(bytes(32))
        assert kept == Entry(bytes(32), 16, 1, b"b", Status.WATCHING, paid=8, transaction=OURS)


def test_the_oldest_of_what_is_over_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.stream.watcher_store.OVER_MAX", 2)
    with open_watcher_store(tmp_path) as store:
        for number in (3, 1, 2):
            store.put(Entry(bytes([number]) * 32, 8, 1, b"", Status.OVER))
        assert [entry.stream[0] for entry in store.page(b"", 10)] == [1, 2]
        assert store.counts() == {"WATCHING": 0, "SETTLED": 0, "CLAIMED": 0, "OVER": 2}
