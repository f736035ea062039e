"""``hansa chain``: blocks, and the verification of the whole chain."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cli import views
from cli.options import Height, Number, json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel
from cli.place import Place
from services.client.times import utc_text

if TYPE_CHECKING:
    from services.client.client import Client

Answer = dict[str, Any]


@click.group()
def chain() -> None:
    """Blocks, and the verification of the whole chain."""


@chain.command("status")
@network_option
@json_option
def status(place: Place, output: Output) -> None:
    """Print the newest block as one node sees it.

    Example: hansa chain status --node issuer-c
    """
    data = place.ask(lambda client: client.request("chain_status", {}, Answer))
    head = data["head"]
    fields = {
        "network": data["network"],
        "chain id": data["chainId"],
        "node": data["node"],
        "height": data["height"],
        "hash": head["hash"],
        "time": utc_text(head["timeMs"]),
        "sealed height": data["sealedHeight"],
        "state root": head["sealedRoot"],
        "peers": data["peers"],
    }
    output.show(data, lambda console: panel(console, "Chain", fields))


@chain.command("blocks")
@click.option("--from", "start", metavar="HEIGHT", type=Height(), help="First block; else the newest.")
@click.option("--limit", metavar="N", type=Number(1, 100), default=20, show_default=True)
@network_option
@json_option
def blocks(start: int | None, limit: int, place: Place, output: Output) -> None:
    """List blocks, newest first.

    Example: hansa chain blocks --limit 5
    """
    params: dict[str, object] = {"limit": limit} if start is None else {"limit": limit, "start": start}
    data = place.ask(lambda client: client.request("chain_getBlocks", params, Answer))
    output.show(data, lambda console: views.blocks(console, data["blocks"]))


@chain.command("block")
@click.argument("height", type=Height())
@network_option
@json_option
def block(height: int, place: Place, output: Output) -> None:
    """Print a block; its certificate is checked from genesis (block 0 has none).

    Example: hansa chain block 1
    """

    async def read(client: "Client") -> Answer:
        data: Answer = await client.request("chain_getBlock", {"height": height}, Answer)
        if height:
            verified = await client.prove_block(height)
            data |= {"hash": "0x" + verified.block_hash.hex(), "signers": list(verified.signers), "proven": True}
        return data

    data = place.ask(read)
    output.show(data, lambda console: views.block(console, data))


@chain.command("verify")
@click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Verify what a stopped node has stored, record by record.",
)
@network_option
@json_option
def verify(home: Path | None, place: Place, output: Output) -> None:
    """Execute the whole chain again from genesis, and check every certificate, root and hash.

    The blocks are downloaded from a running node; with --home they and everything else come from the
    database of a stopped one, and --genesis or --network say which chain it must be. Exit code 1 names the
    first height that does not hold.

    Example: hansa chain verify  ·  hansa chain verify --home net/nodes/bank-a
    """
    from cli.verify import verify_home, verify_remote

    if home is not None and place.nodes:
        raise click.UsageError("--home reads a stopped node's database and asks no node: leave --node away")
    result = verify_remote(place, output) if home is None else verify_home(home, place, output)
    data = {
        "ok": True,
        "chainId": "0x" + result.chain_id.hex(),
        "height": result.height,
        "blockHash": "0x" + result.block_hash.hex(),
        "sealedHeight": result.sealed_height,
        "sealedRoot": "0x" + result.sealed_root.hex(),
        "transactions": result.transactions,
        "receipts": result.receipts,
        "certificates": result.certificates,
    }
    fields = {
        "height": result.height,
        "hash": f"0x{result.block_hash.hex()}",
        "certificates": f"{result.certificates} checked",
        "transactions": f"{result.transactions} executed again, {result.receipts} receipts the same",
        "sealed height": result.sealed_height,
        "state root": f"0x{result.sealed_root.hex()}",
    }
    output.show(data, lambda console: panel(console, "The chain holds", fields))


@chain.command("replay")
@click.argument("bundle", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--home",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Home of a stopped node whose newest block is the one below.",
)
@json_option
def replay(bundle: Path, home: Path, output: Output) -> None:
    """Execute the block of a divergence bundle again on a stopped node's state.

    A node that gets another result for a certified block stops with exit code 4 and leaves such a bundle in its log
    folder. Exit code 1 when the block still gives another result, 0 when it holds.

    Example: hansa chain replay net/nodes/bank-a/log/divergence-17.json --home net/nodes/bank-a
    """
    from cli.verify import replay_bundle

    data = replay_bundle(bundle, home)
    output.show(data, lambda console: views.fields(console, "Replayed", data, good=bool(data["ok"])))
    if not data["ok"]:
        leave(EXIT_REFUSED)
