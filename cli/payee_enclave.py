"""``hansa payee enclave``: trusted environments, the programs that open records.

They are emulated, without hardware isolation; whatever shows one says so.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import rich_click as click

from cli.options import json_option
from cli.output import EXIT_REFUSED, Output, leave, panel
from cli.place import network_folder
from consensus.ledger.errors import HansaError, LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from services.payee.enclave_program import EnclaveSettings

Json = dict[str, Any]

HINT = "hansa network up --with payee starts the programs"
HOME_SUFFIX = "-enclave"
"""What the folder of an environment has behind its name."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ")

_home = click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder with service.toml; else services/NAME{HOME_SUFFIX} of the network.",
)
_network = click.option("--network", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Network folder.")


@click.group()
def enclave() -> None:
    """Environments: programs that alone open records for platforms that trust them.

    They are emulated, without hardware isolation: the root of a machine can read their keys.
    """


@enclave.command("serve")
@click.argument("name", metavar="[NAME]", required=False)
@_home
@_network
@click.option("--new-keys", is_flag=True, help="Put the keys aside and make new ones, to be registered anew.")
def serve(name: str | None, home: Path | None, folder: Path | None, new_keys: bool) -> None:
    """Run an environment in the foreground until SIGTERM or Ctrl-C.

    It is emulated, without hardware isolation. Started by root it becomes the user that service.toml names.

    Example: hansa payee enclave serve --home net/services/bank-a-enclave
    """
    from services.local.files import read_service
    from services.payee.enclave_config import EnclaveFile, enclave_settings, put_keys_aside

    if home is None:
        if name is None:
            raise click.UsageError("name an environment, or its folder with --home")
        home = _home_of(folder, name)
    file = read_service(home, EnclaveFile)
    settings = enclave_settings(home, file)
    if new_keys:
        put_keys_aside(home, file)
    _become(settings)


def _become(settings: "EnclaveSettings") -> NoReturn:
    """Become the program: a process that loads its code and no other, and knows nothing of our environment's values."""
    import msgspec

    import services

    root = str(Path(services.__path__[0]).resolve().parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    kept = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    arguments = [sys.executable, "-P", "-m", "services.payee.enclave_program", msgspec.json.encode(settings).decode()]
    sys.stdout.flush()
    os.execve(sys.executable, arguments, {**kept, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))})


@enclave.command("status")
@click.argument("names", metavar="[NAME]…", nargs=-1)
@_home
@_network
@json_option
def status(names: tuple[str, ...], home: Path | None, folder: Path | None, output: Output) -> None:
    """Ask environments of this machine what they are: measurement, user, isolation; all of the network by default.

    Exit code 1 where one does not answer.

    Example: hansa payee enclave status bank-a
    """
    from services.payee.measurement import measure

    homes = [home] if home is not None else [_home_of(folder, name) for name in names] or _homes(folder)
    found = [_look(one) for one in homes]
    installed = measure().hex()
    data = {"ok": all("error" not in one for one in found), "installed": f"0x{installed}", "environments": found}

    def draw(console: "Console") -> None:
        for one in found:
            panel(console, f"Environment {one['name']}", _fields(one, installed), good="error" not in one)

    output.show(data, draw)
    if not data["ok"]:
        leave(EXIT_REFUSED)


@enclave.command("measure")
@json_option
def measure_code(output: Output) -> None:
    """Print the measurement of the code installed here, as the allow-list on the chain has it.

    It says what code is meant to run. Environments are emulated, without hardware isolation: nothing but the program
    itself vouches for it.

    Example: hansa payee enclave measure
    """
    from services.payee.measurement import FILES, measure
    from services.payee.wording import EMULATED

    measured = f"0x{measure().hex()}"
    data = {"measurement": measured, "files": [*FILES], "isolation": EMULATED}
    shown = {"measurement": measured, "files": len(FILES), "isolation": EMULATED}
    output.show(data, lambda console: panel(console, "Code of an environment", shown))


def _home_of(folder: Path | None, name: str) -> Path:
    return network_folder(folder) / "services" / f"{name}{HOME_SUFFIX}"


def _homes(folder: Path | None) -> list[Path]:
    homes = sorted((network_folder(folder) / "services").glob(f"*{HOME_SUFFIX}/service.toml"))
    if not homes:
        raise LocalError("no_home", f"{network_folder(folder)} holds no environment: {HINT}")
    return [path.parent for path in homes]


def _look(home: Path) -> Json:
    """Return what an environment says of itself, and what the system says of its process."""
    import trio

    from services.local.files import genesis_at, read_service, resolved
    from services.payee.enclave_config import EnclaveFile
    from services.payee.enclave_link import ask_quote, look_at
    from services.payee.wording import EMULATED

    file: EnclaveFile = read_service(home, EnclaveFile)
    chain_id = genesis_at(home, file.genesis).chain_id()
    found: Json = {"name": file.name, "isolation": EMULATED}
    try:
        quoted = trio.run(ask_quote, resolved(home, file.socket), chain_id)
    except HansaError as error:
        return found | {"error": {"code": error.code, "message": error.message}}
    quote = quoted.quote
    return found | {
        "environment": quote.environment,
        "measurement": f"0x{quote.measurement.hex()}",
        "exchangeKey": f"0x{quote.exchange_key.hex()}",
        "signingKey": f"0x{quote.signing_key.hex()}",
        "process": quoted.process,
        "user": quoted.user,
        "walls": look_at(quoted.process, quoted.user),
    }


def _fields(found: Json, installed: str) -> dict[str, object]:
    """Return an environment in words."""
    if "error" in found:
        return {found["error"]["code"]: found["error"]["message"], "isolation": found["isolation"]}
    is_installed = found["measurement"] == f"0x{installed}"
    return {
        "measurement": found["measurement"],
        "code": "as installed here" if is_installed else "another than is installed here",
        "exchange key": found["exchangeKey"],
        "signing key": found["signingKey"],
        "process": found["process"],
        "user": found["user"],
        **found["walls"],
        "isolation": found["isolation"],
    }
