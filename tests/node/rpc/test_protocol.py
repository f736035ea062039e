"""JSON-RPC as bytes: whatever comes in, a typed error or a request comes out."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.errors import PeerError
from node.rpc.methods import methods
from node.rpc.protocol import BATCH_MAX, BODY_BYTES_MAX, DEPTH_MAX, Faulty, Request, error_bytes, parse_untrusted
from node.rpc.render import value_json, value_of_untrusted
from node.rpc.schema import NoParams, convert_untrusted

OK = {"jsonrpc": "2.0", "id": 1, "method": "chain_status"}

BOMBS = {
    "empty": b"",
    "no json": b"{",
    "two documents": b"{}{}",
    "utf-8 broken": b'{"a": "\xff"}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "nan": b'{"id": NaN}',
    "infinity": b'{"id": -Infinity}',
    "fraction": b'{"id": 1.0}',
    "exponent": b'{"id": 1e400}',
    "integer of a million digits": b'{"id": ' + b"9" * 1_000_000 + b"}",
    "integer above 64 bits": b'{"id": 18446744073709551616}',
    "integer below 64 bits": b'{"id": -9223372036854775809}',
    "duplicate key": b'{"jsonrpc": "2.0", "method": "a", "method": "b"}',
    "duplicate key inside": b'{"params": {"a": 1, "a": 1}}',
    "duplicate key by escape": b'{"a": 1, "\\u0061": 1}',
    "lone surrogate": b'{"method": "\\ud800"}',
    "lone surrogate as key": b'{"\\udfff": 1}',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep lists, unclosed": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "too deep by one": b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1),
    "control character": b'{"a": "\x00"}',
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_r72_bombs_are_parse_errors(body: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        parse_untrusted(body)
    assert caught.value.code == "parse_error"
    answer = json.loads(error_bytes(None, caught.value))
    assert (answer["id"], answer["error"]["code"], answer["error"]["data"]) == (None, -32700, {"code": "parse_error"})


def test_r73_a_body_has_a_size() -> None:
    with pytest.raises(PeerError) as caught:
        parse_untrusted(b" " * (BODY_BYTES_MAX + 1))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("count", [0, BATCH_MAX + 1])
def test_r73_a_batch_has_a_length(count: int) -> None:
    with pytest.raises(PeerError) as caught:
        parse_untrusted(json.dumps([OK] * count).encode())
    assert caught.value.code == "invalid_request"


WRONG = [
    1,
    None,
    "x",
    True,
    [],
    {},
    {**OK, "jsonrpc": "1.0"},
    {**OK, "jsonrpc": 2},
    {**OK, "method": 1},
    {**OK, "method": ""},
    {**OK, "method": "m" * 65},
    {**OK, "params": "x"},
    {**OK, "params": None},
    {**OK, "id": True},
    {**OK, "id": {}},
    {**OK, "id": "i" * 129},
    {**OK, "extra": 1},
    *[{key: item for key, item in OK.items() if key != absent} for absent in ("jsonrpc", "method")],
]


@pytest.mark.parametrize("element", WRONG, ids=map(str, range(len(WRONG))))
def test_r67_wrong_requests_are_answered_one_by_one(element: object) -> None:
    entries = parse_untrusted(json.dumps([element, OK]).encode()).entries
    assert isinstance(entries[0], Faulty)
    assert entries[0].error.code == "invalid_request"
    assert entries[1] == Request(1, "chain_status", [])


def test_a_request_without_id_is_a_notification() -> None:
    (entry,) = parse_untrusted(b'{"jsonrpc": "2.0", "method": "x"}').entries
    assert entry == Request(None, "x", [], is_notification=True)
    (entry,) = parse_untrusted(b'{"jsonrpc": "2.0", "method": "x", "id": null}').entries
    assert entry == Request(None, "x", [])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='[]{}":,.0123456789eE+-\\udfntrue ', max_size=80).map(str.encode))
def test_any_bytes_are_a_body_or_a_peer_error(body: bytes) -> None:
    try:
        parse_untrusted(body)
    except PeerError as error:
        json.loads(error_bytes(None, error))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", sorted(methods.methods))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_r67_any_parameters_convert_or_are_invalid(name: str, data: st.DataObject) -> None:
    """Every field absent, of a wrong type, or unknown: one error, no exception."""
    kind = methods.methods[name].params
    fields = st.sampled_from([*kind.__struct_encode_fields__, "unknown"])
    params = data.draw(st.dictionaries(fields, JSON, max_size=4) | st.lists(JSON, max_size=7))
    code = "invalid_params"
    try:
        convert_untrusted(kind, params)
    except PeerError as error:
        code = error.code
    assert code == "invalid_params"


def test_parameters_by_name_and_by_place_are_the_same() -> None:
    kind = methods.methods["chain_getBlock"].params
    assert convert_untrusted(kind, [7]) == convert_untrusted(kind, {"height": 7})
    with pytest.raises(PeerError):
        convert_untrusted(NoParams, [1])
    with pytest.raises(PeerError):
        convert_untrusted(kind, {"height": -1})
    with pytest.raises(PeerError):
        convert_untrusted(kind, {"hash": "0x" + "0" * 64 + "\n"})


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("int", "12", 12),
        ("int", 12, 12),
        ("amount", "-9223372036854775808", -(2**63)),
        ("amount?", None, None),
        ("bytes", "0x0aff", b"\x0a\xff"),
        ("account", "0x" + "11" * 20, b"\x11" * 20),
        ("text", "0x0aff", "0x0aff"),
        ("text", "12", "12"),
        ("list<amount>", ["1", 2], [1, 2]),
        ("map<list<bytes>>", {"a": ["0x01"]}, {"a": [b"\1"]}),
        ("value", {"a": [1, "0x01"]}, {"a": [1, "0x01"]}),
        ("bool", True, True),
    ],
)
def test_arguments_take_their_declared_types(kind: str, given: object, value: object) -> None:
    assert value_of_untrusted(kind, given) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "given"),
    [("int", "1.5"), ("int", "--1"), ("int", "٣"), ("int", "9" * 400), ("bytes", "0x0"), ("bytes", "a")],
)
def test_arguments_that_spell_no_such_value_are_invalid(kind: str, given: str) -> None:
    with pytest.raises(PeerError) as caught:
        value_of_untrusted(kind, given)
    assert caught.value.code == "invalid_params"


def test_values_keep_every_integer_whole() -> None:
    value = {"a": 2**63 - 1, "b": [True, None, b"\x00", "x"], "c": -(2**63)}
    assert value_json(value) == {
        "a": "9223372036854775807",
        "b": [True, None, "0x00", "x"],
        "c": "-9223372036854775808",
    }  # type: ignore[arg-type]
    msgspec.json.encode(value_json(value))  # type: ignore[arg-type]
