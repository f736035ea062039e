"""payees: records, whose signatures they need, their versions over removals; logs, state keys, pages, steps."""

from typing import Any

import pytest

from consensus.ledger import payees as ledger
from consensus.ledger.codec import decode, encode
from consensus.ledger.ids import ZERO_HASH
from consensus.ledger.keys import Purpose
from consensus.ledger.transaction import EACH, make_call
from contracts.runtime.meter import STEPS_PER_CALL_MAX, STEPS_PER_TRANSACTION_MAX
from tests.contracts.domain.payees import Payees, identity, key, make_payees

WHO = identity(0)
TOLD = ("version", "contentVersion", "epoch", "commitment", "isShareable")


@pytest.fixture
def payees() -> Payees:
    return make_payees()


def record_of(payees: Payees, server: str = "wallet-p") -> Any:
    """The platform's record of merchant 0."""
    return payees.query("record", server=server, identity=WHO)


# -- adding, updating ------------------------------------------------------------------------------------


def test_a_first_add(payees: Payees) -> None:
    fields = payees.record(is_shareable=True)
    payees.call("wallet-p", "add_record", **fields)
    expected = {
        "server": "wallet-p",
        "identity": WHO,
        "version": 1,
        "contentVersion": 1,
        "epoch": 1,
        "commitment": fields["commitment"],
        "ciphertext": b"ciphertext",
        "isShareable": True,
        "platformSignature": fields["platform_signature"],
        "merchantSignature": fields["merchant_signature"],
        "status": "ACTIVE",
    }
    assert record_of(payees) == expected
    signed = ledger.record_hash(WHO, "wallet-p", 1, 1, 1, fields["commitment"], b"ciphertext", True)
    told = {name: expected[name] for name in TOLD}
    event = {"identity": WHO, "change": 2, "signed": signed, "server": "wallet-p", **told}
    assert payees.events() == [("record_added", event)]
    assert payees.query("merchant", identity=WHO)["servers"] == ["wallet-p"]
    payees.refuses("unknown_record", "record", server="wallet-q", identity=WHO)
    payees.refuses("unknown_merchant", "records", identity=identity(1))


def test_a_second_platform_adds_without_the_first(payees: Payees) -> None:
    payees.call("wallet-q", "add_record", **payees.record(server="wallet-q"))
    first = record_of(payees, "wallet-q")
    payees.call("wallet-p", "add_record", **payees.record())
    assert record_of(payees, "wallet-q") == first
    assert payees.query("merchant", identity=WHO)["servers"] == ["wallet-p", "wallet-q"]
    shown = [{**record_of(payees, server)} for server in ("wallet-p", "wallet-q")]
    for item in shown:
        del item["ciphertext"]
    assert payees.query("records", identity=WHO) == shown


def test_an_update_is_the_next_version(payees: Payees) -> None:
    payees.call("wallet-p", "add_record", **payees.record())
    payees.call("wallet-p", "add_record", **payees.record(2, content=b"other", is_shareable=True))
    assert payees.events()[0][0] == "record_updated"
    found = record_of(payees)
    assert (found["version"], found["contentVersion"], found["isShareable"]) == (2, 2, True)
    assert payees.query("merchant", identity=WHO)["servers"] == ["wallet-p"]


@pytest.mark.parametrize("version", [1, 3, 4])
def test_versions_neither_fall_nor_jump(payees: Payees, version: int) -> None:
    payees.fails("wrong_version", "wallet-p", "add_record", **payees.record(2))
    payees.call("wallet-p", "add_record", **payees.record())
    payees.fails("wrong_version", "wallet-p", "add_record", **payees.record(version))
    payees.fails("wrong_version", "wallet-p", "reencrypt_record", **payees.reencryption(version, 1))
    for by in ("merchant", "platform"):
        payees.fails("wrong_version", "merchant-m", "remove_record", **payees.removal(version, by=by))


FORGED = [
    ("nothing of the merchant's", lambda payees, right: {"merchant_signature": bytes(64)}),
    ("nothing of the platform's", lambda payees, right: {"platform_signature": bytes(64)}),
    ("the merchant's for both", lambda payees, right: {"platform_signature": right["merchant_signature"]}),
    ("the platform's for both", lambda payees, right: {"merchant_signature": right["platform_signature"]}),
    ("another commitment", lambda payees, right: {"commitment": bytes(32)}),
    ("another ciphertext", lambda payees, right: {"ciphertext": b"other"}),
    ("shared", lambda payees, right: {"is_shareable": True}),
    (
        "another commitment that the platform signed",
        lambda payees, right: {
            **payees.record(content=b"other"),
            "merchant_signature": right["merchant_signature"],
        },
    ),
    (
        "shared by the platform alone",
        lambda payees, right: {
            **payees.record(is_shareable=True),
            "merchant_signature": right["merchant_signature"],
        },
    ),
    ("another merchant", lambda payees, right: {"identity": identity(1)}),
    (
        "another merchant's word",
        lambda payees, right: {"merchant_signature": payees.record(merchant=1)["merchant_signature"]},
    ),
    (
        "the merchant's word for another platform",
        lambda payees, right: {"merchant_signature": payees.record(server="wallet-q")["merchant_signature"]},
    ),
    (
        "another platform's word",
        lambda payees, right: {"platform_signature": payees.record(server="wallet-q")["platform_signature"]},
    ),
    (
        "the merchant's word for another version",
        lambda payees, right: {"merchant_signature": payees.record(2)["merchant_signature"]},
    ),
    (
        "the platform's word for another version",
        lambda payees, right: {"platform_signature": payees.record(2)["platform_signature"]},
    ),
    (
        "the platform's word for another epoch",
        lambda payees, right: {"platform_signature": payees.record(epoch=2)["platform_signature"]},
    ),
    (
        "a code's signature",
        lambda payees, right: {
            "merchant_signature": payees.sign(
                key(100),
                Purpose.PAYEE_CODE,
                ledger.content_hash(WHO, "wallet-p", 1, right["commitment"], False),
            )
        },
    ),
]


@pytest.mark.parametrize(("what", "change"), FORGED, ids=[what for what, _ in FORGED])
def test_a_forged_add_is_none(payees: Payees, what: str, change: Any) -> None:
    payees.call("merchant-m", "register_merchant", **payees.registration(1))
    right = payees.record()
    payees.fails("bad_signature", "wallet-p", "add_record", **{**right, **change(payees, right)})
    payees.call("wallet-p", "add_record", **right)


def test_a_record_is_its_senders(payees: Payees) -> None:
    """A platform cannot write another one's record, whatever it holds of it."""
    payees.fails("bad_signature", "wallet-q", "add_record", **payees.record())


def test_an_add_serves_once(payees: Payees) -> None:
    fields = payees.record()
    payees.call("wallet-p", "add_record", **fields)
    payees.fails("wrong_version", "wallet-p", "add_record", **fields)
    payees.fails("bad_signature", "wallet-p", "add_record", **{**fields, "version": 2})


def test_a_record_is_under_the_epoch_in_force(payees: Payees) -> None:
    for epoch in (2, 3):
        payees.fails("wrong_epoch", "wallet-p", "add_record", **payees.record(epoch=epoch))
    payees.call("wallet-p", "add_record", **payees.record())
    payees.call("wallet-p", "put_wraps", **payees.wraps(2, "bank-a"))
    payees.fails("wrong_epoch", "wallet-p", "add_record", **payees.record(2))
    payees.fails("wrong_epoch", "wallet-p", "reencrypt_record", **payees.reencryption(2, 1))
    assert record_of(payees)["epoch"] == 1
    payees.call("wallet-p", "add_record", **payees.record(2, epoch=2))


def test_nobody_unknown_has_a_record(payees: Payees) -> None:
    payees.fails("unknown_merchant", "wallet-p", "add_record", **payees.record(merchant=1))
    fresh = Payees()
    fresh.call("merchant-m", "register_merchant", **fresh.registration())
    fresh.fails("unknown_platform", "wallet-p", "add_record", **fresh.record())
    fresh.call("wallet-p", "register_platform", key=key(200).public.compressed)
    fresh.fails("wrong_epoch", "wallet-p", "add_record", **fresh.record())


def test_a_ciphertext_has_its_bounds(payees: Payees) -> None:
    for size in (0, ledger.CIPHERTEXT_BYTES_MAX + 1):
        payees.fails("bad_arguments", "wallet-p", "add_record", **payees.record(ciphertext=bytes(size)))
    payees.call("wallet-p", "add_record", **payees.record(ciphertext=bytes(ledger.CIPHERTEXT_BYTES_MAX)))


# -- encrypting anew -------------------------------------------------------------------------------------


def test_the_platform_encrypts_the_same_content_anew(payees: Payees) -> None:
    payees.call("wallet-p", "add_record", **payees.record(is_shareable=True))
    before = record_of(payees)
    payees.call("wallet-p", "put_wraps", **payees.wraps(2, "issuer-c"))
    fields = payees.reencryption(2, 2)
    payees.call("wallet-p", "reencrypt_record", **fields)
    changed = {"version": 2, "epoch": 2, "ciphertext": b"anew", "platformSignature": fields["platform_signature"]}
    assert record_of(payees) == {**before, **changed}
    name, event = payees.events()[0]
    assert (name, event["version"], event["contentVersion"], event["epoch"]) == ("record_reencrypted", 2, 1, 2)
    again = payees.reencryption(3, 2, ciphertext=b"and again")
    payees.call("wallet-p", "reencrypt_record", **again)
    assert record_of(payees)["contentVersion"] == 1
    payees.call("wallet-p", "add_record", **payees.record(4, epoch=2))
    assert record_of(payees)["contentVersion"] == 4


def test_only_the_platform_encrypts_anew(payees: Payees) -> None:
    for server in ("wallet-p", "wallet-q"):
        payees.call(server, "add_record", **payees.record(server=server))
    right = payees.reencryption(2, 1)
    wrong: list[dict[str, Any]] = [
        {"ciphertext": b"other"},
        {"platform_signature": payees.record(2)["platform_signature"]},
        {"platform_signature": payees.record(2, ciphertext=b"anew")["platform_signature"]},
        {"platform_signature": payees.reencryption(3, 1)["platform_signature"]},
        {"platform_signature": payees.reencryption(2, 2)["platform_signature"]},
        {"platform_signature": payees.reencryption(2, 1, server="wallet-q")["platform_signature"]},
    ]
    for changed in wrong:
        payees.fails("bad_signature", "wallet-p", "reencrypt_record", **{**right, **changed})
    payees.fails("bad_signature", "wallet-q", "reencrypt_record", **right)
    payees.call("merchant-m", "register_merchant", **payees.registration(1))
    payees.fails("unknown_record", "wallet-p", "reencrypt_record", **{**right, "identity": identity(1)})
    payees.fails("unknown_merchant", "wallet-p", "reencrypt_record", **{**right, "identity": identity(2)})
    payees.call("wallet-p", "reencrypt_record", **right)
    payees.fails("wrong_version", "wallet-p", "reencrypt_record", **right)


# -- removal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["merchant", "platform"])
@pytest.mark.parametrize("carrier", ["merchant-m", "wallet-p", "wallet-q"])
def test_either_side_removes_and_a_tombstone_stays(payees: Payees, by: str, carrier: str) -> None:
    for server in ("wallet-p", "wallet-q"):
        payees.call(server, "add_record", **payees.record(server=server))
    before, other = record_of(payees), record_of(payees, "wallet-q")
    fields = payees.removal(2, by=by)
    payees.call(carrier, "remove_record", **fields)
    names = ("merchantSignature", "platformSignature")
    signatures = {name: fields["signature"] if name.startswith(by) else b"" for name in names}
    changed = {"version": 2, "contentVersion": 2, "ciphertext": b"", "status": "REMOVED", **signatures}
    assert record_of(payees) == {**before, **changed}
    assert record_of(payees, "wallet-q") == other
    assert payees.query("merchant", identity=WHO)["servers"] == ["wallet-q"]
    assert [item["server"] for item in payees.query("records", identity=WHO)] == ["wallet-q"]
    event = {"identity": WHO, "change": 4, "signed": ledger.removal_hash(WHO, "wallet-p", 2)}
    assert payees.events() == [("record_removed", {**event, "server": "wallet-p", "version": 2, "signer": by})]
    payees.fails("record_removed", carrier, "remove_record", **fields)


def test_a_removed_record_comes_back_by_an_add_with_the_next_version_alone(payees: Payees) -> None:
    first = payees.record()
    payees.call("wallet-p", "add_record", **first)
    anew = payees.reencryption(2, 1)
    payees.call("merchant-m", "remove_record", **payees.removal(2, by="merchant"))
    payees.fails("record_removed", "wallet-p", "reencrypt_record", **anew)
    payees.fails("record_removed", "wallet-p", "reencrypt_record", **payees.reencryption(3, 1))
    for version in (1, 2, 4):
        payees.fails("wrong_version", "wallet-p", "add_record", **payees.record(version))
    old_word = {**payees.record(3), "merchant_signature": first["merchant_signature"]}
    payees.fails("bad_signature", "wallet-p", "add_record", **old_word)
    payees.call("wallet-p", "add_record", **payees.record(3))
    assert payees.events()[0][0] == "record_added"
    assert payees.query("merchant", identity=WHO)["servers"] == ["wallet-p"]


def test_nobody_else_removes(payees: Payees) -> None:
    payees.call("merchant-m", "register_merchant", **payees.registration(1))
    for server in ("wallet-p", "wallet-q"):
        payees.call(server, "add_record", **payees.record(server=server))
        payees.call(server, "add_record", **payees.record(server=server, merchant=1))
    right = payees.removal(2, by="merchant")
    payload = ledger.removal_hash(WHO, "wallet-p", 2)
    wrong = [
        bytes(64),
        payees.sign(key(101), Purpose.PAYEE_MERCHANT, payload),
        payees.sign(key(201), Purpose.PAYEE_PLATFORM, payload),
        payees.sign(key(100), Purpose.PAYEE_PLATFORM, payload),
        payees.sign(key(200), Purpose.PAYEE_MERCHANT, payload),
        payees.sign(key(100), Purpose.PAYEE_CODE, payload),
        *[payees.removal(2, by=by, server="wallet-q")["signature"] for by in ("merchant", "platform")],
        *[payees.removal(2, by=by, merchant=1)["signature"] for by in ("merchant", "platform")],
        *[payees.removal(3, by=by)["signature"] for by in ("merchant", "platform")],
    ]
    for signature in wrong:
        payees.fails("bad_signature", "wallet-p", "remove_record", **{**right, "signature": signature})
    unknown: list[tuple[str, dict[str, Any]]] = [
        ("unknown_record", {"server": "bank-a"}),
        ("unknown_merchant", {"identity": identity(2)}),
        ("bad_arguments", {"server": "wallet/p"}),
    ]
    for code, changed in unknown:
        payees.fails(code, "wallet-p", "remove_record", **{**right, **changed})


def test_a_platform_does_not_outrun_a_removal(payees: Payees) -> None:
    """What the merchant signed in time holds, however often the platform encrypts anew meanwhile."""
    payees.call("wallet-p", "add_record", **payees.record())
    by_merchant, by_platform = payees.removal(2, by="merchant"), payees.removal(2, by="platform")
    for version in (2, 3):
        payees.call("wallet-p", "reencrypt_record", **payees.reencryption(version, 1))
    payees.fails("wrong_version", "wallet-p", "remove_record", **by_platform)
    payees.call("merchant-m", "remove_record", **by_merchant)
    found = record_of(payees)
    assert (found["version"], found["contentVersion"], found["status"]) == (4, 2, "REMOVED")
    payees.call("wallet-p", "add_record", **payees.record(5))
    payees.fails("wrong_version", "merchant-m", "remove_record", **by_merchant)


def test_a_removal_does_not_outlive_the_content_it_was_signed_for(payees: Payees) -> None:
    payees.call("wallet-p", "add_record", **payees.record())
    unsent = payees.removal(2, by="merchant")
    payees.call("wallet-p", "reencrypt_record", **payees.reencryption(2, 1))
    payees.call("wallet-p", "add_record", **payees.record(3))
    payees.fails("wrong_version", "merchant-m", "remove_record", **unsent)


# -- bounds, pages, keys, logs ---------------------------------------------------------------------------


def test_an_identity_has_32_platforms(payees: Payees) -> None:
    payees.call("wallet-p", "add_record", **payees.record())
    # To admit organisations by the dozen takes their members' votes; the merchant's state says the same.
    names = [f"wallet-a{number:02d}" for number in range(31)]
    full = {**payees.query("merchant", identity=WHO), "servers": [*names, "wallet-p"]}
    payees.chain.state.apply({ledger.merchant_key(WHO).encode(): encode(full)})
    payees.fails("too_many_platforms", "wallet-q", "add_record", **payees.record(server="wallet-q"))
    payees.call("wallet-p", "add_record", **payees.record(2))
    payees.call("wallet-p", "remove_record", **payees.removal(3, by="platform"))
    payees.call("wallet-q", "add_record", **payees.record(server="wallet-q"))
    assert payees.query("merchant", identity=WHO)["servers"] == [*names, "wallet-q"]


def test_pages_of_records(payees: Payees) -> None:
    """Pages hold what fits; the last is empty; tombstones are in them, other platforms' records are not."""
    identities = sorted(identity(number) for number in range(20))
    for number in range(20):
        if number:
            payees.call("merchant-m", "register_merchant", **payees.registration(number))
        payees.call("wallet-p", "add_record", **payees.record(merchant=number, ciphertext=bytes(4_096)))
    payees.call("wallet-q", "add_record", **payees.record(server="wallet-q"))
    payees.call("wallet-p", "remove_record", **payees.removal(2, by="platform"))
    found: list[Any] = []
    sizes = []
    while page := payees.query(
        "records_of", server="wallet-p", start=found[-1]["identity"].hex() + "0" if found else ""
    ):
        found += page
        sizes.append(len(page))
    assert [item["identity"] for item in found] == identities
    assert [item for item in found if item["status"] == "REMOVED"] == [record_of(payees)]
    assert {item["server"] for item in found} == {"wallet-p"}
    assert max(sizes) < 20
    assert payees.query("records_of", server="wallet-p", limit=3) == found[:3]
    assert payees.query("records_of", server="bank-a") == []


def test_state_is_where_programs_look_for_it(payees: Payees) -> None:
    for server in ("wallet-p", "wallet-q"):
        payees.call(server, "add_record", **payees.record(server=server))
    expected = {
        ledger.merchant_key(WHO),
        *(ledger.record_key(server, WHO) for server in ("wallet-p", "wallet-q")),
        *(ledger.platform_key(server) for server in ("wallet-p", "wallet-q")),
        *(ledger.wrap_key(server, 1, name) for server in ("wallet-p", "wallet-q") for name in ("bank-a", "issuer-c")),
        *(ledger.environment_key(name) for name in ("bank-a", "issuer-c")),
        ledger.allowed_key(bytes(range(32))),
    }
    found = {name.decode() for name in payees.records()}
    assert {name for name in found if not name.startswith("payees/owner/")} == expected
    stored: Any = decode(payees.records()[ledger.record_key("wallet-p", WHO).encode()])
    assert {**stored, "server": "wallet-p", "identity": WHO} == record_of(payees)


def test_the_log_accounts_for_every_change(payees: Payees) -> None:
    told: list[Any] = [payees.events()[0][1]]
    steps: list[tuple[str, str, dict[str, Any]]] = [
        ("wallet-p", "add_record", payees.record()),
        ("merchant-m", "set_consent", payees.consent()),
        ("wallet-p", "add_record", payees.record(2)),
        ("wallet-q", "add_record", payees.record(server="wallet-q")),
        ("merchant-m", "remove_record", payees.removal(3, by="merchant")),
        ("merchant-m", "replace_merchant_key", payees.key_change(key(900))),
    ]
    for sender, method, fields in steps:
        payees.call(sender, method, **fields)
        told.append(payees.events()[0][1])
    payees.call("wallet-q", "reencrypt_record", **payees.reencryption(2, 1, server="wallet-q"))
    told.append(payees.events()[0][1])
    log = ZERO_HASH
    for place, event in enumerate(told):
        assert (event["identity"], event["change"]) == (WHO, place + 1)
        log = ledger.log_hash(log, event["change"], event["signed"])
    found = payees.query("merchant", identity=WHO)
    assert (found["changes"], found["log"]) == (len(told), log)


def test_no_event_holds_a_ciphertext(payees: Payees) -> None:
    marker = b"marker of a ciphertext"
    payees.call("wallet-p", "add_record", **payees.record(ciphertext=marker))
    receipts = [payees.receipt]
    payees.call("wallet-p", "reencrypt_record", **payees.reencryption(2, 1, ciphertext=marker))
    receipts.append(payees.receipt)
    payees.call("wallet-p", "remove_record", **payees.removal(3, by="platform"))
    receipts.append(payees.receipt)
    for receipt in receipts:
        assert receipt is not None
        assert not any(marker in event.data for event in receipt.events)
        assert not any(marker in value for value in receipt.values)


def test_fifty_records_go_in_one_transaction(payees: Payees) -> None:
    """With the largest ciphertext they fit into a transaction's bytes and stay far from its steps."""
    payees.merchants = {identity(number): key(100 + number) for number in range(50)}
    for number in range(1, 50):
        payees.call("merchant-m", "register_merchant", **payees.registration(number))
    largest = bytes(ledger.CIPHERTEXT_BYTES_MAX)
    calls = [
        make_call("payees", "add_record", payees.record(merchant=number, ciphertext=largest)) for number in range(50)
    ]
    receipts = payees.chain.submit("wallet-p", *calls, mode=EACH)
    assert [item.code for item in receipts] == [""] * 50
    assert max(item.steps for item in receipts) < STEPS_PER_CALL_MAX // 20
    assert sum(item.steps for item in receipts) < STEPS_PER_TRANSACTION_MAX // 4
