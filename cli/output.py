"""How commands speak: one JSON object with ``--json``, else tables and panels that fit 80 columns.

Results go to standard output, errors and progress to standard error. Colours only on a terminal.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from consensus.ledger.errors import HansaError, LocalError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# what the machine or the network refuses, though the command was right
_REFUSALS = {
    "chain_broken",
    "contract_code_missing",
    "network_busy",
    "node_exited",
    "not_ready",
    "not_running",
    "port_in_use",
    "still_running",
    "store_locked",
    "wrong_chain",
}

JSON_WANTED = "cli.json"
"""Where a context notes that ``--json`` was given, for the errors."""

Json = Mapping[str, object]


def exit_code(error: HansaError) -> int:
    """Return 2 for the user's wrong input, 1 for everything that the system refuses."""
    return EXIT_USAGE if isinstance(error, LocalError) and error.code not in _REFUSALS else EXIT_REFUSED


def report_error(error: HansaError) -> int:
    """Say an error in one line, or as a JSON object under ``--json``, and return the exit code."""
    message = " ".join(error.message.split())
    if _wants_json():
        click.echo(json.dumps({"ok": False, "error": {"code": error.code, "message": message}}, ensure_ascii=False))
    else:
        text = message if message != error.code else ""
        click.echo(f"{click.style('error', fg='red', bold=True)} {error.code}{': ' if text else ''}{text}", err=True)
    return exit_code(error)


def _wants_json() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(JSON_WANTED))


def leave(code: int) -> NoReturn:
    """End the command with an exit code."""
    raise click.exceptions.Exit(code)


class Output:
    """Where one command writes its result."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, data: Json | Sequence[object], view: Callable[["Console"], None]) -> None:
        """Write the data as JSON, or let ``view`` draw them."""
        if self.as_json:
            click.echo(json.dumps(data, ensure_ascii=False, indent=None if not sys.stdout.isatty() else 2))
            return
        view(console())

    def progress(self, text: str) -> None:
        """Say on standard error what takes time; silent under ``--json``."""
        if not self.as_json:
            click.echo(text, err=True)


def console() -> "Console":
    """Return the console for results."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=False)


def table(console: "Console", columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Draw a table; a column whose name begins with ``>`` holds numbers and is set right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        drawn.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(_text(cell)) for cell in row))
    console.print(drawn)


def panel(console: "Console", title: str, fields: Mapping[str, object], *, good: bool = True) -> None:
    """Draw a panel of names and values; the border is green for good and red for refused."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields.items():
        grid.add_row(name, value if isinstance(value, Text) else Text(_text(value)))
    border = "green" if good else "red"
    console.print(Panel(grid, title=f"[bold]{title}[/]", title_align="left", border_style=border, box=box.ROUNDED))


def _text(value: object) -> str:
    match value:
        case None:
            return "–"
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case list() if value and all(isinstance(item, str) for item in value):
            return ", ".join(value)
        case _:
            return json.dumps(value, ensure_ascii=False)
