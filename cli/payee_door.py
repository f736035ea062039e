"""The way of commands to a platform's own program: its folder, its socket."""

from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import network_option
from cli.place import Place, network_folder
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from services.local.link import LocalLink

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])

HINT = "hansa network up --with payee starts the programs"
CALL_MS_MAX = 60_000


class Door:
    """The platform a command works with: its folder, and its name."""

    def __init__(self, home: Path) -> None:
        """Read its service.toml."""
        from services.local.files import read_service
        from services.payee.platform_config import PLATFORM_SOCKET, PlatformFile

        file = read_service(home, PlatformFile)
        self.server = file.server
        self.path = home / file.run / PLATFORM_SOCKET

    def ask(self, use: "Callable[[LocalLink], Awaitable[T]]") -> T:
        """Run a function with a link to the platform, and return its result.

        Raises:
            Unreachable: ``program_unreachable``, saying how to start it.
        """
        import trio

        from services.client.errors import Unreachable
        from services.local.link import LocalLink

        async def run() -> T:
            async with LocalLink(self.path) as link:
                return await use(link)

        try:
            return trio.run(run)
        except Unreachable as error:
            if error.code != "program_unreachable":
                raise
            raise Unreachable(f"{self.server} does not answer on {self.path}: {HINT}", code=error.code) from None

    def call(self, method: str, params: object, kind: type[T], *, timeout_ms: int = CALL_MS_MAX) -> T:
        """Call one method."""
        return self.ask(lambda link: link.call(method, params, kind, timeout_ms=timeout_ms))


def door_options(function: C) -> C:
    """Add ``--platform``, ``--home`` and those of the network; give the command a :class:`Door` as ``door``."""

    @click.option("--platform", "server", metavar="PLATFORM", help="Its folder in services of the network.")
    @home_option
    @network_option
    @wraps(function)
    def command(*args: Any, server: str | None, home: Path | None, place: Place, **options: Any) -> Any:
        return function(*args, door=Door(home_of(place.given, server, home)), place=place, **options)

    return command  # type: ignore[return-value]


home_option = click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with service.toml; else services/PLATFORM of the network.",
)


def home_of(folder: Path | None, server: str | None, home: Path | None) -> Path:
    if home is not None:
        return home
    if server is None:
        raise click.UsageError("name a platform with --platform, or its folder with --home")
    services = network_folder(folder) / "services"
    if not server.isprintable() or "/" in server or not (services / server / "service.toml").is_file():
        raise LocalError("unknown_platform", f"{services} has no platform {server[:40]!r}: {HINT}, --home names one")
    return services / server
