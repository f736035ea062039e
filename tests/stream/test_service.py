"""The service party's parts together: what payers say, what is durable when, what goes to the chain, real sockets."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import httpx
import msgspec
import pytest
import trio
import trio.testing

from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.streams import Mode, close_hash, stream_id
from services.client.errors import Refused as RefusedError
from services.client.errors import Unreachable
from services.client.tasks import single_errors
from services.local.database import Work
from services.stream.handover import HandOver, Poster
from services.stream.interfaces import Reading
from services.stream.link import open_frames
from services.stream.outlet import Outlet
from services.stream.service_interface import (
    FRAME_MEDIA_TYPE,
    ITERATION_MEDIA_TYPE,
    Export,
    Offer,
    OfferWanted,
    StreamEnd,
    StreamQuery,
    StreamsQuery,
)
from services.stream.servicemachine import CLOSE_PAUSE_MS, Outcome
from services.stream.watcher_interface import Watch
from services.stream.wire import (
    Ask,
    Challenge,
    Close,
    Closed,
    Hello,
    Iterate,
    Refused,
    SaidFrame,
    Standing,
    Stored,
    Told,
    said_codec,
    told_codec,
)
from tests.contracts.domain.streams import OTHER, PAYER, SERVICE
from tests.stream.party import HandMeter, Party, open_party

pytestmark = pytest.mark.trio
NONCE = bytes(32)


async def say(party: Party, *messages: Hello | Iterate | Close | Ask, nonce: bytes | None = NONCE) -> list[Told]:
    """Return what is told to messages on a connection of their own."""
    outlet = party.desk.outlet()
    await party.desk.hear(messages, outlet, nonce)
    told = await outlet.take_all()
    party.desk.leave(outlet)
    return told


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something has come about."""
    with trio.fail_after(10):
        while True:
            if condition():
                return
            await trio.testing.wait_all_tasks_blocked()


async def status(party: Party, stream: bytes) -> str:
    """Return a stream's status as its owner sees it."""
    return (await party.owner.stream(StreamQuery(f"0x{stream.hex()}"))).status


async def until_status(party: Party, stream: bytes, *wanted: str) -> None:
    """Wait until a stream has one of these."""
    with trio.fail_after(10):
        while True:
            if await status(party, stream) in wanted:
                return
            await trio.testing.wait_all_tasks_blocked()


def codes(told: list[Told]) -> list[str]:
    """Return what was refused."""
    return [message.code for message in told if isinstance(message, Refused)]


def supplied(party: Party, stream: bytes, units: int) -> Callable[[], bool]:
    """Return whether the desk has counted so many units."""
    return lambda: party.desk._lives[stream].kept.units >= units


# -- opening ---------------------------------------------------------------------------------------------


async def test_r88_nothing_is_supplied_before_the_chain_shows_the_deposit(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        terms = await party.offer()
        unopened = stream_id(terms.payer, terms.service, terms.number)
        told = await say(party, party.hello(unopened, NONCE), party.iterate(unopened, 5), party.iterate(bytes(32), 5))
        assert codes(told) == ["unknown_stream"] * 3
        opened = party.streams.open(msgspec.structs.replace(terms, deposit=101))  # other terms than were offered
        assert codes(await say(party, party.hello(opened, NONCE))) == ["unknown_stream"]
        assert party.meter.reads == 0


async def test_many_offers_of_one_number_cost_one_look_at_the_chain(tmp_path: Path) -> None:
    """Anybody has as many as it likes, in any payer's name."""
    async with open_party(tmp_path, is_served=False) as party:
        offers = [await party.offer(7, offer_until_ms=party.streams.chain.next_time_ms + extra) for extra in range(50)]
        stream = stream_id(offers[0].payer, offers[0].service, 7)
        assert codes(await say(party, party.iterate(stream, 5))) == ["unknown_stream"]
        assert party.chain.looks == 1
        assert party.streams.open(offers[30]) == stream
        await say(party, party.hello(stream, NONCE))
        entry = await party.desk.find(stream)
        assert entry is not None
        assert entry[0].kept.terms == offers[30]


async def test_a_stream_is_taken_up_once_it_is_open_and_supplied_one_step(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        (standing,) = await say(party, party.hello(stream, NONCE))
        assert standing == Standing(stream, 0, 0, 0, "STREAMING", "")
        await until(supplied(party, stream, 2))
        assert party.meter.allowed[stream] == 2  # one step of 10 at 5 each
        assert await say(party, party.iterate(stream, 10)) == [Stored(stream, 10)]
        await until(supplied(party, stream, 4))


async def test_while_no_node_answers_nobody_is_let_in_and_later_they_are(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        party.chain.is_away = True
        assert codes(await say(party, party.hello(stream, NONCE))) == ["node_unreachable"]
        party.chain.is_away = False
        assert codes(await say(party, party.hello(stream, NONCE))) == []


# -- iterations ------------------------------------------------------------------------------------------


async def test_what_is_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        for due in (5, 10):
            outlet = party.desk.outlet()
            await party.desk.hear([party.iterate(stream, due)], outlet, NONCE)
            assert outlet._ready() == []  # taken, and not told yet
            assert await outlet.take_all() == [Stored(stream, due)]
            entry = await party.store.find(stream)
            assert entry is not None
            assert entry.kept.due == due


async def test_the_meter_is_allowed_nothing_before_the_group_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        write, gate = party.store._database.write, trio.Event()

        async def slow(work: Work[None]) -> None:
            await gate.wait()
            await write(work)

        monkeypatch.setattr(party.store._database, "write", slow)
        outlet = party.desk.outlet()
        await party.desk.hear([party.iterate(stream, 10)], outlet, NONCE)
        for _ in range(20):
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert party.meter.allowed[stream] == 2
        gate.set()
        await until(supplied(party, stream, 4))


async def test_a_failed_disk_acknowledges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use() -> None:
        async with open_party(tmp_path, is_served=False) as party:
            stream = await party.open()
            await say(party, party.hello(stream, NONCE))
            await until(supplied(party, stream, 2))

            async def full(_: object) -> None:
                await trio.lowlevel.checkpoint()
                raise StorageError("disk_full", "no room")

            monkeypatch.setattr(party.store._database, "write", full)
            outlet = party.desk.outlet()
            await party.desk.hear([party.iterate(stream, 5)], outlet, NONCE)
            with trio.CancelScope(shield=True):
                told.append(await outlet.take())

    told: list[list[Told]] = []
    with single_errors(), pytest.raises(StorageError, match="no room"), single_errors():
        await use()
    assert told == []


async def test_a_group_holds_what_many_streams_brought(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False, meter_ms=60_000) as party:
        streams = [await party.open(number, mode=int(Mode.PAYMENT_FIRST), step_max=500) for number in range(20)]
        await say(party, *(party.hello(stream, NONCE) for stream in streams))
        before = party.store.durable
        frame = [party.iterate(stream, due) for due in (5, 10, 15) for stream in streams]
        told = await say(party, *frame)
        assert told == [Stored(stream, 15) for stream in streams]
        assert party.store.durable - before <= 6
        assert party.desk.iterations == 60


async def test_forged_foreign_and_stale_iterations_change_nothing(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        first, second = await party.open(0), await party.open(1)
        await say(party, party.hello(first, NONCE), party.hello(second, NONCE))
        await until(supplied(party, first, 2))
        good = party.iterate(first, 5)
        forged = party.iterate(first, 5, key=PrivateKey.from_secret(77))
        told = await say(
            party,
            forged,
            Iterate(second, good.raw),
            Iterate(first, good.raw[:-1]),
            Iterate(first, b""),
            party.iterate(first, 5, valid_ms=9_000),
        )
        assert codes(told) == ["bad_signature", "wrong_stream", "malformed", "malformed", "bad_validity"]
        assert await say(party, good) == [Stored(first, 5)]
        assert await status(party, first) == "STREAMING"


async def test_a_wrong_amount_ends_the_stream_and_the_last_good_one_is_uploaded(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        await say(party, party.iterate(stream, 10))
        told = await say(party, party.iterate(stream, 500))
        assert "wrong_amount" in codes(told)
        await until_status(party, stream, "SETTLED")
        assert party.chain.sent == [("upload", Outcome.FINAL)]
        assert party.streams.record(stream).paid == 10


# -- ends ------------------------------------------------------------------------------------------------


async def test_the_agreed_end_uploads_once_and_agrees_to_close(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open(count_max=2)
        outlet = party.desk.outlet()
        await party.desk.hear([party.hello(stream, NONCE)], outlet, NONCE)
        for due in (5, 10):
            await until(supplied(party, stream, 2))
            await party.desk.hear([party.iterate(stream, due)], outlet, NONCE)
        closed: list[Closed] = []
        with trio.fail_after(10):
            while not closed:
                closed = [message for message in await outlet.take() if isinstance(message, Closed)]
        assert closed[0].due == 10
        digest = close_hash(stream, 10)
        assert party.streams.key(SERVICE).public.verifies(
            closed[0].signature, Purpose.STREAM_CLOSE, party.chain.chain_id, digest
        )
        party.streams.call(PAYER, "close", stream=stream, due=10, signature=closed[0].signature)
        # What is settled is looked up seldom: who asks hears of the close when it was seen.
        assert party.chain.sent == [("upload", Outcome.FINAL)]


async def test_a_burned_number_is_claimed_with_the_fine(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        await say(party, party.iterate(stream, 10))
        party.streams.burn(stream)
        await until_status(party, stream, "CLAIMED")
        record = party.streams.record(stream)
        assert (record.paid, record.is_fined) == (10, True)
        assert party.chain.sent[-1] == ("claim", Outcome.FINAL)


async def test_the_payer_closes_and_one_transaction_settles(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        await say(party, party.iterate(stream, 10))
        consent = party.streams.consent(stream, 10, by=PAYER)
        strange = party.streams.consent(stream, 10, by=OTHER)
        assert codes(await say(party, Close(stream, 10, strange["signature"]))) == ["bad_signature"]
        await say(party, Close(stream, 10, consent["signature"]))
        party.streams.chain.wait(CLOSE_PAUSE_MS)
        await until_status(party, stream, "CLOSED")
        assert party.chain.sent == [("close", Outcome.FINAL)]


async def test_a_withdrawal_that_is_asked_for_has_the_last_one_uploaded(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        await say(party, party.iterate(stream, 10))
        party.streams.call(PAYER, "request_withdrawal", stream=stream)
        await until_status(party, stream, "SETTLED")
        shown = await party.owner.stream(StreamQuery(f"0x{stream.hex()}"))
        assert shown.reason == "withdrawal"
        assert shown.upload_id == f"0x{party.streams.record(stream).settled_by.hex()}"


async def test_a_party_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        await say(party, party.iterate(stream, 5))
        world, meter = party.streams, party.meter
    async with open_party(tmp_path, streams=world, meter=meter, is_served=False) as party:
        (standing, *_) = await say(party, party.hello(stream, NONCE))
        assert isinstance(standing, Standing)
        assert (standing.due, standing.count) == (5, 1)
        await party.owner.end(StreamEnd(f"0x{stream.hex()}"))
        await until_status(party, stream, "SETTLED")
        assert world.record(stream).paid == 5
    async with open_party(tmp_path, streams=world, is_served=False) as party:
        assert await status(party, stream) == "SETTLED"


# -- who is heard ----------------------------------------------------------------------------------------


async def test_hello_is_signed_by_the_payer_over_this_connections_challenge(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        other = bytes([1]) * 32
        assert codes(await say(party, party.hello(stream, NONCE, by=OTHER))) == ["bad_hello"]
        assert codes(await say(party, party.hello(stream, other))) == ["bad_hello"]
        assert codes(await say(party, Ask(stream))) == ["hello_missing"]
        told = await say(party, party.hello(stream, NONCE), Ask(stream))
        assert [type(message) for message in told] == [Standing, Standing]


async def test_a_nonce_of_a_request_serves_once(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        nonce, _ = party.desk.challenges.give()
        hello = party.hello(stream, nonce)
        assert codes(await say(party, hello, nonce=None)) == []
        assert codes(await say(party, hello, hello, nonce=None)) == ["bad_challenge"] * 2


# -- over real sockets -----------------------------------------------------------------------------------


async def test_frames_over_a_websocket(tmp_path: Path) -> None:
    async with open_party(tmp_path) as party:
        stream = await party.open()
        with trio.fail_after(10):
            async with open_frames(party.url) as link:
                (challenge,) = await link.receive()
                assert isinstance(challenge, Challenge)
                await link.send([party.hello(stream, challenge.nonce)])
                heard: list[Told] = []
                while not any(getattr(message, "units", 0) == 2 for message in heard):
                    heard += await link.receive()
                await link.send([party.iterate(stream, 10)])
                while Stored(stream, 10) not in heard:
                    heard += await link.receive()


async def test_requests_one_by_one(tmp_path: Path) -> None:
    async with open_party(tmp_path) as party:
        stream = await party.open()
        async with httpx.AsyncClient(base_url=party.url) as client:
            nonce = bytes.fromhex((await client.post("/challenges")).json()["nonce"][2:])
            frame = said_codec.encode(SaidFrame([party.hello(stream, nonce)]))
            answer = await client.post("/frames", content=frame, headers={"content-type": FRAME_MEDIA_TYPE})
            assert isinstance(told_codec.decode_untrusted(answer.content).messages[0], Standing)
            await until(supplied(party, stream, 2))
            headers = {"content-type": ITERATION_MEDIA_TYPE}
            raw = party.iterate(stream, 5).raw
            stored = await client.post("/iterations", content=raw, headers=headers)
            assert stored.json() == {"stream": f"0x{stream.hex()}", "due": 5}
            forged = party.iterate(stream, 10, key=PrivateKey.from_secret(5)).raw
            refused = await client.post("/iterations", content=forged, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_signature")
            for body, code in ((b"x" * 1_025, 413), (b"", 400), (b"\xc1", 400)):
                assert (await client.post("/iterations", content=body, headers=headers)).status_code == code
            assert (await client.post("/iterations", content=raw)).status_code == 415
            shown = (await client.get(f"/streams/0x{stream.hex()}")).json()
            assert (shown["due"], shown["status"]) == (5, "STREAMING")
            assert (await client.get("/streams/0x00")).status_code == 404
            assert b"hansa_stream_iterations_total 1" in (await client.get("/metrics")).content
            assert (await client.get("/openapi.json")).json()["paths"].keys() >= {"/offers", "/iterations"}


async def test_a_frame_is_answered_whole_once_its_last_word_is_durable(tmp_path: Path) -> None:
    async with open_party(tmp_path) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        forged = party.iterate(stream, 10, key=PrivateKey.from_secret(5))
        frame = said_codec.encode(SaidFrame([party.iterate(stream, 5), forged]))
        async with httpx.AsyncClient(base_url=party.url) as client:
            answer = await client.post("/frames", content=frame, headers={"content-type": FRAME_MEDIA_TYPE})
        told = told_codec.decode_untrusted(answer.content).messages
        assert (told[0], codes(told)) == (Stored(stream, 5), ["bad_signature"])
        assert party.pages.failure is None


async def test_a_request_that_there_is_nothing_to_say_to_is_answered_all_the_same(tmp_path: Path) -> None:
    async with open_party(tmp_path) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        party.chain.is_away = True
        await party.owner.end(StreamEnd(f"0x{stream.hex()}"))
        consent = party.streams.consent(stream, 10, by=PAYER)
        frame = said_codec.encode(SaidFrame([Close(stream, 10, consent["signature"])]))
        async with httpx.AsyncClient(base_url=party.url) as client:
            answer = await client.post("/frames", content=frame, headers={"content-type": FRAME_MEDIA_TYPE})
        assert (answer.status_code, answer.content) == (204, b"")
        assert party.pages.failure is None


async def test_a_strangers_page_gets_no_websocket(tmp_path: Path) -> None:
    async with open_party(tmp_path) as party:
        with trio.fail_after(5):
            stream = await trio.open_tcp_stream("127.0.0.1", party.port)
            head = "GET /frames HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://elsewhere.example\r\n"
            head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            await stream.send_all(f"{head}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
            assert b" 403 " in (await stream.receive_some(4_096)).split(b"\r\n")[0]
            await stream.aclose()


async def test_what_is_no_frame_ends_the_connection_alone(tmp_path: Path) -> None:
    async with open_party(tmp_path) as party:
        stream = await party.open()
        with trio.fail_after(10):
            async with open_frames(party.url) as link:
                await link.receive()
                await link._stream.send_all(b"\x82\x81\0\0\0\0\xc1")  # type: ignore[attr-defined]
                with pytest.raises((Unreachable, PeerError)):
                    await link.receive()
        assert codes(await say(party, party.hello(stream, NONCE))) == []


# -- owner -----------------------------------------------------------------------------------------------


async def test_an_offer_is_kept_signed_and_within_the_tariff(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False, fine_min=10, deposit_max=2_000) as party:
        payer = f"0x{party.streams.chain.address(PAYER).hex()}"
        wanted = OfferWanted(payer=payer, number=4, deposit=1_000, fine=100)
        offer = await party.owner.offer(wanted)
        again = msgspec.json.decode(msgspec.json.encode(offer), type=Offer)
        terms, signature = again.check_untrusted(party.chain.chain_id)
        assert await party.store.offered(bytes.fromhex(offer.stream[2:])) == terms
        stream = party.streams.call(PAYER, "open", **msgspec.structs.asdict(terms), signature=signature)
        assert codes(await say(party, party.hello(stream, NONCE))) == []
        for change in (
            {"deposit": 2_001},
            {"fine": 9},
            {"fine": 996},
            {"credit": 1},
            {"amount_max": 4},
            {"payer": f"0x{party.chain.address.hex()}"},
        ):
            with pytest.raises(RefusedError, match=r".") as refused:
                await party.owner.offer(msgspec.structs.replace(wanted, number=5, **change))
            assert refused.value.code == "bad_offer"
        with pytest.raises(RefusedError) as used:
            await party.owner.offer(wanted)
        assert used.value.code == "stream_exists"


async def test_the_owner_lists_and_exports(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        streams = sorted([await party.open(number) for number in range(3)])
        await say(party, *(party.hello(stream, NONCE) for stream in streams))
        first = await party.owner.streams(StreamsQuery(limit=2))
        rest = await party.owner.streams(StreamsQuery(after=first.next, limit=2))
        assert [item.stream for item in first.items + rest.items] == [f"0x{stream.hex()}" for stream in streams]
        assert rest.next == ""
        with pytest.raises(RefusedError) as early:
            await party.owner.export(Export(first.items[0].stream))
        assert early.value.code == "nothing_due"
        await until(supplied(party, streams[0], 2))
        await say(party, party.iterate(streams[0], 5))
        exported = await party.owner.export(Export(first.items[0].stream))
        assert exported.due == 5
        assert '"raw"' in exported.content


async def test_a_meter_that_lies_ends_the_stream(tmp_path: Path) -> None:
    class Liar(HandMeter):
        async def read(self, stream: bytes, allowed_units: int) -> Reading:
            await super().read(stream, allowed_units)
            return Reading(allowed_units + 1, False)

    async with open_party(tmp_path, meter=Liar(), is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until_status(party, stream, "ENDING", "SETTLED")
        assert (await party.owner.stream(StreamQuery(f"0x{stream.hex()}"))).units == 0


async def test_an_outlet_leaves_out_what_is_said_anew_and_gives_up_who_does_not_read(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        outlet = Outlet(party.store)
        for due in range(10_000):
            outlet.put(0, Stored(bytes(32), due))
        assert not outlet.is_lost
        assert await outlet.take() == [Stored(bytes(32), 9_999)]
        for number in range(5_000):
            outlet.put(0, Refused(bytes(32), "busy", str(number)))
        assert outlet.is_lost


# -- watcher ---------------------------------------------------------------------------------------------


class Shelf:
    """A watcher that notes what it was brought; ``error`` is what it answers instead."""

    def __init__(self) -> None:
        self.brought: list[str] = []
        self.error: Unreachable | RefusedError | None = None

    async def post(self, path: str, content: object, kind: type[object]) -> object:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        assert isinstance(content, Watch)
        self.brought.append(content.iteration)
        return None


async def test_a_watcher_gets_the_newest_iteration_once_and_again_when_it_was_away(tmp_path: Path) -> None:
    async with open_party(tmp_path, is_served=False) as party:
        stream = await party.open()
        await say(party, party.hello(stream, NONCE))
        await until(supplied(party, stream, 2))
        shelf = Shelf()
        handover = HandOver(party.desk, party.chain.chain_id, cast(Poster, shelf), 1)
        await handover.round()
        assert shelf.brought == []
        await say(party, party.iterate(stream, 5))
        shelf.error = Unreachable("away", "watcher_unreachable")
        await handover.round()
        assert handover.trouble == "watcher_unreachable"
        shelf.error = None
        for _ in range(2):
            await handover.round()
        (text,) = shelf.brought
        assert f"0x{party.desk._lives[stream].kept.raw.hex()}" in text
        await party.owner.end(StreamEnd(f"0x{stream.hex()}"))
        await until_status(party, stream, "SETTLED")
        await handover.round()
        assert len(shelf.brought) == 1
        assert party.desk.uncollected() == []
