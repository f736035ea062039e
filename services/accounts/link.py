"""Fills the port to an account system over HTTP, as the reference program answers it; also its own few methods."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar
from urllib.parse import quote

import httpx
import msgspec
import trio

from consensus.ledger.errors import LocalError
from services.accounts import wire
from services.accounts.faults import Fault, FaultAt
from services.accounts.ledger import Account
from services.accounts.port import Answer, Entries, Order, Standing
from services.client.errors import Refused, Unreachable
from services.local.pages import Failed

ANSWER_BYTES_MAX = 4 * 1024 * 1024
CONNECT_MS_MAX = 5_000
ANSWER_MS_MAX = 60_000
"""How long an answer may take; a database server that is away is waited for meanwhile."""
CONNECTIONS_MAX = 32
IDLE_S_MAX = 10
"""How long a connection is kept that nobody uses: less than the other side keeps it."""
OK, SERVER_ERRORS = 200, 500
"""HTTP statuses: the one of every answer, and the first that leaves open what was done."""

T = TypeVar("T", bound=wire.Said)


class AccountsLink:
    """Asks an account system; made by :func:`open_accounts`.

    All calls raise ``Unreachable`` (``accounts_unreachable``: it is unknown what was done, and the same again is safe)
    and ``Refused`` with the system's code.
    """

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        """See :class:`services.accounts.port.AccountSystem`."""
        if not orders:
            return []
        answers = (await self._post("/orders", list(orders), wire.Answered)).answers
        if [(answer.event, answer.operation) for answer in answers] != [(one.event, one.operation) for one in orders]:
            raise self._unreachable("answers something else than it was asked")
        return answers

    async def look_up(self, events: Sequence[str]) -> list[Standing | None]:
        """See :class:`services.accounts.port.AccountSystem`."""
        if not events:
            return []
        found = (await self._post("/standings", wire.Events(list(events)), wire.Stood)).standings
        asked = zip(found, events, strict=False)
        if len(found) != len(events) or any(one is not None and one.event != event for one, event in asked):
            raise self._unreachable("answers something else than it was asked")
        return found

    async def entries(self, *, from_ms: int, until_ms: int, after: int, limit: int) -> Entries:
        """See :class:`services.accounts.port.AccountSystem`."""
        asked = f"/entries?fromMs={from_ms}&untilMs={until_ms}&after={after}&limit={limit}"
        page = await self._ask("GET", asked, None, wire.Posted)
        return Entries(page.items, page.next)

    async def open(self, accounts: Sequence[tuple[str, str]]) -> list[Account]:
        """Open accounts by id and currency; those that are open stay as they are."""
        asked = wire.Openings([wire.Opening(name, currency) for name, currency in accounts])
        return (await self._post("/accounts", asked, wire.AccountPage)).accounts

    async def deposit(self, account: str, amount: int, *, key: str) -> Account:
        """Bring simulated money in, 1/100 of the currency; the same key again moves nothing."""
        asked = wire.Deposit(key, amount)
        return (await self._post(f"/accounts/{quote(account, safe='')}/deposits", asked, wire.AccountSaid)).account

    async def freeze(self, account: str) -> Account:
        """Let an account neither pay nor be paid."""
        return (await self._ask("POST", f"/accounts/{quote(account, safe='')}/freeze", None, wire.AccountSaid)).account

    async def unfreeze(self, account: str) -> Account:
        """Let it pay and be paid again."""
        return (
            await self._ask("POST", f"/accounts/{quote(account, safe='')}/unfreeze", None, wire.AccountSaid)
        ).account

    async def account(self, account: str) -> Account:
        """Return one account."""
        return (await self._ask("GET", f"/accounts/{quote(account, safe='')}", None, wire.AccountSaid)).account

    async def accounts(self) -> list[Account]:
        """Return all accounts, by their ids."""
        found: list[Account] = []
        after = ""
        while True:
            page = await self._ask("GET", f"/accounts?after={quote(after, safe='')}", None, wire.AccountPage)
            found += page.accounts
            if not page.next:
                return found
            after = page.next

    async def issued(self) -> dict[str, int]:
        """Return the simulated money that came in, in 1/100, per currency: what all accounts have together."""
        return (await self._ask("GET", "/money", None, wire.Money)).issued

    async def set_fault(self, *faults: Fault) -> list[FaultAt]:
        """Have it misbehave in more ways; return all."""
        return (await self._post("/faults", wire.Faults(list(faults)), wire.FaultsSaid)).faults

    async def clear_faults(self) -> None:
        """Have it behave."""
        await self._ask("DELETE", "/faults", None, wire.FaultsSaid)

    async def faults(self) -> list[FaultAt]:
        """Return the faults in force."""
        return (await self._ask("GET", "/faults", None, wire.FaultsSaid)).faults

    async def _post(self, path: str, content: object, kind: type[T]) -> T:
        return await self._ask("POST", path, msgspec.json.encode(content), kind)

    async def _ask(self, verb: str, path: str, body: bytes | None, kind: type[T]) -> T:
        try:
            status, answer = await self._fetch(verb, path, body)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise self._unreachable(str(error) or type(error).__name__) from None
        try:
            if status == OK:
                return msgspec.json.decode(answer, type=kind)
            problem = msgspec.json.decode(answer, type=Failed).error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise self._unreachable(f"answers {status}, and what nobody can read: {error}") from None
        if status >= SERVER_ERRORS:
            raise self._unreachable(f"{problem.code}: {problem.message}")
        raise Refused(problem.code, problem.message)

    async def _fetch(self, verb: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Return status and content of an answer; ``Unreachable`` if it is too long."""
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._client.build_request(verb, self._url + path, content=body, headers=headers)
        if body is not None:
            request.stream = _Body(body)
        answer = bytearray()
        with trio.CancelScope() as enough:
            response = await self._client.send(request, stream=True)
            async with aclosing(response):
                async for part in response.aiter_bytes():
                    answer += part
                    if len(answer) > ANSWER_BYTES_MAX:
                        enough.cancel()  # the generators below end at their next read, which a raise would not do
                return response.status_code, bytes(answer)
        raise self._unreachable(f"answers more than {ANSWER_BYTES_MAX} bytes")

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(f"account system {self._url}: {why}", "accounts_unreachable")


class _Body(httpx.AsyncByteStream):
    """A request's body, once; httpx's own is a generator, which a connection that is lost leaves unfinished."""

    def __init__(self, content: bytes) -> None:
        self._parts = iter((content,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


@asynccontextmanager
async def open_accounts(url: str, *, token: str = "") -> AsyncIterator[AccountsLink]:
    """Give a link to ``http://HOST:PORT``; nothing is asked before the first call.

    Raises:
        LocalError: ``bad_url``.
    """
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL:
        base = httpx.URL()
    if base.scheme not in ("http", "https") or not base.host or base.path != "/":
        raise LocalError("bad_url", f"{url} is no address of an account system, such as http://127.0.0.1:26902")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    timeout = httpx.Timeout(ANSWER_MS_MAX / 1000, connect=CONNECT_MS_MAX / 1000)
    limits = httpx.Limits(
        max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=IDLE_S_MAX
    )
    async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, trust_env=False) as client:
        yield AccountsLink(client, str(base).rstrip("/"))
