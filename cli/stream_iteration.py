"""``hansa stream iteration``: iterations in files, shown and checked without any network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli.options import json_option
from cli.output import Output, panel
from cli.place import read_genesis
from cli.stream_place import counted, fault_of, names_in, short, terms_fields
from consensus.ledger.errors import LocalError, PeerError
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from consensus.ledger.genesis import Genesis
    from services.stream.iteration_file import Carried, Checked

Json = dict[str, Any]

PROVEN, OF_GENESIS, UNPROVEN = "proven", "genesis", "file"
"""What says that the key in a file is the payer's: a proof, the genesis document, or the file alone."""


@click.group()
def iteration() -> None:
    """Iterations in files: each is a whole, signed transaction that pays the total so far.

    hansa stream service export writes such a file; hansa stream claim and watch take one.
    """


_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@iteration.command("show")
@_file
@json_option
def show(file: Path, output: Output) -> None:
    """Show what a file says, and check nothing but its form.

    Example: hansa stream iteration show last.json
    """
    from services.stream.iteration_file import decode_carried_untrusted

    content = read_file(file)
    with fault_of(file):
        carried, chain_id = decode_carried_untrusted(content)
        due, valid_until_ms = _said_untrusted(carried)
    shown = _due_fields(carried, due, valid_until_ms) | terms_fields(carried.terms, {})
    data = _json(carried, chain_id, due, valid_until_ms)

    def draw(console: "Console") -> None:
        panel(console, f"Iteration of stream {short(carried.stream)}, not checked", shown)
        console.print(f"stream 0x{carried.stream.hex()}", markup=False, soft_wrap=True)
        console.print(f"Next: hansa stream iteration verify {file} --genesis GENESIS", markup=False, soft_wrap=True)

    output.show({**data, "checked": False}, draw)


@iteration.command("verify")
@_file
@click.option(
    "--genesis",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The genesis document of the chain.",
)
@json_option
def verify(file: Path, genesis: Path, output: Output) -> None:
    """Check an iteration offline: its bytes, chain, lane, call, and the payer's signature; exit code 1 if it fails.

    Whose key has signed is known from the proof of the opening that the file may hold, else from the genesis document.

    Example: hansa stream iteration verify last.json --genesis net/genesis.json
    """
    from services.stream.iteration_file import check_carried_untrusted

    document = read_genesis(genesis)
    content = read_file(file)
    with fault_of(file):
        checked = check_carried_untrusted(content, document)
    _show_checked(output, checked, document)


def read_file(file: Path) -> bytes:
    """Return the bytes of an iteration's file, up to one more than it may have.

    Raises:
        LocalError: ``bad_file``.
    """
    from services.stream.iteration_file import FILE_BYTES_MAX

    try:
        with file.open("rb") as source:
            return source.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise LocalError("bad_file", f"{file}: {error.strerror}") from None


# -- inside ----------------------------------------------------------------------------------------------


def _said_untrusted(carried: "Carried") -> tuple[int, int]:
    """Return what an iteration says is due and until when it may be uploaded; ``PeerError`` where it is none."""
    from consensus.ledger.codec import decode_untrusted
    from consensus.ledger.transaction import decode_transaction_untrusted

    body = decode_transaction_untrusted(carried.raw).body
    arguments = decode_untrusted(body.calls[0].arguments)
    due = arguments.get("due") if isinstance(arguments, dict) else None
    if not isinstance(due, int):
        raise PeerError("bad_iteration", "it is not one call that settles a stream")
    return due, body.valid_until_ms


def _source(checked: "Checked", genesis: "Genesis") -> tuple[str, str]:
    """Return what says that the key is the payer's, and in words."""
    if checked.verified is not None:
        return PROVEN, f"the payer's key, proven as of block {checked.verified.header.sealed_height}"
    keys = {bytes(account.address): account.public_key for account in genesis.accounts}
    if keys.get(checked.carried.terms.payer) == checked.carried.payer_key.hex():
        return OF_GENESIS, "the payer's key in the genesis document"
    return UNPROVEN, "a key that the file alone says to be the payer's"


def _show_checked(output: Output, checked: "Checked", genesis: "Genesis") -> None:
    carried, found, record = checked.carried, checked.iteration, checked.record
    source, words = _source(checked, genesis)
    shown = _due_fields(carried, found.due, found.valid_until_ms) | {"signed by": words}
    if record is not None:
        shown["on the chain"] = f"{record.status}, {counted(record.paid, record.unit)} paid"
    shown |= terms_fields(carried.terms, names_in(genesis))
    data = _json(carried, genesis.chain_id(), found.due, found.valid_until_ms) | {
        "transactionId": f"0x{found.transaction.id.hex()}",
        "checked": True,
        "keyFrom": source,
        "provenHeight": None if checked.verified is None else checked.verified.header.sealed_height,
        "status": None if record is None else record.status,
        "paid": None if record is None else record.paid,
    }

    def draw(console: "Console") -> None:
        panel(console, "The iteration holds", shown, good=source != UNPROVEN)
        console.print(f"stream 0x{carried.stream.hex()}", markup=False, soft_wrap=True)
        console.print(f"transaction {data['transactionId']}", markup=False, soft_wrap=True)

    output.show(data, draw)


def _json(carried: "Carried", chain_id: bytes, due: int, valid_until_ms: int) -> Json:
    from services.stream.iteration_file import terms_json

    return {
        "chainId": f"0x{chain_id.hex()}",
        "stream": f"0x{carried.stream.hex()}",
        "due": due,
        "unit": carried.terms.unit,
        "validUntilMs": valid_until_ms,
        "payerKey": f"0x{carried.payer_key.hex()}",
        "terms": terms_json(carried.terms),
    }


def _due_fields(carried: "Carried", due: int, valid_until_ms: int) -> Json:
    return {
        "due": f"{counted(due, carried.terms.unit)} in all",
        "to upload until": f"{utc_text(valid_until_ms)} UTC",
    }
