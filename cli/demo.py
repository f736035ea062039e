"""``hansa demo``: the business stories on a network of their own."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.options import Number, json_option
from cli.output import Output, leave

if TYPE_CHECKING:
    from services.demo.agency_network import AgencyConsortium
    from services.demo.network import Consortium
    from services.demo.payee_network import PayeeConsortium
    from services.demo.settlement_network import SettlementConsortium
    from services.demo.stream_network import StreamConsortium

_keep = click.option("--keep", is_flag=True, help="Leave the network running at the end.")
_folder = click.option(
    "--network",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the demo's own network: a new one, or one that a demo has kept; else a temporary one.",
)
_rate = click.option(
    "--rate",
    metavar="N",
    type=click.FloatRange(1, 100_000),
    show_default="what drains the burst in some 20 s",
    help="Deliveries per second that the message centre allows.",
)
_store = click.option(
    "--store",
    metavar="STORE",
    default="embedded",
    show_default=True,
    help="What keeps the messages: embedded, or redis://HOST:PORT/DB, a server with appendfsync always.",
)
_seed = click.option("--seed", metavar="N", type=Number(0), default=1, show_default=True)


@click.group()
def demo() -> None:
    """The business stories on a network of their own: start, run, check invariants, card, exit 0 or 1."""


@demo.command("rights")
@click.option(
    "--orders",
    metavar="PATH",
    type=click.Path(path_type=Path, exists=True),
    help="CSV file, or folder of them, with the columns InvoiceNo, StockCode, Description, Quantity, "
    "InvoiceDate, UnitPrice, CustomerID, Country; else a seeded synthetic day.",
)
@click.option("--limit", metavar="N", type=Number(1), help="Play so many orders at the most.")
@_rate
@_store
@_seed
@_keep
@_folder
@json_option
def rights(
    orders: Path | None,
    limit: int | None,
    rate: float | None,
    store: str,
    seed: int,
    keep: bool,
    folder: Path | None,
    output: Output,
) -> None:
    """Play orders through business server, message centre and rights server while all of them die in turn.

    Example: hansa demo rights --orders orders/ --json
    """

    leave(_play_rights(folder, output, seed=seed, keep=keep, orders=orders, limit=limit, rate=rate, store=store))


@demo.command("agency")
@click.option(
    "--applications",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Fund file of type 03 (JR/T 0017) with orders of product 000198; else a seeded synthetic one.",
)
@_seed
@_keep
@_folder
@json_option
def agency(applications: Path | None, seed: int, keep: bool, folder: Path | None, output: Output) -> None:
    """Sell a fund file's orders over a private channel while programs of bank, issuer and permission desk die.

    Example: hansa demo agency --applications OFD_996_H0_20170427_03.txt
    """
    leave(_play_agency(folder, output, seed=seed, keep=keep, applications=applications))


@demo.command("settlement")
@click.option(
    "--trades",
    metavar="N",
    type=Number(20, 100_000),
    default=120,
    show_default=True,
    help="Trades that are to be paid.",
)
@click.option(
    "--database",
    metavar="URL",
    help="Keep events and accounts in PostgreSQL, postgresql://USER@HOST/NAME; else in an SQLite file each.",
)
@_seed
@_keep
@_folder
@json_option
def settlement(trades: int, database: str | None, seed: int, keep: bool, folder: Path | None, output: Output) -> None:
    """Sell units on the chain for simulated money in an account system, both or neither, while everything dies.

    Example: hansa demo settlement --trades 200
    """
    from cli.settle_place import check_database

    check_database(database)
    leave(_play_settlement(folder, output, seed=seed, keep=keep, trades=trades, database=database or ""))


@demo.command("payee")
@_keep
@_folder
@json_option
def payee(keep: bool, folder: Path | None, output: Output) -> None:
    """Pay by one printed code through one platform and later through two, while environments, nodes and wallets die.

    The environments are emulated, without hardware isolation, and the money is simulated.

    Example: hansa demo payee --json
    """
    leave(_play_payee(folder, output, keep=keep))


@demo.command("stream")
@_seed
@_keep
@_folder
@json_option
def stream(seed: int, keep: bool, folder: Path | None, output: Output) -> None:
    """Charge a car that pays 200 times with one upload, while its payer, the service party and a node die.

    Then a payer burns the number of a second one and is fined, and a watcher settles a third.

    Example: hansa demo stream --json
    """
    leave(_play_stream(folder, output, seed=seed, keep=keep))


@demo.command("all")
@_seed
@_keep
@_folder
@json_option
def everything(seed: int, keep: bool, folder: Path | None, output: Output) -> None:
    """Play every act there is, one after the other, on one network where a folder is named.

    With --json each act prints its own object on a line.

    Example: hansa demo all
    """
    code = _play_rights(folder, output, seed=seed, keep=keep)
    code = _play_agency(folder, output, seed=seed, keep=keep) or code
    code = _play_settlement(folder, output, seed=seed, keep=keep) or code
    code = _play_payee(folder, output, keep=keep) or code
    leave(_play_stream(folder, output, seed=seed, keep=keep) or code)


def _play_rights(
    folder: Path | None,
    output: Output,
    *,
    seed: int,
    keep: bool,
    orders: Path | None = None,
    limit: int | None = None,
    rate: float | None = None,
    store: str = "embedded",
) -> int:
    from cli.rights_trial import rights_trial
    from services.demo.rights import main

    def open_network() -> "AbstractAsyncContextManager[Consortium]":
        return rights_trial(folder, keep=keep)

    return main(
        open_network=open_network,
        orders=orders,
        limit=limit,
        seed=seed,
        rate_per_s=rate,
        store=store,
        as_json=output.as_json,
    )


def _play_agency(
    folder: Path | None, output: Output, *, seed: int, keep: bool, applications: Path | None = None
) -> int:
    from cli.agency_trial import agency_trial
    from services.demo.agency import main

    def open_network() -> "AbstractAsyncContextManager[AgencyConsortium]":
        return agency_trial(folder, keep=keep, records_frames=True)

    return main(open_network=open_network, applications=applications, seed=seed, as_json=output.as_json)


def _play_settlement(
    folder: Path | None, output: Output, *, seed: int, keep: bool, trades: int = 120, database: str = ""
) -> int:
    from cli.settlement_trial import settlement_trial
    from services.demo.settlement import main

    def open_network() -> "AbstractAsyncContextManager[SettlementConsortium]":
        return settlement_trial(folder, keep=keep)

    return main(open_network=open_network, trades=trades, database=database, seed=seed, as_json=output.as_json)


def _play_payee(folder: Path | None, output: Output, *, keep: bool) -> int:
    from cli.payee_trial import payee_trial
    from services.demo.payee import main

    def open_network() -> "AbstractAsyncContextManager[PayeeConsortium]":
        return payee_trial(folder, keep=keep)

    return main(open_network=open_network, as_json=output.as_json)


def _play_stream(folder: Path | None, output: Output, *, seed: int, keep: bool) -> int:
    from cli.stream_trial import stream_trial
    from services.demo.stream import main

    def open_network() -> "AbstractAsyncContextManager[StreamConsortium]":
        return stream_trial(folder, keep=keep)

    return main(open_network=open_network, seed=seed, as_json=output.as_json)
