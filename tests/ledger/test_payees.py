"""What is signed about payees: no two statements share bytes; records of queries and answers travel and are bounded."""

from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger import payees
from consensus.ledger.codec import encode
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import (
    ANSWER_BYTES_MAX,
    PLAINTEXT_BYTES_MAX,
    STATES_BYTES_MAX,
    Answer,
    AnswerContent,
    AskQuote,
    AskResolve,
    Content,
    Delegation,
    Mode,
    Query,
    QueryBody,
    Quote,
    Served,
    Told,
    answer_codec,
    answer_content_codec,
    answer_hash,
    ask_codec,
    commitment,
    consent_hash,
    content_codec,
    content_hash,
    delegation_hash,
    log_hash,
    merchant_change_hash,
    merchant_hash,
    query_codec,
    query_hash,
    quote_codec,
    quote_hash,
    record_hash,
    record_place,
    removal_hash,
    told_codec,
    wrap_hash,
)

IDENTITIES = [bytes(16), b"i" * 16]
HASHES = [bytes(32), b"h" * 32]
KEYS = [b"\2" * 33, b"\3" * 33]
SERVERS = ["wallet-p", "wallet-q"]
STATEMENTS: dict[str, tuple[Any, list[list[Any]]]] = {
    "payee-merchant": (merchant_hash, [IDENTITIES, KEYS]),
    "payee-merchant-key": (merchant_change_hash, [IDENTITIES, [1, 2], KEYS]),
    "payee-content": (content_hash, [IDENTITIES, SERVERS, [1, 2], HASHES, [False, True]]),
    "payee-consent": (consent_hash, [IDENTITIES, [1, 2], [False, True]]),
    "payee-removal": (removal_hash, [IDENTITIES, SERVERS, [1, 2]]),
    "payee-record": (
        record_hash,
        [IDENTITIES, SERVERS, [1, 2], [1, 2], [1, 2], HASHES, [b"", b"c"], [False, True]],
    ),
    "payee-log": (log_hash, [HASHES, [1, 2], HASHES]),
    "payee-wrap": (wrap_hash, [SERVERS, [1, 2], ["bank-a", "issuer-c"], [b"", b"w"]]),
    "payee-delegation": (delegation_hash, [SERVERS, KEYS, [0, 1]]),
    "payee-answer": (answer_hash, [HASHES, ["bank-a", "issuer-c"], [0, 1], KEYS, [b"", b"s"]]),
    "payee-quote": (quote_hash, [["bank-a", "issuer-c"], HASHES, KEYS, KEYS, IDENTITIES]),
}


def test_every_part_of_every_statement_counts() -> None:
    hashes = [function(*parts) for function, choices in STATEMENTS.values() for parts in product(*choices)]
    assert len(set(hashes)) == len(hashes)
    assert {len(item) for item in hashes} == {32}


@pytest.mark.parametrize("word", STATEMENTS)
def test_a_statement_begins_with_its_word_in_the_domain_that_contracts_hash_in(word: str) -> None:
    function, choices = STATEMENTS[word]
    parts = [choice[0] for choice in choices]
    assert function(*parts) == tagged_hash("contract-data", encode([word, *parts]))


def test_a_signature_counts_for_one_purpose_and_one_chain() -> None:
    """What a merchant signs of a record is no removal of it, no code, no platform's word, and none on another chain."""
    key = PrivateKey.from_secret(7)
    payload = content_hash(IDENTITIES[0], "wallet-p", 1, HASHES[0], False)
    signature = key.sign(Purpose.PAYEE_MERCHANT, tagged_chain(0), payload)
    assert key.public.verifies(signature, Purpose.PAYEE_MERCHANT, tagged_chain(0), payload)
    others = [purpose for purpose in Purpose if purpose != Purpose.PAYEE_MERCHANT]
    assert not any(key.public.verifies(signature, purpose, tagged_chain(0), payload) for purpose in others)
    assert not key.public.verifies(signature, Purpose.PAYEE_MERCHANT, tagged_chain(1), payload)


def tagged_chain(number: int) -> Any:
    """A chain's identity."""
    return bytes([number]) * 32


# -- commitments -----------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(max_size=64))
def test_a_commitment_depends_on_salt_and_content(salt: bytes, other: bytes, content: bytes) -> None:
    assert commitment(salt, content) != commitment(salt, content + b"\0")
    assert (commitment(salt, content) == commitment(other, content)) == (salt == other)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_salt_cannot_borrow_from_what_follows(size: int) -> None:
    with pytest.raises(LocalError) as refusal:
        commitment(bytes(size), b"content")
    assert refusal.value.code == "bad_salt"


def test_a_ciphertext_is_bound_to_identity_platform_and_version() -> None:
    places = {record_place(*parts) for parts in product(IDENTITIES, SERVERS, [1, 2])}
    assert len(places) == 8


def test_content_does_not_show_itself() -> None:
    content = Content(bytes(32), b"account 4711")
    assert "4711" not in f"{content!r} {content} {Served('wallet-p', 1, content)!r}"


# -- what travels ----------------------------------------------------------------------------------------

BODY = QueryBody(bytes(32), "wallet-p", bytes(16), Mode.TARGET, KEYS[0], bytes(16), 1)
DELEGATION = Delegation("wallet-p", KEYS[1], 2, bytes(64))
CONTENT = Content(bytes(32), b"plaintext")
TRAVELLING: list[tuple[Any, Any]] = [
    (query_codec, Query(BODY, bytes(64), None)),
    (query_codec, Query(BODY, bytes(64), DELEGATION)),
    (content_codec, CONTENT),
    (answer_content_codec, AnswerContent("", [Served("wallet-p", 1, CONTENT), Served("wallet-q", 2, None)])),
    (answer_codec, Answer(bytes(32), "bank-a", 1, KEYS[0], b"sealed", bytes(64))),
    (quote_codec, Quote("bank-a", bytes(32), KEYS[0], KEYS[1], bytes(16), bytes(64))),
    (ask_codec, AskQuote(bytes(16))),
    (ask_codec, AskResolve(b"query", b"states")),
    (told_codec, Told("", "", b"body")),
]


@pytest.mark.parametrize(("codec", "record"), TRAVELLING)
def test_records_travel_and_only_whole(codec: Any, record: Any) -> None:
    data = codec.encode(record)
    assert codec.decode_untrusted(data) == record
    for cut in range(len(data)):
        with pytest.raises(PeerError):
            codec.decode_untrusted(data[:cut])
    with pytest.raises(PeerError):
        codec.decode_untrusted(data + b"\0")


def test_the_largest_fit() -> None:
    """Bounds of parts and bounds of wholes agree: what may be said can be said."""
    name = "n" * 32
    body = QueryBody(bytes(32), name, bytes(16), Mode.CANDIDATES, KEYS[0], bytes(16), 2**53)
    query_codec.encode(Query(body, bytes(64), Delegation(name, KEYS[1], 2**53, bytes(64))))
    content = Content(bytes(32), bytes(PLAINTEXT_BYTES_MAX))
    assert len(content_codec.encode(content)) + 12 + 16 <= payees.CIPHERTEXT_BYTES_MAX
    served = [Served(name, 2**63 - 1, content) for _ in range(payees.PLATFORMS_MAX)]
    sealed = len(answer_content_codec.encode(AnswerContent("", served)))
    assert sealed + 64 <= ANSWER_BYTES_MAX
    answer = Answer(bytes(32), name, 2**63 - 1, KEYS[0], bytes(ANSWER_BYTES_MAX), bytes(64))
    told_codec.encode(Told("", "", answer_codec.encode(answer)))
    ask_codec.encode(AskResolve(bytes(payees.QUERY_BYTES_MAX), bytes(STATES_BYTES_MAX)))


WRONG: list[tuple[type[Any], dict[str, Any]]] = [
    (QueryBody, {"identity": bytes(15)}),
    (QueryBody, {"identity": bytes(17)}),
    (QueryBody, {"server": ""}),
    (QueryBody, {"server": "a/b"}),
    (QueryBody, {"server": "wallet-p\n"}),
    (QueryBody, {"mode": 2}),
    (QueryBody, {"mode": -1}),
    (QueryBody, {"exchange_key": bytes(32)}),
    (QueryBody, {"nonce": bytes(15)}),
    (QueryBody, {"time_ms": -1}),
    (QueryBody, {"time_ms": 2**53 + 1}),
    (QueryBody, {"chain_id": bytes(31)}),
]


@pytest.mark.parametrize(("kind", "changed"), WRONG)
def test_a_query_out_of_its_bounds_is_malformed(kind: type[Any], changed: dict[str, Any]) -> None:
    body = msgspec.structs.replace(BODY, **changed)
    with pytest.raises(PeerError) as refusal:
        query_codec.decode_untrusted(query_codec.encode(Query(body, bytes(64), None)))
    assert refusal.value.code == "malformed"


@pytest.mark.parametrize(
    "changed",
    [
        {"chain_id": b"c" * 32},
        {"server": "wallet-q"},
        {"identity": b"i" * 16},
        {"mode": 1},
        {"exchange_key": KEYS[1]},
        {"nonce": b"n" * 16},
        {"time_ms": 2},
    ],
)
def test_a_querys_signature_covers_all_of_it(changed: dict[str, Any]) -> None:
    assert query_hash(msgspec.structs.replace(BODY, **changed)) != query_hash(BODY)


def test_state_keys_are_apart() -> None:
    keys = [
        payees.merchant_key(bytes(16)),
        payees.record_key("wallet-p", bytes(16)),
        payees.platform_key("wallet-p"),
        payees.wrap_key("wallet-p", 1, "bank-a"),
        payees.environment_key("bank-a"),
        payees.allowed_key(bytes(32)),
    ]
    assert len({key.split("/")[1] for key in keys}) == len(keys)
    assert {key.split("/")[0] for key in keys} == {payees.CONTRACT}
