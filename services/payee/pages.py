"""A platform's side for payers' clients: delegations, parts of keys, payments over HTTP. All money is simulated."""

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.ledger.errors import InvariantError, StorageError
from services.local import pages
from services.local.pages import Bodies, decoded_untrusted, error_handlers, error_response, json_response
from services.payee.delegating import Delegator
from services.payee.interfaces import AskPart, Delegate, Pay, Ready
from services.payee.metrics import CONTENT_TYPE, PlatformMetrics
from services.payee.openapi import document
from services.payee.payments import PaymentDesk
from services.payee.records import RecordDesk

STATUSES = {
    **pages.STATUSES,
    **dict.fromkeys(("bad_payload", "bad_crc", "no_identity", "duplicate_identity", "bad_key"), 400),
    **dict.fromkeys(("amount_missing", "order_missing", "key_part_missing"), 400),
    **dict.fromkeys(("unknown_merchant", "no_platform", "no_part"), 404),
    # The chain cannot be read now: nothing was paid, and the same again is safe.
    **dict.fromkeys(("node_unreachable", "node_timeout", "stale_states", "height_not_reached", "busy"), 503),
    **dict.fromkeys(
        ("wrong_chain", "bad_certificate", "bad_proof", "bad_answer", "missing_key", "bad_record", "bad_commitment"),
        503,
    ),
    **dict.fromkeys(("disk_full", "disk_failed", "corrupted", "key_worn", "not_sealed_here"), 503),
    "invariant": 500,
}


class Pages:
    """The endpoints over the platform's desks."""

    def __init__(
        self, records: RecordDesk, payments: PaymentDesk, delegator: Delegator, metrics: PlatformMetrics
    ) -> None:
        self._records = records
        self._payments = payments
        self._delegator = delegator
        self._metrics = metrics
        self._bodies = Bodies()
        self.failed = trio.Event()
        """Set with ``failure``, the first error of the disk or a broken invariant: only a new start helps."""
        self.failure: StorageError | InvariantError | None = None

    def app(self) -> Starlette:
        """Return the routes."""
        routes = [
            Route("/delegations", self._delegate, methods=["POST"]),
            Route("/parts", self._part, methods=["POST"]),
            Route("/payments", self._pay, methods=["POST"]),
            Route("/healthz", self._health),
            Route("/metrics", self._figures),
            *(Route(path, _interface) for path in ("/", "/openapi.json")),
        ]
        handlers = {**error_handlers(STATUSES), StorageError: self._on_failure, InvariantError: self._on_failure}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _delegate(self, request: Request) -> Response:
        asked = decoded_untrusted(await self._bodies.read(request), _delegate)
        return _said(self._delegator.delegate(asked))

    async def _part(self, request: Request) -> Response:
        asked = decoded_untrusted(await self._bodies.read(request), _ask_part)
        return _said(await self._records.part(asked))

    async def _pay(self, request: Request) -> Response:
        begin = trio.current_time()
        try:
            asked = decoded_untrusted(await self._bodies.read(request), _pay)
            return _said(await self._payments.pay(asked))
        finally:
            self._metrics.request_seconds.observe(trio.current_time() - begin)

    async def _health(self, _: Request) -> Response:
        return _said(Ready(self._delegator.server))

    async def _figures(self, _: Request) -> Response:
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    async def _on_failure(self, _: Request, error: Exception) -> Response:
        if not isinstance(error, StorageError | InvariantError):
            raise InvariantError("this handler is for what ends the program")
        self.failure = self.failure or error
        self.failed.set()
        return error_response(error, STATUSES)


async def _interface(_: Request) -> Response:
    return json_response(document())


def _said(content: msgspec.Struct) -> Response:
    return json_response(msgspec.json.encode(content))


_delegate = msgspec.json.Decoder(Delegate)
_ask_part = msgspec.json.Decoder(AskPart)
_pay = msgspec.json.Decoder(Pay)
