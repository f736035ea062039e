"""The network under a demo, as the demo sees it: a port that ``cli`` fills with real local processes."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey


class Consortium(Protocol):
    """A running network whose nodes can meet with accidents."""

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


OpenNetwork = Callable[[], AbstractAsyncContextManager[Consortium]]
"""Starts a network for the time of a block, and ends all its processes whatever happens."""
