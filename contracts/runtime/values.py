"""Values between contracts and bytes: canonical encoding, counted and bounded before it happens.

The walk that checks a value also counts it, so that a value which holds itself, or one list a thousand
times, costs what its encoding costs.
"""

from typing import Any

import msgspec

from consensus.ledger.codec import INTEGER_MAX, INTEGER_MIN, Value
from consensus.ledger.errors import Revert
from contracts.runtime.meter import Meter

VALUE_DEPTH_MAX = 16
VALUE_BYTES_MAX = 64 * 1024
"""How many bytes one stored value, event or return value may have."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder()
_NIL = _encoder.encode(None)


def encode_metered(meter: Meter, value: object) -> bytes:
    """Return the canonical bytes of a value, as ``consensus.ledger.codec.encode`` would.

    Raises:
        OutOfSteps: the value is too large for the steps that are left.
        Revert: ``value_too_large``.
        TypeError, ValueError: the value has no canonical encoding, or nests deeper than 16.
    """
    if value is None:
        meter.charge(1)
        return _NIL
    meter.left -= _steps(value, meter.left, VALUE_DEPTH_MAX)
    if meter.left < 0:
        meter.stop()
    data = _encoder.encode(value)
    if len(data) > VALUE_BYTES_MAX:
        raise Revert("value_too_large", f"{len(data)} bytes, at most {VALUE_BYTES_MAX} are stored")
    return data


def decode_metered(meter: Meter, data: bytes) -> Value:
    """Return the value of canonical bytes that we made."""
    meter.left -= len(data) >> 3
    if meter.left < 0:
        meter.stop()
    value: Value = _decoder.decode(data)
    return value


def _steps(value: Any, steps_max: int, depth_left: int) -> int:
    """Return what a value costs to encode; what exceeds ``steps_max`` need not be exact.

    Scalars inside lists and maps are handled in place: this walk is most of what a state write costs.
    """
    kind = type(value)
    if kind is dict:
        total = 1 + len(value)
        for key in value:
            if type(key) is not str:
                raise TypeError("a map key is no text")
            total += len(key) >> 3
        parts = value.values()
    elif kind is list or kind is tuple:
        total = 1
        parts = value
    else:
        return _steps((value,), steps_max, depth_left + 1) - 1
    if depth_left == 0:
        raise ValueError("nested too deep")
    for part in parts:
        kind = type(part)
        if kind is int:
            if not INTEGER_MIN <= part <= INTEGER_MAX:
                raise ValueError("integer out of range")
            total += 1
        elif kind is str or kind is bytes:
            total += 1 + (len(part) >> 3)
        elif kind is bool or part is None:
            total += 1
        elif kind is dict or kind is list or kind is tuple:
            total += _steps(part, steps_max - total, depth_left - 1)
            if total > steps_max:
                break
        else:
            raise TypeError(f"{kind.__name__} has no canonical encoding")
    return total
