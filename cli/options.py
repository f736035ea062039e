"""Options that many commands share: where the network is, which node to ask, JSON, who signs."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from cli.output import Output
from consensus.ledger.errors import LocalError

F = TypeVar("F", bound=Callable[..., Any])

HEIGHT_MAX = 2**63 - 1


class Number(click.IntRange):
    """A whole number within bounds."""

    name = "whole number"


class Height(click.ParamType[int]):
    """A block's height, from 0 on."""

    name = "height"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the height.

        Raises:
            LocalError: ``bad_height`` for a number that no block can have.
        """
        text = str(value)
        if not (text.isascii() and text.removeprefix("-").isdecimal()):
            self.fail(f"{text[:40]!r} is no height: a whole number from 0 on", param, ctx)
        if text.startswith("-") or len(text) > 19 or int(text) > HEIGHT_MAX:
            raise LocalError("bad_height", f"{text[:40]} is no height: blocks have the numbers from 0 on")
        return int(text)


def json_option(function: F) -> F:
    """Add ``--json`` and give the command an :class:`Output` as ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
    @click.option("--node", "nodes", metavar="NAME|URL", multiple=True, help="Ask this node alone; may be repeated.")
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
