"""Records, wrapped keys and answers: they open where they were sealed for, and nowhere else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.payees import (
    CIPHERTEXT_BYTES_MAX,
    PLAINTEXT_BYTES_MAX,
    AnswerContent,
    Content,
    Served,
    commitment,
    content_codec,
    record_place,
)
from consensus.ledger.sealing import Sealer
from services.payee.sealing import (
    WRAP_BYTES,
    EpochKey,
    ExchangeKey,
    check_commitment,
    derived,
    open_answer,
    seal_answer,
    unwrap_epoch_key,
    wrap_epoch_key,
)

P = ParamSpec("P")

IDENTITY, OTHER_IDENTITY = bytes(range(16)), bytes(16)
CONTENT = Content(bytes(range(32)), b"Acquiring Information")
KEY = EpochKey(bytes(range(32)))


def exchange_key(number: int) -> ExchangeKey:
    return ExchangeKey.from_secret(number.to_bytes(32, "big"))


OWN, FRESH, STRANGER = exchange_key(5_001), exchange_key(5_002), exchange_key(5_003)


def refusal(call: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> str:
    """Return the code with which a call fails."""
    with pytest.raises(HansaError) as caught:
        call(*arguments, **named)
    return caught.value.code


# -- RFC 5869, appendix A: the cases of SHA-256 ----------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    secret: str
    salt: str
    info: str
    made: str


VECTORS = [
    Vector(
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    Vector(
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    Vector(
        "0b" * 22,
        "",
        "",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.mark.parametrize("vector", VECTORS, ids=["A.1", "A.2", "A.3"])
def test_keys_are_derived_as_rfc_5869_says(vector: Vector) -> None:
    secret, salt, info, made = (bytes.fromhex(text) for text in (vector.secret, vector.salt, vector.info, vector.made))
    assert derived(secret, info, bytes_count=len(made), salt=salt) == made
    if not salt:
        assert derived(secret, info, bytes_count=len(made)) == made


# -- records ---------------------------------------------------------------------------------------------


def sealed_record() -> bytes:
    return KEY.seal_record(CONTENT, identity=IDENTITY, server="wallet-p", version=3, random_bytes=bytes)


def opened_record(
    data: bytes, key: EpochKey = KEY, *, identity: bytes = IDENTITY, server: str = "wallet-p", version: int = 3
) -> Content:
    return key.open_record(data, identity=identity, server=server, version=version)


def test_a_record_opens_at_its_place_alone() -> None:
    data = sealed_record()
    assert opened_record(data) == CONTENT
    assert refusal(opened_record, data, EpochKey(bytes(32))) == "bad_record"
    assert refusal(opened_record, data, identity=OTHER_IDENTITY) == "bad_record"
    assert refusal(opened_record, data, server="wallet-q") == "bad_record"
    assert refusal(opened_record, data, version=4) == "bad_record"


def test_every_bit_of_a_record_counts() -> None:
    data = sealed_record()
    for at in range(8 * len(data)):
        altered = bytearray(data)
        altered[at // 8] ^= 1 << at % 8
        assert refusal(opened_record, bytes(altered)) == "bad_record"
    for size in range(len(data)):
        assert refusal(opened_record, data[:size]) == "bad_record"
    assert refusal(opened_record, bytes(CIPHERTEXT_BYTES_MAX + 1)) == "bad_record"


def test_a_record_is_nonce_and_gcm_of_its_content() -> None:
    """Other programs can read it by what the standard says: AES-256-GCM, the place as associated data."""
    place = record_place(IDENTITY, "wallet-p", 3)
    assert Sealer(bytes(range(32)), bytes).open(place, sealed_record()) == content_codec.encode(CONTENT)
    assert sealed_record()[:12] == bytes(12)


def test_the_largest_content_fits_into_a_record() -> None:
    content = Content(bytes(32), bytes(PLAINTEXT_BYTES_MAX))
    data = KEY.seal_record(content, identity=IDENTITY, server="w" * 32, version=2**63 - 1, random_bytes=bytes)
    assert len(data) <= CIPHERTEXT_BYTES_MAX
    assert opened_record(data, server="w" * 32, version=2**63 - 1) == content


def test_what_opens_and_is_no_content_is_a_bad_record() -> None:
    place = record_place(IDENTITY, "wallet-p", 3)
    for inside in (b"", b"secret", content_codec.encode(CONTENT) + b"\0"):
        data = Sealer(bytes(range(32)), bytes).seal(place, inside)
        with pytest.raises(PeerError) as caught:
            opened_record(data)
        assert caught.value.code == "bad_record"
        assert "secret" not in str(caught.value)


def test_a_record_commits_to_salt_and_content() -> None:
    committed = commitment(CONTENT.salt, CONTENT.plaintext)
    check_commitment(CONTENT, committed)
    for other in (Content(bytes(32), CONTENT.plaintext), Content(CONTENT.salt, CONTENT.plaintext + b"!")):
        assert refusal(check_commitment, other, committed) == "bad_commitment"


def test_keys_have_their_sizes() -> None:
    for size in (0, 16, 31, 33):
        assert refusal(EpochKey, bytes(size)) == "bad_key"
        assert refusal(ExchangeKey.from_secret, bytes(size)) == "bad_key"
    assert refusal(ExchangeKey.from_secret, bytes(32)) == "bad_key"
    assert refusal(ExchangeKey.from_secret, b"\xff" * 32) == "bad_key"
    assert OWN.secret() == (5_001).to_bytes(32, "big")
    assert KEY.secret() == bytes(range(32))


def test_objects_do_not_show_what_they_hold() -> None:
    served = AnswerContent("", [Served("wallet-p", 1, CONTENT)])
    for shown in (KEY, OWN, CONTENT, served):
        for text in (repr(shown), str(shown)):
            assert "Acquiring" not in text
            assert KEY.secret().hex() not in text
            assert str(KEY.secret())[2:-1] not in text


# -- wraps -----------------------------------------------------------------------------------------------


def wrapped(key: EpochKey = KEY, fresh: ExchangeKey = FRESH) -> bytes:
    return wrap_epoch_key(key, server="wallet-p", epoch=2, environment="bank-a", exchange_key=OWN.public, fresh=fresh)


def unwrapped(
    wrap: bytes, *, server: str = "wallet-p", epoch: int = 2, environment: str = "bank-a", own: ExchangeKey = OWN
) -> bytes:
    return unwrap_epoch_key(wrap, server=server, epoch=epoch, environment=environment, exchange=own).secret()


def test_a_wrap_opens_for_its_environment_epoch_and_platform_alone() -> None:
    wrap = wrapped()
    assert len(wrap) == WRAP_BYTES
    assert unwrapped(wrap) == KEY.secret()
    assert refusal(unwrapped, wrap, server="wallet-q") == "wrong_key"
    assert refusal(unwrapped, wrap, epoch=3) == "wrong_key"
    assert refusal(unwrapped, wrap, environment="issuer-c") == "wrong_key"
    assert refusal(unwrapped, wrap, own=STRANGER) == "wrong_key"


def test_every_byte_of_a_wrap_counts() -> None:
    wrap = wrapped()
    for at in range(len(wrap)):
        altered = wrap[:at] + bytes([wrap[at] ^ 1]) + wrap[at + 1 :]
        assert refusal(unwrapped, altered) == "wrong_key"
        assert refusal(unwrapped, wrap[:at]) == "wrong_key"
    assert refusal(unwrapped, wrap + b"\0") == "wrong_key"


def test_a_wrap_for_no_key_is_refused() -> None:
    for bad in (b"", bytes(33), b"\2" + b"\xff" * 32, b"\4" * 33):
        with pytest.raises(PeerError) as caught:
            wrap_epoch_key(KEY, server="w", epoch=1, environment="e", exchange_key=bad, fresh=FRESH)
        assert caught.value.code == "bad_key"


def test_a_wrap_and_an_answer_are_what_they_always_were() -> None:
    """Whoever keeps wraps, or has other software, relies on the very bytes: these were made by this code once."""
    assert wrapped().hex() == GOLDEN_WRAP
    assert sealed_answer().hex() == GOLDEN_ANSWER


# -- answers ---------------------------------------------------------------------------------------------

QUERY = bytes(range(32))
ANSWER = AnswerContent("", [Served("wallet-p", 3, CONTENT), Served("wallet-q", 1, None)])


def sealed_answer() -> bytes:
    return seal_answer(ANSWER, query=QUERY, environment="bank-a", height=9, exchange_key=OWN.public, fresh=FRESH)


def opened_answer(
    sealed: bytes,
    *,
    query: bytes = QUERY,
    environment: str = "bank-a",
    height: int = 9,
    exchange_key: bytes = FRESH.public,
    own: ExchangeKey = OWN,
) -> AnswerContent:
    return open_answer(sealed, query=query, environment=environment, height=height, exchange_key=exchange_key, own=own)


def test_an_answer_opens_for_its_query_alone() -> None:
    sealed = sealed_answer()
    assert opened_answer(sealed) == ANSWER
    assert refusal(opened_answer, sealed, query=bytes(32)) == "wrong_key"
    assert refusal(opened_answer, sealed, environment="issuer-c") == "wrong_key"
    assert refusal(opened_answer, sealed, height=10) == "wrong_key"
    assert refusal(opened_answer, sealed, exchange_key=STRANGER.public) == "wrong_key"
    assert refusal(opened_answer, sealed, exchange_key=bytes(33)) == "wrong_key"
    assert refusal(opened_answer, sealed, own=STRANGER) == "wrong_key"


def test_an_answer_is_no_wrap() -> None:
    wrap = wrapped()
    sealed = wrap[len(FRESH.public) :]
    assert refusal(opened_answer, sealed, environment="bank-a") == "wrong_key"


@settings(max_examples=200)
@given(at=st.integers(0, len(sealed_answer()) - 1), mask=st.integers(1, 255))
def test_an_altered_answer_does_not_open(at: int, mask: int) -> None:
    sealed = sealed_answer()
    altered = sealed[:at] + bytes([sealed[at] ^ mask]) + sealed[at + 1 :]
    assert refusal(opened_answer, altered) == "wrong_key"


GOLDEN_WRAP = (
    "036f886b04c2035b3f260072d02480b87f2d0b17c88c75a26f40e969b952a643c1fcfec035c14f187759581c40b2aa7ad5014b69"
    "d6f351334398fd7c0544fc2e46ab0559ce6b0bcb11770336ee5097499d"
)
GOLDEN_ANSWER = (
    "ba177dd0ac070c5b4c78433f409485c8e1f725df06f3245a2419ee0924bc5ec6cbeff302a63fa3959fd27af2d8eb3ed8bea2c0d5"
    "dffa6682d2d55da63b40a885204f24837ac67f855a271acf976d753ae87a531aff0665fc3bc0eb783e11b0a663d2ab4b"
)
