"""``hansa consensus``: who votes, in which view, and what the quorum lacks."""

from typing import TYPE_CHECKING, Any

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel
from cli.place import Place

if TYPE_CHECKING:
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

    A node that observes only says so itself, and one that does not answer is named: neither shows at once
    to the others. A validator whose data was wiped or replaced by an older copy casts no vote for good,
    since it could contradict what it has signed; on a local network only "hansa network reset" mends that.

    Example: hansa consensus doctor
    """
    import trio

    from cli.doctor import ask_all, merge

    data = merge(trio.run(ask_all, place.genesis, _named_urls(place)))
    fields: dict[str, str] = {}
    for item in data["findings"]:
        said = item["message"] if item["node"] in (None, item["about"]) else f"{item['node']} says: {item['message']}"
        fields[item["code"]] = "; ".join(filter(None, (fields.get(item["code"]), said)))
    output.show(data, lambda console: panel(console, f"As {_listed(data)} see it", fields, good=data["healthy"]))
    if not data["healthy"]:
        leave(EXIT_REFUSED)


def _named_urls(place: Place) -> dict[str, str]:
    """Return the nodes to ask by name, or by URL where there is no network folder."""
    known = {node.rpc_url: node.name for node in place.network.nodes} if place.genesis_path is None else {}
    return {known.get(url, url): url for url in place.urls}


def _listed(data: Answer) -> str:
    return ", ".join(name for name, answered in data["nodes"].items() if answered)
