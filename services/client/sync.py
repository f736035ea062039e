"""The SDK for scripts without trio: a :class:`SyncClient` whose calls block.

A thread of its own runs trio and the client; calls hop there and back. Any number of threads may share
one facade.
"""

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError
from consensus.ledger.genesis import Genesis
from consensus.ledger.transaction import Transaction
from services.client.client import Client, open_client
from services.client.connection import Parameters
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome, StateValue, Submitted

T = TypeVar("T")


class SyncClient:
    """The calls of :class:`Client`, blocking; made by :func:`connect`."""

    def __init__(self, client: Client, token: trio.lowlevel.TrioToken) -> None:
        self._client = client
        self._token = token

    def run(self, function: Callable[..., Awaitable[T]], *arguments: object, **options: object) -> T:
        """Run any coroutine function of the client, for what has no method of its own here."""
        try:
            return trio.from_thread.run(partial(function, *arguments, **options), trio_token=self._token)
        except trio.RunFinishedError:
            raise Unreachable("the client is closed", code="client_closed") from None

    def request(self, method: str, params: Parameters, kind: type[T]) -> T:
        """Ask any RPC method: see :meth:`Client.request`."""
        result: T = self.run(self._client.request, method, params, kind)
        return result

    def call(
        self, signer: Signer, contract: str, method: str, arguments: dict[str, Value], **options: object
    ) -> Outcome:
        """Sign, submit and wait: see :meth:`Client.call`."""
        return self.run(self._client.call, signer, contract, method, arguments, **options)

    def submit(self, transactions: Sequence[Transaction]) -> list[Submitted]:
        """Submit signed transactions: see :meth:`Client.submit_many`."""
        return self.run(self._client.submit_many, transactions)

    def wait(self, transaction: Transaction, **options: object) -> Outcome:
        """Wait for a receipt: see :meth:`Client.wait`."""
        return self.run(self._client.wait, transaction, **options)

    def query(self, contract: str, method: str, arguments: dict[str, Value] | None = None) -> Value:
        """Ask a contract: see :meth:`Client.query`."""
        return self.run(self._client.query, contract, method, arguments or {})

    def state(self, key: str) -> StateValue:
        """Read a proven state value: see :meth:`Client.state`."""
        return self.run(self._client.state, key)


@contextmanager
def connect(genesis: Genesis, urls: Sequence[str]) -> Iterator[SyncClient]:
    """Give a blocking client for the time of the block.

    Raises:
        LocalError, Unreachable: as :func:`open_client`.
    """
    started: list[SyncClient] = []
    failed: list[HansaError] = []
    ready, done = threading.Event(), None

    async def serve() -> None:
        nonlocal done
        async with open_client(genesis, urls) as client:
            done = trio.Event()
            started.append(SyncClient(client, trio.lowlevel.current_trio_token()))
            ready.set()
            await done.wait()

    def run() -> None:
        try:
            trio.run(serve)
        except HansaError as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="hansa-client", daemon=True)
    thread.start()
    ready.wait()
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield started[0]
    finally:
        if done is not None:
            started[0]._token.run_sync_soon(done.set)
        thread.join()
