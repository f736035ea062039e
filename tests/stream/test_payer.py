"""The payer against a real service party and a real chain: opening, paying, restarts, ends, the deposit's way back."""

import sqlite3
from collections.abc import Awaitable
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from consensus.ledger.errors import HansaError, InvariantError, LocalError, PeerError, StorageError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.streams import Terms, close_hash, read_iteration_untrusted, terms_hash
from services.client.keystore import Signer
from services.stream.interfaces import Reading
from services.stream.link import open_frames, open_requests
from services.stream.opening import Accepted, ask_offer, check_offer, check_terms
from services.stream.payer import Figures, Payer
from services.stream.payer_store import STORE_FILE, KeptStream, open_payer_store
from services.stream.payermachine import Owed
from services.stream.wire import Close, Closed, Iterate, Said, Standing, Told
from tests.client.support import address, signer
from tests.stream.payer_world import (
    DEPOSIT,
    FINE,
    FUNDS,
    PAYER,
    PRICE,
    SERVICE,
    STEP_MAX,
    UNIT,
    VALIDITY_MS,
    WATCHER,
    WINDOW_MS,
    World,
    in_world,
)


async def code_of(call: Awaitable[object]) -> str:
    """Return the code with which something is refused."""
    try:
        await call
    except HansaError as error:
        return error.code
    return ""


def at_most_a_step(figures: Figures, paid: int) -> bool:
    """Say whether neither side has lost more than one step, and something was paid."""
    return paid > 0 and abs(paid - PRICE * figures.units) <= STEP_MAX


# -- paying ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["service-first", "payment-first"])
@pytest.mark.parametrize("is_http", [False, True])
def test_a_stream_is_paid_and_its_rest_comes_back(tmp_path: Path, mode: str, *, is_http: bool) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer, seen = world.payer(world.store()), list[Figures]()
        stream = await world.opened(payer, count_max=6, mode=mode)
        figures = await payer.pay(stream, world.way(is_http=is_http), on_figures=seen.append)
        record = await world.record(stream)
        assert (figures.status, record.status) == ("CLOSED", "CLOSED")
        assert figures.reason in ("count", "settled")  # by the service party's word or the chain's, which is first
        assert figures.count >= 6
        assert at_most_a_step(figures, record.paid)
        assert await world.available(PAYER) == FUNDS - record.paid
        assert await world.available(SERVICE) == record.paid
        assert [each.signed_due for each in seen] == sorted(each.signed_due for each in seen)
        assert all(each.signed_due - PRICE * each.units <= STEP_MAX for each in seen)
        assert seen[-1] == figures
        # What is over stays over.
        assert (await payer.pay(stream, world.way(is_http=is_http))).status == "CLOSED"

    in_world(tmp_path, test)


def test_a_payer_that_is_killed_again_and_again_signs_no_total_twice_and_loses_nothing(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer, signed = world.payer(store), list[int]()
        stream = await world.opened(payer, count_max=40)
        for round_number in range(1, 5):
            scope = trio.CancelScope()

            def kill(figures: Figures, least: int = round_number * 5, scope: trio.CancelScope = scope) -> None:
                signed.append(store.stream(stream).owed.signed_due)
                if figures.count >= least:
                    scope.cancel()

            with scope:
                await payer.pay(stream, world.way(), on_figures=kill)
            assert scope.cancelled_caught
        figures = await payer.pay(stream, world.way())
        record = await world.record(stream)
        assert signed == sorted(signed)
        assert figures.status == "CLOSED"
        assert at_most_a_step(figures, record.paid)
        assert await world.available(PAYER) == FUNDS - record.paid

    in_world(tmp_path, test)


def test_a_service_party_that_restarts_goes_on_where_it_was(tmp_path: Path) -> None:
    async def test(world: World, nursery: trio.Nursery) -> None:
        payer, reached = world.payer(world.store()), trio.Event()
        stream = await world.opened(payer, count_max=30)
        result: list[Figures] = []

        async def pay() -> None:
            result.append(
                await payer.pay(stream, world.way(), on_figures=lambda each: each.count >= 5 and reached.set())
            )
            paid.set()

        paid = trio.Event()
        nursery.start_soon(pay)
        await reached.wait()
        await world.start_service(nursery, port=await world.stop_service())
        await paid.wait()
        record = await world.record(stream)
        assert (result[0].status, result[0].reason) == ("CLOSED", "count")
        assert at_most_a_step(result[0], record.paid)
        assert result[0].count >= 30

    in_world(tmp_path, test, step_ms=10_000)


def test_who_stops_signs_a_close_and_has_the_rest_at_once(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer, stopping = world.payer(world.store()), trio.Event()
        stream = await world.opened(payer, count_max=0)
        figures = await payer.pay(
            stream, world.way(), on_figures=lambda each: each.count >= 3 and stopping.set(), stopping=stopping
        )
        record = await world.record(stream)
        assert (figures.status, figures.reason, record.status) == ("CLOSED", "payer", "CLOSED")
        assert at_most_a_step(figures, record.paid)
        assert record.settled_by == b""

    in_world(tmp_path, test)


def test_a_stream_that_nothing_was_paid_in_closes_for_nothing(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        stream = await world.opened(payer)
        figures = await payer.close(stream, world.way())
        record = await world.record(stream)
        assert (figures.status, record.status) == ("CLOSED", "CLOSED")
        assert record.paid <= STEP_MAX
        assert await world.available(PAYER) == FUNDS - record.paid

    in_world(tmp_path, test)


class DenyingMeter:
    """The payer's own meter, which counts no more than so many units."""

    def __init__(self, units: int) -> None:
        self._units = units

    async def read(self, stream: bytes, allowed_units: int) -> Reading:
        return Reading(min(self._units, allowed_units), False)


def test_nothing_is_signed_for_units_that_the_payers_own_meter_denies(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        stream = await world.opened(payer, count_max=0)
        figures = await payer.pay(stream, world.way(), meter=DenyingMeter(7), closing_ms=300)
        assert figures.reason in ("meter", "timeout")
        assert figures.signed_due == 7 * PRICE < figures.units * PRICE

    in_world(tmp_path, test, step_ms=400)


def test_what_comes_often_keeps_no_payer_from_its_clock(tmp_path: Path) -> None:
    """Its own meter is read more often than it looks at the clock."""

    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        stream = await world.opened(payer)
        await world.stop_service()
        with trio.fail_after(10):
            code = await code_of(payer.pay(stream, world.way(), meter=DenyingMeter(1), closing_ms=50))
        assert code == "service_unreachable"

    in_world(tmp_path, test, step_ms=2_000)


def test_a_service_party_that_is_not_there_ends_nothing_and_the_deposit_comes_back_by_the_window(
    tmp_path: Path,
) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        stream = await world.opened(payer)
        await world.stop_service()
        for _ in range(2):
            assert await code_of(payer.pay(stream, world.way(), closing_ms=50)) == "service_unreachable"
        assert (await payer.find(stream)).kept.owed.status == "PAYING"
        asked = await payer.withdraw(stream)
        assert 0 < WINDOW_MS - asked.left_ms < 5_000
        again = await payer.withdraw(stream)
        assert again.record.withdraw_at_uptime_ms == asked.record.withdraw_at_uptime_ms
        assert (await payer.withdraw(stream)).record.status == "OPEN"
        world.pass_ms(WINDOW_MS)
        back = await payer.withdraw(stream)
        assert (back.left_ms, back.record.status) == (0, "CLOSED")
        assert (await payer.withdraw(stream)).left_ms == 0
        assert await world.available(PAYER) == FUNDS

    in_world(tmp_path, test, step_ms=200)


def test_a_deposit_is_topped_up_to_a_total_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        stream = await world.opened(payer)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: payer.top_up(stream, to=DEPOSIT + 500))
        assert (await payer.top_up(stream, to=DEPOSIT)).deposit == DEPOSIT + 500
        assert await code_of(payer.top_up(stream, to=FUNDS + 1)) == "insufficient_funds"
        assert await code_of(payer.top_up(stream, to=FUNDS + 1)) == "insufficient_funds"
        assert (await payer.top_up(stream, to=FUNDS)).deposit == FUNDS
        assert await world.available(PAYER) == 0

    in_world(tmp_path, test)


# -- a service party that lies -----------------------------------------------------------------------------


class ScriptedLink:
    """A service party that says what a test wants it to say, and remembers what it heard."""

    def __init__(self, *told: Told) -> None:
        self.heard: list[Said] = []
        self._told = list(told)

    async def __aenter__(self) -> "ScriptedLink":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def send(self, messages: list[Said]) -> None:
        self.heard += messages

    async def receive(self) -> list[Told]:
        if not self._told:
            await trio.sleep_forever()
        told, self._told = self._told, []
        return told


def test_a_consent_to_close_that_is_not_the_service_partys_closes_nothing(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        payer = world.payer(world.store())
        stream = await world.opened(payer)
        signature = signer(WATCHER).key.sign(Purpose.STREAM_CLOSE, world.client.chain_id, close_hash(stream, 0))
        link = ScriptedLink(Standing(stream, 0, 0, 0, "STREAMING", ""), Closed(stream, 0, signature))
        sent = len(world.node.submitted)
        figures = await payer.pay(stream, lambda: link, closing_ms=100)
        assert len(world.node.submitted) == sent
        assert (figures.status, figures.trouble) == ("STOPPED", "bad_signature")
        assert (await world.record(stream)).status == "OPEN"

    in_world(tmp_path, test)


def test_a_service_party_that_asks_for_more_than_a_step_gets_a_close_with_what_was_due(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer = world.payer(store)
        stream = await world.opened(payer)
        link = ScriptedLink(Standing(stream, 0, 0, 5, "STREAMING", ""), Standing(stream, 0, 0, 11, "STREAMING", ""))
        figures = await payer.pay(stream, lambda: link, closing_ms=50)
        assert (figures.status, figures.reason, figures.signed_due) == ("STOPPED", "wrong_amount", STEP_MAX)
        iterations = [said.raw for said in link.heard if isinstance(said, Iterate)]
        terms, key = store.stream(stream).owed.terms, signer(PAYER).key.public
        chain_id = world.client.chain_id
        read = [
            read_iteration_untrusted(raw, chain_id=chain_id, payer=terms.payer, stream=stream, key=key)
            for raw in iterations
        ]
        assert {each.due for each in read} == {STEP_MAX}
        assert all(each.valid_until_ms <= world.wall.wall_ms() + VALIDITY_MS for each in read)
        closes = [said for said in link.heard if isinstance(said, Close)]
        assert closes[0].due == STEP_MAX
        assert key.verifies(closes[0].signature, Purpose.STREAM_CLOSE, chain_id, close_hash(stream, STEP_MAX))
        assert store.stream(stream).owed.raw in iterations

    in_world(tmp_path, test)


@pytest.mark.parametrize("is_http", [False, True])
def test_a_service_party_with_a_token_is_reached_by_who_has_it(tmp_path: Path, *, is_http: bool) -> None:
    async def test(world: World, nursery: trio.Nursery) -> None:
        await world.stop_service()
        await world.start_service(nursery, token="secret")
        payer = world.payer(world.store())
        assert await code_of(payer.agree(world.url, world.wanted())) == "bad_token"
        agreed = await payer.agree(world.url, world.wanted(count_max=3), token="secret")
        stream = bytes((await payer.open(agreed)).stream)
        opened = open_requests if is_http else open_frames
        figures = await payer.pay(stream, lambda: opened(world.url, token="secret"))
        assert (figures.status, figures.trouble) == ("CLOSED", "")

    in_world(tmp_path, test)


def test_what_is_sent_is_durable_before(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer = world.payer(store)
        stream = await world.opened(payer)
        kept: list[bool] = []

        class Looking(ScriptedLink):
            async def send(self, messages: list[Said]) -> None:
                for said in messages:
                    if isinstance(said, Iterate):
                        with open_payer_store(tmp_path / "payer") as other:
                            kept.append(other.stream(stream).owed.raw == said.raw)

        link = Looking(*(Standing(stream, 0, 0, units, "STREAMING", "") for units in range(1, 6)))
        await payer.pay(stream, lambda: link, closing_ms=50)
        assert kept
        assert all(kept)

    in_world(tmp_path, test, step_ms=200)


# -- opening -----------------------------------------------------------------------------------------------


def test_opening_again_is_harmless_and_a_number_serves_once(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer, agreed = world.payer(store), world.agreed()
        first = await payer.open(agreed)
        again = await payer.open(agreed)
        assert (first.outcome is not None, again.outcome) == (True, None)
        assert again.record == first.record
        assert await world.available(PAYER) == FUNDS - DEPOSIT
        assert store.stream(first.stream).owed.opened_ms == first.record.opened_at_ms > 0
        other = world.agreed(number=agreed.terms.number, price=PRICE + 1)
        assert await code_of(world.payer(world.store("other")).open(other)) == "number_used"
        assert payer.next_number() > agreed.terms.number

    in_world(tmp_path, test, is_served=False)


def test_what_is_refused_later_does_not_forget_a_stream_that_is_open(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer, agreed = world.payer(store), world.agreed()
        stream = (await payer.open(agreed)).stream
        other = world.agreed(number=agreed.terms.number, price=PRICE + 1)
        assert await code_of(payer.open(other)) == "number_used"
        foreign = Payer(world.client, signer(WATCHER), store, now_ms=world.wall.wall_ms)
        assert await code_of(foreign.open(agreed)) == "wrong_payer"
        (kept,) = store.streams()
        assert (kept.owed.stream, kept.owed.terms, kept.account) == (stream, agreed.terms, PAYER)

    in_world(tmp_path, test, is_served=False)


def test_a_number_of_an_interrupted_opening_is_not_opened_with_other_terms(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer, agreed = world.payer(store), world.agreed()
        with trio.CancelScope() as scope:
            scope.cancel()
            await payer.open(agreed)
        assert store.stream(bytes(agreed.stream)).is_opening
        other = world.agreed(number=agreed.terms.number, price=PRICE + 1)
        assert await code_of(payer.open(other)) == "number_used"
        await payer.open_interrupted(bytes(agreed.stream))
        kept = store.stream(bytes(agreed.stream))
        assert (kept.owed.terms, kept.is_opening) == (agreed.terms, False)

    in_world(tmp_path, test, is_served=False)


def test_r88_a_stream_without_funds_is_refused_and_forgotten(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer, agreed = world.payer(store), world.agreed(deposit=FUNDS + 1)
        assert await code_of(payer.open(agreed)) == "insufficient_funds"
        assert store.streams() == []
        late = world.agreed(offer_until_ms=1)
        assert await code_of(payer.open(late)) == "offer_expired"
        foreign = world.agreed(payer=bytes(address(WATCHER)))
        assert await code_of(payer.open(foreign)) == "wrong_payer"
        assert await code_of(payer.pay(bytes(agreed.stream), world.way())) == "unknown_stream"

    in_world(tmp_path, test, is_served=False)


def test_two_payments_of_one_stream_at_once_and_payments_with_another_key_are_refused(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        store = world.store()
        payer, agreed = world.payer(store), world.agreed()
        stream = bytes((await payer.open(agreed)).stream)
        with store.held(stream):
            assert await code_of(payer.pay(stream, world.way())) == "stream_held"
        stranger = Signer(PAYER, signer(PAYER).address, PrivateKey.from_secret(99))
        other = Payer(world.client, stranger, store, now_ms=world.wall.wall_ms)
        assert await code_of(other.pay(stream, world.way())) == "wrong_key"

    in_world(tmp_path, test, is_served=False)


def test_an_offer_counts_when_it_is_the_service_partys_and_says_what_was_wished(tmp_path: Path) -> None:
    async def test(world: World, _: trio.Nursery) -> None:
        wanted, now_ms = world.wanted(), world.wall.wall_ms()
        offer = await ask_offer(world.url, wanted)
        agreed = await check_offer(world.client, offer, wanted, now_ms=now_ms)
        assert bytes(agreed.terms.payer) == bytes(address(PAYER))
        key = signer(WATCHER).key
        signature = key.sign(Purpose.STREAM_TERMS, world.client.chain_id, terms_hash(agreed.terms))
        forged = replace(offer, service_key=f"0x{key.public.compressed.hex()}", signature=f"0x{signature.hex()}")
        assert await code_of(check_offer(world.client, forged, wanted, now_ms=now_ms)) == "bad_signature"
        foreign = replace(offer, chain_id=f"0x{'00' * 32}")
        assert await code_of(check_offer(world.client, foreign, wanted, now_ms=now_ms)) == "wrong_chain"
        changed = replace(offer, terms={**offer.terms, "price": PRICE + 1})
        assert await code_of(check_offer(world.client, changed, wanted, now_ms=now_ms)) == "bad_signature"
        assert await code_of(ask_offer(world.url, world.wanted(fine=DEPOSIT))) == "bad_offer"
        assert await code_of(ask_offer("http://127.0.0.1:1", wanted)) == "service_unreachable"

        terms = agreed.terms
        for accepted, name in (
            (Accepted(unit="OTHER"), "unit"),
            (Accepted(price_max=PRICE - 1), "price"),
            (Accepted(step_max=STEP_MAX - 1), "stepMax"),
            (Accepted(window_ms_max=WINDOW_MS - 1), "windowMs"),
        ):
            with pytest.raises(PeerError, match=name):
                check_terms(terms, wanted, accepted, now_ms=now_ms)
        exact = Accepted(UNIT, PRICE, STEP_MAX, WINDOW_MS)
        check_terms(terms, wanted, exact, now_ms=terms.offer_until_ms - 1)
        with pytest.raises(PeerError, match="time has passed"):
            check_terms(terms, wanted, exact, now_ms=terms.offer_until_ms)
        for name in ("number", "deposit", "fine", "credit", "count_max", "amount_max", "duration_ms_max"):
            other = replace(terms, **{name: getattr(terms, name) + 1})
            with pytest.raises(PeerError, match="differs"):
                check_terms(other, wanted, exact, now_ms=now_ms)
        for changes in ({"mode": 1}, {"payer": bytes(20)}, {"step_max": PRICE - 1}, {"window_ms": VALIDITY_MS}):
            with pytest.raises(PeerError, match="differs"):
                check_terms(replace(terms, **changes), wanted, exact, now_ms=now_ms)

    in_world(tmp_path, test)


# -- the store ---------------------------------------------------------------------------------------------


TERMS = Terms(
    bytes(20),
    b"s" * 20,
    7,
    "0.1 kWh",
    UNIT,
    DEPOSIT,
    FINE,
    PRICE,
    STEP_MAX,
    0,
    0,
    0,
    0,
    0,
    WINDOW_MS,
    60_000,
    10_000,
    2_000,
    0,
)


def kept(world_terms: Terms, stream: bytes = bytes(32), **changes: object) -> KeptStream:
    """Return a stream as it is kept."""
    return KeptStream(replace(Owed(stream, world_terms), **changes), bytes(64), PAYER, "http://x", 1)


def test_the_store_never_knows_less_than_was_signed(tmp_path: Path) -> None:
    terms = TERMS
    with open_payer_store(tmp_path) as store:
        store.add(kept(terms))
        owed = Owed(bytes(32), terms, signed_due=80, raw=b"80")
        store.keep(owed)
        store.keep(replace(owed, status="STOPPED"))
        with pytest.raises(InvariantError):
            store.keep(replace(owed, signed_due=79))
        with pytest.raises(InvariantError):
            store.keep(replace(owed, stream=b"x" * 32))
        store.add(replace(kept(terms), url="http://y"))
        store.remove(bytes(32))
    with open_payer_store(tmp_path) as store, open_payer_store(tmp_path) as reader:
        found = reader.stream(bytes(32))
        assert (found.owed, found.url) == (replace(owed, status="STOPPED"), "http://y")
        store.add(kept(terms, b"\xab" * 32))
        assert [bytes(each.owed.stream) for each in reader.find("0xABab")] == [b"\xab" * 32]
        assert reader.find("zz") == reader.find("%") == []
        assert len(reader.streams()) == 2
        store.remove(b"\xab" * 32)
        with pytest.raises(LocalError, match="holds no stream"):
            reader.stream(b"\xab" * 32)
        assert store.newest_number() == terms.number


def test_a_file_of_another_format_is_left_alone(tmp_path: Path) -> None:
    with open_payer_store(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / STORE_FILE)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StorageError, match="format 9"), open_payer_store(tmp_path):
        pass
