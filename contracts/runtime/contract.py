"""What a contract imports: its base class, the marks on its methods, the types of its arguments, its context.

A contract is a class with declared methods:

.. code-block:: python

    class Greeter(Contract):
        name = "greeter"
        version = 1

        @method
        def greet(self, context: Context, who: Name) -> int:
            count = (context.state.get(who) or 0) + 1
            context.state.put(who, count)
            context.emit("greeted", who=who, count=count)
            return count

A contract object lives for ever and is shared: it holds no attributes, everything that lasts is state.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec

from consensus.ledger.codec import Value, decode_untrusted
from consensus.ledger.errors import PeerError, Revert
from consensus.ledger.ids import ADDRESS_BYTES, ChainId, tagged_hash
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.merkle import ListProof, leaf_is_under
from consensus.ledger.transaction import decode_transaction_untrusted
from contracts.runtime.accounts import AccountRecord, account_key, decode_account
from contracts.runtime.lanes import LaneRecord, load_lane
from contracts.runtime.meter import (
    CALL_STEPS,
    EMIT_STEPS,
    GET_STEPS,
    HASH_STEPS,
    KEY_STEPS,
    PUT_STEPS,
    SCAN_ENTRY_STEPS,
    SCAN_STEPS,
    VERIFY_STEPS,
    Meter,
)
from contracts.runtime.state import Overlay
from contracts.runtime.values import decode_metered, encode_metered

__all__ = [
    "AMOUNT_MAX",
    "AccountAddress",
    "AccountRecord",
    "Amount",
    "Context",
    "Contract",
    "LaneRecord",
    "Name",
    "Revert",
    "Value",
    "method",
    "query",
]

AMOUNT_MAX = 10**15
KEY_BYTES_MAX = 512
SCAN_LIMIT_MAX = 1_000

AccountAddress = Annotated[bytes, msgspec.Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES, title="account")]
"""The 20 bytes that name an account."""
Amount = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX, title="amount")]
"""A positive quantity in the smallest unit."""
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, title="name")]
"""A text of 1 to 64 characters."""


class Contract:
    """Base of all contracts; one version of one contract is one subclass, alone in its module."""

    name: ClassVar[str]
    version: ClassVar[int]


F = TypeVar("F", bound=Callable[..., Any])


def method(function: F) -> F:
    """Mark a method that transactions call and that may change state."""
    function.__dict__["kind"] = "method"
    return function


def query(function: F) -> F:
    """Mark a method that only reads; anyone may ask it of any node, and other contracts may too."""
    function.__dict__["kind"] = "query"
    return function


class Host(Protocol):
    """What stands behind every context of one call from outside: the block, the journal, the meter."""

    overlay: Overlay
    meter: Meter
    chain_id: bytes
    height: int
    time_ms: int
    uptime_ms: int
    transaction_id: bytes
    lane_name: bytes
    call_index: int

    def emit(self, contract: str, name: str, data: bytes) -> None:
        """Record an event."""

    def nested(self, contract: str, method: str, arguments: bytes, context: "Context", *, is_query: bool) -> bytes:
        """Run another contract's method; undo its effects and raise when it reverts."""


class State:
    """A contract's own part of the state: text keys of at most 512 bytes, canonical values of at most 64 KiB."""

    __slots__ = ("_is_writable", "_meter", "_overlay", "_prefix")

    def __init__(self, host: Host, contract: str, *, is_writable: bool) -> None:
        self._overlay = host.overlay
        self._meter = host.meter
        self._prefix = contract.encode() + b"/"
        self._is_writable = is_writable

    def get(self, key: str) -> Any:
        """Return a fresh copy of the value at a key, None where there is none; the contract knows its type."""
        meter = self._meter
        meter.left -= GET_STEPS
        if meter.left < 0:
            meter.stop()
        data = self._overlay.get(self._key(key))
        return None if data is None else decode_metered(meter, data)

    def put(self, key: str, value: object) -> None:
        """Write a canonical value.

        Raises:
            Revert: ``value_too_large``; ``read_only`` inside a query.
        """
        meter = self._meter
        meter.left -= PUT_STEPS
        if meter.left < 0:
            meter.stop()
        if not self._is_writable:
            raise Revert("read_only", "a query cannot write")
        self._overlay.put(self._key(key), encode_metered(meter, value))

    def delete(self, key: str) -> None:
        """Remove a key, whether it holds something or not.

        Raises:
            Revert: ``read_only`` inside a query.
        """
        self._meter.charge(PUT_STEPS)
        if not self._is_writable:
            raise Revert("read_only", "a query cannot write")
        self._overlay.delete(self._key(key))

    def scan(self, prefix: str, start: str = "", limit: int = 100) -> list[tuple[str, Any]]:
        """Return up to ``limit`` (at most 1,000) entries in ascending order of the keys' UTF-8 bytes.

        The keys begin with ``prefix`` and are ≥ ``start``; both, like the keys returned, are whole keys
        as ``get`` takes them. To go on after a page, start at its last key followed by ``"\\0"``.
        """
        if not 0 <= limit <= SCAN_LIMIT_MAX:
            raise Revert("bad_limit", f"a page has 0 to {SCAN_LIMIT_MAX} entries")
        self._meter.charge(SCAN_STEPS + SCAN_ENTRY_STEPS * limit)
        skip = len(self._prefix)
        entries = self._overlay.scan(self._key(prefix), self._key(start), limit)
        self._meter.left += SCAN_ENTRY_STEPS * (limit - len(entries))
        return [(key[skip:].decode(), decode_metered(self._meter, data)) for key, data in entries]

    def _key(self, key: str) -> bytes:
        encoded = key.encode()
        if len(encoded) > KEY_BYTES_MAX:
            raise Revert("key_too_long", f"{len(encoded)} bytes, at most {KEY_BYTES_MAX} make a key")
        return self._prefix + encoded


class Context:
    """Who calls, in which block, and what the contract may do about it.

    ``caller`` is the address (20 bytes) of the transaction's sender, also in calls between contracts;
    ``via`` names the contract that called this one, and is empty for a call of the transaction itself.
    ``time_ms`` and ``uptime_ms`` are the block's; ``lane_name`` is the lane that the transaction stands in, empty for
    the sender's main lane and for queries; ``call_index`` is the call's place in its transaction.
    """

    __slots__ = (
        "_contract",
        "_host",
        "_is_writable",
        "call_index",
        "caller",
        "chain_id",
        "height",
        "lane_name",
        "state",
        "time_ms",
        "transaction_id",
        "uptime_ms",
        "via",
    )

    def __init__(self, host: Host, contract: str, caller: bytes, via: str, *, is_writable: bool) -> None:
        self._host = host
        self._contract = contract
        self._is_writable = is_writable
        self.caller = caller
        self.via = via
        self.chain_id = host.chain_id
        self.height = host.height
        self.time_ms = host.time_ms
        self.uptime_ms = host.uptime_ms
        self.transaction_id = host.transaction_id
        self.lane_name = host.lane_name
        self.call_index = host.call_index
        self.state = State(host, contract, is_writable=is_writable)

    def require(self, condition: object, code: str, message: str = "") -> None:
        """Refuse the call unless the condition holds.

        Raises:
            Revert: ``code``, a snake_case text that users find in the receipt.
        """
        if not condition:
            raise Revert(code, message)

    def emit(self, name: str, /, **fields: Value) -> None:
        """Make an event known; it stands in the receipt if the call succeeds.

        Raises:
            Revert: ``read_only`` inside a query.
        """
        self._host.meter.charge(EMIT_STEPS)
        if not self._is_writable:
            raise Revert("read_only", "a query cannot emit")
        self._host.emit(self._contract, name, encode_metered(self._host.meter, fields))

    def account(self, address: bytes) -> AccountRecord | None:
        """Return the account of an address, None for one that is not registered."""
        self._host.meter.charge(GET_STEPS)
        data = self._host.overlay.get(account_key(address))
        return None if data is None else decode_account(data)

    def account_named(self, name: str) -> bytes | None:
        """Return the address (20 bytes) of the account with this name, None where there is none."""
        self._host.meter.charge(GET_STEPS)
        data = self._host.overlay.get(b"membership/name/" + name.encode())
        address = None if data is None else decode_metered(self._host.meter, data)
        return address if isinstance(address, bytes) else None

    def lane(self, address: bytes, lane: bytes) -> LaneRecord | None:
        """Return what an account's lane holds, as of the transactions before this one; None if never used."""
        self._host.meter.charge(GET_STEPS)
        return load_lane(self._host.overlay, address, lane)

    def call(self, contract: str, method: str, /, **arguments: Value) -> Any:
        """Call another contract's method in the name of the same caller and return its value.

        Raises:
            Revert: whatever the other contract refuses with, its effects undone; ``unknown_contract``,
                ``unknown_method``, ``bad_arguments``; ``read_only`` inside a query.
        """
        if not self._is_writable:
            raise Revert("read_only", "a query cannot call a method that writes")
        return self._nested(contract, method, arguments, is_query=False)

    def query(self, contract: str, method: str, /, **arguments: Value) -> Any:
        """Ask another contract's query and return its value; errors as with ``call``."""
        return self._nested(contract, method, arguments, is_query=True)

    def hash(self, *parts: Value) -> bytes:
        """Return 32 bytes: the tagged SHA-256 (domain ``contract-data``) of the canonical list of the parts."""
        data = encode_metered(self._host.meter, parts)
        self._host.meter.charge(HASH_STEPS + (len(data) >> 6))
        return tagged_hash("contract-data", data)

    def address_of(self, public_key: bytes) -> bytes:
        """Return the address (20 bytes) of a new account with this compressed P-256 key (33 bytes).

        Raises:
            Revert: ``bad_key`` for bytes that are no point of the curve.
        """
        self._host.meter.charge(KEY_STEPS)
        try:
            return PublicKey.load_untrusted(public_key).address
        except PeerError as error:
            raise Revert("bad_key", error.message) from None

    def verifies(self, public_key: bytes, signature: bytes, purpose: Purpose, payload: bytes) -> bool:
        """Tell whether this is the signature (64 bytes) of the payload for this purpose on this chain.

        Raises:
            Revert: ``bad_key`` for bytes that are no compressed P-256 key (33 bytes).
        """
        self._host.meter.charge(VERIFY_STEPS + (len(payload) >> 6))
        try:
            key = PublicKey.load_untrusted(public_key)
        except PeerError as error:
            raise Revert("bad_key", error.message) from None
        return key.verifies(signature, Purpose(purpose), ChainId(self.chain_id), payload)

    def transaction(self, raw: bytes, public_key: bytes) -> dict[str, Any]:
        """Read a transaction of this chain that is signed with a key (33 bytes), whether it was ever sent or not.

        Returns {id (32 bytes), sender, lane, sequence, validUntilMs, mode, calls: [{contract, method, arguments}]}.

        Raises:
            Revert: ``bad_transaction`` for bytes that are none, of another chain, with arguments that are no canonical
                value, or not signed so; ``bad_key``.
        """
        # Every byte can be a value of its own, read twice and walked through.
        self._host.meter.charge(VERIFY_STEPS + len(raw))
        try:
            transaction = decode_transaction_untrusted(raw)
            calls = [
                {"contract": call.contract, "method": call.method, "arguments": decode_untrusted(call.arguments)}
                for call in transaction.body.calls
            ]
        except PeerError as error:
            raise Revert("bad_transaction", error.message) from None
        body = transaction.body
        self.require(body.chain_id == self.chain_id, "bad_transaction", "of another chain")
        try:
            key = PublicKey.load_untrusted(public_key)
        except PeerError as error:
            raise Revert("bad_key", error.message) from None
        self.require(transaction.signed_by(key), "bad_transaction", "not signed with this key")
        return {
            "id": bytes(transaction.id),
            "sender": body.sender,
            "lane": body.lane,
            "sequence": body.sequence,
            "validUntilMs": body.valid_until_ms,
            "mode": body.mode,
            "calls": calls,
        }

    def is_under(self, root: bytes, leaf: list[Value], index: int, count: int, path: list[bytes]) -> bool:
        """Tell whether a leaf, the canonical list of these values, stands at ``index`` of ``count`` under a root.

        ``path`` holds the sibling hashes (32 bytes each) from the leaf up; see :mod:`consensus.ledger.merkle`.
        """
        data = encode_metered(self._host.meter, leaf)
        self._host.meter.charge(HASH_STEPS * (2 + len(path)) + (len(data) >> 6))
        return leaf_is_under(root, data, ListProof(index, count, path))

    def _nested(self, contract: str, method: str, arguments: dict[str, Value], *, is_query: bool) -> Any:
        meter = self._host.meter
        meter.charge(CALL_STEPS)
        data = encode_metered(meter, arguments)
        return decode_metered(meter, self._host.nested(contract, method, data, self, is_query=is_query))
