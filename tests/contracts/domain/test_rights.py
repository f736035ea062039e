"""rights: every method, every refusal, idempotency, debt, history."""

from typing import Any

import pytest

from consensus.ledger.codec import INTEGER_MAX, encode
from consensus.ledger.ids import tagged_hash
from contracts.runtime.contract import AMOUNT_MAX
from tests.contracts.domain.support import Door, address

SALE = {"campaign": "sale", "user": "u1"}


@pytest.fixture
def rights() -> Door:
    door = Door("rights")
    door.call("shop", "open_campaign", campaign="sale", quota=1_000, order_max=600)
    return door


def balance(rights: Door, user: str = "u1") -> dict[str, int]:
    """Return the user's figures that are not zero."""
    answer = rights.query("balance", user=user)
    return {name: value for name, value in answer.items() if name not in ("head", "count") and value}


def granted(rights: Door, order: str, amount: int) -> None:
    rights.call("shop", "create", **SALE, order=order, amount=amount, event="e1")
    rights.call("shop", "complete", order=order, event="e1")


def test_create_preallocates(rights: Door) -> None:
    result = rights.call("shop", "create", **SALE, order="o1", amount=500, event="e1")
    assert result == {"created": 500, "reserved": 500, "entry": 0}
    assert balance(rights) == {"created": 500, "reserved": 500}
    assert rights.query("order", order="o1") == {
        "order": "o1",
        "state": "PREALLOCATED",
        "campaign": "sale",
        "user": "u1",
        "rule": 1,
        "reserved": 500,
        "granted": 0,
        "revoked": 0,
        "refunded": 0,
        "events": [["create", "e1", 500, 0]],
    }
    assert rights.query("campaign", campaign="sale") == {
        "campaign": "sale",
        "server": address("shop"),
        "rule": 1,
        "orderMax": 600,
        "shareBasisPoints": 10_000,
        "isClosed": False,
        "quota": 1_000,
        "left": 500,
        "created": 500,
        "reserved": 500,
        "granted": 0,
        "revoked": 0,
        "refunded": 0,
    }
    expected = {
        "server": address("shop"),
        "user": "u1",
        "reference": "o1",
        "event": "e1",
        "changes": {"created": 500, "reserved": 500},
    }
    assert rights.events() == [("create", expected)]


def test_create_refuses(rights: Door) -> None:
    new = {**SALE, "order": "o1", "amount": 500, "event": "e1"}
    rights.fails("unknown_campaign", "shop", "create", **{**new, "campaign": "none"})
    rights.fails("not_allowed", "shop-2", "create", **new)
    rights.fails("share_too_large", "shop", "create", **{**new, "amount": 601})
    rights.call("shop", "create", **new)
    rights.fails("order_state", "shop", "create", **{**new, "event": "e2"})
    rights.fails("quota_exceeded", "shop", "create", **{**new, "order": "o2", "amount": 501})
    rights.call("shop", "create", **{**new, "order": "o2"})
    rights.fails("quota_exceeded", "shop", "create", **{**new, "order": "o3", "amount": 1})


def test_share_by_rule_of_its_version(rights: Door) -> None:
    rights.call("shop", "open_campaign", campaign="rule", quota=10_000, share_basis_points=333)
    new = {"campaign": "rule", "user": "u1", "event": "e1"}
    rights.fails("no_share", "shop", "create_by_rule", **new, order="o0", order_amount=30)
    result = rights.call("shop", "create_by_rule", **new, order="o1", order_amount=10_099)
    assert result["reserved"] == 10_099 * 333 // 10_000 == 336
    assert rights.call("shop", "change_rule", campaign="rule", order_max=100) == 2
    assert rights.call("shop", "create_by_rule", **new, order="o2", order_amount=10_099)["reserved"] == 100
    assert [rights.query("order", order=order)["rule"] for order in ("o1", "o2")] == [1, 2]
    assert rights.query("rule", campaign="rule", version=1) == {"orderMax": 10_000, "shareBasisPoints": 333}
    assert rights.query("rule", campaign="rule", version=2) == {"orderMax": 100, "shareBasisPoints": 10_000}
    assert rights.call("shop", "create_by_rule", **new, order="o1", order_amount=10_099) == result
    rights.fails("event_conflict", "shop", "create", **new, order="o1", amount=336)
    rights.fails("not_allowed", "shop-2", "change_rule", campaign="rule")
    rights.fails("unknown_campaign", "shop", "change_rule", campaign="none")
    rights.refuses("unknown_rule", "rule", campaign="rule", version=3)


def test_whole_amount_of_the_largest_order_has_a_share() -> None:
    rights = Door("rights")
    rights.call("shop", "open_campaign", campaign="sale", quota=AMOUNT_MAX, share_basis_points=1_000_000)
    result = rights.call("shop", "create_by_rule", **SALE, order="o1", order_amount=AMOUNT_MAX, event="e1")
    assert result["created"] == AMOUNT_MAX


def test_complete_by_amount_then_cancel_the_rest(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=500, event="e1")
    assert rights.call("shop", "complete", order="o1", event="e2", amount=200) == {
        "reserved": -200,
        "available": 200,
        "entry": 1,
    }
    assert rights.query("order", order="o1")["state"] == "PREALLOCATED"
    rights.fails("amount_exceeds_order", "shop", "complete", order="o1", event="e3", amount=301)
    assert rights.call("shop", "cancel", order="o1", event="e3", amount=300)["revoked"] == 300
    assert rights.query("order", order="o1")["state"] == "GRANTED"
    assert balance(rights) == {"created": 500, "available": 200, "revoked": 300}
    rights.fails("order_state", "shop", "complete", order="o1", event="e4")
    assert rights.query("campaign", campaign="sale")["left"] == 800


def test_cancel_revokes_and_reopens_the_quota(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=600, event="e1")
    rights.call("shop", "cancel", order="o1", event="e2")
    assert rights.query("order", order="o1")["state"] == "REVOKED"
    assert balance(rights) == {"created": 600, "revoked": 600}
    for method in ("cancel", "complete", "refund"):
        rights.fails("order_state", "shop", method, order="o1", event="e3")
    for order in ("o2", "o3"):
        rights.call("shop", "create", **SALE, order=order, amount=500, event="e1")


def test_cancel_over_what_is_reserved_claws_back(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=500, event="e1")
    rights.call("shop", "complete", order="o1", event="e2", amount=200)
    rights.fails("amount_exceeds_order", "shop", "cancel", order="o1", event="e3", amount=501)
    result = rights.call("shop", "cancel", order="o1", event="e3", amount=450)
    assert result == {"reserved": -300, "revoked": 300, "available": -150, "clawedBack": 150, "entry": 2}
    assert rights.call("shop", "cancel", order="o1", event="e4") == {"available": -50, "clawedBack": 50, "entry": 3}
    rights.fails("order_state", "shop", "cancel", order="o1", event="e5")


def test_refund_claws_back_and_a_shortfall_is_netted_against_later_grants(rights: Door) -> None:
    granted(rights, "o1", 500)
    rights.call("shop", "redeem", user="u1", amount=400, redemption="r1", event="e1")
    result = rights.call("shop", "refund", order="o1", event="e2", amount=300)
    assert result == {"available": -100, "clawedBack": 100, "debt": 200, "entry": 3}
    rights.call("shop", "create", **SALE, order="o2", amount=150, event="e1")
    result = rights.call("shop", "complete", order="o2", event="e1")
    assert result == {"reserved": -150, "clawedBack": 150, "debt": -150, "entry": 5}
    rights.call("shop", "create", **SALE, order="o3", amount=150, event="e1")
    result = rights.call("shop", "complete", order="o3", event="e1")
    assert result == {"reserved": -150, "available": 100, "clawedBack": 50, "debt": -50, "entry": 7}
    assert balance(rights) == {"created": 800, "available": 100, "redeemed": 400, "clawedBack": 300}
    rights.fails("amount_exceeds_order", "shop", "refund", order="o1", event="e3", amount=201)
    assert rights.query("campaign", campaign="sale")["left"] == 200


def test_refund_needs_a_grant(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=500, event="e1")
    rights.fails("order_state", "shop", "refund", order="o1", event="e2", amount=1)


def test_redeem_and_reverse(rights: Door) -> None:
    granted(rights, "o1", 500)
    rights.fails("insufficient_rights", "shop", "redeem", user="u1", amount=501, redemption="r1", event="e1")
    rights.fails("insufficient_rights", "shop", "redeem", user="u9", amount=1, redemption="r1", event="e1")
    rights.call("shop", "redeem", user="u1", amount=400, redemption="r1", event="e1")
    rights.fails("redemption_exists", "shop", "redeem", user="u1", amount=400, redemption="r1", event="e2")
    rights.call("shop", "refund", order="o1", event="e2", amount=350)
    assert balance(rights) == {"created": 500, "redeemed": 400, "clawedBack": 100, "debt": 250}
    result = rights.call("shop", "reverse_redemption", redemption="r1", event="e1", amount=100)
    assert result == {"redeemed": -100, "clawedBack": 100, "debt": -100, "entry": 4}
    rights.fails("amount_exceeds_redemption", "shop", "reverse_redemption", redemption="r1", event="e2", amount=301)
    result = rights.call("shop", "reverse_redemption", redemption="r1", event="e2")
    assert result == {"redeemed": -300, "available": 150, "clawedBack": 150, "debt": -150, "entry": 5}
    rights.fails("redemption_state", "shop", "reverse_redemption", redemption="r1", event="e3")
    rights.fails("unknown_redemption", "shop", "reverse_redemption", redemption="r9", event="e1")
    assert rights.query("redemption", redemption="r1") == {
        "redemption": "r1",
        "user": "u1",
        "amount": 400,
        "reversed": 400,
        "events": [
            ["redeem", "e1", 400, 2],
            ["reverse_redemption", "e1", 100, 4],
            ["reverse_redemption", "e2", None, 5],
        ],
        "prices": [],
    }


REPEATS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("create", {**SALE, "order": "o1", "amount": 500, "event": "e1"}, {"amount": 501}),
    ("create", {**SALE, "order": "o1", "amount": 500, "event": "e1"}, {"user": "u2"}),
    ("complete", {"order": "o1", "event": "e1", "amount": 400}, {"amount": 399}),
    ("cancel", {"order": "o1", "event": "e1", "amount": 150}, {"amount": None}),
    ("redeem", {"user": "u1", "amount": 300, "redemption": "r1", "event": "e1"}, {"amount": 200}),
    ("redeem", {"user": "u1", "amount": 300, "redemption": "r1", "event": "e1"}, {"user": "u2"}),
    ("refund", {"order": "o1", "event": "e1", "amount": 100}, {"amount": 50}),
    ("reverse_redemption", {"redemption": "r1", "event": "e1"}, {"amount": 300}),
]


def test_a_repeat_returns_the_first_result_and_changes_nothing(rights: Door) -> None:
    rights.call("shop", "open_campaign", campaign="other", quota=1_000)
    results: list[Any] = []
    for number, (method, arguments, _) in enumerate(REPEATS):
        if arguments != REPEATS[number - 1][1]:
            results.append(rights.call("shop", method, **arguments))
        else:
            results.append(results[-1])
    before = rights.records()
    for (method, arguments, other), first in zip(REPEATS, results, strict=True):
        assert rights.call("shop", method, **arguments) == first
        assert rights.events() == []
        assert rights.records() == before
        rights.fails("event_conflict", "shop", method, **{**arguments, **other})
    rights.fails("event_conflict", "shop", "create", **{**REPEATS[0][1], "campaign": "other"})


def test_the_same_event_of_another_type_or_order_is_another_event(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=100, event="e1")
    rights.call("shop", "create", **SALE, order="o2", amount=100, event="e1")
    rights.call("shop", "complete", order="o1", event="e1")
    rights.call("shop", "refund", order="o1", event="e1", amount=50)
    rights.call("shop", "cancel", order="o1", event="e1")
    assert balance(rights) == {"created": 200, "reserved": 100, "clawedBack": 100}


def test_another_server_reaches_nothing(rights: Door) -> None:
    granted(rights, "o1", 500)
    rights.call("shop", "redeem", user="u1", amount=100, redemption="r1", event="e1")
    for method in ("cancel", "complete", "refund"):
        rights.fails("unknown_order", "shop-2", method, order="o1", event="e9")
    rights.fails("insufficient_rights", "shop-2", "redeem", user="u1", amount=1, redemption="r1", event="e1")
    rights.fails("unknown_redemption", "shop-2", "reverse_redemption", redemption="r1", event="e9")


def test_servers_with_the_same_names(rights: Door) -> None:
    granted(rights, "o1", 500)
    rights.call("shop-2", "open_campaign", campaign="sale-2", quota=1_000)
    assert rights.query("balance", user="u1")["available"] == 500
    rights.call("shop-2", "create", campaign="sale-2", user="u1", order="o1", amount=7, event="e1")
    for query, arguments in (("balance", {"user": "u1"}), ("order", {"order": "o1"}), ("totals", {})):
        rights.refuses("ambiguous_server", query, **arguments)
        assert rights.query(query, **arguments, server=address("shop-2"))["reserved"] == 7
        assert rights.query(query, **arguments, server=address("shop"))["reserved"] == 0
    assert len(rights.query("history", user="u1", server=address("shop"))) == 2


def test_campaigns(rights: Door) -> None:
    rights.fails("not_allowed", "alice", "open_campaign", campaign="mine", quota=1)
    rights.fails("campaign_exists", "shop-2", "open_campaign", campaign="sale", quota=1)
    rights.call("shop-2", "open_campaign", campaign="b", quota=5)
    assert [item["campaign"] for item in rights.query("campaigns")] == ["b", "sale"]
    assert [item["quota"] for item in rights.query("campaigns", start="c")] == [1_000]
    assert rights.query("campaign", campaign="b")["orderMax"] == 5
    rights.refuses("unknown_campaign", "campaign", campaign="none")


def test_the_history_shows_that_nothing_was_left_out(rights: Door) -> None:
    granted(rights, "o1", 500)
    rights.call("shop", "redeem", user="u1", amount=400, redemption="r1", event="e1")
    rights.call("shop", "refund", order="o1", event="e2", amount=300)
    entries = rights.query("history", user="u1")
    answer = rights.query("balance", user="u1")
    figures = {name: value for name, value in answer.items() if name not in ("count", "head")}
    head, sums = bytes(32), dict.fromkeys(figures, 0)
    for number, entry in enumerate(entries):
        assert entry["number"] == number
        fields = [entry[name] for name in ("type", "reference", "event", "changes", "height", "timeMs")]
        head = tagged_hash("contract-data", encode([head, fields]))
        for name, change in entry["changes"].items():
            sums[name] += change
    assert answer["count"] == len(entries) == 4
    assert answer["head"] == head
    assert sums == figures
    assert [entry["type"] for entry in entries] == ["create", "complete", "redeem", "refund"]
    assert rights.query("history", user="u1", start=1, limit=2) == entries[1:3]


def test_entries_are_found_wherever_they_stand(rights: Door) -> None:
    results = [
        rights.call("shop", "create", **SALE, order=f"o{number}", amount=number + 1, event="e") for number in range(11)
    ]
    entries = rights.query("history", user="u1")
    assert [(entry["number"], entry["reference"]) for entry in entries] == [(n, f"o{n}") for n in range(11)]
    for start in range(13):
        for limit in range(1, 13):
            assert rights.query("history", user="u1", start=start, limit=limit) == entries[start : start + limit]
    for number, result in enumerate(results):
        again = rights.call("shop", "create", **SALE, order=f"o{number}", amount=number + 1, event="e")
        assert again == result == {"created": number + 1, "entry": number, "reserved": number + 1}


def test_unknown_users_and_orders(rights: Door) -> None:
    assert rights.query("balance", user="u9")["count"] == 0
    assert rights.query("balance", user="u9", server=address("shop"))["head"] == bytes(32)
    assert rights.query("history", user="u9") == []
    assert set(rights.query("totals").values()) == {0}
    rights.refuses("unknown_order", "order", order="o9")
    rights.refuses("unknown_order", "order", order="o9", server=address("shop"))
    rights.refuses("unknown_redemption", "redemption", redemption="r9")
    rights.fails("unknown_order", "shop", "complete", order="o9", event="e1")


def test_events_of_one_order_are_bounded(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=500, event="e")
    for number in range(63):
        rights.call("shop", "complete", order="o1", event=f"e{number}", amount=1)
    rights.fails("too_many_events", "shop", "complete", order="o1", event="e63", amount=1)
    assert rights.call("shop", "complete", order="o1", event="e62", amount=1)["entry"] == 63


def test_sums_cannot_overflow(rights: Door) -> None:
    rights.call("shop", "create", **SALE, order="o1", amount=1, event="e")
    key = b"rights/server/" + address("shop").hex().encode()
    # [created, reserved, available, redeemed, revoked, clawedBack, debt]
    rights.chain.state.apply({key: encode([INTEGER_MAX - 1, 1, 0, 0, INTEGER_MAX - 2, 0, 0])})
    rights.fails("overflow", "shop", "create", **SALE, order="o2", amount=2, event="e")
    rights.call("shop", "create", **SALE, order="o2", amount=1, event="e")


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1, "5", True, None, [1]])
def test_bad_amounts(rights: Door, amount: Any) -> None:
    rights.fails("bad_arguments", "shop", "create", **SALE, order="o1", amount=amount, event="e1")
    rights.fails("bad_arguments", "shop", "open_campaign", campaign="c", quota=amount)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a\n", "ü", "x" * 65])
def test_bad_names(rights: Door, name: str) -> None:
    new = {**SALE, "order": "o1", "amount": 1, "event": "e1"}
    for argument in ("campaign", "order", "user"):
        rights.fails("bad_arguments", "shop", "create", **{**new, argument: name})
