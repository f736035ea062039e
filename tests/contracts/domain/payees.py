"""A test chain of merchants, platforms and environments, and what they sign on it, with keys made from numbers."""

from dataclasses import dataclass
from typing import Any

from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.ids import tagged_hash
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import (
    commitment,
    consent_hash,
    content_hash,
    merchant_change_hash,
    merchant_hash,
    record_hash,
    removal_hash,
    wrap_hash,
)
from contracts.runtime.registry import Registry
from contracts.runtime.state import MemoryState
from tests.contracts.domain.support import Door, shared_registry
from tests.contracts.support import START_MS, Chain

ROLES = {
    "bank-a": ["admin"],
    "issuer-c": ["admin"],
    "merchant-m": ["merchant"],
    "permission": ["admin", "permission"],
    "user-b": [],
    "wallet-p": ["wallet"],
    "wallet-q": ["wallet"],
}
"""Organisations and the roles of the account of each one's name."""
MEASUREMENT = bytes(range(32))


def key(number: int) -> PrivateKey:
    """Return the key that a number stands for."""
    return PrivateKey.from_secret(40_000 + number)


def identity(number: int) -> bytes:
    """Return the identity that a number stands for."""
    return tagged_hash("contract-data", b"identity %d" % number)[:16]


ACCOUNT_KEYS = {name: key(index) for index, name in enumerate([*ROLES, "clerk-p"])}
"""Every organisation's account, and one of wallet-p that has no role."""
VOTE_KEYS = {name: key(50 + index) for index, name in enumerate(["bank-a", "issuer-c", "permission", "spare"])}


def payee_genesis(registry: Registry) -> Genesis:
    """Return the document of these organisations and accounts."""
    accounts = [(name, name, roles) for name, roles in ROLES.items()]
    return Genesis(
        name="payees",
        time_ms=START_MS,
        organisations=[Organisation(name, roles, "PEM") for name, roles in ROLES.items()],
        validators=[
            GenesisValidator(node, "bank-a" if node == "spare" else node, item.public.compressed.hex())
            for node, item in VOTE_KEYS.items()
        ],
        accounts=[
            Account(name, owner, ACCOUNT_KEYS[name].public.compressed.hex(), roles)
            for name, owner, roles in [*accounts, ("clerk-p", "wallet-p", [])]
        ],
        contracts=[Activation(item.name, item.version, item.code_hash.hex()) for item in registry.newest()],
    )


@dataclass
class PayeeChain(Chain):
    """A chain that begins with merchants' carriers, platforms, and organisations of environments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.genesis = payee_genesis(self.registry)
        self.chain_id = self.genesis.chain_id()
        self.state = MemoryState()
        self.state.apply(self.executor.genesis_writes(self.genesis))
        self.keys = dict(ACCOUNT_KEYS)


class Payees(Door):
    """The contract on such a chain, and everybody's signatures.

    Arguments of its calls are made whole, so that a test changes what it is about. Merchants and platforms sign with
    the keys that ``merchants`` and ``platforms`` hold for them.
    """

    def __init__(self) -> None:
        super().__init__("payees", PayeeChain(shared_registry()))
        self.merchants = {identity(number): key(100 + number) for number in range(40)}
        self.platforms = {"wallet-p": key(200), "wallet-q": key(201)}

    def sign(self, signer: PrivateKey, purpose: Purpose, payload: bytes) -> bytes:
        """Sign for this chain."""
        return signer.sign(purpose, self.chain.chain_id, payload)

    def registration(self, number: int = 0) -> dict[str, Any]:
        """Return the arguments of ``register_merchant``."""
        who = identity(number)
        signer = self.merchants[who]
        signature = self.sign(signer, Purpose.PAYEE_MERCHANT, merchant_hash(who, signer.public.compressed))
        return {"identity": who, "key": signer.public.compressed, "signature": signature}

    def key_change(self, new: PrivateKey, number: int = 1, merchant: int = 0) -> dict[str, Any]:
        """Return the arguments of ``replace_merchant_key``."""
        who = identity(merchant)
        payload = merchant_change_hash(who, number, new.public.compressed)
        return {
            "identity": who,
            "number": number,
            "new_key": new.public.compressed,
            "old_signature": self.sign(self.merchants[who], Purpose.PAYEE_MERCHANT, payload),
            "new_signature": self.sign(new, Purpose.PAYEE_MERCHANT, payload),
        }

    def consent(self, number: int = 1, is_given: bool = True, merchant: int = 0) -> dict[str, Any]:
        """Return the arguments of ``set_consent``."""
        who = identity(merchant)
        signature = self.sign(self.merchants[who], Purpose.PAYEE_MERCHANT, consent_hash(who, number, is_given))
        return {"identity": who, "number": number, "is_given": is_given, "signature": signature}

    def wraps(self, epoch: int, *environments: str, server: str = "wallet-p") -> dict[str, Any]:
        """Return the arguments of ``put_wraps``."""
        wraps = {name: b"wrap %d for %s" % (epoch, name.encode()) for name in environments}
        signatures = {
            name: self.sign(self.platforms[server], Purpose.PAYEE_PLATFORM, wrap_hash(server, epoch, name, wrap))
            for name, wrap in wraps.items()
        }
        return {"epoch": epoch, "wraps": wraps, "signatures": signatures}

    def record(
        self,
        version: int = 1,
        *,
        merchant: int = 0,
        server: str = "wallet-p",
        epoch: int = 1,
        content: bytes = b"content",
        ciphertext: bytes = b"ciphertext",
        is_shareable: bool = False,
    ) -> dict[str, Any]:
        """Return the arguments of ``add_record``."""
        who = identity(merchant)
        committed = commitment(bytes(32), content)
        signed = content_hash(who, server, version, committed, is_shareable)
        whole = record_hash(who, server, version, version, epoch, committed, ciphertext, is_shareable)
        return {
            "identity": who,
            "version": version,
            "epoch": epoch,
            "commitment": committed,
            "ciphertext": ciphertext,
            "is_shareable": is_shareable,
            "platform_signature": self.sign(self.platforms[server], Purpose.PAYEE_PLATFORM, whole),
            "merchant_signature": self.sign(self.merchants[who], Purpose.PAYEE_MERCHANT, signed),
        }

    def reencryption(
        self, version: int, epoch: int, *, merchant: int = 0, server: str = "wallet-p", ciphertext: bytes = b"anew"
    ) -> dict[str, Any]:
        """Return the arguments of ``reencrypt_record`` for the record that stands."""
        who = identity(merchant)
        old = self.query("record", server=server, identity=who)
        whole = record_hash(
            who, server, version, old["contentVersion"], epoch, old["commitment"], ciphertext, old["isShareable"]
        )
        signature = self.sign(self.platforms[server], Purpose.PAYEE_PLATFORM, whole)
        return {
            "identity": who,
            "version": version,
            "epoch": epoch,
            "ciphertext": ciphertext,
            "platform_signature": signature,
        }

    def removal(self, version: int, *, by: str, merchant: int = 0, server: str = "wallet-p") -> dict[str, Any]:
        """Return the arguments of ``remove_record``, signed ``by`` the merchant or the platform."""
        who = identity(merchant)
        payload = removal_hash(who, server, version)
        if by == "merchant":
            signature = self.sign(self.merchants[who], Purpose.PAYEE_MERCHANT, payload)
        else:
            signature = self.sign(self.platforms[server], Purpose.PAYEE_PLATFORM, payload)
        return {"identity": who, "server": server, "version": version, "signature": signature}

    def environment(self, name: str = "bank-a", number: int = 300) -> dict[str, Any]:
        """Return the arguments of ``register_environment``, with the keys ``number`` and the one after it."""
        return {
            "name": name,
            "exchange_key": key(number).public.compressed,
            "signing_key": key(number + 1).public.compressed,
            "measurement": MEASUREMENT,
        }


def make_payees() -> Payees:
    """Return a chain with merchant 0, both platforms in their first epoch, and the environments bank-a and issuer-c."""
    payees = Payees()
    payees.call("permission", "allow_measurement", measurement=MEASUREMENT, note="first")
    payees.call("bank-a", "register_environment", **payees.environment())
    payees.call("issuer-c", "register_environment", **payees.environment("issuer-c", 302))
    for server, signer in payees.platforms.items():
        payees.call(server, "register_platform", key=signer.public.compressed)
        payees.call(server, "put_wraps", **payees.wraps(1, "bank-a", "issuer-c", server=server))
    payees.call("merchant-m", "register_merchant", **payees.registration())
    return payees
