"""Figures of the business server for Prometheus, in a registry of their own."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000)


class BusinessMetrics:
    """Counters of one business server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._events = Counter(
            "hansa_business_events", "Events by kind and outcome", ["kind", "outcome"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "hansa_business_request_seconds",
            "Time to answer a post, also one that is refused",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.publish_events = Histogram(
            "hansa_business_publish_events", "Events in one publish", buckets=_COUNTS, registry=self._registry
        )
        self.connections = Gauge("hansa_business_connections", "TCP connections open", registry=self._registry)
        self.waiting = Gauge("hansa_business_waiting", "Events that wait to be published", registry=self._registry)
        self._children: dict[tuple[str, str], Callable[[], None]] = {}

    def count(self, kind: str, outcome: str) -> None:
        """Count one event; the outcome is ``new``, ``repeated``, or a code."""
        # Looking a labelled child up costs more than counting: they are few, and kept.
        increase = self._children.get((kind, outcome))
        if increase is None:
            increase = self._children[kind, outcome] = self._events.labels(kind, outcome).inc
        increase()

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)
