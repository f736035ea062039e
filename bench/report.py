"""What reports of benchmarks are made of: figures by name, checked where they are read back, and drawn as tables."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from consensus.ledger.errors import LocalError

Figures = dict[str, object]


def number(value: object) -> float:
    """Return a figure of a report as a number.

    Raises:
        LocalError: ``bad_arguments`` for what is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LocalError("bad_arguments", f"{value!r} in a report is no number")
    return float(value)


def rows_of(report: Mapping[str, object], name: str) -> list[Figures]:
    """Return the rows that a report has under a name.

    Raises:
        LocalError: ``bad_arguments`` where there are none.
    """
    rows = report.get(name)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise LocalError("bad_arguments", f"the report holds no rows of {name}")
    return rows


def stages_of(row: Mapping[str, object]) -> dict[str, float]:
    """Return the µs of each stage in a row of ``stages``.

    Raises:
        LocalError: ``bad_arguments``.
    """
    stages = row.get("stages_us_per_call")
    if not isinstance(stages, dict):
        raise LocalError("bad_arguments", "the report holds no stages")
    return {stage: number(value) for stage, value in stages.items()}


def print_table(console: Console, rows: Sequence[Mapping[str, object]], columns: Mapping[str, str]) -> None:
    """Print rows as a table.

    Args:
        console: where.
        rows: the figures.
        columns: key → heading; texts are set left, numbers right.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for key, heading in columns.items():
        is_text = any(isinstance(row.get(key), str) for row in rows)
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    console.print(table)


def print_stages(console: Console, columns: Mapping[str, Mapping[str, float]]) -> None:
    """Print the processor time of a call on one node, a line for each stage and a column for each row."""
    stages = dict.fromkeys(stage for column in columns.values() for stage in column)
    lines = [{"stage": stage, **{name: column.get(stage) for name, column in columns.items()}} for stage in stages]
    if lines:
        print_table(console, lines, {"stage": "µs a call on one node", **{name: name for name in columns}})


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case int() | float():
            return f"{value:,}"
        case _:
            return str(value)
