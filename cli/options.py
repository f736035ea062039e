"""Options that many commands share: where the network is, which node to ask, JSON, who signs."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from cli.output import JSON_WANTED, Output

F = TypeVar("F", bound=Callable[..., Any])


def _note_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    ctx.meta[JSON_WANTED] = value
    return value


def json_option(function: F) -> F:
    """Add ``--json`` and give the command an :class:`Output` as ``output``."""

    @click.option("--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Print one JSON object.")
    @wraps(function)
    def command(*args: Any, as_json: bool, **options: Any) -> Any:
        return function(*args, output=Output(as_json=as_json), **options)

    return command  # type: ignore[return-value]


def network_option(function: F) -> F:
    """Add ``--network`` and ``--node`` and give the command a :class:`~cli.place.Place` as ``place``."""

    @click.option(
        "--network",
        "folder",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Network folder; else HANSA_NETWORK, else ./net.",
    )
    @click.option("--node", "nodes", metavar="NAME|URL", multiple=True, help="Ask this node (first); may be repeated.")
    @click.option(
        "--genesis",
        "genesis",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Genesis file, where there is no network folder.",
    )
    @wraps(function)
    def command(*args: Any, folder: Path | None, nodes: tuple[str, ...], genesis: Path | None, **options: Any) -> Any:
        from cli.place import Place

        return function(*args, place=Place(folder, nodes, genesis), **options)

    return command  # type: ignore[return-value]


def signer_options(function: F) -> F:
    """Add ``--as``, ``--keys`` and ``--passphrase-file`` as ``name``, ``keys`` and ``passphrase_file``."""
    options = [
        click.option("--as", "name", metavar="NAME", required=True, help="The identity that signs."),
        keys_option,
        passphrase_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


keys_option = click.option(
    "--keys",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keystore; else the network's identities.",
)
passphrase_option = click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Passphrase of the key; else HANSA_PASSPHRASE, the network's own file, or a prompt.",
)
