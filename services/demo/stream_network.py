"""The network and the programs under the stream demo and benchmark: a port that ``cli`` fills with local processes."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey

SERVICE_PROGRAM, WATCHER_PROGRAM = "stream-service", "stream-watcher"
NODE, OTHER_NODE = "bank-a", "issuer-f"
"""Nodes that die; the first one is asked first."""


@dataclass(frozen=True, slots=True)
class Doors:
    """Where the programs are reached: their owners' sockets, and where payers call."""

    service: Path
    watcher: Path
    service_url: str


@dataclass(frozen=True, slots=True)
class ServiceDoor:
    """A service party's program alone: where payers call, its process and its folder."""

    url: str
    pid: int
    home: Path


class StreamConsortium(Protocol):
    """A running network with service party, watcher and payers, all of which can meet with accidents."""

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
    def payers(self) -> Path:
        """The folder of what payers keep."""
        ...

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity."""
        ...

    async def open_streams(self, **changes: object) -> Doors:
        """Set payment streams up and run both programs; ``changes`` are fields of the service party's file."""
        ...

    async def open_service(self, **changes: object) -> ServiceDoor:
        """Set payment streams up and run the service party alone; ``changes`` as of :meth:`open_streams`."""
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

    def start_payer(self, stream: bytes, account: str) -> None:
        """Start a process that pays a stream until it ends: ``hansa stream pay``; one that runs stays."""
        ...

    async def kill_payer(self, stream: bytes) -> None:
        """End a payer's process with SIGKILL; one that has ended by itself stays so."""
        ...

    def payer_words(self, stream: bytes) -> str | None:
        """Return what a payer's process that has ended said last, None while it runs."""
        ...

    def processes(self) -> dict[str, list[int]]:
        """Return the pids of those that run: ``nodes`` and ``service``."""
        ...


OpenStreamNetwork = Callable[[], AbstractAsyncContextManager[StreamConsortium]]
"""Starts a network for the time of a block, and ends all its processes whatever happens."""
