"""``hansa payee proof``: checks offline what a resolution has shown."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.options import json_option
from cli.output import Output, panel, table
from cli.payee_pay import environment_text, proven_text, record_fields, resolved_json
from cli.place import read_genesis
from consensus.ledger.errors import LocalError, PeerError
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console


@click.command("proof")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--genesis",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The genesis document of the chain.",
)
@json_option
def proof(file: Path, genesis: Path, output: Output) -> None:
    """Check a file of `payee resolve --proof` offline, and say what was shown to whom; exit code 1 if it shows nothing.

    Example: hansa payee proof shown.json --genesis net/genesis.json
    """
    from services.payee.identity import identity_text
    from services.payee.shown import FILE_BYTES_MAX, check_shown_untrusted

    document = read_genesis(genesis)
    try:
        with file.open("rb") as source:
            data = source.read(FILE_BYTES_MAX + 1)
        query, resolved = check_shown_untrusted(data, document)
    except OSError as error:
        raise LocalError("bad_file", f"{file}: {error.strerror}") from None
    except PeerError as error:
        raise PeerError(error.code, f"{file}: {error.message}") from None
    asked = {"askedMs": query.body.time_ms, "delegated": query.delegation is not None}
    shown = {
        "identity": identity_text(resolved.identity),
        "asked by": f"{resolved.server}{', through a delegate' if query.delegation else ''}",
        "asked": f"{utc_text(query.body.time_ms)} UTC",
        "query": f"0x{resolved.query.hex()}",
        "as of": proven_text(resolved),
        "environment": environment_text(resolved),
    }
    rows = [
        (one.server, one.version, found.get("name"), found.get("pays to", found.get("record")))
        for one in resolved.candidates
        for found in [record_fields(one)]
    ]

    def draw(console: "Console") -> None:
        panel(console, "This was shown", shown)
        table(console, ["platform", ">version", "name", "pays to"], rows)

    output.show({"identity": shown["identity"], **asked, **resolved_json(resolved)}, draw)
