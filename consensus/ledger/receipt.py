"""Receipts: what became of a transaction, or of one call of it.

An ``atomic`` transaction has one receipt with a value for every call; an ``each`` transaction has one
receipt a call. The receipts root of a block is the list root over all of them in order.
"""

from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.merkle import HashBytes
from consensus.ledger.transaction import CALLS_MAX, TRANSACTION_BYTES_MAX, Name, Natural

OK = 0
FAILED = 1

RECEIPT_BYTES_MAX = 4 * TRANSACTION_BYTES_MAX


class Event(Record, frozen=True):
    """Something a contract made known. ``data`` is the canonical encoding of a map."""

    contract: Name
    name: Name
    data: bytes


class Receipt(Record, frozen=True):
    """Outcome of an atomic transaction, or of call ``call_index`` of an ``each`` transaction.

    ``code`` is empty when ``status`` is OK, else a typed error code, never an interpreter's text.
    ``values`` holds each call's return value in canonical encoding, and nothing when it failed.
    """

    transaction_id: HashBytes
    call_index: Annotated[int, msgspec.Meta(ge=0, lt=CALLS_MAX)]
    status: Annotated[int, msgspec.Meta(ge=OK, le=FAILED)]
    code: Annotated[str, msgspec.Meta(max_length=64)]
    values: list[bytes]
    events: list[Event]
    steps: Natural


receipt_codec: RecordCodec[Receipt] = RecordCodec(Receipt, bytes_max=RECEIPT_BYTES_MAX)
