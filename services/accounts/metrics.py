"""Figures of the account system for Prometheus, in a registry of their own."""

from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.accounts.port import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class AccountsMetrics:
    """Counters since the start of the program."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge("hansa_accounts_connections", "TCP connections open", registry=registry)
        self.request_seconds = Histogram(
            "hansa_accounts_request_seconds", "Time to answer orders", buckets=_SECONDS, registry=registry
        )
        self._orders = Counter(
            "hansa_accounts_orders", "Orders by operation and outcome", ["operation", "outcome"], registry=registry
        )

    def count(self, answers: Sequence[Answer]) -> None:
        """Count what came of orders: ``done``, now or before, or a code."""
        tally = Tally((answer.operation.value, answer.code or "done") for answer in answers)
        for labels, count in tally.items():
            self._orders.labels(*labels).inc(count)

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self._registry)
