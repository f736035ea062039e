"""Figures for Prometheus, in a registry of their own: what the RPC counts, and what the node gauges."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.rpc.backend import Backend

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)


class RpcMetrics:
    """Counters of one server. Methods that do not exist count as ``unknown``, so labels stay few."""

    def __init__(self, backend: Backend) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "hansa_rpc_requests", "JSON-RPC requests by outcome", ["method", "outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "hansa_rpc_seconds", "Time to answer", ["method"], buckets=_SECONDS, registry=self._registry
        )
        self.transactions = Counter("hansa_rpc_transactions", "Transactions offered", registry=self._registry)
        self.sessions = Gauge("hansa_rpc_sessions", "WebSockets open", registry=self._registry)
        self.connections = Gauge("hansa_rpc_connections", "TCP connections open", registry=self._registry)
        self._registry.register(_NodeGauges(backend))

    def answered(self, method: str, code: str, duration_s: float) -> None:
        """Count one request; ``code`` is empty when it succeeded."""
        self._requests.labels(method, code or "ok").inc()
        self._seconds.labels(method).observe(duration_s)

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)


class _NodeGauges(Collector):
    """Reads the node's figures when they are asked for."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        """Yield the newest height, all gauges of the node, and where its processor time went."""
        header = self._backend.head().header
        figures = {
            "height": header.height,
            "sealed_height": header.sealed_height,
            "block_time_ms": header.time_ms,
            "peers_connected": sum(peer.connected for peer in self._backend.peers()),
            **self._backend.gauges(),
        }
        for name in sorted(figures):
            yield GaugeMetricFamily(f"hansa_{name}", name.replace("_", " "), value=figures[name])
        stages = CounterMetricFamily("hansa_stage_seconds", "Processor time by stage", labels=["stage"])
        for stage, seconds in self._backend.stages().items():
            stages.add_metric([stage], seconds)
        yield stages
