"""Canonical MessagePack: one value, one encoding.

Values are integers in −2^63…2^63−1, bytes, text, booleans, nil, lists, and maps with text keys in
ascending order. There are no floats, no extension types, no duplicate keys and no longer-than-needed
lengths. Whatever is decoded from outside is encoded again and compared, so that what is hashed or
signed cannot have a second spelling.

Free-form values (arguments, state, events) go through :func:`encode` and :func:`decode_untrusted`;
fixed records go through a :class:`RecordCodec`, which decodes straight into a typed structure.
"""

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar, cast

import msgspec

from consensus.ledger.errors import LocalError, PeerError

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[str, Value] | None"

INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder accepts at the most. ``items_max`` bounds each list and map on its own."""

    bytes_max: int = 1 << 20
    depth_max: int = 16
    items_max: int = 1 << 16


DEFAULT_LIMITS = Limits()


def encode(value: Value) -> bytes:
    """Return the canonical bytes of a value.

    Raises:
        LocalError: ``not_canonical`` for a float, an integer out of range, a key that is no text,
            text that is no Unicode, or nesting deeper than 16.
    """
    try:
        _check(value, DEFAULT_LIMITS.depth_max, None)
        return _encoder.encode(value)
    except _NotCanonical as error:
        raise LocalError("not_canonical", str(error)) from None
    except UnicodeEncodeError:
        raise LocalError("not_canonical", "text holds a lone surrogate") from None


def decode_untrusted(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Value:
    """Decode one canonical value from bytes that anyone may have made.

    Raises:
        PeerError: ``too_large`` above ``limits.bytes_max``, else ``malformed``.
    """
    if len(data) > limits.bytes_max:
        raise PeerError("too_large", f"{len(data)} bytes, at most {limits.bytes_max} are accepted")
    try:
        value = _decoder.decode(data)
        _check(value, limits.depth_max, limits.items_max)
        again = _encoder.encode(value)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PeerError("malformed", f"not canonical MessagePack: {error}") from None
    if again != data:
        raise PeerError("malformed", "not the canonical encoding of its value")
    return cast(Value, value)


def decode(data: bytes) -> Value:
    """Decode bytes that :func:`encode` made and our own storage kept; for anything else use ``decode_untrusted``."""
    return cast(Value, _decoder.decode(data))


class _NotCanonical(ValueError):
    """A value, or its encoding, breaks a rule of this module."""


# Not msgpack: its decoder makes room for every length that nested headers claim, up to 1,024 deep (R72).
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder: msgspec.msgpack.Decoder[object] = msgspec.msgpack.Decoder(object)


def _check(value: object, depth_left: int, items_max: int | None) -> None:
    """Raise ``_NotCanonical`` for what has no encoding; the encoder itself puts the keys of maps in order."""
    kind = type(value)
    if kind is int:
        if not INTEGER_MIN <= cast(int, value) <= INTEGER_MAX:
            raise _NotCanonical("integer out of range")
        return
    if kind is str or kind is bytes or kind is bool or value is None:
        return
    items: Iterable[object]
    if kind is list or kind is tuple:
        items = cast(list[object], value)
    elif kind is dict:
        items = cast(dict[object, object], value).values()
        if any(type(key) is not str for key in cast(dict[object, object], value)):
            raise _NotCanonical("a map key is no text")
    else:
        raise _NotCanonical(f"{kind.__name__} has no canonical encoding")
    if depth_left == 0:
        raise _NotCanonical("nested too deep")
    if items_max is not None and len(cast(Sized, value)) > items_max:
        raise _NotCanonical(f"more than {items_max} items")
    for item in items:
        _check(item, depth_left - 1, items_max)


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of fixed records: encoded as a list of their fields in declared order, unknown fields refused.

    A record is a tree made from the leaves up, so it is never part of a cycle and the collector need not know it.
    """


R = TypeVar("R")


class RecordCodec(Generic[R]):
    """Encodes and decodes one :class:`Record` type, or a tagged union of them."""

    def __init__(self, kind: type[R] | object, *, bytes_max: int) -> None:
        self._encoder = msgspec.msgpack.Encoder(order="deterministic")
        self._decoder: msgspec.msgpack.Decoder[R] = msgspec.msgpack.Decoder(kind)
        self._bytes_max = bytes_max

    def encode(self, record: R) -> bytes:
        """Return the canonical bytes of a record."""
        return self._encoder.encode(record)

    def decode_untrusted(self, data: bytes) -> R:
        """Decode a record from bytes that anyone may have made.

        Raises:
            PeerError: ``too_large`` or ``malformed``.
        """
        if len(data) > self._bytes_max:
            raise PeerError("too_large", f"{len(data)} bytes, at most {self._bytes_max} are accepted")
        try:
            record = self._decoder.decode(data)
            again = self._encoder.encode(record)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise PeerError("malformed", str(error)) from None
        if again != data:
            raise PeerError("malformed", "not the canonical encoding of its record")
        return record
