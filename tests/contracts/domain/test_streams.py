"""Payment streams on chain: every rule of opening, settling, claiming, topping up, withdrawing and closing."""

from typing import Any

import msgspec
import pytest

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ZERO_HASH
from consensus.ledger.keys import Purpose
from consensus.ledger.receipt import FAILED
from consensus.ledger.streams import (
    AMOUNT_MAX,
    CONTRACT,
    OUTAGE_MS,
    StreamRecord,
    Terms,
    stream_id,
    stream_lane,
    terms_fault,
    terms_hash,
)
from consensus.ledger.transaction import EACH, make_call
from tests.contracts.domain.streams import FUNDS, OTHER, PAYER, SERVICE, UNIT, Streams, id_of
from tests.contracts.support import START_MS

RELAY = """
from consensus.ledger.codec import Value
from contracts.runtime.contract import Context, Contract, method


class Relay(Contract):
    name = "relay"
    version = 1

    @method
    def pass_on(self, context: Context, contract: str, method: str, arguments: dict[str, Value]) -> None:
        context.call(contract, method, **arguments)
"""
"""A contract that calls others in its caller's name."""


@pytest.fixture
def streams() -> Streams:
    return Streams()


def changed(streams: Streams, stream: bytes, call: Any) -> dict[str, tuple[Any, Any]]:
    """Do something and return which fields of the stream's record it changed, each with before and after."""
    before = msgspec.structs.asdict(streams.record(stream))
    call()
    after = msgspec.structs.asdict(streams.record(stream))
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}


def claim_fails(streams: Streams, code: str, stream: bytes, raw: bytes) -> None:
    """See a claim refused with a code and nothing moved."""
    before = streams.held(), streams.balance(SERVICE), streams.escrow(stream)
    streams.fails(code, OTHER, "claim", stream=stream, raw=raw)
    assert (streams.held(), streams.balance(SERVICE), streams.escrow(stream)) == before


# -- open --------------------------------------------------------------------------------------------------


def test_an_opened_stream_holds_its_deposit_and_names_its_terms(streams: Streams) -> None:
    terms = streams.terms(7, credit=30)
    stream = streams.open(terms)
    assert stream == id_of(terms) == stream_id(terms.payer, terms.service, 7)
    payer, service = bytes(streams.chain.address(PAYER)), bytes(streams.chain.address(SERVICE))
    assert streams.record(stream) == StreamRecord(
        payer=payer,
        service=service,
        payer_key=streams.key(PAYER).public.compressed,
        unit=UNIT,
        deposit=1_000,
        taken=0,
        paid=0,
        fine=100,
        is_fined=False,
        settled_by=b"",
        terms_hash=terms_hash(terms),
        credit=30,
        window_ms=150_000,
        withdraw_at_uptime_ms=0,
        opened_at_ms=streams.chain.time_ms,
        status="OPEN",
    )
    assert streams.record(stream).limit == 930
    assert (streams.balance(PAYER), streams.escrow(stream), streams.held()) == (FUNDS - 1_000, 1_000, 5 * FUNDS)
    assert streams.events()[-1] == (
        "opened",
        {
            "stream": stream,
            "payer": payer,
            "service": service,
            "unit": UNIT,
            "deposit": 1_000,
            "terms": bytes(terms_hash(terms)),
        },
    )
    assert streams.query("stream", stream=stream)["deposit"] == 1_000
    other = streams.open(streams.terms(8))
    pages = [streams.query("streams", limit=1), streams.query("streams", start=max(stream, other).hex())]
    assert [page[0]["stream"] for page in pages] == [min(stream, other), max(stream, other)]


TERMS_CHANGED: dict[str, Value] = {
    "payer": b"\1" * 20,
    "service": b"\1" * 20,
    "number": 1,
    "what": "1 kWh",
    "unit": "SEN",
    "deposit": 999,
    "fine": 99,
    "price": 4,
    "step_max": 11,
    "credit": 1,
    "mode": 1,
    "count_max": 1,
    "amount_max": 1,
    "duration_ms_max": 1,
    "window_ms": 150_001,
    "validity_ms": 59_999,
    "margin_ms": 9_999,
    "step_ms": 5_001,
    "offer_until_ms": START_MS + 3_600_001,
}


@pytest.mark.parametrize("name", Terms.__struct_fields__)
def test_no_term_is_another_than_the_service_party_signed(streams: Streams, name: str) -> None:
    offer = streams.offer(streams.terms())
    code = {"payer": "not_allowed", "service": "unknown_account"}.get(name, "bad_signature")
    streams.fails(code, PAYER, "open", **{**offer, name: TERMS_CHANGED[name]})
    assert streams.balance(PAYER) == FUNDS


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fine": 1_000}, "bad_terms"),
        ({"fine": 1_001}, "bad_terms"),
        ({"fine": 999}, ""),
        ({"fine": 0}, ""),
        ({"margin_ms": 60_000, "window_ms": 200_000}, "bad_terms"),
        ({"margin_ms": 59_999, "window_ms": 200_000}, ""),
        ({"window_ms": 70_000 + OUTAGE_MS - 1}, "bad_terms"),
        ({"window_ms": 70_000 + OUTAGE_MS}, ""),
    ],
)
def test_terms_that_nobody_should_agree_on_are_refused_and_said_to_be_so(
    streams: Streams, changes: dict[str, Any], code: str
) -> None:
    terms = streams.terms(**changes)
    assert bool(terms_fault(terms)) == bool(code)
    if code:
        streams.fails(code, PAYER, "open", **streams.offer(terms))
    else:
        streams.open(terms)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deposit", 0),
        ("price", 0),
        ("step_max", 0),
        ("mode", 2),
        ("window_ms", 30 * 24 * 3_600_000 + 1),
        ("step_ms", 99),
        ("validity_ms", 3_600_001),
        ("what", "two\nlines"),
        ("what", ""),
        ("unit", "FEN/ab"),
        ("credit", -1),
        ("deposit", AMOUNT_MAX + 1),
        ("number", 2**53 + 1),
    ],
)
def test_terms_out_of_their_range_are_no_arguments(streams: Streams, name: str, value: Value) -> None:
    offer = {**streams.offer(streams.terms()), name: value}
    streams.fails("bad_arguments", PAYER, "open", **offer)


def test_payer_and_service_party_are_two_accounts(streams: Streams) -> None:
    terms = streams.terms(service=PAYER)
    assert terms_fault(terms) != ""
    streams.fails("same_account", PAYER, "open", **streams.offer(terms, by=PAYER))


def test_only_the_payer_that_the_terms_name_opens(streams: Streams) -> None:
    streams.fails("not_allowed", OTHER, "open", **streams.offer(streams.terms()))
    streams.fails("not_allowed", SERVICE, "open", **streams.offer(streams.terms()))


@pytest.mark.parametrize("signer", [PAYER, OTHER, "shop-2"])
def test_an_offer_is_signed_by_the_service_party_for_this_purpose_and_chain(streams: Streams, signer: str) -> None:
    terms = streams.terms()
    streams.fails("bad_signature", PAYER, "open", **streams.offer(terms, by=signer))
    key, payload = streams.key(SERVICE), terms_hash(terms)
    for purpose, chain_id in ((Purpose.STREAM_CLOSE, streams.chain.chain_id), (Purpose.STREAM_TERMS, ZERO_HASH)):
        offer = {**streams.offer(terms), "signature": key.sign(purpose, chain_id, payload)}  # type: ignore[arg-type]
        streams.fails("bad_signature", PAYER, "open", **offer)


@pytest.mark.parametrize(("late_ms", "code"), [(-1, ""), (0, ""), (1, "offer_expired")])
def test_an_offer_stands_until_its_time(streams: Streams, late_ms: int, code: str) -> None:
    until = streams.chain.time_ms + 10_000
    terms = streams.terms(offer_until_ms=until)
    streams.chain.wait_until(until + late_ms)
    if code:
        streams.fails(code, PAYER, "open", **streams.offer(terms))
    else:
        streams.open(terms)


def test_a_service_party_whose_key_was_replaced_signs_with_the_new_one(streams: Streams) -> None:
    terms = streams.terms()
    old = streams.offer(terms)
    streams.rotate(SERVICE)
    streams.fails("bad_signature", PAYER, "open", **old)
    streams.open(terms)


def test_no_stream_opens_on_a_number_that_is_used(streams: Streams) -> None:
    terms = streams.terms()
    streams.burn(id_of(terms))
    streams.fails("lane_consumed", PAYER, "open", **streams.offer(terms))
    within = streams.terms(1)
    opening = make_call(CONTRACT, "open", streams.offer(within))
    assert streams.burn(id_of(within), opening).code == "lane_consumed"


# -- settle ------------------------------------------------------------------------------------------------


def test_a_settlement_pays_the_total_out_of_the_balance_and_leaves_the_deposit(streams: Streams) -> None:
    stream = streams.open()
    iteration = streams.iteration(stream, 40)
    changes = changed(streams, stream, lambda: streams.settle(iteration))
    assert changes == {"paid": (0, 40), "settled_by": (b"", iteration.id)}
    assert (streams.balance(PAYER), streams.balance(SERVICE)) == (FUNDS - 1_040, FUNDS + 40)
    assert streams.escrow(stream) == 1_000
    assert streams.events()[-1] == ("settled", {"stream": stream, "due": 40, "amount": 40, "fromDeposit": 0})
    lane = streams.lane(stream)
    assert lane is not None
    assert lane.last_id == streams.record(stream).settled_by


@pytest.mark.parametrize(
    ("available", "due", "from_balance", "from_deposit"),
    [(0, 900, 0, 900), (1, 900, 1, 899), (40, 41, 40, 1), (40, 40, 40, 0), (100, 1_000, 100, 900)],
)
def test_a_shortfall_comes_out_of_the_deposit_down_to_the_fine(
    streams: Streams, available: int, due: int, from_balance: int, from_deposit: int
) -> None:
    stream = streams.open(streams.terms(credit=500))
    streams.spend(PAYER, leave=available)
    streams.settle(streams.iteration(stream, due))
    record = streams.record(stream)
    assert (record.paid, record.taken) == (due, from_deposit)
    assert streams.balance(PAYER) == available - from_balance
    assert streams.balance(SERVICE) == FUNDS + due
    assert streams.escrow(stream) == 1_000 - from_deposit


@pytest.mark.parametrize(("available", "due"), [(0, 901), (99, 1_000), (0, AMOUNT_MAX)])
def test_what_neither_balance_nor_deposit_holds_fails_and_moves_nothing(
    streams: Streams, available: int, due: int
) -> None:
    stream = streams.open(streams.terms(credit=500))
    streams.spend(PAYER, leave=available)
    before = streams.records()
    receipt = streams.upload(streams.iteration(stream, due))
    assert (receipt.status, receipt.code) == (FAILED, "insufficient_funds")
    assert streams.records() == before
    assert (streams.balance(PAYER), streams.balance(SERVICE)) == (available, FUNDS)
    lane = streams.lane(stream)
    assert lane is not None
    assert lane.status == FAILED


def test_a_second_iteration_of_the_number_is_not_admitted(streams: Streams) -> None:
    """S4.6."""
    stream = streams.open()
    smaller, larger = streams.iteration(stream, 40), streams.iteration(stream, 50)
    streams.settle(smaller)
    for iteration in (smaller, larger):
        with pytest.raises(PeerError, match="one-shot") as refusal:
            streams.upload(iteration)
        assert refusal.value.code == "lane_consumed"
    assert streams.record(stream).paid == 40


def test_the_payers_other_transactions_go_on_beside_an_open_stream(streams: Streams) -> None:
    first, second = streams.open(), streams.open(streams.terms(1))
    streams.chain.ok(PAYER, "tokens", "transfer", **streams.transfer(OTHER, 1))
    streams.settle(streams.iteration(second, 20))
    streams.settle(streams.iteration(first, 10))
    assert (streams.record(first).paid, streams.record(second).paid) == (10, 20)


def settling(streams: Streams, stream: bytes, due: int = 40) -> dict[str, Value]:
    """Return the arguments of ``settle``."""
    del streams
    return {"stream": stream, "due": due}


def test_a_stream_settles_in_its_own_lane_alone(streams: Streams) -> None:
    first, second = streams.open(), streams.open(streams.terms(1))
    call = make_call(CONTRACT, "settle", settling(streams, first))
    streams.fails("wrong_lane", PAYER, "settle", **settling(streams, first))
    for lane in (b"lane", bytes(32), stream_lane(second)):
        assert streams.chain.submit(PAYER, call, lane=lane)[0].code == "wrong_lane"
    streams.settle(streams.iteration(first, 40))
    streams.fails("wrong_stream", OTHER, "claim", stream=second, raw=streams.iteration(first, 50).raw)
    assert streams.record(first).paid == 40


def test_no_contract_settles_for_the_payer() -> None:
    streams = Streams(RELAY)
    stream = streams.open()
    arguments = {"contract": CONTRACT, "method": "settle", "arguments": settling(streams, stream)}
    assert streams.burn(stream, make_call("relay", "pass_on", arguments)).code == "wrong_lane"  # type: ignore[arg-type]
    assert streams.record(stream).paid == 0


def test_only_the_payer_settles(streams: Streams) -> None:
    stream = streams.open()
    for name in (SERVICE, OTHER):
        call = make_call(CONTRACT, "settle", settling(streams, stream))
        transaction = streams.chain.transaction(name, call, lane=stream_lane(stream))
        assert streams.upload(transaction).code == "not_allowed"
    streams.settle(streams.iteration(stream, 40))


def test_one_transaction_settles_once(streams: Streams) -> None:
    stream = streams.open()
    calls = [make_call(CONTRACT, "settle", settling(streams, stream, due)) for due in (10, 20)]
    transaction = streams.chain.transaction(PAYER, *calls, lane=stream_lane(stream), mode=EACH)
    receipts = streams.chain.block([transaction]).receipts
    assert [receipt.code for receipt in receipts] == ["", "already_settled"]
    assert streams.record(stream).paid == 10
    # Its lane says "failed", but the stream settled by it: no reason for a fine.
    claimed = streams.call(OTHER, "claim", stream=stream, raw=streams.iteration(stream, 50).raw)
    assert claimed == {"amount": 40, "fine": 0}


@pytest.mark.parametrize("late_ms", [0, 1])
def test_an_iteration_settles_until_it_expires_and_expiry_uses_nothing_up(streams: Streams, late_ms: int) -> None:
    """S4.2: it is a transaction like any other."""
    stream = streams.open()
    iteration = streams.iteration(stream, 40)
    streams.chain.wait_until(iteration.body.valid_until_ms + late_ms)
    if late_ms == 0:
        streams.settle(iteration)
        return
    with pytest.raises(PeerError) as refusal:
        streams.upload(iteration)
    assert refusal.value.code == "expired"
    assert streams.lane(stream) is None
    streams.settle(streams.iteration(stream, 45))


def test_a_claim_that_came_first_makes_no_settlement_fail(streams: Streams) -> None:
    """Else a service party would claim an expired iteration, upload another, and take the fine for its failure."""
    stream = streams.open()
    late, early = streams.iteration(stream, 50, valid_ms=20_000), streams.iteration(stream, 40, valid_ms=60_000)
    streams.chain.wait(30_000)
    assert streams.call(SERVICE, "claim", stream=stream, raw=late.raw) == {"amount": 50, "fine": 0}
    changes = changed(streams, stream, lambda: streams.settle(early))
    assert changes == {"settled_by": (b"", early.id)}
    claim_fails(streams, "nothing_due", stream, late.raw)
    claim_fails(streams, "nothing_due", stream, early.raw)
    assert streams.balance(SERVICE) == FUNDS + 50


def test_a_settlement_after_a_claim_pays_the_difference(streams: Streams) -> None:
    stream = streams.open()
    late = streams.iteration(stream, 50, valid_ms=20_000)
    streams.chain.wait(30_000)
    streams.call(SERVICE, "claim", stream=stream, raw=late.raw)
    streams.settle(streams.iteration(stream, 70))
    record = streams.record(stream)
    assert (record.paid, record.taken) == (70, 50)
    assert streams.balance(SERVICE) == FUNDS + 70


def test_nobody_opens_settles_or_claims_what_is_not_there(streams: Streams) -> None:
    nothing = bytes(32)
    iteration = streams.iteration(nothing, 40)
    assert streams.upload(iteration).code == "unknown_stream"
    streams.fails("unknown_stream", SERVICE, "claim", stream=nothing, raw=iteration.raw)
    streams.fails("unknown_stream", PAYER, "top_up", stream=nothing, amount=1)
    streams.fails("unknown_stream", PAYER, "request_withdrawal", stream=nothing)
    streams.fails("unknown_stream", PAYER, "withdraw", stream=nothing)
    streams.fails("unknown_stream", PAYER, "close", **streams.consent(nothing, 0, by=SERVICE))
    streams.refuses("unknown_stream", "stream", stream=nothing)


def test_the_last_stream_of_many_costs_the_steps_of_the_first(streams: Streams) -> None:
    """Ten thousand are open when the last one opens; numbers of one size, since arguments are paid by their bytes."""
    base = 2**40
    first = streams.call(PAYER, "open", **streams.offer(streams.terms(base, deposit=2, fine=1)))
    assert streams.receipt is not None
    steps = [streams.receipt.steps]
    stored = streams.chain.state.get(f"streams/stream/{first.hex()}".encode())
    for number in range(1, 10_000):
        key = f"streams/stream/{stream_id(bytes(20), bytes(20), number).hex()}".encode()
        streams.chain.state.apply({key: stored})
    for number in range(10_000, 10_003):
        streams.call(PAYER, "open", **streams.offer(streams.terms(base + number, deposit=2, fine=1)))
        steps.append(streams.receipt.steps)
    assert len(set(steps)) == 1
