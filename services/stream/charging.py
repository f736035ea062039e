"""A charging session of an electric car, as a meter at the post counts it: irregular, and the same for the same seed.

The battery takes its full power up to half its charge and less and less from there on. The power wavers, other cars
take some of it away for a while, and the meter reports at uneven times; so a pulse is one to a few units. Integers
alone: W, ms, and mJ = W × ms. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

WHAT: Final = "0.1 kWh"
"""One unit, as ``Terms.what`` says it."""
PULSES = 200
PULSE_UNITS_MAX = 5
"""The most units in one pulse (the longest interval at full power): with ``step_max`` of so many prices each pulse is
one iteration."""
UNIT_MJ: Final = 360_000_000
BATTERY_MJ = 600 * UNIT_MJ
POWER_W_MAX, POWER_W_MIN = 110_000, 20_000
_INTERVAL_MS_MIN, _INTERVAL_MS_MAX = 3_000, 13_000
_START_PERCENT_MIN, _START_PERCENT_MAX = 15, 40


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the meter counts at one time.

    Args:
        at_ms: since the car was plugged in, in the car's own time.
        units: in all, each 0.1 kWh.
        power_w: mean since the pulse before.
        charge_percent: of the battery.
    """

    at_ms: int
    units: int
    power_w: int
    charge_percent: int


def charging_session(seed: int, pulses: int = PULSES) -> tuple[Pulse, ...]:
    """Return the pulses of a session; units rise with each by 1 to ``PULSE_UNITS_MAX``."""
    draws = _draws(seed)
    charge_mj = BATTERY_MJ * _between(next(draws), _START_PERCENT_MIN, _START_PERCENT_MAX) // 100
    at_ms = counted_ms = units = rest_mj = since_mj = shared = 0
    found: list[Pulse] = []
    while len(found) < pulses:
        draw = next(draws)
        shared = max(shared - 1, 0) or (_between(draw[1:], 2, 6) if draw[0] < 6 else 0)
        power_w = _power_w(charge_mj) * _between(draw[2:], 88, 104) // 100 // (2 if shared else 1)
        interval_ms = _between(draw[4:], _INTERVAL_MS_MIN, _INTERVAL_MS_MAX)
        at_ms += interval_ms
        energy_mj = power_w * interval_ms
        charge_mj = min(charge_mj + energy_mj, BATTERY_MJ)
        since_mj += energy_mj
        rest_mj += energy_mj
        if rest_mj < UNIT_MJ:
            continue
        units += rest_mj // UNIT_MJ
        rest_mj %= UNIT_MJ
        found.append(Pulse(at_ms, units, since_mj // (at_ms - counted_ms), charge_mj * 100 // BATTERY_MJ))
        counted_ms, since_mj = at_ms, 0
    return tuple(found)


def pulse_at(session: tuple[Pulse, ...], units: int) -> Pulse:
    """Return the first pulse by which so many units were counted, the last one where there were never so many."""
    return next((pulse for pulse in session if pulse.units >= units), session[-1])


def _power_w(charge_mj: int) -> int:
    """Return the power that a battery takes: full up to 50 %, then straight down to the least at 100 %."""
    over_mj = max(charge_mj - BATTERY_MJ // 2, 0)
    return POWER_W_MAX - (POWER_W_MAX - POWER_W_MIN) * over_mj // (BATTERY_MJ // 2)


def _draws(seed: int) -> Iterator[bytes]:
    """Yield 32 bytes again and again, the same ones in every version of the language."""
    number = 0
    while True:
        yield sha256(b"charging %d %d" % (seed, number)).digest()
        number += 1


def _between(draw: bytes, low: int, high: int) -> int:
    return low + int.from_bytes(draw[:2], "big") % (high - low + 1)
