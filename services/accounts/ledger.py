"""The rules of the account system: what an order does to two accounts and to the record of its event. Pure.

:class:`Books` holds the accounts and records that a few orders are about, and what came of them. The program fills one
out of its database for each request and writes it back in one transaction; a test may keep one for ever.

Every posting takes an amount out of one part of an account and puts it into another one, so that all parts, with
``WORLD/outside`` among them, add up to nothing in each currency. No part but that one is ever negative. What came
from outside stays below 2^63, and so does every balance.
"""

from collections.abc import Iterable
from typing import assert_never

import msgspec

from consensus.ledger.errors import InvariantError
from services.accounts.port import Answer, Entry, Operation, Order, Standing
from services.client.errors import Refused

WORLD = "WORLD"
"""No account: where simulated money comes from."""
OUTSIDE = f"{WORLD}/outside"
DEPOSIT = "deposit"
"""Operation of the postings that bring simulated money in."""
ISSUED_MAX = 2**63 - 1
"""Money of one currency in all accounts together, in 1/100."""


class Account(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An account with its two parts, in 1/100 of its currency. A frozen one neither pays nor is paid."""

    id: str
    currency: str
    available: int = 0
    held: int = 0
    is_frozen: bool = False
    opened_ms: int = 0


class Books:
    """Accounts, records of events and money per currency, as far as they are known here, and what was changed in them.

    ``changed_accounts``, ``changed_standings`` and ``entries`` gather what is to be kept; ``last`` is the number of the
    newest posting, ``time_ms`` the present time (UTC, from 1 on).
    """

    def __init__(
        self,
        accounts: Iterable[Account] = (),
        standings: Iterable[Standing] = (),
        *,
        issued: dict[str, int] | None = None,
        last: int = 0,
        time_ms: int = 0,
    ) -> None:
        self.accounts = {account.id: account for account in accounts}
        self.standings = {standing.event: standing for standing in standings}
        self.issued = dict(issued or {})
        self.last = last
        self.time_ms = time_ms
        self.changed_accounts: set[str] = set()
        self.changed_standings: set[str] = set()
        self.entries: list[Entry] = []

    def run(self, order: Order) -> Answer:
        """Do an order as the table in :mod:`services.accounts.port` says; a refused one leaves no trace."""
        try:
            time_ms = self._do(order)
        except Refused as refusal:
            return Answer(order.event, order.operation, refusal.code, refusal.message)
        return Answer(order.event, order.operation, time_ms=time_ms)

    def open(self, account: str, currency: str) -> Account:
        """Open an account, or return the one of this currency that is open.

        Raises:
            Refused: ``account_exists`` with another currency, or as the place where money comes from.
        """
        known = self.accounts.get(account)
        if account == WORLD or (known is not None and known.currency != currency):
            held_in = "no account to open" if known is None else f"an account in {known.currency}"
            raise Refused("account_exists", f"{account} is {held_in}")
        return known or self._keep(Account(id=account, currency=currency, opened_ms=self.time_ms))

    def freeze(self, account: str, *, is_frozen: bool) -> Account:
        """Freeze an account, or thaw it; ``unknown_account``."""
        return self._keep(msgspec.structs.replace(self._known(account), is_frozen=is_frozen))

    def deposit(self, reference: str, account: str, amount: int) -> Account:
        """Bring simulated money into an account; ``reference`` was not used for a deposit before.

        Raises:
            Refused: ``unknown_account``, ``overflow`` where a currency would have more than ``ISSUED_MAX``.
        """
        known = self._known(account)
        issued = self.issued.get(known.currency, 0) + amount
        if issued > ISSUED_MAX:
            raise Refused("overflow", f"all {known.currency} here would be more than {ISSUED_MAX}/100")
        self.issued[known.currency] = issued
        self._note(reference, DEPOSIT, OUTSIDE, f"{account}/available", amount, known.currency)
        return self._keep(msgspec.structs.replace(known, available=known.available + amount))

    def _do(self, order: Order) -> int:
        """Do an order and return when it was done first, UTC ms."""
        standing = self.standings.get(order.event)
        if standing is None:
            return self._begin(order)
        if (order.payer, order.payee, order.amount, order.currency) != (
            *(standing.payer, standing.payee, standing.amount, standing.currency),
        ):
            raise Refused("operation_conflict", f"{order.event} has other terms")
        if done_ms := _done_ms(standing, order.operation):
            return done_ms
        match order.operation:
            case Operation.RESERVE:
                raise _closed(standing)  # else it would have been reserved first
            case Operation.PAY:
                if standing.released_ms:
                    raise _closed(standing)
                self._check_accounts(order)
                self._move(order, f"{order.payer}/held", f"{order.payee}/available")
                return self._stand(standing, paid_ms=self.time_ms)
            case Operation.RELEASE:
                if standing.paid_ms:
                    raise _closed(standing)
                self._move(order, f"{order.payer}/held", f"{order.payer}/available")
                return self._stand(standing, released_ms=self.time_ms)
            case Operation.REVERSE:
                if not standing.paid_ms:
                    raise Refused("not_paid", f"{order.event} was not paid")
                self._check_accounts(order)
                self._check_funds(order.payee, order.amount)
                self._move(order, f"{order.payee}/available", f"{order.payer}/available")
                return self._stand(standing, reversed_ms=self.time_ms)
            case _:
                assert_never(order.operation)

    def _begin(self, order: Order) -> int:
        """Do the first order of an event."""
        fresh = Standing(order.event, order.payer, order.payee, order.amount, order.currency)
        match order.operation:
            case Operation.RESERVE:
                self._check_accounts(order)
                self._check_funds(order.payer, order.amount)
                self._move(order, f"{order.payer}/available", f"{order.payer}/held")
                return self._stand(fresh, reserved_ms=self.time_ms)
            case Operation.PAY:
                self._check_accounts(order)
                self._check_funds(order.payer, order.amount)
                self._move(order, f"{order.payer}/available", f"{order.payee}/available")
                return self._stand(fresh, paid_ms=self.time_ms)
            case Operation.RELEASE:
                return self._stand(fresh, released_ms=self.time_ms, is_tombstone=True)
            case Operation.REVERSE:
                raise Refused("not_paid", f"{order.event} was not paid")
            case _:
                assert_never(order.operation)

    def _known(self, account: str) -> Account:
        known = self.accounts.get(account)
        if known is None:
            raise Refused("unknown_account", f"there is no account {account}")
        return known

    def _check_accounts(self, order: Order) -> None:
        accounts = [self._known(name) for name in (order.payer, order.payee)]
        for account in accounts:
            if account.currency != order.currency:
                raise Refused("wrong_currency", f"{account.id} is in {account.currency}, not in {order.currency}")
        for account in accounts:
            if account.is_frozen:
                raise Refused("account_frozen", f"{account.id} is frozen")

    def _check_funds(self, account: str, amount: int) -> None:
        if self._known(account).available < amount:
            raise Refused("insufficient_funds", f"less is available in {account}")

    def _move(self, order: Order, debit: str, credit: str) -> None:
        for place, amount in ((debit, -order.amount), (credit, order.amount)):
            name, _, part = place.partition("/")
            account = self._known(name)
            balance = getattr(account, part) + amount
            if balance < 0:
                raise InvariantError(f"{place} would be negative")
            self._keep(msgspec.structs.replace(account, **{part: balance}))
        self._note(order.event, order.operation, debit, credit, order.amount, order.currency)

    def _keep(self, account: Account) -> Account:
        self.accounts[account.id] = account
        self.changed_accounts.add(account.id)
        return account

    def _stand(self, standing: Standing, **times: int) -> int:
        self.standings[standing.event] = msgspec.structs.replace(standing, **times)
        self.changed_standings.add(standing.event)
        return self.time_ms

    def _note(self, event: str, operation: str, debit: str, credit: str, amount: int, currency: str) -> None:
        self.last += 1
        self.entries.append(Entry(self.last, event, str(operation), debit, credit, amount, currency, self.time_ms))


def _done_ms(standing: Standing, operation: Operation) -> int:
    """Return when an operation was done, UTC ms, 0 if it was not."""
    match operation:
        case Operation.RESERVE:
            return standing.reserved_ms
        case Operation.PAY:
            return standing.paid_ms
        case Operation.RELEASE:
            return standing.released_ms
        case Operation.REVERSE:
            return standing.reversed_ms
        case _:
            assert_never(operation)


def _closed(standing: Standing) -> Refused:
    """Return why nothing more is held or released for an event."""
    if standing.paid_ms:
        return Refused("already_paid", f"{standing.event} was paid")
    return Refused("released", f"{standing.event} was given up")
