"""What figures of a benchmark should reach, and how its times are summed up."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import Figures, number


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure of a row should reach, or not exceed where ``is_most``."""

    row: str
    key: str
    name: str
    unit: str
    bound: float
    is_most: bool = False

    def judge(self, rows: Sequence[Figures]) -> Figures | None:
        """Return the figure beside its goal, None where its row was not measured."""
        row = next((row for row in rows if row["row"] == self.row), None)
        if row is None:
            return None
        figure = number(row[self.key])
        is_met = figure <= self.bound if self.is_most else figure >= self.bound
        shown = {"name": self.name, "figure": round(figure, 2), "unit": self.unit}
        return {**shown, "goal": f"{'≤' if self.is_most else '≥'} {self.bound:g}", "met": "yes" if is_met else "no"}


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and largest of some times, ms."""
    ordered = sorted(times_ms)
    p99 = ordered[math.ceil(0.99 * len(ordered)) - 1]
    return {"p50_ms": round(statistics.median(ordered), 1), "p99_ms": round(p99, 1), "max_ms": round(ordered[-1], 1)}
