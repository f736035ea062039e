"""``service.toml`` of the event system and the payer, read once at start.

How such a file is read and written says :mod:`services.local.files`. What a program gets has its paths resolved, its
key opened and its tokens read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at
from services.local.urls import EMBEDDED, DatabaseName, database_url
from services.messages.config import Place, read_token

if TYPE_CHECKING:
    from services.settlement.events import EventsSettings
    from services.settlement.payer import PayerSettings

EVENTS_SOCKET = "events.sock"
"""The event system's socket in its ``run`` folder."""
DATABASE = "events.db"

AccountsUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/]{1,253}\Z")]


class EventsFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The event system's file.

    Args:
        genesis, nodes, keys: the chain's document, RPC roots and the keystore.
        agent: the key there that lifts liens and gives units back; ``passphrase`` names the file that opens it.
        center: the message centre, ``center_token`` the file of what is shown to it.
        database: ``embedded``, a file in ``data``; or a PostgreSQL server's URL.
        relay, scan: what looks after events; the scan alone ends all, the relay alone what does not get stuck.
        scan_interval_ms: pause between two scans.
        ratio: how many validators must say the same in a scan; 0: as many as a certificate needs.
    """

    program: Literal["events"] = "events"
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str
    agent: str
    center: Place
    center_token: str
    database: DatabaseName = EMBEDDED
    data: str = "data"
    relay: bool = True
    scan: bool = True
    scan_interval_ms: Annotated[int, msgspec.Meta(ge=10, le=3_600_000)] = 1_000
    ratio: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0


class PayerFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The payer's file: ``events`` is the event system's socket, ``accounts`` the account system's URL."""

    program: Literal["payer"] = "payer"
    events: str
    accounts: AccountsUrl
    accounts_token: str
    center: Place
    center_token: str


def events_settings(home: Path, file: EventsFile) -> "EventsSettings":
    """Return what the event system runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ….
    """
    from services.settlement.events import EventsSettings

    return EventsSettings(
        run=resolved(home, file.run),
        database=database_url(home, file.database, f"{file.data}/{DATABASE}"),
        genesis=genesis_at(home, file.genesis),
        nodes=tuple(file.nodes),
        agent=signer_at(home, keys=file.keys, passphrase=file.passphrase, name=file.agent),
        center=file.center,
        center_token=read_token(home, "center_token", file.center_token),
        ratio=file.ratio,
        is_relay_on=file.relay,
        is_scan_on=file.scan,
        scan_interval_ms=file.scan_interval_ms,
        log_level=file.log_level,
    )


def payer_settings(home: Path, file: PayerFile) -> "PayerSettings":
    """Return what the payer runs with; errors as for :func:`events_settings`."""
    from services.settlement.payer import PayerSettings

    return PayerSettings(
        run=resolved(home, file.run),
        events=resolved(home, file.events),
        accounts_url=file.accounts,
        accounts_token=read_token(home, "accounts_token", file.accounts_token),
        center=file.center,
        center_token=read_token(home, "center_token", file.center_token),
        log_level=file.log_level,
    )
