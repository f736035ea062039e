"""Agreements and terms as files: signed by all or not at all, and refused with what is wrong."""

import json
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from consensus.ledger.cooperation import agreement_hash
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from services.agency.credentials import (
    Agreement,
    Conditions,
    bad_signatures,
    document_hash,
    made_terms,
    new_agreement,
    read_agreement,
    read_terms,
    sign_agreement,
    write_file,
)

CHAIN = ChainId(bytes(range(32)))
KEYS = {name: PrivateKey.from_secret(number) for number, name in enumerate(("bank-a", "issuer-c", "issuer-f"), 900)}
PUBLIC = {name: [key.public.compressed] for name, key in KEYS.items()}
PAPER = sha256(b"paper").digest()


def made(**changes: object) -> Agreement:
    values: dict[str, object] = {
        "number": "2026-7",
        "bank": "bank-a",
        "issuers": ["issuer-f", "issuer-c"],
        "document": PAPER,
        "valid_from_ms": 1_000,
        "valid_until_ms": 2_000,
        "grace_ms": 5,
    }
    return new_agreement(CHAIN, **(values | changes))  # type: ignore[arg-type]


def signed(*names: str) -> Agreement:
    agreement = made()
    for name in names:
        agreement = sign_agreement(agreement, name, KEYS[name])
    return agreement


def code(action: object, *arguments: object, **named: object) -> str:
    with pytest.raises(LocalError) as caught:
        action(*arguments, **named)  # type: ignore[operator]
    return caught.value.code


def test_what_is_signed_is_what_the_contract_hashes() -> None:
    agreement = signed(*KEYS)
    assert agreement.id() == agreement_hash("2026-7", "bank-a", ["issuer-c", "issuer-f"], PAPER, 1_000, 2_000, 5)
    assert agreement.missing == []
    assert bad_signatures(agreement, PUBLIC) == []
    arguments = agreement.call().arguments
    assert b"2026-7" in arguments
    assert all(bytes.fromhex(text[2:]) in arguments for text in agreement.signatures.values())


def test_signing_goes_on_in_any_order_and_twice_is_harmless() -> None:
    assert signed("issuer-f", "bank-a", "issuer-c", "bank-a") == signed("bank-a", "issuer-c", "issuer-f")
    assert signed("issuer-c").missing == ["bank-a", "issuer-f"]


@pytest.mark.parametrize(
    "changes",
    [
        {"number": "2026-8"},
        {"grace_ms": 6},
        {"valid_until_ms": 2_001},
        {"document": "0x" + "00" * 32},
        {"issuers": ["issuer-c"]},
    ],
)
def test_a_signature_is_of_every_field(changes: dict[str, object]) -> None:
    other = msgspec.structs.replace(signed("bank-a"), **changes)
    assert bad_signatures(other, PUBLIC) == ["bank-a"]


def test_signatures_of_others_and_for_other_chains_do_not_hold() -> None:
    forged = sign_agreement(signed("bank-a"), "issuer-c", KEYS["issuer-f"])
    assert bad_signatures(forged, PUBLIC) == ["issuer-c"]
    assert bad_signatures(forged, PUBLIC | {"bank-a": []}) == ["bank-a", "issuer-c"]
    moved = msgspec.structs.replace(signed(*KEYS), chain_id="0x" + "11" * 32)
    assert sorted(bad_signatures(moved, PUBLIC)) == sorted(KEYS)
    assert code(sign_agreement, made(), "issuer-d", KEYS["issuer-c"]) == "not_party"


@pytest.mark.parametrize(
    "changes",
    [
        {"issuers": ["bank-a"]},
        {"issuers": []},
        {"issuers": ["UPPER"]},
        {"number": "two words"},
        {"valid_until_ms": 1_000},
        {"document": bytes(31)},
        {"grace_ms": -1},
    ],
)
def test_agreements_that_cannot_be(changes: dict[str, object]) -> None:
    assert code(made, **changes) == "bad_agreement"


def test_a_file_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_file(path, signed("bank-a"))
    assert read_agreement(path) == signed("bank-a")
    assert path.stat().st_mode & 0o077 == 0
    assert read_agreement(path, CHAIN) == signed("bank-a")
    assert code(read_agreement, path, ChainId(bytes(32))) == "wrong_chain"
    content = json.loads(path.read_text())
    for broken in (
        content | {"more": 1},
        content | {"format": "hansa-terms-1"},
        content | {"document": "paper"},
        {name: value for name, value in content.items() if name != "bank"},
    ):
        path.write_text(json.dumps(broken))
        assert code(read_agreement, path) == "bad_file"
    path.write_text(json.dumps(content | {"issuers": ["issuer-f", "issuer-c"]}))
    assert code(read_agreement, path) == "bad_agreement"
    path.write_text(json.dumps(content | {"signatures": {"issuer-d": "0x00"}}))
    assert code(read_agreement, path) == "bad_agreement"
    path.write_text("{")
    assert code(read_agreement, path) == "bad_file"
    assert code(read_agreement, tmp_path / "none") == "bad_file"
    assert code(write_file, tmp_path / "no" / "a.json", made()) == "bad_file"


def test_the_paper_is_hashed_and_never_kept(tmp_path: Path) -> None:
    (tmp_path / "paper").write_bytes(b"paper")
    assert document_hash(tmp_path / "paper") == PAPER
    assert code(document_hash, tmp_path / "none") == "bad_file"


def test_terms(tmp_path: Path) -> None:
    terms = made_terms(bank="bank-a", issuer="issuer-c", subject="type:equity", terms=Conditions(kinds=["024", "022"]))
    assert terms.terms.value()["kinds"] == ["022", "024"]
    assert terms.id(1) != terms.id(2)
    write_file(tmp_path / "t.json", terms)
    assert read_terms(tmp_path / "t.json") == terms
    assert code(made_terms, bank="bank-a", issuer="issuer-c", subject="fund", terms=terms.terms) == "bad_terms"
    assert code(Conditions(kinds=["999"]).value) == "bad_terms"
    assert code(Conditions(kinds=["022"], amount_min=2, amount_max=1).value) == "bad_terms"
