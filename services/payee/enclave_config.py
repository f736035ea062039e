"""``service.toml`` of a trusted environment, and the settings that its process begins with.

The process that reads the file is not the one that answers: what is read here is handed over as one argument, so that
little code runs where records are opened.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from services.local.files import ServiceFile, genesis_at, resolved, wrong
from services.payee.enclave_keys import KEYS_FILE, put_aside, sealed_by
from services.payee.enclave_program import EnclaveSettings
from services.payee.enclave_walls import find_user

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,31}\Z"
MACHINE_FILE = "machine.key"


class EnclaveFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An environment's file."""

    program: Literal["environment"] = "environment"
    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    """As it is registered on the chain."""
    genesis: str
    """The chain's genesis document, which it trusts."""
    user: str = ""
    """Whom it becomes where root starts it: a name or a number; "" for nobody else."""
    group: str = ""
    """Number of the group that may connect beside its starter, "" for none: the node's, where that is another user."""
    socket: str = "run/environment.sock"
    data: str = "data"
    machine: str = f"data/{MACHINE_FILE}"
    """The secret that stands for the processor's; made when missing."""


def enclave_settings(home: Path, file: EnclaveFile) -> EnclaveSettings:
    """Return what the environment runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_genesis``, ``unknown_user``.
    """
    genesis_at(home, file.genesis)
    if file.group and not (file.group.isdecimal() and int(file.group) < 2**31):
        raise wrong(home, "group", f"{file.group!r} is no number")
    user = find_user(file.user) if file.user else None
    return EnclaveSettings(
        name=file.name,
        genesis=str(resolved(home, file.genesis)),
        data=str(resolved(home, file.data)),
        machine=str(resolved(home, file.machine)),
        run=str(resolved(home, file.run)),
        socket=str(resolved(home, file.socket)),
        uid=user.uid if user else None,
        gid=user.gid if user else None,
        group=int(file.group) if file.group else None,
        log_level=file.log_level,
    )


def keys_measurement(home: Path, file: EnclaveFile) -> bytes | None:
    """Return the measurement of the code that has sealed the environment's keys; None where there are none.

    Raises:
        StorageError: ``corrupted``.
    """
    keys = resolved(home, file.data) / KEYS_FILE
    return sealed_by(keys) if keys.exists() else None


def put_keys_aside(home: Path, file: EnclaveFile) -> bool:
    """Put sealed keys aside, so that the environment begins anew; tell whether there were any. Nothing is deleted.

    It needs new registration, and platforms have to trust it anew: what it was stays registered until withdrawn.

    Raises:
        LocalError: ``already_running``; ``bad_config``.
    """
    return put_aside(resolved(home, file.data))
