"""``hansa bench throughput``: what a network of this machine does, from the client's signature to its receipt.

It starts its own validators. Work is token transfers among 10,000 accounts: one transaction a frame
(*single*), 50 a frame (*envelope*), 10 and 100 calls a transaction; and 100 creations of rights a
transaction. The yardstick is the bound by signatures alone: cores ÷ validators ÷ seconds per verification,
measured in the same run with the bare library call, because every validator verifies every transaction.
Machines drift: compare ratios of one run, not figures of two.
"""

import argparse
import json
import sys
from collections.abc import Sequence

import trio
from rich.console import Console

from bench.harness import (
    ACCOUNTS,
    SERVER_LANES,
    Usage,
    bench_network,
    chosen,
    cores,
    measure_verification,
    say,
)
from bench.load import Row, Samples
from bench.report import Figures, print_table, rows_of

SECONDS = 8

ROWS = (
    Row(name="single", frames_in_flight=1_000, transactions=1, calls=1),
    Row(name="envelope", frames_in_flight=40, transactions=50, calls=1),
    Row(name="calls_10", frames_in_flight=200, transactions=1, calls=10),
    Row(name="calls_100", frames_in_flight=16, transactions=1, calls=100),
    Row(name="rights_100", frames_in_flight=10, transactions=1, calls=100, is_rights=True),
    Row(name="lone", frames_in_flight=1, transactions=1, calls=1),
)
KEYS = {
    "single": "single_tps",
    "envelope": "envelope_tps",
    "calls_10": "calls_per_s_10",
    "calls_100": "calls_per_s_100",
    "rights_100": "rights_per_s_100",
}
"""The JSON key of each row's main figure; ``lone`` has ``lone_p50_ms``."""
ROW_COLUMNS = {
    "tps": "tx/s",
    "calls_per_s": "calls/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_us_per_call": "µs a call",
    "cores_used": "cores",
}
"""What tables show of a row: key → heading; *µs a call* is processor time of all nodes and the client."""


def main(
    *,
    seconds: float = SECONDS,
    validators: int = 4,
    as_json: bool = False,
    rows: Sequence[str] = (),
    accounts: int = ACCOUNTS,
) -> int:
    """Measure, print a table or one JSON object, and return 0.

    Args:
        seconds: how long each row is measured, after a second of ramp.
        validators: how many nodes vote.
        as_json: print one JSON object.
        rows: names of the rows to measure; all by default.
        accounts: among how many accounts units are transferred.

    Raises:
        LocalError: ``bad_arguments``.
        HansaError: a transaction was refused or failed: there are no figures then.
    """
    report = trio.run(_measure, chosen(ROWS, rows), seconds, validators, accounts)
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(rows: Sequence[Row], seconds: float, validators: int, accounts: int) -> Figures:
    verify_s = measure_verification()
    bound = cores() / validators / verify_s
    report: Figures = {
        "ok": True,
        "cores": cores(),
        "validators": validators,
        "accounts": accounts,
        "seconds_per_row": seconds,
        "verify_us": round(verify_s * 1e6, 1),
        "signature_bound_tps": round(bound),
    }
    async with bench_network(validators=validators, accounts=accounts, server_lanes=SERVER_LANES) as bench:
        report |= {"up_seconds": round(bench.up_s, 1), "setup_seconds": round(bench.set_up_s, 1)}
        measured: list[Figures] = []
        for row in rows:
            say(f"{row.name}: {seconds} s")
            samples, used = await bench.measure(row, seconds=seconds)
            measured.append(figures(row, samples, used))
            report |= _headline(row, samples, bound)
    return report | {"rows": measured}


def figures(row: Row, samples: Samples, used: Usage) -> Figures:
    """Return a row's figures under their JSON keys."""
    return {
        "row": row.name,
        "transactions": samples.transactions,
        "calls": samples.calls,
        "tps": round(samples.transactions / samples.seconds, 1),
        "calls_per_s": round(samples.calls / samples.seconds, 1),
        "p50_ms": samples.quantile_ms(50),
        "p99_ms": samples.quantile_ms(99),
        "frames_in_flight": row.frames_in_flight,
        "cpu_us_per_call": round(used.processor_s * 1e6 / max(1, samples.calls_in_all), 1),
        "cores_used": round(used.cores_used, 2),
    }


def _headline(row: Row, samples: Samples, bound: float) -> Figures:
    if row.name == "lone":
        return {"lone_p50_ms": samples.quantile_ms(50)}
    rate = samples.calls / samples.seconds
    headline: Figures = {KEYS[row.name]: round(rate, 1)}
    if row.name in ("single", "envelope"):
        headline[f"{row.name}_to_bound"] = round(rate / bound, 3)
    return headline


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    console.print(
        f"{report['cores']} cores, {report['validators']} validators and the client; up in {report['up_seconds']} s; "
        f"one verification {report['verify_us']} µs; bound by signatures {report['signature_bound_tps']:,} tx/s"
    )
    rows = [row | {"of_bound": report.get(f"{row['row']}_to_bound")} for row in rows_of(report, "rows")]
    print_table(console, rows, {"row": "row", "of_bound": "of bound", **ROW_COLUMNS})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--accounts", type=int, default=ACCOUNTS)
    parser.add_argument("--rows", nargs="*", default=[], help=", ".join(row.name for row in ROWS))
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
