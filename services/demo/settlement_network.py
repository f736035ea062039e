"""The network and the programs under the settlement demo and benchmark: a port that ``cli`` fills with processes."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey

ACCOUNTS, CENTER, EVENTS, PAYER = "settle-accounts", "settle-center", "settle-events", "settle-payer"
"""The programs of settlement."""
PROGRAMS = (ACCOUNTS, CENTER, EVENTS, PAYER)
ISSUER = "bank-a"
"""The account with the role ``unit-issuer``: it defines :data:`UNIT` and sells it first."""
AGENT = "settlement-agent"
"""The account that lifts liens and gives units back."""
UNIT = "BOND-1"
CURRENCY = "CNY"


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the programs are to run.

    Args:
        database: URL of the event store's and the account system's database, "" for an SQLite file of each.
        is_relay_on: chain results and notices go on at once.
        is_scan_on: stuck events are looked at periodically.
        scan_interval_ms: how often.
        allow_faults: the account system takes orders to misbehave.
    """

    database: str = ""
    is_relay_on: bool = True
    is_scan_on: bool = True
    scan_interval_ms: int = 1_000
    allow_faults: bool = False


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the programs are reached: the event system's socket, the account system's root with its token."""

    events: Path
    accounts_url: str
    accounts_token: str


class SettlementConsortium(Protocol):
    """A running network with the programs of settlement, all of which can meet with accidents."""

    @property
    def genesis(self) -> Genesis:
        """The genesis document."""
        ...

    @property
    def urls(self) -> dict[str, str]:
        """Each validator's RPC root, in order; all run at the beginning."""
        ...

    @property
    def place(self) -> str:
        """Where the network lives, for people."""
        ...

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity, ``settlement-agent`` included."""
        ...

    async def start(self, name: str) -> None:
        """Start a node that was killed and return when it is ready."""
        ...

    async def kill(self, name: str) -> None:
        """End a node with SIGKILL, as a power cut would."""
        ...

    def freeze(self, name: str) -> None:
        """Freeze a node with SIGSTOP: its connections stay open and nothing moves."""
        ...

    def resume(self, name: str) -> None:
        """Wake a frozen node."""
        ...

    async def open_settlement(self, wishes: Wishes) -> Doors:
        """Set settlement up and run its programs so, ending those that run otherwise.

        Opens an account of simulated money for each identity, defines :data:`UNIT` and issues some of it.
        """
        ...

    async def start_program(self, name: str) -> None:
        """Start a program that does not run and return when it is ready."""
        ...

    async def stop_program(self, name: str) -> None:
        """End a program in order."""
        ...

    async def kill_program(self, name: str) -> None:
        """End a program with SIGKILL."""
        ...


OpenSettlementNetwork = Callable[[], AbstractAsyncContextManager[SettlementConsortium]]
"""Starts a network for the time of a block, and ends all its processes whatever happens."""
