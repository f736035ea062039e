"""The network and the programs under the agency demo: a port that ``cli`` fills with local processes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from consensus.ledger.genesis import Genesis
from consensus.ledger.keys import PrivateKey

BANK, ISSUER, OTHER, OUTSIDER, PERMISSION = "bank-a", "issuer-c", "issuer-f", "issuer-d", "permission"
"""The organisations of the story, each with a node of its name but the outsider, who has none."""
BANK_GATEWAY, SALES = "bank-a-gateway", "bank-a-sales"
ISSUER_GATEWAY, ISSUER_END = "issuer-c-gateway", "issuer-c-end"
OTHER_GATEWAY, OTHER_END = "issuer-f-gateway", "issuer-f-end"
AUTHORITY = "authority"


class AgencyConsortium(Protocol):
    """A running network with the agency system's programs, all of which can meet with accidents."""

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

    def key(self, identity: str) -> PrivateKey:
        """Return the key of an identity; an organisation's business key is ``ORG-business``."""
        ...

    def socket(self, program: str) -> Path:
        """Return the local socket of a program of the system."""
        ...

    async def open_agency(self) -> None:
        """Set the agency system up and run its programs."""
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

    def traces(self, name: str) -> Iterator[tuple[str, bytes]]:
        """Yield place and bytes of everything that a stopped node has left: databases, logs, recorded frames."""
        ...


OpenAgencyNetwork = Callable[[], AbstractAsyncContextManager[AgencyConsortium]]
"""Starts a network for the time of a block, and ends all its processes whatever happens."""
