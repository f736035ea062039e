"""The card of the stream demo: its figures, and which invariants hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.table import Table

from services.demo.stream_facts import CLOSED, Facts, Session
from services.demo.verdict import draw_verdict

_REASONS = {
    "count": "the agreed count",
    "used": "the number was used otherwise",
    "withdrawal": "its deposit was asked back",
    "timeout": "a time-out",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the card says. Times in seconds; ``unit`` and ``what`` as in the terms; ``place`` is for people."""

    facts: Facts
    unit: str
    what: str
    seed: int
    start_s: float
    play_s: float
    place: str


def report_json(report: Report, invariants: Mapping[str, bool]) -> dict[str, object]:
    """Return the object that ``--json`` prints; money is simulated, amounts are integers in smallest units."""
    facts = report.facts
    return {
        "ok": all(invariants.values()),
        "invariants": dict(invariants),
        "simulated": True,
        "seed": report.seed,
        "unit": report.unit,
        "what": report.what,
        "sessions": [_session_json(item) for item in facts.sessions],
        "answers": {name: got for name, (got, _) in facts.answers.items()},
        "accidents": [{"name": item.name, "stored_after": item.stored} for item in facts.accidents],
        "start_seconds": round(report.start_s, 1),
        "play_seconds": round(report.play_s, 1),
        "network": report.place,
    }


def _session_json(item: Session) -> dict[str, object]:
    return {
        "title": item.title,
        "mode": item.mode,
        "iterations": item.iterations,
        "units": item.units,
        "uploads": item.uploads,
        "due": item.due,
        "paid": item.record.paid,
        "out_of_deposit": item.record.taken,
        "fine": item.fine,
        "step_max": item.step_max,
        "service_lost": item.service_lost,
        "payer_lost": item.payer_lost,
        "reason": item.reason,
        "status": item.record.status,
        "escrow": item.escrow,
    }


def draw_card(report: Report, invariants: Mapping[str, bool]) -> None:
    """Print the card."""
    draw_verdict("Payment streams", _table(report), _fields(report), invariants)


def _table(report: Report) -> Table:
    title = f"A car is charged, {report.what} by {report.what}; amounts in {report.unit}, simulated money"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("session")
    for column in ("iterations", "uploads", "units", "due", "paid", "fine"):
        table.add_column(column, justify="right")
    for item in report.facts.sessions:
        figures = (item.iterations, item.uploads, item.units, item.due, item.record.paid, item.fine)
        table.add_row(f"{item.title} ({item.mode})", *(f"{figure:,}" for figure in figures))
    return table


def _fields(report: Report) -> dict[str, str]:
    facts, unit = report.facts, report.unit
    wrong = {name: answer for name, answer in facts.answers.items() if answer[0] != answer[1]}
    lost = [max(getattr(item, who) for item in facts.sessions) for who in ("service_lost", "payer_lost")]
    step = max(item.step_max for item in facts.sessions)
    deposits = [
        f"{item.title}: {item.record.taken + item.fine} of {item.record.deposit} {unit} taken, "
        + ("the rest is back" if item.record.status == CLOSED else f"{item.escrow} held until the window ends")
        for item in facts.sessions
    ]
    return {
        "ended by": "; ".join(f"{item.title}: {_REASONS.get(item.reason, item.reason)}" for item in facts.sessions),
        "lost at most": f"service party {lost[0]}, payer {lost[1]} {unit}, of a step of {step}",
        "deposits": "; ".join(deposits),
        "refused": ", ".join(f"{name}: {got}" for name, (got, wanted) in facts.answers.items() if got == wanted)
        + "".join(f"; {name}: {got} instead of {wanted}" for name, (got, wanted) in wrong.items()),
        "died meanwhile": ", ".join(f"{item.name} ({item.stored} iterations after)" for item in facts.accidents),
        "work": f"{report.play_s:.1f} s after {report.start_s:.1f} s of start",
        "network": report.place,
    }
