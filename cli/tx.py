"""``hansa tx``: submit transactions and follow them."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import Number, json_option, network_option, signer_options
from cli.output import EXIT_REFUSED, Output, leave, note_error_details
from cli.place import Place

if TYPE_CHECKING:
    from consensus.ledger.transaction import Transaction
    from services.client.client import Client


@click.group()
def tx() -> None:
    """Submit transactions and follow them."""


@tx.command("call")
@click.argument("contract")
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE | NAME:=JSON]...")
@click.option("--lane", metavar="TEXT", default="", help="Lane to number the transaction in.")
@click.option("--once", metavar="KEY", help="Take effect once for this key, however often the command is run.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Number(1, 3_600),
    default=60,
    show_default=True,
    help="How long to wait. The transaction is valid for no longer, so it cannot become final afterwards.",
)
@signer_options
@network_option
@json_option
def call(
    contract: str,
    method: str,
    arguments: tuple[str, ...],
    lane: str,
    once: str | None,
    timeout_s: int,
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Call a contract's method, wait until it is final, and print the receipt, its block and who signed it.

    Arguments are typed by the contract's declaration: hansa contract describe CONTRACT.
    Accounts may be given by name. Exit code 1 when the receipt says failed.

    Example: hansa tx call tokens define unit=point decimals=0 --as bank-a
    """
    from services.client.calls import call_typed, outcome_json
    from services.client.errors import Refused, Unreachable
    from services.client.times import utc_text

    signer = place.signer(name, keys, passphrase_file)
    signed: list[str] = []

    def on_signed(transaction: "Transaction") -> None:
        transaction_id, valid_until_ms = f"0x{transaction.id.hex()}", transaction.body.valid_until_ms
        signed.append(transaction_id)
        note_error_details(transactionId=transaction_id, validUntilMs=valid_until_ms)
        output.progress(f"submitting {transaction_id}, valid until {utc_text(valid_until_ms)} UTC")

    async def submit(client: "Client") -> dict[str, object]:
        try:
            outcome = await call_typed(
                client,
                signer,
                contract,
                method,
                arguments,
                lane=lane,
                once=once,
                timeout_ms=1_000 * timeout_s,
                on_signed=on_signed,
            )
        except (Unreachable, Refused) as error:
            if not signed or (isinstance(error, Refused) and error.code != "expired"):
                raise
            where = f"hansa tx explain {signed[-1]} says where it is, hansa consensus doctor whether enough nodes vote"
            if isinstance(error, Refused):
                raise Refused(error.code, f"{error.message}; {where}") from None
            again = "--once KEY makes a call safe to repeat" if once is None else "the same command may be run again"
            raise Unreachable(f"{error.message}; {where}; {again}", code="outcome_unknown") from None
        return outcome_json(outcome)

    data = place.ask(submit)
    output.show(data, lambda console: views.outcome(console, data))
    if not data["ok"]:
        leave(EXIT_REFUSED)


@tx.command("show")
@click.argument("transaction_id")
@network_option
@json_option
def show(transaction_id: str, place: Place, output: Output) -> None:
    """Print a final transaction with its receipts, proven by certificate and path.

    Example: hansa tx show 0x5f0c…
    """
    from services.client.calls import find_outcome, outcome_json
    from services.client.errors import Refused

    try:
        data = outcome_json(place.ask(lambda client: find_outcome(client, transaction_id)))
    except Refused as error:
        if error.code != "not_found":
            raise
        message = "no final transaction has this id; hansa tx explain says whether one waits"
        raise Refused(error.code, message) from None
    output.show(data, lambda console: views.outcome(console, data))


@tx.command("explain")
@click.argument("transaction_id")
@network_option
@json_option
def explain(transaction_id: str, place: Place, output: Output) -> None:
    """Say where a transaction is, who holds it, why it is not final or has failed, and what to do about it.

    All nodes are asked; "stages" tells what each knows of it, the rest is what the one says that knows most.

    Example: hansa tx explain 0x5f0c…
    """
    from services.client.calls import explain as explain_transaction

    data = place.ask(lambda client: explain_transaction(client, transaction_id))
    names = {url: name for name, url in place.named_urls.items()}
    data["node"] = names.get(str(data["node"]), data["node"])
    data["stages"] = {names.get(url, url): stage for url, stage in data["stages"].items()}
    output.show(data, lambda console: views.explanation(console, data))
