"""Figures of the message centre for Prometheus, in a registry of their own."""

from collections import Counter as Tally
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from services.messages.port import Settlement, Stats, Verdict
from services.messages.store import Published

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class CenterMetrics:
    """Counters since the start of the program, and the queue's figures when they are asked for."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.connections = Gauge("hansa_center_connections", "Connections open", registry=registry)
        self.refused = Counter("hansa_center_refused_peers", "Peers let go of, by reason", ["code"], registry=registry)
        self.requests = Counter("hansa_center_requests", "Requests by outcome", ["kind", "outcome"], registry=registry)
        messages = Counter(
            "hansa_center_published", "Messages handed in, by what they were", ["what"], registry=registry
        )
        self._new, self._repeats, self._conflicts = (messages.labels(what) for what in ("new", "repeat", "conflict"))
        settled = Counter("hansa_center_settled", "Verdicts that counted", ["verdict"], registry=registry)
        self._verdicts = {verdict: settled.labels(verdict.value) for verdict in Verdict}
        self._late = Counter("hansa_center_late_verdicts", "Verdicts under a fence that is old", registry=registry)
        self._gauges = {
            name: Gauge(f"hansa_center_{name}", text, registry=registry)
            for name, text in (
                ("waiting", "Messages that wait"),
                ("waiting_bytes", "Bytes of the bodies that wait"),
                ("leased", "Messages at a consumer"),
                ("parked", "Messages that let others pass"),
                ("done", "Messages done and still known"),
                ("refused", "Messages refused and still known"),
                ("dead", "Dead letters"),
                ("oldest_ms", "Age of the oldest waiting message, ms"),
                ("delivered_count", "Deliveries since the start"),
                ("consumers", "Consumers"),
                ("rate_per_s", "Deliveries a second, at most"),
            )
        }

    def published(self, published: Sequence[Published]) -> None:
        """Count what became of a publish."""
        new = sum(one.is_new for one in published)
        conflicts = sum(one.is_conflict for one in published)
        self._new.inc(new)
        self._conflicts.inc(conflicts)
        self._repeats.inc(len(published) - new - conflicts)

    def settled(self, settlements: Sequence[Settlement], counted: Sequence[bool]) -> None:
        """Count verdicts."""
        tally = Tally(one.verdict for one, counts in zip(settlements, counted, strict=True) if counts)
        for verdict, count in tally.items():
            self._verdicts[verdict].inc(count)
        self._late.inc(len(settlements) - tally.total())

    def render(self, stats: Stats) -> bytes:
        """Return the exposition text."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stats, name))
        return generate_latest(self._registry)
