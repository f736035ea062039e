"""How a stream looks while it is paid: a table that moves on a terminal, a line now and then elsewhere."""

import re
import sys
import time
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.output import RULE_COLUMNS, Output, console
from cli.stream_place import MODES, counted, ends_of, short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from consensus.ledger.streams import Terms

ROWS_SHOWN = 8
ROWS_KEPT = 256
"""How many iterations are remembered while their storing is waited for."""
REFRESH_S = 0.1
LINE_S = 5.0
"""How often something is said where there is no terminal."""
BAR_COLUMNS = 34
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) (\S.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a stream is.

    Args:
        units: supplied in all.
        signed_due, stored_due: signed in all, and known to be durable at the service party; smallest units.
        count: of iterations signed.
        note: what the payer does or waits for, "" while it pays.
    """

    units: int
    signed_due: int
    stored_due: int
    count: int
    note: str = ""


@dataclass(slots=True)
class _Row:
    number: int
    at_s: float
    units: int
    due: int
    stored_s: float | None = None


def quantity(units: int, what: str) -> str:
    """Return how much so many units of something are: ``36.5 kWh`` for 365 of ``0.1 kWh``."""
    found = _SIZE.fullmatch(what)
    if found is None:
        return f"{units:,} × {what}"
    size, name = found.groups()
    decimals = len(size.partition(".")[2])
    total = Fraction(size) * units
    return f"{float(total):,.{decimals}f} {name}"


class Table:
    """The live table of one stream; a context, so that the terminal is as before whatever happens."""

    def __init__(self, output: Output, terms: "Terms", stream: bytes, parties: str, *, count_before: int = 0) -> None:
        """Say what is agreed; ``parties`` is ``payer → service party``."""
        self._output = output
        self._terms = terms
        self._title = f"{parties}  ·  stream {short(stream)}"
        self._rows: deque[_Row] = deque(maxlen=ROWS_KEPT)
        self._seen = Seen(0, 0, 0, count_before)
        self._count_before = count_before
        self._start_s = time.monotonic()
        self._drawn_s = 0.0
        self._live: Live | None = None

    @property
    def is_live(self) -> bool:
        """Whether a terminal shows it."""
        return self._live is not None

    def __enter__(self) -> Self:
        """Begin to draw."""
        if not self._output.as_json and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self.drawn(), console=console(), auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen as it was: the card of the end says what came of it."""
        if self._live is not None:
            self._live.update(self.drawn(), refresh=True)
            self._live.__exit__(kind, error, trace)

    def see(self, seen: Seen) -> None:
        """Take how far the stream is, and draw it if it is time."""
        now_s = time.monotonic()
        if seen.signed_due > self._seen.signed_due and seen.count > self._count_before:
            self._rows.append(_Row(seen.count, now_s, seen.units, seen.signed_due))
        for row in self._rows:
            if row.stored_s is None and row.due <= seen.stored_due:
                row.stored_s = now_s
        is_noted = seen.note != self._seen.note
        self._seen = seen
        if self._live is not None and (is_noted or now_s - self._drawn_s >= REFRESH_S):
            self._drawn_s = now_s
            self._live.update(self.drawn(), refresh=True)
        elif self._live is None and (is_noted or now_s - self._drawn_s >= LINE_S):
            self._drawn_s = now_s
            self._output.progress(self._line())

    def drawn(self) -> "RenderableType":
        """Return the table as it stands."""
        from rich.console import Group
        from rich.text import Text

        seen, terms = self._seen, self._terms
        width = min(console().width, RULE_COLUMNS)
        rule = "─" * max(2, width - len(self._title) - 4)
        lines = [Text(f"── {self._title} {rule}", style="green", no_wrap=True, overflow="crop")]
        price = f"  {counted(terms.price, terms.unit)} for {terms.what}, {MODES[terms.mode]}"
        lines += [Text(text, style="dim", no_wrap=True) for text in (price, f"  ends {ends_of(terms)}")]
        lines.append(Text())
        lines.append(Text(_HEADS, style="bold", no_wrap=True))
        shown = list(self._rows)[-ROWS_SHOWN:]
        lines += [self._row(row) for row in shown]
        lines += [Text() for _ in range(ROWS_SHOWN - len(shown))]
        lines.append(Text())
        lines.append(self._bar())
        ahead = seen.signed_due - terms.price * seen.units
        owing = f"{-ahead:,} supplied and not paid" if ahead < 0 else f"{ahead:,} paid ahead"
        lines.append(Text(f"  at stake now: {owing}, of {counted(terms.step_max, terms.unit)} at the most"))
        lines.append(Text(f"  {seen.note or self._pace()}", style="yellow" if seen.note else "dim"))
        return Group(*lines)

    def _row(self, row: _Row) -> "Text":
        from rich.text import Text

        stored = "…" if row.stored_s is None else f"✓ {1_000 * (row.stored_s - row.at_s):.0f} ms"
        style = "yellow" if row.stored_s is None else ""
        cells = (
            f"{row.number:,}",
            _clock(row.at_s - self._start_s),
            quantity(row.units, self._terms.what),
            counted(row.due, self._terms.unit),
            stored,
        )
        return Text(_COLUMNS.format(*cells), style=style, no_wrap=True)

    def _bar(self) -> "Text":
        from rich.text import Text

        seen, terms = self._seen, self._terms
        most = min(filter(None, (terms.deposit - terms.fine + terms.credit, terms.amount_max)))
        share = min(1.0, seen.signed_due / most)
        if terms.count_max:
            share = max(share, min(1.0, seen.count / terms.count_max))
        full = int(share * BAR_COLUMNS)
        bar = "█" * full + "░" * (BAR_COLUMNS - full)
        of = f" of {terms.count_max:,}" if terms.count_max else ""
        text = f"  {bar}  {quantity(seen.units, terms.what)}, {seen.count:,}{of} iterations"
        return Text(text, no_wrap=True)

    def _pace(self) -> str:
        elapsed_s = time.monotonic() - self._start_s
        paces = [row.stored_s - row.at_s for row in self._rows if row.stored_s is not None]
        pace = f", stored after {1_000 * sorted(paces)[len(paces) // 2]:.0f} ms (median)" if paces else ""
        made = self._seen.count - self._count_before
        return f"{_clock(elapsed_s)}, {made / max(elapsed_s, 0.001):.1f} a second{pace}; Ctrl-C ends it"

    def _line(self) -> str:
        seen, terms = self._seen, self._terms
        said = (
            f"{seen.count:,} iterations, {quantity(seen.units, terms.what)}, {counted(seen.signed_due, terms.unit)} due"
        )
        return f"{said}; {seen.note}" if seen.note else said


_COLUMNS = "  {:>6}  {:>8}  {:>14}  {:>20}  {:>14}"
_HEADS = _COLUMNS.format("number", "time", "supplied", "due in all", "stored")


def _clock(elapsed_s: float) -> str:
    minutes, tenths = divmod(round(10 * elapsed_s), 600)
    return f"{minutes}:{tenths / 10:04.1f}"
