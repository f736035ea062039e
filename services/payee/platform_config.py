"""``service.toml`` of a platform program, read once at start."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at
from services.messages.config import Place, check_token, read_token, split_place
from services.payee.interfaces import EnvironmentText

if TYPE_CHECKING:
    from services.payee.platform import PlatformSettings

PLATFORM_SOCKET = "platform.sock"
"""In the folder ``run``: where the owner calls."""
KEY_FILE = "vault.key"
"""Beside ``service.toml``: what the vault is sealed with; who keeps a copy of the vault keeps it apart from this."""

AccountsUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://[^/\s]{1,300}/?\Z")]


class PlatformFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A platform's file.

    Args:
        server: its organisation's name, which stands with its records.
        listen: where its payers call; ``token`` the file of what they show, "" for none on loopback alone.
        accounts: root of the account system, ``accounts_token`` the file of what it asks for.
        genesis, nodes, keys: the chain's document, RPC roots and the keystore.
        account: the key there that sends its transactions, of role ``wallet``. ``passphrase`` names the file.
        data: the vault: the platform's key, its epochs' keys, drafts and payments.
        hosts: names beside loopback's that payers may use in Host and Origin.
    """

    program: Literal["platform"] = "platform"
    server: EnvironmentText
    listen: Place
    token: str = ""
    accounts: AccountsUrl
    accounts_token: str = ""
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str = ""
    account: str
    data: str = "data"
    hosts: list[str] = msgspec.field(default_factory=list)


def platform_settings(home: Path, file: PlatformFile) -> "PlatformSettings":
    """Return what the platform runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_address``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ….
    """
    from services.payee.platform import PlatformSettings

    host, port = split_place(file.listen)
    token = read_token(home, "token", file.token)
    check_token(home, file.listen, token)
    return PlatformSettings(
        server=file.server,
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        key_file=resolved(home, KEY_FILE),
        host=host,
        port=port,
        token=token,
        host_names=frozenset(file.hosts),
        accounts_url=file.accounts.rstrip("/"),
        accounts_token=read_token(home, "accounts_token", file.accounts_token),
        genesis=genesis_at(home, file.genesis),
        nodes=tuple(file.nodes),
        signer=signer_at(home, keys=file.keys, passphrase=file.passphrase, name=file.account),
        log_level=file.log_level,
    )
