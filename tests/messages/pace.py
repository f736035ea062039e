"""Whether receipts kept a rate: no window of T seconds may hold more than rate × T + 1 of them, counted exactly."""

from collections.abc import Sequence
from fractions import Fraction

NS_PER_S = 1_000_000_000


def fastest_window(received_ns: Sequence[int], rate_per_s: float) -> tuple[int, int] | None:
    """Return first and last index of a window that holds too many receipts, None if none does.

    A window from receipt i to receipt j holds too many when j − i > rate × (t[j] − t[i]); so what is looked for is
    an earlier receipt with a larger slack ``rate × t − index``, and one pass over all windows is enough.
    """
    rate = Fraction(rate_per_s) / NS_PER_S
    best: tuple[Fraction, int] | None = None
    for index, moment_ns in enumerate(received_ns):
        slack = rate * moment_ns - index
        if best is not None and slack < best[0]:
            return best[1], index
        if best is None or slack > best[0]:
            best = slack, index
    return None
