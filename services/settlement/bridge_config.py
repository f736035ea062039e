"""``service.toml`` of the settlement bridge, read once at start; see :mod:`services.settlement.config`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from consensus.ledger.ids import ADDRESS_BYTES
from services.accounts.port import AccountId
from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at, wrong
from services.messages.config import read_token
from services.settlement.config import AccountsUrl

if TYPE_CHECKING:
    from services.settlement.bridge import BridgeSettings

BRIDGE_SOCKET = "bridge.sock"
KEY_FILE = "bridge.key"
"""Beside ``service.toml``: what the ids of events are made with; kept with the file, also when ``data`` is lost."""
KEY_BYTES = 32

AddressText = Annotated[str, msgspec.Meta(pattern=rf"^0x[0-9a-f]{{{2 * ADDRESS_BYTES}}}\Z")]
UnitPrefix = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,47}\Z")]


class BankFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bank whose customers buy: its account on the chain, the nominee, and the account of money that pays."""

    account: AddressText
    payer: AccountId


class BridgeFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bridge's file.

    Args:
        issuer: socket of the issuer end; ``events`` of the event system.
        accounts: root of the account system, ``accounts_token`` the file of what it asks for.
        genesis, nodes, keys: the chain's document, RPC roots and the keystore.
        account: the issuer's key there; its account has the role ``unit-issuer``. ``passphrase`` names the file.
        payee: the issuer's account of money.
        prefix: what the unit of a product is called before the product's code.
        from_beginning: at its very first start it settles all purchases that the issuer end has, not new ones alone.
        banks: who may buy, by organisation.
        payers: accounts of money of single holders by their transaction account; others' bank pays.
    """

    program: Literal["bridge"] = "bridge"
    issuer: str
    events: str
    accounts: AccountsUrl
    accounts_token: str
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str
    account: str
    payee: AccountId
    prefix: UnitPrefix = "FUND-"
    from_beginning: bool = False
    data: str = "data"
    banks: dict[str, BankFile] = msgspec.field(default_factory=dict)
    payers: dict[str, AccountId] = msgspec.field(default_factory=dict)


def bridge_settings(home: Path, file: BridgeFile) -> "BridgeSettings":
    """Return what the bridge runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ….
    """
    from services.settlement.bridge import Bank, BridgeSettings

    return BridgeSettings(
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        key=_read_key(home),
        issuer=resolved(home, file.issuer),
        events=resolved(home, file.events),
        accounts_url=file.accounts,
        accounts_token=read_token(home, "accounts_token", file.accounts_token),
        genesis=genesis_at(home, file.genesis),
        nodes=tuple(file.nodes),
        signer=signer_at(home, keys=file.keys, passphrase=file.passphrase, name=file.account),
        payee=file.payee,
        prefix=file.prefix,
        is_from_beginning=file.from_beginning,
        banks={name: Bank(bytes.fromhex(bank.account[2:]), bank.payer) for name, bank in file.banks.items()},
        payers=dict(file.payers),
        log_level=file.log_level,
    )


def _read_key(home: Path) -> bytes:
    text = read_token(home, KEY_FILE, KEY_FILE)
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise wrong(home, KEY_FILE, f"holds no key of {KEY_BYTES} bytes in hex")
    return key
