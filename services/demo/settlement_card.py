"""The card of the settlement demo: its figures, and which invariants hold."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.table import Table

from services.demo.agency_card import money
from services.demo.settlement_facts import Facts
from services.demo.settlement_script import NO_FUNDS, PAID, REVERSED, Wanted
from services.demo.verdict import draw_verdict

_TITLES = {PAID: "paid, units moved", REVERSED: "given back, nothing paid", NO_FUNDS: "cancelled, neither moved"}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the card says. Times in seconds; ``database`` and ``place`` are for people.

    ``alone_p50_ms`` is the median of a trade alone, from signing to COMPLETED; ``burst`` trades together took
    ``burst_s``.
    """

    facts: Facts
    seed: int
    database: str
    alone_p50_ms: float
    burst: int
    burst_s: float
    start_s: float
    play_s: float
    place: str


def report_json(report: Report, invariants: Mapping[str, bool]) -> dict[str, object]:
    """Return the object that ``--json`` prints; money is simulated, amounts are integers in 1/100 CNY."""
    facts = report.facts
    return {
        "ok": all(invariants.values()),
        "invariants": dict(invariants),
        "simulated": True,
        "database": report.database,
        "seed": report.seed,
        "trades": len(facts.deals),
        "ends": {title: facts.count(wanted) for wanted, title in _TITLES.items()},
        "amount_paid": sum(end.paid for end in facts.ends.values()),
        "units_moved": _units(facts, PAID),
        "states": dict(Counter(end.state for end in facts.ends.values())),
        "answers": {name: got for name, (got, _) in facts.answers.items()},
        "repeated": {"asked": facts.repeated[0], "effects": facts.repeated[1]},
        "accidents": [{"name": accident.name, "ended": accident.ended} for accident in facts.accidents],
        "while_silent": dict(Counter(facts.silent_states)),
        "flagged": facts.flagged,
        "reversals": dict(facts.reversals),
        "reconciled": facts.reconciled,
        "breaks": list(facts.breaks),
        "alone_p50_ms": round(report.alone_p50_ms, 1),
        "burst": {"trades": report.burst, "seconds": round(report.burst_s, 2)},
        "start_seconds": round(report.start_s, 1),
        "play_seconds": round(report.play_s, 1),
        "network": report.place,
    }


def draw_card(report: Report, invariants: Mapping[str, bool]) -> None:
    """Print the card."""
    draw_verdict("Settlement", _table(report.facts), _fields(report), invariants)


def _table(facts: Facts) -> Table:
    title = "Trades: units on the chain against simulated money"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("how they ended")
    for column in ("trades", "units moved", "paid"):
        table.add_column(column, justify="right")
    for wanted, text in _TITLES.items():
        events = [deal.event for deal in facts.deals if deal.wanted == wanted]
        paid = sum(facts.ends[event].paid for event in events if event in facts.ends)
        table.add_row(text, f"{len(events):,}", f"{_units(facts, wanted):,}", money(paid))
    return table


def _units(facts: Facts, wanted: Wanted) -> int:
    """Return how many units trades of one kind moved for good."""
    return sum(deal.units for deal in facts.deals if deal.wanted == wanted == PAID)


def _fields(report: Report) -> dict[str, str]:
    facts = report.facts
    asked, effects = facts.repeated
    return {
        "stores": report.database,
        "one alone": f"{report.alone_p50_ms:.0f} ms (median) from signing to COMPLETED",
        "together": f"{report.burst:,} at once in {report.burst_s:.1f} s",
        "asked for again": f"one trade {asked} times at once, {effects} effect",
        "refused": "; ".join(f"{name}: {got}" for name, (got, _) in facts.answers.items()),
        "died meanwhile": ", ".join(f"{accident.name} ({accident.ended:,} ended)" for accident in facts.accidents),
        "relay, scan off": f"{len(facts.silent_states):,} trades final on the chain stayed "
        f"{', '.join(Counter(facts.silent_states))}; the scan alone finished them",
        "not payable": f"{facts.flagged} waited for an operator; {sum(facts.reversals.values())} were taken back",
        "reconciled": f"{facts.reconciled:,} events, reversals and refused ones too, {len(facts.breaks)} breaks"
        + "".join(f"; {text}" for text in facts.breaks[:5]),
        "work": f"{report.play_s:.1f} s after {report.start_s:.1f} s of start",
        "network": report.place,
    }
