"""Payment streams (迭代交易): many signed totals between two parties, one of which reaches the chain.

A payer *opens* a stream to a service party by terms that the latter signed, with a deposit in escrow (预设账户). Off
the chain it then signs *iterations*: each a whole transaction in the stream's one-shot lane, with one call of
``settle`` and the total due so far. The last one settles the stream. What keeps it from settling is made good by
``claim``, the preset process (预设处理流程): the lane's record tells it what became of the number.
:mod:`consensus.ledger.streams` says what each side signs.

**What is paid.** ``paid`` is all that the service party got as due, in whatever way, and only rises: the greatest
total that was signed and brought counts, once. ``settle`` pays out of the balance and, for a shortfall, the deposit;
``claim`` out of the deposit alone; neither touches the part of the deposit that the fine is. What is due beyond
``deposit − fine`` is credit: it is paid out of the balance, or not at all.

**The fine** goes to the service party, once, where the payer used the lane's number for something else, or its
``settle`` failed for want of funds. Nothing else makes a settlement in its lane fail: where all was paid before, it
pays nothing and succeeds, so that no service party claims first to see a later settlement fail. Outside its lane, or
through another contract, ``settle`` is refused, so that the lane's record tells of every settlement.

**The deposit goes back** by ``close``, to which both agree, or after a window of ``uptime_ms`` that begins when the
payer asks. The window is longer than an iteration is valid, by more than an outage counts: what cannot be settled
expires before it ends, and is claimed. A closed stream never moves again, and its id never serves another.

**Keys.** An iteration and the payer's consent to close are signed with the key that the payer's account had when it
opened, whatever became of it; the service party's with the key in force.

State, under ``streams/``: ``stream/ID``, ID in hex = {payer, service, payerKey, unit, deposit: all ever put in, taken:
what was due and went out of it, paid, fine, isFined, settledBy: a transaction's id or empty, termsHash, credit,
windowMs, withdrawAtUptimeMs: 0 before it is asked for, openedAtMs, status: OPEN or CLOSED}.

Invariants: ``tokens`` holds for an open stream deposit − taken − (fine, if fined), for a closed one nothing;
taken ≤ paid; taken ≤ deposit − fine.
"""

from typing import Annotated, Any, TypeAlias

import msgspec

from consensus.ledger.ids import ADDRESS_BYTES, HASH_BYTES
from consensus.ledger.keys import SIGNATURE_BYTES, Purpose
from contracts.runtime.contract import AMOUNT_MAX, Amount, Context, Contract, Revert, Value, method, query

OPEN, CLOSED = "OPEN", "CLOSED"
ATOMIC = 0
OUTAGE_MS = 60_000
"""What an outage, in which nobody could claim, counts of ``uptime_ms`` at the most."""
ITERATION_BYTES_MAX = 1_024

Address = Annotated[bytes, msgspec.Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES, title="account")]
StreamId = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Total = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
What = Annotated[
    str, msgspec.Meta(min_length=1, max_length=32, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*\Z")
]
UnitName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}\Z")]
Mode = Annotated[int, msgspec.Meta(ge=0, le=1)]
WindowMs = Annotated[int, msgspec.Meta(ge=60_000, le=2_592_000_000)]
ValidityMs = Annotated[int, msgspec.Meta(ge=10_000, le=3_600_000)]
MarginMs = Annotated[int, msgspec.Meta(ge=1_000, le=3_000_000)]
StepMs = Annotated[int, msgspec.Meta(ge=100, le=3_600_000)]
Raw = Annotated[bytes, msgspec.Meta(min_length=1, max_length=ITERATION_BYTES_MAX)]
PageStart = Annotated[str, msgspec.Meta(max_length=64)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=100)]

Record: TypeAlias = dict[str, Any]
"""A stream as state holds it; the module's text says which."""


class Streams(Contract):
    """Streams: opened with a deposit, settled once, claimed out of the deposit, closed. Amounts in smallest units.

    Every method that names a stream fails with ``unknown_stream``, and with ``stream_closed`` once it is.
    """

    name = "streams"
    version = 1

    @method
    def open(
        self,
        context: Context,
        payer: Address,
        service: Address,
        number: Natural,
        what: What,
        unit: UnitName,
        deposit: Amount,
        fine: Total,
        price: Amount,
        step_max: Amount,
        credit: Total,
        mode: Mode,
        count_max: Natural,
        amount_max: Total,
        duration_ms_max: Natural,
        window_ms: WindowMs,
        validity_ms: ValidityMs,
        margin_ms: MarginMs,
        step_ms: StepMs,
        offer_until_ms: Natural,
        signature: Signature,
    ) -> bytes:
        """Open a stream on terms that the service party signed, put the deposit into escrow, return its id (32 bytes).

        By the payer that the terms name. ``window_ms`` is at least ``validity_ms + margin_ms`` and a minute more,
        ``margin_ms`` less than ``validity_ms``, ``fine`` less than ``deposit``. Fails with ``not_allowed``,
        ``same_account``, ``bad_terms``, ``offer_expired``, ``stream_exists``, ``lane_consumed``, ``unknown_account``,
        ``bad_signature``, ``unknown_unit`` or ``insufficient_funds``.
        """
        context.require(context.caller == payer, "not_allowed", "the terms name another payer")
        context.require(payer != service, "same_account", "payer and service party are two accounts")
        context.require(fine < deposit, "bad_terms", "the fine is part of the deposit, and not all of it")
        context.require(margin_ms < validity_ms, "bad_terms", "an iteration is valid for longer than the margin")
        least_ms = validity_ms + margin_ms + OUTAGE_MS
        context.require(window_ms >= least_ms, "bad_terms", f"the window is {least_ms} ms at least")
        context.require(context.time_ms <= offer_until_ms, "offer_expired", f"it stood until {offer_until_ms}")
        stream = context.hash("stream", payer, service, number)
        context.require(context.state.get(_key(stream)) is None, "stream_exists", "the number has served its payer")
        lane = _lane(context, stream)
        is_free = context.lane_name != lane and context.lane(payer, lane) is None
        context.require(is_free, "lane_consumed", "the number that the stream would settle with is used already")
        values: list[Value] = [payer, service, number, what, unit, deposit, fine, price, step_max, credit, mode]
        values += [count_max, amount_max, duration_ms_max, window_ms, validity_ms, margin_ms, step_ms, offer_until_ms]
        terms_hash = context.hash("stream-terms", *values)
        key = _account_key(context, service)
        is_signed = context.verifies(key, signature, Purpose.STREAM_TERMS, terms_hash)
        context.require(is_signed, "bad_signature", "not the service party's over these terms")
        context.call("tokens", "escrow", unit=unit, key=stream.hex(), amount=deposit)
        record: Record = {
            "payer": payer,
            "service": service,
            "payerKey": _account_key(context, payer),
            "unit": unit,
            "deposit": deposit,
            "taken": 0,
            "paid": 0,
            "fine": fine,
            "isFined": False,
            "settledBy": b"",
            "termsHash": terms_hash,
            "credit": credit,
            "windowMs": window_ms,
            "withdrawAtUptimeMs": 0,
            "openedAtMs": context.time_ms,
            "status": OPEN,
        }
        context.state.put(_key(stream), record)
        context.emit(
            "opened", stream=stream, payer=payer, service=service, unit=unit, deposit=deposit, terms=terms_hash
        )
        return stream

    @method
    def settle(self, context: Context, stream: StreamId, due: Amount) -> int:
        """Pay what is due in all, once, and return how much that was more than was paid before.

        By the payer, as its transaction's own call in the stream's lane. Out of the available balance, and for a
        shortfall out of the deposit, down to the fine. Fails with ``not_allowed``, ``wrong_lane``,
        ``already_settled`` or ``insufficient_funds``.
        """
        record = _open_stream(context, stream)
        context.require(context.caller == record["payer"], "not_allowed", "only the payer settles")
        is_own = context.via == "" and context.lane_name == _lane(context, stream)
        context.require(is_own, "wrong_lane", "a stream settles in its own lane, called by the transaction itself")
        context.require(record["settledBy"] == b"", "already_settled")
        amount: int = max(due - record["paid"], 0)
        from_deposit = _pay_from_balance(context, record, amount)
        _pay_from_deposit(context, stream, record, from_deposit, 0)
        settled = {**record, "taken": record["taken"] + from_deposit, "paid": record["paid"] + amount}
        context.state.put(_key(stream), {**settled, "settledBy": context.transaction_id})
        context.emit("settled", stream=stream, due=due, amount=amount, fromDeposit=from_deposit)
        return amount

    @method
    def claim(self, context: Context, stream: StreamId, raw: Raw) -> dict[str, Value]:
        """Pay the service party out of the deposit what an iteration says, and return {amount, fine}.

        By anybody. ``raw`` is the iteration: it has expired, or its number was used. Where it was used for anything but
        a settlement that went well, the fine is paid too, once. Of the due, what the deposit holds above the fine.
        Fails with ``bad_transaction``, ``wrong_stream``, ``bad_iteration``, ``not_claimable`` while the iteration may
        still settle, or ``nothing_due``.
        """
        record = _open_stream(context, stream)
        iteration = context.transaction(raw, record["payerKey"])
        lane_name = _lane(context, stream)
        is_ours = iteration["sender"] == record["payer"] and iteration["lane"] == lane_name
        context.require(is_ours, "wrong_stream", "an iteration of another payer's or another stream")
        due = _due(context, stream, iteration)
        lane = context.lane(record["payer"], lane_name)
        is_burned = False
        if lane is None:
            is_over = context.time_ms > iteration["validUntilMs"]
            context.require(is_over, "not_claimable", f"it may settle until {iteration['validUntilMs']}")
        else:
            is_burned = lane.last_id != record["settledBy"]
        amount: int = max(min(due, record["deposit"] - record["fine"]) - record["paid"], 0)
        fine: int = record["fine"] if is_burned and not record["isFined"] else 0
        context.require(amount + fine > 0, "nothing_due", f"{record['paid']} was paid")
        _pay_from_deposit(context, stream, record, amount, fine)
        claimed = {**record, "taken": record["taken"] + amount, "paid": record["paid"] + amount}
        context.state.put(_key(stream), {**claimed, "isFined": record["isFined"] or is_burned})
        context.emit("claimed", stream=stream, due=due, amount=amount, fine=fine)
        return {"amount": amount, "fine": fine}

    @method
    def top_up(self, context: Context, stream: StreamId, amount: Amount) -> int:
        """Add to the deposit and return how much was put in by now; by the payer.

        Fails with ``not_allowed``, ``overflow`` above the greatest amount, or ``insufficient_funds``.
        """
        record = _open_stream(context, stream)
        context.require(context.caller == record["payer"], "not_allowed", "only the payer does this")
        deposit: int = record["deposit"] + amount
        context.require(deposit <= AMOUNT_MAX, "overflow", f"a deposit is at most {AMOUNT_MAX}")
        context.call("tokens", "escrow", unit=record["unit"], key=stream.hex(), amount=amount)
        context.state.put(_key(stream), {**record, "deposit": deposit})
        context.emit("topped_up", stream=stream, amount=amount, deposit=deposit)
        return deposit

    @method
    def request_withdrawal(self, context: Context, stream: StreamId) -> int:
        """Begin the window after which the deposit goes back; return the ``uptime_ms`` from which on it may.

        By the payer. Who has asked before learns the same again. Fails with ``not_allowed``.
        """
        record = _open_stream(context, stream)
        context.require(context.caller == record["payer"], "not_allowed", "only the payer does this")
        at: int = record["withdrawAtUptimeMs"]
        if at == 0:
            at = context.uptime_ms + record["windowMs"]
            context.state.put(_key(stream), {**record, "withdrawAtUptimeMs": at})
            context.emit("withdrawal_requested", stream=stream, atUptimeMs=at)
        return at

    @method
    def withdraw(self, context: Context, stream: StreamId) -> int:
        """Close the stream after the window, give what is left of the deposit back, and return how much it was.

        By the payer. Fails with ``not_allowed``, ``no_withdrawal`` where it was not asked for, or ``window_open``.
        """
        record = _open_stream(context, stream)
        context.require(context.caller == record["payer"], "not_allowed", "only the payer does this")
        at: int = record["withdrawAtUptimeMs"]
        context.require(at != 0, "no_withdrawal", "request_withdrawal comes before it")
        context.require(context.uptime_ms >= at, "window_open", f"uptime is {context.uptime_ms}, it ends at {at}")
        rest = _close(context, stream, record)
        context.emit("withdrawn", stream=stream, rest=rest)
        return rest

    @method
    def close(self, context: Context, stream: StreamId, due: Total, signature: Signature) -> dict[str, Value]:
        """Close the stream by agreement: pay what is due in all, give the rest back, and return {amount, rest}.

        By either party, with the other's signature over this total. Out of the deposit, down to the fine; a payer that
        calls pays what lacks out of its balance. Where more was paid before, nothing is. Fails with ``not_allowed``,
        ``bad_signature`` or ``insufficient_funds``.
        """
        record = _open_stream(context, stream)
        is_payer = context.caller == record["payer"]
        is_party = is_payer or context.caller == record["service"]
        context.require(is_party, "not_allowed", "only payer and service party close it")
        key = _account_key(context, record["service"]) if is_payer else record["payerKey"]
        signed = context.hash("stream-close", stream, due)
        is_signed = context.verifies(key, signature, Purpose.STREAM_CLOSE, signed)
        context.require(is_signed, "bad_signature", "not the other party's over this total")
        amount: int = max(due - record["paid"], 0)
        from_deposit: int = min(amount, record["deposit"] - record["fine"] - record["taken"])
        if is_payer and amount > from_deposit:
            lacking = _pay_from_balance(context, record, amount - from_deposit)
            context.require(lacking == 0, "insufficient_funds", f"{lacking} lack")
        else:
            context.require(amount == from_deposit, "insufficient_funds", "the deposit does not hold what is due")
        _pay_from_deposit(context, stream, record, from_deposit, 0)
        paid = {**record, "taken": record["taken"] + from_deposit, "paid": record["paid"] + amount}
        rest = _close(context, stream, paid)
        context.emit("closed", stream=stream, due=due, amount=amount, rest=rest)
        return {"amount": amount, "rest": rest}

    @query
    def stream(self, context: Context, stream: StreamId) -> dict[str, Value]:
        """Return a stream's record and its id as ``stream``. Fails with ``unknown_stream``."""
        return {**_stream(context, stream), "stream": stream}

    @query
    def streams(self, context: Context, start: PageStart = "", limit: PageSize = 100) -> list[Value]:
        """Return up to ``limit`` streams in order of their ids, from ``start`` on, an id in hex."""
        return [
            {**record, "stream": bytes.fromhex(key[7:])}
            for key, record in context.state.scan("stream/", "stream/" + start, limit)
        ]


def _key(stream: bytes) -> str:
    return f"stream/{stream.hex()}"


def _lane(context: Context, stream: bytes) -> bytes:
    return context.hash("stream-lane", stream)


def _stream(context: Context, stream: bytes) -> Record:
    record: Record | None = context.state.get(_key(stream))
    if record is None:
        raise Revert("unknown_stream")
    return record


def _open_stream(context: Context, stream: bytes) -> Record:
    record = _stream(context, stream)
    context.require(record["status"] == OPEN, "stream_closed", "it moves no more")
    return record


def _account_key(context: Context, address: bytes) -> bytes:
    """Return the key in force of an account."""
    account = context.account(address)
    if account is None:
        raise Revert("unknown_account")
    return account.public_key


def _due(context: Context, stream: bytes, iteration: dict[str, Any]) -> int:
    """Return the total that an iteration of this stream says; anything else that was signed in its lane is none."""
    calls: list[Any] = iteration["calls"]
    context.require(len(calls) == 1 and iteration["mode"] == ATOMIC, "bad_iteration", "not one call, all or nothing")
    call = calls[0]
    is_settle = call["contract"] == "streams" and call["method"] == "settle"
    context.require(is_settle, "bad_iteration", "it does not settle")
    arguments = call["arguments"]
    due = arguments.get("due") if isinstance(arguments, dict) else None
    # A bool is an int here and to ==, though ``settle`` takes none.
    if not isinstance(due, int) or isinstance(due, bool) or arguments != {"stream": stream, "due": due}:
        raise Revert("bad_iteration", "it does not settle this stream")
    context.require(0 < due <= AMOUNT_MAX, "bad_iteration", f"what is due is 1 to {AMOUNT_MAX}")
    return due


def _pay_from_balance(context: Context, record: Record, amount: int) -> int:
    """Pay the service party of the caller's available balance as much of an amount as there is; return what lacks."""
    unit = record["unit"]
    balance = context.query("tokens", "balance", unit=unit, account=context.caller)
    paid: int = min(amount, balance["available"])
    if paid > 0:
        context.call("tokens", "transfer", unit=unit, to=record["service"], amount=paid)
    return amount - paid


def _pay_from_deposit(context: Context, stream: bytes, record: Record, amount: int, fine: int) -> None:
    """Pay the service party what is due out of the deposit, down to the fine, and the fine if it is to be paid."""
    left = record["deposit"] - record["fine"] - record["taken"]
    context.require(amount <= left, "insufficient_funds", f"the deposit holds {left} above the fine")
    if amount + fine > 0:
        to: bytes = record["service"]
        context.call("tokens", "pay_escrow", unit=record["unit"], key=stream.hex(), to=to, amount=amount + fine)


def _close(context: Context, stream: bytes, record: Record) -> int:
    """Give what is left of the deposit back, close the stream, and return how much it was."""
    rest: int = record["deposit"] - record["taken"] - (record["fine"] if record["isFined"] else 0)
    if rest > 0:
        to: bytes = record["payer"]
        context.call("tokens", "pay_escrow", unit=record["unit"], key=stream.hex(), to=to, amount=rest)
    context.state.put(_key(stream), {**record, "status": CLOSED})
    return rest
