"""Fills the port to an account system over HTTP, as the reference program answers it; also its own few methods."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import quote

from services.accounts import wire
from services.accounts.faults import Fault, FaultAt
from services.accounts.ledger import Account
from services.accounts.port import Answer, Entries, Order, Standing
from services.local.asking import Program, ProgramLink, open_program


class AccountsLink:
    """Asks an account system; made by :func:`open_accounts`.

    All calls raise ``Unreachable`` (``accounts_unreachable``: it is unknown what was done, and the same again is safe)
    and ``Refused`` with the system's code.
    """

    def __init__(self, program: ProgramLink) -> None:
        self._program = program

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        """See :class:`services.accounts.port.AccountSystem`."""
        if not orders:
            return []
        answers = (await self._program.post("/orders", list(orders), wire.Answered)).answers
        if [(answer.event, answer.operation) for answer in answers] != [(one.event, one.operation) for one in orders]:
            raise self._program.unreachable("answers something else than it was asked")
        return answers

    async def look_up(self, events: Sequence[str]) -> list[Standing | None]:
        """See :class:`services.accounts.port.AccountSystem`."""
        if not events:
            return []
        found = (await self._program.post("/standings", wire.Events(list(events)), wire.Stood)).standings
        asked = zip(found, events, strict=False)
        if len(found) != len(events) or any(one is not None and one.event != event for one, event in asked):
            raise self._program.unreachable("answers something else than it was asked")
        return found

    async def entries(self, *, from_ms: int, until_ms: int, after: int, limit: int) -> Entries:
        """See :class:`services.accounts.port.AccountSystem`."""
        asked = f"/entries?fromMs={from_ms}&untilMs={until_ms}&after={after}&limit={limit}"
        page = await self._program.ask("GET", asked, None, wire.Posted)
        return Entries(page.items, page.next)

    async def open(self, accounts: Sequence[tuple[str, str]]) -> list[Account]:
        """Open accounts by id and currency; those that are open stay as they are."""
        asked = wire.Openings([wire.Opening(name, currency) for name, currency in accounts])
        return (await self._program.post("/accounts", asked, wire.AccountPage)).accounts

    async def deposit(self, account: str, amount: int, *, key: str) -> Account:
        """Bring simulated money in, 1/100 of the currency; the same key again moves nothing."""
        asked = wire.Deposit(key, amount)
        return (
            await self._program.post(f"/accounts/{quote(account, safe='')}/deposits", asked, wire.AccountSaid)
        ).account

    async def freeze(self, account: str) -> Account:
        """Let an account neither pay nor be paid."""
        return (
            await self._program.ask("POST", f"/accounts/{quote(account, safe='')}/freeze", None, wire.AccountSaid)
        ).account

    async def unfreeze(self, account: str) -> Account:
        """Let it pay and be paid again."""
        return (
            await self._program.ask("POST", f"/accounts/{quote(account, safe='')}/unfreeze", None, wire.AccountSaid)
        ).account

    async def account(self, account: str) -> Account:
        """Return one account."""
        return (await self._program.ask("GET", f"/accounts/{quote(account, safe='')}", None, wire.AccountSaid)).account

    async def accounts(self) -> list[Account]:
        """Return all accounts, by their ids."""
        found: list[Account] = []
        after = ""
        while True:
            page = await self._program.ask("GET", f"/accounts?after={quote(after, safe='')}", None, wire.AccountPage)
            found += page.accounts
            if not page.next:
                return found
            after = page.next

    async def issued(self) -> dict[str, int]:
        """Return the simulated money that came in, in 1/100, per currency: what all accounts have together."""
        return (await self._program.ask("GET", "/money", None, wire.Money)).issued

    async def set_fault(self, *faults: Fault) -> list[FaultAt]:
        """Have it misbehave in more ways; return all."""
        return (await self._program.post("/faults", wire.Faults(list(faults)), wire.FaultsSaid)).faults

    async def clear_faults(self) -> None:
        """Have it behave."""
        await self._program.ask("DELETE", "/faults", None, wire.FaultsSaid)

    async def faults(self) -> list[FaultAt]:
        """Return the faults in force."""
        return (await self._program.ask("GET", "/faults", None, wire.FaultsSaid)).faults


@asynccontextmanager
async def open_accounts(url: str, *, token: str = "") -> AsyncIterator[AccountsLink]:
    """Give a link to ``http://HOST:PORT``; nothing is asked before the first call.

    Raises:
        LocalError: ``bad_url``.
    """
    async with open_program(Program(url, "account system", "accounts_unreachable"), token=token) as program:
        yield AccountsLink(program)
