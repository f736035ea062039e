"""Penalties: what a peer's errors cost it.

Every error adds points to the name or address it came from; points melt away with time. Who reaches
the limit is refused for a while and starts again from half. Pure: time is given in, in seconds of any
monotonic clock.
"""

from collections import OrderedDict
from dataclasses import dataclass

POINTS_MAX = 100.0
"""Points at which a peer is refused."""
POINTS_DEFAULT = 10.0
POINTS_MELTING_PER_S = 1.0
REFUSAL_S = 60.0
ENTRIES_MAX = 4_096
"""Names and addresses remembered; the one longest without an error is forgotten first."""

POINTS: dict[str, float] = {
    "bad_signature": 25.0,
    "bad_certificate": 25.0,
    "frame_too_large": 50.0,
    "unknown_frame": 50.0,
    "unexpected_frame": 50.0,
    "malformed": 25.0,
    "too_large": 25.0,
    "duplicate_session": 0.0,
    "not_admitted": 2.0,
    "no_channel": 2.0,
    "private_failed": 2.0,
    "refused_for_a_while": 2.0,
    "too_many_sessions": 2.0,
}
"""What an error costs where it differs from ``POINTS_DEFAULT``: bytes that no honest program sends cost more,
two nodes that dial each other at the same time do nothing wrong, a new member or partner may come before this node
has read in the chain that it is one, and whoever is turned away by name, from a private session above all, must not
lose the address that it shares with others, unless it comes far more often than a program that backs off does."""


@dataclass(slots=True)
class _Entry:
    points: float
    at_s: float
    refused_until_s: float


class PenaltyBook:
    """Points and refusals by name or address."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def add(self, key: str, code: str, *, now_s: float) -> bool:
        """Charge an error and tell whether ``key`` is refused from now on."""
        entry = self._entries.pop(key, None) or _Entry(0.0, now_s, now_s)
        entry.points = _melted(entry, now_s) + POINTS.get(code, POINTS_DEFAULT)
        entry.at_s = now_s
        if entry.points >= POINTS_MAX:
            entry.points = POINTS_MAX / 2
            entry.refused_until_s = now_s + REFUSAL_S
        self._entries[key] = entry
        if len(self._entries) > ENTRIES_MAX:
            self._entries.popitem(last=False)
        return entry.refused_until_s > now_s

    def points(self, key: str, *, now_s: float) -> int:
        """Return the points that ``key`` has now."""
        entry = self._entries.get(key)
        return 0 if entry is None else round(_melted(entry, now_s))

    def refusal_left_s(self, key: str, *, now_s: float) -> float:
        """Return for how long ``key`` is still refused, 0 when it is not."""
        entry = self._entries.get(key)
        return 0.0 if entry is None else max(0.0, entry.refused_until_s - now_s)


def _melted(entry: _Entry, now_s: float) -> float:
    return max(0.0, entry.points - (now_s - entry.at_s) * POINTS_MELTING_PER_S)
