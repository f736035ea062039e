"""Quorums for every size, and certificates of which no field can be changed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.validators import (
    VALIDATORS_MAX,
    Certificate,
    Signature,
    Validator,
    ValidatorSet,
    certificate_codec,
    check_certificate_untrusted,
    decode_validators_untrusted,
    seat_payload,
    vote_payload,
)
from tests.ledger.builders import CHAIN, Keys, flips, make_keys, make_set, refusal

HASH = bytes([7]) * 32
KEYS = make_keys(7)
SET = make_set(KEYS)


def sign(keys: Keys, names: list[str], *, height: int = 9, view: int = 2, block_hash: bytes = HASH) -> Certificate:
    payload = vote_payload(height, view, block_hash)
    votes = [Signature(name, keys[name].sign(Purpose.COMMIT, CHAIN, payload)) for name in names]
    return Certificate(height, view, block_hash, votes)


NAMES = sorted(KEYS)
GOOD = sign(KEYS, NAMES[: SET.quorum])


def check(certificate: Certificate, validators: ValidatorSet = SET, chain_id: ChainId = CHAIN) -> str:
    return refusal(check_certificate_untrusted, certificate, validators, chain_id)


@pytest.mark.parametrize("count", range(1, VALIDATORS_MAX + 1))
def test_r01_any_two_quorums_share_an_honest_member(count: int) -> None:
    validators = make_set(make_keys(count))
    n, f, q = validators.size, validators.faulty_max, validators.quorum
    assert n == count
    assert f == max(fault for fault in range(n) if n >= 3 * fault + 1)
    assert 2 * q - n >= f + 1
    assert q <= n - f
    assert 2 * (q - 1) - n < f + 1, "no smaller quorum would do"


@given(st.integers(0, 10**9), st.integers(0, 10**6))
def test_r02_the_primary_moves_on_with_height_and_view(height: int, view: int) -> None:
    for size in range(1, 6):
        validators = make_set(make_keys(size))
        assert {validators.primary(height, view + step) for step in range(size)} == set(validators.names)
        assert validators.primary(height + 1, view) == validators.primary(height, view + 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
def test_a_quorum_certifies_and_one_less_does_not(count: int) -> None:
    keys = make_keys(count)
    validators = make_set(keys)
    names = sorted(keys)
    for signers in range(1, count + 1):
        expected = "" if signers >= validators.quorum else "bad_certificate"
        assert check(sign(keys, names[:signers]), validators) == expected
        assert check(sign(keys, names[-signers:]), validators) == expected


def test_r06_every_field_of_a_certificate_counts() -> None:
    assert check(GOOD) == ""
    for height, view, block_hash in [(8, 2, HASH), (9, 3, HASH), (9, 2, bytes(32))]:
        assert check(Certificate(height, view, block_hash, GOOD.signatures)) == "bad_certificate"
    assert check(GOOD, chain_id=ChainId(bytes(32))) == "bad_certificate"
    for place, vote in enumerate(GOOD.signatures):
        for bad in flips(vote.signature):
            votes = [*GOOD.signatures[:place], Signature(vote.signer, bad), *GOOD.signatures[place + 1 :]]
            assert check(Certificate(9, 2, HASH, votes)) == "bad_certificate"


def test_r06_every_changed_byte_of_a_certificate_is_refused() -> None:
    for bad in flips(certificate_codec.encode(GOOD)):
        if not refusal(certificate_codec.decode_untrusted, bad):
            assert check(certificate_codec.decode_untrusted(bad)) == "bad_certificate"


def test_r07_repeated_votes_do_not_add_up() -> None:
    few = sign(KEYS, NAMES[: SET.quorum - 1]).signatures
    for votes in ([*few, few[-1]], [few[0], *few], few * 3):
        assert check(Certificate(9, 2, HASH, votes)) == "bad_certificate"
    renamed = Signature(NAMES[SET.quorum], few[0].signature)
    assert check(Certificate(9, 2, HASH, [*few, renamed])) == "bad_certificate"


def test_r06_outsiders_and_other_votes_do_not_count() -> None:
    strangers = make_keys(7, first=100)
    mixed = {**KEYS, **strangers}
    assert check(sign(mixed, [*NAMES[: SET.quorum - 1], "node-100"])) == "bad_certificate"
    assert check(sign({**KEYS, NAMES[0]: strangers["node-100"]}, NAMES[: SET.quorum])) == "bad_certificate"
    payload = vote_payload(9, 2, HASH)
    for purpose in set(Purpose) - {Purpose.COMMIT}:
        other = Signature(NAMES[0], KEYS[NAMES[0]].sign(purpose, CHAIN, payload))
        assert check(Certificate(9, 2, HASH, [other, *GOOD.signatures[1:]])) == "bad_certificate"


def test_a_certificate_of_two_views_is_none() -> None:
    other_view = sign(KEYS, NAMES[: SET.quorum], view=3)
    votes = [*GOOD.signatures[:2], *other_view.signatures[2:]]
    assert check(Certificate(9, 2, HASH, votes)) == "bad_certificate"
    assert check(Certificate(9, 3, HASH, votes)) == "bad_certificate"


@settings(max_examples=40)
@given(st.permutations(NAMES[: SET.quorum]))
def test_a_certificate_has_one_order(names: list[str]) -> None:
    expected = "" if names == sorted(names) else "bad_certificate"
    assert check(sign(KEYS, names)) == expected


def test_two_certificates_of_one_block_may_differ() -> None:
    assert check(sign(KEYS, NAMES[-SET.quorum :])) == check(sign(KEYS, NAMES)) == check(sign(KEYS, NAMES, view=5)) == ""


def test_sets_keep_their_rules() -> None:
    one, two = SET.validators[:2]
    wrong: list[tuple[Validator, ...]] = [
        (),
        (two, one),
        (one, one),
        (one, Validator(two.name, "bank", one.vote_key)),
        (one, Validator(one.name, "bank", two.vote_key)),
        (Validator(one.name, "bank", b"\x02" + b"\xff" * 32),),
        make_set(make_keys(VALIDATORS_MAX)).validators + make_set(make_keys(1, first=500)).validators,
    ]
    for validators in wrong:
        with pytest.raises(LocalError) as refused:
            ValidatorSet(validators)
        assert refused.value.code == "bad_validators"
    assert ValidatorSet.of([two, one]).validators == (one, two)


@pytest.mark.parametrize("name", ["", "-a", "a b", "Bank", "bank\n", "b\u00e4nk", "a" * 33, "a/b", "a\0"])
def test_names_that_are_none(name: str) -> None:
    data = ValidatorSet((Validator(name, "bank", SET.validators[0].vote_key),)).encode()
    assert refusal(decode_validators_untrusted, data) == "malformed"


def test_sets_travel_and_every_byte_of_them_is_under_the_hash() -> None:
    data = SET.encode()
    assert decode_validators_untrusted(data) == SET
    for bad in flips(data):
        if not (code := refusal(decode_validators_untrusted, bad)):
            assert decode_validators_untrusted(bad).hash() != SET.hash()
        else:
            assert code in {"malformed", "bad_validators"}


def test_members_are_found_by_name() -> None:
    for name, key in KEYS.items():
        found = SET.vote_key(name)
        assert found is not None
        assert found.compressed == key.public.compressed
    assert SET.vote_key("node-999") is None
    assert PrivateKey.from_secret(1).public.compressed == SET.validators[0].vote_key


def test_a_proof_for_a_seat_speaks_of_one_node_one_key_and_one_height() -> None:
    key, other = (PrivateKey.from_secret(number).public.compressed for number in (1, 2))
    payloads = {
        seat_payload(node, vote_key, height) for node in ("a", "b") for vote_key in (key, other) for height in (1, 2)
    }
    assert len(payloads) == 8
    signature = PrivateKey.from_secret(1).sign(Purpose.SEAT, CHAIN, seat_payload("a", key, 1))
    public = PrivateKey.from_secret(1).public
    assert public.verifies(signature, Purpose.SEAT, CHAIN, seat_payload("a", key, 1))
    for purpose in Purpose:
        assert public.verifies(signature, purpose, CHAIN, seat_payload("a", key, 1)) == (purpose is Purpose.SEAT)
