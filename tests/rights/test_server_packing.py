"""What the rights server computes without clock and network: shares, transactions, verdicts."""

from collections.abc import Sequence
from dataclasses import replace as replaced

import msgspec
import pytest

from consensus.ledger.codec import decode
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import EACH, TRANSACTION_BYTES_MAX, sign_transaction
from services.messages.port import Verdict
from services.messages.store import DETAIL_BYTES_MAX, State
from services.rights.events import AMOUNT_MAX, ITEMS_MAX, Event, Kind, SignedEvent, sign_events
from services.rights.packing import PACK_MAX, Presented, pack
from services.rights.shares import ShareRule, ShareTable
from services.rights.verdicts import detail_of, judge

KEY = PrivateKey.from_secret(7)
CHAIN = ChainId(bytes(32))
SERVER = bytes(range(20))


def event(
    reference: str, kind: Kind = Kind.CREATE, *, amount: int = 100, items: Sequence[tuple[str, int]] = ()
) -> Event:
    campaign = "summer" if kind is Kind.CREATE else ""
    return Event(kind, reference, "1", "u1", campaign, amount, list(items), 1_000)


def signed(*events: Event) -> list[SignedEvent]:
    return sign_events(KEY, CHAIN, SERVER, events)


def packed_methods(events: Sequence[SignedEvent], presented: Presented) -> tuple[list[str], list[tuple[int, ...]]]:
    packed = pack(events, [0] * len(events), presented)
    assert [packed.calls[place.call_index].method for place in packed.places] == ["apply"] * len(packed.places)
    return [call.method for call in packed.calls], [place.present_indexes for place in packed.places]


def test_each_root_is_presented_once_before_the_events_in_their_order() -> None:
    first, second = signed(event("a"), event("b")), signed(event("c"))
    order = [first[1], second[0], first[0]]
    packed = pack(order, [0, 7, 0], Presented())
    assert [call.method for call in packed.calls] == ["present", "present", "apply", "apply", "apply"]
    arguments = [decode(call.arguments) for call in packed.calls]
    assert [item["root"] for item in arguments[:2]] == [first[0].root, second[0].root]  # type: ignore[index, call-overload]
    assert [(item["reference"], item["share"]) for item in arguments[2:]] == [("b", 0), ("c", 7), ("a", 0)]  # type: ignore[index, call-overload]
    assert [place.call_index for place in packed.places] == [2, 3, 4]
    assert [place.present_indexes for place in packed.places] == [(0,), (1,), (0,)]


def test_what_is_known_to_be_presented_is_not_presented_again() -> None:
    batch, presented = signed(event("a"), event("b")), Presented()
    presented.add((SERVER, batch[0].root))
    assert packed_methods(batch, presented) == (["apply", "apply"], [(), ()])
    presented.forget((SERVER, batch[0].root))
    assert packed_methods(batch, presented) == (["present", "apply", "apply"], [(0,), (0,)])


def test_a_forged_signature_of_a_root_stands_in_nobodys_way() -> None:
    good = signed(event("a"), event("b"))
    forged = msgspec.structs.replace(good[0], signature=bytes(64))
    methods, presents = packed_methods([forged, good[1]], Presented())
    assert methods == ["present", "present", "apply", "apply"]
    assert presents == [(0, 1), (0, 1)]


def test_presented_roots_are_bounded_and_the_newest_stay() -> None:
    presented = Presented(roots_max=2)
    for name in (b"a", b"b", b"a", b"c"):
        presented.add((SERVER, name))
    assert len(presented) == 2
    assert [(SERVER, name) in presented for name in (b"a", b"b", b"c")] == [True, False, True]


def test_the_largest_events_fit_a_transaction() -> None:
    items = [(f"{number:02}" + "i" * 62, 1_000_000) for number in range(ITEMS_MAX)]
    largest = [
        replaced_event(event("r" * 60 + str(number), Kind.REDEEM, amount=AMOUNT_MAX, items=items))
        for number in range(256)
    ]
    batch = signed(*largest)
    packed = pack(batch, [AMOUNT_MAX] * len(batch), Presented())
    assert 50 < len(packed.places) < 256
    transaction = sign_transaction(KEY, CHAIN, list(packed.calls), sequence=0, valid_until_ms=1, lane=b"x", mode=EACH)
    assert TRANSACTION_BYTES_MAX - 16 * 1024 < len(transaction.raw) <= TRANSACTION_BYTES_MAX


def test_a_transaction_takes_no_more_calls_than_it_may_have() -> None:
    events = [item for number in range(PACK_MAX + 10) for item in signed(event(str(number)))]
    packed = pack(events, [0] * len(events), Presented())
    assert len(packed.places) <= PACK_MAX
    sign_transaction(KEY, CHAIN, list(packed.calls), sequence=0, valid_until_ms=1, mode=EACH)


def replaced_event(item: Event) -> Event:
    """Return the event with the longest texts that it may have."""
    return msgspec.structs.replace(item, user="u" * 64, number="n" * 64)


TABLE = ShareTable({"summer": ShareRule(basis_points=250, cap=40)}, {"coffee": 30, "tea": 20})


@pytest.mark.parametrize(("amount", "share"), [(1, 0), (39, 0), (40, 1), (1_599, 39), (1_600, 40), (10**15, 40)])
def test_a_share_is_the_rules_part_rounded_down_up_to_the_cap(amount: int, share: int) -> None:
    assert TABLE.share_of(event("o", amount=amount)) == share


def test_what_is_not_in_the_table_is_left_to_the_contract() -> None:
    elsewhere = msgspec.structs.replace(event("o"), campaign="winter")
    unpriced = event("r", Kind.REDEEM, items=[("cake", 1), ("coffee", 1)])
    others = [event("o", kind) for kind in Kind if kind is not Kind.CREATE]
    assert [TABLE.share_of(item) for item in (elsewhere, unpriced, *others)] == [0] * 7
    assert ShareTable().share_of(event("o")) == 0


def test_a_redemption_costs_the_sum_of_its_items() -> None:
    assert TABLE.share_of(event("r", Kind.REDEEM, amount=0, items=[("coffee", 2), ("tea", 3)])) == 120


def test_a_cost_that_no_amount_can_say_is_left_to_the_contract() -> None:
    table = ShareTable(prices={"car": AMOUNT_MAX // 10})
    assert table.share_of(event("r", Kind.REDEEM, items=[("car", 10)])) == AMOUNT_MAX
    assert table.share_of(event("r", Kind.REDEEM, items=[("car", 11)])) == 0


@pytest.mark.parametrize("rule", [ShareRule(0, 1), ShareRule(10_001, 1), ShareRule(1, 0), ShareRule(1, AMOUNT_MAX + 1)])
def test_rules_out_of_range_are_refused(rule: ShareRule) -> None:
    with pytest.raises(LocalError) as caught:
        ShareTable({"summer": rule})
    assert caught.value.code == "bad_shares"


@pytest.mark.parametrize("price", [0, AMOUNT_MAX + 1])
def test_prices_out_of_range_are_refused(price: int) -> None:
    with pytest.raises(LocalError) as caught:
        replaced(TABLE, prices={"coffee": price})
    assert caught.value.code == "bad_shares"


@pytest.mark.parametrize(
    ("code", "verdict", "exhausted"),
    [
        ("", Verdict.DONE, State.DEAD),
        ("unknown_order", Verdict.PARK, State.DEAD),
        ("unknown_redemption", Verdict.PARK, State.DEAD),
        ("insufficient_rights", Verdict.PARK, State.REFUSED),
        *((code, Verdict.DEAD, State.DEAD) for code in ("malformed", "bad_proof", "bad_signature", "unknown_root")),
        *((code, Verdict.DEAD, State.DEAD) for code in ("bad_event", "bad_arguments", "contract_error")),
        *((code, Verdict.DEAD, State.DEAD) for code in ("out_of_steps", "too_large", "output_too_large")),
        *((code, Verdict.RETRY, State.DEAD) for code in ("not_appointed", "account_suspended", "unknown_contract")),
        ("unknown_method", Verdict.RETRY, State.DEAD),
        *((code, Verdict.REFUSED, State.REFUSED) for code in ("quota_exceeded", "campaign_closed", "order_state")),
        *((code, Verdict.REFUSED, State.REFUSED) for code in ("unknown_campaign", "event_conflict", "of_tomorrow")),
    ],
)
def test_verdicts(code: str, verdict: Verdict, exhausted: State) -> None:
    assert judge(code) == (verdict, exhausted)


def test_details_say_where_on_the_chain_and_what_came_of_it() -> None:
    result = {"created": 19, "entry": 0, "note": "text"}
    assert detail_of("", 17, b"\xab\xcd", 4, result) == "17 0xabcd 4 created=19 entry=0"  # type: ignore[arg-type]
    assert detail_of("quota_exceeded", 17, b"\xab\xcd", 4) == "quota_exceeded 17 0xabcd 4"
    assert len(detail_of("", 1, b"", 0, {"x" * 2_000: 1}).encode()) <= DETAIL_BYTES_MAX
