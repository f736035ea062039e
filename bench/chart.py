"""Charts as SVG text: lines over an axis, and stacked bars. Pure: figures in, text out.

Every figure of the data stands in the picture: at its point, or in what a segment says when it is pointed at.
Colours follow the reader's light or dark scheme; the picture brings its own background.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 760, 450
LEFT, RIGHT, TOP, BOTTOM = 76, 36, 108, 62
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
TICKS = 5
BAR_HEIGHT, BAR_STEP = 40, 66
BAR_LEFT = 104
LETTER_WIDTH = 7.3
"""Of the text's size; wide enough for legends, which nobody measures here."""
COLOURS = (
    *("#5b9bd5", "#f0883e", "#b07cc6", "#57ab5a", "#e3c341", "#e5645f"),
    *("#4fb8b0", "#b08968", "#f29bb0", "#8fbf5a", "#9aa4b2"),
)
"""In the order of series and stages; told apart in light and in dark, and dark letters can be read on each."""

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
.title { font-size: 16px; font-weight: 600; }
.note, .tick { fill: #59636e; }
.value { font-size: 12px; }
.inside { font-size: 12px; fill: #15191e; }
.background { fill: #ffffff; }
.grid { stroke: #d8dee4; stroke-width: 1; }
.axis { stroke: #818b98; stroke-width: 1; }
.line { fill: none; stroke-width: 2.5; }
.reference { stroke: #818b98; stroke-width: 1.5; stroke-dasharray: 6 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .note, .tick { fill: #9da7b3; }
  .inside { fill: #15191e; }
  .background { fill: #0d1117; }
  .grid { stroke: #2a313a; }
  .axis, .reference { stroke: #6e7681; }
}
"""


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name in the legend, and its points (x, y) with rising x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: its name, and its segments by name, of 0 and more."""

    name: str
    segments: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where values lie between two ends of the picture; by powers when ``by_powers``."""

    low: float
    high: float
    start: float
    end: float
    by_powers: bool

    def at(self, value: float) -> float:
        if self.by_powers:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(
    title: str,
    note: str,
    *,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    x_by_powers: bool = False,
    y_by_powers: bool = False,
    reference: tuple[str, float] | None = None,
) -> str:
    """Return a chart of lines; every x of the data is a tick.

    Args:
        title: the first line.
        note: the second one: what was measured, on what.
        x_label: with the unit.
        y_label: with the unit; its axis begins at 0, or below the least figure where it goes by powers.
        series: at least one point in all; with an axis by powers all figures on it are above 0.
        x_by_powers: whether equal steps of x multiply.
        y_by_powers: whether equal steps of y multiply.
        reference: name and height of a dashed line across.
    """
    xs = sorted({x for line in series for x, _ in line.points})
    ys = [y for line in series for _, y in line.points] + ([reference[1]] if reference else [])
    ticks = _power_ticks(min(ys), max(ys)) if y_by_powers else _ticks(max(ys))
    across = _spread(xs, by_powers=x_by_powers)
    up = _Scale(ticks[0], ticks[-1], TOP + PLOT_HEIGHT, TOP, y_by_powers)
    parts = [*_heading(title, note), *_legend([line.name for line in series])]
    for tick in ticks:
        parts.append(_line("grid", LEFT, up.at(tick), LEFT + PLOT_WIDTH, up.at(tick)))
        parts.append(_text("tick", LEFT - 8, up.at(tick) + 4, plain(tick), "end"))
    for x in xs:
        parts.append(_line("axis", across.at(x), TOP + PLOT_HEIGHT, across.at(x), TOP + PLOT_HEIGHT + 5))
        parts.append(_text("tick", across.at(x), TOP + PLOT_HEIGHT + 20, plain(x), "middle"))
    parts.append(_line("axis", LEFT, TOP + PLOT_HEIGHT, LEFT + PLOT_WIDTH, TOP + PLOT_HEIGHT))
    parts.append(_text("note", LEFT + PLOT_WIDTH / 2, HEIGHT - 14, x_label, "middle"))
    parts.append(_text("note", 18, TOP - 14, y_label, "start"))
    if reference:
        height = up.at(reference[1])
        parts.append(_line("reference", LEFT, height, LEFT + PLOT_WIDTH, height))
        parts.append(_text("note", LEFT + 6, height - 6, f"{reference[0]}: {plain(reference[1])}", "start"))
    for line, colour in zip(series, COLOURS, strict=False):
        parts += _drawn(line, colour, across, up, series)
    return _document(HEIGHT, title, parts)


def stacked_bars(title: str, note: str, *, x_label: str, bars: Sequence[Bar]) -> str:
    """Return lying bars of segments; the sum stands at the end of each, a segment's figure where it has room."""
    names = list(dict.fromkeys(name for bar in bars for name in bar.segments))
    colours = dict(zip(names, _colours_of(len(names)), strict=True))
    sums = [sum(bar.segments.values()) for bar in bars]
    ticks = _ticks(max(sums))
    across = _Scale(0, ticks[-1], BAR_LEFT, WIDTH - RIGHT - 40, False)
    legend = _legend(names)
    top = 74 + 20 * _legend_lines(names)
    bottom = top + BAR_STEP * len(bars)
    parts = [*_heading(title, note), *legend]
    for tick in ticks:
        parts.append(_line("grid", across.at(tick), top, across.at(tick), bottom))
        parts.append(_text("tick", across.at(tick), bottom + 18, plain(tick), "middle"))
    for index, bar in enumerate(bars):
        y = top + BAR_STEP * index + (BAR_STEP - BAR_HEIGHT) / 2
        parts.append(_text("", BAR_LEFT - 10, y + BAR_HEIGHT / 2 + 5, bar.name, "end"))
        begin = 0.0
        for name, value in bar.segments.items():
            parts += _segment(name, value, across.at(begin), across.at(begin + value), y, colours[name])
            begin += value
        parts.append(_text("value", across.at(begin) + 6, y + BAR_HEIGHT / 2 + 4, plain(round(begin)), "start"))
    parts.append(_line("axis", BAR_LEFT, top, BAR_LEFT, bottom))
    parts.append(_text("note", (BAR_LEFT + WIDTH - RIGHT) / 2, bottom + 42, x_label, "middle"))
    return _document(bottom + 58, title, parts)


def plain(value: float) -> str:
    """Return a figure as people write it, with three digits at least: 12,000, 431, 0.25."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _spread(xs: Sequence[float], *, by_powers: bool) -> _Scale:
    """Return where the points stand: from side to side, with a little room at both."""
    low, high = xs[0], xs[-1]
    if low == high:
        low, high = low / 2, high * 2
    return _Scale(low, high, LEFT + 30, LEFT + PLOT_WIDTH - 30, by_powers)


def _drawn(line: Series, colour: str, across: _Scale, up: _Scale, series: Sequence[Series]) -> list[str]:
    """Return a line, its points and their figures: above where no other line is higher or the axis is near."""
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline class="line" stroke="{colour}" points="{path}"/>']
    for (x, y), (left, top) in zip(line.points, places, strict=True):
        parts.append(f'<circle cx="{left}" cy="{top}" r="4" fill="{colour}"/>')
        is_highest = all(y >= other for item in series for at, other in item.points if at == x)
        is_above = is_highest or top + 24 > TOP + PLOT_HEIGHT
        parts.append(_text("value", left, top - 10 if is_above else top + 20, plain(y), "middle"))
    return parts


def _segment(name: str, value: float, start: float, end: float, y: float, colour: str) -> list[str]:
    """Return a segment; a hair of background parts it from the next one."""
    width = round(max(0.0, end - start - 1), 1)
    told = f"<title>{escape(name)}: {plain(value)}</title>"
    box = f'x="{start}" y="{y}" width="{width}" height="{BAR_HEIGHT}"'
    parts = [f'<rect {box} fill="{colour}">{told}</rect>']
    if len(plain(round(value))) * LETTER_WIDTH + 4 < width:
        parts.append(_text("inside", (start + end) / 2, y + BAR_HEIGHT / 2 + 4, plain(round(value)), "middle"))
    return parts


def _heading(title: str, note: str) -> list[str]:
    return [_text("title", 18, 28, title, "start"), _text("note", 18, 48, note, "start")]


def _legend_places(names: Sequence[str]) -> list[tuple[int, float]]:
    """Return line and left end of each name, with as many lines as they need."""
    places, row, left = [], 0, 18.0
    for name in names:
        width = len(name) * LETTER_WIDTH + 34
        if left + width > WIDTH and left > 18:
            row, left = row + 1, 18.0
        places.append((row, left))
        left += width
    return places


def _legend_lines(names: Sequence[str]) -> int:
    return _legend_places(names)[-1][0] + 1


def _legend(names: Sequence[str]) -> list[str]:
    """Return the names beside their colours; one series alone is named by the axis."""
    if len(names) < 2:
        return []
    parts: list[str] = []
    # A chart of lines has its legend at the right of the axis' name, and bars have theirs in lines of its own.
    for name, (row, left), colour in zip(names, _legend_places(names), _colours_of(len(names)), strict=True):
        y = 60 + 20 * row
        parts.append(f'<rect x="{left}" y="{y}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(_text("", left + 18, y + 11, name, "start"))
    return parts


def _colours_of(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _ticks(highest: float) -> list[float]:
    """Return some round numbers from 0 to at least ``highest``."""
    highest = highest or 1.0
    rough = highest / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [round(step * index, 9) for index in range(math.ceil(highest / step) + 1)]


def _power_ticks(lowest: float, highest: float) -> list[float]:
    """Return 1, 2, 5, 10, 20, … from below ``lowest`` to above ``highest``."""
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    ticks = [round(factor * 10**power, 9) for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = [tick for tick in ticks if tick <= lowest * 0.75] or ticks[:1]
    above = [tick for tick in ticks if tick >= highest * 1.1] or ticks[-1:]
    return [tick for tick in ticks if below[-1] <= tick <= above[0]]


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _document(height: float, title: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(title)}>'
    background = f'<rect class="background" width="{WIDTH}" height="{height}" rx="6"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", background, *parts, "</svg>", ""])
