"""How long to wait: time-outs by view, and short patience with primaries that failed (SPEC P19, P20)."""

from dataclasses import dataclass

from consensus.ledger.ids import NodeName
from consensus.pbft.config import Config

SUSPECT_TURNS_MAX = 32
"""Turns in a row for which a failing primary gets the short time-out at the most."""

SLOW_FACTOR = 4
"""A primary is slow when it takes more than this many times the median of the others, and the short time-out."""


@dataclass(slots=True)
class _Suspicion:
    turns: int
    turns_left: int
    failed_ms: int


class Pace:
    """Time-outs of one replica. Purely local: replicas may differ in all of it without harm to safety."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._suspicions: dict[NodeName, _Suspicion] = {}
        self._waited_ms: dict[NodeName, int] = {}

    def timeout_ms(self, view: int, primary: NodeName, validators_count: int) -> int:
        """Return how long this view may take: doubling by view up to the cap.

        The view starts at 0 with every height, so only a commit resets it (R15). Suspects get less, but
        only in the first round of primaries: later views give everyone full time, for liveness.
        """
        if view < validators_count and self.is_suspected(primary):
            return self._config.suspect_timeout_ms
        doubled = self._config.timeout_ms << min(view, 32)
        return min(doubled, self._config.timeout_ms_max)

    def is_suspected(self, name: NodeName) -> bool:
        """Tell whether this node's next turn is a short one."""
        suspicion = self._suspicions.get(name)
        return suspicion is not None and suspicion.turns_left > 0

    def failed(self, name: NodeName, *, now_ms: int = 0) -> None:
        """Note that a turn ended without a commit: the next 1, 2, 4 … turns are short ones, then one is full again."""
        suspicion = self._suspicions.get(name)
        if suspicion is None:
            self._suspicions[name] = _Suspicion(1, 1, now_ms)
            return
        suspicion.failed_ms = now_ms
        if suspicion.turns_left > 0:
            suspicion.turns_left -= 1
        else:
            suspicion.turns = suspicion.turns_left = min(2 * suspicion.turns, SUSPECT_TURNS_MAX)

    def proposed(self, name: NodeName, waited_ms: int) -> None:
        """Note how long a proposal was waited for while there was work."""
        self._waited_ms[name] = waited_ms

    def succeeded(self, name: NodeName, *, now_ms: int = 0) -> None:
        """Note that a block of this proposer was committed; one far slower than the others is as good as none (R36)."""
        if self._is_slow(name):
            self.failed(name, now_ms=now_ms)
        else:
            self._suspicions.pop(name, None)

    def _is_slow(self, name: NodeName) -> bool:
        others = sorted(waited_ms for other, waited_ms in self._waited_ms.items() if other != name)
        waited_ms = self._waited_ms.get(name, 0)
        if not others or waited_ms <= self._config.suspect_timeout_ms:
            return False
        return waited_ms > SLOW_FACTOR * others[len(others) // 2]

    def keep(self, names: tuple[NodeName, ...]) -> None:
        """Forget all who are no validators any more."""
        self._suspicions = {name: suspicion for name, suspicion in self._suspicions.items() if name in names}
        self._waited_ms = {name: waited_ms for name, waited_ms in self._waited_ms.items() if name in names}

    def failed_ms(self) -> dict[NodeName, int]:
        """Return when the last bad turn of each suspect was."""
        return {name: self._suspicions[name].failed_ms for name in self.suspected()}

    def suspected(self) -> tuple[NodeName, ...]:
        """Return all suspects, ascending."""
        return tuple(sorted(name for name in self._suspicions if self.is_suspected(name)))
