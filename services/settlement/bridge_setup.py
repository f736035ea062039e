"""Prepares the settlement bridge of a network where agency sale runs too: its folder, its key, who buys and pays."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from os import path
from pathlib import Path

from services.local.files import SERVICE_FILE, existing, replace_file, write_service
from services.settlement.bridge_config import KEY_BYTES, KEY_FILE, BankFile, BridgeFile
from services.settlement.config import EVENTS_SOCKET, PayerFile

BRIDGE, EVENTS, PAYER = "settle-bridge", "settle-events", "settle-payer"
"""Folders of the programs."""


@dataclass(frozen=True, slots=True)
class BridgePlan:
    """What is set up, and where.

    Args:
        services: folder of the programs' folders; settlement is set up there already.
        keystore, passphrase_file, genesis_file, nodes: as for settlement.
        issuer: the organisation whose units are sold: the name of its account, key and account of money.
        issuer_socket: of its issuer end.
        banks: accounts on the chain of the banks that sell, by organisation; each pays from the account of its name.
    """

    services: Path
    keystore: Path
    passphrase_file: Path
    genesis_file: Path
    nodes: tuple[str, ...]
    issuer: str
    issuer_socket: Path
    banks: Mapping[str, bytes]


def set_up_bridge(plan: BridgePlan) -> list[str]:
    """Make what is missing, and return what was made, in words; what an operator wrote stays.

    Raises:
        LocalError: ``bad_config``.
    """
    home = plan.services / BRIDGE
    done: list[str] = []
    payer = existing(plan.services / PAYER, PayerFile)
    if payer is not None and existing(home, BridgeFile) is None:
        token = path.relpath(plan.services / PAYER / payer.accounts_token, home) if payer.accounts_token else ""
        file = BridgeFile(
            issuer=path.relpath(plan.issuer_socket, home),
            events=f"../{EVENTS}/run/{EVENTS_SOCKET}",
            accounts=payer.accounts,
            accounts_token=token,
            genesis=path.relpath(plan.genesis_file, home),
            nodes=list(plan.nodes),
            keys=path.relpath(plan.keystore, home),
            passphrase=path.relpath(plan.passphrase_file, home),
            account=plan.issuer,
            payee=plan.issuer,
            banks={name: BankFile(f"0x{account.hex()}", name) for name, account in sorted(plan.banks.items())},
        )
        write_service(home, file)
        done.append(f"{BRIDGE}/{SERVICE_FILE}")
    if home.is_dir() and not (home / KEY_FILE).exists():
        replace_file(home / KEY_FILE, secrets.token_hex(KEY_BYTES).encode() + b"\n")
        done.append(f"{BRIDGE}/{KEY_FILE}")
    return done
