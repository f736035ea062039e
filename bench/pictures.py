"""The charts of the benchmarks' reports: which figures stand on which axis. Pure, as :mod:`bench.chart`."""

from collections.abc import Callable, Iterable, Mapping

from bench.chart import Bar, Series, line_chart, stacked_bars
from bench.report import Figures, number, rows_of, stages_of
from consensus.ledger.errors import LocalError

Report = Mapping[str, object]

PER_SECOND = "transactions a second"
CALLS_PER_SECOND = "calls a second"
BOUND = "bound by signatures"
VALIDATORS = 4


def _batch(report: Report) -> str:
    return line_chart(
        "Throughput against transactions a frame",
        f"one transfer a transaction; {_machine(report)}",
        x_label="transactions a frame",
        y_label=PER_SECOND,
        series=[_series(PER_SECOND, rows_of(report, "batch"), "transactions_a_frame", "tps")],
        x_by_powers=True,
        reference=(BOUND, _bound(report, VALIDATORS)),
    )


def _calls(report: Report) -> str:
    return line_chart(
        "Throughput against calls a signature",
        f"transfers, one transaction a frame; {_machine(report)}",
        x_label="calls a transaction, under one signature",
        y_label=CALLS_PER_SECOND,
        series=[_series(CALLS_PER_SECOND, rows_of(report, "calls"), "calls_a_signature", "calls_per_s")],
        x_by_powers=True,
    )


def _latency(report: Report) -> str:
    rows = rows_of(report, "latency")
    timed = [row for row in rows if row.get("p50_ms")]  # where no frame fell due there is no latency
    if not timed:
        raise LocalError("bad_arguments", "the report holds no latencies")
    most_tps = number(rows[-1].get("offered_tps")) * 100 / number(rows[-1].get("percent"))
    return line_chart(
        "Latency under load",
        f"frames of 50 fall due at random moments; {_machine(report)}",
        x_label=f"% of {most_tps:,.0f} {PER_SECOND}, the most measured",
        y_label="ms",
        series=[_series(key, timed, "percent", f"{key}_ms") for key in ("p50", "p99")],
        y_by_powers=True,
    )


def _stages(report: Report) -> str:
    return stacked_bars(
        "Where a node's processor time goes",
        f"each row under full load; {_machine(report)}",
        x_label="µs a call on one node",
        bars=[Bar(str(row.get("row")), stages_of(row)) for row in rows_of(report, "stages")],
    )


def _keys(report: Report) -> str:
    rows = rows_of(report, "keys")
    names = list(dict.fromkeys(str(row.get("row")) for row in rows))
    return line_chart(
        "Throughput against keys in the state",
        f"the same accounts at every size; spread: to any account; {_machine(report)}",
        x_label="keys in the state",
        y_label=CALLS_PER_SECOND,
        series=[
            _series(name, [row for row in rows if row.get("row") == name], "keys", "calls_per_s") for name in names
        ],
        x_by_powers=True,
    )


def _validators(report: Report) -> str:
    line = _series("50 transactions a frame", rows_of(report, "validators"), "validators", "tps")
    bounds = [(validators, _bound(report, validators)) for validators, _ in line.points]
    return line_chart(
        "Throughput against validators",
        f"one transfer a transaction; the client and all validators on {_cores(report)} processors",
        x_label="validators",
        y_label=PER_SECOND,
        series=[line, Series(BOUND, bounds)],
    )


_DRAWN: dict[str, Callable[[Report], str]] = {
    "batch": _batch,
    "calls": _calls,
    "latency": _latency,
    "stages": _stages,
    "keys": _keys,
    "validators": _validators,
}
CHARTS = tuple(_DRAWN)


def draw(name: str, report: Report) -> str:
    """Return one of :data:`CHARTS` as SVG.

    Raises:
        LocalError: ``bad_arguments`` for a report that lacks its figures.
    """
    return _DRAWN[name](report)


def _series(name: str, rows: Iterable[Figures], x: str, y: str) -> Series:
    return Series(name, [(number(row.get(x)), number(row.get(y))) for row in rows])


def _machine(report: Report) -> str:
    return f"the client and {VALIDATORS} validators on {_cores(report)} processors"


def _cores(report: Report) -> int:
    return int(number(report.get("cores")))


def _bound(report: Report, validators: float) -> int:
    """Return the transactions a second that so many validators could verify if nothing else cost anything."""
    return round(_cores(report) / validators / number(report.get("verify_us")) * 1e6)
