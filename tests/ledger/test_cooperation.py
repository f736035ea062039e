"""What partners sign: no two statements share bytes, and no two leaves; leaves hide what is under them."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger import cooperation
from consensus.ledger.codec import encode
from consensus.ledger.cooperation import (
    FIRST_ANSWER,
    PACKAGE_ORDERS_MAX,
    SALT_BYTES,
    agreement_hash,
    answer_hash,
    order_leaf,
    orders_hash,
    outcome_leaf,
    terms_hash,
)
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import PrivateKey, Purpose

TERMS = {"kinds": ["022"], "ageMin": 18}
STATEMENTS: list[tuple[Any, list[list[Any]]]] = [
    (
        agreement_hash,
        [["1", "2"], ["bank-a", "bank-b"], [["c"], ["c", "f"], ["cf"]], [bytes(32), b"d" * 32], [1, 2], [5, 6], [0, 9]],
    ),
    (
        terms_hash,
        [["a", "b"], ["c", "f"], ["product:1", "type:1"], [1, 2], [TERMS, {**TERMS, "ageMin": 19}], [0, 1], [8, 9]],
    ),
    (orders_hash, [["a", "b"], ["c", "f"], [1, 2], [bytes(32), b"r" * 32], [1, 2]]),
    (
        answer_hash,
        [
            ["a", "b"],
            ["c", "f"],
            [1, 2],
            [bytes(32), b"r" * 32],
            [0, 1],
            [bytes(32), b"o" * 32],
            [FIRST_ANSWER, b"p" * 32],
        ],
    ),
]


@pytest.mark.parametrize(("function", "choices"), STATEMENTS)
def test_every_part_counts(function: Any, choices: list[list[Any]]) -> None:
    statements = [function(*parts) for parts in product(*choices)]
    assert len(set(statements)) == len(statements)
    assert {len(statement) for statement in statements} == {32}


def test_no_statement_reads_as_one_of_another_kind() -> None:
    """All begin with a word of their own, under the one domain that contracts hash in."""
    parts = ["bank-a", "issuer-c", 1, bytes(32), 0, bytes(32), FIRST_ANSWER]
    assert answer_hash(*parts) == tagged_hash("contract-data", encode(["answer", *parts]))  # type: ignore[arg-type]
    assert orders_hash("a", "c", 1, bytes(32), 7) == tagged_hash(
        "contract-data", encode(["orders", "a", "c", 1, bytes(32), 7])
    )
    assert agreement_hash("1", "a", ["c", "f"], bytes(32), 1, 2, 3) == tagged_hash(
        "contract-data", encode(["agreement", "1", "a", ["c", "f"], bytes(32), 1, 2, 3])
    )
    assert terms_hash("a", "c", "type:x", 1, {"b": 1, "a": 2}, 1, 2) == tagged_hash(
        "contract-data", encode(["terms", "a", "c", "type:x", 1, {"a": 2, "b": 1}, 1, 2])
    )


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.binary(max_size=64))
def test_leaves_depend_on_salt_kind_and_content(salt: bytes, other: bytes, content: bytes) -> None:
    assert order_leaf(salt, content) != outcome_leaf(salt, content)
    assert order_leaf(salt, content) != order_leaf(salt, content + b"\0")
    assert (order_leaf(salt, content) == order_leaf(other, content)) == (salt == other)
    assert (outcome_leaf(salt, content) == outcome_leaf(other, content)) == (salt == other)


@pytest.mark.parametrize("leaf", [order_leaf, outcome_leaf])
@pytest.mark.parametrize("size", [0, SALT_BYTES - 1, SALT_BYTES + 1])
def test_a_salt_cannot_borrow_from_what_follows(leaf: Any, size: int) -> None:
    """Salt and content are hashed one after the other: only the fixed length tells them apart."""
    with pytest.raises(LocalError) as refusal:
        leaf(bytes(size), b"application")
    assert refusal.value.code == "bad_salt"


@dataclass(frozen=True)
class Made:
    """A signature and what it is checked against."""

    purpose: Purpose
    payload: bytes
    chain_id: Any = b"c" * 32


def test_a_signature_counts_for_one_purpose_and_one_chain() -> None:
    """A bank's signature of orders is none of an agreement, nor of the same orders on another chain."""
    key = PrivateKey.from_secret(7)
    made = Made(Purpose.ORDERS, orders_hash("bank-a", "issuer-c", 1, bytes(32), 9))
    signature = key.sign(made.purpose, made.chain_id, made.payload)
    others = [replace(made, purpose=purpose) for purpose in Purpose if purpose != made.purpose]
    others += [
        replace(made, chain_id=b"d" * 32),
        replace(made, payload=orders_hash("bank-a", "issuer-c", 2, bytes(32), 9)),
    ]
    assert key.public.verifies(signature, made.purpose, made.chain_id, made.payload)
    assert not any(key.public.verifies(signature, item.purpose, item.chain_id, item.payload) for item in others)


def test_limits_are_said_once() -> None:
    assert (PACKAGE_ORDERS_MAX, SALT_BYTES, len(FIRST_ANSWER)) == (1_024, 32, 32)
    assert cooperation.__doc__ is not None
