"""Records of a merchant that a platform's own account brings, and that the contract must refuse."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from consensus.ledger.codec import Value
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import SALT_BYTES, commitment, content_hash, record_hash
from services.payee.merchants import Merchant


@dataclass(frozen=True, slots=True)
class Forgery:
    """Arguments of ``add_record``, and the code that they must be refused with."""

    title: str
    arguments: dict[str, Value]
    wanted: str


def forgeries(chain_id: ChainId, merchant: Merchant, server: str, *, version: int, epoch: int) -> Iterator[Forgery]:
    """Yield forgeries; ``version`` is that of the record which stands, ``epoch`` the one in force.

    Who forges has no key of the platform, and of the merchant only what it signs in good faith.
    """
    forger = PrivateKey.generate()
    committed = commitment(secrets.token_bytes(SALT_BYTES), b"pay the forger")
    ciphertext = secrets.token_bytes(100)

    def arguments(version: int, epoch: int, merchant_key: PrivateKey) -> dict[str, Value]:
        content = content_hash(merchant.identity, server, version, committed, False)
        record = record_hash(merchant.identity, server, version, version, epoch, committed, ciphertext, False)
        return {
            "identity": merchant.identity,
            "version": version,
            "epoch": epoch,
            "commitment": committed,
            "ciphertext": ciphertext,
            "is_shareable": False,
            "platform_signature": forger.sign(Purpose.PAYEE_PLATFORM, chain_id, record),
            "merchant_signature": merchant_key.sign(Purpose.PAYEE_MERCHANT, chain_id, content),
        }

    yield Forgery("a record that the merchant has not signed", arguments(version + 1, epoch, forger), "bad_signature")
    only_merchant = arguments(version + 1, epoch, merchant.key)
    yield Forgery("a record that the platform has not signed", only_merchant, "bad_signature")
    yield Forgery("a record of an old version", arguments(version, epoch, merchant.key), "wrong_version")
    yield Forgery("a record under another epoch's key", arguments(version + 1, epoch + 1, merchant.key), "wrong_epoch")
