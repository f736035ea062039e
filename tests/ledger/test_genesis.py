"""Genesis: the chain id depends on all of it, and a document that cannot start a chain is refused."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import GENESIS_BYTES_MAX, Genesis, decode_genesis_untrusted
from consensus.ledger.keys import PrivateKey
from tests.ledger.builders import CLIENT, make_genesis, make_keys, make_set

KEYS = make_keys(4)
GENESIS = make_genesis(KEYS)
DOCUMENT: dict[str, Any] = json.loads(GENESIS.to_json())
OTHER_KEY = PrivateKey.from_secret(999).public.compressed.hex()


def decode(document: object) -> Genesis:
    return decode_genesis_untrusted(json.dumps(document).encode())


def variants(value: Any) -> Iterator[Any]:
    """The document with one leaf changed, one item dropped or one order turned, everywhere in turn."""
    match value:
        case dict():
            for key in value:
                for inner in variants(value[key]):
                    yield {**value, key: inner}
        case list():
            for index, item in enumerate(value):
                yield value[:index] + value[index + 1 :]
                for inner in variants(item):
                    yield [*value[:index], inner, *value[index + 1 :]]
            if len(value) > 1:
                yield value[::-1]
        case int():
            yield value + 1
        case str() if len(value) == 66:
            yield OTHER_KEY
        case str() if len(value) == 64:
            yield "cd" * 32
        case str():
            yield "shop" if value == "bank" else value + "x"


def test_the_file_comes_back() -> None:
    assert decode_genesis_untrusted(GENESIS.to_json()) == GENESIS
    assert GENESIS.validator_set() == make_set(KEYS)
    assert GENESIS.accounts[0].address == CLIENT.public.address


def test_the_layout_of_the_file_does_not_matter() -> None:
    turned = {key: DOCUMENT[key] for key in reversed(DOCUMENT)}
    assert decode(turned).chain_id() == GENESIS.chain_id()
    assert decode_genesis_untrusted(json.dumps(DOCUMENT, separators=(",", ":")).encode()) == GENESIS


def test_the_chain_id_depends_on_every_field() -> None:
    seen = {GENESIS.chain_id()}
    accepted = 0
    for document in variants(DOCUMENT):
        try:
            seen.add(decode(document).chain_id())
        except LocalError as error:
            assert error.code == "bad_genesis", document  # noqa: PT017
        else:
            accepted += 1
            assert len(seen) == accepted + 1, document
    assert accepted > 20


def change(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    edit(document)
    return document


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no validators": lambda d: d.update(validators=[]),
    "a validator twice": lambda d: d["validators"].append(d["validators"][0]),
    "a vote key twice": lambda d: d["validators"][0].update(voteKey=d["validators"][1]["voteKey"]),
    "a vote key that is no point": lambda d: d["validators"][0].update(voteKey="02" + "ff" * 32),
    "a vote key as account": lambda d: d["accounts"][0].update(publicKey=d["validators"][0]["voteKey"]),
    "an account key that is no point": lambda d: d["accounts"][0].update(publicKey="02" + "ff" * 32),
    "an account name twice": lambda d: d["accounts"].append({**d["accounts"][0], "publicKey": OTHER_KEY}),
    "an account key twice": lambda d: d["accounts"].append({**d["accounts"][0], "name": "other"}),
    "an organisation twice": lambda d: d["organisations"].append(d["organisations"][0]),
    "a contract twice": lambda d: d["contracts"].append({**d["contracts"][0], "version": 2}),
    "an unknown organisation": lambda d: d["validators"][0].update(organisation="nobody"),
    "an account of nobody": lambda d: d["accounts"][0].update(organisation="nobody"),
    "an unknown field": lambda d: d.update(more=1),
    "an unknown field within": lambda d: d["accounts"][0].update(more=1),
    "a missing field": lambda d: d.pop("timeMs"),
    "capital hex": lambda d: d["accounts"][0].update(publicKey=d["accounts"][0]["publicKey"].upper()),
    "a newline after hex": lambda d: d["accounts"][0].update(publicKey=d["accounts"][0]["publicKey"] + "\n"),
    "a newline after a name": lambda d: d.update(name="harbour\n"),
    "negative time": lambda d: d.update(timeMs=-1),
    "huge time": lambda d: d.update(timeMs=2**63),
    "time that is no number": lambda d: d.update(timeMs="1"),
    "time that is no integer": lambda d: d.update(timeMs=1.5),
    "a lone surrogate": lambda d: d["organisations"][0].update(rootCertificate="\ud800"),
    "101 validators": lambda d: d.update(validators=json.loads(make_genesis(make_keys(101)).to_json())["validators"]),
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED.keys())
def test_documents_that_start_no_chain(edit: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(LocalError) as refused:
        decode(change(edit))
    assert refused.value.code == "bad_genesis"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"timeMs":' + b"9" * 5_000 + b"}",
        b'{"timeMs": NaN}',
        b" " * (GENESIS_BYTES_MAX + 1),
        GENESIS.to_json().replace(b'"name": "harbour"', b'"name": "harbour", "name": "haven"'),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_r72_bytes_that_are_no_genesis(data: bytes) -> None:
    with pytest.raises(LocalError) as refused:
        decode_genesis_untrusted(data)
    assert refused.value.code == "bad_genesis"
