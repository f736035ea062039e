"""Turns valid bytes into nearly valid ones: on the level of bytes, of MessagePack and of JSON.

Everything is drawn from the ``Random`` that is given, so a seed tells all.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import msgpack
import msgspec

from tests.fuzz.bombs import JSON_BOMBS, MSGPACK_BOMBS

SIZE_MAX = 64 * 1024
"""Mutants stay below, so that a run is spent on many inputs and not on few large ones."""
NODES_MAX = 2_000
"""Places of a tree that are considered for a change."""

STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63),
    *(2**64 - 1, -(2**31), -(2**63), b"", b"\0", bytes(20), bytes(32), bytes(33), bytes(64), b"\xff" * 32, b"x" * 300),
    *("", "a", "node-0", "bank-a", "(not voting)", "x" * 33, "x" * 300, "\0", "é", "../..", "%s{0}", "-", "0x", "A"),
    *(
        [],
        [[]],
        [None] * 15,
        [0] * 300,
        {},
        {"a": 1},
        {"": None},
        {"b": {}, "a": []},
        0.0,
        1.5,
        float("nan"),
        float("inf"),
    ),
]
"""Values that do not belong where they are put."""

STRANGE_JSON: list[str] = [
    *("null", "true", "-1", "0", "1", "1.0", "1e400", "NaN", "Infinity", "9" * 19, "9" * 400, "18446744073709551615"),
    *("18446744073709551616", "-9223372036854775808", '""', '"0x"', '"0xzz"', '"0x0"', '"0x' + "00" * 32 + '"'),
    *('"0x' + "ff" * 20 + '"', '"' + "a" * 300 + '"', '"' + "\\u0000" * 20 + '"', '"\\ud800"', '"é"', "[]", "{}"),
    *("[[[[]]]]", '{"a":1,"a":2}', '{"":""}', "[null]", '"1:1"', '"9999999999999999:9999999999"', '"chain_status"'),
    *('"tokens"', '"membership"', '"events"', '"blocks"', '"consensus"', "9007199254740991", "9007199254740993"),
]
"""Spellings of JSON values that do not belong where they are put."""


def random_bytes(random: Random) -> bytes:
    """Return nonsense of a size that small inputs have most of the time."""
    return random.randbytes(random.choice((0, 1, 2, 5, 17, 80, 400, random.randrange(4_096))))


def mutate_bytes(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change bytes without regard to what they mean: flip, cut, splice, repeat, inflate lengths."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        _CHANGES[random.randrange(len(_CHANGES))](random, changed, others)
    return bytes(changed[:SIZE_MAX])


def _place(random: Random, data: bytearray) -> int:
    return random.randrange(len(data) + 1)


def _flip(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 0x7F, 0x80, 0xC0, 0xC1, 0xFF, random.randrange(256)))


def _cut(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(random, data) :]


def _remove(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _place(random, data)
    del data[start : start + random.choice((1, 2, 4, 32))]


def _insert(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _place(random, data)
    data[start:start] = random.randbytes(random.choice((1, 2, 5, 40)))


def _splice(random: Random, data: bytearray, others: Sequence[bytes]) -> None:
    if others:
        other = random.choice(others)
        begin = random.randrange(len(other) + 1)
        start = _place(random, data)
        data[start : start + random.randrange(64)] = other[begin : begin + random.randrange(256)]


def _repeat(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _place(random, data)
    piece = bytes(data[start : start + random.choice((1, 4, 33, 200))])
    data[start:start] = piece * random.choice((1, 2, 30))


def _inflate(random: Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Put a header before some byte that announces far more than there is."""
    heads = (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9", b"\xdc", b"\xde", b"\xda", b"\xc5")
    start = _place(random, data)
    length = random.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x10\x00\x00", b"\x00\x00\xff\xff"))
    data[start : start + random.choice((0, 1, 2, 3))] = random.choice(heads) + length


_CHANGES: list[Callable[[Random, bytearray, Sequence[bytes]], None]] = [
    *(_flip, _flip, _flip, _set, _cut, _remove, _insert, _splice, _repeat, _inflate),
]


def mutate_msgpack(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change the tree that the bytes encode: values of other types, fields gone, doubled, moved."""
    try:
        tree = msgspec.msgpack.decode(data)
        for _ in range(random.choice((1, 1, 2))):
            tree = _changed(random, tree, others)
        return _packed(random, tree)[:SIZE_MAX]
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return mutate_bytes(random, data, others)


def _packed(random: Random, tree: Any) -> bytes:
    # msgpack keeps the order of keys and the float's width: not canonical, which decoders must notice.
    return msgspec.msgpack.encode(tree) if random.random() < 0.8 else msgpack.packb(tree, use_single_float=True)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of the places in a tree, from the outside inwards."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(found) < NODES_MAX:
        node = waiting.pop(0)
        keys = range(len(node)) if isinstance(node, list) else list(node)
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], list | dict):
                waiting.append(node[key])
    return found


def _changed(random: Random, tree: Any, others: Sequence[bytes]) -> Any:
    if not isinstance(tree, list | dict) or not tree or random.random() < 0.02:
        return random.choice(STRANGE)
    node, key = random.choice(_places(tree))
    match random.randrange(11):
        case 0:
            del node[key]
        case 1:
            node[key] = None
        case 2 if isinstance(node, list):
            node.insert(key, node[key])
        case 3 if isinstance(node, list):
            other = random.randrange(len(node))
            node[key], node[other] = node[other], node[key]
        case 4 | 5 | 6 | 7 | 8:
            node[key] = _near(random, node[key])
        case 9 if others:
            node[key] = _alien(random, others)
        case _:
            node[key] = random.choice(STRANGE)
    return tree


def _near(random: Random, value: Any) -> Any:
    """Return a value of the same type that is a little wrong."""
    match value:
        case bool():
            return not value
        case int():
            return value + random.choice((-1, 1, 2, 1 << 8, 1 << 32, -(1 << 16)))
        case bytes() if random.random() < 0.7:
            changed = bytearray(value)
            random.choice((_flip, _set))(random, changed, ())
            return bytes(changed)
        case bytes():
            return mutate_bytes(random, value, ())
        case str():
            return random.choice((value + "x", value[:-1], value.upper(), value[::-1], value * 3))
        case list():
            return value[::-1] if random.random() < 0.5 else value + value
        case _:
            return random.choice(STRANGE)


def _alien(random: Random, others: Sequence[bytes]) -> Any:
    other = msgspec.msgpack.decode(random.choice(others))
    if isinstance(other, list | dict) and other and random.random() < 0.7:
        node, key = random.choice(_places(other))
        return node[key]
    return other


def absences(data: bytes) -> Iterator[bytes]:
    """Yield the encoding with every single field absent, and with every single field nil (R67)."""
    for number in range(len(_places(msgspec.msgpack.decode(data)))):
        for is_nil in (False, True):
            tree = msgspec.msgpack.decode(data)
            node, key = _places(tree)[number]
            if is_nil:
                node[key] = None
            else:
                del node[key]
            yield msgspec.msgpack.encode(tree)


def mutate_json(random: Random, document: Any) -> bytes:
    """Return the text of a document with some of it changed: values, keys, or its very spelling."""
    text = json.dumps(document, ensure_ascii=random.random() < 0.5)
    for _ in range(random.choice((0, 1, 1, 2))):
        text = _respelled(random, text)
    data = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(random, data, ()) if random.random() < 0.2 else data


def _respelled(random: Random, text: str) -> str:
    """Put a strange value in the place of some value: whatever stands between two delimiters."""
    places = [index for index, letter in enumerate(text) if letter in ":[,"]
    if not places:
        return random.choice(STRANGE_JSON)
    start = random.choice(places) + 1
    end = start
    while end < len(text) and text[end] not in ",]}":
        end += 1
    return text[:start] + random.choice(STRANGE_JSON) + text[end:]


def draw(random: Random, samples: Sequence[bytes], *, is_json: bool = False) -> bytes:
    """Return one input: nonsense, a bomb, or a changed sample."""
    chance = random.random()
    if not samples or chance < 0.08:
        return random_bytes(random)
    if chance < 0.11:
        bombs = JSON_BOMBS if is_json else MSGPACK_BOMBS
        return random.choice(list(bombs.values()))[:SIZE_MAX]
    sample = random.choice(samples)
    if chance < 0.14:
        return sample
    if is_json:
        if chance < 0.5:
            return mutate_bytes(random, sample, samples)
        return _respelled(random, sample.decode("utf-8", "replace")).encode("utf-8", "surrogatepass")
    return mutate_bytes(random, sample, samples) if chance < 0.5 else mutate_msgpack(random, sample, samples)
