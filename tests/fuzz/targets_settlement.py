"""Targets of settlement: blocks that a node shows the listener, lane records for the census, orders for the payer."""

import msgspec

from consensus.ledger.codec import decode_untrusted, encode
from consensus.ledger.errors import PeerError
from consensus.ledger.receipt import receipt_codec
from consensus.ledger.validators import certificate_codec
from services.accounts.port import Operation, Order
from services.client.answers import RawBlock, hex_of
from services.settlement.census import last_id_untrusted
from services.settlement.listener import read_block_untrusted
from services.settlement.relay import order_untrusted
from tests.fuzz.target import Target
from tests.ledger.builders import (
    certify,
    make_block,
    make_genesis,
    make_genesis_block,
    make_keys,
    make_receipt,
    make_set,
    make_transaction,
)


def targets() -> list[Target]:
    """Return the targets of settlement."""
    order = Order("T-1", Operation.PAY, "user-b", "shop", 100_000, "CNY")
    record = encode({"next": 1, "lastId": bytes(32), "status": 0, "height": 7})
    return [
        *_block_targets(),
        Target(
            "lane record",
            lambda data: last_id_untrusted(decode_untrusted(data)),
            [record],
            ("services/settlement/census.py:last_id_untrusted",),
        ),
        Target(
            "payment order",
            order_untrusted,
            [msgspec.json.encode(order)],
            ("services/settlement/relay.py:order_untrusted",),
            is_json=True,
        ),
    ]


def _block_targets() -> list[Target]:
    """Return targets for the three parts of a block; the other two are as they were certified."""
    keys = make_keys(4)
    validators, chain_id = make_set(keys), make_genesis(keys).chain_id()
    parent = make_genesis_block(chain_id, validators).header
    made = [make_transaction(number, chain_id=chain_id) for number in range(3)]
    receipts = [make_receipt(transaction) for transaction in made]
    block = make_block(parent, validators, transactions=made, receipts=receipts)
    leaves = [msgspec.Raw(receipt_codec.encode(receipt)) for receipt in receipts]
    parts = [
        block.encode(),
        certificate_codec.encode(certify(block.header, keys)),
        msgspec.msgpack.encode([leaves, [1, 1, 1]]),
    ]

    def target(place: int, name: str) -> Target:
        def read(data: bytes) -> None:
            raw, certificate, kept = (hex_of(data if part == place else true) for part, true in enumerate(parts))
            if read_block_untrusted(RawBlock(raw, certificate, kept), parent, validators) != (block.header, receipts):
                raise AssertionError("a block that nobody certified was taken")

        read(parts[place])
        reaches = ("services/settlement/listener.py:read_block_untrusted",)
        return Target(f"settled {name}", read, [parts[place]], reaches, may=(PeerError,))

    return [target(place, name) for place, name in enumerate(["block", "certificate", "receipts"])]
