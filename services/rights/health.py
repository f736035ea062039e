"""The rights server's page for whoever watches it: is it well, and its figures."""

from functools import partial

import anycorn
import trio
from anycorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from services.client.submission import Submitter
from services.messages.center import listen
from services.rights.figures import CONTENT_TYPE, Figures

UNAVAILABLE = 503


async def serve_health(
    port: int, submitter: Submitter, figures: Figures, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer ``/healthz``, 503 with a code while nothing gets to the chain, and ``/metrics``, until cancelled.

    Raises:
        LocalError: ``port_in_use``.
    """

    async def health(_: Request) -> Response:
        if submitter.trouble:
            return Response(f"{submitter.trouble}\n", UNAVAILABLE, media_type="text/plain")
        return Response("ok\n", media_type="text/plain")

    async def metrics(_: Request) -> Response:
        return Response(figures.render(), media_type=CONTENT_TYPE)

    pages = Starlette(routes=[Route("/healthz", health), Route("/metrics", metrics)])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unless_cancelled(message: Message) -> None:
            # Cancelling us is how we end; told of a failed shutdown, the server would make an error of it.
            if message["type"] != "lifespan.shutdown.failed":
                await send(message)

        await pages(scope, receive, send_unless_cancelled)

    config = Config()
    config.bind = [f"fd://{listen(f'127.0.0.1:{port}', token='').detach()}"]
    config.accesslog = config.errorlog = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(anycorn.serve, app, config, shutdown_trigger=trio.sleep_forever))  # type: ignore[arg-type]
        task_status.started()
