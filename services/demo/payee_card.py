"""The card of the payee demo: its figures, and which invariants hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.table import Table

from services.demo.agency_card import money
from services.demo.payee_facts import Facts
from services.demo.payee_gather import Search
from services.demo.verdict import draw_verdict
from services.payee.wording import EMULATED


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the card says. Times in seconds; ``place`` is for people. ``times_ms`` are of single resolutions."""

    facts: Facts
    search: Search
    times_ms: list[float]
    start_s: float
    play_s: float
    place: str


def report_json(report: Report, invariants: Mapping[str, bool]) -> dict[str, object]:
    """Return the object that ``--json`` prints; money is simulated, amounts are integers in 1/100 CNY."""
    facts = report.facts
    answered, events, first = facts.repeated
    return {
        "ok": all(invariants.values()),
        "invariants": dict(invariants),
        "simulated": True,
        "emulated": True,
        "isolation": EMULATED,
        "photos": len(facts.prints),
        "payments": {server: _count(facts, server) for server in _servers(facts)},
        "amount_paid": sum(item.amount for item in facts.payments),
        "records": {
            server: {"version": item.version, "epoch": item.epoch, "status": item.status}
            for server, item in facts.chain.items()
        },
        "changes": facts.changes[1],
        "answers": {name: got for name, (got, _) in facts.answers.items()},
        "repeated": {"asked": answered, "events": events, "effects": first},
        "candidates": {item.title: dict(item.shown) for item in facts.candidates},
        "accidents": [{"name": item.name, "answered": item.answered} for item in facts.accidents],
        "leaks": {text: list(places) for text, places in facts.leaks.items()},
        "searched": {"secrets": facts.markers, "bytes": report.search.trace_bytes},
        "resolution_p50_ms": round(median(report.times_ms), 1),
        "start_seconds": round(report.start_s, 1),
        "play_seconds": round(report.play_s, 1),
        "network": report.place,
    }


def draw_card(report: Report, invariants: Mapping[str, bool]) -> None:
    """Print the card."""
    draw_verdict("Payee codes", _table(report.facts), _fields(report), invariants)


def _table(facts: Facts) -> Table:
    title = "One printed code, two payment platforms; simulated money"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("platform")
    for column in ("payments", "paid", "record", "key epoch", "status"):
        table.add_column(column, justify="left" if column == "status" else "right")
    for server in _servers(facts):
        paid = sum(item.amount for item in facts.payments if item.server == server)
        record = facts.chain[server]
        cells = (f"{_count(facts, server):,}", money(paid), f"version {record.version}", str(record.epoch))
        table.add_row(server, *cells, record.status)
    return table


def _servers(facts: Facts) -> list[str]:
    return sorted(facts.chain)


def _count(facts: Facts, server: str) -> int:
    return sum(item.server == server for item in facts.payments)


def _fields(report: Report) -> dict[str, str]:
    facts, search = report.facts, report.search
    answered, _, first = facts.repeated
    wrong = {name: answer for name, answer in facts.answers.items() if answer[0] != answer[1]}
    shown = [
        f"{item.title}: {', '.join(name if seen else f'{name} (name only)' for name, seen in item.shown.items())}"
        for item in facts.candidates
    ]
    leaks = f"found: {', '.join(facts.leaks)}" if facts.leaks else "none found"
    return {
        "environments": f"{', '.join(facts.isolation)}: {EMULATED}",
        "one print": f"read from {len(facts.prints)} photos, turned and blurred, by payers of both platforms",
        "resolved in": f"{median(report.times_ms):.0f} ms (median), proofs and commitment checked",
        "asked for again": f"one order {answered} times at once, {first} payment",
        "refused": ", ".join(sorted({got for got, wanted in facts.answers.values() if got == wanted}))
        + "".join(f"; {name}: {got} instead of {wanted}" for name, (got, wanted) in wrong.items()),
        "candidates": "; ".join(shown),
        "died meanwhile": ", ".join(item.name for item in facts.accidents),
        "in the clear": f"{facts.markers} secrets of records looked for in {search.trace_bytes / 1e6:.0f} MB"
        f" of all disks: {leaks}",
        "work": f"{report.play_s:.1f} s after {report.start_s:.1f} s of start",
        "network": report.place,
    }
