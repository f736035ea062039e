"""What stands in for operators, built-ins and methods whose cost can grow: charged first, then done.

The loader rewrites a contract's expressions to call these. Each gives what plain Python gives, or stops
the call: integers have at most 4,096 bits, text and lists pay for every part they copy, comparisons pay
for what they walk through, and nothing turns into a float, a set, or text that names an address in memory.
"""

from collections.abc import Callable, Iterable
from types import GenericAlias, MappingProxyType, UnionType
from typing import Any

from contracts.runtime.meter import Meter

INTEGER_BITS_MAX = 4_096
TEXT_BITS_MAX = 2_048
"""Largest integer that becomes text: 617 digits, below the 640 that no setting of the interpreter forbids."""
TEXT_DIGITS_MAX = 617
COMPARE_DEPTH_MAX = 32

_BOUND = 1 << INTEGER_BITS_MAX
_ATOMS = frozenset({int, bool, type(None)})
_KEYS = frozenset({int, bool, type(None), str, bytes})
_TEXTS = frozenset({str, bytes})
_SEQUENCES = frozenset({str, bytes, list, tuple})
_MAPS = frozenset({dict, MappingProxyType})


class Operators:
    """Guards of operators, subscripts and text."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def add(self, left: Any, right: Any) -> Any:
        """``left + right`` of integers, or of two texts, bytes, lists or tuples."""
        if type(left) is int and type(right) is int:
            result = left + right
            return result if -_BOUND < result < _BOUND else self._meter.stop()
        if type(left) in _SEQUENCES and type(left) is type(right):
            self._meter.charge((len(left) + len(right)) >> 3)
            return left + right
        return self._integer(left) + self._integer(right)

    def add_in_place(self, left: Any, right: Any) -> Any:
        """``left += right``: as ``add``, but a list is extended where it stands."""
        if type(left) is int and type(right) is int:
            result = left + right
            return result if -_BOUND < result < _BOUND else self._meter.stop()
        if type(left) is list:
            left.extend(self.items(right))
            return left
        return self.add(left, right)

    def subtract(self, left: Any, right: Any) -> int:
        """``left - right`` of integers."""
        if type(left) is not int or type(right) is not int:
            left, right = self._integer(left), self._integer(right)
        result: int = left - right
        return result if -_BOUND < result < _BOUND else self._meter.stop()

    def multiply(self, left: Any, right: Any) -> Any:
        """``left * right`` of integers, or the repetition of a text, bytes, list or tuple."""
        if isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > INTEGER_BITS_MAX:
                self._meter.stop()
            return left * right
        sequence, count = (left, right) if isinstance(right, int) else (right, left)
        if type(sequence) not in _SEQUENCES:
            raise TypeError("only integers and sequences multiply")
        self._meter.charge(len(sequence) * max(self._integer(count), 0) >> 3)
        return sequence * count

    def floor_divide(self, left: Any, right: Any) -> int:
        """``left // right`` of integers."""
        return self._integer(left) // self._integer(right)

    def modulo(self, left: Any, right: Any) -> int:
        """``left % right`` of integers."""
        return self._integer(left) % self._integer(right)

    def power(self, left: Any, right: Any) -> int:
        """``left ** right`` of an integer and a natural number."""
        base, exponent = self._integer(left), self._integer(right)
        if exponent < 0:
            raise ValueError("a power has no negative exponent")
        if base.bit_length() * exponent > INTEGER_BITS_MAX and base not in (-1, 0, 1):
            self._meter.stop()
        self._meter.charge(base.bit_length() * exponent >> 6 if base not in (-1, 0, 1) else 1)
        result: int = base**exponent
        return result

    def shift_left(self, left: Any, right: Any) -> int:
        """``left << right`` of integers."""
        if self._integer(left).bit_length() + self._integer(right) > INTEGER_BITS_MAX:
            self._meter.stop()
        return int(left << right)

    def bit_or(self, left: Any, right: Any) -> Any:
        """``left | right`` of integers, or of types."""
        if isinstance(left, type | UnionType | GenericAlias):
            return left | right
        return self._integer(left) | self._integer(right)

    def bit_and(self, left: Any, right: Any) -> int:
        """``left & right`` of integers."""
        return self._integer(left) & self._integer(right)

    def bit_xor(self, left: Any, right: Any) -> int:
        """``left ^ right`` of integers."""
        return self._integer(left) ^ self._integer(right)

    def comparable(self, value: Any) -> Any:
        """Return a value once it has paid for being compared as a whole."""
        if type(value) not in _ATOMS:
            self.weigh(value, COMPARE_DEPTH_MAX)
        return value

    def key(self, value: Any) -> Any:
        """Return a map's key once it has paid for being hashed."""
        if type(value) not in _KEYS:
            self.weigh(value, COMPARE_DEPTH_MAX)
        return value

    def weigh(self, value: Any, depth_left: int) -> None:
        """Charge for walking through all of a value, each part as often as it occurs."""
        kind = type(value)
        if kind in _TEXTS:
            if len(value) > 63:
                self._meter.charge(len(value) >> 6)
        elif kind is list or kind is tuple or kind is dict:
            if depth_left == 0:
                self._meter.stop()
            self._meter.charge(1 + len(value))
            for part in value.values() if kind is dict else value:
                if type(part) not in _ATOMS:
                    self.weigh(part, depth_left - 1)
        elif kind not in _ATOMS:
            self._meter.charge(1)

    def contains(self, container: Any, value: Any) -> bool:
        """``value in container``."""
        if type(container) in _MAPS:
            return self.key(value) in container
        if type(container) in _TEXTS:
            self._meter.charge((len(container) + (len(value) if type(value) in _TEXTS else 0)) >> 5)
        elif type(container) is not range or type(value) is not int:
            container = self.items(container)
            left = self._meter.left
            self.comparable(value)
            self._meter.charge((left - self._meter.left) * len(container))
        return value in container

    def part(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """``value[start:stop:step]``."""
        where = slice(start, stop, step)
        self._meter.charge(len(range(*where.indices(len(value)))) >> 3)
        return value[where]

    def text(self, value: Any) -> str:
        """The text of a text, an integer, a truth value or nil; nothing else has one that is the same everywhere."""
        if type(value) is str:
            if len(value) > 31:
                self._meter.charge(len(value) >> 5)
            return value
        if value is None:
            return "None"
        if not isinstance(value, int):
            raise TypeError(f"{type(value).__name__} has no text")
        return str(self.number(value))

    def number(self, value: Any) -> int:
        """An integer that is about to become text."""
        bits = self._integer(value).bit_length()
        if bits > TEXT_BITS_MAX:
            self._meter.stop()
        self._meter.charge(bits >> 6)
        return value  # type: ignore[no-any-return]

    def items(self, iterable: Iterable[Any]) -> list[Any]:
        """A new list of what an iterable holds."""
        if not hasattr(iterable, "__len__"):
            raise TypeError(f"{type(iterable).__name__} cannot be gone through")
        self._meter.charge(_count(iterable) >> 2)
        return list(iterable)

    def mapping(self, value: Any) -> Any:
        """A map that is about to be spread by ``**``."""
        self._meter.charge(len(value))
        return value

    @staticmethod
    def _integer(value: Any) -> int:
        if not isinstance(value, int):
            raise TypeError(f"{type(value).__name__} is no integer")
        return value


def _count(iterable: Any) -> int:
    """Return a length, also that of a range too long for ``len``."""
    if type(iterable) is range:
        distance = iterable.stop - iterable.start
        return max(0, -(-distance // iterable.step))
    return len(iterable)


class Builtins:
    """Guards of built-in functions; those that give iterators in Python give lists here."""

    def __init__(self, meter: Meter, operators: Operators) -> None:
        self._meter = meter
        self._operators = operators

    def list_(self, iterable: Iterable[Any] = ()) -> list[Any]:
        """``list(iterable)``."""
        return self._operators.items(iterable)

    def tuple_(self, iterable: Iterable[Any] = ()) -> tuple[Any, ...]:
        """``tuple(iterable)``."""
        return tuple(self._operators.items(iterable))

    def dict_(self, source: Any = (), **named: Any) -> dict[Any, Any]:
        """``dict(source, **named)``."""
        if type(source) in _MAPS:
            self._meter.charge(len(source))
            return {**source, **named}
        return {**{self._operators.key(key): value for key, value in self._operators.items(source)}, **named}

    def str_(self, value: Any = "") -> str:
        """``str(value)`` of a text, an integer, a truth value or nil."""
        return self._operators.text(value)

    def int_(self, value: Any = 0, base: int = 10) -> int:
        """``int(value)`` of an integer, or of a text in a base."""
        if type(value) is not str:
            if not isinstance(value, int):
                raise TypeError(f"{type(value).__name__} is no integer")
            return int(value)
        if len(value) > TEXT_DIGITS_MAX:
            self._meter.stop()
        self._meter.charge(len(value) >> 3)
        return int(value, base)

    def bytes_(self, source: Any = b"") -> bytes:
        """``bytes(source)``: a copy, so many zero bytes, or bytes from integers."""
        if isinstance(source, int):
            self._meter.charge(max(source, 0) >> 3)
            return bytes(source)
        return bytes(self._operators.items(source))

    def sorted_(
        self, iterable: Iterable[Any], *, key: Callable[[Any], Any] | None = None, reverse: bool = False
    ) -> list[Any]:
        """``sorted(iterable)``; every key pays for its comparisons."""
        items = self._operators.items(iterable)
        self._meter.charge(len(items) * len(items).bit_length() >> 2)
        items.sort(key=self._priced(key), reverse=reverse)
        return items

    def min_(self, *values: Any, key: Callable[[Any], Any] | None = None, **options: Any) -> Any:
        """``min`` of an iterable or of its arguments."""
        return min(self._operators.items(values[0] if len(values) == 1 else values), key=self._priced(key), **options)

    def max_(self, *values: Any, key: Callable[[Any], Any] | None = None, **options: Any) -> Any:
        """``max`` of an iterable or of its arguments."""
        return max(self._operators.items(values[0] if len(values) == 1 else values), key=self._priced(key), **options)

    def sum_(self, iterable: Iterable[Any], start: int = 0) -> Any:
        """``sum(iterable)`` of integers."""
        total: Any = start
        for value in self._operators.items(iterable):
            total = self._operators.subtract(total, -value)
        return total

    def any_(self, iterable: Iterable[Any]) -> bool:
        """``any(iterable)``."""
        return any(self._operators.items(iterable))

    def all_(self, iterable: Iterable[Any]) -> bool:
        """``all(iterable)``."""
        return all(self._operators.items(iterable))

    def enumerate_(self, iterable: Iterable[Any], start: int = 0) -> list[Any]:
        """``enumerate(iterable)`` as a list."""
        items = self._operators.items(iterable)
        self._meter.charge(len(items) >> 2)
        return list(enumerate(items, start))

    def zip_(self, *iterables: Iterable[Any], strict: bool = False) -> list[Any]:
        """``zip(iterables)`` as a list."""
        return list(zip(*[self._operators.items(iterable) for iterable in iterables], strict=strict))

    def reversed_(self, iterable: Iterable[Any]) -> list[Any]:
        """``reversed(iterable)`` as a list."""
        return self._operators.items(iterable)[::-1]

    def divmod_(self, left: Any, right: Any) -> tuple[int, int]:
        """``divmod(left, right)`` of integers."""
        return self._operators.floor_divide(left, right), self._operators.modulo(left, right)

    def _priced(self, key: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
        comparable = self._operators.comparable
        if key is None:
            return comparable
        return lambda value: comparable(key(value))


class Methods:
    """Guard of the methods in ``GUARDED_METHODS``, called as ``invoke(receiver, name, …)``."""

    def __init__(self, meter: Meter, operators: Operators, builtins: Builtins) -> None:
        self._meter = meter
        self._operators = operators
        self._builtins = builtins

    def invoke(self, receiver: Any, name: str, *arguments: Any, **named: Any) -> Any:
        """Call a method after charging for it; what is no built-in value charges for itself."""
        kind = type(receiver)
        if kind in _TEXTS and not arguments and not named and name not in ("split", "rsplit", "splitlines"):
            self._meter.charge(len(receiver) >> 3)
            return getattr(receiver, name)()
        if kind in _TEXTS:
            arguments = self._charge_text(receiver, name, arguments)
        elif kind is list:
            arguments = self._charge_list(receiver, name, arguments)
        elif kind is dict:
            self._meter.charge(len(receiver) >> 2 if name == "copy" else 0)
            if name == "update":
                arguments = tuple(self._builtins.dict_(argument) for argument in arguments)
            elif arguments:
                self._operators.key(arguments[0])
        elif receiver is bytes or receiver is int or isinstance(receiver, int):
            for argument in arguments:
                size = argument if isinstance(argument, int) else len(argument)
                self._meter.charge(max(size, 0) >> 3)
        if kind is list and name == "sort":
            receiver[:] = self._builtins.sorted_(receiver, **named)
            return None
        return getattr(receiver, name)(*arguments, **named)

    def _charge_text(self, receiver: Any, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        size = len(receiver)
        if name == "join":
            parts = self._operators.items(arguments[0])
            self._meter.charge((size * len(parts) + sum(map(len, parts))) >> 3)
            return (parts,)
        self._meter.charge((size + sum(len(part) for part in arguments if type(part) in _TEXTS)) >> 3)
        if name == "replace":
            found = receiver.count(arguments[0])
            self._meter.charge(found * len(arguments[1]) >> 3)
        elif name in ("split", "rsplit", "splitlines"):
            self._meter.charge(size >> 1)
        return arguments

    def _charge_list(self, receiver: list[Any], name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "extend":
            return (self._operators.items(arguments[0]),)
        if name in ("remove", "index", "count"):
            self._operators.contains(receiver, arguments[0])
        self._meter.charge(len(receiver) >> 6 if name in ("insert", "pop") else len(receiver) >> 3)
        return arguments


def frozen(value: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    """A map that stands at a module's top and that no call can change."""
    return MappingProxyType(value)
