"""The program of the message centre: store → queue → socket, and back in the other order.

SIGTERM and SIGINT end it: no new requests, those under way are answered, leases end. ``kill -9`` at any moment loses
nothing that was acknowledged. A store that fails ends it with the reason in its log.
"""

import dataclasses
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anycorn
import structlog
import trio
from anycorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.ledger.errors import InvariantError, LocalError, StorageError
from services.client.tasks import single_errors
from services.messages.center import Center, address_of, listen
from services.messages.embedded import EmbeddedStore
from services.messages.logs import configure_logs, ready_file, stop_signals
from services.messages.metrics import CONTENT_TYPE, CenterMetrics
from services.messages.queue import QueueSettings, open_queue
from services.messages.store import Store
from services.messages.streams import redis_store

EMBEDDED = "embedded"
REDIS_NAME = "hansa"
"""What the keys of the centre begin with in a Redis."""

log = structlog.get_logger("center")


@dataclass(frozen=True, slots=True)
class CenterSettings:
    """How the program runs.

    Args:
        listen: ``HOST:PORT`` (port 0 takes a free one) or ``unix:PATH``.
        token: what every peer shows; "" is for loopback only. It travels in the clear: beyond one machine the
            network between centre and peers has to be a trusted one.
        store: ``embedded``, or ``redis://HOST:PORT/DB``.
        data: folder of the embedded store.
        run: folder that gets ``ready``.
        rate_per_s: deliveries a second, over all consumers.
        is_strict: one global order instead of lanes.
        log_level: debug, info, warning or error.
        queue: the other bounds of the queue; its own rate and order are not looked at.
        health_port: where ``/healthz`` and ``/metrics`` are answered on 127.0.0.1; 0: nowhere.
    """

    listen: str
    token: str
    store: str
    data: Path
    run: Path
    rate_per_s: float
    is_strict: bool = False
    log_level: str = "info"
    queue: QueueSettings = QueueSettings()  # noqa: RUF009 (frozen)
    health_port: int = 0

    def queue_settings(self) -> QueueSettings:
        """Return all settings of the queue."""
        return dataclasses.replace(self.queue, rate_per_s=self.rate_per_s, is_strict=self.is_strict)


async def run(settings: CenterSettings) -> None:
    """Run the message centre until SIGTERM or SIGINT.

    Raises:
        LocalError: see :func:`serve`.
        StorageError: see :func:`serve`.
    """
    configure_logs(settings.log_level)
    # What is loaded by now stays for ever: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        with single_errors():
            async with stop_signals() as stopping:
                await serve(settings, stopping)
    except (StorageError, InvariantError) as error:
        log.error("stopped", code=error.code, why=str(error))
        raise
    log.info("stopped")


async def serve(settings: CenterSettings, stopping: trio.Event) -> None:
    """Serve until ``stopping`` is set.

    Raises:
        LocalError: it cannot start: ``bad_config``, ``bad_address``, ``port_in_use``, ``token_missing``,
            ``store_locked``, ``redis_not_durable`` and the like.
        StorageError: the store failed, or another centre has taken it over (``fenced``).
    """
    with single_errors(), listen(settings.listen, token=settings.token) as listening:
        async with (
            _open_store(settings) as store,
            open_queue(store, settings.queue_settings()) as queue,
            trio.open_nursery() as nursery,
        ):
            center = Center(queue, token=settings.token, metrics=CenterMetrics())
            await nursery.start(_serve_health, center, settings.health_port, stopping)
            with ready_file(settings.run):
                log.info("ready", address=address_of(listening), store=_store_name(settings))
                await center.serve(listening, stopping)


@asynccontextmanager
async def _open_store(settings: CenterSettings) -> AsyncIterator[Store]:
    """Give the store that the settings name; the queue opens and closes it."""
    if settings.store == EMBEDDED:
        yield EmbeddedStore(settings.data)
    elif settings.store.startswith(("redis://", "rediss://", "unix:")):
        async with redis_store(settings.store, REDIS_NAME) as store:
            yield store
    else:
        raise LocalError("bad_config", f"store {_store_name(settings)!r} is neither embedded nor redis://HOST:PORT/DB")


def _store_name(settings: CenterSettings) -> str:
    """Return the store for people: an address without what precedes its ``@``."""
    scheme, mark, rest = settings.store.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


async def _serve_health(
    center: Center, port: int, stopping: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer whether the centre is well, and its figures, until it stops."""
    if not port:
        task_status.started()
        return

    async def health(_request: Request) -> Response:
        await center.queue.stats()
        return Response(b"ok\n", media_type="text/plain")

    async def metrics(_request: Request) -> Response:
        return Response(center.metrics.render(await center.queue.stats()), media_type=CONTENT_TYPE)

    app = Starlette(routes=[Route("/healthz", health), Route("/metrics", metrics)])
    config = Config()
    config.bind = [f"fd://{listen(f'127.0.0.1:{port}', token='').detach()}"]
    config.accesslog = config.errorlog = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(anycorn.serve, app, config, shutdown_trigger=stopping.wait))  # type: ignore[arg-type]
        task_status.started()
