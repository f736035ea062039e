"""The business server's HTTP side: its routes; who may call, and how much, says :mod:`services.local.pages`."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from consensus.ledger.errors import HansaError, PeerError
from services.client.errors import Refused
from services.local import pages
from services.local.pages import Bodies, Failed, error_handlers, error_response, failed, json_response
from services.rights.answers import Answer, Taken, Taker
from services.rights.campaigns import Campaigns
from services.rights.events import Event, Kind
from services.rights.metrics import CONTENT_TYPE, BusinessMetrics
from services.rights.openapi import document, page
from services.rights.requests import (
    Decode,
    decode_any,
    decode_change_untrusted,
    decode_list_untrusted,
    decode_one_untrusted,
    decode_order,
    decode_redemption,
    is_id,
    is_list,
)

STATUSES = {
    **pages.STATUSES,
    "unknown_campaign": 404,
    "unknown_event": 404,
    "store_full": 503,
    "center_unreachable": 503,
    "node_unreachable": 503,
    "node_timeout": 503,
    "outcome_unknown": 503,
    "pool_full": 503,
    "sender_full": 503,
}
"""HTTP status by error code; every other code is the contract's, or a conflict: 409."""

_KINDS = frozenset(kind.value for kind in Kind)
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Pages:
    """The endpoints over one taker of events."""

    def __init__(
        self,
        taker: Taker,
        campaigns: Campaigns,
        metrics: BusinessMetrics,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._taker = taker
        self._campaigns = campaigns
        self._metrics = metrics
        self._now_ms = now_ms
        self._bodies = Bodies()

    def app(self) -> Starlette:
        """Return the routes."""
        routes = [
            Route("/orders", self._post(decode_order), methods=["POST"]),
            Route("/redemptions", self._post(decode_redemption), methods=["POST"]),
            Route("/events", self._post(decode_any), methods=["POST"]),
            *[
                Route(f"/orders/{{reference}}/{kind.value}", self._post_change(kind), methods=["POST"])
                for kind in (Kind.CANCEL, Kind.COMPLETE, Kind.REFUND)
            ],
            Route("/redemptions/{reference}/reverse", self._post_change(Kind.REVERSE), methods=["POST"]),
            Route("/events/{kind}/{reference}/{number}", self._follow),
            Route("/healthz", self._health),
            Route("/metrics", self._figures),
            Route("/openapi.json", _openapi),
            Route("/", _page),
        ]
        return Starlette(routes=routes, exception_handlers=error_handlers(STATUSES))

    def _post(self, decode: Decode) -> Callable[[Request], Awaitable[Response]]:
        async def post(body: bytes, _: Request) -> Response:
            if is_list(body):
                answers = await self._take_list(decode_list_untrusted(body, decode, self._now_ms()))
                return json_response(msgspec.json.encode(answers), 202)
            return await self._take_one(decode_one_untrusted(body, decode, self._now_ms()))

        return self._timed(post, is_body_needed=True)

    def _post_change(self, kind: Kind) -> Callable[[Request], Awaitable[Response]]:
        async def post(body: bytes, request: Request) -> Response:
            reference = request.path_params["reference"]
            return await self._take_one(decode_change_untrusted(kind, reference, body, self._now_ms()))

        return self._timed(post, is_body_needed=False)

    def _timed(
        self, answer: Callable[[bytes, Request], Awaitable[Response]], *, is_body_needed: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        async def post(request: Request) -> Response:
            begin = trio.current_time()
            try:
                return await answer(await self._bodies.read(request, is_needed=is_body_needed), request)
            finally:
                self._metrics.request_seconds.observe(trio.current_time() - begin)

        return post

    async def _take_one(self, event: Event) -> Response:
        (answer,) = await self._take_list([event])
        if isinstance(answer, Failed):
            return error_response(answer, STATUSES)
        return json_response(msgspec.json.encode(answer), 202 if answer.chain is None else 200)

    async def _take_list(self, decoded: Sequence[Event | PeerError]) -> list[Answer]:
        """Take the events among these; in the place of others, and of those refused, stands why."""
        answers: list[Answer | None] = []
        events: list[Event] = []
        for item in decoded:
            if isinstance(item, PeerError):
                refusal: HansaError | None = item
            else:
                refusal = await self._campaigns.refusal(item.campaign) if item.kind == Kind.CREATE else None
            if refusal is not None:
                answers.append(failed(refusal))
            else:
                events.append(cast(Event, item))
                answers.append(None)
        taken = iter(await self._taker.take(events) if events else ())
        complete: list[Answer] = []
        for item, answer in zip(decoded, answers, strict=True):
            final = next(taken) if answer is None else answer
            complete.append(final)
            kind = "unknown" if isinstance(item, PeerError) else item.kind
            self._metrics.count(kind, _outcome(final))
        return complete

    async def _follow(self, request: Request) -> Response:
        kind, reference, number = (request.path_params[name] for name in ("kind", "reference", "number"))
        # The centre lets go of who asks for what cannot be a key, with everything that is under way.
        is_possible = kind in _KINDS and is_id(reference) and is_id(number)
        found = await self._taker.find(kind, reference, number) if is_possible else None
        if found is None:
            raise Refused("unknown_event", f"there is no event {kind}/{reference}/{number}")
        return json_response(msgspec.json.encode(found))

    async def _health(self, _: Request) -> Response:
        await self._taker.check()
        return json_response(b'{"ready":true}')

    async def _figures(self, _: Request) -> Response:
        return Response(self._metrics.render(), headers={**_HEADERS, "content-type": CONTENT_TYPE})


def _outcome(answer: Answer) -> str:
    if isinstance(answer, Taken):
        return "new" if answer.is_new else "repeated"
    return answer.error.code


async def _openapi(_: Request) -> Response:
    return json_response(document())


async def _page(_: Request) -> Response:
    return Response(page(), headers=_HEADERS, media_type="text/html")
