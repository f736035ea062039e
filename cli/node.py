"""``hansa node``: one node from its home folder."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.options import Number, json_option
from cli.output import Output, leave, panel
from cli.place import Place
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from node.config import NodeConfig

TIMEOUT_S = 60
PROGRESS_BLOCKS = 500


def _home_option(*, required: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "--home",
        metavar="DIR",
        required=required,
        type=click.Path(path_type=Path, file_okay=False),
        help="Home folder of the node.",
    )


@click.group()
def node() -> None:
    """One node from its home folder, as on a server."""


@node.command("run")
@_home_option(required=True)
@click.option(
    "--record-frames",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="For tests: append every frame of every connection to FILE, in clear.",
)
def run(home: Path, record_frames: Path | None) -> None:
    """Run a node in the foreground until SIGTERM or Ctrl-C.

    Example: hansa node run --home net/nodes/bank-a
    """
    from node.program import run as run_node

    leave(run_node(home, record_frames=record_frames))


@node.command("rejoin")
@click.argument("name", metavar="[NAME]", required=False)
@_home_option(required=False)
@click.option(
    "--network",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Network folder; else HANSA_NETWORK, else ./net.",
)
@click.option("--keep-data", is_flag=True, help="Leave the data where they are, if all of them prove to be whole.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Number(1, 86_400),
    default=TIMEOUT_S,
    show_default=True,
    help="Time to catch up, and again to vote.",
)
@json_option
def rejoin(
    name: str | None, home: Path | None, folder: Path | None, keep_data: bool, timeout_s: int, output: Output
) -> None:
    """Give a node whose data are lost, old or damaged a vote again, under a new vote key.

    NAME is a node of a local network: it is stopped, its data and key are set aside, it fetches the chain
    from the others, the chain takes its new key, and it votes. After an interruption run it again. Whoever restores
    a node's data from a copy runs it too: with data older than its last vote a key must not vote.

    With --home, on the node's own machine, only the home is prepared; the rest is said.

    Example: hansa node rejoin bank-a  ·  hansa node rejoin --home /srv/hansa
    """
    if (name is None) == (home is None):
        raise click.UsageError("give NAME for a node of a local network, or --home for one home folder")
    if home is not None:
        if folder is not None:
            raise click.UsageError("--home is one node's own folder and needs no --network")
        _prepare(home, keep_data, output)
    elif name is not None:
        _rejoin(name, Place(folder, (), None), keep_data, timeout_s, output)


def _rejoin(name: str, place: Place, keep_data: bool, timeout_s: int, output: Output) -> None:
    import trio

    from cli.membership import open_local_chain
    from node.network import rejoin as work

    network = place.network

    async def run() -> bytes:
        async with open_local_chain(network, without=name, tell=output.progress) as chain:
            return await work.rejoin(
                network, chain, name, keep_data=keep_data, tell=output.progress, timeout_ms=timeout_s * 1000
            )

    network.node(name)  # an unknown name is said before anything is asked
    with place.explaining():
        key = trio.run(run)
    data = {"node": name, "voteKey": "0x" + key.hex()}
    output.show(data, lambda console: views.fields(console, f"{name} votes again, with a new key", data))


def _prepare(home: Path, keep_data: bool, output: Output) -> None:
    from node.network.rejoin import prepare

    config = _config(home)
    done = prepare(config, keep_data=keep_data, on_height=_progress(output))
    steps = [
        f"hansa node run --home {home}",
        f"hansa member seat --home {home} --as ADMIN, the admin of {config.organisation}, once it has caught up",
    ]
    data = {
        "node": config.name,
        "voteKey": "0x" + done.vote_key.hex(),
        "dataAside": str(done.data_aside) if done.data_aside else None,
        "privateAside": str(done.private_aside) if done.private_aside else None,
        "next": steps,
    }
    fields = {
        "new vote key": data["voteKey"],
        "data": str(done.data_aside or ("stay where they are" if keep_data else "there were none")),
        **({"private data": f"do not open, and are in {done.private_aside}"} if done.private_aside else {}),
        "old key": f"beside it, as vote.aside-N.pem in {config.keys}; it never votes again",
        **{f"next {number}": step for number, step in enumerate(steps, 1)},
    }
    output.show(data, lambda console: panel(console, f"{config.name} is ready to rejoin", fields))


@node.command("reindex")
@_home_option(required=True)
@json_option
def reindex(home: Path, output: Output) -> None:
    """Make all that follows from the blocks of a stopped node anew: receipts, state, tree, indexes.

    Every block is executed again and checked against its certificate; the old database stays beside the
    new one. Where blocks, certificates or votes are damaged it refuses: the node has to rejoin.

    Example: hansa node reindex --home net/nodes/bank-a
    """
    from node.reindex import reindex as work

    done = work(_config(home), on_height=_progress(output))
    data = {
        "height": done.result.height,
        "blockHash": "0x" + done.result.block_hash.hex(),
        "dataAside": str(done.data_aside) if done.data_aside else None,
    }
    fields = {
        "height": done.result.height,
        "transactions": f"{done.result.transactions} executed again",
        "old database": str(done.data_aside or "set aside by the run before"),
    }
    output.show(data, lambda console: panel(console, "Rebuilt from the blocks", fields))


def _config(home: Path) -> "NodeConfig":
    """Read a home's configuration.

    Raises:
        LocalError: ``no_home``, ``bad_config``.
    """
    from node.config import CONFIG_FILE, load_config

    if not (home / CONFIG_FILE).is_file():
        raise LocalError("no_home", f"{home} is no node's home folder")
    return load_config(home)


def _progress(output: Output) -> Callable[[int], None]:
    def on_height(height: int) -> None:
        if height % PROGRESS_BLOCKS == 0:
            output.progress(f"{height} blocks hold …")

    return on_height
