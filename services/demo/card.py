"""How the demo shows itself: a line of progress while it runs, and a card with figures at the end."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from services.demo.invariants import Facts
from services.demo.orders import LineClass, format_pounds
from services.demo.rights_machine import Kind, Schedule

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


class Watch:
    """Progress on standard error; silent unless that is a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def say(self, text: str) -> None:
        """Say what happens now."""
        self._progress.update(self._task, description=text)

    def begin(self, total: int) -> None:
        """Say how many events there are."""
        self._progress.update(self._task, total=total)

    def done(self, count: int) -> None:
        """Say how many events are final."""
        self._progress.update(self._task, completed=count)


@contextmanager
def open_watch(*, is_quiet: bool) -> Iterator[Watch]:
    """Show progress for the time of the block."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    is_silent = is_quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=is_silent) as progress:
        yield Watch(progress)


def card_figures(facts: Facts, schedule: Schedule, *, source: str, seed: int) -> dict[str, object]:
    """Return the card's figures by name, ready for JSON; amounts are integers in pence, a right is one penny."""
    book = facts.book
    rights = {name: value - facts.before.as_map()[name] for name, value in facts.after.as_map().items()}
    seals = [node.seal for node in facts.nodes.values()]
    return {
        "source": source,
        "seed": seed,
        "lines": book.line_count,
        "duplicate_lines": book.duplicate_count,
        "invoices": book.invoice_count,
        "amount_pence": book.amount_pence,
        "classes": {
            kind.value: {"invoices": tally.invoices, "lines": tally.lines, "amount_pence": tally.amount_pence}
            for kind, tally in book.classes.items()
        },
        "cancel_invoices": dict(book.cancel_invoices),
        "orders_played": schedule.count(Kind.CREATE),
        "events": {kind.value: schedule.count(kind) for kind in Kind} | {"repeated": schedule.repeat_count},
        "users": len(facts.expected),
        "rights": rights,
        "quota": facts.quota,
        "transactions": len(facts.sent),
        "calls": sum(len(sent.batch.events) for sent in facts.sent),
        "blocks": len(facts.blocks),
        "later_view_blocks": sum(1 for block in facts.blocks if block.view > 0),
        "killed": _accident(facts.killed.node, facts.killed.from_height, facts.killed.to_height),
        "frozen": _accident(facts.frozen.node, facts.frozen.from_height, facts.frozen.to_height),
        "height": max(node.height for node in facts.nodes.values()),
        "sealed_height": seals[0].height,
        "state_root": "0x" + seals[0].root.hex(),
        "nodes": list(facts.nodes),
    }


def draw_card(figures: Mapping[str, object], invariants: Mapping[str, bool]) -> None:
    """Print the card."""
    console = Console(file=sys.stdout, highlight=False)
    console.print(_lines_table(figures))
    fields = _fields(figures)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields.items():
        grid.add_row(name, Text(value))
    for name, holds in invariants.items():
        mark = Text("holds", "green") if holds else Text("BROKEN", "bold red")
        grid.add_row(name.replace("_", " "), mark)
    ok = all(invariants.values())
    title = "Reward rights: every invariant holds" if ok else "Reward rights: BROKEN"
    console.print(Panel(grid, title=f"[bold]{title}[/]", border_style="green" if ok else "red", box=box.ROUNDED))


def _lines_table(figures: Mapping[str, object]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"Orders: {figures['source']}", title_justify="left", pad_edge=False)
    table.add_column("lines by class")
    for column in ("invoices", "lines", "amount"):
        table.add_column(column, justify="right")
    classes = figures["classes"]
    for kind, title in _CLASS_TITLES.items():
        tally = classes[kind.value] if isinstance(classes, dict) else {}
        if tally["lines"]:
            table.add_row(title, str(tally["invoices"]), f"{tally['lines']:,}", format_pounds(tally["amount_pence"]))
    total = figures["amount_pence"]
    table.add_section()
    table.add_row(
        "all lines",
        str(figures["invoices"]),
        f"{figures['lines']:,}",
        format_pounds(total if isinstance(total, int) else 0),
    )
    return table


def _fields(figures: Mapping[str, object]) -> dict[str, str]:
    events, rights = figures["events"], figures["rights"]
    killed, frozen = figures["killed"], figures["frozen"]
    if not (isinstance(events, dict) and isinstance(rights, dict)):
        return {}
    if not (isinstance(killed, dict) and isinstance(frozen, dict)):
        return {}
    return {
        "events": ", ".join(f"{count} {name}" for name, count in events.items()),
        "rights": ", ".join(f"{value:,} {name}" for name, value in rights.items()),
        "users": f"{figures['users']} under pseudonyms",
        "work": f"{figures['calls']} calls in {figures['transactions']} transactions, {figures['blocks']} blocks, "
        f"{figures['play_seconds']} s after {figures['start_seconds']} s of start",
        "killed": f"{killed['node']} at height {killed['from_height']}, back at {killed['to_height']}",
        "frozen": f"{frozen['node']}, primary at height {frozen['from_height']}, woken at {frozen['to_height']}; "
        f"{figures['later_view_blocks']} blocks by another primary",
        "proofs": f"{figures['proven_receipts']} receipts checked down from genesis",
        "state": f"{figures['state_root']} sealed at {figures['sealed_height']} by all {len(_list(figures['nodes']))}",
        "network": str(figures["network"]),
    }


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _accident(node: str, from_height: int, to_height: int) -> dict[str, object]:
    return {"node": node, "from_height": from_height, "to_height": to_height}
