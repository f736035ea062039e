"""``service.toml`` of the account system, read once at start."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from services.local.files import ServiceFile, resolved
from services.local.urls import DatabaseName, database_url
from services.messages.config import Place, check_token, read_token, split_place

if TYPE_CHECKING:
    from services.accounts.program import AccountsSettings

DATABASE_FILE = "accounts.db"


class AccountsFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The account system's file. ``token`` names the file of what callers show; "" for none, on loopback alone."""

    program: Literal["accounts"] = "accounts"
    listen: Place
    token: str = ""
    database: DatabaseName = "embedded"
    data: str = "data"
    allow_faults: bool = False
    """Whether callers may have it misbehave: for tests and demonstrations alone."""
    hosts: list[str] = msgspec.field(default_factory=list)
    """Names beside loopback's that callers may use in Host and Origin."""


def accounts_settings(home: Path, file: AccountsFile) -> "AccountsSettings":
    """Return what the account system runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_address``, ``key_permissions``.
    """
    from services.accounts.program import AccountsSettings

    host, port = split_place(file.listen)
    token = read_token(home, "token", file.token)
    check_token(home, file.listen, token)
    return AccountsSettings(
        host=host,
        port=port,
        token=token,
        run=resolved(home, file.run),
        database=database_url(home, file.database, f"{file.data}/{DATABASE_FILE}"),
        is_fault_panel_open=file.allow_faults,
        host_names=frozenset(file.hosts),
        log_level=file.log_level,
    )
