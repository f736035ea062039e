"""``hansa consensus``: who votes, in which view, and what the quorum lacks."""

from typing import TYPE_CHECKING, Any

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave
from cli.place import Place

if TYPE_CHECKING:
    from cli.doctor import Process
    from services.client.client import Client

Answer = dict[str, Any]


@click.group()
def consensus() -> None:
    """Who votes, in which view, and what the quorum lacks."""


@consensus.command("status")
@network_option
@json_option
def status(place: Place, output: Output) -> None:
    """Print the height under way, its primary, and each validator's part as one node sees it.

    Example: hansa consensus status --node permission
    """

    async def read(client: "Client") -> Answer:
        node = (await client.request("chain_status", {}, Answer))["node"]
        return {"node": node, **await client.request("consensus_status", {}, Answer)}

    data = place.ask(read)
    output.show(data, lambda console: views.consensus(console, data))


@consensus.command("doctor")
@network_option
@json_option
def doctor(place: Place, output: Output) -> None:
    """Ask all nodes what stands in the way of the next block; exit code 1 unless all is well.

    What they say is merged: who takes part, who is cut off, whose clock is off, who is behind, slow or proven
    guilty, and what to do about it. Of a local network the processes are looked at too, so that a node that
    has ended is named with its last words. docs/errors.md explains the codes.

    Example: hansa consensus doctor
    """
    import trio

    from cli.doctor import ask_all, merge

    data = merge(trio.run(ask_all, place.genesis, place.named_urls), _processes(place))
    output.show(data, lambda console: views.diagnosis(console, data))
    if not data["healthy"]:
        leave(EXIT_REFUSED)


def _processes(place: Place) -> "dict[str, Process]":
    """Return what the processes of a local network do; nothing where the nodes were named by URL."""
    from cli.doctor import Process
    from node.network.local import node_process

    if place.genesis_path is not None:
        return {}
    found: dict[str, Process] = {}
    for home in place.network.nodes:
        process = node_process(home)
        state, ending = process.state(), process.ending()
        words = ending.words if ending.code == "ended" else f"{ending.words} (log: {home.log_file})"
        found[home.name] = Process(state.value, process.pid(), ending.code, words)
    return found
