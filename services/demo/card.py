"""The card of the rights demo: its figures, and which invariants hold."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.table import Table

from services.demo.chain import Seal
from services.demo.invariants import Accident, Facts, Intake, delivered_per_s
from services.demo.orders import LineClass, format_pounds
from services.demo.verdict import draw_verdict
from services.messages.store import State
from services.rights.events import Kind

_CLASS_TITLES = {
    LineClass.CUSTOMER_ORDER: "customer orders",
    LineClass.GUEST_ORDER: "guest orders",
    LineClass.ZERO_ADJUSTMENT: "stock adjustments of no value",
    LineClass.VALUE_ADJUSTMENT: "other adjustments",
    LineClass.CANCEL_WHOLE: "cancellations matched whole",
    LineClass.CANCEL_PART: "cancellations matched partly",
    LineClass.CANCEL_NONE: "cancellations that match nothing",
    LineClass.CANCEL_NO_CUSTOMER: "cancellations without customer",
}


_RIGHTS_TITLES = {"clawedBack": "clawed back", "debt": "owed"}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the card says. Times in seconds; ``place`` says what became of the network."""

    facts: Facts
    intake: Intake
    source: str
    seed: int
    store: str
    proven_count: int
    start_s: float
    play_s: float
    place: str

    @property
    def rights(self) -> dict[str, int]:
        """By how much each of the contract's figures grew."""
        before = self.facts.before.as_map()
        return {name: value - before[name] for name, value in self.facts.after.as_map().items()}

    @property
    def later_view_count(self) -> int:
        """How many blocks another primary than the first one brought about."""
        return sum(1 for block in self.facts.blocks if block.view > 0)

    @property
    def events(self) -> dict[str, int]:
        """How many events of each kind there are, and how many come twice."""
        kinds = {kind.value: self.facts.plan.count(kind) for kind in Kind}
        return kinds | {"repeated": len(self.facts.plan.repeats)}

    @property
    def ends(self) -> dict[str, int]:
        """How many events ended in each state, and how many did not."""
        ends = [end.state if end else None for end in self.facts.ends.values()]
        counts = {state.value: ends.count(state) for state in State if state is not State.WAITING}
        return counts | {"waiting": ends.count(None)}

    @property
    def transaction_count(self) -> int:
        """How many transactions the events ended in."""
        return len({end.place.transaction_id for end in self.facts.ends.values() if end and end.place})

    @property
    def seal(self) -> Seal:
        """The first node's newest sealed state."""
        return next(iter(self.facts.nodes.values())).seal


def report_json(report: Report, invariants: Mapping[str, bool]) -> dict[str, object]:
    """Return the object that ``--json`` prints; amounts are integers in pence, and a right is one penny."""
    facts, book = report.facts, report.facts.book
    return {
        "ok": all(invariants.values()),
        "invariants": dict(invariants),
        "source": report.source,
        "seed": report.seed,
        "lines": book.line_count,
        "duplicate_lines": book.duplicate_count,
        "invoices": book.invoice_count,
        "amount_pence": book.amount_pence,
        "classes": {
            kind.value: {"invoices": tally.invoices, "lines": tally.lines, "amount_pence": tally.amount_pence}
            for kind, tally in book.classes.items()
        },
        "cancel_invoices": dict(book.cancel_invoices),
        "orders_played": facts.plan.count(Kind.CREATE),
        "events": report.events,
        "ends": report.ends,
        "users": len(facts.expected),
        "rights": report.rights,
        "quota": sum(facts.plan.quotas.values()),
        "refusals": {name: got for name, (got, _) in facts.answers.items()},
        "intake": {
            "events": report.intake.events,
            "seconds": round(report.intake.seconds, 2),
            "waiting": report.intake.waiting,
        },
        "rate_per_s": facts.rate_per_s,
        "delivered_per_s_max": round(delivered_per_s(facts.samples), 1),
        "store": report.store,
        "transactions": report.transaction_count,
        "blocks": len(facts.blocks),
        "later_view_blocks": report.later_view_count,
        "killed": _accident_json(facts.killed),
        "frozen": _accident_json(facts.frozen),
        "crashes": [
            {"program": crash.program, "waiting": crash.waiting, "ended_after": crash.ended_after}
            for crash in facts.crashes
        ],
        "height": max(node.height for node in facts.nodes.values()),
        "sealed_height": report.seal.height,
        "state_root": "0x" + report.seal.root.hex(),
        "nodes": list(facts.nodes),
        "proven_receipts": report.proven_count,
        "proven_history_entries": facts.proof.entries,
        "start_seconds": round(report.start_s, 1),
        "play_seconds": round(report.play_s, 1),
        "network": report.place,
    }


def draw_card(report: Report, invariants: Mapping[str, bool]) -> None:
    """Print the card."""
    draw_verdict("Reward rights", _lines_table(report), _fields(report), invariants)


def _lines_table(report: Report) -> Table:
    book = report.facts.book
    table = Table(box=box.SIMPLE_HEAD, title=f"Orders: {report.source}", title_justify="left", pad_edge=False)
    table.add_column("lines by class")
    for column in ("invoices", "lines", "amount"):
        table.add_column(column, justify="right")
    for kind, title in _CLASS_TITLES.items():
        tally = book.classes[kind]
        if tally.lines:
            table.add_row(title, f"{tally.invoices:,}", f"{tally.lines:,}", format_pounds(tally.amount_pence))
    table.add_section()
    # An invoice whose lines fall into two classes stands in both rows and is counted once here.
    table.add_row("all lines", f"{book.invoice_count:,}", f"{book.line_count:,}", format_pounds(book.amount_pence))
    return table


def _fields(report: Report) -> dict[str, str]:
    facts, intake = report.facts, report.intake
    killed, frozen = facts.killed, facts.frozen
    orders = facts.book.classes[LineClass.CUSTOMER_ORDER].invoices
    rights = {_RIGHTS_TITLES.get(name, name): value for name, value in report.rights.items()}
    events = {name.replace("_", " "): count for name, count in report.events.items()}
    taken_per_s = intake.events / max(intake.seconds, 1e-9)
    return {
        "played": f"{facts.plan.count(Kind.CREATE):,} of {orders:,} customer orders, "
        f"{len(facts.expected)} users under pseudonyms",
        "events": _counts(events),
        "burst": f"{intake.events:,} events taken in {intake.seconds:.1f} s ({taken_per_s:,.0f}/s), "
        f"{intake.waiting:,} waiting then",
        "drained": f"at {delivered_per_s(facts.samples):.1f}/s in the fastest second, {facts.rate_per_s:g}/s allowed; "
        f"store: {report.store}",
        "ended": _counts({name: count for name, count in report.ends.items() if count}),
        "rights": _counts(rights),
        "work": f"{report.transaction_count} transactions, {len(facts.blocks)} blocks, "
        f"{report.play_s:.1f} s after {report.start_s:.1f} s of start",
        "refused": "; ".join(f"{name}: {got}" for name, (got, _) in facts.answers.items()),
        "killed": f"{killed.node} at height {killed.from_height}, back at {killed.to_height}; "
        + ", ".join(f"{crash.program} with {crash.waiting:,} waiting" for crash in facts.crashes),
        "frozen": f"{frozen.node}, primary after height {frozen.from_height}, woken at {frozen.to_height}; "
        f"{report.later_view_count} blocks by another primary",
        "proofs": f"{report.proven_count} receipts checked down from genesis; "
        f"user {facts.proof.user}: all {facts.proof.entries} entries, offline",
        "state": f"0x{report.seal.root.hex()} sealed at {report.seal.height} by all {len(facts.nodes)}",
        "network": report.place,
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _accident_json(accident: Accident) -> dict[str, object]:
    return {"node": accident.node, "from_height": accident.from_height, "to_height": accident.to_height}
