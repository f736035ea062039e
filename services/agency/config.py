"""``service.toml`` of the programs of agency sale, read once at start.

How such a file is read and written says :mod:`services.local.files`. What a program gets has its paths resolved and
its keys opened.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from services.client.keystore import Signer
from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at

if TYPE_CHECKING:
    from services.agency.authority import AuthoritySettings
    from services.agency.gateway import GatewaySettings
    from services.agency.issuer import IssuerSettings
    from services.agency.sales import SalesSettings

KEY_FILE = "vault.key"
"""Beside ``service.toml``: seals what lies in ``data``."""
SALES_SOCKET, ISSUER_SOCKET, GATEWAY_SOCKET = "sales.sock", "issuer.sock", "gateway.sock"
"""The programs' sockets in their ``run`` folders."""

Organisation = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=24 * 3_600 * 1_000)]


class _KeyedFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of those that open keys of the folder ``keys`` with the passphrase in a file.

    ``genesis`` names the chain's document, and ``nodes`` RPC roots.
    """

    genesis: str
    keys: str
    passphrase: str


class GatewayFile(_KeyedFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gateway's file. ``owner`` is the own node's ``run/owner.sock``, ``nodes`` are its RPC roots."""

    program: Literal["gateway"] = "gateway"
    organisation: Organisation
    owner: str
    nodes: Urls
    account: str
    business: str
    anchor_after_ms: Milliseconds = 60_000
    ask_after_ms: Milliseconds = 30_000
    data: str = "data"


class SalesFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sales end's file. ``gateway`` is the socket of its gateway; with ``window_ms`` 0 each file goes at once."""

    program: Literal["sales"] = "sales"
    organisation: Organisation
    gateway: str
    distributor: Annotated[str, msgspec.Meta(max_length=9)] = ""
    """The bank's code in fund files; "" takes what a file says of its creator."""
    window_ms: Milliseconds = 0
    data: str = "data"


class IssuerFile(_KeyedFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An issuer end's file. ``business`` names the key that signs its answers."""

    program: Literal["issuer"] = "issuer"
    organisation: Organisation
    gateway: str
    business: str
    data: str = "data"


class AuthorityFile(_KeyedFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The permission desk's file. ``refuse`` names who gets no channel; ``manual`` leaves it to people."""

    program: Literal["authority"] = "authority"
    nodes: Urls
    account: str
    refuse: list[Organisation] = msgspec.field(default_factory=list)
    manual: bool = False


def gateway_settings(home: Path, file: GatewayFile) -> "GatewaySettings":
    """Return what a gateway runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ….
    """
    from services.agency.gateway import GatewaySettings

    return GatewaySettings(
        name=home.name,
        organisation=file.organisation,
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        key_file=resolved(home, KEY_FILE),
        owner=resolved(home, file.owner),
        genesis=genesis_at(home, file.genesis),
        nodes=tuple(file.nodes),
        account=_signer(home, file, file.account),
        business=_signer(home, file, file.business),
        anchor_after_ms=file.anchor_after_ms,
        ask_after_ms=file.ask_after_ms,
        log_level=file.log_level,
    )


def sales_settings(home: Path, file: SalesFile) -> "SalesSettings":
    """Return what a sales end runs with."""
    from services.agency.sales import SalesSettings

    return SalesSettings(
        name=home.name,
        organisation=file.organisation,
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        key_file=resolved(home, KEY_FILE),
        gateway=resolved(home, file.gateway),
        distributor=file.distributor,
        window_ms=file.window_ms,
        log_level=file.log_level,
    )


def issuer_settings(home: Path, file: IssuerFile) -> "IssuerSettings":
    """Return what an issuer end runs with; errors as for :func:`gateway_settings`."""
    from services.agency.issuer import IssuerSettings

    return IssuerSettings(
        name=home.name,
        organisation=file.organisation,
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        key_file=resolved(home, KEY_FILE),
        gateway=resolved(home, file.gateway),
        chain_id=genesis_at(home, file.genesis).chain_id(),
        business=_signer(home, file, file.business),
        log_level=file.log_level,
    )


def authority_settings(home: Path, file: AuthorityFile) -> "AuthoritySettings":
    """Return what the permission desk runs with; errors as for :func:`gateway_settings`."""
    from services.agency.authority import AuthoritySettings

    return AuthoritySettings(
        run=resolved(home, file.run),
        genesis=genesis_at(home, file.genesis),
        nodes=tuple(file.nodes),
        account=_signer(home, file, file.account),
        refuse=frozenset(file.refuse),
        is_manual=file.manual,
        log_level=file.log_level,
    )


def _signer(home: Path, file: _KeyedFile, name: str) -> Signer:
    return signer_at(home, keys=file.keys, passphrase=file.passphrase, name=name)
