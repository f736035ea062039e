"""The rights server's figures for Prometheus, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.messages.port import Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Figures:
    """What one rights server counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        events = Counter("hansa_rights_events", "Events judged, by verdict", ["verdict"], registry=self._registry)
        self._events = {verdict: events.labels(verdict.value) for verdict in Verdict}
        self._again = Counter("hansa_rights_again", "Deliveries of what was held already", registry=self._registry)
        self._transactions = Counter("hansa_rights_transactions", "Final transactions", registry=self._registry)
        self._seconds = Histogram(
            "hansa_rights_seconds", "From a delivery to its verdict", buckets=_SECONDS, registry=self._registry
        )
        self.held = Gauge("hansa_rights_held", "Deliveries held unsettled", registry=self._registry)
        self.under_way = Gauge("hansa_rights_under_way", "Transactions under way", registry=self._registry)

    def judged(self, verdict: Verdict, seconds: float) -> None:
        """Count one event."""
        self._events[verdict].inc()
        self._seconds.observe(seconds)

    def came_again(self) -> None:
        """Count a delivery of what was held already."""
        self._again.inc()

    def final(self) -> None:
        """Count one final transaction."""
        self._transactions.inc()

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)
