"""The account system's HTTP side: its routes; who may call, and how much, says :mod:`services.local.pages`.

Here too the fault panel takes effect, if it is open: on whole requests, before and after the books.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consensus.ledger.errors import InvariantError, PeerError, StorageError
from services.accounts import wire
from services.accounts.faults import FaultPanel
from services.accounts.metrics import CONTENT_TYPE, AccountsMetrics
from services.accounts.openapi import document
from services.accounts.port import AccountId, Answer, Operation, Order
from services.accounts.store import AccountStore
from services.client.errors import Refused
from services.local import pages
from services.local.pages import Bodies, decoded_untrusted, error_handlers, error_response, json_response

STATUSES = {
    **pages.STATUSES,
    "unknown_account": 404,
    "no_fault_panel": 404,
    "database_unreachable": 503,
    # What the database says is no refusal: it is unknown what was done.
    **dict.fromkeys(("store_closed", "store_locked", "bad_database", "wrong_format"), 503),
    **dict.fromkeys(("disk_full", "disk_failed", "corrupted"), 503),
    "invariant": 500,
}
HEADER = (b"hansa-money", b"simulated")
"""With every answer."""

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class Pages:
    """The endpoints over the books."""

    def __init__(self, store: AccountStore, metrics: AccountsMetrics, panel: FaultPanel | None) -> None:
        self._store = store
        self._metrics = metrics
        self._panel = panel
        self._bodies = Bodies()
        self.failed = trio.Event()
        """Set with ``failure``, the first error of the disk or of the books themselves: only a new start helps."""
        self.failure: StorageError | InvariantError | None = None

    def app(self) -> Starlette:
        """Return the routes."""
        routes = [
            Route("/orders", self._orders, methods=["POST"]),
            Route("/standings", self._meets(self._standings), methods=["POST"]),
            Route("/entries", self._meets(self._entries)),
            Route("/accounts", self._meets(self._accounts)),
            Route("/accounts", self._meets(self._open), methods=["POST"]),
            Route("/accounts/{account}", self._meets(self._account)),
            Route("/accounts/{account}/deposits", self._meets(self._deposit), methods=["POST"]),
            Route("/accounts/{account}/freeze", self._meets(self._freeze), methods=["POST"]),
            Route("/accounts/{account}/unfreeze", self._meets(self._freeze), methods=["POST"]),
            Route("/money", self._meets(self._money)),
            Route("/healthz", self._health),
            Route("/metrics", self._figures),
            *(Route(path, _interface) for path in ("/", "/openapi.json")),
            Route("/faults", self._faults, methods=["GET", "POST", "DELETE"]),
        ]
        handlers = {**error_handlers(STATUSES), StorageError: self._on_failure, InvariantError: self._on_failure}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def _orders(self, request: Request) -> Response:
        begin = trio.current_time()
        try:
            body = await self._bodies.read(request)
            is_list = body.lstrip()[:1] == b"["
            orders = decoded_untrusted(body, _orders) if is_list else [decoded_untrusted(body, _order)]
            return await self._run(orders)
        finally:
            self._metrics.request_seconds.observe(trio.current_time() - begin)

    async def _run(self, orders: Sequence[Order]) -> Response:
        operations = [order.operation for order in orders]
        if await self._fails_before(operations):
            return _Dropped()
        refused = {index: answer for index, order in enumerate(orders) if (answer := self._refusal(order))}
        rest = [order for index, order in enumerate(orders) if index not in refused]
        done = iter(await self._store.run(rest) if rest else ())
        answers = [refused[index] if index in refused else next(done) for index in range(len(orders))]
        self._metrics.count(answers)
        if self._panel is not None and self._panel.struck("lose_answer", operations):
            return _Dropped()
        response = _said(wire.Answered(answers=answers))
        if self._panel is not None and rest and self._panel.struck("answer_twice", operations):
            again = iter(await self._store.run(rest))
            answers = [refused[index] if index in refused else next(again) for index in range(len(orders))]
            response = _said(wire.Answered(answers=answers))
            response.background = BackgroundTask(self._store.run, rest)  # and late, after the answer
        return response

    def _refusal(self, order: Order) -> Answer | None:
        fault = self._panel.struck("refuse", [order.operation]) if self._panel is not None else None
        return None if fault is None else Answer(order.event, order.operation, fault.code, "refused by the fault panel")

    async def _fails_before(self, operations: Sequence[Operation]) -> bool:
        """Tell whether a request is to be dropped; one that is to be late waits here."""
        if self._panel is None:
            return False
        if self._panel.struck("down", operations):
            return True
        if fault := self._panel.struck("delay", operations):
            await trio.sleep(fault.delay_ms / 1000)
        return False

    def _meets(self, handler: Handler) -> Handler:
        """Have requests without orders meet the faults that are for all."""

        async def answer(request: Request) -> Response:
            if await self._fails_before([]):
                return _Dropped()
            response = await handler(request)
            is_lost = self._panel is not None and self._panel.struck("lose_answer", [])
            return _Dropped() if is_lost else response

        return answer

    async def _standings(self, request: Request) -> Response:
        asked = decoded_untrusted(await self._bodies.read(request), _events)
        return _said(wire.Stood(standings=await self._store.look_up(asked.events)))

    async def _entries(self, request: Request) -> Response:
        asked = _query_untrusted(request, wire.EntriesQuery)
        found = await self._store.entries(
            from_ms=asked.from_ms, until_ms=asked.until_ms, after=asked.after, limit=asked.limit
        )
        return _said(wire.Posted(items=found.items, next=found.next))

    async def _accounts(self, request: Request) -> Response:
        asked = _query_untrusted(request, wire.AccountsQuery)
        found = await self._store.accounts(asked.after, asked.limit + 1)
        page = found[: asked.limit]
        return _said(wire.AccountPage(accounts=page, next=page[-1].id if len(found) > asked.limit else ""))

    async def _open(self, request: Request) -> Response:
        asked = decoded_untrusted(await self._bodies.read(request), _openings)
        opened = await self._store.open([(account.id, account.currency) for account in asked.accounts])
        return _said(wire.AccountPage(accounts=opened))

    async def _account(self, request: Request) -> Response:
        return _said(wire.AccountSaid(account=await self._store.account(_name(request))))

    async def _deposit(self, request: Request) -> Response:
        name = _name(request)
        asked = decoded_untrusted(await self._bodies.read(request), _deposit)
        return _said(wire.AccountSaid(account=await self._store.deposit(asked.reference, name, asked.amount)))

    async def _freeze(self, request: Request) -> Response:
        name = _name(request)
        await self._bodies.read(request, is_needed=False)
        is_frozen = request.url.path.endswith("/freeze")
        return _said(wire.AccountSaid(account=await self._store.freeze(name, is_frozen=is_frozen)))

    async def _faults(self, request: Request) -> Response:
        panel = self._panel
        if panel is None:
            raise Refused("no_fault_panel", "allow_faults in service.toml opens it")
        if request.method == "POST":
            panel.add(decoded_untrusted(await self._bodies.read(request), _faults).faults)
        elif request.method == "DELETE":
            panel.clear()
        return _said(wire.FaultsSaid(faults=panel.shown()))

    async def _money(self, _: Request) -> Response:
        return _said(wire.Money(issued=await self._store.money()))

    async def _health(self, _: Request) -> Response:
        await self._store.money()
        return _said(wire.Ready())

    async def _on_failure(self, _: Request, error: Exception) -> Response:
        if not isinstance(error, StorageError | InvariantError):
            raise InvariantError("this handler is for what ends the program")
        self.failure = self.failure or error
        self.failed.set()
        return error_response(error, STATUSES)

    async def _figures(self, _: Request) -> Response:
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})


async def _interface(_: Request) -> Response:
    return json_response(document())


class Simulated:
    """Says with every answer, also with refusals, that the money is simulated."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the header."""

        async def said(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], HEADER]}
            await send(message)

        await self._app(scope, receive, said)


class _Dropped(Response):
    """An answer that is never given: the connection ends in its place."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin, so that the server gives no answer of its own, and leave it at that: a head alone is never sent."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


def _said(content: wire.Said) -> Response:
    return json_response(msgspec.json.encode(content))


_orders: msgspec.json.Decoder[list[Order]] = msgspec.json.Decoder(wire.Orders)
_order = msgspec.json.Decoder(Order)
_events = msgspec.json.Decoder(wire.Events)
_openings = msgspec.json.Decoder(wire.Openings)
_deposit = msgspec.json.Decoder(wire.Deposit)
_faults = msgspec.json.Decoder(wire.Faults)


def _query_untrusted(request: Request, kind: type[T]) -> T:
    """Return what a request's parameters say; ``bad_field``."""
    pairs = request.query_params.multi_items()
    if len(dict(pairs)) < len(pairs):
        raise PeerError("bad_field", "a parameter stands twice")
    try:
        return msgspec.convert(dict(pairs), kind, strict=False)
    except msgspec.ValidationError as error:
        raise PeerError("bad_field", str(error)) from None


def _name(request: Request) -> str:
    """Return the account in the path; what cannot be one's id is unknown."""
    name = request.path_params["account"]
    try:
        return msgspec.convert(name, AccountId)
    except msgspec.ValidationError:
        raise Refused("unknown_account", "there is no such account") from None
