"""The pace of deliveries: a token bucket for one token, in integer nanoseconds. Pure.

No window of T seconds may hold more than rate × T + 1 receipts. For a window that begins with one receipt and ends
with a later one this says that consecutive receipts are at least 1/rate apart, and that is enough for all windows.
A delivery is received no earlier than it is sent, so it is enough to send it 1/rate after the last one was *received*:
however long it takes on its way, the gap only grows. What is lost on the way is never caught up.
"""

NS_PER_S = 1_000_000_000


class Bucket:
    """Says when the next delivery may be sent; all moments are nanoseconds of one monotonic clock.

    It begins empty, as if a delivery had been received at ``start_ns``: a restart is no second burst.
    """

    def __init__(self, rate_per_s: float, *, start_ns: int) -> None:
        """Keep to ``rate_per_s`` (more than 0)."""
        numerator, denominator = rate_per_s.as_integer_ratio()
        self.interval_ns = -(-NS_PER_S * denominator // numerator)
        """1/rate, rounded up, so that the rate is never exceeded."""
        self._last_ns = start_ns

    def ready_ns(self) -> int:
        """Return the earliest moment at which the next delivery may be sent."""
        return self._last_ns + self.interval_ns

    def take(self, received_ns: int) -> None:
        """Note that a delivery was received; the next one is sent an interval after the latest receipt."""
        self._last_ns = max(self._last_ns, received_ns)
