"""``service.toml`` of the message centre, the business server and the rights server, read once at start.

How such a file is read and written says :mod:`services.local.files`. What a program gets has its paths resolved, its
keys opened and its tokens read.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ADDRESS_BYTES, Address
from services.client.keystore import Signer
from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at, wrong

if TYPE_CHECKING:
    from services.messages.program import CenterSettings
    from services.rights.business import BusinessSettings
    from services.rights.server import ServerSettings

TOKEN_BYTES_MAX = 1_024
RATE_MAX_PER_S = 1_000_000
PROGRAMS = {"center": "message centre", "business": "business server", "server": "rights server"}
"""Whose file it is, by its ``program``, in words."""
LOOPBACK = ("127.", "localhost", "::1")

Place = Annotated[str, msgspec.Meta(pattern=r"^(unix:.{1,100}|(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]{1,253}):[0-9]{1,5})\Z")]
"""HOST:PORT, or unix:PATH."""
StoreName = Annotated[str, msgspec.Meta(pattern=r"^(embedded|(rediss?://|unix:)\S{1,500})\Z")]
Rate = Annotated[float, msgspec.Meta(gt=0, le=RATE_MAX_PER_S)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
AddressText = Annotated[str, msgspec.Meta(pattern=rf"^0x[0-9a-f]{{{2 * ADDRESS_BYTES}}}\Z")]


class _File(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the three."""

    WORDS: ClassVar = PROGRAMS


class CenterFile(_File, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The message centre's file. ``token`` names the file of what every peer shows; "" for none, on loopback alone."""

    program: Literal["center"] = "center"
    listen: Place
    token: str
    rate_per_s: Rate
    strict: bool = False
    store: StoreName = "embedded"
    data: str = "data"
    health_port: Port = 0
    """Where ``/healthz`` and ``/metrics`` are answered on this machine; 0: nowhere."""
    queue: dict[str, Any] = msgspec.field(default_factory=dict)
    """Bounds of the queue that are not their defaults, by their names."""


class BusinessFile(_File, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    hosts: list[str] = msgspec.field(default_factory=list)
    """Names beside loopback's that callers may use in Host and Origin."""


class ShareFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of an order's amount a campaign gives, as the rights server computes it."""

    basis_points: int
    cap: int


class ServerFile(_File, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    health_port: Port = 0
    """As in the message centre's file."""
    shares: dict[str, ShareFile] = msgspec.field(default_factory=dict)
    prices: dict[str, int] = msgspec.field(default_factory=dict)


def center_settings(home: Path, file: CenterFile) -> "CenterSettings":
    """Return what the message centre runs with.

    Raises:
        LocalError: ``bad_config``, ``key_permissions``.
    """
    from services.messages.program import CenterSettings
    from services.messages.queue import QueueSettings

    known = {field.name for field in fields(QueueSettings)} - {"rate_per_s", "is_strict"}  # these stand above
    if unknown := sorted(set(file.queue) - known):
        raise wrong(home, f"queue.{unknown[0]}", f"is none of: {', '.join(sorted(known))}")
    for name, value in file.queue.items():
        if type(value) is not int:
            raise wrong(home, f"queue.{name}", f"{value!r} is no whole number")
    token = read_token(home, "token", file.token)
    _check_token(home, file.listen, token)
    return CenterSettings(
        listen=file.listen,
        token=token,
        store=file.store,
        data=resolved(home, file.data),
        run=resolved(home, file.run),
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
        raise wrong(home, "direct", f"{file.direct} is not the key of {file.server}")
    return BusinessSettings(
        host=host,
        port=port,
        token=token,
        run=resolved(home, file.run),
        genesis=genesis_at(home, file.genesis),
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
        run=resolved(home, file.run),
        genesis=genesis_at(home, file.genesis),
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
    path = resolved(home, name)
    try:
        if path.stat().st_mode & 0o077:
            raise LocalError("key_permissions", f"others may read {path}: chmod 600 it")
        token = path.read_bytes()[: TOKEN_BYTES_MAX + 1].strip().decode()
    except OSError as error:
        raise wrong(home, field, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise wrong(home, field, f"{path} holds no text") from None
    if not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise wrong(home, field, f"{path} must hold 1 to {TOKEN_BYTES_MAX} bytes")
    return token


def _check_token(home: Path, listen: str, token: str) -> None:
    is_local = listen.startswith("unix:") or split_place(listen)[0].startswith(LOOPBACK)
    if not is_local and not token:
        raise wrong(home, "token", f"is needed where others than this machine reach {listen}")


def _signer(home: Path, file: BusinessFile | ServerFile, name: str) -> Signer:
    return signer_at(home, keys=file.keys, passphrase=file.passphrase, name=name)
