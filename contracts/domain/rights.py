"""Reward rights (权益): pre-allocated when an order is created, granted when it completes, revoked or taken back.

A *server* is the account of a business server: it opens campaigns, and only it acts on the orders and users it made,
itself or through rights servers that it appoints. These relay what the server signed: ``present`` checks one signature
over the root of many events, ``apply`` the path from one event to a presented root. Both ways do the same, and what
comes by both is one event.

Users and orders are named by their server with random or keyed pseudonyms; the same name at another server is another
user. A user's rights of all campaigns of one server are one balance.

**An order** goes NONE → PREALLOCATED → GRANTED | REVOKED, in whole or by amount: it is PREALLOCATED while anything is
reserved; after that GRANTED if anything was granted, else REVOKED. ``create`` reserves a share of the campaign's quota,
``complete`` grants it to the user, ``cancel`` revokes what is still reserved and claws back (追回) what was granted,
``refund`` claws back alone. A claw-back takes what the user has available; the shortfall becomes the user's debt, paid
out of what is granted or returned to it later.

A closed campaign takes no new orders; those it has go on. **A redemption** writes off an amount, or what a list of
items costs: by the server's prices of the day, or as computed by the server or its rights server.

**Idempotency**: an event is known by (server, order or redemption, type, event). Once more with equal arguments it
returns the first result, with others it reverts with ``event_conflict``. An order or a redemption takes at most 64.
What a rights server computed is no such argument, as long as what it was computed from is known both times.

**Invariants**, to the unit; nothing is ever negative:

- of a user, and of a server over all its users: created = reserved + available + redeemed + revoked + clawedBack
- of an order, and of a campaign over all its orders: created = reserved + granted + revoked; refunded ≤ granted
- of a campaign: created − revoked ≤ quota. A claw-back does not reopen the quota, so it is never oversold
- of a server over its campaigns: granted = available + redeemed + clawedBack; refunded = clawedBack + debt

**History**: every change of a user's balance is an entry of a hash chain, so that a history shows also that
nothing was left out: head(n) = ``context.hash(head(n − 1), entry n)``, head(−1) = 32 zero bytes.

State, under ``rights/``; ADDRESS is the server's, in hex; every amount is an integer in smallest units:

- ``appointed/ADDRESS`` = [keys that sign events, addresses of rights servers]
- ``root/ADDRESS/ROOT`` = the key that signed this root of events
- ``campaign/CAMPAIGN`` = [server, quota, rule version, orderMax, shareBasisPoints, amounts, isClosed]
- ``rule/CAMPAIGN/VERSION`` = {orderMax, shareBasisPoints}, VERSION with 6 digits
- ``order/ORDER/ADDRESS`` = [campaign, user, rule version, amounts, events]
- ``price/ADDRESS/ITEM`` = [version, smallest units each]
- ``redemption/REDEMPTION/ADDRESS`` = [user, amount, reversed, events, what stood under ``price`` for each of its items]
- ``user/USER/ADDRESS`` = [count, head, balance, the newest count mod 4 entries]; ``server/ADDRESS`` = balance
- ``history/USER/ADDRESS/PAGE`` = [entry 4 × PAGE and the three after it], PAGE with 12 digits

Here amounts = [reserved, granted, revoked, refunded], and created at a campaign; events = [[type, event, arguments,
entry number]…]; balance = [created, reserved, available, redeemed, revoked, clawedBack, debt]; entry = [type, order or
redemption, event, changes, height, time_ms]. Arguments of an event are its amount or nil; of a creation the share, the
order's amount, or [share, order's amount]; of a redemption the amount, [the most it may cost, [[item, count]…]], or
[amount, that]. Lists, not maps, because every call writes several of them: names would be most of what is stored,
hashed and metered.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from consensus.ledger.codec import INTEGER_MAX
from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Purpose
from contracts.runtime.accounts import ACTIVE
from contracts.runtime.contract import (
    AMOUNT_MAX,
    AccountAddress,
    Amount,
    Context,
    Contract,
    Name,
    Revert,
    Value,
    method,
    query,
)

SERVER_ROLE = "business-server"
"""The role of an account that may open campaigns."""

EVENT_KEYS_MAX = 4
RIGHTS_SERVERS_MAX = 16
ITEMS_MAX = 16
EVENTS_PER_RECORD_MAX = 64
"""How many events one order or one redemption takes."""

# No slash, since these are parts of state keys.
Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}\Z")]
BasisPoints = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
EntryNumber = Annotated[int, msgspec.Meta(ge=0)]
Version = Annotated[int, msgspec.Meta(ge=1)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]

# As relayed events say it: "" and 0 for nothing.
IdOrNone = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._:-]{0,64}\Z")]
AmountOrNone = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Items = Annotated[dict[Id, Count], msgspec.Meta(max_length=ITEMS_MAX)]
SomeItems = Annotated[dict[Id, Count], msgspec.Meta(min_length=1, max_length=ITEMS_MAX)]
HashBytes = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Path = Annotated[list[HashBytes], msgspec.Meta(max_length=32)]
SignatureBytes = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
EventKey = Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
EventKeys = Annotated[list[EventKey], msgspec.Meta(min_length=1, max_length=EVENT_KEYS_MAX)]
RightsServers = Annotated[list[AccountAddress], msgspec.Meta(max_length=RIGHTS_SERVERS_MAX)]

Changes: TypeAlias = dict[str, int]
"""By how many smallest units each figure changes, by name."""

Result: TypeAlias = dict[str, Value]
"""{entry: the number of the user's history entry, and each changed figure of the user's balance: by how much}."""

AMOUNTS = {"reserved": 0, "granted": 1, "revoked": 2, "refunded": 3, "created": 4}
"""Where the figures of an order (without ``created``), and of a campaign over all its orders, stand in their list."""

BALANCE = {"created": 0, "reserved": 1, "available": 2, "redeemed": 3, "revoked": 4, "clawedBack": 5, "debt": 6}
"""Where the figures of a user, and of a server over all its users, stand in their list."""

ENTRIES_PER_PAGE = 4
"""How many history entries share a state key: a key of its own costs an entry more than all else about it."""

BASIS = 10_000
EMPTY_HEAD = bytes(32)


# Records as state holds them; the module's text says what stands where.
Campaign: TypeAlias = list[Any]
Order: TypeAlias = list[Any]
User: TypeAlias = list[Any]


class Rights(Contract):
    """Reward rights of a business server's users: pre-allocate, grant, revoke, claw back, redeem, within a quota."""

    name = "rights"
    version = 1

    @method
    def appoint(self, context: Context, event_keys: EventKeys, rights_servers: RightsServers) -> None:
        """Say which keys sign the caller's events, and which accounts relay them, from now on and instead of before.

        The caller needs the role ``business-server``; the keys are compressed P-256. What a key signed counts
        no more once it is left out. Fails with ``not_allowed`` or ``bad_key``.
        """
        _check_role(context)
        for key in event_keys:
            context.address_of(key)
        context.state.put(f"appointed/{context.caller.hex()}", [event_keys, rights_servers])
        context.emit("appointed", server=context.caller, eventKeys=[*event_keys], rightsServers=[*rights_servers])

    @method
    def present(self, context: Context, server: AccountAddress, root: HashBytes, signature: SignatureBytes) -> None:
        """Check a server's signature over the root of some of its events, so that ``apply`` takes each of them.

        Anyone may call it, and more than once. Fails with ``not_appointed`` where the server named no keys, or
        ``bad_signature``.
        """
        event_keys, _ = _appointed(context, server)
        key = f"root/{server.hex()}/{root.hex()}"
        if context.state.get(key) in event_keys:
            return
        for event_key in event_keys:
            if context.verifies(event_key, signature, Purpose.BUSINESS_EVENTS, server + root):
                context.state.put(key, event_key)
                return
        raise Revert("bad_signature", "none of the server's event keys made it")

    @method
    def apply(
        self,
        context: Context,
        server: AccountAddress,
        root: HashBytes,
        index: Natural,
        count: Natural,
        path: Path,
        kind: Name,
        reference: Id,
        number: Name,
        user: IdOrNone,
        campaign: IdOrNone,
        amount: AmountOrNone,
        items: Items,
        time_ms: Natural,
        share: AmountOrNone,
    ) -> Result:
        """Do what a server's event says, on behalf of that server; the caller is a rights server that it appointed.

        ``index``, ``count`` and ``path`` lead from the event to a presented root. The event is ``kind`` (create,
        cancel, complete, refund, redeem or reverse_redemption), ``reference`` (order or redemption), ``number``,
        and what follows up to ``time_ms``; ``amount`` is an order's amount, the most that items may cost, or else how
        much of it, 0 for all that is left. ``share`` is what the rights server computed for a creation or for the
        items of a redemption; 0 where the contract is to. Fails with ``not_appointed``, ``account_suspended`` about
        the server, ``unknown_root``, ``bad_proof``, ``bad_event``, and as the method that ``kind`` names.
        """
        event_keys, rights_servers = _appointed(context, server)
        context.require(context.caller in rights_servers, "not_appointed", "the server did not appoint the caller")
        account = context.account(server)
        context.require(account is not None and account.status == ACTIVE, "account_suspended")
        signer = context.state.get(f"root/{server.hex()}/{root.hex()}")
        context.require(signer in event_keys, "unknown_root", "no key in force is known to have signed it")
        listed: list[Any] = [[item, items[item]] for item in sorted(items)]
        leaf: list[Value] = [kind, reference, number, user, campaign, amount, listed, time_ms]
        context.require(context.is_under(root, leaf, index, count, path), "bad_proof", "no such event under this root")
        if kind == "create":
            context.require(user, "bad_event", "a creation names its user")
            return _create(context, server, campaign, reference, user, share or None, amount, number)
        if kind == "redeem":
            context.require(user and (amount or items), "bad_event", "a redemption names its user and what it takes")
            if not items:
                context.require(share in (0, amount), "bad_event", "without items there is nothing to compute")
                return _redeem(context, server, user, reference, amount, None, number)
            return _redeem(context, server, user, reference, share or None, [amount, listed], number)
        part = amount or None
        if kind == "complete":
            return _complete(context, server, reference, number, part)
        if kind == "cancel":
            return _cancel(context, server, reference, number, part)
        if kind == "refund":
            return _refund(context, server, reference, number, part)
        context.require(kind == "reverse_redemption", "bad_event", "no kind of event is called so")
        return _reverse(context, server, reference, number, part)

    @method
    def open_campaign(
        self,
        context: Context,
        campaign: Id,
        quota: Amount,
        order_max: Amount | None = None,
        share_basis_points: BasisPoints = BASIS,
    ) -> None:
        """Open a campaign that allocates rights of at most ``quota`` smallest units to orders of the caller.

        The caller needs the role ``business-server``. ``order_max`` caps the share of one order (default: the
        quota); ``share_basis_points`` is what ``create_by_rule`` gives of an order's amount, in 1/10,000.
        Fails with ``not_allowed`` or ``campaign_exists``.
        """
        _check_role(context)
        context.require(context.state.get(f"campaign/{campaign}") is None, "campaign_exists")
        record: Campaign = [context.caller, quota, 0, quota, BASIS, [0, 0, 0, 0, 0], False]
        _put_rule(context, campaign, record, order_max, share_basis_points)
        context.emit("opened", campaign=campaign, server=context.caller, quota=quota)

    @method
    def change_rule(
        self,
        context: Context,
        campaign: Id,
        order_max: Amount | None = None,
        share_basis_points: BasisPoints = BASIS,
    ) -> int:
        """Set the caller's campaign's rule for orders created from now on; return the rule's new version.

        Arguments as in ``open_campaign``. Orders keep the share they were created with.
        Fails with ``unknown_campaign``, ``not_allowed`` or ``campaign_closed``.
        """
        record = _open_campaign(context, context.caller, campaign)
        return _put_rule(context, campaign, record, order_max, share_basis_points)

    @method
    def close_campaign(self, context: Context, campaign: Id) -> None:
        """Take no new orders into the caller's campaign; those it has are completed, cancelled and refunded as before.

        Fails with ``unknown_campaign``, ``not_allowed`` or ``campaign_closed``.
        """
        record = _open_campaign(context, context.caller, campaign)
        context.state.put(f"campaign/{campaign}", [*record[:6], True])
        context.emit("closed", campaign=campaign, server=context.caller)

    @method
    def set_price(self, context: Context, item: Id, price: AmountOrNone) -> int:
        """Set what one of an item costs at the caller, in smallest units, 0 to take it off; return the price's version.

        The caller needs the role ``business-server``. What was redeemed keeps its price. Fails with ``not_allowed``.
        """
        _check_role(context)
        key = f"price/{context.caller.hex()}/{item}"
        version: int = (context.state.get(key) or [0])[0] + 1
        context.state.put(key, [version, price])
        context.emit("priced", server=context.caller, item=item, price=price, version=version)
        return version

    @method
    def create(self, context: Context, campaign: Id, order: Id, user: Id, amount: Amount, event: Name) -> Result:
        """Pre-allocate ``amount`` smallest units, a share that the server computed, for a new order of a user.

        The contract checks it against the rule's cap and what is left of the quota.
        Fails with ``unknown_campaign``, ``not_allowed``, ``campaign_closed``, ``order_state``, ``share_too_large``,
        ``quota_exceeded`` or ``event_conflict``.
        """
        return _create(context, context.caller, campaign, order, user, amount, None, event)

    @method
    def create_by_rule(
        self, context: Context, campaign: Id, order: Id, user: Id, order_amount: Amount, event: Name
    ) -> Result:
        """Compute the share of a new order of ``order_amount`` smallest units by the campaign's rule; pre-allocate it.

        share = min(⌊order_amount × shareBasisPoints / 10,000⌋, orderMax).
        Fails with ``unknown_campaign``, ``not_allowed``, ``campaign_closed``, ``order_state``, ``no_share`` where it
        is 0, ``quota_exceeded`` or ``event_conflict``.
        """
        return _create(context, context.caller, campaign, order, user, None, order_amount, event)

    @method
    def cancel(self, context: Context, order: Id, event: Name, amount: Amount | None = None) -> Result:
        """Take back ``amount`` smallest units of an order's share, or all of it: revoke, then claw back.

        What is still reserved is revoked first; the rest is clawed back from what was granted.
        Fails with ``unknown_order``, ``order_state`` where nothing is left, ``amount_exceeds_order`` or
        ``event_conflict``.
        """
        return _cancel(context, context.caller, order, event, amount)

    @method
    def complete(self, context: Context, order: Id, event: Name, amount: Amount | None = None) -> Result:
        """Grant ``amount`` smallest units of what is reserved for an order, or all of it.

        The user's debt is paid first; the rest becomes available.
        Fails with ``unknown_order``, ``order_state`` where nothing is reserved, ``amount_exceeds_order`` or
        ``event_conflict``.
        """
        return _complete(context, context.caller, order, event, amount)

    @method
    def refund(self, context: Context, order: Id, event: Name, amount: Amount | None = None) -> Result:
        """Claw back ``amount`` smallest units of what was granted for an order, or all of it.

        It is taken from the user's available rights; the shortfall becomes the user's debt.
        Fails with ``unknown_order``, ``order_state`` where nothing granted is left, ``amount_exceeds_order`` or
        ``event_conflict``.
        """
        return _refund(context, context.caller, order, event, amount)

    @method
    def redeem(self, context: Context, user: Id, amount: Amount, redemption: Id, event: Name) -> Result:
        """Write off ``amount`` smallest units of a user's available rights under a new redemption's name.

        Fails with ``insufficient_rights``, ``redemption_exists`` or ``event_conflict``.
        """
        return _redeem(context, context.caller, user, redemption, amount, None, event)

    @method
    def redeem_items(
        self, context: Context, user: Id, items: SomeItems, redemption: Id, event: Name, amount_max: AmountOrNone = 0
    ) -> Result:
        """Write off what ``items`` (item → count) cost by the caller's prices, under a new redemption's name.

        ``amount_max`` is the most that they may cost, 0 for any. Fails with ``unknown_item``,
        ``price_exceeds_amount``, ``insufficient_rights``, ``redemption_exists`` or ``event_conflict``.
        """
        listed: list[Any] = [[item, items[item]] for item in sorted(items)]
        return _redeem(context, context.caller, user, redemption, None, [amount_max, listed], event)

    @method
    def reverse_redemption(self, context: Context, redemption: Id, event: Name, amount: Amount | None = None) -> Result:
        """Return ``amount`` smallest units of a redemption to its user, or all of it; the user's debt is paid first.

        Fails with ``unknown_redemption``, ``redemption_state`` where nothing is left, ``amount_exceeds_redemption``
        or ``event_conflict``.
        """
        return _reverse(context, context.caller, redemption, event, amount)

    @query
    def balance(self, context: Context, user: Id, server: AccountAddress | None = None) -> dict[str, Value]:
        """Return a user's {created, reserved, available, redeemed, revoked, clawedBack, debt, count, head}.

        Amounts in smallest units; ``count`` history entries end in the chain's ``head``. Zeros for who has no
        history. ``server`` is needed only where several servers have a user of this name (``ambiguous_server``).
        """
        key = _find(context, f"user/{user}/", server)
        count, head, balance, _ = _user_at(context, key)
        return {**_named(BALANCE, balance), "count": count, "head": head}

    @query
    def history(
        self,
        context: Context,
        user: Id,
        start: EntryNumber = 0,
        limit: PageSize = 100,
        server: AccountAddress | None = None,
    ) -> list[Value]:
        """Return up to ``limit`` history entries of a user from number ``start`` on, in order.

        Each is {number, type, reference, event, changes, height, timeMs}; ``changes`` says by how many smallest
        units each figure of the balance changed. ``server`` as in ``balance``.
        """
        key = _find(context, f"user/{user}/", server)
        if not key:
            return []
        prefix = f"history/{key[5:]}/"
        first_page = f"{prefix}{start // ENTRIES_PER_PAGE:012d}"
        numbered = [
            (int(page_key[len(prefix) :]) * ENTRIES_PER_PAGE + place, entry)
            for page_key, page in context.state.scan(prefix, first_page, limit // ENTRIES_PER_PAGE + 2)
            for place, entry in enumerate(page)
        ]
        count, _, _, newest = _user_at(context, key)
        numbered += [(count - len(newest) + place, entry) for place, entry in enumerate(newest)]
        answer: list[Value] = [_entry_map(number, entry) for number, entry in numbered if number >= start]
        return answer[:limit]

    @query
    def order(self, context: Context, order: Id, server: AccountAddress | None = None) -> dict[str, Value]:
        """Return an order's {order, state, campaign, user, rule, reserved, granted, revoked, refunded, events}.

        ``server`` is needed only where several servers have an order of this name (``ambiguous_server``).
        Fails with ``unknown_order``.
        """
        key = _find(context, f"order/{order}/", server)
        record: Order | None = context.state.get(key) if key else None
        if record is None:
            raise Revert("unknown_order")
        campaign, user, rule, amounts, events = record
        answer: dict[str, Value] = {"order": order, "state": order_state(amounts), "campaign": campaign, "user": user}
        return {**answer, "rule": rule, **_named(AMOUNTS, amounts), "events": events}

    @query
    def redemption(self, context: Context, redemption: Id, server: AccountAddress | None = None) -> dict[str, Value]:
        """Return a redemption's {redemption, user, amount, reversed, events, prices}; amounts in smallest units.

        ``prices`` are the [version, smallest units each] that were used, in ascending order of the items.
        ``server`` is needed only where several servers have a redemption of this name (``ambiguous_server``).
        Fails with ``unknown_redemption``.
        """
        key = _find(context, f"redemption/{redemption}/", server)
        record: list[Any] | None = context.state.get(key) if key else None
        if record is None:
            raise Revert("unknown_redemption")
        user, amount, reversed_amount, events, prices = record
        answer: dict[str, Value] = {"redemption": redemption, "user": user, "amount": amount}
        return {**answer, "reversed": reversed_amount, "events": events, "prices": prices}

    @query
    def campaign(self, context: Context, campaign: Id) -> dict[str, Value]:
        """Return a campaign's server, rule, quota, what is left of it, and the totals of its orders.

        {campaign, server, rule, orderMax, shareBasisPoints, isClosed, quota, left, created, reserved, granted,
        revoked, refunded}; created = reserved + granted + revoked. Fails with ``unknown_campaign``.
        """
        return _campaign_map(campaign, _campaign(context, campaign))

    @query
    def campaigns(self, context: Context, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` campaigns whose names are ``start`` or come after it, in order; as ``campaign``."""
        return [
            _campaign_map(key[9:], value) for key, value in context.state.scan("campaign/", f"campaign/{start}", limit)
        ]

    @query
    def rule(self, context: Context, campaign: Id, version: Version) -> dict[str, Value]:
        """Return a version of a campaign's rule, {orderMax, shareBasisPoints}. Fails with ``unknown_rule``."""
        record: dict[str, Value] | None = context.state.get(f"rule/{campaign}/{version:06d}")
        if record is None:
            raise Revert("unknown_rule")
        return record

    @query
    def price(self, context: Context, item: Id, server: AccountAddress) -> dict[str, Value]:
        """Return what one of a server's items costs, {item, version, price}. Fails with ``unknown_item``."""
        version, price = _price(context, server, item)
        return {"item": item, "version": version, "price": price}

    @query
    def prices(self, context: Context, server: AccountAddress, start: str = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` of a server's items from ``start`` on, in order: {item, version, price}.

        A price of 0 means that the item was taken off.
        """
        prefix = f"price/{server.hex()}/"
        found = context.state.scan(prefix, prefix + start, limit)
        return [{"item": key[len(prefix) :], "version": record[0], "price": record[1]} for key, record in found]

    @query
    def appointed(self, context: Context, server: AccountAddress) -> dict[str, Value]:
        """Return what ``appoint`` said last for a server: {eventKeys, rightsServers}. Fails with ``not_appointed``."""
        event_keys, rights_servers = _appointed(context, server)
        return {"eventKeys": event_keys, "rightsServers": rights_servers}

    @query
    def totals(self, context: Context, server: AccountAddress | None = None) -> dict[str, Value]:
        """Return the sums over all users of a server, in smallest units: what must be conserved.

        {created, reserved, available, redeemed, revoked, clawedBack, debt}, where
        created = reserved + available + redeemed + revoked + clawedBack.
        ``server`` is needed only where several servers have orders (``ambiguous_server``).
        """
        key = _find(context, "server/", server)
        return {**_named(BALANCE, _server_at(context, key))}


def order_state(amounts: list[int]) -> str:
    """Return the state that an order's figures say."""
    reserved, granted, _, _ = amounts
    if reserved:
        return "PREALLOCATED"
    return "GRANTED" if granted else "REVOKED"


def _check_role(context: Context) -> None:
    account = context.account(context.caller)
    if account is None or SERVER_ROLE not in account.roles:
        raise Revert("not_allowed", "needs the role business-server")


def _appointed(context: Context, server: bytes) -> list[Any]:
    record: list[Any] | None = context.state.get(f"appointed/{server.hex()}")
    if record is None:
        raise Revert("not_appointed", "the server appointed nobody")
    return record


def _find(context: Context, prefix: str, server: bytes | None) -> str:
    """Return the key of the server's record under a prefix, or of the only server's; "" (holding nothing) if none."""
    if server is not None:
        return prefix + server.hex()
    found = context.state.scan(prefix, prefix, 2)
    context.require(len(found) < 2, "ambiguous_server", "several servers have this name: say which")
    return found[0][0] if found else ""


def _named(places: dict[str, int], figures: list[int]) -> dict[str, Value]:
    """Return figures by their names."""
    return dict(zip(places, figures, strict=False))


def _add(places: dict[str, int], figures: list[int], changes: Changes) -> None:
    for name, change in changes.items():
        figures[places[name]] += change


def _campaign(context: Context, campaign: str) -> Campaign:
    record: Campaign | None = context.state.get(f"campaign/{campaign}")
    if record is None:
        raise Revert("unknown_campaign")
    return record


def _open_campaign(context: Context, server: bytes, campaign: str) -> Campaign:
    """Return a server's own campaign that is not closed."""
    record = _campaign(context, campaign)
    context.require(record[0] == server, "not_allowed", "another server opened this campaign")
    context.require(not record[6], "campaign_closed")
    return record


def _campaign_map(campaign: str, record: Campaign) -> dict[str, Value]:
    server, quota, rule, order_max, share_basis_points, amounts, is_closed = record
    _, _, revoked, _, created = amounts
    answer: dict[str, Value] = {"campaign": campaign, "server": server, "rule": rule, "orderMax": order_max}
    answer["shareBasisPoints"], answer["isClosed"] = share_basis_points, is_closed
    return {**answer, "quota": quota, "left": quota - created + revoked, **_named(AMOUNTS, amounts)}


def _put_rule(context: Context, campaign: str, record: Campaign, order_max: int | None, share_basis_points: int) -> int:
    """Give the campaign the next version of its rule and return that."""
    server, quota, version, _, _, amounts, is_closed = record
    version += 1
    cap = quota if order_max is None else order_max
    context.state.put(f"campaign/{campaign}", [server, quota, version, cap, share_basis_points, amounts, is_closed])
    context.state.put(f"rule/{campaign}/{version:06d}", {"orderMax": cap, "shareBasisPoints": share_basis_points})
    return version  # type: ignore[no-any-return]


def _order(context: Context, server: bytes, order: str) -> Order:
    record: Order | None = context.state.get(f"order/{order}/{server.hex()}")
    if record is None:
        raise Revert("unknown_order")
    return record


def _user_at(context: Context, key: str) -> User:
    """Return [count, head, balance, newest entries]; zeros for who has no history."""
    record: User | None = context.state.get(key)
    return [0, EMPTY_HEAD, [0, 0, 0, 0, 0, 0, 0], []] if record is None else record


def _user(context: Context, server: bytes, user: str) -> User:
    return _user_at(context, f"user/{user}/{server.hex()}")


def _server_at(context: Context, key: str) -> list[int]:
    balance: list[int] | None = context.state.get(key)
    return [0, 0, 0, 0, 0, 0, 0] if balance is None else balance


def _entry_map(number: int, entry: list[Value]) -> dict[str, Value]:
    kind, reference, event, changes, height, time_ms = entry
    return {
        "number": number,
        "type": kind,
        "reference": reference,
        "event": event,
        "changes": changes,
        "height": height,
        "timeMs": time_ms,
    }


def _entry(context: Context, server: bytes, user: str, number: int) -> list[Any]:
    count, _, _, newest = _user(context, server, user)
    place: int = number - count + len(newest)
    if place < 0:
        page_key = f"history/{user}/{server.hex()}/{number // ENTRIES_PER_PAGE:012d}"
        newest, place = context.state.get(page_key), number % ENTRIES_PER_PAGE
    entry: list[Any] = newest[place]
    return entry


def _first_result(
    context: Context, server: bytes, events: list[list[Any]], user: str, kind: str, event: str, arguments: Value
) -> Result | None:
    """Return what this event brought when it came first, or None if it is new to its order or redemption."""
    for first_kind, first_event, first_arguments, number in events:
        if first_kind == kind and first_event == event:
            context.require(
                first_arguments == arguments, "event_conflict", "the event came before with other arguments"
            )
            return {**_entry(context, server, user, number)[3], "entry": number}
    return None


def _first_again(
    context: Context, server: bytes, user: str, first: list[Any], kind: str, given: Value, *, is_alike: bool
) -> Result:
    """Return what the event that made a record brought, when it comes again with equal arguments.

    ``is_alike`` says whether user and campaign are the same.
    """
    first_kind, _, first_given, number = first
    first_amount, first_source = _computed(first_kind, first_given)
    amount, source = _computed(kind, given)
    if first_source is None or source is None:
        is_alike = is_alike and amount is not None and amount == first_amount
    else:
        is_alike = is_alike and source == first_source
    context.require(is_alike, "event_conflict", "the event came before with other arguments")
    return {**_entry(context, server, user, number)[3], "entry": number}


def _computed(kind: str, given: Any) -> list[Any]:
    """Return [amount that the server or its rights server computed, what from] of arguments, None for the unknown."""
    if kind in ("create_by_rule", "redeem_items"):
        return [None, given]
    return given if isinstance(given, list) else [given, None]


def _create(
    context: Context,
    server: bytes,
    campaign_name: str,
    order: str,
    user_name: str,
    share: int | None,
    order_amount: int | None,
    event: str,
) -> Result:
    """Reserve a share of the campaign's quota for a new order, or return the first result of this very creation.

    Without ``share`` the rule computes it from the order's amount.
    """
    owner = server.hex()
    order_key = f"order/{order}/{owner}"
    existing: Order | None = context.state.get(order_key)
    kind = "create_by_rule" if share is None else "create"
    given: Any = order_amount if share is None else share if order_amount is None else [share, order_amount]
    if existing is not None:
        first_campaign, first_user, _, _, events = existing
        is_alike = first_campaign == campaign_name and first_user == user_name
        context.require(events[0][1] == event, "order_state", "the order was created before")
        return _first_again(context, server, user_name, events[0], kind, given, is_alike=is_alike)
    record = _open_campaign(context, server, campaign_name)
    _, quota, rule, order_max, share_basis_points, totals, _ = record
    if share is None:
        share = min(order_amount * share_basis_points // BASIS, order_max)
        context.require(share > 0, "no_share", "the rule gives nothing for so small an order")
    elif share > order_max:
        raise Revert("share_too_large", f"the rule's cap is {order_max}")
    left = quota - totals[4] + totals[2]
    if share > left:
        raise Revert("quota_exceeded", f"{left} is left of the quota")
    user = _user_at(context, f"user/{user_name}/{owner}")
    totals[0] += share
    totals[4] += share
    changes = {"created": share, "reserved": share}
    context.state.put(order_key, [campaign_name, user_name, rule, [share, 0, 0, 0], [[kind, event, given, user[0]]]])
    context.state.put(f"campaign/{campaign_name}", record)
    return _enter(context, server, kind, user_name, user, order, event, changes)


def _cancel(context: Context, server: bytes, order: str, event: str, amount: int | None) -> Result:
    record = _order(context, server, order)
    _, user, _, (reserved, granted, _, refunded), events = record
    first = _first_result(context, server, events, user, "cancel", event, amount)
    if first is not None:
        return first
    total = _amount_within(context, amount, reserved + granted - refunded)
    revoked = min(total, reserved)
    asked: list[Any] = ["cancel", event, amount]
    return _take_back(context, server, order, record, asked, revoked=revoked, refunded=total - revoked)


def _complete(context: Context, server: bytes, order: str, event: str, amount: int | None) -> Result:
    record = _order(context, server, order)
    _, user_name, _, (reserved, _, _, _), events = record
    first = _first_result(context, server, events, user_name, "complete", event, amount)
    if first is not None:
        return first
    granted = _amount_within(context, amount, reserved)
    user = _user(context, server, user_name)
    moved = {"reserved": -granted, "granted": granted}
    _change_order(context, server, order, record, ["complete", event, amount, user[0]], moved)
    changes = _returned(user, granted, "reserved")
    return _enter(context, server, "complete", user_name, user, order, event, changes)


def _refund(context: Context, server: bytes, order: str, event: str, amount: int | None) -> Result:
    record = _order(context, server, order)
    _, user, _, (_, granted, _, refunded), events = record
    first = _first_result(context, server, events, user, "refund", event, amount)
    if first is not None:
        return first
    total = _amount_within(context, amount, granted - refunded)
    return _take_back(context, server, order, record, ["refund", event, amount], revoked=0, refunded=total)


def _redeem(
    context: Context,
    server: bytes,
    user_name: str,
    redemption: str,
    amount: int | None,
    wanted: list[Any] | None,
    event: str,
) -> Result:
    """Write off an amount under a new redemption's name, or return the first result of this very redemption.

    ``wanted`` = [the most that it may cost or 0, [[item, count]…]]; without ``amount`` the prices say what it costs.
    """
    key = f"redemption/{redemption}/{server.hex()}"
    existing: list[Any] | None = context.state.get(key)
    kind = "redeem_items" if amount is None else "redeem"
    given: Any = wanted if amount is None else amount if wanted is None else [amount, wanted]
    if existing is not None:
        first_user, _, _, events, _ = existing
        context.require(events[0][1] == event, "redemption_exists")
        return _first_again(context, server, user_name, events[0], kind, given, is_alike=first_user == user_name)
    total = amount or 0
    prices: list[Any] = []
    if wanted is not None:
        if amount is None:
            prices = [_price(context, server, item) for item, _ in wanted[1]]
            total = sum(price[1] * line[1] for price, line in zip(prices, wanted[1], strict=True))
        context.require(not 0 < wanted[0] < total, "price_exceeds_amount", f"{total} needed, {wanted[0]} allowed")
    user = _user(context, server, user_name)
    count, _, balance, _ = user
    available = balance[2]
    context.require(available >= total, "insufficient_rights", f"{available} available, {total} needed")
    context.state.put(key, [user_name, total, 0, [[kind, event, given, count]], prices])
    changes = {"available": -total, "redeemed": total}
    return _enter(context, server, kind, user_name, user, redemption, event, changes)


def _price(context: Context, server: bytes, item: str) -> list[Any]:
    """Return [version, smallest units each] of an item that can be redeemed."""
    record: list[Any] = context.state.get(f"price/{server.hex()}/{item}") or [0, 0]
    context.require(record[1], "unknown_item", f"{item} has no price")
    return record


def _reverse(context: Context, server: bytes, redemption: str, event: str, amount: int | None) -> Result:
    key = f"redemption/{redemption}/{server.hex()}"
    record: list[Any] | None = context.state.get(key)
    if record is None:
        raise Revert("unknown_redemption")
    user_name, redeemed, reversed_before, events, prices = record
    first = _first_result(context, server, events, user_name, "reverse_redemption", event, amount)
    if first is not None:
        return first
    left = redeemed - reversed_before
    context.require(left > 0, "redemption_state", "all of it was reversed")
    total = left if amount is None else amount
    context.require(total <= left, "amount_exceeds_redemption", f"{left} is left of it")
    user = _user(context, server, user_name)
    changes = _returned(user, total, "redeemed")
    events.append(["reverse_redemption", event, amount, user[0]])
    context.require(len(events) <= EVENTS_PER_RECORD_MAX, "too_many_events")
    context.state.put(key, [user_name, redeemed, reversed_before + total, events, prices])
    return _enter(context, server, "reverse_redemption", user_name, user, redemption, event, changes)


def _amount_within(context: Context, amount: int | None, left: int) -> int:
    """Return how much of an order an event concerns: the amount, or all that is left of it."""
    context.require(left > 0, "order_state", "nothing of the order is left for this")
    total = left if amount is None else amount
    context.require(total <= left, "amount_exceeds_order", f"{left} is left of the order")
    return total


def _returned(user: User, amount: int, source: str) -> Changes:
    """Return a user's changes when an amount comes to it from a figure: debt is paid first, the rest is available."""
    _, _, (_, _, _, _, _, _, debt), _ = user
    paid = min(debt, amount)
    return _changed({source: -amount, "available": amount - paid, "clawedBack": paid, "debt": -paid})


def _changed(changes: Changes) -> Changes:
    """Return the changes that change something."""
    return {name: change for name, change in changes.items() if change}


def _take_back(
    context: Context, server: bytes, order: str, record: Order, event: list[Any], *, revoked: int, refunded: int
) -> Result:
    """Revoke what is reserved and claw back what was granted, the shortfall as debt; event = [type, event, amount]."""
    user_name: str = record[1]
    user = _user(context, server, user_name)
    count, _, (_, _, available, _, _, _, _), _ = user
    taken = min(refunded, available)
    changes = {"reserved": -revoked, "revoked": revoked, "available": -taken, "clawedBack": taken}
    changes["debt"] = refunded - taken
    moved = {"reserved": -revoked, "revoked": revoked, "refunded": refunded}
    _change_order(context, server, order, record, [*event, count], moved)
    return _enter(context, server, event[0], user_name, user, order, event[1], _changed(changes))


def _change_order(
    context: Context, server: bytes, order: str, record: Order, event: list[Value], changes: Changes
) -> None:
    """Apply changes to an order and its campaign, and note the event at the order."""
    campaign_name, _, _, amounts, events = record
    events.append(event)
    context.require(len(events) <= EVENTS_PER_RECORD_MAX, "too_many_events")
    campaign = _campaign(context, campaign_name)
    _add(AMOUNTS, amounts, changes)
    _add(AMOUNTS, campaign[5], changes)
    context.state.put(f"order/{order}/{server.hex()}", record)
    context.state.put(f"campaign/{campaign_name}", campaign)


def _enter(
    context: Context, server: bytes, kind: str, user_name: str, user: User, reference: str, event: str, changes: Changes
) -> Result:
    """Apply changes, none of them 0, to a user and its server, note them in the history, and return the result."""
    owner = server.hex()
    number, head, balance, newest = user
    totals = _server_at(context, f"server/{owner}")
    _add(BALANCE, balance, changes)
    _add(BALANCE, totals, changes)
    # No other figure of a server, a campaign or a user exceeds what the server ever created.
    context.require(totals[0] <= INTEGER_MAX, "overflow", "a sum would exceed 2^63 - 1")
    noted: dict[str, Value] = {**changes}
    entry: list[Value] = [kind, reference, event, noted, context.height, context.time_ms]
    newest.append(entry)
    if len(newest) == ENTRIES_PER_PAGE:
        context.state.put(f"history/{user_name}/{owner}/{number // ENTRIES_PER_PAGE:012d}", newest)
        newest = []
    context.state.put(f"user/{user_name}/{owner}", [number + 1, context.hash(head, entry), balance, newest])
    context.state.put(f"server/{owner}", totals)
    context.emit(kind, server=server, user=user_name, reference=reference, event=event, changes=noted)
    return {**noted, "entry": number}
