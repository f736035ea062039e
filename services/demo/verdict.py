"""How every demo's card ends: what happened, and which invariants hold."""

import sys
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text


def draw_verdict(title: str, figures: Table, fields: Mapping[str, str], invariants: Mapping[str, bool]) -> None:
    """Print a table of figures, and a panel with fields and invariants, green where all of these hold."""
    console = Console(file=sys.stdout, highlight=False)
    console.print(figures)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in fields.items():
        grid.add_row(name, Text(value))
    for name, holds in invariants.items():
        grid.add_row(name.replace("_", " "), Text("holds", "green") if holds else Text("BROKEN", "bold red"))
    ok = all(invariants.values())
    words = f"{title}: every invariant holds" if ok else f"{title}: BROKEN"
    console.print(Panel(grid, title=f"[bold]{words}[/]", border_style="green" if ok else "red", box=box.ROUNDED))
