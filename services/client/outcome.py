"""What becomes of a transaction, and what state holds, as the client knows and has checked it."""

from dataclasses import dataclass

from consensus.ledger.codec import Value, decode_untrusted
from consensus.ledger.proof import Verified
from consensus.ledger.receipt import OK, Event, Receipt
from consensus.ledger.transaction import Transaction
from services.client.errors import Refused


@dataclass(frozen=True, slots=True)
class Submitted:
    """A node's answer to one submitted transaction: ``code`` is empty when it was accepted or is final already.

    ``height`` is set where the node says that it is final; ``failed_count`` counts its failed receipts then.
    """

    transaction_id: bytes
    code: str = ""
    message: str = ""
    height: int | None = None
    failed_count: int = 0

    @property
    def is_accepted(self) -> bool:
        """Whether the node holds the transaction or knows its receipt."""
        return not self.code


@dataclass(frozen=True, slots=True)
class Final:
    """That a node says a transaction is final, without proof; ``failed_count`` counts its failed receipts."""

    transaction_id: bytes
    height: int
    failed_count: int


@dataclass(frozen=True, slots=True)
class StateValue:
    """A proven value, None for proven absence, as of the block at ``height``."""

    value: Value
    height: int
    verified: Verified


@dataclass(frozen=True, slots=True)
class Outcome:
    """A final transaction with its proven receipts; ``verified`` names block, time and who certified it.

    An ``atomic`` transaction has one receipt, an ``each`` transaction one a call.
    """

    transaction: Transaction
    receipts: tuple[Receipt, ...]
    verified: Verified

    @property
    def height(self) -> int:
        """Height of the block that holds the transaction."""
        return self.verified.height

    @property
    def is_ok(self) -> bool:
        """Whether every receipt says that its calls took effect."""
        return all(receipt.status == OK for receipt in self.receipts)

    def check(self) -> "Outcome":
        """Return self.

        Raises:
            Refused: with the code of the first failed receipt.
        """
        for receipt in self.receipts:
            if receipt.status != OK:
                raise Refused(receipt.code, f"call {receipt.call_index} failed in block {self.height}: {receipt.code}")
        return self

    def values(self) -> list[Value]:
        """Return what the calls returned, in order.

        Raises:
            Refused: a call failed.
        """
        return [decode_untrusted(value) for receipt in self.check().receipts for value in receipt.values]

    def value(self) -> Value:
        """Return what the first call returned; errors as for :meth:`values`."""
        return self.values()[0]

    def events(self) -> list[Event]:
        """Return the events of all calls in order."""
        return [event for receipt in self.receipts for event in receipt.events]
