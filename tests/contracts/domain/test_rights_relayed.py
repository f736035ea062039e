"""rights by relay: what a business server signed, brought by rights servers that it appointed; prices, closing."""

from typing import Any

import pytest
from msgspec.structs import replace

from consensus.ledger.codec import encode
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.merkle import ListProof
from consensus.ledger.transaction import EACH, make_call
from contracts.domain.rights import EVENTS_PER_RECORD_MAX
from contracts.runtime.accounts import SUSPENDED, account_key, load_account
from contracts.runtime.contract import AMOUNT_MAX
from services.rights.events import Event, SignedEvent, apply_arguments, present_arguments, sign_events
from services.rights.packing import APPLY_STEPS, PACK_MAX, PRESENT_STEPS, Presented, pack
from tests.contracts.domain.support import Door, address

SHOP = address("shop")
EVENT_KEY = PrivateKey.from_secret(61)
NEW_KEY = PrivateKey.from_secret(62)
RELAY = "alice"
"""An account that the shop appoints."""


def keys_of(*keys: PrivateKey) -> list[bytes]:
    return [key.public.compressed for key in keys]


@pytest.fixture
def rights() -> Door:
    door = Door("rights")
    door.call("shop", "open_campaign", campaign="sale", quota=1_000, order_max=600, share_basis_points=1_000)
    door.call("shop", "appoint", event_keys=keys_of(EVENT_KEY), rights_servers=[address(RELAY), address("bob")])
    door.call("shop", "set_price", item="cup", price=30)
    door.call("shop", "set_price", item="tea", price=7)
    return door


def event(kind: str, reference: str, number: str = "1", **fields: Any) -> Event:
    plain: dict[str, Any] = {"user": "", "campaign": "", "amount": 0, "items": [], "time_ms": 5}
    return Event(kind=kind, reference=reference, number=number, **{**plain, **fields})


def creation(order: str = "o1", amount: int = 5_000, number: str = "1", **fields: Any) -> Event:
    return event("create", order, number, amount=amount, **{"user": "u1", "campaign": "sale", **fields})


def sign(rights: Door, *events: Event, key: PrivateKey = EVENT_KEY, server: bytes = SHOP) -> list[SignedEvent]:
    return sign_events(key, rights.chain.chain_id, server, events)


def present(rights: Door, signed: SignedEvent, sender: str = RELAY) -> None:
    rights.call(sender, "present", **present_arguments(signed))


def relay(rights: Door, event: Event, share: int = 0, sender: str = RELAY) -> Any:
    """Sign one event, present its root, and apply it."""
    signed = sign(rights, event)[0]
    present(rights, signed, sender)
    return rights.call(sender, "apply", **apply_arguments(signed, share))


def refuses(rights: Door, code: str, event: Event, share: int = 0) -> None:
    signed = sign(rights, event)[0]
    present(rights, signed)
    rights.fails(code, RELAY, "apply", **apply_arguments(signed, share))


def balance(rights: Door, user: str = "u1") -> dict[str, int]:
    """Return the user's figures that are not zero."""
    answer = rights.query("balance", user=user, server=SHOP)
    return {name: value for name, value in answer.items() if name not in ("head", "count") and value}


def test_a_batch_is_presented_once_and_its_events_come_in_any_order(rights: Door) -> None:
    signed = sign(rights, *[creation(f"o{number}", amount=1_000, user=f"u{number}") for number in range(5)])
    present(rights, signed[0])
    for item in reversed(signed):
        result = rights.call(RELAY, "apply", **apply_arguments(item))
        assert result == {"created": 100, "reserved": 100, "entry": 0}
        assert rights.events()[0][1]["server"] == SHOP


def test_the_events_of_a_whole_batch_in_one_transaction(rights: Door) -> None:
    """As a rights server packs them: the root first, then each event; one that fails takes no other with it."""
    batch = [creation(f"o{number}", amount=1_000, user=f"u{number % 7}") for number in range(12)]
    signed = sign(rights, *batch)
    calls = [make_call("rights", "present", present_arguments(signed[0]))]
    calls += [make_call("rights", "apply", apply_arguments(item)) for item in signed]
    receipts = rights.chain.submit(RELAY, *calls, mode=EACH)
    assert [receipt.code for receipt in receipts] == [""] * 11 + ["quota_exceeded"] * 2
    assert rights.query("campaign", campaign="sale")["left"] == 0
    assert rights.query("totals", server=SHOP)["created"] == 1_000


def test_the_steps_of_a_full_pack_suffice(rights: Door) -> None:
    """Each event under a root of its own, by the last of four keys, about an order that takes no more after it."""
    others = [PrivateKey.from_secret(70 + number) for number in range(3)]
    rights.call("shop", "appoint", event_keys=keys_of(*others, EVENT_KEY), rights_servers=[address(RELAY)])
    relay(rights, creation("o" * 64, amount=10_000, user="u" * 64))
    for number in range(EVENTS_PER_RECORD_MAX - 2):
        relay(rights, event("complete", "o" * 64, f"{number:064}", amount=1))
    last = event("complete", "o" * 64, "n" * 64, amount=1)
    items = [item for moment in range(PACK_MAX) for item in sign(rights, replace(last, time_ms=moment))]
    packed = pack(items, [0] * len(items), Presented())
    assert len(packed.places) > 100
    receipts = rights.chain.submit(RELAY, *packed.calls, mode=EACH)
    assert {receipt.code for receipt in receipts} == {""}
    assert max(receipt.steps for receipt in receipts[: len(packed.places)]) <= PRESENT_STEPS
    assert max(receipt.steps for receipt in receipts[len(packed.places) :]) <= APPLY_STEPS


def test_every_kind_does_what_its_method_does(rights: Door) -> None:
    created = relay(rights, creation(amount=5_000))
    assert created == {"created": 500, "reserved": 500, "entry": 0}
    assert rights.events() == [
        (
            "create_by_rule",
            {
                "server": SHOP,
                "user": "u1",
                "reference": "o1",
                "event": "1",
                "changes": {"created": 500, "reserved": 500},
            },
        )
    ]
    assert relay(rights, event("complete", "o1", amount=300))["available"] == 300
    assert relay(rights, event("cancel", "o1", amount=150))["revoked"] == 150
    assert relay(rights, event("complete", "o1", "2"))["available"] == 50
    assert relay(rights, event("redeem", "r1", user="u1", amount=200))["redeemed"] == 200
    assert relay(rights, event("refund", "o1", amount=250))["debt"] == 100
    assert relay(rights, event("reverse_redemption", "r1", amount=120))["available"] == 20
    assert relay(rights, event("reverse_redemption", "r1", "2"))["available"] == 80
    assert relay(rights, event("refund", "o1", "2"))["clawedBack"] == 100
    assert balance(rights) == {"created": 500, "revoked": 150, "clawedBack": 350}
    refuses(rights, "order_state", event("cancel", "o1", "9"))


def test_a_share_is_computed_by_the_contract_or_checked_against_the_cap(rights: Door) -> None:
    assert relay(rights, creation("o1", amount=5_000))["created"] == 500
    assert relay(rights, creation("o2", amount=5_000), share=123)["created"] == 123
    refuses(rights, "share_too_large", creation("o3"), share=601)
    refuses(rights, "no_share", creation("o3", amount=9))
    refuses(rights, "quota_exceeded", creation("o3"))
    assert [rights.query("order", order=order)["events"][0][:3] for order in ("o1", "o2")] == [
        ["create_by_rule", "1", 5_000],
        ["create", "1", [123, 5_000]],
    ]


@pytest.mark.parametrize("sender", ["carol", "shop", "shop-2"])
def test_only_appointed_rights_servers_apply(rights: Door, sender: str) -> None:
    signed = sign(rights, creation())[0]
    present(rights, signed, sender)
    rights.fails("not_appointed", sender, "apply", **apply_arguments(signed))
    assert rights.call("bob", "apply", **apply_arguments(signed))["created"] == 500


def test_a_rights_server_invents_nothing(rights: Door) -> None:
    first, second = sign(rights, creation("o1"), creation("o2", 700))
    rights.fails("unknown_root", RELAY, "apply", **apply_arguments(first))
    present(rights, first)
    good = apply_arguments(first)
    changes: list[dict[str, Any]] = [
        {"amount": 5_001},
        {"user": "u2"},
        {"campaign": "other"},
        {"number": "2"},
        {"reference": "o3"},
        {"kind": "redeem"},
        {"items": {"cup": 1}},
        {"time_ms": 6},
        {"index": 1},
        {"index": 2},
        {"count": 1},
        {"count": 3},
        {"count": 2**62},
        {"path": []},
        {"path": [bytes(32)]},
        {"path": [*good["path"], bytes(32)]},  # type: ignore[misc]
        {"path": apply_arguments(second)["path"]},
    ]
    for change in changes:
        rights.fails("bad_proof", RELAY, "apply", **{**good, **change})
    for root in (bytes(32), sign(rights, creation("o1"))[0].root):
        rights.fails("unknown_root", RELAY, "apply", **{**good, "root": root})
    rights.fails("not_appointed", RELAY, "apply", **{**good, "server": address("shop-2")})
    rights.fails("bad_arguments", RELAY, "apply", **{**good, "path": [bytes(31)]})
    rights.fails("bad_arguments", RELAY, "apply", **{**good, "index": -1})
    rights.fails("bad_arguments", RELAY, "apply", **{**good, "path": [bytes(32)] * 33})
    assert rights.call(RELAY, "apply", **good)["created"] == 500


def test_another_servers_events_stay_its_own(rights: Door) -> None:
    """Both servers appoint the same keys and rights servers, and still neither speaks for the other."""
    rights.call("shop-2", "appoint", event_keys=keys_of(EVENT_KEY), rights_servers=[address(RELAY)])
    own, others = sign(rights, creation())[0], sign(rights, creation(), server=address("shop-2"))[0]
    assert own.root == others.root
    present(rights, own)
    rights.fails("bad_signature", RELAY, "present", **{**present_arguments(own), "server": address("shop-2")})
    rights.fails("unknown_root", RELAY, "apply", **{**apply_arguments(own), "server": address("shop-2")})
    present(rights, others)
    rights.fails("not_allowed", RELAY, "apply", **apply_arguments(others))
    assert rights.call(RELAY, "apply", **apply_arguments(own))["created"] == 500
    signed = sign(rights, event("complete", "o1"), server=address("shop-2"))[0]
    present(rights, signed)
    rights.fails("unknown_order", RELAY, "apply", **apply_arguments(signed))


def test_a_signature_is_one_of_the_servers_event_keys_over_its_name_and_the_root(rights: Door) -> None:
    good = present_arguments(sign(rights, creation())[0])
    root = sign(rights, creation())[0].root
    chain_id = rights.chain.chain_id
    forged = [
        bytes(64),
        NEW_KEY.sign(Purpose.BUSINESS_EVENTS, chain_id, SHOP + root),
        EVENT_KEY.sign(Purpose.BUSINESS_EVENTS, chain_id, root),
        EVENT_KEY.sign(Purpose.TRANSACTION, chain_id, SHOP + root),
        rights.chain.keys["shop"].sign(Purpose.BUSINESS_EVENTS, chain_id, SHOP + root),
        EVENT_KEY.sign(Purpose.BUSINESS_EVENTS, type(chain_id)(bytes(32)), SHOP + root),
    ]
    for signature in forged:
        rights.fails("bad_signature", RELAY, "present", **{**good, "signature": signature})
    rights.fails("bad_arguments", RELAY, "present", **{**good, "signature": bytes(63)})
    rights.fails("not_appointed", RELAY, "present", **{**good, "server": address("shop-2")})
    rights.call("carol", "present", **good)
    before = rights.records()
    rights.call(RELAY, "present", **{**good, "signature": bytes(64)})
    assert rights.records() == before


def test_what_a_key_signed_counts_no_more_when_it_is_left_out(rights: Door) -> None:
    early, late = sign(rights, creation("o1"))[0], sign(rights, creation("o2"), key=NEW_KEY)[0]
    present(rights, early)
    rights.fails("bad_signature", RELAY, "present", **present_arguments(late))
    rights.call("shop", "appoint", event_keys=keys_of(NEW_KEY, EVENT_KEY), rights_servers=[address(RELAY)])
    present(rights, late)
    rights.call("shop", "appoint", event_keys=keys_of(NEW_KEY), rights_servers=[address(RELAY)])
    rights.fails("unknown_root", RELAY, "apply", **apply_arguments(early))
    rights.fails("bad_signature", RELAY, "present", **present_arguments(early))
    present(rights, sign(rights, creation("o1"), key=NEW_KEY)[0])
    assert rights.call(RELAY, "apply", **apply_arguments(early))["created"] == 500
    rights.fails("not_appointed", "bob", "apply", **apply_arguments(late))
    rights.call("shop", "appoint", event_keys=keys_of(NEW_KEY), rights_servers=[])
    rights.fails("not_appointed", RELAY, "apply", **apply_arguments(late))
    assert rights.query("appointed", server=SHOP) == {"eventKeys": keys_of(NEW_KEY), "rightsServers": []}
    rights.refuses("not_appointed", "appointed", server=address("shop-2"))


def test_who_appoints_whom(rights: Door) -> None:
    good: dict[str, Any] = {"event_keys": keys_of(EVENT_KEY), "rights_servers": []}
    rights.fails("not_allowed", "alice", "appoint", **good)
    rights.fails("bad_key", "shop", "appoint", **{**good, "event_keys": [b"\x02" + b"\xff" * 32]})
    for keys in ([], keys_of(EVENT_KEY) * 5, [bytes(32)]):
        rights.fails("bad_arguments", "shop", "appoint", **{**good, "event_keys": keys})
    for servers in ([SHOP] * 17, [bytes(19)]):
        rights.fails("bad_arguments", "shop", "appoint", **{**good, "rights_servers": servers})


def test_a_suspended_server_has_nothing_relayed(rights: Door) -> None:
    signed = sign(rights, creation())[0]
    present(rights, signed)
    account = load_account(rights.chain.state, SHOP)
    assert account is not None
    rights.chain.state.apply({account_key(SHOP): encode({**account.value(), "status": SUSPENDED})})
    rights.fails("account_suspended", RELAY, "apply", **apply_arguments(signed))


def test_events_that_lack_what_their_kind_needs(rights: Door) -> None:
    refuses(rights, "bad_event", creation(user=""))
    refuses(rights, "unknown_campaign", creation(campaign=""))
    refuses(rights, "bad_event", event("redeem", "r1", user="", amount=5))
    refuses(rights, "bad_event", event("redeem", "r1", user="u1"))
    refuses(rights, "bad_event", event("redeem", "r1", user="u1"), share=5)
    refuses(rights, "bad_event", event("open_campaign", "c9"))
    refuses(rights, "bad_event", event("create_by_rule", "o9", user="u1", campaign="sale", amount=50))


def test_the_same_event_directly_and_relayed_is_one_event(rights: Door) -> None:
    relayed = relay(rights, creation("o1"))
    direct = {"campaign": "sale", "order": "o1", "user": "u1", "event": "1"}
    assert rights.call("shop", "create_by_rule", **direct, order_amount=5_000) == relayed
    rights.fails("event_conflict", "shop", "create_by_rule", **direct, order_amount=4_999)
    rights.fails("event_conflict", "shop", "create", **direct, amount=500)
    rights.fails("order_state", "shop", "create_by_rule", **{**direct, "event": "2"}, order_amount=5_000)
    second = rights.call("shop", "create", **{**direct, "order": "o2"}, amount=40)
    assert relay(rights, creation("o2"), share=40) == second
    refuses(rights, "event_conflict", creation("o2"), share=41)
    refuses(rights, "event_conflict", creation("o2"))
    completed = rights.call("shop", "complete", order="o1", event="1", amount=300)
    assert relay(rights, event("complete", "o1", amount=300)) == completed
    refuses(rights, "event_conflict", event("complete", "o1"))
    redeemed = rights.call("shop", "redeem", user="u1", amount=50, redemption="r1", event="1")
    assert relay(rights, event("redeem", "r1", user="u1", amount=50)) == redeemed
    assert relay(rights, event("redeem", "r1", user="u1", amount=50), share=50) == redeemed
    refuses(rights, "event_conflict", event("redeem", "r1", user="u1", amount=51))
    refuses(rights, "event_conflict", event("redeem", "r1", user="u2", amount=50))
    bought = relay(rights, event("redeem", "r2", user="u1", items=[("cup", 1), ("tea", 2)]))
    items = {"user": "u1", "items": {"tea": 2, "cup": 1}, "redemption": "r2", "event": "1"}
    assert rights.call("shop", "redeem_items", **items) == bought
    rights.fails("event_conflict", "shop", "redeem_items", **items, amount_max=44)
    rights.fails("event_conflict", "shop", "redeem_items", **{**items, "items": {"cup": 1, "tea": 1}})


def test_what_another_rights_server_computes_does_not_make_it_another_event(rights: Door) -> None:
    """Two rights servers with other tables, or one that got another table in between, bring the same event."""
    first = relay(rights, creation("o1"), share=70)
    assert relay(rights, creation("o1"), share=71, sender="bob") == first
    assert relay(rights, creation("o1")) == first
    assert relay(rights, creation("o1", time_ms=99)) == first
    refuses(rights, "event_conflict", creation("o1", amount=4_999), share=70)
    relay(rights, event("complete", "o1"))
    bought = relay(rights, event("redeem", "r1", user="u1", items=[("cup", 1)]))
    rights.call("shop", "set_price", item="cup", price=31)
    assert relay(rights, event("redeem", "r1", user="u1", items=[("cup", 1)])) == bought
    assert relay(rights, event("redeem", "r1", user="u1", items=[("cup", 1)]), share=29) == bought
    refuses(rights, "event_conflict", event("redeem", "r1", user="u1", items=[("cup", 2)]), share=30)
    refuses(rights, "redemption_exists", event("redeem", "r1", "2", user="u1", items=[("cup", 1)]))


def test_redeeming_items_by_the_prices_of_the_day(rights: Door) -> None:
    relay(rights, creation("o1"))
    relay(rights, event("complete", "o1"))
    items = {"user": "u1", "redemption": "r1", "event": "e"}
    for code, wanted in (("unknown_item", {"cup": 1, "hat": 1}), ("bad_arguments", {}), ("bad_arguments", {"cup": 0})):
        rights.fails(code, "shop", "redeem_items", **items, items=wanted)
    rights.fails("bad_arguments", "shop", "redeem_items", **items, items={f"i{number}": 1 for number in range(17)})
    rights.fails("insufficient_rights", "shop", "redeem_items", **items, items={"cup": 17})
    rights.fails("price_exceeds_amount", "shop", "redeem_items", **items, items={"cup": 2, "tea": 1}, amount_max=66)
    result = rights.call("shop", "redeem_items", **items, items={"tea": 1, "cup": 2}, amount_max=67)
    assert result == {"available": -67, "redeemed": 67, "entry": 2}
    assert rights.call("shop", "set_price", item="cup", price=40) == 2
    assert rights.query("redemption", redemption="r1") == {
        "redemption": "r1",
        "user": "u1",
        "amount": 67,
        "reversed": 0,
        "events": [["redeem_items", "e", [67, [["cup", 2], ["tea", 1]]], 2]],
        "prices": [[1, 30], [1, 7]],
    }
    assert rights.call("shop", "redeem_items", **{**items, "redemption": "r2"}, items={"cup": 1})["redeemed"] == 40
    assert rights.query("redemption", redemption="r2")["prices"] == [[2, 40]]
    assert rights.call("shop", "reverse_redemption", redemption="r1", event="e")["available"] == 67


def test_redeeming_items_as_the_rights_server_computed(rights: Door) -> None:
    relay(rights, creation("o1"))
    relay(rights, event("complete", "o1"))
    wanted = event("redeem", "r1", user="u1", amount=50, items=[("hat", 1)])
    refuses(rights, "price_exceeds_amount", wanted, share=51)
    refuses(rights, "unknown_item", wanted)
    assert relay(rights, wanted, share=50)["redeemed"] == 50
    assert relay(rights, event("redeem", "r2", user="u1", items=[("hat", 3)]), share=90)["redeemed"] == 90
    refuses(rights, "insufficient_rights", event("redeem", "r3", user="u1", items=[("hat", 3)]), share=361)
    for share in (7, 9):  # an amount is what the server signed, and nothing to compute
        refuses(rights, "bad_event", event("redeem", "r3", user="u1", amount=8), share=share)
    assert rights.query("redemption", redemption="r1")["events"] == [["redeem", "1", [50, [50, [["hat", 1]]]], 2]]


def test_prices(rights: Door) -> None:
    assert rights.query("prices", server=SHOP) == [
        {"item": "cup", "version": 1, "price": 30},
        {"item": "tea", "version": 1, "price": 7},
    ]
    assert [line["item"] for line in rights.query("prices", server=SHOP, start="d")] == ["tea"]
    assert len(rights.query("prices", server=SHOP, limit=1)) == 1
    assert rights.query("prices", server=address("shop-2")) == []
    assert rights.query("price", item="tea", server=SHOP) == {"item": "tea", "version": 1, "price": 7}
    rights.refuses("unknown_item", "price", item="tea", server=address("shop-2"))
    rights.fails("not_allowed", "alice", "set_price", item="cup", price=1)
    for price in (-1, AMOUNT_MAX + 1):
        rights.fails("bad_arguments", "shop", "set_price", item="cup", price=price)
    assert rights.call("shop", "set_price", item="cup", price=0) == 2
    assert rights.events() == [("priced", {"server": SHOP, "item": "cup", "price": 0, "version": 2})]
    relay(rights, creation("o1"))
    relay(rights, event("complete", "o1"))
    refuses(rights, "unknown_item", event("redeem", "r1", user="u1", items=[("cup", 1)]))
    rights.call("shop", "set_price", item="cup", price=AMOUNT_MAX)
    dear = event("redeem", "r1", user="u1", items=[("cup", 1_000_000)])
    refuses(rights, "insufficient_rights", dear)


def test_a_closed_campaign_takes_no_orders_and_those_it_has_go_on(rights: Door) -> None:
    first = relay(rights, creation("o1"))
    rights.fails("not_allowed", "shop-2", "close_campaign", campaign="sale")
    rights.fails("unknown_campaign", "shop", "close_campaign", campaign="none")
    rights.call("shop", "close_campaign", campaign="sale")
    assert rights.events() == [("closed", {"campaign": "sale", "server": SHOP})]
    assert rights.query("campaign", campaign="sale")["isClosed"] is True
    refuses(rights, "campaign_closed", creation("o2"))
    new = {"campaign": "sale", "order": "o2", "user": "u1", "event": "1"}
    rights.fails("campaign_closed", "shop", "create", **new, amount=1)
    rights.fails("campaign_closed", "shop", "change_rule", campaign="sale")
    rights.fails("campaign_closed", "shop", "close_campaign", campaign="sale")
    rights.fails("campaign_exists", "shop", "open_campaign", campaign="sale", quota=1)
    assert relay(rights, creation("o1")) == first
    relay(rights, event("complete", "o1", amount=300))
    relay(rights, event("cancel", "o1"))
    assert balance(rights) == {"created": 500, "revoked": 200, "clawedBack": 300}
    assert rights.query("campaign", campaign="sale")["isClosed"] is True


def test_a_path_is_paid_for_by_its_length(rights: Door) -> None:
    steps: list[int] = []
    for count in (1, 2, 256):
        signed = sign(rights, *[creation(f"o{count}-{number}", amount=10, user=f"u{count}") for number in range(count)])
        present(rights, signed[0])
        rights.call(RELAY, "apply", **apply_arguments(signed[0]))
        assert rights.receipt is not None
        steps.append(rights.receipt.steps)
    assert steps[1] - steps[0] >= 10
    assert steps[2] - steps[1] >= 70
    assert steps[2] < 1_000


def test_proofs_of_the_longest_list_are_taken(rights: Door) -> None:
    """An index that a path of 32 hashes leads to is no trouble for the contract."""
    signed = sign(rights, creation())[0]
    present(rights, signed)
    forged = SignedEvent(
        SHOP, signed.root, signed.signature, ListProof(2**31, 2**32 - 1, [bytes(32)] * 32), signed.event
    )
    rights.fails("bad_proof", RELAY, "apply", **apply_arguments(forged))
