"""``hansa consensus``: who votes, in which view, and what the quorum lacks."""

from typing import Any

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel
from cli.place import Place

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
    data = place.ask(lambda client: client.request("consensus_status", {}, Answer))

    output.show(data, lambda console: views.consensus(console, data))


@consensus.command("doctor")
@network_option
@json_option
def doctor(place: Place, output: Output) -> None:
    """Say what stands in the way of the next block; exit code 1 unless all is well.

    Example: hansa consensus doctor
    """
    data = place.ask(lambda client: client.request("consensus_doctor", {}, Answer))
    fields = {item["code"]: item["message"] for item in data["findings"]}
    output.show(data, lambda console: panel(console, f"As {data['node']} sees it", fields, good=bool(data["healthy"])))
    if not data["healthy"]:
        leave(EXIT_REFUSED)
