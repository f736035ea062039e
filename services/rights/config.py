"""``service.toml`` of the message centre, the business server and the rights server, read once at start.

Relative paths are taken from the folder that holds the file. Unknown fields are refused, so that a misspelt name does
not silently leave a default in force. What a program gets has its paths resolved, its keys opened and its tokens read:
secrets stand in files of their own; what is written here has mode 0600 all the same.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Genesis, decode_genesis_untrusted
from consensus.ledger.ids import ADDRESS_BYTES, Address
from services.client.keystore import KeyStore, Signer, read_passphrase

if TYPE_CHECKING:
    from services.messages.program import CenterSettings
    from services.rights.business import BusinessSettings
    from services.rights.server import ServerSettings

SERVICE_FILE = "service.toml"
SERVICE_BYTES_MAX = 256 * 1024
TOKEN_BYTES_MAX = 1_024
PASSPHRASE_VARIABLE = "HANSA_PASSPHRASE"
RATE_MAX_PER_S = 1_000_000
PROGRAMS = {"center": "message centre", "business": "business server", "server": "rights server"}
"""Whose file it is, by its ``program``, in words."""
LOOPBACK = ("127.", "localhost", "::1")

Level = Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")]
Place = Annotated[str, msgspec.Meta(pattern=r"^(unix:.{1,100}|(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]{1,253}):[0-9]{1,5})\Z")]
"""HOST:PORT, or unix:PATH."""
StoreName = Annotated[str, msgspec.Meta(pattern=r"^(embedded|(rediss?://|unix:)\S{1,500})\Z")]
Rate = Annotated[float, msgspec.Meta(gt=0, le=RATE_MAX_PER_S)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
AddressText = Annotated[str, msgspec.Meta(pattern=rf"^0x[0-9a-f]{{{2 * ADDRESS_BYTES}}}\Z")]
Urls = Annotated[list[str], msgspec.Meta(min_length=1, max_length=100)]


class CenterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The message centre's file. ``token`` names the file of what every peer shows; "" for none, on loopback alone."""

    program: Literal["center"] = "center"
    listen: Place
    token: str
    rate_per_s: Rate
    strict: bool = False
    store: StoreName = "embedded"
    data: str = "data"
    run: str = "run"
    log_level: Level = "info"
    health_port: Port = 0
    """Where ``/healthz`` and ``/metrics`` are answered on this machine; 0: nowhere."""
    queue: dict[str, Any] = {}
    """Bounds of the queue that are not their defaults, by their names."""


class BusinessFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The business server's file. ``event_key`` and ``direct`` name keys in the folder ``keys``."""

    program: Literal["business"] = "business"
    listen: Place
    center: Place
    center_token: str
    server: AddressText
    event_key: str
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str
    token: str = ""
    direct: str = ""
    """Name of the server's own key where it submits by itself, without a message centre."""
    direct_strict: bool = False
    hosts: list[str] = []
    """Names beside loopback's that callers may use in Host and Origin."""
    run: str = "run"
    log_level: Level = "info"


class ShareFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of an order's amount a campaign gives, as the rights server computes it."""

    basis_points: int
    cap: int


class ServerFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rights server's file. ``account`` names a key in the folder ``keys``."""

    program: Literal["server"] = "server"
    name: str
    account: str
    center: Place
    center_token: str
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str
    pack_max: Count = 100
    linger_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 20
    lanes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    window: Annotated[int, msgspec.Meta(ge=1, le=1_024)] = 512
    run: str = "run"
    log_level: Level = "info"
    health_port: Port = 0
    """As in the message centre's file."""
    shares: dict[str, ShareFile] = {}
    prices: dict[str, int] = {}


ServiceFile: TypeAlias = CenterFile | BusinessFile | ServerFile
F = TypeVar("F", bound=ServiceFile)


def read_service(home: Path, kind: type[F]) -> F:
    """Read the ``service.toml`` of a program's folder.

    Raises:
        LocalError: ``no_home`` when there is none, ``bad_config`` naming the file and the field.
    """
    path = home / SERVICE_FILE
    try:
        with path.open("rb") as source:
            content = source.read(SERVICE_BYTES_MAX + 1)
        if len(content) > SERVICE_BYTES_MAX:
            raise LocalError("bad_config", f"{path}: has more than {SERVICE_BYTES_MAX} bytes")
        values = tomllib.loads(content.decode())
        own = next(field.default for field in msgspec.structs.fields(kind) if field.name == "program")
        written = values.get("program")
        if written != own and isinstance(written, str) and written in PROGRAMS:
            raise LocalError(
                "bad_config", f"{home} is the folder of the {PROGRAMS[written]}, not of the {PROGRAMS[own]}"
            )
        return msgspec.convert(values, kind)
    except FileNotFoundError:
        raise LocalError("no_home", f"{home} is no program's folder: it holds no {SERVICE_FILE}") from None
    except OSError as error:
        raise LocalError("bad_config", f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise LocalError("bad_config", f"{path}: {error}") from None


def changed(home: Path, file: F, changes: Mapping[str, object]) -> F:
    """Return a program's file with other values, checked as if they had been read.

    Raises:
        LocalError: ``bad_config`` naming the field.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(file) | changes, type(file))
    except msgspec.ValidationError as error:
        raise LocalError("bad_config", f"{home / SERVICE_FILE} is not changed: {error}") from None


def service_text(file: ServiceFile) -> str:
    """Return the text of a ``service.toml``; tables without entries are left out."""
    lines: list[str] = []
    tables: list[str] = []
    for name, value in msgspec.to_builtins(file).items():
        if isinstance(value, dict):
            tables += _table(name, value)
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def write_service(home: Path, file: ServiceFile) -> None:
    """Write a program's ``service.toml`` in one step; its folder and ``run`` are made when missing."""
    for part in (home, home / file.run):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(home / SERVICE_FILE, service_text(file).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, mode 0600, so that a crash leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)
    temporary.replace(path)


def center_settings(home: Path, file: CenterFile) -> "CenterSettings":
    """Return what the message centre runs with.

    Raises:
        LocalError: ``bad_config``, ``key_permissions``.
    """
    from services.messages.program import CenterSettings
    from services.messages.queue import QueueSettings

    known = {field.name for field in fields(QueueSettings)} - {"rate_per_s", "is_strict"}  # these stand above
    if unknown := sorted(set(file.queue) - known):
        raise _wrong(home, f"queue.{unknown[0]}", f"is none of: {', '.join(sorted(known))}")
    for name, value in file.queue.items():
        if type(value) is not int:
            raise _wrong(home, f"queue.{name}", f"{value!r} is no whole number")
    token = read_token(home, "token", file.token)
    _check_token(home, file.listen, token)
    return CenterSettings(
        listen=file.listen,
        token=token,
        store=file.store,
        data=_resolved(home, file.data),
        run=_resolved(home, file.run),
        rate_per_s=file.rate_per_s,
        is_strict=file.strict,
        log_level=file.log_level,
        queue=QueueSettings(**file.queue),
        health_port=file.health_port,
    )


def business_settings(home: Path, file: BusinessFile) -> "BusinessSettings":
    """Return what the business server runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ….
    """
    from services.rights.business import BusinessSettings

    host, port = split_place(file.listen)
    token = read_token(home, "token", file.token)
    _check_token(home, file.listen, token)
    server = Address(bytes.fromhex(file.server[2:]))
    direct = _signer(home, file, file.direct) if file.direct else None
    if direct is not None and direct.address != server:
        raise _wrong(home, "direct", f"{file.direct} is not the key of {file.server}")
    return BusinessSettings(
        host=host,
        port=port,
        token=token,
        run=_resolved(home, file.run),
        genesis=_genesis(home, file.genesis),
        nodes=tuple(file.nodes),
        server=server,
        event_key=_signer(home, file, file.event_key).key,
        center=file.center,
        center_token=read_token(home, "center_token", file.center_token),
        direct=direct,
        is_direct_strict=file.direct_strict,
        host_names=frozenset(file.hosts),
        log_level=file.log_level,
    )


def server_settings(home: Path, file: ServerFile) -> "ServerSettings":
    """Return what the rights server runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``bad_shares``, ``unknown_key``, ``wrong_passphrase``, ….
    """
    from services.rights.server import ServerSettings
    from services.rights.shares import ShareRule, ShareTable

    rules = {campaign: ShareRule(rule.basis_points, rule.cap) for campaign, rule in file.shares.items()}
    return ServerSettings(
        name=file.name,
        run=_resolved(home, file.run),
        genesis=_genesis(home, file.genesis),
        nodes=tuple(file.nodes),
        account=_signer(home, file, file.account),
        center=file.center,
        center_token=read_token(home, "center_token", file.center_token),
        pack_max=file.pack_max,
        linger_ms=file.linger_ms,
        lanes=file.lanes,
        window=file.window,
        shares=ShareTable(rules, file.prices),
        log_level=file.log_level,
        health_port=file.health_port,
    )


def split_place(place: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT.

    Raises:
        LocalError: ``bad_address``.
    """
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535 or place.startswith("unix:"):
        raise LocalError("bad_address", f"{place!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def read_token(home: Path, field: str, name: str) -> str:
    """Return the token in a file that a field names, "" where it names none.

    Raises:
        LocalError: ``bad_config``, or ``key_permissions`` when others may read the file.
    """
    if not name:
        return ""
    path = _resolved(home, name)
    try:
        if path.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {path}: chmod 600 it")
        token = path.read_bytes()[: TOKEN_BYTES_MAX + 1].strip().decode()
    except OSError as error:
        raise _wrong(home, field, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _wrong(home, field, f"{path} holds no text") from None
    if not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise _wrong(home, field, f"{path} must hold 1 to {TOKEN_BYTES_MAX} bytes")
    return token


def _check_token(home: Path, listen: str, token: str) -> None:
    is_local = listen.startswith("unix:") or split_place(listen)[0].startswith(LOOPBACK)
    if not is_local and not token:
        raise _wrong(home, "token", f"is needed where others than this machine reach {listen}")


def _signer(home: Path, file: BusinessFile | ServerFile, name: str) -> Signer:
    if file.passphrase:
        passphrase = read_passphrase(_resolved(home, file.passphrase))
    elif PASSPHRASE_VARIABLE in os.environ:
        passphrase = os.environ[PASSPHRASE_VARIABLE].encode()
    else:
        raise _wrong(home, "passphrase", f"names no file, and {PASSPHRASE_VARIABLE} is not set")
    return KeyStore(_resolved(home, file.keys)).load(name, passphrase)


def _genesis(home: Path, name: str) -> Genesis:
    path = _resolved(home, name)
    try:
        return decode_genesis_untrusted(path.read_bytes())
    except OSError as error:
        raise _wrong(home, "genesis", f"{path}: {error.strerror}") from None


def _resolved(home: Path, name: str) -> Path:
    return (home / name).resolve()


def _wrong(home: Path, field: str, message: str) -> LocalError:
    return LocalError("bad_config", f"{home / SERVICE_FILE}: {field}: {message}")


def _table(name: str, entries: Mapping[str, object]) -> list[str]:
    """Return the lines of a table; entries that are tables themselves stand below it."""
    plain = {key: value for key, value in entries.items() if not isinstance(value, dict)}
    lines = ["", f"[{name}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in plain.items())] if plain else []
    for key, value in entries.items():
        if isinstance(value, dict):
            lines += _table(f"{name}.{_toml(key)}", value)
    return lines


def _toml(value: object) -> str:
    """Return a text, number, truth value or list as TOML; JSON writes these the same."""
    return json.dumps(value, ensure_ascii=False)
