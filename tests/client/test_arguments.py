"""Arguments as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.ledger.codec import INTEGER_MAX, INTEGER_MIN, Value
from consensus.ledger.errors import LocalError
from services.client.arguments import Limits, Parameter, parse_arguments

ADDRESSES = {"shop": b"s" * 20}


def look_up(name: str) -> bytes:
    if name not in ADDRESSES:
        raise LocalError("unknown_account", name)
    return ADDRESSES[name]


def read(kind: str, token: str) -> Value:
    return parse_arguments([token], [Parameter("x", kind, True)], look_up)["x"]


@pytest.mark.parametrize(
    ("kind", "token", "value"),
    [
        ("int", "x=5", 5),
        ("int", "x=-1_000", -1000),
        ("amount", "x=250", 250),
        ("amount?", "x=250", 250),
        ("amount?", "x:=null", None),
        ("text", "x=5", "5"),
        ("name", "x=a=b", "a=b"),
        ("text", "x=", ""),
        ("bytes", "x=0x00ff", b"\x00\xff"),
        ("bytes", "x=0x", b""),
        ("bool", "x=true", True),
        ("account", "x=shop", b"s" * 20),
        ("account", "x=0x" + "01" * 20, b"\x01" * 20),
        ("list<amount>", 'x:=[1, "2"]', [1, 2]),
        ("list<account>", 'x:=["shop"]', [b"s" * 20]),
        ("list<list<bytes>>", 'x:=[["0x01"], []]', [[b"\x01"], []]),
        ("map<bytes>", 'x:={"a": "0x01"}', {"a": b"\x01"}),
        ("value", 'x:={"a": [1, "t", true, null]}', {"a": [1, "t", True, None]}),
        ("value", "x=text", "text"),
    ],
)
def test_the_declared_type_decides_what_a_token_means(kind: str, token: str, value: Value) -> None:
    assert read(kind, token) == value


@pytest.mark.parametrize(
    ("kind", "token", "hint"),
    [
        ("int", "x=1.5", "an integer"),
        ("int", "x=", "an integer"),
        ("int", "x=1e3", "an integer"),
        ("int", "x=9223372036854775808", "64 bits"),
        ("int", "x=" + "9" * 5_000, "an integer"),
        ("bool", "x=yes", "true or false"),
        ("bytes", "x=ff", "0x"),
        ("bytes", "x=0xf", "0x"),
        ("list<int>", "x=1", "x:=JSON"),
        ("list<int>", "x:=[1.5]", "no fractions"),
        ("value", "x:=NaN", "no fractions"),
        ("list<int>", "x:=[1", "no valid JSON"),
        ("list<int>", "x:=" + "[" * 100_000, "no valid JSON"),
        ("amount", "x=0", r"from 1 to 1000000000000000, not '0'"),
        ("amount", "x=-5", "from 1 to"),
        ("amount", "x=1000000000000001", "from 1 to"),
        ("list<amount>", "x:=[1, 0]", "from 1 to"),
        ("name", "x=", "from 1 to 64 characters, not 0"),
        ("name", "x=" + "n" * 65, "from 1 to 64 characters, not 65"),
        ("account", "x=0x12", "40 hex digits"),
        ("account", "x=0xzz", "0x and an even number"),
        ("int", "y=1", "there is no argument y"),
        ("int", "x", "name=value"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_hint(kind: str, token: str, hint: str) -> None:
    with pytest.raises(LocalError, match=hint) as caught:
        read(kind, token)
    assert caught.value.code == "bad_arguments"


def test_missing_and_doubled_arguments_are_named() -> None:
    declared = [Parameter("a", "int", True), Parameter("b", "text", False)]
    assert parse_arguments(["a=1"], declared, look_up) == {"a": 1}
    with pytest.raises(LocalError, match=r"missing: a \(int\)"):
        parse_arguments(["b=1"], declared, look_up)
    with pytest.raises(LocalError, match="a is given twice"):
        parse_arguments(["a=1", "a=1"], declared, look_up)


@pytest.mark.parametrize(
    ("kind", "limits", "token", "hint"),
    [
        ("int", Limits(min=1, max=100), "x=-1", "from 1 to 100"),
        ("int", Limits(max=9), "x=10", "up to 9"),
        ("int", Limits(min=0), "x=-1", "from 0 on"),
        ("bytes", Limits(min_length=33, max_length=33), "x=0x00", "exactly 33 bytes, not 1"),
        ("list<int>", Limits(max_length=1), "x:=[1, 2]", "up to 1 items, not 2"),
        ("text", Limits(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z"), "x=\u6625 \u5b63", "of the form"),
        ("text", Limits(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z"), "x=Shop", "of the form"),
    ],
)
def test_what_lies_outside_the_declared_limits_is_refused(kind: str, limits: Limits, token: str, hint: str) -> None:
    with pytest.raises(LocalError, match=hint) as caught:
        parse_arguments([token], [Parameter("x", kind, True, limits)], look_up)
    assert caught.value.code == "bad_arguments"


@pytest.mark.parametrize("pattern", ["^(a+)+$", "[", r"^[z-a]{1,2}\Z", "x" * 10_000])
def test_patterns_that_could_keep_us_busy_are_left_to_the_chain(pattern: str) -> None:
    declared = [Parameter("x", "text", True, Limits(pattern=pattern))]
    assert parse_arguments(["x=" + "a" * 40 + "!"], declared, look_up) == {"x": "a" * 40 + "!"}


@given(st.integers(INTEGER_MIN, INTEGER_MAX))
def test_every_integer_reads_back(number: int) -> None:
    assert read("int", f"x={number}") == number
    assert read("list<int>", f"x:=[{number}]") == [number]


@given(st.sampled_from(["int", "bytes", "bool", "account", "list<int>", "map<account>", "value"]), st.text())
def test_any_text_is_a_value_or_an_error_of_ours(kind: str, text: str) -> None:
    for operator in ("=", ":="):
        try:
            read(kind, f"x{operator}{text}")
        except LocalError as error:
            assert error.code in ("bad_arguments", "unknown_account")  # noqa: PT017
