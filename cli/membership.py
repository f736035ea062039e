"""The chain as :mod:`node.network.members` asks for it, by the client: calls proven, queries believed."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.genesis import Genesis
from node.network.members import ChainStatus, Tell, quiet
from services.client.tasks import single_errors

if TYPE_CHECKING:
    from node.network.homes import LocalNetwork
    from services.client.client import Client
    from services.client.keystore import Signer

CONTRACT = "membership"
LATE_S = 5.0
"""A transaction that takes longer than this is worth a word."""


class _Vote(msgspec.Struct, frozen=True):
    height: int


class _Status(msgspec.Struct, frozen=True):
    height: int
    votes: dict[str, _Vote]


class ClientChain:
    """Implements :class:`node.network.members.MembershipChain`.

    ``open_signer`` opens the key of an identity, ``tell`` hears of a transaction that takes long.
    """

    def __init__(self, client: "Client", open_signer: "Callable[[str], Signer]", tell: Tell = quiet) -> None:
        self.chain_id = client.chain_id
        self._client = client
        self._open_signer = open_signer
        self._tell = tell
        self._signers: dict[str, Signer] = {}

    async def call(self, admin: str, method: str, arguments: dict[str, Value]) -> Any:
        """Call a method in the name of an identity; return its proven value."""
        if admin not in self._signers:
            self._signers[admin] = self._open_signer(admin)
        with single_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_late, admin, method)
                outcome = await self._client.call(self._signers[admin], CONTRACT, method, arguments)
                nursery.cancel_scope.cancel()
        return outcome.value()

    async def _tell_late(self, admin: str, method: str) -> None:
        await trio.sleep(LATE_S)
        self._tell(f"{admin}: {method} is not final yet; hansa consensus doctor says whether enough nodes vote")

    async def query(self, method: str, arguments: dict[str, Value]) -> Any:
        """Return the answer of a query."""
        return await self._client.query(CONTRACT, method, arguments)

    async def status(self) -> ChainStatus:
        """Return how things stand at one node."""
        status = await self._client.request("consensus_status", {}, _Status)
        return ChainStatus(status.height - 1, {name: vote.height for name, vote in status.votes.items()})


@asynccontextmanager
async def open_chain(
    genesis: Genesis, urls: Sequence[str], open_signer: "Callable[[str], Signer]", *, tell: Tell = quiet
) -> AsyncIterator[ClientChain]:
    """Give the chain behind these nodes for the time of the block; ``tell`` hears what takes long."""
    from services.client.client import open_client

    async with open_client(genesis, urls) as client:
        yield ClientChain(client, open_signer, tell)


@asynccontextmanager
async def open_local_chain(
    network: "LocalNetwork", *, without: str = "", tell: Tell = quiet
) -> AsyncIterator[ClientChain]:
    """Give the chain behind a local network's nodes but one, signing with the network's identities.

    Where there is no other node, that one is asked.
    """
    from services.client.keystore import KeyStore, read_passphrase

    def open_signer(name: str) -> "Signer":
        return KeyStore(network.keystore).load(name, read_passphrase(network.passphrase_file))

    urls = [home.rpc_url for home in network.nodes if home.name != without] or list(network.rpc_urls)
    async with open_chain(network.genesis, urls, open_signer, tell=tell) as chain:
        yield chain
