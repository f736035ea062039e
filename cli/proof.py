"""``hansa proof``: get proofs, and check them offline."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import Number, json_option, network_option
from cli.output import Output
from cli.place import Place, read_genesis

if TYPE_CHECKING:
    from consensus.ledger.proof import Verified


@click.group()
def proof() -> None:
    """Get proofs, and check them offline with nothing but the genesis file."""


@proof.command("get")
@click.argument("kind", metavar="KIND", type=click.Choice(["block", "transaction", "receipt", "state"]))
@click.argument("what", metavar="WHAT")
@click.option("--call", "call_index", metavar="N", type=Number(0), default=0, help="Which call's receipt.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write the proof here.")
@network_option
@json_option
def get(kind: str, what: str, call_index: int, out: Path | None, place: Place, output: Output) -> None:
    """Get the proof of a block HEIGHT, a transaction ID, a receipt ID, or a state KEY; it is checked first.

    KIND is block, transaction, receipt or state. Of a key without a value the absence is proven. Without --out
    the proof file itself goes to standard output, also under --json.

    Example: hansa proof get state membership/validators --out validators.proof
    """
    from services.client.proofs import describe_verified, request_of

    method, params = request_of(kind, what, call_index)
    document, verified = place.ask(lambda client: client.prove(method, params))
    if out is None:
        click.echo(json.dumps(document, indent=2 if sys.stdout.isatty() else None))
        return
    out.write_text(json.dumps(document, indent=2) + "\n")
    data = {"file": str(out), **describe_verified(verified)}
    output.show(data, lambda console: views.fields(console, _title("Proof", data), data))


@proof.command("verify")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--genesis",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The genesis document of the chain.",
)
@json_option
def verify(file: Path, genesis: Path, output: Output) -> None:
    """Check a proof file offline and say what it proves; exit code 1 when it does not hold.

    Example: hansa proof verify validators.proof --genesis net/genesis.json
    """
    from consensus.ledger.errors import PeerError
    from consensus.ledger.proof import decode_proof_untrusted, verify_proof_untrusted
    from services.client.proofs import describe_verified

    try:
        verified: Verified = verify_proof_untrusted(decode_proof_untrusted(file.read_bytes()), read_genesis(genesis))
    except PeerError as error:
        raise PeerError(error.code, f"{file}: {error.message}") from None
    data = {"ok": True, **describe_verified(verified)}
    output.show(data, lambda console: views.fields(console, _title("The proof holds", data), data))


def _title(title: str, data: Mapping[str, object]) -> str:
    return title if data.get("present", True) else f"{title}: there is no value at this key"
