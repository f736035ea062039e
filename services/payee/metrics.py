"""Figures of a platform for Prometheus, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class PlatformMetrics:
    """Counters since the start of the program."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge("hansa_platform_connections", "TCP connections open", registry=registry)
        self.request_seconds = Histogram(
            "hansa_platform_payment_seconds", "Time to answer a payment", buckets=_SECONDS, registry=registry
        )
        self.payments = Counter(
            "hansa_platform_payments", "Payments asked for, by PAID, OPEN or a code", ["outcome"], registry=registry
        )
        self.delegations = Counter("hansa_platform_delegations", "Keys that were let sign queries", registry=registry)

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)
