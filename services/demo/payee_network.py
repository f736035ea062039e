"""The network and the programs under the payee demo and benchmark: a port that ``cli`` fills with local processes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey

ACCOUNTS = "payee-accounts"
P, Q = "wallet-p", "wallet-q"
"""The platforms: programs, organisations and accounts of these names."""
BANK, ISSUER, PERMISSION, OTHER = "bank-a", "issuer-c", "permission", "issuer-f"
"""The nodes; the first two have an environment beside them."""
BANK_ENVIRONMENT, ISSUER_ENVIRONMENT = "bank-a-enclave", "issuer-c-enclave"
"""The programs that are these environments."""
CARRIER = "merchant-m"
"""The account that brings what merchants sign."""


@dataclass(frozen=True, slots=True)
class Payers:
    """Where a platform's payers call, and what they show."""

    url: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the programs are reached.

    Args:
        platforms: each platform's owner's socket.
        payers: where its payers call.
        accounts_url, accounts_token: the account system.
        measurement: of the environments, 32 bytes.
    """

    platforms: Mapping[str, Path]
    payers: Mapping[str, Payers]
    accounts_url: str
    accounts_token: str = field(repr=False)
    measurement: bytes


class PayeeConsortium(Protocol):
    """A running network with platforms and environments, all of which can meet with accidents."""

    @property
    def genesis(self) -> Genesis:
        """The genesis document."""
        ...

    @property
    def genesis_file(self) -> Path:
        """Where it stands."""
        ...

    @property
    def urls(self) -> dict[str, str]:
        """Each validator's RPC root, in order; all run at the beginning."""
        ...

    @property
    def place(self) -> str:
        """Where the network lives, for people."""
        ...

    @property
    def merchants(self) -> Path:
        """The folder of merchants' keys."""
        ...

    @property
    def passphrase(self) -> bytes:
        """What merchants' keys are encrypted with."""
        ...

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity."""
        ...

    async def open_payee(self) -> Doors:
        """Set payee codes up and run all programs; accounts of simulated money are open, epochs begun."""
        ...

    async def open_environments(self) -> None:
        """Set payee codes up and run the environments alone, registered."""
        ...

    async def start(self, name: str) -> None:
        """Start a node that was killed and return when it is ready."""
        ...

    async def kill(self, name: str) -> None:
        """End a node with SIGKILL, as a power cut would."""
        ...

    async def start_program(self, name: str) -> None:
        """Start a program that does not run and return when it is ready."""
        ...

    async def kill_program(self, name: str) -> None:
        """End a program with SIGKILL."""
        ...

    def processes(self) -> dict[str, list[int]]:
        """Return the pids of those that run: ``nodes`` and ``environments``."""
        ...

    def traces(self) -> Iterator[tuple[str, bytes]]:
        """Yield place and bytes of everything on the disks of nodes, which must be stopped, programs and merchants."""
        ...


OpenPayeeNetwork = Callable[[], AbstractAsyncContextManager[PayeeConsortium]]
"""Starts a network for the time of a block, and ends all its processes whatever happens.

One that is kept runs whole afterwards, whichever nodes were ended.
"""
