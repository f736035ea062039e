"""evidence: anchors with both signatures or one, what cannot be forged or vetoed, and a log that is complete."""

from typing import Any

import pytest

from consensus.ledger.codec import encode
from consensus.ledger.cooperation import FIRST_ANSWER, answer_hash, orders_hash
from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import Purpose
from consensus.ledger.transaction import EACH, make_call
from tests.contracts.domain.agency import CHANNEL, DAY_MS, Agency, key, make_agency

ROOT, OTHER = b"r" * 32, b"s" * 32
PAIR = {"bank": "bank-a", "issuer": "issuer-c"}


@pytest.fixture
def agency() -> Agency:
    agency = make_agency()
    agency.open(issuers=("issuer-c", "issuer-f"))
    return agency


def standing(agency: Agency, root: bytes = ROOT, round_number: int = 0) -> Any:
    return agency.evidence.query("anchor_of", **PAIR, root=root, round_number=round_number)


def only(agency: Agency, root: bytes = ROOT) -> Any:
    found = standing(agency, root)
    assert len(found["anchors"]) == 1
    return found["anchors"][0]


@pytest.mark.parametrize("who", ["bank-a", "issuer-c", "clerk-a"])
def test_whoever_holds_both_signatures_anchors(agency: Agency, who: str) -> None:
    fields = agency.anchor(ROOT)
    result = agency.evidence.call(who, "anchor", **fields)
    chain = agency.chain
    assert result == {"status": "MUTUAL", "number": 0, "height": chain.height, "timeMs": chain.time_ms}
    told = {**PAIR, "root": ROOT, "status": "MUTUAL", "number": 0, "count": 1_000}
    assert agency.evidence.events() == [("anchored", told)]
    assert only(agency) == {
        **result,
        "epoch": 1,
        "count": 1_000,
        "outcomeRoot": b"o" * 32,
        "previous": FIRST_ANSWER,
        "ordersSignature": fields["orders_signature"],
        "answerSignature": fields["answer_signature"],
        "bankKey": agency.business["bank-a"].public.compressed,
        "issuerKey": agency.business["issuer-c"].public.compressed,
        "isContradicted": False,
    }


def test_an_anchor_of_a_package_is_cheap(agency: Agency) -> None:
    """Whatever the number of its orders: below 3,000 steps and 1 KiB of state."""
    agency.put_anchor("bank-a", OTHER)
    before = agency.evidence.records()
    agency.put_anchor("bank-a", ROOT)
    receipt = agency.evidence.receipt
    written = {name: value for name, value in agency.evidence.records().items() if before.get(name) != value}
    assert receipt is not None
    assert receipt.steps < 3_000
    assert len(written) == 3
    assert sum(len(name) + len(value) for name, value in written.items()) < 1_024


def test_packages_that_wait_together_are_anchored_by_one_transaction(agency: Agency) -> None:
    """In mode EACH the one that is forged fails alone."""
    said = [agency.anchor(bytes([number]) * 32) for number in range(64)]
    said[7]["answer_signature"] = bytes(64)
    calls = [make_call("evidence", "anchor", fields) for fields in said]
    receipts = agency.chain.submit("bank-a", *calls, mode=EACH)
    assert [receipt.code for receipt in receipts] == ["bad_signature" if number == 7 else "" for number in range(64)]
    assert sum(receipt.steps for receipt in receipts) < 250_000
    assert agency.evidence.query("log", **PAIR)["count"] == 63


def test_nobody_else_anchors(agency: Agency) -> None:
    for who in ("issuer-f", "bank-b", "permission"):
        agency.evidence.fails("not_party", who, "anchor", **agency.anchor(ROOT))


def test_a_claim_says_what_was_signed_and_no_more(agency: Agency) -> None:
    both = agency.anchor(ROOT)
    bank_only = agency.anchor(ROOT, signed="bank")
    for said in ({"outcome_root": b"o" * 32}, {"previous": FIRST_ANSWER}, {"round_number": 1}):
        agency.evidence.fails("unsigned_outcome", "bank-a", "anchor", **{**bank_only, **said})
    for missing in ({"outcome_root": b""}, {"previous": b""}, {"outcome_root": b"o" * 31}):
        agency.evidence.fails("outcome_missing", "issuer-c", "anchor", **{**both, **missing})
    unsigned = {**both, "orders_signature": b"", "answer_signature": b""}
    agency.evidence.fails("nothing_signed", "bank-a", "anchor", **unsigned)
    agency.put_anchor("bank-a", ROOT, signed="bank")
    claim = only(agency)
    assert (claim["status"], claim["outcomeRoot"], claim["answerSignature"], claim["issuerKey"]) == (
        "CLAIMED",
        b"",
        b"",
        b"",
    )


CHANGES: dict[str, dict[str, Any]] = {
    "root": {"root": OTHER},
    "epoch": {"epoch": 2},
    "count": {"count": 999},
    "round": {"round_number": 1},
    "outcome": {"outcome_root": b"x" * 32},
    "previous": {"previous": b"x" * 32},
    "issuer": {"issuer": "issuer-f"},
    "bank's signature": {"orders_signature": b"\1" * 64},
    "issuer's signature": {"answer_signature": b"\1" * 64},
    "a short signature": {"answer_signature": b"\1"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_signature_counts_for_anything_else(agency: Agency, change: str) -> None:
    """Forged, replayed into another epoch or round, or carried over to another channel."""
    fields = agency.anchor(ROOT)
    agency.call("issuer-c", "revoke_channel", **PAIR, reason="")
    agency.open("2")
    agency.evidence.fails("bad_signature", "bank-a", "anchor", **{**fields, **CHANGES[change]})
    agency.evidence.call("bank-a", "anchor", **fields)


def test_only_business_keys_of_these_parties_sign(agency: Agency) -> None:
    orders = orders_hash(**PAIR, epoch=1, root=ROOT, count=1_000)
    outcome = {"round_number": 0, "outcome_root": b"o" * 32, "previous": FIRST_ANSWER}
    answer = answer_hash(**PAIR, epoch=1, root=ROOT, **outcome)  # type: ignore[arg-type]
    fields = agency.anchor(ROOT)
    chain_id = agency.chain.chain_id
    for name, forged in {
        "orders_signature": agency.sign("issuer-c", Purpose.ORDERS, orders),
        "answer_signature": agency.sign("issuer-f", Purpose.ANSWER, answer),
    }.items():
        agency.evidence.fails("bad_signature", "bank-a", "anchor", **{**fields, name: forged})
    by_bank = {**fields, "answer_signature": agency.sign("bank-a", Purpose.ANSWER, answer)}
    agency.evidence.fails("bad_signature", "bank-a", "anchor", **by_bank)
    by_channel = {**fields, "answer_signature": CHANNEL["issuer-c"].sign(Purpose.ANSWER, chain_id, answer)}
    agency.evidence.fails("bad_signature", "bank-a", "anchor", **by_channel)
    as_orders = {**fields, "answer_signature": agency.sign("issuer-c", Purpose.ORDERS, answer)}
    agency.evidence.fails("bad_signature", "bank-a", "anchor", **as_orders)


def test_there_must_be_a_channel_and_an_epoch(agency: Agency) -> None:
    other = agency.anchor(ROOT, bank="bank-b")
    agency.evidence.fails("unknown_channel", "bank-b", "anchor", **other)
    agency.evidence.fails("unknown_channel", "bank-a", "anchor", **agency.anchor(ROOT, epoch=2))


def test_evidence_outlives_its_channel(agency: Agency) -> None:
    agency.call("bank-a", "revoke_channel", **PAIR, reason="")
    agency.pass_ms(90 * DAY_MS)
    assert agency.put_anchor("issuer-c", ROOT)["status"] == "MUTUAL"
    agency.open("2")
    assert agency.put_anchor("issuer-c", OTHER, epoch=1)["status"] == "MUTUAL"
    assert agency.put_anchor("issuer-c", b"t" * 32, epoch=2)["status"] == "MUTUAL"


def test_what_a_replaced_key_signed_is_anchored_for_a_while(agency: Agency) -> None:
    fields, late = agency.anchor(ROOT), agency.anchor(OTHER)
    old = agency.business["issuer-c"].public.compressed
    agency.rotate("issuer-c", 900)
    agency.evidence.call("bank-a", "anchor", **fields)
    assert only(agency)["issuerKey"] == old
    agency.chain.height += 10_001
    agency.evidence.fails("bad_signature", "bank-a", "anchor", **late)
    agency.put_anchor("bank-a", OTHER)
    assert only(agency, OTHER)["issuerKey"] == key(900).public.compressed


def test_the_same_again_has_the_first_result(agency: Agency) -> None:
    first = agency.put_anchor("bank-a", ROOT)
    before = agency.evidence.records()
    for who, signed in (("issuer-c", "both"), ("issuer-c", "issuer"), ("bank-a", "bank")):
        assert agency.put_anchor(who, ROOT, signed=signed) == first
        assert agency.evidence.events() == []
    assert agency.evidence.records() == before


@pytest.mark.parametrize("signed", ["bank", "issuer"])
def test_a_claim_becomes_mutual_and_never_less(agency: Agency, signed: str) -> None:
    claim = agency.put_anchor("bank-a", ROOT, signed=signed)
    assert agency.put_anchor("bank-a", ROOT, signed=signed) == claim
    assert (claim["status"], only(agency)["status"]) == ("CLAIMED", "CLAIMED")
    mutual = agency.put_anchor("issuer-c", ROOT)
    assert (mutual["status"], mutual["number"]) == ("MUTUAL", 1)
    assert only(agency)["status"] == "MUTUAL"
    assert agency.put_anchor("bank-a", ROOT, signed=signed) == mutual
    assert only(agency)["number"] == 1


def test_claims_of_both_sides_stand_side_by_side(agency: Agency) -> None:
    agency.put_anchor("bank-a", ROOT, signed="bank")
    agency.put_anchor("issuer-c", ROOT, signed="issuer")
    found = standing(agency)
    assert [item["outcomeRoot"] for item in found["anchors"]] == [b"", b"o" * 32]
    assert not found["isContradicted"]
    agency.put_anchor("bank-a", ROOT)
    assert [item["status"] for item in standing(agency)["anchors"]] == ["MUTUAL"]


def test_an_issuers_count_is_its_own_word_until_the_bank_signs(agency: Agency) -> None:
    agency.put_anchor("issuer-c", ROOT, signed="issuer", count=7)
    agency.put_anchor("bank-a", ROOT)
    assert only(agency)["count"] == 1_000


def test_two_outcomes_of_one_package_contradict_each_other(agency: Agency) -> None:
    agency.put_anchor("bank-a", ROOT, outcome_root=b"a" * 32)
    agency.put_anchor("issuer-c", ROOT, outcome_root=b"b" * 32, signed="issuer")
    agency.put_anchor("issuer-c", ROOT, outcome_root=b"c" * 32)
    found = standing(agency)
    assert [(item["outcomeRoot"][:1], item["status"]) for item in found["anchors"]] == [
        (b"a", "MUTUAL"),
        (b"c", "MUTUAL"),
        (b"b", "CLAIMED"),
    ]
    assert found["isContradicted"]
    assert all(item["isContradicted"] for item in found["anchors"])
    agency.put_anchor("issuer-c", OTHER)
    assert not standing(agency, OTHER)["isContradicted"]


def test_false_answers_of_the_issuer_do_not_veto_the_true_one(agency: Agency) -> None:
    for number in range(20):
        agency.put_anchor("issuer-c", ROOT, signed="issuer", outcome_root=bytes([number]) * 32)
    assert agency.put_anchor("bank-a", ROOT, outcome_root=b"\xff" * 32)["status"] == "MUTUAL"
    assert agency.put_anchor("bank-a", ROOT, signed="bank")["status"] in ("MUTUAL", "CLAIMED")
    assert standing(agency)["isContradicted"]
    assert len(standing(agency)["anchors"]) == 16
    place = {"root": ROOT, "round_number": 0, "outcome_root": b"\xff" * 32}
    [true] = agency.evidence.query("anchor_of", **PAIR, **place)["anchors"]
    assert (true["status"], true["isContradicted"]) == ("MUTUAL", True)


def test_the_bank_cannot_be_kept_from_claiming(agency: Agency) -> None:
    agency.put_anchor("issuer-c", ROOT, signed="issuer", outcome_root=b"x" * 32)
    assert agency.put_anchor("bank-a", ROOT, signed="bank")["number"] == 1
    assert [item["outcomeRoot"] for item in standing(agency)["anchors"]] == [b"", b"x" * 32]


def test_the_allotment_is_a_round_of_its_own(agency: Agency) -> None:
    agency.put_anchor("bank-a", ROOT, signed="bank")
    agency.put_anchor("bank-a", ROOT, round_number=1, outcome_root=b"p" * 32, previous=b"q" * 32)
    assert only(agency)["status"] == "CLAIMED", "an allotment does not take away what stands of round 0"
    agency.put_anchor("bank-a", ROOT)
    first, second = standing(agency), standing(agency, round_number=1)
    assert [item["outcomeRoot"] for item in (*first["anchors"], *second["anchors"])] == [b"o" * 32, b"p" * 32]
    assert not first["isContradicted"]
    assert not second["isContradicted"]
    assert standing(agency, OTHER) is None


def test_the_log_shows_that_nothing_was_left_out(agency: Agency) -> None:
    assert agency.evidence.query("log", **PAIR) == {"count": 0, "head": bytes(32)}
    agency.put_anchor("bank-a", ROOT, signed="bank")
    agency.put_anchor("bank-a", ROOT)
    agency.put_anchor("issuer-c", ROOT, outcome_root=b"b" * 32, signed="issuer")
    agency.put_anchor("issuer-c", OTHER, signed="issuer", count=3)
    agency.put_anchor("issuer-c", OTHER, signed="issuer", count=3)
    entries = agency.evidence.query("anchors", **PAIR)
    assert [(item["number"], item["status"], item["root"][:1]) for item in entries] == [
        (0, "CLAIMED", b"r"),
        (1, "MUTUAL", b"r"),
        (2, "CLAIMED", b"r"),
        (3, "CLAIMED", b"s"),
    ]
    head = bytes(32)
    names = ("root", "roundNumber", "outcomeRoot", "status", "epoch", "count", "previous", "height", "timeMs")
    for entry in entries:
        head = tagged_hash("contract-data", encode([head, [entry[name] for name in names]]))
    assert agency.evidence.query("log", **PAIR) == {"count": 4, "head": head}
    assert agency.evidence.query("anchors", **PAIR, start=1, limit=2) == entries[1:3]
    assert agency.evidence.query("anchors", bank="bank-a", issuer="issuer-f") == []


def test_an_answer_that_is_kept_back_is_missed_by_those_that_follow_it(agency: Agency) -> None:
    """Each entry says all that the issuer signed, so that anybody computes which answer it names as the one before."""
    roots = [bytes([number]) * 32 for number in range(4)]
    previous, signed = FIRST_ANSWER, []
    for root in roots:
        signed.append({"root": root, "previous": previous})
        previous = answer_hash(**PAIR, epoch=1, root=root, round_number=0, outcome_root=b"o" * 32, previous=previous)
    for item in (signed[0], signed[3], signed[1]):
        agency.put_anchor("bank-a", item["root"], previous=item["previous"])
    assert missing(agency) == {signed[3]["previous"]}
    agency.put_anchor("issuer-c", roots[2], previous=signed[2]["previous"], signed="issuer")
    assert missing(agency) == set()


def missing(agency: Agency) -> set[bytes]:
    """Return the ids of answers that others name as the one before, and that the log has not."""
    entries = [item for item in agency.evidence.query("anchors", **PAIR) if item["outcomeRoot"]]
    ids = {
        answer_hash(
            **PAIR,
            epoch=item["epoch"],
            root=item["root"],
            round_number=item["roundNumber"],
            outcome_root=item["outcomeRoot"],
            previous=item["previous"],
        )
        for item in entries
    }
    return {item["previous"] for item in entries} - ids - {FIRST_ANSWER}
