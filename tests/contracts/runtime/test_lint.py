"""What the determinism guard refuses, and that it says where."""

import pytest

from consensus.ledger.errors import LocalError
from contracts.runtime.lint import lint
from contracts.runtime.loader import load_contract
from contracts.runtime.meter import Meter
from tests.contracts.runtime.samples import PROBE, contract_of
from tests.contracts.support import shipped_sources

IN_A_BODY = {
    "a float": "x = 1.5",
    "a division": "x = 1 / 2",
    "a division in place": "x = 1\nx /= 2",
    "a matrix product": "x = 1 @ 2",
    "a set": "x = {1, 2}",
    "a set comprehension": "x = {y for y in [1]}",
    "set()": "x = set([1])",
    "frozenset()": "x = frozenset([1])",
    "hash": "x = hash('a')",
    "id": "x = id(context)",
    "open": "open('x')",
    "eval": "eval('1')",
    "exec": "exec('1')",
    "getattr": "getattr(context, 'x')",
    "setattr": "setattr(context, 'x', 1)",
    "repr": "x = repr(context)",
    "print": "print(1)",
    "float()": "x = float(1)",
    "map": "x = map(len, [])",
    "iter": "x = iter([])",
    "next": "x = next([])",
    "type": "x = type(1)",
    "super": "super().run()",
    "an import": "import time",
    "a dunder": "x = context.__class__",
    "a dunder name": "x = __builtins__",
    "a private attribute": "x = context._host",
    "an attribute set": "context.caller = b''",
    "an attribute of the contract set": "self.total = 1",
    "global": "global x\nx = 1",
    "a nested function": "def inner(): pass",
    "a nested class": "class Inner: pass",
    "a free lambda": "x = lambda: 1",
    "a yield": "yield 1",
    "a bare except": "try:\n    pass\nexcept:\n    pass",
    "except Exception": "try:\n    pass\nexcept Exception:\n    pass",
    "finally": "try:\n    pass\nfinally:\n    pass",
    "raise of something else": "raise ValueError('x')",
    "raise from": "raise Revert('x') from None",
    "assert": "assert context",
    "with": "with context:\n    pass",
    "match": "match 1:\n    case 1:\n        pass",
    "is between values": "x = 1\nreturn x is 1000",
    "text formatting by method": "x = '{}'.format(1)",
    "padding": "x = 'a'.zfill(9)",
    "a wide format": "x = 1\nreturn f'{x:100000}'",
    "a computed format": "x = 1\nreturn f'{x:{x}}'",
    "repr in text": "x = 1\nreturn f'{x!r}'",
    "a float format": "x = 1\nreturn f'{x:.2f}'",
    "a guarded built-in as a value": "x = list\nreturn x(range(10**12))",
    "a guarded method as a value": "x = ''.join\nreturn x([])",
    "an unbound method": "x = str.upper('a')",
    "a slice assigned": "x = [1]\nx[0:1] = [2]",
    "a starred target": "a, *b = [1, 2]",
    "a built-in's name taken": "len = 3",
    "a chain with in": "return 1 in [1] in [[1]]",
    "an ellipsis": "x = ...",
    "part of a number": "x = 1\nreturn x.real",
}

AT_THE_TOP = {
    "import of time": "import time",
    "import of os under a name": "import os as msgspec",
    "import from random": "from random import random",
    "import of a private name": "from contracts.runtime.contract import PublicKey",
    "import of a module's inner part": "from consensus.ledger.keys import PrivateKey",
    "import with another name": "from contracts.runtime.contract import Revert as Exception",
    "a relative import": "from . import x",
    "a star import": "from typing import *",
    "a list": "CACHE = []",
    "a list in a map": "CACHE = {'a': []}",
    "a call": "X = print('x')",
    "a statement": "print('x')",
    "a loop": "for x in [1]:\n    pass",
    "msgspec's decoder": "import msgspec\nX = msgspec.msgpack",
    "a decorator": "@classmethod\ndef f(x: int) -> int:\n    return x",
    "a list as default": "def f(x: list[int] = []) -> int:\n    return 1",
    "variable arguments": "def f(*x: int) -> int:\n    return 1",
    "an async function": "async def f() -> None:\n    pass",
    "a base that is called": "class X(print('x')):\n    pass",
    "a class attribute that changes": "class X:\n    rows = []",
}


@pytest.mark.parametrize("body", IN_A_BODY.values(), ids=IN_A_BODY)
def test_refuses_in_a_body(body: str) -> None:
    source = contract_of(body)
    found = lint("sample.py", source.encode())
    first_line = source[: source.index("-> Value:")].count("\n") + 2
    assert found
    assert all(first_line <= int(finding.split(":")[1]) <= first_line + body.count("\n") for finding in found), found


@pytest.mark.parametrize("text", AT_THE_TOP.values(), ids=AT_THE_TOP)
def test_refuses_at_the_top(text: str) -> None:
    assert lint("sample.py", contract_of("return 1", helpers=text).encode())


def test_load_names_file_line_and_reason() -> None:
    source = contract_of("x = 1\nreturn x / 2").encode()
    with pytest.raises(LocalError) as caught:
        load_contract("shop.py", source, Meter())
    assert caught.value.code == "contract_refused"
    assert caught.value.message == "shop.py:12: / gives floats: use //"


@pytest.mark.parametrize("source", [b"def", b"\xff", b"x = 1\0", b"(" * 5_000, b"x = " + b"-" * 50_000 + b"1"])
def test_what_is_no_python_is_refused(source: bytes) -> None:
    with pytest.raises(LocalError, match=r"sample\.py"):
        load_contract("sample.py", source, Meter())


@pytest.mark.parametrize(("name", "source"), shipped_sources(), ids=[name for name, _ in shipped_sources()])
def test_shipped_contracts_pass(name: str, source: bytes) -> None:
    assert lint(name, source) == []


def test_the_probe_passes() -> None:
    assert lint("probe.py", PROBE.encode()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [('name = "probe"', "name = 1"), ('name = "probe"', 'name = "lanes"'), ('name = "probe"', 'name = "a/b"'),
     ("version = 1", "version = 0"), ("version = 1", 'version = "1"'), ("class Probe(Contract)", "class Probe"),
     ("turns: int", "turns: tuple[int, int]"), ("turns: int", "turns"), ("TABLE[", "TABLE("),
     ("TABLE = {", "TABLE = 10**10**10\nTABLE_2 = {"), ("TABLE = {", "TABLE_2 = nothing\nTABLE = {")],
)  # fmt: skip
def test_a_contract_that_cannot_be_called_is_refused(old: str, new: str) -> None:
    source = PROBE.replace(old, new) if old in PROBE else PROBE + "\nX = nothing\n"
    with pytest.raises(LocalError) as caught:
        load_contract("probe.py", source.encode(), Meter())
    assert caught.value.code == "contract_refused"
