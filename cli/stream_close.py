"""``hansa stream close``, ``withdraw``, ``top-up`` and ``claim``: what becomes of a stream's deposit."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import Number, json_option, network_option, signer_options
from cli.output import Output, note_error_details, panel
from cli.place import Place
from cli.stream_iteration import read_file
from cli.stream_live import Table
from cli.stream_pay import Road, patience_option, road_options, run_paying, shows
from cli.stream_payer import (
    OnChain,
    Purse,
    chain_fields,
    chain_json,
    on_chain,
    purse_options,
)
from cli.stream_place import Amount, counted, fault_of, names_of, party, short, span, stream_argument

if TYPE_CHECKING:
    from rich.console import Console

    from services.client.client import Client
    from services.stream.iteration_file import Checked
    from services.stream.payer import Figures, Payer, Withdrawal
    from services.stream.payer_store import KeptStream
    from services.stream.watcher import Done

Json = dict[str, Any]

WAIT_S_MAX = 7 * 24 * 3_600
POLL_S_MAX = 5.0


@click.command("close")
@stream_argument
@road_options
@patience_option
@purse_options
@json_option
def close(
    stream: str,
    url: str | None,
    over: str,
    owner: Path | None,
    channel: str | None,
    patience_s: int,
    purse: Purse,
    output: Output,
) -> None:
    """End a stream together with the service party: it is paid what it has supplied, the rest comes back at once.

    Exit code 1 where the service party does not agree in time: hansa stream withdraw takes the deposit back alone.

    Example: hansa stream close 3f9a
    """
    road = Road(url, over, owner, channel)

    async def use(client: "Client", payer: "Payer", kept: "KeptStream", table: Table) -> "Figures":
        import trio

        key, closing = bytes(kept.owed.stream), trio.Event()
        closing.set()
        figures = shows(table, closing)
        return await payer.close(key, road.way(kept), on_figures=figures, closing_ms=1_000 * patience_s)

    run_paying(purse, stream, output, use)


@click.command("withdraw")
@stream_argument
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=Number(0, WAIT_S_MAX),
    default=0,
    help="Wait so long for the window to pass; else leave at once.",
)
@purse_options
@json_option
def withdraw(stream: str, wait_s: int, purse: Purse, output: Output) -> None:
    """Take the deposit back without the service party: ask for it, and, after the window, the same again takes it.

    The window is counted in the chain's uptime, so that the service party has had its time to collect what it is owed.

    Example: hansa stream withdraw 3f9a --wait 1200
    """

    async def use(client: "Client", payer: "Payer", kept: "KeptStream") -> "tuple[Withdrawal, OnChain]":
        import trio

        key = bytes(kept.owed.stream)
        until = trio.current_time() + wait_s
        withdrawal = await payer.withdraw(key)
        while withdrawal.left_ms and trio.current_time() < until:
            output.progress(f"the window is open for {span(withdrawal.left_ms)} of uptime")
            await trio.sleep(min(withdrawal.left_ms / 1_000, POLL_S_MAX, max(0.0, until - trio.current_time())))
            withdrawal = await payer.withdraw(key)
        return withdrawal, await on_chain(client, key)

    kept, (withdrawal, found) = purse.run(stream, output, use)
    key, left_ms = bytes(kept.owed.stream), withdrawal.left_ms
    shown = chain_fields(found)

    def draw(console: "Console") -> None:
        panel(console, "Asked for; the window is open" if left_ms else "The deposit is back", shown)
        console.print(f"stream 0x{key.hex()}", markup=False, soft_wrap=True)
        if left_ms:
            console.print(f"Next: in {span(left_ms)}, the same again", markup=False, soft_wrap=True)

    data = {"stream": f"0x{key.hex()}", "withdrawn": not left_ms, "leftMs": left_ms, "chain": chain_json(found)}
    output.show(data, draw)


@click.command("top-up")
@stream_argument
@click.option("--to", metavar="N", type=Amount(), required=True, help="What the deposit is to be, in all.")
@purse_options
@json_option
def top_up(stream: str, to: int, purse: Purse, output: Output) -> None:
    """Put more into a stream's deposit, up to an amount in all; the same again changes nothing.

    The amount is a whole number of the unit's smallest parts.

    Example: hansa stream top-up 3f9a --to 6000
    """

    async def use(client: "Client", payer: "Payer", kept: "KeptStream") -> OnChain:
        key = bytes(kept.owed.stream)
        await payer.top_up(key, to=to)
        return await on_chain(client, key)

    kept, found = purse.run(stream, output, use)
    key = bytes(kept.owed.stream)

    def draw(console: "Console") -> None:
        panel(console, f"Deposit of stream {short(key)}", chain_fields(found))

    output.show({"stream": f"0x{key.hex()}", "chain": chain_json(found)}, draw)


@click.command("claim")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@signer_options
@network_option
@json_option
def claim(file: Path, name: str, keys: Path | None, passphrase_file: Path | None, place: Place, output: Output) -> None:
    """Have the chain pay what an iteration says: it is settled where it may be, else claimed out of the deposit.

    Only the service party gains by it, whoever sends it. The fine is paid too where the payer used the stream's number
    otherwise or could not pay. The same again is harmless.

    Example: hansa stream claim last.json --as merchant-m
    """
    from services.stream.iteration_file import check_carried_untrusted
    from services.stream.watcher import settle_or_claim

    content = read_file(file)
    with fault_of(file):
        checked = check_carried_untrusted(content, place.genesis)
    signer = place.signer(name, keys, passphrase_file)
    note_error_details(stream=f"0x{checked.carried.stream.hex()}")
    output.progress(f"stream 0x{checked.carried.stream.hex()}")

    async def run(client: "Client") -> "tuple[Done, OnChain]":
        done = await settle_or_claim(client, signer, checked, now_ms=time.time_ns() // 1_000_000)
        return done, await on_chain(client, checked.carried.stream)

    done, found = place.ask(run)
    _show_claimed(output, place, checked, done, found)


# -- inside ----------------------------------------------------------------------------------------------


def _show_claimed(output: Output, place: Place, checked: "Checked", done: "Done", found: OnChain) -> None:
    terms, outcome = checked.carried.terms, done.outcome
    titles = {"SETTLE": "Settled", "CLAIM": "Claimed out of the deposit"}
    title = titles.get(str(done.step), "Nothing is left to get by this iteration")
    shown: Json = {"to": party(terms.service, names_of(place))}
    if outcome is not None:
        shown |= {
            "amount": counted(done.amount, terms.unit),
            "fine": counted(done.fine, terms.unit),
            "transaction": f"0x{outcome.transaction.id.hex()}",
        }
    data = {
        "stream": f"0x{checked.carried.stream.hex()}",
        "step": str(done.step),
        "due": checked.iteration.due,
        "amount": done.amount,
        "fine": done.fine,
        "unit": terms.unit,
        "transactionId": None if outcome is None else f"0x{outcome.transaction.id.hex()}",
        "chain": chain_json(found),
    }
    output.show(data, lambda console: panel(console, title, shown | chain_fields(found)))
