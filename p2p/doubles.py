"""Two processes under one name: a copied home that runs beside the original.

Both hold the same certificate, so each takes the other's sessions over, or is turned down because the
other has one, again and again. A node that restarts, or two nodes that dial each other at once, do so once
or twice. Pure: time is given in, in seconds of any monotonic clock.
"""

from collections import deque

from consensus.ledger.ids import NodeName

CLASHES_MIN = 5
"""Clashes within ``WINDOW_S`` from which on a name counts as doubled."""
WINDOW_S = 60.0


class DoubleWatch:
    """Counts by name how often one session met another; only proven names are told, so memory is bounded."""

    def __init__(self) -> None:
        self._clashes: dict[NodeName, deque[float]] = {}

    def clashed(self, name: NodeName, *, now_s: float) -> bool:
        """Note that a second session of this name came while one stood; true when this makes it count as doubled."""
        before = self.is_doubled(name, now_s=now_s)
        self._clashes.setdefault(name, deque(maxlen=CLASHES_MIN)).append(now_s)
        return not before and self.is_doubled(name, now_s=now_s)

    def is_doubled(self, name: NodeName, *, now_s: float) -> bool:
        """Tell whether two processes seem to speak under this name now."""
        clashes = self._clashes.get(name)
        return clashes is not None and len(clashes) == CLASHES_MIN and now_s - clashes[0] <= WINDOW_S
