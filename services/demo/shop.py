"""A web shop as the demo plays it: it posts what its users do to the business server and reads the answers."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import msgspec
import trio

from consensus.ledger.errors import PeerError
from services.client.errors import Unreachable
from services.client.tasks import single_errors
from services.demo.rights_machine import Deed, streams_of
from services.rights.events import Kind

POSTERS = 4
"""How many connections post at once; all that concerns one order goes through one of them, in order."""
LIST_EVENTS = 40
SINGLES_EVERY = 4
"""Each of so many chunks is posted as requests with one event each."""
SINGLES = 10
TIMEOUT_S = 30
ATTEMPTS_MAX = 120
ATTEMPT_PAUSE_S = 0.25

_CHANGES = {Kind.CANCEL: "cancel", Kind.COMPLETE: "complete", Kind.REFUND: "refund"}


class _Problem(msgspec.Struct, frozen=True):
    code: str
    message: str = ""


class Said(msgspec.Struct, frozen=True, rename="camel"):
    """What the business server says to one event: taken as new or known already, or why not."""

    event_id: str = ""
    is_new: bool = False
    error: _Problem | None = None

    @property
    def code(self) -> str:
        """The error's code; "" where the event was taken."""
        return self.error.code if self.error else ""


_decode_one = msgspec.json.Decoder(Said).decode
_decode_list = msgspec.json.Decoder(list[Said]).decode


class Shop:
    """Posts to a business server; made by :func:`open_shop`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post_all(self, deeds: Sequence[Deed]) -> list[tuple[Deed, Said]]:
        """Post events in lists and one by one, over several connections at once; return what was said to each.

        Raises:
            Unreachable: the business server does not answer, or says for long that it has no room.
            PeerError: ``bad_answer``.
        """
        said: list[tuple[Deed, Said]] = []

        async def post_stream(stream: Sequence[Deed]) -> None:
            rest = iter(stream)
            for number in itertools.count():
                is_single = number % SINGLES_EVERY == SINGLES_EVERY - 1
                chunk = list(itertools.islice(rest, SINGLES if is_single else LIST_EVENTS))
                if not chunk:
                    return
                if is_single:
                    said.extend([(deed, await self.post_one(deed)) for deed in chunk])
                else:
                    said.extend(zip(chunk, await self._post_list(chunk), strict=True))

        with single_errors():
            async with trio.open_nursery() as nursery:
                for stream in streams_of(deeds, POSTERS):
                    nursery.start_soon(post_stream, stream)
        return said

    async def post_one(self, deed: Deed) -> Said:
        """Post one event to the path of its kind."""
        return _decoded(await self._post(path_of(deed), msgspec.json.encode(body_of(deed))))

    async def post_raw(self, path: str, body: bytes) -> Said:
        """Post any bytes and return what is said to them."""
        return _decoded(await self._post(path, body))

    async def _post_list(self, deeds: Sequence[Deed]) -> list[Said]:
        bodies = [{"kind": deed.kind.value, **body_of(deed), **_reference_of(deed)} for deed in deeds]
        content = await self._post("/events", msgspec.json.encode(bodies))
        try:
            answers = _decode_list(content)
        except msgspec.DecodeError as error:
            raise PeerError(
                "bad_answer", f"the business server answers a list with {content[:200]!r}: {error}"
            ) from None
        if len(answers) != len(deeds):
            raise PeerError("bad_answer", f"{len(answers)} answers to {len(deeds)} events")
        return answers

    async def _post(self, path: str, body: bytes) -> bytes:
        """Post until somebody takes it: whoever has no room, or no message centre behind it, is asked again."""
        for _ in range(ATTEMPTS_MAX):
            try:
                answer = await self._client.post(path, content=body)
            except httpx.HTTPError as error:
                raise Unreachable(f"the business server gives no answer: {error!r}") from None
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer.content
            await trio.sleep(ATTEMPT_PAUSE_S)
        raise Unreachable(f"the business server takes nothing: {answer.text[:200]}")


@asynccontextmanager
async def open_shop(url: str) -> AsyncIterator[Shop]:
    """Give a shop that posts to a business server's root for the time of the block."""
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        yield Shop(client)


def path_of(deed: Deed) -> str:
    """Return where an event alone is posted."""
    match deed.kind:
        case Kind.CREATE:
            return "/orders"
        case Kind.REDEEM:
            return "/redemptions"
        case Kind.REVERSE:
            return f"/redemptions/{deed.reference}/reverse"
        case _:
            return f"/orders/{deed.reference}/{_CHANGES[deed.kind]}"


def body_of(deed: Deed) -> dict[str, object]:
    """Return what is posted there."""
    body: dict[str, object] = {"event": deed.number}
    body |= {"amount": deed.amount} if deed.amount else {}
    match deed.kind:
        case Kind.CREATE:
            return body | {"order": deed.reference, "user": deed.user, "campaign": deed.campaign}
        case Kind.REDEEM:
            items = {"items": dict(deed.items)} if deed.items else {}
            return body | items | {"redemption": deed.reference, "user": deed.user}
        case _:
            return body


def _reference_of(deed: Deed) -> dict[str, object]:
    return {"redemption" if deed.kind in (Kind.REDEEM, Kind.REVERSE) else "order": deed.reference}


def _decoded(content: bytes) -> Said:
    try:
        return _decode_one(content)
    except msgspec.DecodeError as error:
        raise PeerError("bad_answer", f"the business server answers {content[:200]!r}: {error}") from None
