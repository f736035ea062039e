"""``hansa node``: one node from its home folder."""

from pathlib import Path

import rich_click as click

from cli.output import leave


@click.group()
def node() -> None:
    """One node from its home folder, as on a server."""


@node.command("run")
@click.option(
    "--home",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Home folder of the node.",
)
def run(home: Path) -> None:
    """Run a node in the foreground until SIGTERM or Ctrl-C.

    Example: hansa node run --home net/nodes/bank-a
    """
    from node.program import run as run_node

    leave(run_node(home))
