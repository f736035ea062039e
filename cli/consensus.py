"""``hansa consensus``: who votes, in which view, and what the quorum lacks."""

from typing import Any

import rich_click as click

from cli.options import json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
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

    def draw(console: Any) -> None:
        fields = {
            "height": data["height"],
            "view": data["view"],
            "primary": data["primary"],
            "phase": data["phase"],
            "quorum": f"{data['quorum']} of {data['validatorCount']}",
        }
        panel(console, "Consensus", fields)
        rows = [
            (
                name,
                *(
                    (None,) * 5
                    if part is None
                    else (part[key] for key in ("height", "view", "prepared", "committed", "silentMs"))
                ),
            )
            for name, part in data["replicas"].items()
        ]
        table(console, ["validator", ">height", ">view", "prepared", "committed", ">silent ms"], rows)

    output.show(data, draw)


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
