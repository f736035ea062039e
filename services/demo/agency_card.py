"""The card of the agency demo: its figures, and which invariants hold."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.table import Table

from services.demo.agency_facts import CONFIRMED, DROPPED, REJECTED, Facts
from services.demo.verdict import draw_verdict

_TITLES = {CONFIRMED: "confirmed", REJECTED: "rejected by the issuer", DROPPED: "dropped before sending", "": "open"}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the card says. Times in seconds; ``place`` says what became of the network."""

    facts: Facts
    source: str
    seed: int
    accounts: int
    accounts_s: float
    file_s: float
    start_s: float
    play_s: float
    third_parties: tuple[str, ...]
    trace_bytes: int
    place: str


def money(amount: int) -> str:
    """Return an amount of 1/100 CNY for people."""
    return f"CNY {amount // 100:,}.{amount % 100:02d}"


def report_json(report: Report, invariants: Mapping[str, bool]) -> dict[str, object]:
    """Return the object that ``--json`` prints; amounts are integers in 1/100 CNY, units in 1/100."""
    facts = report.facts
    return {
        "ok": all(invariants.values()),
        "invariants": dict(invariants),
        "source": report.source,
        "seed": report.seed,
        "orders": len(facts.applications),
        "amount": facts.total,
        "sums": {_TITLES[state]: {"orders": count, "amount": amount} for state, (count, amount) in facts.sums.items()},
        "confirmed_amount": sum(amount for _, amount in facts.written.values()),
        "accounts": report.accounts,
        "ends": dict(Counter(end.state if end else "open" for end in facts.ends.values())),
        "reasons": dict(Counter(end.reason for end in facts.ends.values() if end and end.reason)),
        "packages": len(facts.packages),
        "anchors": len(facts.anchors),
        "units": {product: units.held for product, units in facts.units.items()},
        "answers": {name: got for name, (got, _) in facts.answers.items()},
        "channels": dict(facts.channels),
        "terms": list(facts.terms),
        "disclosed": list(facts.disclosed),
        "leaks": {name: list(places) for name, places in facts.leaks.items()},
        "markers": facts.marker_count,
        "crashes": [{"name": crash.name, "ended_after": crash.ended_after} for crash in facts.crashes],
        "ended_without_permission": facts.ended_without_permission,
        "joined": list(facts.joined),
        "accounts_seconds": round(report.accounts_s, 2),
        "file_seconds": round(report.file_s, 2),
        "start_seconds": round(report.start_s, 1),
        "play_seconds": round(report.play_s, 1),
        "network": report.place,
    }


def draw_card(report: Report, invariants: Mapping[str, bool]) -> None:
    """Print the card."""
    draw_verdict("Agency sale", _money_table(report), _fields(report), invariants)


def _money_table(report: Report) -> Table:
    facts = report.facts
    table = Table(box=box.SIMPLE_HEAD, title=f"Orders: {report.source}", title_justify="left", pad_edge=False)
    table.add_column("the file's orders")
    for column in ("orders", "applied for", "confirmed"):
        table.add_column(column, justify="right")
    for state, (count, amount) in facts.sums.items():
        if count:
            ends = [end for serial in facts.applications if (end := facts.ends.get(serial)) and end.state == state]
            table.add_row(_TITLES[state], f"{count:,}", money(amount), money(sum(end.amount for end in ends)))
    table.add_section()
    written = sum(amount for _, amount in facts.written.values())
    table.add_row(
        "the whole file, and its type-04 file", f"{len(facts.applications):,}", money(facts.total), money(written)
    )
    return table


def _fields(report: Report) -> dict[str, str]:
    facts = report.facts
    reasons = Counter(end.reason for end in facts.ends.values() if end and end.reason)
    rounds = sum(1 for anchor in facts.anchors if anchor.round_number)
    return {
        "joined": ", ".join(f"{name} {status}" for name, status in facts.channels.items()),
        "terms": f"version {facts.terms[0]} became {facts.terms[1]}: both signed, the permission node submitted",
        "accounts": f"{report.accounts:,} opened at the issuer in {report.accounts_s:.1f} s",
        "orders": f"{len(facts.applications):,} of the file, recorded and anchored in {report.file_s:.1f} s "
        "while the issuer end was killed",
        "ended": _counts(Counter((end.state if end else "open").lower() for end in facts.ends.values())),
        "not taken": _counts({name.replace("_", " "): count for name, count in reasons.items()}),
        "anchored": f"{len(facts.packages)} packages, {len(facts.anchors)} anchors of which {rounds} of allotments",
        "units held": ", ".join(f"{units.held / 100:,.2f} of {product}" for product, units in facts.units.items()),
        "refused": "; ".join(f"{name}: {got}" for name, (got, _) in facts.answers.items()),
        "killed": ", ".join(f"{crash.name}, {crash.ended_after:,} ended after" for crash in facts.crashes),
        "permission": f"down while {facts.ended_without_permission:,} orders ended; an application was "
        f"{facts.joined[0]} then, {facts.joined[1]} after",
        "disclosed": f"one order, verified offline: {facts.disclosed[0]}; altered: {facts.disclosed[1]}",
        "looked for": f"{facts.marker_count} markers in {report.trace_bytes / 1e6:.1f} MB that "
        f"{' and '.join(report.third_parties)} left: {len(facts.leaks)} found; {facts.control_count} in the bank's own",
        "work": f"{report.play_s:.1f} s after {report.start_s:.1f} s of start",
        "network": report.place,
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
