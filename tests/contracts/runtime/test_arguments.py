"""Typed arguments: what is declared is what gets in, and what users are told."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.codec import Value, encode
from consensus.ledger.errors import Revert
from contracts.runtime.arguments import Method
from contracts.runtime.contract import AMOUNT_MAX
from contracts.runtime.loader import load_contract
from contracts.runtime.meter import Meter
from tests.contracts.runtime.samples import PROBE
from tests.contracts.support import make_registry

METHODS = load_contract("probe.py", PROBE.encode(), Meter()).methods
TYPED = METHODS["typed"]
GOOD: dict[str, Any] = {"to": bytes(20), "amount": 1, "names": ["a"], "flags": {"b": True}}


def refused(method: Method, data: bytes) -> bool:
    """Tell whether the arguments are refused with the one code for it."""
    try:
        method.decode_arguments(data)
    except Revert as error:
        return error.code == "bad_arguments"
    return False


def test_arguments_come_in_declared_order_with_defaults() -> None:
    assert TYPED.decode_arguments(encode(GOOD)) == (bytes(20), 1, ["a"], {"b": True}, None, "", b"")
    full = {**GOOD, "small": 0, "memo": "m", "data": b"d"}
    assert TYPED.decode_arguments(encode(full)) == (bytes(20), 1, ["a"], {"b": True}, 0, "m", b"d")
    assert TYPED.decode_arguments(encode({**GOOD, "small": None}))[4] is None


WRONG: list[dict[str, Any]] = [
    {"to": bytes(19)}, {"to": bytes(21)}, {"to": "0" * 20}, {"to": None}, {"amount": 0}, {"amount": -1},
    {"amount": AMOUNT_MAX + 1}, {"amount": "1"}, {"amount": True}, {"amount": None}, {"amount": 2**63 - 1},
    {"names": "a"}, {"names": [""]}, {"names": ["a" * 65]}, {"names": [1]}, {"names": {"a": 1}}, {"flags": []},
    {"flags": {"b": 1}}, {"small": -1}, {"small": "0"}, {"memo": b"m"}, {"memo": 1}, {"data": "d"}, {"nothing": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_wrong_types_and_ranges(change: dict[str, Any]) -> None:
    assert refused(TYPED, encode({**GOOD, **change}))


@pytest.mark.parametrize("name", GOOD)
def test_missing_arguments(name: str) -> None:
    assert refused(TYPED, encode({key: value for key, value in GOOD.items() if key != name}))


NOT_CANONICAL = {
    "nothing": b"",
    "no map": encode([1]),
    "a float": msgpack.packb({"key": "n", "amount": 1.0}),
    "above 63 bits": msgpack.packb({"key": "n", "amount": 2**63}),
    "unsorted": msgpack.packb({"key": "n", "amount": 1}),
    "a long integer": b"\x82\xa6amount\xcd\x00\x01\xa3key\xa1n",
    "a long text": b"\x82\xa6amount\x01\xa3key\xd9\x01n",
    "a key twice": b"\x83\xa6amount\x01\xa6amount\x01\xa3key\xa1n",
    "a tail": encode({"amount": 1, "key": "n"}) + b"\xc0",
    "a key that is no text": b"\x82\xa6amount\x01\xc4\x03key\xa1n",
    "text that is no UTF-8": b"\x82\xa6amount\x01\xa3key\xa1\xff",
    "an extension": b"\x82\xa6amount\x01\xa3key\xd4\x01n",
}


@pytest.mark.parametrize("data", NOT_CANONICAL.values(), ids=NOT_CANONICAL)
def test_what_is_not_canonical(data: bytes) -> None:
    assert METHODS["add"].decode_arguments(encode({"amount": 1, "key": "n"})) == ("n", 1)
    assert refused(METHODS["add"], data)


@given(
    optional=st.fixed_dictionaries(
        {},
        optional={
            "small": st.sampled_from([None, 0, 7]),
            "memo": st.sampled_from(["", "m"]),
            "data": st.sampled_from([b"", b"d"]),
        },
    ),
    flags=st.dictionaries(st.sampled_from(["a", "aa", "b", "é"]), st.booleans()),
    data=st.data(),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_arguments_have_one_spelling_given_or_left_to_their_default(
    optional: dict[str, Any], flags: dict[str, bool], data: st.DataObject
) -> None:
    arguments = {**GOOD, "flags": dict(data.draw(st.permutations(list(flags.items())))), **optional}
    packed = msgpack.packb(dict(data.draw(st.permutations(list(arguments.items())))))
    assert TYPED.decode_arguments(encode(arguments))[3:] == (
        flags,
        optional.get("small"),
        optional.get("memo", ""),
        optional.get("data", b""),
    )
    assert refused(TYPED, packed) == (packed != encode(arguments))


def test_free_values_are_canonical_too() -> None:
    put = METHODS["put"]
    assert put.decode_arguments(encode({"key": "n", "value": [{"a": 1}]})) == ("n", [{"a": 1}])
    wrong: list[Any] = [1.5, {"b": 1, "a": 2}, 2**63, {1: 2}]
    for value in wrong:
        assert refused(put, msgpack.packb({"key": "n", "value": value}))
    deep: Value = 1
    for _ in range(14):
        deep = [deep]
    assert not refused(put, encode({"key": "n", "value": deep}))
    assert refused(put, b"\x82\xa3key\xa1n\xa5value" + b"\x91" * 5_000 + b"\x01")
    assert refused(put, b"\x82\xa3key\xa1n\xa5value" + b"\x91" * 100_000 + b"\x01")


@given(data=st.binary(max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_bytes_are_arguments_or_refused(data: bytes) -> None:
    for method in METHODS.values():
        refused(method, data)


def test_description() -> None:
    description = make_registry(PROBE).describe("probe")
    assert description is not None
    built = description.to_builtins()
    assert (built["name"], built["version"], built["doc"]) == (
        "probe",
        1,
        "Does small things.\n\nA contract for tests.",
    )
    methods = {method["name"]: method for method in built["methods"]}
    assert list(methods) == sorted(methods)
    assert methods["typed"] == {
        "name": "typed",
        "kind": "method",
        "doc": "Take every kind of argument.\n\nReturns the amount.",
        "returns": "int",
        "arguments": [
            {"name": "to", "type": "account", "required": True, "limits": {"minLength": 20, "maxLength": 20}},
            {"name": "amount", "type": "amount", "required": True, "limits": {"min": 1, "max": 10**15}},
            {"name": "names", "type": "list<name>", "required": True},
            {"name": "flags", "type": "map<bool>", "required": True},
            {"name": "small", "type": "int?", "required": False, "default": None},
            {"name": "memo", "type": "text", "required": False, "default": ""},
            {"name": "data", "type": "bytes", "required": False, "default": "0x"},
        ],
    }
    assert methods["read"]["kind"] == "query"
    assert methods["put"]["arguments"][1]["type"] == "value"
    assert make_registry().describe("probe") is None


def test_every_shipped_method_is_documented() -> None:
    for contract in make_registry().newest():
        assert contract.doc
        for method in contract.methods.values():
            assert method.doc, f"{contract.name}.{method.name}"
