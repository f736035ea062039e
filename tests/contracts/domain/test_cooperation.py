"""cooperation: who may do what; keys, agreements, channels and their epochs, products."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus.ledger.cooperation import agreement_hash
from consensus.ledger.keys import Purpose
from tests.contracts.domain.agency import (
    ACCOUNT_KEYS,
    BUSINESS,
    CHANNEL,
    DAY_MS,
    GRACE_MS,
    VOTE_KEYS,
    Agency,
    key,
    make_agency,
)

HELD = 10_000
"""For so many blocks a replaced business key's signatures count."""


@pytest.fixture
def agency() -> Agency:
    return make_agency()


# -- parties and their keys ------------------------------------------------------------------------------


def test_a_party_is_its_node_and_its_keys(agency: Agency) -> None:
    assert agency.query("party", organisation="bank-a") == {
        "organisation": "bank-a",
        "node": "bank-a",
        "businessKey": BUSINESS["bank-a"].public.compressed,
        "channelKey": CHANNEL["bank-a"].public.compressed,
        "role": "sales",
    }
    assert agency.query("party", organisation="issuer-c")["role"] == "issuer"
    agency.refuses("unknown_party", "party", organisation="issuer-d")


@pytest.mark.parametrize("who", ["permission", "clerk-a"])
def test_only_accounts_with_the_role_register(agency: Agency, who: str) -> None:
    fields = {"node": "bank-a", "business_key": key(900).public.compressed, "channel_key": key(901).public.compressed}
    agency.fails("not_allowed", who, "register_party", **fields)


def test_a_party_has_a_node_of_its_own_organisation(agency: Agency) -> None:
    agency.fails("not_allowed", "bank-a", "register_party", **agency.party("bank-a", "issuer-c"))
    agency.fails("unknown_node", "bank-a", "register_party", **agency.party("bank-a", "nowhere"))
    for admin in ("bank-a", "bank-b", "issuer-c", "issuer-f"):
        if agency.chain.ok(admin, "membership", "remove_node", node="spare-a")["done"]:  # type: ignore[index, call-overload]
            break
    agency.fails("node_state", "bank-a", "register_party", **agency.party("bank-a", "spare-a"))


KEYS = {
    "of an account": ACCOUNT_KEYS["clerk-a"],
    "of its node's votes": VOTE_KEYS["bank-a"],
    "another party's": BUSINESS["issuer-c"],
    "another party's for its channels": CHANNEL["issuer-c"],
    "its own for the other use": CHANNEL["bank-a"],
}


@pytest.mark.parametrize("use", KEYS)
def test_a_key_has_one_owner_and_one_use(agency: Agency, use: str) -> None:
    fields = {**agency.party("bank-a"), "business_key": KEYS[use].public.compressed}
    agency.fails("key_used", "bank-a", "register_party", **fields)


def test_a_key_is_a_key(agency: Agency) -> None:
    agency.fails(
        "bad_key", "bank-a", "register_party", **{**agency.party("bank-a"), "channel_key": b"\2" + b"\xff" * 32}
    )


def test_replaced_keys_are_remembered_and_never_come_back(agency: Agency) -> None:
    began = agency.query("key_at", organisation="bank-a", key=BUSINESS["bank-a"].public.compressed)["fromHeight"]
    agency.rotate("bank-a", 900)
    replaced = agency.query("key_at", organisation="bank-a", key=BUSINESS["bank-a"].public.compressed)
    height = agency.chain.height
    assert replaced == {"use": "business", "fromHeight": began, "untilHeight": height, "isAccepted": True}
    present = agency.query("key_at", organisation="bank-a", key=key(900).public.compressed)
    assert present == {"use": "business", "fromHeight": height, "untilHeight": 0, "isAccepted": True}
    assert agency.query("key_at", organisation="issuer-c", key=key(900).public.compressed) is None
    agency.business["bank-a"] = BUSINESS["bank-a"]
    agency.fails("key_used", "bank-a", "register_party", **agency.party("bank-a"))
    agency.fails(
        "key_used", "bank-b", "register_party", **{**agency.party("bank-b"), "business_key": key(900).public.compressed}
    )


def test_registering_the_same_again_changes_nothing(agency: Agency) -> None:
    before = agency.records()
    agency.register("bank-a")
    assert agency.records() == before


def test_what_a_replaced_key_signed_counts_for_a_while(agency: Agency) -> None:
    signed = [agency.agreement(number) for number in "123"]
    agency.rotate("issuer-c", 900)
    agency.call("bank-a", "apply", **signed[0])
    agency.chain.height += HELD - 2
    agency.call("bank-a", "apply", **signed[1])
    agency.fails("bad_signature", "bank-a", "apply", **signed[2])
    assert not agency.query("key_at", organisation="issuer-c", key=BUSINESS["issuer-c"].public.compressed)["isAccepted"]


def test_a_party_cannot_disown_what_it_signed_by_replacing_its_key_again_and_again(agency: Agency) -> None:
    agency.open()
    signed = agency.agreement("2")
    for number in range(900, 904):
        agency.rotate("issuer-c", number)
    keys = agency.signers()["issuerKeys"]
    assert [keys[0], keys[-1], len(keys)] == [
        key(903).public.compressed,
        BUSINESS["issuer-c"].public.compressed,
        5,
    ]
    more = {**agency.party("issuer-c"), "business_key": key(904).public.compressed}
    agency.fails("too_many_key_changes", "issuer-c", "register_party", **more)
    agency.call("bank-a", "apply", **signed)
    agency.chain.height += HELD
    agency.call("issuer-c", "register_party", **more)
    assert len(agency.signers()["issuerKeys"]) == 2


def test_a_replaced_channel_key_counts_no_more(agency: Agency) -> None:
    agency.call("bank-a", "register_party", **{**agency.party("bank-a"), "channel_key": key(900).public.compressed})
    old = agency.query("key_at", organisation="bank-a", key=CHANNEL["bank-a"].public.compressed)
    assert (old["use"], old["isAccepted"], old["untilHeight"]) == ("channel", False, agency.chain.height)


def test_an_epoch_belongs_to_one_pair_of_nodes(agency: Agency) -> None:
    agency.open(issuers=("issuer-c", "issuer-f"))
    for issuer in ("issuer-c", "issuer-f"):
        agency.fails("channel_open", "bank-a", "register_party", **agency.party("bank-a", "spare-a"))
        agency.call("bank-a", "revoke_channel", bank="bank-a", issuer=issuer, reason="the node moves")
    agency.call("bank-a", "register_party", **agency.party("bank-a", "spare-a"))
    assert agency.channel()["bankNode"] == "bank-a"
    agency.open("2")
    assert (agency.channel()["bankNode"], agency.channel()["epoch"]) == ("spare-a", 2)


def test_an_expired_channel_does_not_keep_a_node(agency: Agency) -> None:
    agency.open()
    agency.pass_ms(30 * DAY_MS)
    agency.call("bank-a", "register_party", **agency.party("bank-a", "spare-a"))


# -- agreements ------------------------------------------------------------------------------------------


def test_the_application_is_the_agreement_that_all_signed(agency: Agency) -> None:
    fields = agency.agreement(issuers=("issuer-c", "issuer-f"))
    application = agency.call("bank-a", "apply", **fields)
    signed = {name: fields[name] for name in fields if name != "signatures"}
    assert application == agreement_hash(bank="bank-a", **signed)
    told = {"application": application, "bank": "bank-a", "issuers": ["issuer-c", "issuer-f"], "number": "1"}
    assert agency.events() == [("application_made", told)]
    shown = agency.query("application", application=application)
    assert (shown["status"], shown["issuers"], shown["graceMs"]) == ("PENDING", ["issuer-c", "issuer-f"], GRACE_MS)
    assert agency.query("applications") == agency.query("pending") == [shown]
    agency.call("permission", "open_channels", application=application)
    assert agency.query("pending") == []
    assert agency.query("application", application=application)["status"] == "OPENED"


@pytest.mark.parametrize("missing", ["bank-a", "issuer-c", "issuer-f"])
def test_an_agreement_without_one_signature_is_none(agency: Agency, missing: str) -> None:
    fields = agency.agreement(issuers=("issuer-c", "issuer-f"))
    del fields["signatures"][missing]
    agency.fails("signature_missing", "bank-a", "apply", **fields)


@pytest.mark.parametrize("altered", ["bank-a", "issuer-c", "issuer-f"])
def test_an_agreement_with_one_signature_altered_is_none(agency: Agency, altered: str) -> None:
    fields = agency.agreement(issuers=("issuer-c", "issuer-f"))
    signature = fields["signatures"][altered]
    fields["signatures"][altered] = signature[:-1] + bytes([signature[-1] ^ 1])
    agency.fails("bad_signature", "bank-a", "apply", **fields)


@pytest.mark.parametrize(
    "changed",
    [
        {"number": "2"},
        {"document": b"d" * 32},
        {"valid_from_ms": 1},
        {"valid_until_ms": 2**50},
        {"grace_ms": GRACE_MS + 1},
    ],
)
def test_signatures_cover_everything_that_was_agreed(agency: Agency, changed: Any) -> None:
    agency.fails("bad_signature", "bank-a", "apply", **{**agency.agreement(), **changed})


def test_signatures_are_by_the_parties_keys_for_this_purpose(agency: Agency) -> None:
    fields = agency.agreement()
    signed = agreement_hash(bank="bank-a", **{name: fields[name] for name in fields if name != "signatures"})
    for wrong in (
        agency.sign("issuer-f", Purpose.AGREEMENT, signed),
        agency.sign("issuer-c", Purpose.TERMS, signed),
        CHANNEL["issuer-c"].sign(Purpose.AGREEMENT, agency.chain.chain_id, signed),
        ACCOUNT_KEYS["issuer-c"].sign(Purpose.AGREEMENT, agency.chain.chain_id, signed),
    ):
        signatures = {**fields["signatures"], "issuer-c": wrong}
        agency.fails("bad_signature", "bank-a", "apply", **{**fields, "signatures": signatures})


def test_another_bank_cannot_use_an_agreement(agency: Agency) -> None:
    agency.fails("signature_missing", "bank-b", "apply", **agency.agreement())
    fields = agency.agreement()
    fields["signatures"]["bank-b"] = fields["signatures"].pop("bank-a")
    agency.fails("bad_signature", "bank-b", "apply", **fields)


@pytest.mark.parametrize(
    "issuers", [("issuer-f", "issuer-c"), ("issuer-c", "issuer-c"), ("bank-a",)], ids=["order", "twice", "itself"]
)
def test_issuers_ascend_each_once_without_the_bank(agency: Agency, issuers: tuple[str, ...]) -> None:
    agency.fails("bad_agreement", "bank-a", "apply", **agency.agreement(issuers=issuers))


def test_agreements_that_are_refused(agency: Agency) -> None:
    extra = agency.agreement()
    extra["signatures"]["issuer-f"] = extra["signatures"]["issuer-c"]
    agency.fails("bad_agreement", "bank-a", "apply", **extra)
    backwards = {**agency.agreement(), "valid_until_ms": agency.chain.time_ms}
    agency.fails("bad_agreement", "bank-a", "apply", **backwards)
    agency.fails("unknown_party", "bank-a", "apply", **agency.agreement(issuers=("issuer-d",)))
    agency.fails("unknown_party", "bank-a", "apply", **agency.agreement(issuers=("bank-b",)))
    agency.fails("not_allowed", "issuer-c", "apply", **agency.agreement())
    agency.fails("not_allowed", "clerk-a", "apply", **agency.agreement())
    agency.fails("bad_arguments", "bank-a", "apply", **agency.agreement(number="a/b"))
    ended = agency.agreement()
    agency.pass_ms(30 * DAY_MS)
    agency.fails("agreement_expired", "bank-a", "apply", **ended)


def test_an_agreement_is_applied_with_once_unless_it_was_refused(agency: Agency) -> None:
    fields = agency.agreement()
    application = agency.call("bank-a", "apply", **fields)
    agency.fails("application_exists", "bank-a", "apply", **fields)
    agency.pass_ms(1)
    agency.fails("application_exists", "bank-a", "apply", **agency.agreement())
    agency.call("permission", "refuse_application", application=application, reason="no licence")
    told = {"application": application, "bank": "bank-a", "reason": "no licence"}
    assert agency.events() == [("application_refused", told)]
    shown = agency.query("application", application=application)
    assert (shown["status"], shown["reason"], agency.query("pending")) == ("REFUSED", "no licence", [])
    agency.fails("application_state", "permission", "refuse_application", application=application, reason="")
    agency.fails("application_state", "permission", "open_channels", application=application)
    assert agency.call("bank-a", "apply", **fields) == application
    assert agency.query("application", application=application)["reason"] == ""
    agency.call("permission", "open_channels", application=application)
    agency.fails("application_exists", "bank-a", "apply", **fields)
    agency.fails("application_state", "permission", "open_channels", application=application)


def test_so_many_applications_of_a_bank_wait(agency: Agency) -> None:
    for number in range(16):
        agency.call("bank-a", "apply", **agency.agreement(str(number)))
    agency.fails("too_many_applications", "bank-a", "apply", **agency.agreement("more"))
    agency.call("bank-b", "apply", **agency.agreement("1", "bank-b"))
    page = agency.query("pending", limit=10)
    last = f"{page[-1]['bank']}/{page[-1]['application'].hex()}\0"
    assert len(page) + len(agency.query("pending", start=last)) == 17


# -- channels --------------------------------------------------------------------------------------------


def test_the_permission_desk_opens_what_was_applied_for(agency: Agency) -> None:
    application = agency.call("bank-a", "apply", **agency.agreement(issuers=("issuer-c", "issuer-f")))
    agency.refuses("unknown_channel", "channel", bank="bank-a", issuer="issuer-c")
    assert agency.call("permission", "open_channels", application=application) == {"issuer-c": 1, "issuer-f": 1}
    told = {"application": application, "bank": "bank-a", "epochs": {"issuer-c": 1, "issuer-f": 1}}
    assert agency.events() == [("channels_opened", told)]
    channel = agency.channel()
    assert channel == {
        "bank": "bank-a",
        "issuer": "issuer-c",
        "epoch": 1,
        "status": "OPEN",
        "agreement": application,
        "bankNode": "bank-a",
        "issuerNode": "issuer-c",
        "openedMs": agency.chain.time_ms,
        "expiresMs": agency.query("application", application=application)["validUntilMs"],
        "revokedMs": 0,
        "graceUntilMs": channel["expiresMs"] + GRACE_MS,
        "revokedBy": "",
        "reason": "",
    }
    assert [item["issuer"] for item in agency.query("channels")] == ["issuer-c", "issuer-f"]
    assert agency.query("channels", start="bank-a/issuer-d", limit=1)[0]["issuer"] == "issuer-f"


@pytest.mark.parametrize("who", ["bank-a", "issuer-c", "clerk-a"])
def test_nobody_else_opens_or_refuses(agency: Agency, who: str) -> None:
    application = agency.call("bank-a", "apply", **agency.agreement())
    agency.fails("not_allowed", who, "open_channels", application=application)
    agency.fails("not_allowed", who, "refuse_application", application=application, reason="")


def test_the_permission_desk_can_do_nothing_else(agency: Agency) -> None:
    agency.open()
    proposal = agency.call("bank-a", "propose_terms", **agency.terms("bank-a"))
    signature = agency.sign_terms("issuer-c", proposal)
    fields = {"business_key": key(900).public.compressed, "channel_key": key(901).public.compressed}
    product = {"product_type": "t", "risk": 1, "currency": "156", "charge_basis_points": 0, "is_open": True}
    refusals: list[tuple[str, str, dict[str, Any]]] = [
        ("not_allowed", "register_party", {"node": "bank-a", **fields}),
        ("not_allowed", "set_interface", {"interface": "C-FUNDS", "node": "issuer-c"}),
        ("not_allowed", "apply", agency.agreement("2")),
        ("not_party", "revoke_channel", {"bank": "bank-a", "issuer": "issuer-c", "reason": ""}),
        ("not_allowed", "set_product", {"product": "000198", "interface": "C-FUNDS", **product}),
        ("not_allowed", "set_nav", {"product": "000198", "date": 20231101, "nav": 1}),
        ("not_party", "propose_terms", agency.terms("bank-a", subject="type:x")),
        ("not_party", "accept_terms", {"proposal": proposal, "signature": signature}),
        ("not_party", "withdraw_terms", {"proposal": proposal}),
        ("signature_missing", "enact_terms", {"proposal": proposal}),
    ]
    for code, method, arguments in refusals:
        agency.fails(code, "permission", method, **arguments)


def test_a_channel_opens_within_its_agreement(agency: Agency) -> None:
    agency.fails("unknown_application", "permission", "open_channels", application=bytes(32))
    coming = agency.agreement(begins_in_ms=DAY_MS)
    application = agency.call("bank-a", "apply", **coming)
    agency.fails("agreement_early", "permission", "open_channels", application=application)
    agency.pass_ms(DAY_MS)
    late = agency.call("bank-a", "apply", **agency.agreement("2"))
    agency.call("permission", "open_channels", application=application)
    agency.pass_ms(30 * DAY_MS)
    agency.fails("agreement_expired", "permission", "open_channels", application=late)


def test_either_party_revokes_and_nobody_else(agency: Agency) -> None:
    agency.open(issuers=("issuer-c", "issuer-f"))
    agency.fails("not_party", "issuer-f", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="")
    agency.fails("not_party", "bank-b", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="")
    agency.fails("not_allowed", "clerk-a", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="")
    agency.fails("unknown_channel", "bank-b", "revoke_channel", bank="bank-b", issuer="issuer-c", reason="")
    agency.call("issuer-c", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="late")
    agency.call("bank-a", "revoke_channel", bank="bank-a", issuer="issuer-f", reason="")
    revoked = agency.channel()
    assert (revoked["status"], revoked["revokedBy"], revoked["reason"]) == ("REVOKED", "issuer-c", "late")
    assert revoked["graceUntilMs"] == revoked["revokedMs"] + GRACE_MS
    assert agency.channel("issuer-f")["revokedBy"] == "bank-a"
    agency.fails("channel_revoked", "bank-a", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="")


def test_grace_never_reaches_beyond_the_agreements(agency: Agency) -> None:
    agency.open()
    ends = agency.channel()["graceUntilMs"]
    agency.pass_ms(30 * DAY_MS + GRACE_MS // 2)
    agency.call("bank-a", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="")
    assert agency.channel()["graceUntilMs"] == ends


def test_epochs_never_fall(agency: Agency) -> None:
    agency.open()
    agency.pass_ms(DAY_MS)
    first_until = agency.channel()["expiresMs"]
    agency.open("2")
    prolonged = agency.channel()
    assert (prolonged["epoch"], prolonged["status"]) == (1, "OPEN")
    assert prolonged["expiresMs"] > first_until + DAY_MS
    assert prolonged["graceUntilMs"] == prolonged["expiresMs"] + GRACE_MS
    agency.call("bank-a", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="")
    agency.open("3")
    reopened = agency.channel()
    assert (reopened["epoch"], reopened["status"], reopened["revokedMs"], reopened["revokedBy"]) == (2, "OPEN", 0, "")
    agency.pass_ms(30 * DAY_MS)
    agency.open("4")
    assert agency.channel()["epoch"] == 3


def test_an_agreement_from_before_a_revocation_does_not_open_the_channel_again(agency: Agency) -> None:
    """What an issuer once signed is no way round its revocation; the clocks of people may differ by ten minutes."""
    agency.open(issuers=("issuer-c", "issuer-f"))
    old = agency.agreement("old", issuers=("issuer-c", "issuer-f"))
    agency.pass_ms(599_000 - 2_000)
    late = agency.agreement("late", begins_in_ms=-590_000)
    agency.pass_ms(5_000)
    agency.call("issuer-c", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="over")
    waiting = agency.call("bank-a", "apply", **old)
    agency.fails("channel_revoked", "permission", "open_channels", application=waiting)
    application = agency.call("bank-a", "apply", **late)
    assert agency.call("permission", "open_channels", application=application) == {"issuer-c": 2}
    assert agency.channel("issuer-f")["epoch"] == 1


def test_a_revocation_is_remembered_when_the_channel_was_opened_anew(agency: Agency) -> None:
    """Neither prolonged nor, once it has expired, opened by what was signed before the revocation."""
    agency.open()
    drawer = [agency.agreement(number, days=365) for number in ("drawer-1", "drawer-2")]
    agency.pass_ms(DAY_MS)
    agency.call("issuer-c", "revoke_channel", bank="bank-a", issuer="issuer-c", reason="over")
    agency.pass_ms(DAY_MS)
    agency.open("short", days=7)
    before = agency.channel()
    for agreement in drawer:
        application = agency.call("bank-a", "apply", **agreement)
        agency.fails("channel_revoked", "permission", "open_channels", application=application)
        assert agency.channel() == before
        agency.pass_ms(30 * DAY_MS)
    agency.open("fresh")
    assert agency.channel()["epoch"] == 3


def test_a_shorter_agreement_does_not_shorten_an_open_channel(agency: Agency) -> None:
    shorter = agency.agreement("short")
    agency.pass_ms(DAY_MS)
    agency.open("long")
    before = agency.channel()
    application = agency.call("bank-a", "apply", **shorter)
    assert agency.call("permission", "open_channels", application=application) == {"issuer-c": 1}
    assert agency.channel() == before


def test_a_suspended_organisation_does_nothing_and_gets_no_channel(agency: Agency) -> None:
    application = agency.call("bank-a", "apply", **agency.agreement())
    for admin in ("bank-a", "bank-b", "issuer-f", "issuer-c"):
        answer: Any = agency.chain.ok(admin, "membership", "suspend_organisation", organisation="issuer-c")
        if answer["done"]:
            break
    agency.fails("organisation_suspended", "permission", "open_channels", application=application)
    agency.fails("organisation_suspended", "issuer-c", "set_nav", product="000198", date=20231101, nav=1)
    agency.fails("organisation_suspended", "issuer-c", "register_party", **agency.party("issuer-c"))


# -- interfaces and products -----------------------------------------------------------------------------


def test_an_interface_leads_to_its_issuers_node(agency: Agency) -> None:
    assert agency.query("interface", interface="C-FUNDS") == {
        "interface": "C-FUNDS",
        "issuer": "issuer-c",
        "node": "issuer-c",
    }
    agency.refuses("unknown_interface", "interface", interface="F-FUNDS")
    agency.fails("interface_taken", "issuer-f", "set_interface", interface="C-FUNDS", node="issuer-f")
    agency.fails("wrong_node", "issuer-f", "set_interface", interface="F-FUNDS", node="issuer-c")
    agency.fails("unknown_party", "issuer-d", "set_interface", interface="D-FUNDS", node="issuer-c")
    agency.fails("not_allowed", "bank-a", "set_interface", interface="A-FUNDS", node="bank-a")


def test_products_are_their_issuers(agency: Agency) -> None:
    shown = agency.query("product", product="000198")
    assert (shown["issuer"], shown["interface"], shown["type"], shown["nav"]) == (
        "issuer-c",
        "C-FUNDS",
        "money-market",
        0,
    )
    agency.offer(risk=3, is_open=False)
    assert [item["risk"] for item in agency.query("products")] == [3]
    fields = {"product_type": "t", "risk": 1, "currency": "156", "charge_basis_points": 0, "is_open": True}
    agency.call("issuer-f", "set_interface", interface="F-FUNDS", node="issuer-f")
    agency.fails("product_taken", "issuer-f", "set_product", product="000198", interface="F-FUNDS", **fields)
    agency.fails("not_allowed", "issuer-f", "set_product", product="F1", interface="C-FUNDS", **fields)
    agency.fails("unknown_interface", "issuer-f", "set_product", product="F1", interface="X", **fields)
    agency.fails("not_allowed", "bank-a", "set_product", product="A1", interface="C-FUNDS", **fields)
    agency.fails("bad_arguments", "issuer-c", "set_product", product="C1", interface="C-FUNDS", **{**fields, "risk": 6})
    agency.refuses("unknown_product", "product", product="F1")


def test_the_net_asset_value_of_a_day_is_said_once(agency: Agency) -> None:
    agency.call("issuer-c", "set_nav", product="000198", date=20231102, nav=10_100)
    before = agency.records()
    agency.call("issuer-c", "set_nav", product="000198", date=20231102, nav=10_100)
    assert agency.records() == before
    agency.fails("nav_exists", "issuer-c", "set_nav", product="000198", date=20231102, nav=10_101)
    agency.call("issuer-c", "set_nav", product="000198", date=20231101, nav=9_900)
    shown = agency.query("product", product="000198")
    assert (shown["nav"], shown["navDate"]) == (10_100, 20231102)
    agency.offer(risk=2)
    assert agency.query("product", product="000198")["nav"] == 10_100
    agency.fails("not_allowed", "issuer-f", "set_nav", product="000198", date=20231103, nav=1)
    agency.fails("unknown_product", "issuer-c", "set_nav", product="X", date=20231103, nav=1)


def test_a_net_asset_value_is_of_a_day_that_has_come(agency: Agency) -> None:
    """Else a slip of the pen would be the latest one for years. A day counts once it has begun anywhere on earth."""
    days = [datetime(2024, 2, 28, 9, 59, 30), datetime(2024, 12, 31, 10), datetime(2027, 7, 9), datetime(2100, 3, 1)]
    for number, now in enumerate(days, 1):
        agency.chain.time_ms = int(now.replace(tzinfo=UTC).timestamp()) * 1_000
        latest = int((now + timedelta(hours=14)).strftime("%Y%m%d"))
        too_late = int((now + timedelta(hours=14, days=1)).strftime("%Y%m%d"))
        for date in (too_late, 99_991_231):
            agency.fails("bad_date", "issuer-c", "set_nav", product="000198", date=date, nav=number)
        agency.call("issuer-c", "set_nav", product="000198", date=latest, nav=number)
