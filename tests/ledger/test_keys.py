"""Signatures: RFC 6979 by an independent computation, one spelling each, one purpose and chain each."""

import hmac
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId, account_address
from consensus.ledger.keys import GROUP_ORDER, PrivateKey, PublicKey, Purpose, signed_bytes
from tests.ledger.builders import CHAIN, flips, refusal

KEY = PrivateKey.from_secret(77)
OTHER_CHAIN = ChainId(bytes(32))

# RFC 6979, appendix A.2.5: P-256, SHA-256.
PUBLISHED_SECRET = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
PUBLISHED_X = 0x60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6
PUBLISHED_Y = 0x7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299
PUBLISHED_SIGNATURES = {
    b"sample": (
        0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716,
        0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8,
    ),
    b"test": (
        0xF1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367,
        0x019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083,
    ),
}


def nonce(secret: int, digest: bytes) -> int:
    """The nonce of RFC 6979, section 3.2, for P-256 and SHA-256."""
    seed = secret.to_bytes(32, "big") + (int.from_bytes(digest, "big") % GROUP_ORDER).to_bytes(32, "big")
    key, value = bytes(32), b"\1" * 32
    for round_byte in (b"\0", b"\1"):
        key = hmac.digest(key, value + round_byte + seed, "sha256")
        value = hmac.digest(key, value, "sha256")
    while True:
        value = hmac.digest(key, value, "sha256")
        if 0 < int.from_bytes(value, "big") < GROUP_ORDER:
            return int.from_bytes(value, "big")
        key = hmac.digest(key, value + b"\0", "sha256")
        value = hmac.digest(key, value, "sha256")


def reference_signature(secret: int, message: bytes) -> tuple[int, int]:
    digest = sha256(message).digest()
    k = nonce(secret, digest)
    r = ec.derive_private_key(k, ec.SECP256R1()).public_key().public_numbers().x % GROUP_ORDER
    s = pow(k, -1, GROUP_ORDER) * (int.from_bytes(digest, "big") + r * secret) % GROUP_ORDER
    return r, s


@pytest.mark.parametrize("message", PUBLISHED_SIGNATURES)
def test_published_signatures(message: bytes) -> None:
    key = PrivateKey.from_secret(PUBLISHED_SECRET)
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    assert reference_signature(PUBLISHED_SECRET, message) == PUBLISHED_SIGNATURES[message]
    assert decode_dss_signature(key.exchange.sign(message, algorithm)) == PUBLISHED_SIGNATURES[message]
    assert key.public.compressed == bytes([2 + PUBLISHED_Y % 2]) + PUBLISHED_X.to_bytes(32, "big")


@settings(max_examples=60)
@given(st.integers(1, GROUP_ORDER - 1), st.sampled_from(Purpose), st.binary(max_size=100))
def test_signing_is_rfc_6979_with_low_s(secret: int, purpose: Purpose, payload: bytes) -> None:
    key = PrivateKey.from_secret(secret)
    signature = key.sign(purpose, CHAIN, payload)
    r, s = reference_signature(secret, b"hansa\x01" + CHAIN + purpose.value.encode() + b"\0" + payload)
    assert signature == r.to_bytes(32, "big") + min(s, GROUP_ORDER - s).to_bytes(32, "big")
    assert key.public.verifies(signature, purpose, CHAIN, payload)


def test_every_changed_byte_is_refused() -> None:
    signature = KEY.sign(Purpose.COMMIT, CHAIN, b"payload")
    assert not any(KEY.public.verifies(bad, Purpose.COMMIT, CHAIN, b"payload") for bad in flips(signature))
    assert not any(KEY.public.verifies(signature, Purpose.COMMIT, CHAIN, bad) for bad in flips(b"payload"))
    assert not any(KEY.public.verifies(signature, Purpose.COMMIT, ChainId(bad), b"payload") for bad in flips(CHAIN))


def test_high_s_is_refused() -> None:
    for number in range(8):
        payload = b"%d" % number
        signature = KEY.sign(Purpose.COMMIT, CHAIN, payload)
        s = int.from_bytes(signature[32:], "big")
        assert s <= GROUP_ORDER // 2
        assert not KEY.public.verifies(
            signature[:32] + (GROUP_ORDER - s).to_bytes(32, "big"), Purpose.COMMIT, CHAIN, payload
        )


def test_numbers_out_of_range_are_refused() -> None:
    signature = KEY.sign(Purpose.COMMIT, CHAIN, b"")
    r, s = signature[:32], signature[32:]
    order, top = GROUP_ORDER.to_bytes(32, "big"), b"\xff" * 32
    past = ((int.from_bytes(r, "big") + GROUP_ORDER) % 2**256).to_bytes(32, "big")
    for bad_r, bad_s in [
        (bytes(32), s),
        (r, bytes(32)),
        (bytes(32), bytes(32)),
        (order, s),
        (r, order),
        (top, top),
        (past, s),
    ]:
        assert not KEY.public.verifies(bad_r + bad_s, Purpose.COMMIT, CHAIN, b"")
    for length in (0, 1, 63, 65, 72, 128):
        assert not KEY.public.verifies((signature * 2)[:length], Purpose.COMMIT, CHAIN, b"")


def test_r84_a_signature_is_for_one_purpose_and_one_chain() -> None:
    for purpose in Purpose:
        signature = KEY.sign(purpose, CHAIN, b"payload")
        assert [other for other in Purpose if KEY.public.verifies(signature, other, CHAIN, b"payload")] == [purpose]
        assert not KEY.public.verifies(signature, purpose, OTHER_CHAIN, b"payload")
        assert not PrivateKey.from_secret(78).public.verifies(signature, purpose, CHAIN, b"payload")


@given(st.sampled_from(Purpose), st.sampled_from(Purpose), st.binary(max_size=30), st.binary(max_size=30))
def test_no_two_things_to_sign_share_their_bytes(one: Purpose, other: Purpose, first: bytes, second: bytes) -> None:
    same = (one, first) == (other, second)
    assert (signed_bytes(one, CHAIN, first) == signed_bytes(other, CHAIN, second)) == same


def test_r10_the_address_is_bound_to_the_key() -> None:
    assert KEY.public.address == account_address(KEY.public.compressed)
    assert len({PrivateKey.from_secret(number).public.address for number in range(1, 50)}) == 49


@pytest.mark.parametrize(
    "data", [b"", bytes(33), b"\x02" + b"\xff" * 32, b"\x04" + bytes(64), b"\x05" + KEY.public.compressed[1:], b"\x00"]
)
def test_bytes_that_are_no_key(data: bytes) -> None:
    assert refusal(PublicKey.load_untrusted, data) == "bad_key"


def test_uncompressed_and_long_keys_are_refused() -> None:
    assert refusal(PublicKey.load_untrusted, KEY.public.compressed + b"\0") == "bad_key"
    assert PublicKey.load_untrusted(bytearray(KEY.public.compressed)) is PublicKey.load_untrusted(KEY.public.compressed)


def test_keys_are_stored_encrypted_and_come_back() -> None:
    pem = KEY.to_pem(b"secret")
    assert b"ENCRYPTED" in pem
    assert PrivateKey.from_pem(pem, b"secret").public.compressed == KEY.public.compressed
    assert PrivateKey.from_pem(KEY.to_pem(None)).public.compressed == KEY.public.compressed
    for data, passphrase, code in [
        (pem, b"wrong", "wrong_passphrase"),
        (pem, None, "wrong_passphrase"),
        (b"no key", None, "bad_key"),
        (b"", b"secret", "bad_key"),
    ]:
        with pytest.raises(LocalError) as refused:
            PrivateKey.from_pem(data, passphrase)
        assert refused.value.code == code
    with pytest.raises(LocalError) as refused:
        KEY.to_pem(b"")
    assert refused.value.code == "empty_passphrase"
