"""Arguments as people write them, turned into contract values by what the contract declares. Pure.

``name=value`` is read by the declared type: integers in decimal (``_`` between digits is fine), bytes as
0x-hex, booleans ``true`` or ``false``, accounts as 0x-address or by a name that is looked up, text as it
stands. ``name:=JSON`` gives lists, maps and null; inside, texts are read by the declared inner type too.
What lies outside the declared limits is refused here, before it costs a transaction.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from consensus.ledger.codec import INTEGER_MAX, INTEGER_MIN, Value
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ADDRESS_BYTES

ResolveAccount = Callable[[str], bytes]
"""Return the address (20 bytes) of a name, or raise LocalError ``unknown_account``."""

_TOKEN = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(:?=)(.*)", re.DOTALL)
_INTEGERS = ("int", "amount")
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_PLAIN_PATTERN = re.compile(r"\^(\[[^\[\]\\]+\](\{\d{1,3}(,\d{1,3})?\})?){1,3}\\Z")
"""The declared patterns that are tried here: a few character sets in a row. The declaration is a node's word, and
another pattern could keep us busy for ever; those are left to the chain."""


class Limits(msgspec.Struct, frozen=True, rename="camel"):
    """The bounds of an argument, as far as any are declared; lengths count characters, bytes or items."""

    min: int | None = None
    max: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str = ""


NO_LIMITS = Limits()
AMOUNT_LIMITS = Limits(min=1, max=10**15)
NAME_LIMITS = Limits(min_length=1, max_length=64)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A declared argument: its name, its type's name as ``contract_describe`` gives it, whether it must be there."""

    name: str
    kind: str
    required: bool
    limits: Limits = NO_LIMITS


def parse_arguments(tokens: Sequence[str], declared: Sequence[Parameter], resolve: ResolveAccount) -> dict[str, Value]:
    """Return the values for ``name=value`` and ``name:=JSON`` tokens.

    Raises:
        LocalError: ``bad_arguments`` naming the argument and what it should be; what ``resolve`` raises.
    """
    kinds = {parameter.name: parameter.kind for parameter in declared}
    limits = {parameter.name: parameter.limits for parameter in declared}
    values: dict[str, Value] = {}
    for token in tokens:
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise LocalError("bad_arguments", f"{token!r} is not of the form name=value or name:=JSON")
        name, operator, text = match.groups()
        if name not in kinds:
            known = ", ".join(kinds) or "none"
            raise LocalError("bad_arguments", f"there is no argument {name}; declared are: {known}")
        if name in values:
            raise LocalError("bad_arguments", f"{name} is given twice")
        reader = _Reader(name, resolve)
        values[name] = reader.text(kinds[name], text) if operator == "=" else reader.json(kinds[name], text)
        reader.check(values[name], limits[name])
    missing = [f"{item.name} ({item.kind})" for item in declared if item.required and item.name not in values]
    if missing:
        raise LocalError("bad_arguments", f"missing: {', '.join(missing)}")
    return values


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the value of one argument."""

    name: str
    resolve: ResolveAccount

    def text(self, declared: str, text: str) -> Value:
        """Return what plain text means for a declared type."""
        kind = _bare(declared)
        if kind in _INTEGERS:
            return self._integer(text, AMOUNT_LIMITS if kind == "amount" else NO_LIMITS)
        if kind == "bool":
            if text not in ("true", "false"):
                raise self._wrong("true or false", text)
            return text == "true"
        if kind == "account":
            return self._address(text) if text.startswith("0x") else self.resolve(text)
        if kind == "bytes":
            return self._bytes(text)
        if kind.startswith(("list<", "map<")):
            raise self._wrong(f"a {kind}: write {self.name}:=JSON", text)
        if kind == "name":
            self.check(text, NAME_LIMITS)
        return text

    def json(self, declared: str, text: str) -> Value:
        """Return what JSON means for a declared type."""
        try:
            document = json.loads(text, parse_float=self._fraction, parse_constant=self._fraction)
        except (ValueError, RecursionError) as error:
            raise LocalError("bad_arguments", f"{self.name}: no valid JSON: {error}") from None
        return self._inner(declared, document)

    def _inner(self, declared: str, item: object) -> Value:
        kind = _bare(declared)
        match item:
            case None | bool():
                return item
            case int():
                return self._integer(str(item), AMOUNT_LIMITS if kind == "amount" else NO_LIMITS)
            case str():
                return item if kind.startswith(("list<", "map<")) else self.text(kind, item)
            case list():
                inner = kind[5:-1] if kind.startswith("list<") else ""
                return [self._inner(inner, element) for element in item]
            case dict():
                inner = kind[4:-1] if kind.startswith("map<") else ""
                return {str(key): self._inner(inner, element) for key, element in item.items()}
            case _:
                raise self._wrong(kind, str(item))

    def check(self, value: Value, limits: Limits) -> None:
        """Raise LocalError ``bad_arguments`` for a value outside its limits."""
        if isinstance(value, int) and not isinstance(value, bool):
            low, high = limits.min, limits.max
            if (low is not None and value < low) or (high is not None and value > high):
                raise self._wrong(f"an integer {_range(low, high)}", str(value))
        if not isinstance(value, str | bytes | list | dict):
            return
        low, high = limits.min_length, limits.max_length
        if (low is not None and len(value) < low) or (high is not None and len(value) > high):
            unit = {str: "characters", bytes: "bytes"}.get(type(value), "items")
            raise LocalError("bad_arguments", f"{self.name} must have {_range(low, high)} {unit}, not {len(value)}")
        if isinstance(value, str) and _PLAIN_PATTERN.fullmatch(limits.pattern):
            try:
                fits = re.search(limits.pattern, value)
            except re.error:
                return
            if not fits:
                raise self._wrong(f"of the form {limits.pattern.removeprefix('^').removesuffix(chr(92) + 'Z')}", value)

    def _address(self, text: str) -> bytes:
        address = self._bytes(text)
        if len(address) != ADDRESS_BYTES:
            raise self._wrong(f"an account's name, or its address: 0x and {2 * ADDRESS_BYTES} hex digits", text)
        return address

    def _integer(self, text: str, limits: Limits) -> int:
        if not _INTEGER.fullmatch(text) or len(text) > 40:
            raise self._wrong("an integer", text)
        number = int(text)
        if not INTEGER_MIN <= number <= INTEGER_MAX:
            raise self._wrong("an integer of 64 bits", text)
        self.check(number, limits)
        return number

    def _bytes(self, text: str) -> bytes:
        try:
            if not text.startswith("0x"):
                raise ValueError
            return bytes.fromhex(text[2:])
        except ValueError:
            raise self._wrong("bytes as 0x and an even number of hex digits", text) from None

    def _fraction(self, text: str) -> Value:
        raise LocalError("bad_arguments", f"{self.name}: {text} is no integer, and the chain knows no fractions")

    def _wrong(self, expected: str, text: str) -> LocalError:
        shown = text if len(text) <= 40 else text[:37] + "..."
        return LocalError("bad_arguments", f"{self.name} must be {expected}, not {shown!r}")


def _range(low: int | None, high: int | None) -> str:
    if low is None:
        return f"up to {high}"
    return f"from {low} on" if high is None else f"from {low} to {high}" if low != high else f"exactly {low}"


def _bare(declared: str) -> str:
    """Return a type's name without the mark that it may be absent."""
    return declared.removesuffix("?")
