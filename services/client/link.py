"""The way to one node: connects when needed, connects again when the connection broke, checks the chain."""

import ssl

import trio

from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.ids import ChainId
from services.client.answers import ChainStatus, bytes_of
from services.client.connection import CONNECT_TIMEOUT_MS, Connection, open_connection
from services.client.errors import Unreachable
from services.client.tasks import single_errors

RETRY_MS = 200
"""How long after a failed attempt the next one is made at the earliest."""


class Link:
    """One node's address and, while it is used, the connection to it. :meth:`run` must run beside it."""

    def __init__(self, url: str, chain_id: ChainId, tls: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._chain_id = chain_id
        self._tls = tls
        self._connection: Connection | None = None
        self._error: HansaError | None = None
        self._retry_at = 0.0
        self._wanted = trio.Event()
        self._outcome = trio.Event()

    async def connection(self) -> Connection:
        """Return a live connection.

        Raises:
            Unreachable: the node cannot be reached now.
            PeerError: ``wrong_chain`` when it serves another chain.
        """
        connection = self._connection
        if connection is not None and not connection.closed.is_set():
            return connection
        if self._error is not None and trio.current_time() < self._retry_at:
            raise self._error
        outcome = self._outcome
        self._wanted.set()
        await outcome.wait()
        if self._connection is None:
            raise self._error or Unreachable(f"{self.url} cannot be reached")
        return self._connection

    async def run(self) -> None:
        """Keep the connection while it lives; make one whenever somebody wants it."""
        while True:
            await self._wanted.wait()
            try:
                with single_errors():
                    async with open_connection(self.url, tls=self._tls) as connection:
                        await self._check_chain(connection)
                        self._settle(connection, None)
                        await connection.closed.wait()
            except HansaError as error:
                self._settle(None, error)
            else:
                self._connection = None

    def _settle(self, connection: Connection | None, error: HansaError | None) -> None:
        """Tell everyone who waits what came of the attempt."""
        self._connection, self._error = connection, error
        self._retry_at = trio.current_time() + RETRY_MS / 1000
        self._wanted = trio.Event()
        self._outcome.set()
        self._outcome = trio.Event()

    async def _check_chain(self, connection: Connection) -> None:
        status = await connection.request("chain_status", {}, ChainStatus, timeout_ms=CONNECT_TIMEOUT_MS)
        if bytes_of(status.chain_id) != self._chain_id:
            raise PeerError("wrong_chain", f"{self.url} serves chain {status.chain_id}, not 0x{self._chain_id.hex()}")
