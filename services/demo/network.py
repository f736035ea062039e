"""The network and the programs under a demo, as the demo sees them: a port that ``cli`` fills with local processes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey

CENTER, BUSINESS, SERVER = "rights-center", "rights-business", "rights-server"
"""The programs of the rights system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How the programs are to run.

    Args:
        rate_per_s: the message centre's threshold.
        store: ``embedded``, or where a Redis server is, ``redis://HOST:PORT/DB``.
        is_strict: one global order instead of lanes.
        shares: campaign → (basis points, cap): what the rights server computes itself.
        prices: item → price: the same of redemptions.
        is_direct: the business server submits each event by itself and answers when it is final.
        is_direct_strict: the same with one event in flight.
        queue: bounds of the message centre's queue that are not their defaults, by their names.
        linger_ms: how long the rights server waits for more events of a transaction.
        is_fresh: forget the messages that an embedded store has kept.
    """

    rate_per_s: float
    store: str = "embedded"
    is_strict: bool = False
    shares: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    prices: Mapping[str, int] = field(default_factory=dict)
    is_direct: bool = False
    is_direct_strict: bool = False
    queue: Mapping[str, int] = field(default_factory=dict)
    linger_ms: int = 20
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the programs are reached: the business server's root, and the message centre with its token."""

    business_url: str
    center: str
    center_token: str


class Consortium(Protocol):
    """A running network whose nodes and programs can meet with accidents."""

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
        """Return the key of an identity."""
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

    async def open_rights(self, wishes: Wishes) -> Doors:
        """Set the rights system up and run its three programs so, ending those that run otherwise."""
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


OpenNetwork = Callable[[], AbstractAsyncContextManager[Consortium]]
"""Starts a network for the time of a block, and ends all its processes whatever happens."""
