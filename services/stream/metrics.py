"""Figures of a service party for Prometheus, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class ServiceMetrics:
    """Counters since the start of the program."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge("hansa_stream_connections", "TCP connections open", registry=registry)
        self.streams = Gauge("hansa_stream_streams", "Streams that are not at their end", registry=registry)
        self.iteration_seconds = Histogram(
            "hansa_stream_iteration_seconds",
            "Time from an iteration's HTTP request to its answer",
            buckets=_SECONDS,
            registry=registry,
        )
        self.ended = Counter("hansa_stream_ended", "Streams that ended, by reason", ["reason"], registry=registry)
        self.sent = Counter(
            "hansa_stream_sent", "Uploads, claims, closes by outcome", ["what", "outcome"], registry=registry
        )
        self.refused = Counter("hansa_stream_refused", "Messages refused, by code", ["code"], registry=registry)

    @property
    def connection_count(self) -> int:
        """TCP connections that are open."""
        return int(self.connections._value.get())

    def render(self, iterations: int, groups: int) -> bytes:
        """Return the exposition text; the two counts are kept elsewhere, since they count for every iteration."""
        lines = (
            ("hansa_stream_iterations_total", "Iterations verified and taken", iterations),
            ("hansa_stream_groups_total", "Durable writes", groups),
        )
        text = "".join(
            f"# HELP {name} {about}\n# TYPE {name} counter\n{name} {count}\n" for name, about, count in lines
        )
        return generate_latest(self._registry) + text.encode()
