"""Values between contracts and bytes: canonical encoding, counted and bounded before it happens.

The walk that checks a value also counts it, so that a value which holds itself, or one list a thousand
times, costs what its encoding costs.
"""

import msgspec

from consensus.ledger.codec import INTEGER_MAX, INTEGER_MIN, Value
from consensus.ledger.errors import Revert
from contracts.runtime.meter import Meter

VALUE_DEPTH_MAX = 16
VALUE_BYTES_MAX = 64 * 1024
"""How many bytes one stored value, event or return value may have."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder()


def encode_metered(meter: Meter, value: object) -> bytes:
    """Return the canonical bytes of a value, as ``consensus.ledger.codec.encode`` would.

    Raises:
        OutOfSteps: the value is too large for the steps that are left.
        Revert: ``value_too_large``.
        TypeError, ValueError: the value has no canonical encoding, or nests deeper than 16.
    """
    meter.charge(_steps(value, meter.left, VALUE_DEPTH_MAX))
    data = _encoder.encode(value)
    if len(data) > VALUE_BYTES_MAX:
        raise Revert("value_too_large", f"{len(data)} bytes, at most {VALUE_BYTES_MAX} are stored")
    return data


def decode_metered(meter: Meter, data: bytes) -> Value:
    """Return the value of canonical bytes that we made."""
    meter.charge(len(data) >> 3)
    value: Value = _decoder.decode(data)
    return value


def _steps(value: object, steps_max: int, depth_left: int) -> int:
    """Return what a value costs to encode; what exceeds ``steps_max`` need not be exact."""
    kind = type(value)
    if kind is int:
        if not INTEGER_MIN <= value <= INTEGER_MAX:  # type: ignore[operator]
            raise ValueError("integer out of range")
        return 1
    if kind is str or kind is bytes:
        return 1 + (len(value) >> 3)  # type: ignore[arg-type]
    if kind is bool or value is None:
        return 1
    if depth_left == 0:
        raise ValueError("nested too deep")
    if kind is dict:
        total = 1
        for key, item in value.items():  # type: ignore[attr-defined]
            if type(key) is not str:
                raise TypeError("a map key is no text")
            total += 1 + (len(key) >> 3) + _steps(item, steps_max - total, depth_left - 1)
            if total > steps_max:
                break
        return total
    if kind is list or kind is tuple:
        total = 1
        for item in value:  # type: ignore[attr-defined]
            total += _steps(item, steps_max - total, depth_left - 1)
            if total > steps_max:
                break
        return total
    raise TypeError(f"{kind.__name__} has no canonical encoding")
