"""``hansa agency sample``: a fund file to try agency sale with, for who has none."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.options import Number, json_option
from cli.output import Output, panel
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

ORDERS, SEED = 1_006, 1
ORDERS_MAX = 20_000


@click.command("sample")
@click.option("--orders", metavar="N", type=Number(1, ORDERS_MAX), default=ORDERS, show_default=True, help="How many.")
@click.option("--seed", metavar="N", type=Number(0, 9_999), default=SEED, show_default=True, help="Of what is drawn.")
@json_option
def sample(orders: int, seed: int, output: Output) -> None:
    """Write a made-up fund file of type 03 into this folder: subscriptions of product 000198, under its standard name.

    One of its orders names another distributor, so that something is dropped. The same seed gives the same file.

    Example: hansa agency sample --orders 100
    """
    from services.agency.ofd.files import file_name
    from services.agency.ofd.synthetic import orders_file
    from services.agency.ofd.writer import write

    file = orders_file(seed, orders=orders, accounts=max(1, orders * 6 // 7))
    path = Path(file_name(file.header))
    try:
        with path.open("xb") as target:
            target.write(write(file))
    except FileExistsError:
        raise LocalError("file_exists", f"{path} exists and is not overwritten") from None
    except OSError as error:
        raise LocalError("file_error", f"{path}: {error.strerror}") from None
    data = {
        "file": str(path),
        "orders": orders,
        "next": f"hansa agency register --issuer issuer-c --holders-of {path}",
    }

    def draw(console: "Console") -> None:
        panel(console, "A made-up fund file", data)

    output.show(data, draw)
