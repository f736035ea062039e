"""Bombs fail alone, soon and equally everywhere; what is no bomb gives what plain Python gives."""

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.codec import Value, decode, encode
from consensus.ledger.errors import LocalError, Revert
from consensus.ledger.receipt import FAILED, OK
from consensus.ledger.transaction import EACH, make_call
from contracts.runtime.loader import load_contract
from contracts.runtime.meter import DEPTH_MAX, STEPS_PER_CALL_MAX, STEPS_PER_TRANSACTION_MAX, Meter, OutOfSteps
from contracts.runtime.values import encode_metered
from tests.contracts.runtime.samples import contract_of
from tests.contracts.support import Chain, make_registry

BOMBS = {
    "an endless loop": "while True:\n    pass",
    "an endless loop that goes on": "while True:\n    continue",
    "a long range": "for x in range(10**12):\n    pass",
    "a sum of a long range": "return sum(range(10**12))",
    "a list of a long range": "return len(list(range(10**12)))",
    "a longer range than a machine counts": "return sum(range(10**30))",
    "a sorted long range": "return sorted(range(10**9, 0, -1))[0]",
    "max of a long range": "return max(range(10**12))",
    "a long comprehension": "return len([x for x in range(10**12)])",
    "a nested comprehension": "return len([x for x in range(10**5) for y in range(10**5)])",
    "a generator that nothing ends": "return any(x < 0 for x in range(10**12))",
    "a map comprehension": "return len({x: x for x in range(10**9)})",
    "a power tower": "return 2**10**9",
    "a power of variables": "x = 3\ny = 10**8\nreturn (x**y) % 7",
    "a shift": "x = 1\nreturn x << 10**9",
    "squares": "x = 3\nwhile True:\n    x = x * x",
    "squares in place": "x = 3\nwhile True:\n    x *= x",
    "a factorial": "x = 1\nfor y in range(1, 10**5):\n    x *= y\nreturn x % 7",
    "doubling by adding": "x = 1\nfor _ in range(10**5):\n    x = x + x\nreturn x % 7",
    "a long text": "return len('a' * 10**9)",
    "long bytes": "return len(bytes(10**9))",
    "long repeated bytes": "return len(b'a' * 10**9)",
    "a long list": "return len([0] * 10**9)",
    "a long list in place": "x = [0]\nx *= 10**9\nreturn len(x)",
    "a doubling text": "x = 'a'\nwhile True:\n    x = x + x",
    "a doubling text in place": "x = 'a'\nwhile True:\n    x += x",
    "a doubling text by format": "x = 'a'\nwhile True:\n    x = f'{x}{x}'",
    "a doubling list": "x = [1]\nwhile True:\n    x += x",
    "a doubling list by spreading": "x = [1]\nwhile True:\n    x = [*x, *x]",
    "a doubling list by extend": "x = [1]\nwhile True:\n    x.extend(x)",
    "joined text": "x = 'a' * 1_000\nwhile True:\n    x = x.join(['b', 'b', 'b'])",
    "replaced text": "x = 'a' * 1_000\nwhile True:\n    x = x.replace('a', 'aaaaaaaaaa')",
    "an empty replacement": "x = 'a' * 1_000\ny = 'b' * 1_000\nwhile True:\n    y = x.replace('', y)",
    "a number's bytes": "x = 1\nreturn len(x.to_bytes(10**9, 'big'))",
    "a long number's text": "return len(str(10**10_000))",
    "the text of 618 digits": "return str(10**617)",
    "the text of 618 digits in a format": "return f'{10**617}'",
    "a long text's number": "return int('9' * 5_000) % 7",
    "equal lists of lists": ("x = []\ny = []\nfor _ in range(40):\n    x = [x, x]\n    y = [y, y]\nreturn x == y"),
    "a list in a list of lists": (
        "x = []\ny = []\nfor _ in range(40):\n    x = [x, x]\n    y = [y, y]\nreturn x in [y]"
    ),
    "a hashed pair of pairs": "x = 0\nfor _ in range(60):\n    x = (x, x)\nreturn x in {}",
    "a pair of pairs as key": "x = 0\nfor _ in range(60):\n    x = (x, x)\ny = {}\ny[x] = 1\nreturn 1",
    "a pair of pairs as key of a display": "x = 0\nfor _ in range(60):\n    x = (x, x)\nreturn len({x: 1})",
    "a pair of pairs looked for": "x = 0\nfor _ in range(60):\n    x = (x, x)\nreturn {}.get(x)",
    "a pair of pairs made a map": "x = 0\nfor _ in range(60):\n    x = (x, x)\nreturn len(dict([(x, 1)]))",
    "a deep pair as key": "x = ()\nfor _ in range(20_000):\n    x = (x,)\nreturn {}.get(x)",
    "lists that hold themselves": "x = []\ny = []\nx.append(x)\ny.append(y)\nreturn x == y",
    "a sort of lists of lists": "x = []\nfor _ in range(40):\n    x = [x, x]\nreturn len(sorted([x, [x, x], x]))",
    "a stored list of lists": "x = []\nfor _ in range(14):\n    x = [x] * 30\ncontext.state.put('x', x)",
    "a returned list of lists": "x = []\nfor _ in range(14):\n    x = [x] * 30\nreturn x",
    "a hash of a list of lists": "x = []\nfor _ in range(14):\n    x = [x] * 30\nreturn context.hash(x)",
    "searches in a long list": "x = list(range(10_000))\nwhile True:\n    y = -1 in x",
    "comparisons of a long text": "x = 'a' * 10_000\ny = 'a' * 9_999 + 'a'\nwhile True:\n    z = x == y",
    "pops from the front": "x = [0] * 100_000\nwhile True:\n    x.append(x.pop(0))",
    "inserts at the front": "x = [0] * 100_000\nwhile True:\n    x.insert(0, 1)",
    "slices": "x = [0] * 100_000\nwhile True:\n    y = x[:]",
    "copies": "x = {'a': 1}\nwhile True:\n    y = {**x}",
    "splits": "x = 'a ' * 50_000\nwhile True:\n    y = x.split()",
    "reads": "while True:\n    context.state.get('x')",
    "writes": "while True:\n    context.state.put('x', 1)",
    "events": "while True:\n    context.emit('x')",
    "hashes": "while True:\n    context.hash(b'')",
    "keys": f"while True:\n    context.address_of({bytes([2]) + bytes(31) + bytes([5])!r})",
    "signatures": f"while True:\n    context.verifies({bytes([2]) + bytes(31) + bytes([5])!r}, bytes(64), 'seat', b'')",
    "a stop that is caught": (
        "while True:\n    try:\n        context.require(False, 'x')\n    except Revert:\n        pass"
    ),
}

RECURSIONS = {
    "itself": ("return self.run(context)", ""),
    "a helper": ("return helper(0)", "def helper(x: int) -> int:\n    return helper(x + 1)"),
    "two helpers": (
        "return ping(0)", "def ping(x: int) -> int:\n    return pong(x)\n\ndef pong(x: int) -> int:\n    return ping(x)"
    ),
    "a comprehension": ("return helper(0)", "def helper(x: int) -> int:\n    return [helper(x) for _ in [1]][0]"),
    "a sort's key": (
        "return helper(0)", "def helper(x: int) -> int:\n    return sorted([1, 2], key=lambda y: helper(y))[0]"
    ),
}  # fmt: skip


def run(body: str, helpers: str = "") -> tuple[Chain, Any]:
    """Run a contract's body in a block of its own; return the chain and the receipt."""
    chain = Chain(make_registry(contract_of(body, helpers=helpers)))
    return chain, chain.call("alice", "sample", "run")


@pytest.fixture(scope="module")
def bombs() -> Chain:
    """One chain that holds every bomb as a contract."""
    sources = [contract_of(body, name=f"bomb-{index}") for index, body in enumerate(BOMBS.values())]
    chain = Chain(make_registry(*sources))
    chain.ok("issuer", "tokens", "define", unit="EUR")
    return chain


@pytest.mark.parametrize("index", range(len(BOMBS)), ids=list(BOMBS))
def test_bomb(bombs: Chain, index: int) -> None:
    bomb = make_call(f"bomb-{index}", "run", {})
    fine = make_call("tokens", "unit", {"unit": "EUR"})
    tracemalloc.start()
    started_s = time.process_time()
    before, receipt, after = bombs.submit("alice", fine, bomb, fine, mode=EACH)
    spent_s = time.process_time() - started_s
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (receipt.status, receipt.code, receipt.events, receipt.values) == (FAILED, "out_of_steps", [], [])
    assert receipt.steps == STEPS_PER_CALL_MAX
    assert (before.status, after.status) == (OK, OK)
    # Far from what it takes when it is not stopped; not a measurement.
    assert spent_s < 5
    assert peak_bytes < 64 << 20


@pytest.mark.parametrize(("body", "helpers"), RECURSIONS.values(), ids=RECURSIONS)
def test_deep_recursion_is_stopped_by_a_count(body: str, helpers: str) -> None:
    _, receipt = run(body, helpers)
    assert (receipt.code, receipt.steps) == ("out_of_steps", STEPS_PER_CALL_MAX)


def test_recursion_up_to_the_limit_works_wherever_it_begins() -> None:
    helper = "def helper(x: int) -> int:\n    return 0 if x == 0 else 1 + helper(x - 1)"
    _, receipt = run(f"return helper({DEPTH_MAX - 2})", helper)
    assert decode(receipt.values[0]) == DEPTH_MAX - 2
    _, receipt = run(f"return helper({DEPTH_MAX - 1})", helper)
    assert receipt.code == "out_of_steps"
    caught = f"""
        for _ in range(200):
            try:
                refuse({DEPTH_MAX // 2})
            except Revert:
                pass
        return helper({DEPTH_MAX - 2})
    """
    refusing = "def refuse(x: int) -> None:\n    if x == 0:\n        raise Revert('no')\n    refuse(x - 1)"
    _, receipt = run(caught, f"{helper}\n\n{refusing}")
    assert receipt.status == OK


GROWING = {
    "x = 'a' * SIZE": ["x + x", "x[1:]", "x == 'b' + x", "'b' in x", "x.upper()", "x.encode()", "x.split()", "f'{x}'"],
    "x = b'a' * SIZE": ["x + x", "x[1:]", "x == b'b' + x", "5 in x", "x.hex()", "context.hash(x)"],
    "x = [1] * SIZE": [
        "x + x", "x[1:]", "x == [1]", "5 in x", "x.copy()", "x.count(1)", "x.extend([*x])", "[*x]", "sorted(x)",
        "sum(x)", "max(x)", "any(x)", "tuple(x)", "list(zip(x))", "enumerate(x)", "reversed(x)", "x.pop(0)",
        "x in [[1]]", "context.hash(x)", "x.sort()",
    ],
    "x = {str(y): y for y in range(SIZE)}": [
        "{**x}", "dict(x)", "x.copy()", "x == {}", "list(x)", "sorted(x.items())", "5 in x.values()", "{}.update(x)",
        "dict(**x)", "context.hash(x)", "context.state.put('x', x)",
    ],
}  # fmt: skip


@pytest.mark.parametrize("make", GROWING)
def test_what_takes_longer_costs_more(make: str) -> None:
    """An operation on a value of 6,000 parts costs at least 40 steps more than the same on one of 60."""
    sizes = (60, 6_000)
    bodies = [
        f"{make.replace('SIZE', str(size))}\n{operation}\nreturn 1"
        for operation in ("0", *GROWING[make])
        for size in sizes
    ]
    sources = [contract_of(body, name=f"growing-{index}") for index, body in enumerate(bodies)]
    chain = Chain(make_registry(*sources))
    steps = [chain.call("alice", f"growing-{index}", "run") for index in range(len(bodies))]
    assert {receipt.code for receipt in steps} == {""}
    costs = [steps[index + 1].steps - steps[index].steps for index in range(0, len(steps), 2)]
    dear = {operation: cost - costs[0] for operation, cost in zip(GROWING[make], costs[1:], strict=True)}
    assert all(cost >= 40 for cost in dear.values()), dear


def test_a_search_for_a_large_value_costs_its_size_for_each_place() -> None:
    body = "x = [1] * 100\ny = [[*x] for _ in range(100)]\nx[99] = 2\nreturn x in y"
    assert run(body)[1].steps > 10_000


def test_a_transaction_has_a_limit_of_its_own() -> None:
    chain = Chain(make_registry(contract_of("while True:\n    pass")))
    receipts = chain.submit("alice", *[make_call("sample", "run", {})] * 8, mode=EACH)
    assert {receipt.code for receipt in receipts} == {"out_of_steps"}
    assert sum(receipt.steps for receipt in receipts) == STEPS_PER_TRANSACTION_MAX


SNIPPETS = [
    "return [a + b, a - b, a * b, a % 7, b // 3, -a, a & b, a | b, a ^ b, a << 3, a >> 1, ~b]",
    "return [a == b, a < b, a <= b <= 9, a != b, not a, a and b, a or b, a > 1 > b, 0 < a < b]",
    "return [a**2, divmod(a, 5), abs(-a), min(a, b), max([a, b]), sum([a, b, 1]), sum([])]",
    "return [s + t, s * 3, 2 * s, len(s), s[0:2], s[::-1], s[-1:], t in s, s == t, s < t, s[:a % 3]]",
    "return [s.upper(), s.lower(), s.strip(), s.split(), s.split(','), s.replace('a', 'bb'), s.join([t, t])]",
    "return [s.find('b'), s.count('a'), s.startswith('a'), s.endswith(t), s.encode(), s.encode().hex(), s.isdigit()]",
    "return f'{s}/{a}/{b:04d}/{a:x}/{s == t}/{None}' + str(a) + str(s) + str(True)",
    "return [int('12'), int('ff', 16), int(True), bytes([1, 2]), bytes(3), bytes.fromhex('00ff'), a.bit_length()]",
    "return [int.from_bytes(b'ab', 'big'), (513).to_bytes(4, 'big'), bytes(b'x'), chr(65), ord('A')]",
    "return [sorted(xs), sorted(xs, reverse=True), sorted(xs, key=lambda x: -x), xs[0:1], xs + [1], xs * 2]",
    "xs.sort()\nxs.append(4)\nxs.insert(0, 9)\ny = xs.pop()\nxs.extend([1])\nxs.reverse()\nreturn [xs, y, 9 in xs]",
    "xs.sort(key=lambda x: x % 3)\nreturn [xs, xs.count(1), xs == [1], list(xs), xs.copy()]",
    "return [[x * x for x in xs if x > 1], [x + y for x in xs for y in xs if x != y], any(x > 1 for x in xs)]",
    "return [all(x > 0 for x in xs), max(xs, default=0), min([], default=7), list(range(5)), sum(range(1, 9, 3))]",
    "return [list(enumerate(xs)), list(zip(xs, xs)), list(reversed(xs)), tuple(xs), [*xs, *xs]]",
    "return [max(xs, key=lambda x: -x), min(xs, key=lambda x: x % 3)]",
    "d = {s: a, 'k': b}\nd['x'] = 1\nd['x'] += a\nd['x'] *= 2\nd['x'] -= 1\nreturn [d, d.get('q'), d.get(s, 0)]",
    "d = {s: a}\nreturn ['k' in d, 'q' not in d, s in d, d[s]]",
    "d = {str(x): x for x in xs}\ne = {**d, 'z': 1}\ne.update({'y': 2})\ndel e['z']\nreturn [e, list(e.items())]",
    "d = dict(zip(['a', 'b'], xs))\nreturn [d, d.pop('a', None), list(d.keys()), list(d.values())]",
    "d = dict(a=1)\nreturn [d.setdefault('q', 1), d == {'q': 1}, d]",
    "n = 0\nfor i, x in enumerate(xs):\n    if x == 2:\n        continue\n    n += x\nelse:\n    n += i\nreturn n",
    "n = 10\nwhile n > a % 5:\n    n -= 1\n    if n == 3:\n        break\nreturn n",
    "x = [1, 2]\ny = x\nx += [3]\nreturn [x, y]",
    "x = (1, 2)\ny = x\nx += (3,)\nreturn [x, y, x[1], len(x), x == (1, 2, 3), 2 in x]",
    "m = [[0, 0], [0, 0]]\nm[1][0] += a\nm[0][1] = b\nreturn m",
    "(x, y), z = (a, b), s\nreturn [x, y, z, (w := a + 1), w]",
    "x = 'abc'\nx += s\nx *= 2\nn = 7\nn //= 2\nn **= 3\nn %= 10\nn |= 8\nn <<= 2\nreturn [x, n]",
    "return [isinstance(a, int), isinstance(s, (str, bytes)), s in ('a', 'b'), a in (1, 2), a is not None]",
    "return 'yes' if a > b else 'no'",
    "return [str(10**616), len(f'{-(10**616):d}'), int('9' * 617) > a]",
    "return [b'ab' + b'c', b'ab'[0], b'ab'[0:1], b'ab'.hex(), b'a' in b'ab', 97 in b'ab', b'x' * 3]",
]


@pytest.mark.parametrize("body", SNIPPETS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    a=st.integers(-20, 20), b=st.integers(-20, 20), s=st.text("ab c,", max_size=6), t=st.text("ab", max_size=2),
    xs=st.lists(st.integers(0, 5), min_size=2, max_size=6),
)  # fmt: skip
def test_metered_code_gives_what_python_gives(body: str, a: int, b: int, s: str, t: str, xs: list[int]) -> None:
    arguments = (a, b, s, t, xs)
    source = contract_of(body, arguments="a: int, b: int, s: str, t: str, xs: list[int]")
    plain: dict[str, Any] = {}
    exec(source, plain)
    meter = Meter()
    metered = load_contract("sample.py", source.encode(), meter)
    meter.begin(10_000)
    assert outcome(plain["Sample"]().run, arguments) == outcome(metered.methods["run"].function, arguments, metered)


def outcome(function: Any, arguments: tuple[Any, ...], metered: Any = None) -> object:
    """Return a function's result, or the kind of its exception; lists are fresh."""
    head = [None] if metered is None else [metered.instance, None]
    try:
        return function(*head, *[list(item) if isinstance(item, list) else item for item in arguments])
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        return type(error)


def test_the_top_of_a_module_cannot_be_changed() -> None:
    _, receipt = run("TABLE['b'] = 2", "TABLE = {'a': 1}")
    assert receipt.code == "contract_error"
    _, receipt = run("return [TABLE['a'], 'a' in TABLE, {**TABLE}, list(TABLE.items())]", "TABLE = {'a': 1}")
    assert decode(receipt.values[0]) == [1, True, {"a": 1}, [["a", 1]]]


@pytest.mark.parametrize(
    "body", ["return f'{context}'", "return str([1])", "return str(b'a')", "return '%d' % 5", "return {}.keys() | {}",
             "return {}.keys() - {}.keys()", "return 2 ** -1", "return sum(['a'])", "return [1] < ['a']"]
)  # fmt: skip
def test_what_has_no_steady_meaning_fails(body: str) -> None:
    assert run(body)[1].code == "contract_error"


VALUES: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


@given(value=VALUES)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_metered_encoding_is_the_canonical_one(value: Value) -> None:
    meter = Meter()
    meter.begin(100_000)
    assert encode_metered(meter, value) == encode(value)
    assert meter.used >= 1


WRONG: list[Any] = [
    1.5, 2**63, -(2**63) - 1, {1: 2}, {b"a": 1}, [object()], "\ud800", {"\ud800": 1}, b"x".join, {1, 2}, bytearray(1)
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG)
def test_what_has_no_encoding_is_refused_by_both(value: Any) -> None:
    meter = Meter()
    meter.begin(100_000)
    with pytest.raises((TypeError, ValueError)):
        encode_metered(meter, value)
    with pytest.raises(LocalError):
        encode(value)


def test_encoding_is_bounded_in_bytes_and_depth() -> None:
    meter = Meter()
    meter.begin(100_000)
    with pytest.raises(Revert, match="at most 65536"):
        encode_metered(meter, "a" * 70_000)
    deep: Any = []
    for _ in range(16):
        deep = [deep]
    with pytest.raises(ValueError, match="deep"):
        encode_metered(meter, deep)
    with pytest.raises(OutOfSteps):
        encode_metered(meter, ["a" * 8_000] * 200)
