"""``hansa state``: contract state, proven."""

import rich_click as click

from cli import views
from cli.options import json_option, network_option
from cli.output import Output
from cli.place import Place


@click.group()
def state() -> None:
    """Read contract state."""


@state.command("get")
@click.argument("key")
@network_option
@json_option
def get(key: str, place: Place, output: Output) -> None:
    """Read the value at a key (CONTRACT/KEY, or 0x-hex) as of the last sealed block, and check its proof.

    Example: hansa state get membership/validators
    """
    from services.client.calls import read_state

    data = place.ask(lambda client: read_state(client, key))
    output.show(data, lambda console: views.fields(console, key, data))
