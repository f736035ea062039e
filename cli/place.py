"""Where a command works: the network folder or the nodes' URLs, the genesis file, the identities."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from consensus.ledger.genesis import Genesis
    from node.network.homes import LocalNetwork
    from services.client.client import Client
    from services.client.keystore import Signer

T = TypeVar("T")

PASSPHRASE_VARIABLE = "HANSA_PASSPHRASE"


def network_folder(given: Path | None) -> Path:
    """Return ``--network DIR``, else ``HANSA_NETWORK``, else ``./net``."""
    return given or Path(os.environ.get("HANSA_NETWORK") or "net")


@dataclass(frozen=True)
class Place:
    """What ``--network``, ``--node`` and ``--genesis`` said."""

    given: Path | None
    nodes: tuple[str, ...]
    genesis_path: Path | None

    @cached_property
    def network(self) -> "LocalNetwork":
        """The local network.

        Raises:
            LocalError: ``no_network`` when the folder holds none.
        """
        from node.network.homes import load_network

        folder = network_folder(self.given)
        if not (folder / "network.toml").is_file():
            raise LocalError("no_network", f"{folder} holds no network: hansa network init {folder}, or give --network")
        return load_network(folder)

    @cached_property
    def genesis(self) -> "Genesis":
        """The pinned genesis document.

        Raises:
            LocalError: ``no_network`` or ``bad_genesis``.
        """
        if self.genesis_path is None:
            return self.network.genesis
        return read_genesis(self.genesis_path)

    @cached_property
    def urls(self) -> list[str]:
        """The nodes to ask, those named by ``--node`` first (and alone, where there is no network folder)."""
        asked = [name for name in self.nodes if "://" in name]
        names = [name for name in self.nodes if "://" not in name]
        if asked and not names:
            return asked
        known = {node.name: node.rpc_url for node in self.network.nodes}
        if unknown := [name for name in names if name not in known]:
            raise LocalError("unknown_node", f"{unknown[0]} is no node of this network; there are {', '.join(known)}")
        first = asked + [known[name] for name in names]
        return first + [url for url in known.values() if url not in first]

    def signer(self, name: str, keys: Path | None, passphrase_file: Path | None) -> "Signer":
        """Open the key of an identity.

        Raises:
            LocalError: ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ``bad_passphrase_file``.
        """
        from services.client.keystore import KeyStore, read_passphrase

        folder = keys or self.network.keystore
        own = folder / "passphrase"
        if passphrase_file is not None:
            passphrase = read_passphrase(passphrase_file)
        elif os.environ.get(PASSPHRASE_VARIABLE):
            passphrase = os.environ[PASSPHRASE_VARIABLE].encode()
        elif own.is_file():
            passphrase = read_passphrase(own)
        else:
            KeyStore(folder).entry(name)  # an unknown name is said before anything is asked
            passphrase = str(click.prompt(f"Passphrase of {name}", hide_input=True, err=True)).encode()
        return KeyStore(folder).load(name, passphrase)

    @asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        """Connect to the network for the time of the block."""
        from services.client.client import open_client

        async with open_client(self.genesis, self.urls) as client:
            yield client

    def ask(self, function: Callable[["Client"], Awaitable[T]]) -> T:
        """Run a function with a connected client and return its result."""
        import trio

        async def run() -> T:
            async with self.client() as client:
                return await function(client)

        return trio.run(run)


def read_genesis(path: Path) -> "Genesis":
    """Read a genesis file.

    Raises:
        LocalError: ``bad_genesis``.
    """
    from consensus.ledger.genesis import decode_genesis_untrusted

    try:
        return decode_genesis_untrusted(path.read_bytes())
    except OSError as error:
        raise LocalError("bad_genesis", f"{path}: {error.strerror}") from None


def new_passphrase(name: str, passphrase_file: Path | None) -> bytes:
    """Return the passphrase for a key that is being made: from the file, ``HANSA_PASSPHRASE``, or asked twice."""
    from services.client.keystore import read_passphrase

    if passphrase_file is not None:
        return read_passphrase(passphrase_file)
    if os.environ.get(PASSPHRASE_VARIABLE):
        return os.environ[PASSPHRASE_VARIABLE].encode()
    prompt = f"New passphrase for {name}"
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True)).encode()
