"""Where a command works: the network folder or the nodes' URLs, the genesis file, the identities."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
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
PASSPHRASE_CHARACTERS_MIN = 8
"""How short a passphrase of a new key may be."""


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
        """The nodes to ask: those of ``--node`` and no others, else all of the network."""
        if not self.nodes:
            return list(self.network.rpc_urls)
        return [name if "://" in name else self.network.node(name).rpc_url for name in self.nodes]

    @property
    def named_urls(self) -> dict[str, str]:
        """The nodes to ask by name, or by URL where there is no network folder."""
        known = {node.rpc_url: node.name for node in self.network.nodes} if self.genesis_path is None else {}
        return {known.get(url, url): url for url in self.urls}

    def signer(self, name: str, keys: Path | None, passphrase_file: Path | None) -> "Signer":
        """Open the key of an identity.

        Raises:
            LocalError: ``unknown_key``, ``wrong_passphrase``, ``key_permissions``, ``bad_passphrase_file``.
        """
        from services.client.keystore import KeyStore

        folder = keys or self.network.keystore
        store = KeyStore(folder)
        try:
            path = store.entry(name).path  # an unknown name is said before anything is asked
        except LocalError as error:
            if error.code != "unknown_key" or not folder.is_dir():
                raise
            known = ", ".join(entry.name for entry in store.entries()) or "none"
            raise LocalError(error.code, f"{error.message}; the identities there: {known}") from None
        passphrase, source = find_passphrase(name, folder / "passphrase", passphrase_file)
        try:
            return store.load(name, passphrase)
        except LocalError as error:
            if error.code != "wrong_passphrase":
                raise
            raise LocalError(error.code, f"{path} does not open with the passphrase from {source}") from None

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

        with self.explaining():
            return trio.run(run)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Say of nodes that do not answer which they are, and what to do."""
        from services.client.errors import Unreachable

        try:
            yield
        except Unreachable as error:
            if error.code not in ("node_unreachable", "node_timeout"):
                raise
            is_local = any("://" not in name for name in self.nodes) or not self.nodes
            folder = network_folder(self.given)
            if error.code == "node_timeout":
                hint = f"; hansa network status {folder} shows which nodes run" if is_local else ""
                raise Unreachable(f"{error.message}{hint}", code=error.code) from None
            if self.nodes:
                who = f"{' and '.join(self.nodes)} cannot be reached"
                hint = f": hansa network status {folder} shows which nodes run" if is_local else ""
                raise Unreachable(f"{who}{hint}") from None
            raise Unreachable(f"no node answers; is the network up? hansa network up {folder}") from None


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
    except LocalError as error:
        raise LocalError(error.code, f"{path}: {error.message}") from None


def find_passphrase(name: str, own: Path, passphrase_file: Path | None) -> tuple[bytes, str]:
    """Return the passphrase of a key that exists, and where it is from.

    From the file, else ``HANSA_PASSPHRASE``, else the folder's ``own`` file, else asked.

    Raises:
        LocalError: ``bad_passphrase_file``, ``no_passphrase``.
    """
    from services.client.keystore import read_passphrase

    if passphrase_file is not None:
        return read_passphrase(passphrase_file), str(passphrase_file)
    if os.environ.get(PASSPHRASE_VARIABLE):
        hint = f" (unset it, and {own} is taken)" if own.is_file() else ""
        return os.environ[PASSPHRASE_VARIABLE].encode(), f"{PASSPHRASE_VARIABLE}{hint}"
    if own.is_file():
        return read_passphrase(own), str(own)
    return _ask_passphrase(f"Passphrase of {name}").encode(), "the prompt"


def new_passphrase(name: str, passphrase_file: Path | None, network_file: Path) -> bytes:
    """Return the passphrase for a key that is being made.

    From the file, else ``HANSA_PASSPHRASE``, else the network's own file, else asked twice.

    Raises:
        LocalError: ``weak_passphrase``, ``bad_passphrase_file``, ``no_passphrase``.
    """
    from services.client.keystore import read_passphrase

    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    elif PASSPHRASE_VARIABLE in os.environ:
        passphrase = os.environ[PASSPHRASE_VARIABLE].encode()
    elif network_file.is_file():
        passphrase = read_passphrase(network_file)
    else:
        passphrase = _ask_passphrase(f"New passphrase for {name}", is_new=True).encode()
    if len(passphrase.decode("utf-8", "replace")) < PASSPHRASE_CHARACTERS_MIN:
        message = f"a new key needs a passphrase of {PASSPHRASE_CHARACTERS_MIN} characters or more"
        raise LocalError("weak_passphrase", message)
    return passphrase


def _ask_passphrase(prompt: str, *, is_new: bool = False) -> str:
    """Ask for a passphrase where somebody can answer.

    Raises:
        LocalError: ``no_passphrase`` without a terminal.
    """
    if not _has_terminal():
        message = f"no terminal to ask for one: give --passphrase-file or {PASSPHRASE_VARIABLE}"
        raise LocalError("no_passphrase", message)
    return str(click.prompt(prompt, hide_input=True, confirmation_prompt=is_new, err=True))


def _has_terminal() -> bool:
    """Tell whether there is a terminal to read a passphrase from, whatever standard input is."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True
