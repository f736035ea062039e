"""``hansa bench``: the benchmarks, as a user can run them."""

import rich_click as click

from cli.options import Number, json_option
from cli.output import Output, leave


@click.group()
def bench() -> None:
    """The benchmarks; each starts its own network."""


@bench.command("throughput")
@click.option("--seconds", metavar="S", type=Number(1, 600), default=8, show_default=True, help="Time of each row.")
@click.option("--rows", metavar="A,B", default="", help="Measure these rows alone, for example single,lone.")
@click.option("--validators", metavar="N", type=Number(1, 100), default=4, show_default=True)
@json_option
def throughput(seconds: int, rows: str, validators: int, output: Output) -> None:
    """Measure transfers among 10,000 accounts: transactions and calls a second, latencies, the signature bound.

    Example: hansa bench throughput --json
    """
    from bench.throughput import main

    names = [name for name in rows.split(",") if name]
    leave(main(seconds=seconds, rows=names, validators=validators, as_json=output.as_json))
