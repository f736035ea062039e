"""``hansa bench``: the benchmarks, as a user can run them."""

from collections.abc import Callable
from pathlib import Path

import rich_click as click

from cli.options import F, Number, json_option
from cli.output import Output, leave

_rows = click.option("--rows", metavar="A,B", default="", help="Measure these rows alone, for example single,lone.")


def _seconds(default: int) -> Callable[[F], F]:
    return click.option(
        "--seconds", metavar="S", type=Number(1, 600), default=default, show_default=True, help="Time of each row."
    )


@click.group()
def bench() -> None:
    """The benchmarks; each starts its own network."""


@bench.command("throughput")
@_seconds(8)
@_rows
@click.option("--validators", metavar="N", type=Number(1, 100), default=4, show_default=True)
@json_option
def throughput(seconds: int, rows: str, validators: int, output: Output) -> None:
    """Measure transfers among 10,000 accounts: transactions and calls a second, latencies, the signature bound.

    Example: hansa bench throughput --json
    """
    from bench.throughput import main

    leave(main(seconds=seconds, rows=_names(rows), validators=validators, as_json=output.as_json))


@bench.command("scale")
@click.option("--rows", metavar="A,B", default="", help="Of keys, memory, catch_up, up, validators; else all.")
@_seconds(6)
@click.option("--keys", metavar="N", type=Number(20_000, 10_000_000), default=1_000_000, show_default=True)
@click.option("--transactions", metavar="N", type=Number(1, 100_000_000), default=200_000, show_default=True)
@json_option
def scale(rows: str, seconds: int, keys: int, transactions: int, output: Output) -> None:
    """Measure what grows: the state, the history, the validators; and how long a start takes. Some six minutes.

    Throughput with N keys in the state against 10,000; memory after N transactions; how fast a node that lost
    its data catches up with them; the start of four nodes; what a transaction costs 7 and 10 validators.

    Example: hansa bench scale --rows up,validators
    """
    from bench.scale import Sizes, main, sizes_of_state

    sizes = Sizes(seconds=seconds, keys=sizes_of_state(keys), transactions=transactions)
    leave(main(rows=_names(rows), sizes=sizes, as_json=output.as_json))


@bench.command("flash-sale")
@click.option("--rows", metavar="A,B", default="", help="Of intake, direct, backlog, quota, pace; else all.")
@_seconds(6)
@click.option("--backlog", metavar="N", type=Number(1_000, 10_000_000), default=100_000, show_default=True)
@click.option("--wishes", metavar="N", type=Number(1, 1_000_000), default=20_000, show_default=True)
@click.option("--full", is_flag=True, help="Drain the backlog through rights server and chain: some minutes more.")
@json_option
def flash_sale(rows: str, seconds: int, backlog: int, wishes: int, full: bool, output: Output) -> None:
    """Measure what a flash sale's burst costs with and without the message centre, side by side. Some four minutes.

    Orders a second taken in durably while the chain drains at its threshold, against the same server that waits for
    each order's transaction; a backlog's memory, disk and drain; a quota under many wishes; the largest exact pace.

    Example: hansa bench flash-sale --rows intake,direct
    """
    from bench.flash_sale import Sizes, main
    from cli.rights_trial import rights_trial

    sizes = Sizes(seconds=seconds, backlog=backlog, wishes=wishes, quota=max(1, wishes // 20), is_full=full)
    leave(main(open_network=rights_trial, rows=_names(rows), sizes=sizes, as_json=output.as_json))


@bench.command("agency")
@click.option("--rows", metavar="A,B", default="", help="Of file, large, packaged, latency; else all.")
@click.option(
    "--applications",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Fund file of type 03 with orders of product 000198; else a synthetic one of the same size.",
)
@click.option("--runs", metavar="N", type=Number(1, 100), default=5, show_default=True, help="Runs of the file.")
@click.option("--orders", metavar="N", type=Number(1, 20_000), default=10_000, show_default=True, help="Of row large.")
@json_option
def agency(rows: str, applications: Path | None, runs: int, orders: int, output: Output) -> None:
    """Measure agency sale: a fund file end to end, packages against single orders, the latency of one; about a minute.

    Every time is from giving orders to the sales end until they are recorded, and anchored on the chain.

    Example: hansa bench agency --applications OFD_996_H0_20170427_03.txt
    """
    from bench.agency import Sizes, main
    from cli.agency_trial import agency_trial

    sizes = Sizes(runs=runs, large=orders)
    leave(
        main(
            open_network=agency_trial,
            rows=_names(rows),
            sizes=sizes,
            applications=applications,
            as_json=output.as_json,
        )
    )


@bench.command("settlement")
@click.option("--rows", metavar="A,B", default="", help="Of sqlite, postgresql, scan; else all.")
@click.option("--trades", metavar="N", type=Number(1, 1_000_000), default=2_000, show_default=True)
@click.option(
    "--database",
    metavar="URL",
    default="",
    help="PostgreSQL for row postgresql, postgresql://USER@HOST/NAME; else a server of its own in a temporary folder.",
)
@click.option(
    "--finished",
    metavar="N",
    type=Number(1, 100_000_000),
    default=1_000_000,
    show_default=True,
    help="Finished events beside which the scan selects 1,000 stuck ones.",
)
@click.option("--quick", is_flag=True, help="A hundredth of everything: does it run?")
@json_option
def settlement(rows: str, trades: int, database: str, finished: int, quick: bool, output: Output) -> None:
    """Measure settlement: trades end to end on SQLite and on PostgreSQL, one alone, the scan's selection.

    Some four minutes, most of them to load the finished events.

    Example: hansa bench settlement --rows sqlite,postgresql
    """
    from bench.settlement import QUICK, Sizes, main
    from cli.settle_place import check_database
    from cli.settlement_trial import settlement_trial

    check_database(database or None)
    sizes = QUICK if quick else Sizes(trades=trades, finished_many=finished)
    names = _names(rows)
    leave(main(open_network=settlement_trial, rows=names, sizes=sizes, database=database, as_json=output.as_json))


@bench.command("payee")
@click.option(
    "--merchants",
    metavar="N",
    type=Number(20, 10_000_000),
    default=100_000,
    show_default=True,
    help="So many are on the chain in row many, and a hundredth of them in row few.",
)
@click.option("--clients", metavar="N", type=Number(1, 1_000), default=16, show_default=True)
@_seconds(8)
@click.option("--quick", is_flag=True, help="A hundred merchants: does it run?")
@json_option
def payee(merchants: int, clients: int, seconds: int, quick: bool, output: Output) -> None:
    """Measure verified resolutions of merchants' codes, with few merchants on the chain and with many.

    One client alone and 16 at once, through nodes and their environments, which are emulated, without hardware
    isolation. Some four minutes, most of them to put the merchants on the chain.

    Example: hansa bench payee --merchants 100000
    """
    from bench.payee import FEW_SHARE, QUICK, Sizes, main
    from cli.payee_trial import payee_trial

    few = max(1, merchants // FEW_SHARE)
    sizes = QUICK if quick else Sizes(few=few, many=merchants, clients=clients, seconds=seconds)
    leave(main(open_network=payee_trial, sizes=sizes, as_json=output.as_json))


@bench.command("stream")
@click.option("--rows", metavar="A,B", default="", help="Of chain, frames, apart, http, alone, opening; else all.")
@click.option("--streams", metavar="N", type=Number(1, 10_000), default=100, show_default=True)
@click.option(
    "--connections",
    metavar="N",
    type=Number(1, 1_000),
    default=10,
    show_default=True,
    help="WebSockets of row frames, among which the streams are shared out.",
)
@_seconds(8)
@click.option("--openings", metavar="N", type=Number(50, 1_000_000), default=10_000, show_default=True)
@click.option("--quick", is_flag=True, help="A few of everything: does it run?")
@json_option
def stream(rows: str, streams: int, connections: int, seconds: int, openings: int, quick: bool, output: Output) -> None:
    """Measure payment streams: iterations stored durably a second, one alone, what the chain has to do for them.

    By one process of a service party, over WebSockets and with one HTTP request each; 200 payments as one stream beside
    200 transfers; the opening of the first and of the ten-thousandth stream. About two minutes. The money is simulated.

    Example: hansa bench stream --rows frames,http
    """
    from bench.stream import QUICK, Sizes, main
    from cli.stream_trial import stream_trial

    sizes = QUICK if quick else Sizes(streams=streams, connections=connections, seconds=seconds, openings=openings)
    leave(main(open_network=stream_trial, rows=_names(rows), sizes=sizes, as_json=output.as_json))


@bench.command("charts")
@click.option("--only", metavar="A,B", default="", help="Of batch, calls, latency, stages, keys, validators; else all.")
@click.option("--out", "folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), default="docs/charts")
@click.option(
    "--from",
    "earlier",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Draw what this report of bench scale or charts (--json) holds, and measure the rest alone; may be repeated.",
)
@_seconds(6)
@json_option
def charts(only: str, folder: Path, earlier: tuple[Path, ...], seconds: int, output: Output) -> None:
    """Measure throughput and latency along one axis each, and draw them as SVG into docs/charts.

    Against transactions a frame, calls a signature, offered load, keys in the state, validators; and where a
    node's processor time goes. Some two minutes, and six more for keys and validators.

    Example: hansa bench scale --json > scale.json && hansa bench charts --from scale.json
    """
    from bench.charts import main

    leave(main(only=_names(only), folder=folder, earlier=earlier, seconds=seconds, as_json=output.as_json))


@bench.command("compare")
@click.argument("base", metavar="BASE")
@_rows
@click.option("--rounds", metavar="N", type=Number(1, 100), default=3, show_default=True)
@_seconds(6)
@click.option(
    "--tolerance",
    metavar="PART",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="By how much of its rate a row may be slower, beyond the spread of the rounds.",
)
@json_option
def compare(base: str, rows: str, rounds: int, seconds: int, tolerance: float, output: Output) -> None:
    """Run the benchmark of a commit and of the working tree in turns; exit code 1 when a row has become slower.

    BASE is a commit of the git checkout that this program runs from.

    Example: hansa bench compare HEAD --rows envelope,lone --rounds 5
    """
    from bench.compare import main

    names = _names(rows)
    leave(main(base, rows=names, rounds=rounds, seconds=seconds, tolerance=tolerance, as_json=output.as_json))


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]
