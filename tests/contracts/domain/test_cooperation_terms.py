"""cooperation: terms change only by what both sides signed, version by version, through the permission desk."""

from typing import Any

import pytest

from consensus.ledger.cooperation import terms_hash
from consensus.ledger.keys import Purpose
from tests.contracts.domain.agency import DAY_MS, TERMS, Agency, make_agency
from tests.contracts.support import START_MS

SUBJECT = {"bank": "bank-a", "issuer": "issuer-c", "subject": "product:000198"}


@pytest.fixture
def agency() -> Agency:
    return make_agency()


def in_force(agency: Agency, product: str = "000198") -> Any:
    return agency.query("terms", bank="bank-a", product=product)


def test_terms_take_both_signatures_and_the_permission_desk(agency: Agency) -> None:
    assert in_force(agency) is None
    fields = agency.terms("bank-a")
    proposal = agency.call("bank-a", "propose_terms", **fields)
    told = {"proposal": proposal, **SUBJECT, "version": 1}
    assert agency.events() == [("terms_proposed", {**told, "proposer": "bank-a"})]
    signed = {name: fields[name] for name in fields if name != "signature"}
    assert proposal == terms_hash(version=1, **signed)
    assert [item["status"] for item in agency.query("proposals")] == ["PROPOSED"]
    agency.fails("signature_missing", "permission", "enact_terms", proposal=proposal)
    agency.call("issuer-c", "accept_terms", proposal=proposal, signature=agency.sign_terms("issuer-c", proposal))
    assert agency.events() == [("terms_accepted", told)]
    assert agency.query("proposal", proposal=proposal)["status"] == "ACCEPTED"
    assert in_force(agency) is None
    assert agency.call("permission", "enact_terms", proposal=proposal) == 1
    assert agency.events() == [("terms_enacted", told)]
    shown = in_force(agency)
    assert {name: shown[name] for name in TERMS} == TERMS
    assert (shown["version"], shown["proposal"], sorted(shown["signatures"])) == (1, proposal, ["bank-a", "issuer-c"])
    assert agency.query("terms_version", **SUBJECT, version=1) == shown
    agency.refuses("unknown_terms", "terms_version", **SUBJECT, version=2)
    assert agency.query("proposals") == []
    agency.refuses("unknown_proposal", "proposal", proposal=proposal)
    agency.fails("unknown_proposal", "permission", "enact_terms", proposal=proposal)


def test_either_side_proposes_and_the_other_accepts(agency: Agency) -> None:
    proposal = agency.call("issuer-c", "propose_terms", **agency.terms("issuer-c"))
    signature = agency.sign_terms("issuer-c", proposal)
    agency.fails("not_allowed", "issuer-c", "accept_terms", proposal=proposal, signature=signature)
    agency.fails("not_party", "issuer-f", "accept_terms", proposal=proposal, signature=signature)
    agency.fails("not_allowed", "clerk-a", "accept_terms", proposal=proposal, signature=signature)
    agency.fails("bad_signature", "bank-a", "accept_terms", proposal=proposal, signature=signature)
    mine = agency.sign_terms("bank-a", proposal)
    agency.call("bank-a", "accept_terms", proposal=proposal, signature=mine)
    before = agency.records()
    agency.call("bank-a", "accept_terms", proposal=proposal, signature=mine)
    assert agency.records() == before
    assert agency.events() == []


@pytest.mark.parametrize("who", ["bank-a", "issuer-c", "clerk-a"])
def test_nobody_else_enacts(agency: Agency, who: str) -> None:
    proposal = agency.call("bank-a", "propose_terms", **agency.terms("bank-a"))
    agency.call("issuer-c", "accept_terms", proposal=proposal, signature=agency.sign_terms("issuer-c", proposal))
    agency.fails("not_allowed", who, "enact_terms", proposal=proposal)


@pytest.mark.parametrize(
    "changed",
    [
        {"terms": {**TERMS, "ageMin": 17}},
        {"terms": {**TERMS, "amountMax": 10**9}},
        {"subject": "type:money-market"},
        {"effective_ms": START_MS + 1},
        {"expires_ms": START_MS + 366 * DAY_MS},
    ],
)
def test_a_signature_covers_all_of_the_terms(agency: Agency, changed: Any) -> None:
    agency.fails("bad_signature", "bank-a", "propose_terms", **{**agency.terms("bank-a"), **changed})


def test_a_signature_counts_for_one_version_and_one_pair(agency: Agency) -> None:
    agency.fails("bad_signature", "bank-a", "propose_terms", **agency.terms("bank-a", version=2))
    again = agency.terms("bank-a")
    agency.enact()
    agency.fails("bad_signature", "bank-a", "propose_terms", **again)
    other = {**agency.terms("bank-a", subject="type:x"), "issuer": "issuer-f"}
    agency.fails("bad_signature", "bank-a", "propose_terms", **other)
    agency.fails("bad_signature", "bank-a", "propose_terms", **agency.terms("issuer-c", version=2))


def test_the_proposer_signs_for_itself(agency: Agency) -> None:
    fields = agency.terms("bank-a")
    agency.fails("not_party", "bank-b", "propose_terms", **fields)
    agency.fails("not_allowed", "clerk-a", "propose_terms", **fields)
    agency.fails("bad_signature", "issuer-c", "propose_terms", **fields)
    agency.fails("unknown_party", "bank-a", "propose_terms", **{**fields, "issuer": "issuer-d"})
    agency.fails("unknown_party", "bank-a", "propose_terms", **{**fields, "issuer": "bank-b"})
    agency.fails("unknown_party", "issuer-c", "propose_terms", **{**fields, "bank": "issuer-f"})
    agency.fails("unknown_product", "bank-a", "propose_terms", **agency.terms("bank-a", subject="product:X"))
    foreign = {**agency.terms("bank-a"), "issuer": "issuer-f"}
    agency.fails("unknown_product", "bank-a", "propose_terms", **foreign)


BAD_TERMS: dict[str, dict[str, Any]] = {
    "a field more": {"extra": 1},
    "a flag that is a number": {"needsIdentity": 1},
    "an age that is a flag": {"ageMin": True},
    "an age below 0": {"ageMin": -1},
    "an age beyond all": {"ageMin": 151},
    "a text for an amount": {"amountMin": "1"},
    "an amount of 17 digits": {"amountMax": 10**16},
    "a range that is none": {"amountMin": 2, "amountMax": 1},
    "no kinds": {"kinds": []},
    "a kind twice": {"kinds": ["022", "022"]},
    "kinds out of order": {"kinds": ["024", "022"]},
    "a kind that is none": {"kinds": ["022", "999"]},
    "a kind that is a number": {"kinds": [22]},
    "a text for kinds": {"kinds": "022"},
    "a list in kinds": {"kinds": [["022"]]},
}


@pytest.mark.parametrize("case", BAD_TERMS)
def test_terms_have_their_fields_and_ranges(agency: Agency, case: str) -> None:
    agency.fails("bad_terms", "bank-a", "propose_terms", **agency.terms("bank-a", **BAD_TERMS[case]))


@pytest.mark.parametrize("field", TERMS)
def test_terms_lack_no_field(agency: Agency, field: str) -> None:
    fields = agency.terms("bank-a")
    del fields["terms"][field]
    agency.fails("bad_terms", "bank-a", "propose_terms", **fields)


def test_terms_have_a_time(agency: Agency) -> None:
    now = agency.chain.time_ms
    backwards = agency.terms("bank-a", effective_ms=now + 9, expires_ms=now + 9)
    agency.fails("bad_terms", "bank-a", "propose_terms", **backwards)
    agency.fails("terms_expired", "bank-a", "propose_terms", **agency.terms("bank-a", expires_ms=now))
    short = agency.call("bank-a", "propose_terms", **agency.terms("bank-a", expires_ms=now + DAY_MS))
    signature = agency.sign_terms("issuer-c", short)
    agency.call("issuer-c", "accept_terms", proposal=short, signature=signature)
    agency.pass_ms(DAY_MS)
    agency.fails("terms_expired", "issuer-c", "accept_terms", proposal=short, signature=signature)
    agency.fails("terms_expired", "permission", "enact_terms", proposal=short)


def test_of_two_proposals_for_one_version_the_first_enacted_wins(agency: Agency) -> None:
    agency.enact()
    mine = agency.call("bank-a", "propose_terms", **agency.terms("bank-a", 2, ageMin=20))
    theirs = agency.call("issuer-c", "propose_terms", **agency.terms("issuer-c", 2, ageMin=21))
    agency.call("issuer-c", "accept_terms", proposal=mine, signature=agency.sign_terms("issuer-c", mine))
    agency.call("bank-a", "accept_terms", proposal=theirs, signature=agency.sign_terms("bank-a", theirs))
    assert agency.call("permission", "enact_terms", proposal=theirs) == 2
    assert in_force(agency)["ageMin"] == 21
    agency.fails("terms_superseded", "permission", "enact_terms", proposal=mine)
    signature = agency.sign_terms("issuer-c", mine)
    agency.fails("terms_superseded", "issuer-c", "accept_terms", proposal=mine, signature=signature)
    assert [item["status"] for item in agency.query("proposals")] == ["VOID"]
    agency.call("issuer-c", "withdraw_terms", proposal=mine)
    assert agency.query("proposals") == []
    assert agency.query("terms_version", **SUBJECT, version=1)["ageMin"] == 18


def test_the_identical_proposal_is_made_once(agency: Agency) -> None:
    proposal = agency.call("bank-a", "propose_terms", **agency.terms("bank-a"))
    agency.fails("proposal_exists", "bank-a", "propose_terms", **agency.terms("bank-a"))
    agency.fails("proposal_exists", "issuer-c", "propose_terms", **agency.terms("issuer-c"))
    agency.fails("not_party", "issuer-f", "withdraw_terms", proposal=proposal)
    agency.call("bank-a", "withdraw_terms", proposal=proposal)
    withdrawn = {"proposal": proposal, "organisation": "bank-a", **SUBJECT, "version": 1}
    assert agency.events() == [("terms_withdrawn", withdrawn)]
    agency.fails("unknown_proposal", "bank-a", "withdraw_terms", proposal=proposal)
    assert agency.call("bank-a", "propose_terms", **agency.terms("bank-a")) == proposal


def test_so_many_proposals_of_a_party_are_open(agency: Agency) -> None:
    made = [agency.call("bank-a", "propose_terms", **agency.terms("bank-a", ageMin=age)) for age in range(64)]
    more = agency.terms("bank-a", ageMin=64)
    agency.fails("too_many_proposals", "bank-a", "propose_terms", **more)
    agency.call("issuer-c", "propose_terms", **agency.terms("issuer-c", ageMin=65))
    agency.call("bank-a", "withdraw_terms", proposal=made[7])
    agency.call("bank-a", "propose_terms", **more)


def test_a_signature_of_a_key_long_replaced_does_not_enact(agency: Agency) -> None:
    proposal = agency.call("bank-a", "propose_terms", **agency.terms("bank-a"))
    agency.call("issuer-c", "accept_terms", proposal=proposal, signature=agency.sign_terms("issuer-c", proposal))
    agency.rotate("bank-a", 900)
    agency.chain.height += 10_001
    agency.fails("bad_signature", "permission", "enact_terms", proposal=proposal)


def test_the_proposal_is_signed_for_its_purpose(agency: Agency) -> None:
    proposal = agency.call("bank-a", "propose_terms", **agency.terms("bank-a"))
    wrong = agency.sign("issuer-c", Purpose.AGREEMENT, proposal)
    agency.fails("bad_signature", "issuer-c", "accept_terms", proposal=proposal, signature=wrong)


def test_the_newest_version_that_has_begun_is_in_force(agency: Agency) -> None:
    agency.enact(1)
    now = agency.chain.time_ms
    agency.enact(2, ageMin=20, effective_ms=now + DAY_MS, expires_ms=now + 3 * DAY_MS)
    agency.enact(3, ageMin=21, effective_ms=now + 2 * DAY_MS, expires_ms=now + 3 * DAY_MS)
    ages = []
    for _ in range(4):
        found = in_force(agency)
        ages.append(found and found["ageMin"])
        agency.pass_ms(DAY_MS)
    assert ages == [18, 20, 21, None], "an older version does not come back"


def test_so_many_versions_are_still_to_begin(agency: Agency) -> None:
    later = agency.chain.time_ms + DAY_MS
    for version in range(1, 9):
        agency.enact(version, effective_ms=later)
    proposal = agency.call("bank-a", "propose_terms", **agency.terms("bank-a", 9, effective_ms=later))
    agency.call("issuer-c", "accept_terms", proposal=proposal, signature=agency.sign_terms("issuer-c", proposal))
    agency.fails("too_many_versions", "permission", "enact_terms", proposal=proposal)
    agency.pass_ms(DAY_MS)
    assert agency.call("permission", "enact_terms", proposal=proposal) == 9


def test_a_products_own_terms_go_before_those_of_its_type(agency: Agency) -> None:
    agency.offer("C2")
    agency.enact(subject="type:money-market", ageMin=30)
    assert (in_force(agency)["ageMin"], in_force(agency, "C2")["ageMin"]) == (30, 30)
    agency.enact(subject="product:000198", ageMin=18)
    assert (in_force(agency)["subject"], in_force(agency, "C2")["subject"]) == ("product:000198", "type:money-market")
    agency.offer("C2", product_type="bond")
    assert in_force(agency, "C2") is None
    assert agency.query("terms", bank="bank-b", product="000198") is None
    agency.refuses("unknown_product", "terms", bank="bank-a", product="X")
