"""``hansa bench throughput``: what a network of this machine does, from the client's signature to its receipt.

It starts its own validators. Work is token transfers among 10,000 accounts: one transaction a frame
(*single*), 50 a frame (*envelope*), 10 and 100 calls a transaction; and 100 creations of rights a
transaction. The yardstick is the bound by signatures alone: cores ÷ validators ÷ seconds per verification,
measured in the same run with the bare library call, because every validator verifies every transaction.
Machines drift: compare ratios of one run, not figures of two.
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from rich import box
from rich.console import Console
from rich.table import Table

from bench.load import Load, Row, Samples
from consensus.ledger.errors import LocalError
from node.network.local import node_process
from node.network.trial import TrialNetwork, trial_network
from services.client.connection import open_connection

ACCOUNTS = 10_000
SERVER_LANES = 64
SECONDS = 8
VERIFICATIONS = 4_000

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
    names = [row.name for row in ROWS]
    if unknown := [name for name in rows if name not in names]:
        raise LocalError("bad_arguments", f"{unknown[0]} is none of {', '.join(names)}")
    chosen = [row for row in ROWS if not rows or row.name in rows]
    report = trio.run(_measure, chosen, seconds, validators, accounts)
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(rows: Sequence[Row], seconds: float, validators: int, accounts: int) -> dict[str, object]:
    verify_s = measure_verification()
    cores = len(os.sched_getaffinity(0))
    bound = cores / validators / verify_s
    report: dict[str, object] = {
        "ok": True,
        "cores": cores,
        "validators": validators,
        "accounts": accounts,
        "seconds_per_row": seconds,
        "verify_us": round(verify_s * 1e6, 1),
        "signature_bound_tps": round(bound),
    }
    _say("starting the network")
    began = time.monotonic()
    async with trial_network(validators=validators) as network, AsyncExitStack() as stack:
        report["up_seconds"] = round(time.monotonic() - began, 1)
        urls = list(network.urls.values())
        nodes = [await stack.enter_async_context(open_connection(url)) for url in urls]
        load = Load(network.genesis.chain_id(), nodes, seed=1)
        report["setup_seconds"] = round(await _set_up(load, network, accounts), 1)
        _settle_memory()
        measured: list[dict[str, object]] = []
        for row in rows:
            _say(f"{row.name}: {seconds} s")
            cpu_before = _cpu_seconds(network)
            samples = await load.run(row, seconds=seconds)
            cpu_us = (_cpu_seconds(network) - cpu_before) * 1e6 / max(1, samples.calls_in_all)
            measured.append({**_figures(row, samples), "cpu_us_per_call": round(cpu_us, 1)})
            report |= _headline(row, samples, bound)
    return report | {"rows": measured}


async def _set_up(load: Load, network: TrialNetwork, accounts: int) -> float:
    _say(f"registering and funding {accounts} accounts")
    began = time.monotonic()
    issuer, server = network.key("bank-a"), network.key("shop")
    await load.set_up(issuer, server, account_count=accounts, server_lanes=SERVER_LANES)
    return time.monotonic() - began


def _settle_memory() -> None:
    """Keep the collector off what lives as long as the run, as the nodes do."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _cpu_seconds(network: TrialNetwork) -> float:
    """Return the processor time that all nodes and this client have used: it says most on a machine with guests."""
    ticks = 0
    for home in network.network.nodes:
        pid = node_process(home).pid()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK") + time.process_time()


def measure_verification() -> float:
    """Return the seconds that one verification takes: the library alone, many keys, the median of five runs."""
    algorithm = ec.ECDSA(hashes.SHA256())
    message = bytes(200)
    pairs = []
    for _ in range(VERIFICATIONS // 20):
        key = ec.generate_private_key(ec.SECP256R1())
        pairs.append((key.public_key(), key.sign(message, algorithm)))
    runs: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(VERIFICATIONS // 5 // len(pairs)):
            for public, signature in pairs:
                public.verify(signature, message, algorithm)
        runs.append((time.perf_counter() - began) / (VERIFICATIONS // 5 // len(pairs) * len(pairs)))
    return sorted(runs)[2]


def _figures(row: Row, samples: Samples) -> dict[str, object]:
    return {
        "row": row.name,
        "transactions": samples.transactions,
        "calls": samples.calls,
        "tps": round(samples.transactions / samples.seconds, 1),
        "calls_per_s": round(samples.calls / samples.seconds, 1),
        "p50_ms": samples.quantile_ms(50),
        "p99_ms": samples.quantile_ms(99),
        "frames_in_flight": row.frames_in_flight,
    }


def _headline(row: Row, samples: Samples, bound: float) -> dict[str, object]:
    if row.name == "lone":
        return {"lone_p50_ms": samples.quantile_ms(50)}
    rate = samples.calls / samples.seconds
    headline: dict[str, object] = {KEYS[row.name]: round(rate, 1)}
    if row.name in ("single", "envelope"):
        headline[f"{row.name}_to_bound"] = round(rate / bound, 3)
    return headline


def _draw(report: dict[str, object]) -> None:
    console = Console(highlight=False)
    console.print(
        f"{report['cores']} cores, {report['validators']} validators and the client; up in {report['up_seconds']} s; "
        f"one verification {report['verify_us']} µs; bound by signatures {report['signature_bound_tps']:,} tx/s"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row")
    for name in ("tx/s", "calls/s", "of bound", "p50 ms", "p99 ms", "CPU µs a call"):
        table.add_column(name, justify="right")
    rows = report["rows"]
    for row in rows if isinstance(rows, list) else []:
        ratio = report.get(f"{row['row']}_to_bound", "")
        figures = [f"{row['tps']:,}", f"{row['calls_per_s']:,}", ratio]
        figures += [row["p50_ms"], row["p99_ms"], row["cpu_us_per_call"]]
        table.add_row(row["row"], *map(str, figures))
    console.print(table)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--validators", type=int, default=4)
    parser.add_argument("--accounts", type=int, default=ACCOUNTS)
    parser.add_argument("--rows", nargs="*", default=[], help=", ".join(row.name for row in ROWS))
    parser.add_argument("--json", action="store_true", dest="as_json")
    sys.exit(main(**vars(parser.parse_args())))
