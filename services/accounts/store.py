"""The books in a database: each request is one transaction, which reads what it is about and writes what changed.

Works are run again when a database server was lost, also after a commit that nobody heard of. All of these may be:
operations and deposits are keyed, and what is opened or frozen is afterwards as it was asked for. The newest posting's
number is read with each work; a posting's time is the clock's, right or wrong.
"""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
import sqlalchemy
from sqlalchemy import Connection, bindparam, select

from services.accounts import tables
from services.accounts.ledger import DEPOSIT, Account, Books
from services.accounts.port import Answer, Entries, Entry, Order, Standing
from services.client.errors import Refused
from services.local.database import Database, open_database

MIGRATIONS = "services.accounts.migrations"

NowMs = Callable[[], int]
R = TypeVar("R", Account, Entry, Standing)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class AccountStore:
    """The account system's books, durable. Made by :func:`open_store`.

    All calls raise ``Unreachable`` while a database server is away (then it is unknown what was done, and the same
    again is safe), and ``StorageError`` when the disk failed.
    """

    def __init__(self, database: Database, *, now_ms: NowMs = _now_ms) -> None:
        self._database = database
        self._now_ms = now_ms

    async def run(self, orders: Sequence[Order]) -> list[Answer]:
        """Do orders, each for itself, in one transaction."""
        return await self._database.write(partial(_run, self._now_ms, orders))

    async def look_up(self, events: Sequence[str]) -> list[Standing | None]:
        """Return what was done for events, None for unknown ones."""
        return await self._database.read(partial(_look_up, events))

    async def entries(self, *, from_ms: int, until_ms: int, after: int, limit: int) -> Entries:
        """See :class:`services.accounts.port.AccountSystem`."""
        return await self._database.read(partial(_entries, from_ms, until_ms, after, limit))

    async def open(self, wanted: Sequence[tuple[str, str]]) -> list[Account]:
        """Open accounts of currencies, all or none; ``account_exists`` with another currency."""
        return await self._database.write(partial(_open, self._now_ms, wanted))

    async def deposit(self, reference: str, account: str, amount: int) -> Account:
        """Bring simulated money in, once for each ``reference``.

        Raises:
            Refused: ``unknown_account``, ``overflow``; ``operation_conflict`` for a reference of another deposit.
        """
        return await self._database.write(partial(_deposit, self._now_ms, reference, account, amount))

    async def freeze(self, account: str, *, is_frozen: bool) -> Account:
        """Freeze an account, or thaw it; ``unknown_account``."""
        return await self._database.write(partial(_freeze, account, is_frozen))

    async def account(self, account: str) -> Account:
        """Return an account; ``unknown_account``."""
        found = await self._database.read(lambda connection: _accounts(connection, [account]))
        if not found:
            raise Refused("unknown_account", f"there is no account {account}")
        return found[0]

    async def accounts(self, after: str, limit: int) -> list[Account]:
        """Return accounts in the order of their ids, above ``after``."""
        table = tables.accounts
        query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
        return await self._database.read(lambda connection: _rows(connection, query, Account))

    async def money(self) -> dict[str, int]:
        """Return the simulated money that came in, in 1/100, per currency."""
        return await self._database.read(_money)


@asynccontextmanager
async def open_store(url: str, *, now_ms: NowMs = _now_ms) -> AsyncIterator[AccountStore]:
    """Open the books for the time of the block; errors as :func:`services.local.database.open_database`."""
    async with open_database(url, migrations=MIGRATIONS) as database:
        yield AccountStore(database, now_ms=now_ms)


def _run(now_ms: NowMs, orders: Sequence[Order], connection: Connection) -> list[Answer]:
    standings = _standings(connection, {order.event for order in orders})
    names = {name for order in orders for name in (order.payer, order.payee)}
    books = _books(connection, now_ms, _accounts(connection, names), standings)
    answers = [books.run(order) for order in orders]
    _save(connection, books, {standing.event for standing in standings})
    return answers


def _look_up(events: Sequence[str], connection: Connection) -> list[Standing | None]:
    found = {standing.event: standing for standing in _standings(connection, set(events))}
    return [found.get(event) for event in events]


def _entries(from_ms: int, until_ms: int, after: int, limit: int, connection: Connection) -> Entries:
    table = tables.entries
    query = select(table).where(table.c.time_ms >= from_ms, table.c.time_ms < until_ms)
    if after:
        after_ms = connection.scalar(select(table.c.time_ms).where(table.c.number == after))
        if after_ms is None:
            return Entries([], 0)
        query = query.where(sqlalchemy.tuple_(table.c.time_ms, table.c.number) > (after_ms, after))
    items = _rows(connection, query.order_by(table.c.time_ms, table.c.number).limit(limit + 1), Entry)
    return Entries(items[:limit], items[limit - 1].number if len(items) > limit else 0)


def _open(now_ms: NowMs, wanted: Sequence[tuple[str, str]], connection: Connection) -> list[Account]:
    known = _accounts(connection, {account for account, _ in wanted})
    books = _books(connection, now_ms, known)
    opened = [books.open(account, currency) for account, currency in wanted]
    new = books.changed_accounts
    if new:
        connection.execute(
            tables.accounts.insert(), [msgspec.structs.asdict(books.accounts[name]) for name in sorted(new)]
        )
    return opened


def _deposit(now_ms: NowMs, reference: str, account: str, amount: int, connection: Connection) -> Account:
    table = tables.entries
    query = select(table).where(table.c.event == reference, table.c.operation == DEPOSIT)
    for entry in _rows(connection, query, Entry):
        if (entry.credit, entry.amount) != (f"{account}/available", amount):
            raise Refused("operation_conflict", f"{reference} was another deposit")
        (known,) = _accounts(connection, [account])
        return known
    books = _books(connection, now_ms, _accounts(connection, [account]))
    before = _money(connection)
    books.issued = dict(before)
    after = books.deposit(reference, account, amount)
    money = {"currency": after.currency, "amount": books.issued[after.currency]}
    if after.currency in before:
        connection.execute(tables.issued.update().where(tables.issued.c.currency == after.currency), money)
    else:
        connection.execute(tables.issued.insert(), money)
    _save(connection, books, ())
    return after


def _freeze(account: str, is_frozen: bool, connection: Connection) -> Account:
    books = Books(_accounts(connection, [account]))
    after = books.freeze(account, is_frozen=is_frozen)
    _save(connection, books, ())
    return after


def _money(connection: Connection) -> dict[str, int]:
    return {row.currency: row.amount for row in connection.execute(select(tables.issued))}


def _books(
    connection: Connection, now_ms: NowMs, accounts: Iterable[Account], standings: Iterable[Standing] = ()
) -> Books:
    last = connection.scalar(select(sqlalchemy.func.max(tables.entries.c.number)))
    return Books(accounts, standings, last=last or 0, time_ms=max(1, now_ms()))


def _accounts(connection: Connection, names: Collection[str]) -> list[Account]:
    table = tables.accounts
    return _rows(connection, select(table).where(table.c.id.in_(sorted(names))), Account)


def _standings(connection: Connection, events: Collection[str]) -> list[Standing]:
    table = tables.standings
    return _rows(connection, select(table).where(table.c.event.in_(sorted(events))), Standing)


def _rows(connection: Connection, query: sqlalchemy.Select[Any], kind: type[R]) -> list[R]:
    return [kind(**row) for row in connection.execute(query).mappings()]


_BALANCES = ("available", "held", "is_frozen")
_KEEP_ACCOUNT = (
    tables.accounts.update()
    .where(tables.accounts.c.id == bindparam("key"))
    .values({name: bindparam(name) for name in _BALANCES})
)
_TIMES = ("reserved_ms", "paid_ms", "released_ms", "reversed_ms")
_KEEP_STANDING = (
    tables.standings.update()
    .where(tables.standings.c.event == bindparam("key"))
    .values({name: bindparam(name) for name in _TIMES})
)


def _save(connection: Connection, books: Books, known: Collection[str]) -> None:
    """Write what was changed in books; ``known`` are the events whose records stand in the table already."""
    if books.entries:
        connection.execute(tables.entries.insert(), [msgspec.structs.asdict(entry) for entry in books.entries])
    changed = [books.standings[event] for event in sorted(books.changed_standings)]
    if new := [msgspec.structs.asdict(standing) for standing in changed if standing.event not in known]:
        connection.execute(tables.standings.insert(), new)
    if old := [_changes(standing.event, standing, _TIMES) for standing in changed if standing.event in known]:
        connection.execute(_KEEP_STANDING, old)
    if names := sorted(books.changed_accounts):
        connection.execute(_KEEP_ACCOUNT, [_changes(name, books.accounts[name], _BALANCES) for name in names])


def _changes(key: str, item: Account | Standing, columns: Iterable[str]) -> dict[str, object]:
    return {"key": key, **{name: getattr(item, name) for name in columns}}
