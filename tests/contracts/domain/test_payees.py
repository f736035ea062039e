"""payees: who may do what about merchants, platforms, environments, measurements; keys, epochs, queries on record."""

from typing import Any

import pytest

from consensus.ledger import payees as ledger
from consensus.ledger.ids import ZERO_HASH
from consensus.ledger.keys import Purpose
from tests.contracts.domain.payees import ACCOUNT_KEYS, MEASUREMENT, Payees, identity, key, make_payees


@pytest.fixture
def payees() -> Payees:
    return make_payees()


def flipped(data: bytes) -> bytes:
    """The bytes with the last bit of them turned."""
    return data[:-1] + bytes([data[-1] ^ 1])


# -- merchants -------------------------------------------------------------------------------------------


def test_a_merchant_is_an_identity_and_its_key(payees: Payees) -> None:
    signed = ledger.merchant_hash(identity(0), key(100).public.compressed)
    assert payees.query("merchant", identity=identity(0)) == {
        "key": key(100).public.compressed,
        "keyNumber": 0,
        "consent": False,
        "consentNumber": 0,
        "servers": [],
        "changes": 1,
        "log": ledger.log_hash(ZERO_HASH, 1, signed),
    }
    fields = {"identity": identity(0), "change": 1, "signed": signed, "key": key(100).public.compressed}
    assert payees.events() == [("merchant_registered", fields)]
    payees.refuses("unknown_merchant", "merchant", identity=identity(1))


@pytest.mark.parametrize("carrier", ["merchant-m", "wallet-p", "wallet-q"])
def test_any_carrier_brings_what_a_merchant_signed(payees: Payees, carrier: str) -> None:
    payees.call(carrier, "register_merchant", **payees.registration(1))
    payees.call(carrier, "set_consent", **payees.consent(merchant=1))
    payees.call(carrier, "replace_merchant_key", **payees.key_change(key(900), merchant=1))
    assert payees.query("merchant", identity=identity(1))["changes"] == 3


@pytest.mark.parametrize("stranger", ["bank-a", "permission", "user-b", "clerk-p"])
def test_nobody_else_brings_it(payees: Payees, stranger: str) -> None:
    payees.call("wallet-p", "add_record", **payees.record())
    payees.fails("not_allowed", stranger, "register_merchant", **payees.registration(1))
    payees.fails("not_allowed", stranger, "set_consent", **payees.consent())
    payees.fails("not_allowed", stranger, "replace_merchant_key", **payees.key_change(key(900)))
    payees.fails("not_allowed", stranger, "remove_record", **payees.removal(2, by="merchant"))


def test_an_identity_is_registered_once(payees: Payees) -> None:
    payees.fails("merchant_exists", "merchant-m", "register_merchant", **payees.registration())
    payees.merchants[identity(0)] = key(900)
    payees.fails("merchant_exists", "merchant-m", "register_merchant", **payees.registration())


@pytest.mark.parametrize("field", ["identity", "key", "signature"])
def test_a_merchant_shows_that_it_holds_its_key(payees: Payees, field: str) -> None:
    """A registration with any part of another one is nobody's."""
    fields = {**payees.registration(1), field: payees.registration(2)[field]}
    payees.fails("bad_signature", "merchant-m", "register_merchant", **fields)


def test_a_registration_of_another_chain_is_none(payees: Payees) -> None:
    who, signer = identity(1), key(101)
    payload = ledger.merchant_hash(who, signer.public.compressed)
    signature = signer.sign(Purpose.PAYEE_MERCHANT, b"x" * 32, payload)  # type: ignore[arg-type]
    fields = {**payees.registration(1), "signature": signature}
    payees.fails("bad_signature", "merchant-m", "register_merchant", **fields)


def test_a_key_is_a_key(payees: Payees) -> None:
    nothing = b"\2" + b"\xff" * 32
    payees.fails("bad_key", "merchant-m", "register_merchant", **{**payees.registration(1), "key": nothing})
    payees.fails("bad_key", "wallet-p", "register_platform", key=nothing)
    payees.fails("bad_key", "merchant-m", "replace_merchant_key", **{**payees.key_change(key(900)), "new_key": nothing})
    for field in ("exchange_key", "signing_key"):
        fields = {**payees.environment("spare", 900), field: nothing}
        payees.fails("bad_key", "bank-a", "register_environment", **fields)


def test_old_and_new_key_sign_a_replacement(payees: Payees) -> None:
    right, other = payees.key_change(key(900)), payees.key_change(key(901))
    for field in ("old_signature", "new_signature", "new_key"):
        payees.fails("bad_signature", "merchant-m", "replace_merchant_key", **{**right, field: other[field]})
    swapped = {"old_signature": right["new_signature"], "new_signature": right["old_signature"]}
    payees.fails("bad_signature", "merchant-m", "replace_merchant_key", **{**right, **swapped})
    payees.call("merchant-m", "replace_merchant_key", **right)
    found = payees.query("merchant", identity=identity(0))
    assert (found["key"], found["keyNumber"], found["changes"]) == (key(900).public.compressed, 1, 2)
    signed = ledger.merchant_change_hash(identity(0), 1, key(900).public.compressed)
    event = {"change": 2, "signed": signed, "identity": identity(0), "keyNumber": 1}
    assert payees.events() == [("merchant_key_replaced", {**event, "key": key(900).public.compressed})]


@pytest.mark.parametrize("number", [2, 3])
def test_key_replacements_are_counted(payees: Payees, number: int) -> None:
    fields = payees.key_change(key(900), number)
    payees.fails("wrong_number", "merchant-m", "replace_merchant_key", **fields)


def test_a_replacement_serves_once(payees: Payees) -> None:
    first = payees.key_change(key(900))
    payees.call("merchant-m", "replace_merchant_key", **first)
    payees.fails("wrong_number", "merchant-m", "replace_merchant_key", **first)
    payees.fails("key_used", "merchant-m", "replace_merchant_key", **{**first, "number": 2})


def test_a_replaced_key_signs_nothing_more(payees: Payees) -> None:
    consent, record = payees.consent(), payees.record()
    payees.call("wallet-p", "add_record", **record)
    removal, update = payees.removal(2, by="merchant"), payees.record(2)
    payees.call("merchant-m", "replace_merchant_key", **payees.key_change(key(900)))
    payees.fails("bad_signature", "merchant-m", "set_consent", **consent)
    payees.fails("bad_signature", "merchant-m", "remove_record", **removal)
    payees.fails("bad_signature", "wallet-p", "add_record", **update)
    payees.merchants[identity(0)] = key(900)
    payees.call("merchant-m", "set_consent", **payees.consent())
    payees.call("wallet-p", "add_record", **payees.record(2))


def test_consent_is_given_and_taken_back(payees: Payees) -> None:
    given = payees.consent()
    payees.call("merchant-m", "set_consent", **given)
    signed = ledger.consent_hash(identity(0), 1, True)
    event = {"identity": identity(0), "change": 2, "signed": signed, "consent": True, "consentNumber": 1}
    assert payees.events() == [("consent_set", event)]
    payees.call("merchant-m", "set_consent", **payees.consent(2, False))
    payees.fails("wrong_number", "merchant-m", "set_consent", **given)
    payees.fails("wrong_number", "merchant-m", "set_consent", **payees.consent(4))
    found = payees.query("merchant", identity=identity(0))
    assert (found["consent"], found["consentNumber"], found["changes"]) == (False, 2, 3)


def test_only_the_merchant_consents(payees: Payees) -> None:
    payees.call("merchant-m", "register_merchant", **payees.registration(1))
    right = payees.consent()
    wrong: list[dict[str, Any]] = [
        {"is_given": False},
        {"identity": identity(1)},
        {"signature": flipped(right["signature"])},
        {"signature": payees.sign(key(100), Purpose.PAYEE_CODE, ledger.consent_hash(identity(0), 1, True))},
        {"signature": payees.sign(key(101), Purpose.PAYEE_MERCHANT, ledger.consent_hash(identity(0), 1, True))},
    ]
    for changed in wrong:
        payees.fails("bad_signature", "merchant-m", "set_consent", **{**right, **changed})
    payees.fails("unknown_merchant", "merchant-m", "set_consent", **payees.consent(merchant=2))
    unknown = payees.key_change(key(900), merchant=2)
    payees.fails("unknown_merchant", "merchant-m", "replace_merchant_key", **unknown)


# -- keys ------------------------------------------------------------------------------------------------

USED = {
    "a merchant's": key(100),
    "a platform's": key(200),
    "an environment's for exchange": key(300),
    "an environment's for signing": key(301),
    "an account's": ACCOUNT_KEYS["user-b"],
    "one that a merchant had": key(800),
    "one that a platform had": key(801),
    "one that an environment had": key(802),
}


@pytest.mark.parametrize("used", USED)
def test_a_key_serves_one_use_for_ever(payees: Payees, used: str) -> None:
    payees.merchants[identity(1)] = key(800)
    payees.call("merchant-m", "register_merchant", **payees.registration(1))
    payees.call("merchant-m", "replace_merchant_key", **payees.key_change(key(810), merchant=1))
    for number in (801, 811):
        payees.call("wallet-q", "register_platform", key=key(number).public.compressed)
    payees.call("bank-a", "register_environment", **payees.environment("spare", 802))
    payees.call("bank-a", "withdraw_environment", name="spare")

    payees.merchants[identity(1)] = key(810)
    taken = USED[used]
    payees.fails("key_used", "merchant-m", "replace_merchant_key", **payees.key_change(taken, 2, merchant=1))
    payees.fails("key_used", "wallet-q", "register_platform", key=taken.public.compressed)
    for field in ("exchange_key", "signing_key"):
        fields = {**payees.environment("spare", 904), field: taken.public.compressed}
        payees.fails("key_used", "bank-a", "register_environment", **fields)
    payees.merchants[identity(2)] = taken
    payees.fails("key_used", "merchant-m", "register_merchant", **payees.registration(2))


def test_an_environment_has_two_keys(payees: Payees) -> None:
    fields = payees.environment("spare", 900)
    fields["signing_key"] = fields["exchange_key"]
    payees.fails("key_used", "bank-a", "register_environment", **fields)


# -- platforms and epochs --------------------------------------------------------------------------------


def test_a_platform_is_the_organisation_of_who_registers_it(payees: Payees) -> None:
    expected = {"server": "wallet-p", "key": key(200).public.compressed, "epoch": 1}
    assert payees.query("platform", server="wallet-p") == expected
    assert [item["server"] for item in payees.query("platforms")] == ["wallet-p", "wallet-q"]
    assert [item["server"] for item in payees.query("platforms", start="wallet-q")] == ["wallet-q"]
    payees.refuses("unknown_platform", "platform", server="merchant-m")


@pytest.mark.parametrize("stranger", ["bank-a", "permission", "merchant-m", "clerk-p"])
def test_only_a_wallet_acts_for_a_platform(payees: Payees, stranger: str) -> None:
    payees.call("wallet-p", "add_record", **payees.record())
    payees.fails("not_allowed", stranger, "register_platform", key=key(900).public.compressed)
    payees.fails("not_allowed", stranger, "put_wraps", **payees.wraps(1, "bank-a"))
    payees.fails("not_allowed", stranger, "add_record", **payees.record(2))
    payees.fails("not_allowed", stranger, "reencrypt_record", **payees.reencryption(2, 1))


def test_a_platforms_key_is_replaced(payees: Payees) -> None:
    old, wraps = payees.record(), payees.wraps(2, "bank-a")
    before = payees.records()
    payees.call("wallet-p", "register_platform", key=key(200).public.compressed)
    assert (payees.records(), payees.events()) == (before, [])
    payees.call("wallet-p", "register_platform", key=key(900).public.compressed)
    event = {"server": "wallet-p", "key": key(900).public.compressed, "epoch": 1}
    assert payees.events() == [("platform_registered", event)]
    payees.fails("bad_signature", "wallet-p", "add_record", **old)
    payees.fails("bad_signature", "wallet-p", "put_wraps", **wraps)
    payees.platforms["wallet-p"] = key(900)
    payees.call("wallet-p", "add_record", **payees.record())
    assert payees.query("platform", server="wallet-p")["epoch"] == 1


def test_epochs_begin_one_after_the_other(payees: Payees) -> None:
    payees.fails("wrong_epoch", "wallet-p", "put_wraps", **payees.wraps(3, "bank-a"))
    payees.call("wallet-p", "put_wraps", **payees.wraps(2, "bank-a"))
    assert payees.events() == [
        ("epoch_begun", {"server": "wallet-p", "epoch": 2}),
        ("wraps_put", {"server": "wallet-p", "epoch": 2, "environments": ["bank-a"]}),
    ]
    payees.fails("wrong_epoch", "wallet-p", "put_wraps", **payees.wraps(1, "bank-a"))
    payees.call("wallet-p", "put_wraps", **payees.wraps(2, "issuer-c"))
    assert payees.events() == [("wraps_put", {"server": "wallet-p", "epoch": 2, "environments": ["issuer-c"]})]
    assert payees.query("platform", server="wallet-p")["epoch"] == 2
    assert payees.query("platform", server="wallet-q")["epoch"] == 1
    for epoch, server in ((1, "wallet-p"), (2, "wallet-p"), (1, "wallet-q")):
        fields = payees.wraps(epoch, "bank-a", "issuer-c", server=server)
        expected = [
            {"environment": name, "wrap": fields["wraps"][name], "signature": fields["signatures"][name]}
            for name in ("bank-a", "issuer-c")
        ]
        assert payees.query("wraps", server=server, epoch=epoch) == expected
    assert payees.query("wraps", server="wallet-q", epoch=2) == []


def test_the_first_epoch_is_1(payees: Payees) -> None:
    fresh = Payees()
    fresh.call("permission", "allow_measurement", measurement=MEASUREMENT, note="")
    fresh.call("bank-a", "register_environment", **fresh.environment())
    fresh.fails("unknown_platform", "wallet-p", "put_wraps", **fresh.wraps(1, "bank-a"))
    fresh.call("wallet-p", "register_platform", key=key(200).public.compressed)
    fresh.fails("wrong_epoch", "wallet-p", "put_wraps", **fresh.wraps(2, "bank-a"))
    fresh.fails("bad_arguments", "wallet-p", "put_wraps", **fresh.wraps(0, "bank-a"))
    fresh.fails("bad_arguments", "wallet-p", "put_wraps", **fresh.wraps(1))
    assert fresh.query("platform", server="wallet-p")["epoch"] == 0


def test_the_platform_signs_each_wrap(payees: Payees) -> None:
    right = payees.wraps(2, "bank-a", "issuer-c")
    alone, early = payees.wraps(2, "bank-a"), payees.wraps(1, "bank-a", "issuer-c")
    signatures = right["signatures"]
    swapped = {"bank-a": signatures["issuer-c"], "issuer-c": signatures["bank-a"]}
    wrong: list[dict[str, Any]] = [
        {"signatures": alone["signatures"]},
        {"wraps": alone["wraps"]},
        {"signatures": {}},
        {"signatures": swapped},
        {"signatures": early["signatures"]},
        {"wraps": early["wraps"]},
        {"signatures": payees.wraps(2, "bank-a", "issuer-c", server="wallet-q")["signatures"]},
        {"signatures": {**signatures, "bank-a": flipped(signatures["bank-a"])}},
    ]
    for changed in wrong:
        payees.fails("bad_signature", "wallet-p", "put_wraps", **{**right, **changed})
    payees.call("wallet-p", "put_wraps", **right)


def test_a_wrap_goes_to_environments_in_service_alone(payees: Payees) -> None:
    payees.fails("unknown_environment", "wallet-p", "put_wraps", **payees.wraps(1, "nowhere"))
    payees.call("bank-a", "withdraw_environment", name="bank-a")
    payees.fails("environment_withdrawn", "wallet-p", "put_wraps", **payees.wraps(1, "bank-a"))
    payees.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    payees.fails("unknown_measurement", "wallet-p", "put_wraps", **payees.wraps(2, "issuer-c"))


def test_32_environments_have_an_epoch(payees: Payees) -> None:
    names = [f"spare-{number:02d}" for number in range(31)]
    for number, name in enumerate(names):
        payees.call("bank-a", "register_environment", **payees.environment(name, 1_000 + 2 * number))
    payees.fails("too_many_environments", "wallet-p", "put_wraps", **payees.wraps(1, *names))
    payees.call("wallet-p", "put_wraps", **payees.wraps(1, *names[1:]))
    payees.fails("too_many_environments", "wallet-p", "put_wraps", **payees.wraps(1, names[0]))
    payees.call("wallet-p", "put_wraps", **payees.wraps(1, "bank-a", names[30]))
    assert len(payees.query("wraps", server="wallet-p", epoch=1)) == 32
    payees.fails("bad_arguments", "wallet-p", "put_wraps", **payees.wraps(2, "bank-a", "issuer-c", *names))
    payees.call("wallet-p", "put_wraps", **payees.wraps(2, "bank-a", *names))
    assert payees.receipt is not None
    assert payees.receipt.steps < 100_000


# -- environments and measurements -----------------------------------------------------------------------


def test_an_environment_is_its_organisations(payees: Payees) -> None:
    found = payees.query("environment", name="bank-a")
    assert found == {
        "environment": "bank-a",
        "organisation": "bank-a",
        "exchangeKey": key(300).public.compressed,
        "signingKey": key(301).public.compressed,
        "measurement": MEASUREMENT,
        "status": "ACTIVE",
    }
    assert [item["environment"] for item in payees.query("environments")] == ["bank-a", "issuer-c"]
    payees.refuses("unknown_environment", "environment", name="nowhere")
    payees.fails("unknown_environment", "bank-a", "withdraw_environment", name="nowhere")
    payees.fails("not_allowed", "issuer-c", "withdraw_environment", name="bank-a")
    payees.fails("not_allowed", "wallet-p", "withdraw_environment", name="bank-a")
    payees.fails("not_allowed", "wallet-p", "register_environment", **payees.environment("spare", 900))
    payees.call("bank-a", "withdraw_environment", name="bank-a")
    assert payees.events() == [("environment_withdrawn", {"environment": "bank-a", "organisation": "bank-a"})]
    assert payees.query("environment", name="bank-a") == {**found, "status": "WITHDRAWN"}
    payees.fails("environment_withdrawn", "bank-a", "withdraw_environment", name="bank-a")


def test_a_name_in_service_is_taken(payees: Payees) -> None:
    fields = payees.environment("bank-a", 900)
    payees.fails("environment_exists", "bank-a", "register_environment", **fields)
    payees.call("bank-a", "withdraw_environment", name="bank-a")
    payees.fails("environment_exists", "issuer-c", "register_environment", **fields)
    payees.fails("key_used", "bank-a", "register_environment", **payees.environment("bank-a"))
    payees.call("bank-a", "register_environment", **fields)
    event = {"environment": "bank-a", "organisation": "bank-a", "measurement": MEASUREMENT}
    assert payees.events() == [("environment_registered", event)]
    assert payees.query("environment", name="bank-a")["signingKey"] == key(901).public.compressed


def test_only_the_permission_desk_keeps_the_allow_list(payees: Payees) -> None:
    other = b"m" * 32
    for stranger in ("bank-a", "wallet-p", "merchant-m", "user-b"):
        payees.fails("not_allowed", stranger, "allow_measurement", measurement=other, note="")
        payees.fails("not_allowed", stranger, "disallow_measurement", measurement=MEASUREMENT)
    payees.fails("unknown_measurement", "permission", "disallow_measurement", measurement=other)
    payees.call("permission", "allow_measurement", measurement=other, note="second")
    assert payees.events() == [("measurement_allowed", {"measurement": other, "note": "second"})]
    payees.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    assert payees.events() == [("measurement_disallowed", {"measurement": MEASUREMENT})]
    payees.fails("unknown_measurement", "permission", "disallow_measurement", measurement=MEASUREMENT)
    assert payees.query("allowed") == [
        {"measurement": MEASUREMENT, "status": "DISALLOWED", "note": "first"},
        {"measurement": other, "status": "ALLOWED", "note": "second"},
    ]
    payees.call("permission", "allow_measurement", measurement=MEASUREMENT, note="again")
    assert payees.query("allowed", limit=1) == [{"measurement": MEASUREMENT, "status": "ALLOWED", "note": "again"}]


def test_an_environment_runs_what_is_allowed(payees: Payees) -> None:
    fields = payees.environment("spare", 900)
    unknown = {**fields, "measurement": b"m" * 32}
    payees.fails("unknown_measurement", "bank-a", "register_environment", **unknown)
    payees.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    payees.fails("unknown_measurement", "bank-a", "register_environment", **fields)


# -- suspended, on record --------------------------------------------------------------------------------


def test_a_suspended_organisation_does_nothing(payees: Payees) -> None:
    payees.call("wallet-p", "add_record", **payees.record())
    for admin in ("bank-a", "issuer-c"):
        payees.chain.ok(admin, "membership", "suspend_organisation", organisation="wallet-p")
    refused: list[tuple[str, dict[str, Any]]] = [
        ("register_merchant", payees.registration(1)),
        ("set_consent", payees.consent()),
        ("replace_merchant_key", payees.key_change(key(900))),
        ("register_platform", {"key": key(900).public.compressed}),
        ("put_wraps", payees.wraps(2, "bank-a")),
        ("add_record", payees.record(2)),
        ("reencrypt_record", payees.reencryption(2, 1)),
        ("remove_record", payees.removal(2, by="platform")),
        ("record_query", {"query": bytes(32)}),
    ]
    for method, fields in refused:
        payees.fails("organisation_suspended", "wallet-p", method, **fields)
    payees.call("merchant-m", "remove_record", **payees.removal(2, by="merchant"))


def test_a_query_is_on_record_once_by_its_hash(payees: Payees) -> None:
    assert payees.query("query_record", query=bytes(32)) is None
    payees.call("user-b", "record_query", query=bytes(32))
    account = ACCOUNT_KEYS["user-b"].public.address
    assert payees.events() == [("query_recorded", {"query": bytes(32), "account": account})]
    found = {"account": account, "height": payees.chain.height, "timeMs": payees.chain.time_ms}
    assert payees.query("query_record", query=bytes(32)) == found
    payees.fails("query_exists", "wallet-p", "record_query", query=bytes(32))
    payees.fails("bad_arguments", "wallet-p", "record_query", query=bytes(31))


def test_the_limits_are_those_that_programs_know() -> None:
    """A contract imports nothing of the ledger's payees, so it says them again."""
    contract = Payees().chain.registry.get("payees", 1)
    methods = contract.methods if contract is not None else {}
    limits = {(method.name, item.name): item.limits for method in methods.values() for item in method.arguments}
    assert limits["add_record", "ciphertext"]["maxLength"] == ledger.CIPHERTEXT_BYTES_MAX
    assert limits["put_wraps", "wraps"]["maxLength"] == ledger.ENVIRONMENTS_MAX == ledger.PLATFORMS_MAX
    assert limits["register_merchant", "identity"] == {
        "minLength": ledger.IDENTITY_BYTES,
        "maxLength": ledger.IDENTITY_BYTES,
    }
