"""A store in tables, the same on SQLite and on PostgreSQL: opened, kept up to date, written to in groups.

``Database.write(work)`` runs ``work(connection)``, plain SQLAlchemy Core, in the writer's thread. What many callers
want at the same time is one transaction, so one sync of the disk; a work that raises is rolled back, and then each of
that group has a transaction to itself. ``Database.read(work)`` runs beside the writer and sees one moment; whatever it
should write is rolled back.

While a database server is away, or a shell locks a file, works wait and are run again, also one whose commit was not
answered: a work must therefore have the same effect when it is run twice. For the same reason a caller that is
cancelled, or has waited too long, cannot tell whether its work takes effect.

Only one process at a time has a store open: a lock beside SQLite's file, an advisory lock in PostgreSQL held by the
very session that writes, so that it cannot be lost without the session.
"""

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import outcome
import sqlalchemy
import trio

from consensus.ledger.errors import LocalError
from services.client.errors import Unreachable
from services.client.tasks import single_errors
from services.local.backends import CONNECTIONS_MAX, Backend, ServerLost, backend_of

WAITING_MAX = 4_096
"""Works that wait for the writer; callers beyond wait to be let in."""
GROUP_MAX = 256
"""Works in one transaction."""
READERS_MAX = CONNECTIONS_MAX - 1
"""Works that read at the same time."""
PATIENCE_S = 30.0
"""How long a work waits for a database server that is away, or for a file that somebody has locked."""
_CLOSE_S = 5.0
"""How long the end waits for a server's answers."""
_RETRY_S = 0.1
_RETRY_S_MAX = 0.5

Result = TypeVar("Result")
Work = Callable[[sqlalchemy.Connection], Result]


@dataclass(slots=True, eq=False)
class _Job:
    """A work that waits for the writer; ``is_left`` once nobody waits for it any more."""

    work: Work[object]
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Maybe[object] | None = None
    is_left: bool = False


class Database:
    """An open store; see the module. Made by :func:`open_database`."""

    def __init__(self, backend: Backend, patience_s: float) -> None:
        """Take over a backend; nothing is opened yet."""
        self._backend = backend
        self._patience_s = patience_s
        self._send, self._receive = trio.open_memory_channel[_Job](WAITING_MAX)
        self._reader_limit = trio.CapacityLimiter(READERS_MAX)
        self._writer_limit = trio.CapacityLimiter(1)
        self._group: list[_Job] = []

    async def write(self, work: Work[Result]) -> Result:
        """Run a work in a transaction with others, and return what it returns once that is durable.

        Raises:
            Unreachable: ``database_unreachable``: it could not be used for too long; the work may still take effect.
            StorageError: ``disk_full``, ``disk_failed``, ``corrupted``.
            LocalError: ``store_closed``; ``store_locked``: another process took the store while the server was away.
        """
        job = _Job(work)
        try:
            with trio.move_on_after(self._patience_s):
                await self._send.send(job)
                await job.done.wait()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise self._closed() from None
        finally:
            job.is_left = True
        if job.result is None:
            raise self._unreachable()
        result: Result = job.result.unwrap()  # type: ignore[assignment]
        return result

    async def read(self, work: Work[Result]) -> Result:
        """Run a work that reads, at one moment of the store; errors as :meth:`write`."""
        pause_s = _RETRY_S
        with trio.move_on_after(self._patience_s):
            while True:
                try:
                    return await trio.to_thread.run_sync(
                        self._backend.read,
                        work,
                        limiter=self._reader_limit,
                        abandon_on_cancel=self._backend.is_server,
                    )
                except ServerLost:
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _RETRY_S_MAX)
        raise self._unreachable()

    async def start(self) -> None:
        """Open the store and bring its tables up to date."""
        pause_s = _RETRY_S
        with trio.move_on_after(self._patience_s):
            while True:
                try:
                    await self._in_writer(self._backend.open)
                except ServerLost:
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _RETRY_S_MAX)
                else:
                    return
        raise self._unreachable()

    async def serve(self) -> None:
        """Write what is asked for, until cancelled."""
        while True:
            jobs = [await self._receive.receive()]
            with suppress(trio.WouldBlock):
                while len(jobs) < GROUP_MAX:
                    jobs.append(self._receive.receive_nowait())
            await self._write_group(jobs)

    async def _write_group(self, jobs: list[_Job]) -> None:
        pause_s = _RETRY_S
        self._group = jobs
        while jobs := [job for job in jobs if job.result is None and not job.is_left]:
            try:
                await self._in_writer(_run_group, self._backend, jobs)
            except ServerLost:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S_MAX)
            for job in jobs:
                if job.result is not None:
                    job.done.set()

    async def close(self) -> None:
        """Refuse what has not begun, wait for what has, and close the store."""
        self._send.close()
        waiting = []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                waiting.append(self._receive.receive_nowait())
        self._receive.close()
        self._backend.is_over = True
        # A server that does not even refuse may hold threads; the process ends without them.
        patience_s = min(self._patience_s, _CLOSE_S) if self._backend.is_server else math.inf
        readers = [object() for _ in range(READERS_MAX)]
        with trio.CancelScope(shield=True, deadline=trio.current_time() + patience_s):
            for reader in readers:
                await self._reader_limit.acquire_on_behalf_of(reader)
            await self._in_writer(self._backend.close)
            # Who waited to read finds the store closed.
            for reader in readers:
                self._reader_limit.release_on_behalf_of(reader)
        for job in (*self._group, *waiting):
            job.result = job.result or outcome.Error(self._closed())
            job.done.set()

    async def _in_writer(self, call: Callable[..., None], *arguments: object) -> None:
        def run() -> None:
            try:
                call(*arguments)
            finally:
                if self._backend.is_over:
                    self._backend.close()

        await trio.to_thread.run_sync(run, limiter=self._writer_limit, abandon_on_cancel=self._backend.is_server)

    def _unreachable(self) -> Unreachable:
        return Unreachable(
            f"{self._backend.name} could not be used for {self._patience_s:g} s: {self._backend.trouble}",
            "database_unreachable",
        )

    def _closed(self) -> LocalError:
        return LocalError("store_closed", f"{self._backend.name} is not open")


@asynccontextmanager
async def open_database(
    url: str, *, migrations: str, is_shared: bool = False, patience_s: float = PATIENCE_S
) -> AsyncIterator[Database]:
    """Open a store for the time of the block, make it if it is new, and bring its tables up to date.

    Args:
        url: ``sqlite:///PATH`` (a file of this machine) or ``postgresql+psycopg://…`` (a database that exists).
        migrations: the package with the steps of this store's tables, e.g. ``services.settlement.migrations``; its
            last name but one is the store's.
        is_shared: let other processes write too.
        patience_s: how long a work, and the start, wait for a database server that is away, or for a locked file.

    Raises:
        LocalError: ``bad_database`` (the URL), ``store_locked``.
        StorageError: ``wrong_format``: another program's tables, or a newer version's; errors of the disk.
        Unreachable: ``database_unreachable``.
    """
    backend = backend_of(url, migrations, is_shared=is_shared)
    database = Database(backend, patience_s)
    with single_errors():
        async with trio.open_nursery() as nursery:
            try:
                await database.start()
                nursery.start_soon(database.serve)
                yield database
            finally:
                nursery.cancel_scope.cancel()
                await database.close()


def _run_group(backend: Backend, jobs: list[_Job]) -> None:
    """Run works in one transaction, or each in its own if one of them fails; in the writer's thread."""
    match outcome.capture(backend.ready):
        case outcome.Error(ServerLost() as lost):
            raise lost
        case outcome.Error(error):
            for job in jobs:
                job.result = outcome.Error(error)
            return
    match outcome.capture(backend.write, lambda connection: [job.work(connection) for job in jobs]):
        case outcome.Value(results):
            for job, result in zip(jobs, results, strict=True):
                job.result = outcome.Value(result)
        case outcome.Error(ServerLost() as lost):
            raise lost
        case outcome.Error() as failed if len(jobs) == 1:
            jobs[0].result = failed
        case outcome.Error():
            for job in jobs:
                _run_group(backend, [job])
