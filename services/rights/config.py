"""``service.toml`` of the business server and the rights server, read once at start.

How such a file is read and written says :mod:`services.local.files`; the message centre's is
:mod:`services.messages.config`. What a program gets has its paths resolved, its
keys opened and its tokens read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from consensus.ledger.ids import ADDRESS_BYTES, Address
from services.client.keystore import Signer
from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at, wrong
from services.messages.config import Place, Port, check_token, read_token, split_place

if TYPE_CHECKING:
    from services.rights.business import BusinessSettings
    from services.rights.server import ServerSettings

Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
AddressText = Annotated[str, msgspec.Meta(pattern=rf"^0x[0-9a-f]{{{2 * ADDRESS_BYTES}}}\Z")]


class BusinessFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class ServerFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


def business_settings(home: Path, file: BusinessFile) -> "BusinessSettings":
    """Return what the business server runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ….
    """
    from services.rights.business import BusinessSettings

    host, port = split_place(file.listen)
    token = read_token(home, "token", file.token)
    check_token(home, file.listen, token)
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


def _signer(home: Path, file: BusinessFile | ServerFile, name: str) -> Signer:
    return signer_at(home, keys=file.keys, passphrase=file.passphrase, name=name)
