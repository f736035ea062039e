"""How commands speak: one JSON object with ``--json``, else text that fits a terminal of 80 columns.

Results go to standard output, errors and progress to standard error; under ``--json`` errors go to
standard output too, as an object. Every object says ``ok``. Colours only on a terminal; lines are wrapped
only there, or where ``COLUMNS`` says how wide they may be. Ids, hashes and keys are never broken, so that
they can be copied.
"""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import click

from consensus.ledger.errors import HansaError, LocalError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
PIPE_COLUMNS = 100_000
"""Width of what is not a terminal: nothing is wrapped there."""
RULE_COLUMNS = 80

# what the machine or the network refuses, though the command was right
_REFUSALS = {
    "chain_broken",
    "contract_code_missing",
    "genesis_key_lost",
    "network_busy",
    "node_exited",
    "node_frozen",
    "node_state",
    "not_caught_up",
    "not_enough_admins",
    "not_ready",
    "not_running",
    "not_voting",
    "port_in_use",
    "program_exited",
    "program_frozen",
    "rejoin_needed",
    "still_running",
    "store_locked",
    "stream_held",
    "wrong_chain",
}

JSON_WANTED = "cli.json"
"""Where a context notes that ``--json`` was given, for the errors."""

ERROR_DETAILS = "cli.error_details"
"""Where a context notes what an error's JSON object says besides code and message, for example the transaction."""

Json = Mapping[str, object]


def exit_code(error: HansaError) -> int:
    """Return 2 for the user's wrong input, 1 for everything that the system refuses."""
    return EXIT_USAGE if isinstance(error, LocalError) and error.code not in _REFUSALS else EXIT_REFUSED


def report_error(error: HansaError) -> int:
    """Say an error in one line, or as a JSON object under ``--json``, and return the exit code."""
    message = " ".join(error.message.split())
    if wants_json():
        print_json_error(error.code, message)
    else:
        text = _shown(f"{error.code}: {message}" if message != error.code else error.code)
        click.echo(f"{click.style('error', fg='red', bold=True)} {text}", err=True)
    return exit_code(error)


def print_json_error(code: str, message: str) -> None:
    """Print the object that stands for any failure under ``--json``."""
    context = click.get_current_context(silent=True)
    details = context.meta.get(ERROR_DETAILS, {}) if context is not None else {}
    content = {"ok": False, "error": {"code": code, "message": message, **details}}
    click.echo(json.dumps(content, ensure_ascii=False))


def note_error_details(**details: object) -> None:
    """Say what the JSON object of an error of this command is to hold besides code and message."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[ERROR_DETAILS] = details


def wants_json() -> bool:
    """Whether ``--json`` was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(JSON_WANTED))


def leave(code: int) -> NoReturn:
    """End the command with an exit code."""
    raise click.exceptions.Exit(code)


class Output:
    """Where one command writes its result."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def show(self, data: Json, view: Callable[["Console"], None]) -> None:
        """Write the data as JSON, with ``ok`` true unless they say otherwise, or let ``view`` draw them."""
        if self.as_json:
            document = {"ok": True, **data}
            click.echo(json.dumps(document, ensure_ascii=False, indent=None if not sys.stdout.isatty() else 2))
            return
        view(console())

    def progress(self, text: str) -> None:
        """Say on standard error what takes time; silent under ``--json``."""
        if not self.as_json:
            click.echo(_shown(text), err=True)


def console() -> "Console":
    """Return the console for results."""
    from rich.console import Console

    given = os.environ.get("COLUMNS", "")
    is_wrapping = sys.stdout.isatty() or (given.isdecimal() and int(given) > 0)
    return Console(file=sys.stdout, highlight=False, soft_wrap=False, width=None if is_wrapping else PIPE_COLUMNS)


def table(console: "Console", columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Draw a table; a column whose name begins with ``>`` holds numbers and is set right.

    Where the table would not fit, each row is drawn as a block of names and values.
    """
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table

    filled = [[_cell(value) for value in row] for row in rows]
    drawn = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        drawn.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    for cells in filled:
        drawn.add_row(*cells)
    if not any("\n" in cell.plain for cells in filled for cell in cells):
        needed = Measurement.get(console, console.options.update(max_width=PIPE_COLUMNS), drawn).maximum
        if needed <= console.width:
            console.print(drawn)
            return
    names = [column.lstrip(">") for column in columns]
    for number, cells in enumerate(filled, start=1):
        panel(console, f"{title} {number}".strip(), dict(zip(names, cells, strict=True)), style="dim")


def panel(
    console: "Console", title: str, fields: Mapping[str, object], *, good: bool = True, style: str | None = None
) -> None:
    """Draw a title and below it names and values; the title's rule is green for good and red for refused.

    A value too long for its place stands on lines of its own, broken at spaces alone.
    """
    from rich.cells import cell_len
    from rich.text import Text

    colour = style or ("green" if good else "red")
    rule = "─" * max(2, min(console.width, RULE_COLUMNS) - cell_len(title) - 4)
    console.print(Text(f"── {title} {rule}", style=colour), soft_wrap=True)
    label_columns = max((cell_len(name) for name in fields), default=0)
    for name, value in fields.items():
        cell = _cell(value)
        room = console.width - label_columns - 4
        if cell_len(cell.plain) <= room and "\n" not in cell.plain:
            padding = " " * (label_columns - cell_len(name) + 2)
            console.print(Text.assemble((f"  {name}{padding}", "dim"), cell), soft_wrap=True)
            continue
        console.print(Text(f"  {name}", style="dim"), soft_wrap=True)
        for line in cell.plain.splitlines():
            for part in _wrapped(line, console.width - 4):
                console.print(Text(f"    {part}", style=cell.style), soft_wrap=True)
    console.print()


def _wrapped(line: str, columns: int) -> list[str]:
    return textwrap.wrap(line, max(20, columns), break_long_words=False, break_on_hyphens=False) or [""]


def _cell(value: object) -> "Text":
    from rich.text import Text

    if isinstance(value, Text):
        return value
    return Text(_shown(text_of(value)))


def _shown(text: str) -> str:
    """Return a text as it may be shown: what others wrote must not steer the terminal."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def text_of(value: object) -> str:
    match value:
        case None:
            return "–"
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case list() if all(isinstance(item, str) for item in value):
            return ", ".join(value) or "none"
        case dict() if not value:
            return "none"
        case _:
            return json.dumps(value, ensure_ascii=False)
