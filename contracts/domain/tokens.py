"""Named units of value: defined and issued by one account, held, moved and reserved by all others.

A balance has two parts: what is *available* and what is *reserved*. The holder reserves under keys of its own: such an
amount moves from one to the other and back, or out of the reserve to a payee. What was *delivered* to a holder is
reserved under a lien: it belongs to the holder, who can neither spend nor free it, until an agent lifts the lien since
the price was paid, or gives the units back to the seller since it never will be.

An *escrow* is an amount that left the balances: another contract holds it under a key of its own choice, and alone says
whom it goes to. Only contracts put units there and pay them out, each those of its own.

State, under ``tokens/``:

- ``unit/UNIT`` = {issuer (20 bytes), decimals, description}
- ``supply/UNIT`` = amount in existence
- ``balance/UNIT/ADDRESS`` = [available, reserved]
- ``reservation/UNIT/ADDRESS/KEY`` = amount still reserved; 0 once committed or released, so that a key serves once
- ``escrow/UNIT/CONTRACT/KEY`` = amount that a contract holds under a key; none once all was paid out
- ``lien/SELLER/EVENT`` = {unit, to, amount, agent, status}, kept for ever, so that an event of a seller serves once

Invariants, for every unit: the sum of all available, reserved and escrowed amounts is the supply; a holder's
reserved amount is the sum of its reservations and of the held liens on it; nothing is negative; the supply is at most
2^63 − 1, so that no sum of balances overflows.

A transfer reads and writes two balances and nothing else. The recipient must be a registered account,
because units sent to a mistyped address would be lost for good; that is looked up only when it holds
no balance record of the unit yet, since accounts are never removed. A suspended account may receive:
a suspension stops its acts, not its claims.
"""

from typing import Annotated, Any

import msgspec

from consensus.ledger.codec import INTEGER_MAX
from contracts.runtime.contract import AccountAddress, Amount, Context, Contract, Name, Revert, Value, method, query

ISSUER_ROLE = "unit-issuer"
"""The role of an account that may define units."""

# No slash, since names are parts of state keys: a unit "A/…" could otherwise stand for a record of unit A.
UnitName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}\Z")]
Decimals = Annotated[int, msgspec.Meta(ge=0, le=18)]
Text = Annotated[str, msgspec.Meta(max_length=140)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]

HELD, LIFTED, GIVEN_BACK = "HELD", "LIFTED", "GIVEN_BACK"
"""How a lien stands; it leaves ``HELD`` once."""


class Tokens(Contract):
    """Named units of value: issue, transfer, reserve, commit, release and burn, all in smallest units."""

    name = "tokens"
    version = 1

    @method
    def define(self, context: Context, unit: UnitName, decimals: Decimals = 0, description: Text = "") -> None:
        """Define a unit, issued and burned by the caller alone from now on.

        The caller needs the role ``unit-issuer``. ``decimals`` says how a smallest unit is shown: 2 for cents.

        Fails with ``not_allowed`` or ``unit_exists``.
        """
        account = context.account(context.caller)
        if account is None or ISSUER_ROLE not in account.roles:
            raise Revert("not_allowed", "needs the role unit-issuer")
        context.require(context.state.get(f"unit/{unit}") is None, "unit_exists")
        context.state.put(f"unit/{unit}", {"issuer": context.caller, "decimals": decimals, "description": description})
        context.state.put(f"supply/{unit}", 0)
        context.emit("defined", unit=unit, issuer=context.caller, decimals=decimals)

    @method
    def issue(self, context: Context, unit: UnitName, to: AccountAddress, amount: Amount) -> int:
        """Create an amount, in smallest units, in an account's available balance; return the new supply.

        Only the unit's issuer may. Fails with ``unknown_unit``, ``not_allowed``, ``unknown_account`` or ``overflow``.
        """
        supply = _supply_for_issuer(context, unit)
        context.require(supply <= INTEGER_MAX - amount, "overflow", "the supply would exceed 2^63 - 1")
        key = _balance_key(unit, to)
        available, reserved = _recipient_balance(context, key, to)
        context.state.put(f"supply/{unit}", supply + amount)
        context.state.put(key, [available + amount, reserved])
        context.emit("issued", unit=unit, to=to, amount=amount)
        return supply + amount

    @method
    def burn(self, context: Context, unit: UnitName, amount: Amount) -> int:
        """Destroy an amount, in smallest units, of the issuer's own available balance; return the new supply.

        Only the unit's issuer may, since the supply is what it owes: holders redeem by a transfer to it.
        Fails with ``unknown_unit``, ``not_allowed`` or ``insufficient_funds``.
        """
        supply = _supply_for_issuer(context, unit)
        key = _balance_key(unit, context.caller)
        available, reserved = _spendable(context, unit, key, amount)
        context.state.put(f"supply/{unit}", supply - amount)
        context.state.put(key, [available - amount, reserved])
        context.emit("burned", unit=unit, amount=amount)
        return supply - amount

    @method
    def transfer(self, context: Context, unit: UnitName, to: AccountAddress, amount: Amount, memo: Text = "") -> None:
        """Move an amount, in smallest units, from the caller's available balance to another account's.

        ``memo`` is up to 140 characters that everybody can read: references only, no personal data.
        Fails with ``unknown_unit``, ``insufficient_funds`` or ``unknown_account``.
        """
        key = _balance_key(unit, context.caller)
        available, reserved = _spendable(context, unit, key, amount)
        if to != context.caller:
            to_key = _balance_key(unit, to)
            to_available, to_reserved = _recipient_balance(context, to_key, to)
            context.state.put(key, [available - amount, reserved])
            context.state.put(to_key, [to_available + amount, to_reserved])
        context.emit("transferred", unit=unit, sender=context.caller, to=to, amount=amount, memo=memo)

    @method
    def reserve(self, context: Context, unit: UnitName, key: Name, amount: Amount) -> None:
        """Set an amount, in smallest units, of the caller's available balance aside under a key.

        A key serves once for each holder and unit, also after its end.
        Fails with ``unknown_unit``, ``insufficient_funds`` or ``reservation_exists``.
        """
        reservation = _reservation_key(unit, context.caller, key)
        context.require(context.state.get(reservation) is None, "reservation_exists")
        balance_key = _balance_key(unit, context.caller)
        available, reserved = _spendable(context, unit, balance_key, amount)
        context.state.put(reservation, amount)
        context.state.put(balance_key, [available - amount, reserved + amount])
        context.emit("reserved", unit=unit, holder=context.caller, key=key, amount=amount)

    @method
    def commit(self, context: Context, unit: UnitName, key: Name, to: AccountAddress) -> int:
        """Pay what the caller reserved under a key to an account; return the amount, in smallest units.

        Fails with ``unknown_reservation``, ``reservation_closed`` or ``unknown_account``.
        """
        amount = _close_reservation(context, unit, key)
        to_key = _balance_key(unit, to)
        available, reserved = _recipient_balance(context, to_key, to)
        context.state.put(to_key, [available + amount, reserved])
        context.emit("committed", unit=unit, holder=context.caller, key=key, to=to, amount=amount)
        return amount

    @method
    def release(self, context: Context, unit: UnitName, key: Name) -> int:
        """Return what the caller reserved under a key to its available balance; return the amount, in smallest units.

        Fails with ``unknown_reservation`` or ``reservation_closed``.
        """
        amount = _close_reservation(context, unit, key)
        balance_key = _balance_key(unit, context.caller)
        available, reserved = _balance(context, balance_key)
        context.state.put(balance_key, [available + amount, reserved])
        context.emit("released", unit=unit, holder=context.caller, key=key, amount=amount)
        return amount

    @method
    def deliver(
        self, context: Context, unit: UnitName, to: AccountAddress, amount: Amount, event: Name, agent: AccountAddress
    ) -> None:
        """Move an amount, in smallest units, of the caller's available balance to a buyer, under a lien of the event.

        Only the ``agent`` lifts the lien or gives the amount back. It is a third account: a seller could take back
        what was paid for, and a buyer could free what it has not paid. An event of a seller serves once.

        Fails with ``same_account``, ``lien_exists``, ``unknown_unit``, ``insufficient_funds`` or ``unknown_account``.
        """
        seller = context.caller
        is_apart = seller != to and agent != seller and agent != to
        context.require(is_apart, "same_account", "seller, buyer and agent are three accounts")
        lien_key = _lien_key(seller, event)
        context.require(context.state.get(lien_key) is None, "lien_exists", "the event has served this seller")
        key = _balance_key(unit, seller)
        available, reserved = _spendable(context, unit, key, amount)
        to_key = _balance_key(unit, to)
        to_available, to_reserved = _recipient_balance(context, to_key, to)
        context.require(context.account(agent) is not None, "unknown_account", "the agent is no account")
        context.state.put(key, [available - amount, reserved])
        context.state.put(to_key, [to_available, to_reserved + amount])
        lien = {"unit": unit, "to": to, "amount": amount, "agent": agent, "status": HELD}
        context.state.put(lien_key, lien)
        context.emit("delivered", unit=unit, seller=seller, to=to, amount=amount, event=event, agent=agent)

    @method
    def lift(self, context: Context, seller: AccountAddress, event: Name) -> int:
        """Free what a seller delivered for an event: the buyer may spend it; return the amount, in smallest units.

        Only the lien's agent may. Fails with ``unknown_lien``, ``not_allowed`` or ``lien_closed``.
        """
        lien = _close_lien(context, seller, event, LIFTED)
        unit, to = lien["unit"], lien["to"]
        amount: int = lien["amount"]
        key = _balance_key(unit, to)
        available, reserved = _balance(context, key)
        context.state.put(key, [available + amount, reserved])
        context.emit("lifted", unit=unit, seller=seller, to=to, amount=amount, event=event)
        return amount

    @method
    def give_back(self, context: Context, seller: AccountAddress, event: Name) -> int:
        """Return what a seller delivered for an event to its available balance; return the amount, in smallest units.

        Only the lien's agent may. Fails with ``unknown_lien``, ``not_allowed`` or ``lien_closed``.
        """
        lien = _close_lien(context, seller, event, GIVEN_BACK)
        unit, to = lien["unit"], lien["to"]
        amount: int = lien["amount"]
        key = _balance_key(unit, seller)
        available, reserved = _balance(context, key)
        context.state.put(key, [available + amount, reserved])
        context.emit("given_back", unit=unit, seller=seller, to=to, amount=amount, event=event)
        return amount

    @method
    def escrow(self, context: Context, unit: UnitName, key: Name, amount: Amount) -> int:
        """Move an amount, in smallest units, from the caller's available balance to what a contract holds under a key.

        Only contracts call this; the amount is added to what is there; return how much that is now. Fails with
        ``not_allowed``, ``unknown_unit`` or ``insufficient_funds``.
        """
        context.require(context.via != "", "not_allowed", "an escrow belongs to a contract")
        balance_key = _balance_key(unit, context.caller)
        available, reserved = _spendable(context, unit, balance_key, amount)
        place = _escrow_key(unit, context.via, key)
        held: int = (context.state.get(place) or 0) + amount
        context.state.put(balance_key, [available - amount, reserved])
        context.state.put(place, held)
        context.emit("escrowed", unit=unit, holder=context.caller, contract=context.via, key=key, amount=amount)
        return held

    @method
    def pay_escrow(self, context: Context, unit: UnitName, key: Name, to: AccountAddress, amount: Amount) -> int:
        """Pay an amount, in smallest units, of what the calling contract holds under a key to an account.

        Only the contract that holds it calls this; return how much is left. Fails with ``not_allowed``,
        ``insufficient_escrow`` or ``unknown_account``.
        """
        context.require(context.via != "", "not_allowed", "an escrow belongs to a contract")
        place = _escrow_key(unit, context.via, key)
        held: int = context.state.get(place) or 0
        context.require(held >= amount, "insufficient_escrow", f"{held} held, {amount} needed")
        to_key = _balance_key(unit, to)
        available, reserved = _recipient_balance(context, to_key, to)
        context.state.put(to_key, [available + amount, reserved])
        if held > amount:
            context.state.put(place, held - amount)
        else:
            context.state.delete(place)
        context.emit("escrow_paid", unit=unit, contract=context.via, key=key, to=to, amount=amount)
        return held - amount

    @query
    def unit(self, context: Context, unit: UnitName) -> dict[str, Value]:
        """Return a unit's {unit, issuer, decimals, description, supply}. Fails with ``unknown_unit``."""
        record = _unit(context, unit)
        return {**record, "unit": unit, "supply": context.state.get(f"supply/{unit}")}

    @query
    def units(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` units whose names are ``start`` or come after it, in order of their names."""
        return [
            {**record, "unit": key[5:], "supply": context.state.get(f"supply/{key[5:]}")}
            for key, record in context.state.scan("unit/", f"unit/{start}", limit)
        ]

    @query
    def balance(self, context: Context, unit: UnitName, account: AccountAddress) -> dict[str, Value]:
        """Return an account's {available, reserved} amounts in smallest units. Fails with ``unknown_unit``."""
        _unit(context, unit)
        available, reserved = _balance(context, _balance_key(unit, account))
        return {"available": available, "reserved": reserved}

    @query
    def balances(self, context: Context, unit: UnitName, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` holders as {account, available, reserved}, in order of their addresses.

        ``start`` is the first address, in hex. Fails with ``unknown_unit``.
        """
        _unit(context, unit)
        prefix = f"balance/{unit}/"
        page: list[Value] = []
        for key, value in context.state.scan(prefix, prefix + start, limit):
            available, reserved = value
            page.append({"account": bytes.fromhex(key[len(prefix) :]), "available": available, "reserved": reserved})
        return page

    @query
    def reservation(self, context: Context, unit: UnitName, account: AccountAddress, key: Name) -> int:
        """Return what an account still holds reserved under a key, in smallest units; 0 once it is closed.

        Fails with ``unknown_reservation``.
        """
        amount: int | None = context.state.get(_reservation_key(unit, account, key))
        if amount is None:
            raise Revert("unknown_reservation")
        return amount

    @query
    def escrowed(self, context: Context, unit: UnitName, contract: Name, key: Name) -> int:
        """Return what a contract holds under a key, in smallest units; 0 where it holds nothing."""
        amount: int = context.state.get(_escrow_key(unit, contract, key)) or 0
        return amount

    @query
    def escrows(
        self,
        context: Context,
        unit: UnitName,
        start: Annotated[str, msgspec.Meta(max_length=129)] = "",
        limit: PageSize = 100,
    ) -> list[Value]:
        """Return up to ``limit`` escrows of a unit as {contract, key, amount}, from ``start`` = CONTRACT/KEY on."""
        prefix = f"escrow/{unit}/"
        page: list[Value] = []
        for place, amount in context.state.scan(prefix, prefix + start, limit):
            contract, key = place[len(prefix) :].split("/", 1)
            page.append({"contract": contract, "key": key, "amount": amount})
        return page

    @query
    def lien(self, context: Context, seller: AccountAddress, event: Name) -> dict[str, Value]:
        """Return a lien's {seller, event, unit, to, amount, agent, status}, ``status`` HELD, LIFTED or GIVEN_BACK.

        Fails with ``unknown_lien``.
        """
        return {**_lien(context, seller, event), "seller": seller, "event": event}

    @query
    def liens(
        self,
        context: Context,
        seller: AccountAddress,
        start: Annotated[str, msgspec.Meta(max_length=64)] = "",
        limit: PageSize = 100,
    ) -> list[Value]:
        """Return up to ``limit`` liens of a seller whose events are ``start`` or come after it, in their order."""
        prefix = _lien_key(seller, "")
        return [
            {**record, "seller": seller, "event": key[len(prefix) :]}
            for key, record in context.state.scan(prefix, prefix + start, limit)
        ]


def _unit(context: Context, unit: str) -> dict[str, Any]:
    record: dict[str, Any] | None = context.state.get(f"unit/{unit}")
    if record is None:
        raise Revert("unknown_unit")
    return record


def _supply_for_issuer(context: Context, unit: str) -> int:
    """Return the unit's supply, for its issuer alone."""
    context.require(_unit(context, unit)["issuer"] == context.caller, "not_allowed", "only the unit's issuer may")
    supply: int = context.state.get(f"supply/{unit}")
    return supply


def _balance_key(unit: str, account: bytes) -> str:
    return f"balance/{unit}/{account.hex()}"


def _balance(context: Context, key: str) -> list[int]:
    """Return [available, reserved], zeros for who never held the unit."""
    balance: list[int] | None = context.state.get(key)
    return [0, 0] if balance is None else balance


def _spendable(context: Context, unit: str, key: str, amount: int) -> list[int]:
    """Return the balance at the caller's key once it is known to have the amount available."""
    balance = _balance(context, key)
    if balance[0] < amount:
        _unit(context, unit)
        context.require(False, "insufficient_funds", f"{balance[0]} available, {amount} needed")
    return balance


def _recipient_balance(context: Context, key: str, account: bytes) -> list[int]:
    """Return the balance at an account's key to add to; who never held the unit must be a registered account."""
    balance: list[int] | None = context.state.get(key)
    if balance is None:
        context.require(context.account(account) is not None, "unknown_account")
        return [0, 0]
    return balance


def _reservation_key(unit: str, account: bytes, key: str) -> str:
    return f"reservation/{unit}/{account.hex()}/{key}"


def _close_reservation(context: Context, unit: str, key: str) -> int:
    """Take what the caller reserved under a key out of its balance, leave the key closed, return the amount."""
    reservation = _reservation_key(unit, context.caller, key)
    amount: int | None = context.state.get(reservation)
    if amount is None:
        raise Revert("unknown_reservation")
    context.require(amount != 0, "reservation_closed", "committed or released before")
    balance_key = _balance_key(unit, context.caller)
    available, reserved = _balance(context, balance_key)
    context.state.put(reservation, 0)
    context.state.put(balance_key, [available, reserved - amount])
    return amount


def _escrow_key(unit: str, contract: str, key: str) -> str:
    return f"escrow/{unit}/{contract}/{key}"


def _lien_key(seller: bytes, event: str) -> str:
    return f"lien/{seller.hex()}/{event}"


def _lien(context: Context, seller: bytes, event: str) -> dict[str, Any]:
    record: dict[str, Any] | None = context.state.get(_lien_key(seller, event))
    if record is None:
        raise Revert("unknown_lien")
    return record


def _close_lien(context: Context, seller: bytes, event: str, status: str) -> dict[str, Any]:
    """Close a held lien for its agent, take its amount out of what is reserved for the buyer, return the lien."""
    lien = _lien(context, seller, event)
    context.require(lien["agent"] == context.caller, "not_allowed", "only the lien's agent may")
    context.require(lien["status"] == HELD, "lien_closed", "lifted or given back before")
    key = _balance_key(lien["unit"], lien["to"])
    available, reserved = _balance(context, key)
    context.state.put(key, [available, reserved - lien["amount"]])
    context.state.put(_lien_key(seller, event), {**lien, "status": status})
    return lien
