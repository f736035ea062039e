"""What a platform keeps in its vault: its key, its epochs' keys, drafts, a rotation under way, payments.

Keys of the map say nothing of orders: a payment lies under a keyed pseudonym of it. Identities, which are on the chain
anyway, and epochs' numbers lie in the clear. An OPEN payment has a mark of its own, so that a start finds what is
unfinished without reading what is done.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

import msgspec

from consensus.ledger.errors import StorageError
from consensus.ledger.keys import PrivateKey
from services.local.vault import Pair, Vault

OPEN, PAID, REFUSED = "OPEN", "PAID", "REFUSED"

_KEY, _ROTATION = b"key", b"rotation"
_EPOCH, _DRAFT, _PART = b"epoch/", b"draft/", b"part/"
_PAYMENT, _NUMBER, _OF, _OPEN = b"payment/", b"number/", b"of/", b"open/"
_NUMBER_BYTES = 8

T = TypeVar("T")


class KeptDraft(msgspec.Struct, frozen=True):
    """A record that waits for the merchant's signature."""

    version: int
    salt: bytes
    plaintext: bytes
    is_shareable: bool
    commitment: bytes

    def __repr__(self) -> str:
        """Tell nothing of the content."""
        return f"KeptDraft(version={self.version})"


class Wrap(msgspec.Struct, frozen=True):
    """An epoch's key as it is wrapped for an environment's exchange key, and the platform's signature of it."""

    exchange_key: bytes
    wrap: bytes
    signature: bytes


class Rotation(msgspec.Struct, frozen=True):
    """An epoch that is to begin, or has begun and not all records are encrypted under it; with what begins it."""

    epoch: int
    wraps: dict[str, Wrap]
    """By environment."""
    is_passing: bool = False
    """Whether the epoch's key may be wrapped for others too, by an attempt that was given up."""

    def is_for(self, exchange_keys: Mapping[str, bytes]) -> bool:
        """Tell whether the epoch's key is for just these keys of environments."""
        return not self.is_passing and {name: wrap.exchange_key for name, wrap in self.wraps.items()} == exchange_keys


class KeptPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment by its number from 1 on; ``payload_hash`` tells a request that comes again. Times in ms UTC."""

    number: int
    identity: bytes
    kind: Literal["signed", "open"]
    order: str
    payer: str
    payee: str
    amount: int
    currency: str
    event: str
    payload_hash: bytes
    state: str
    code: str = ""
    opened_ms: int
    paid_ms: int = 0

    @property
    def terms(self) -> tuple[str, str, int, str]:
        """Who pays whom how much."""
        return self.payer, self.payee, self.amount, self.currency


_drafts = msgspec.msgpack.Decoder(KeptDraft)
_rotations = msgspec.msgpack.Decoder(Rotation)
_payments = msgspec.msgpack.Decoder(KeptPayment)


class PlatformStore:
    """The vault in the words of a platform. Raises ``StorageError`` alone."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        newest = next(vault.scan(_NUMBER, reverse=True, limit=1), None)
        self._numbered = 0 if newest is None else int.from_bytes(newest[0][len(_NUMBER) :], "big")

    # -- keys ------------------------------------------------------------------------------------------

    async def key(self) -> PrivateKey:
        """Return the platform's key; it is made the first time."""
        pem = self._vault.get(_KEY)
        if pem is None:
            made = PrivateKey.generate()
            await self._vault.write([(_KEY, made.to_pem(None))])
            return made
        return PrivateKey.from_pem(pem)

    def epoch_key(self, epoch: int) -> bytes | None:
        """Return the key of an epoch, None where the vault does not have it."""
        return self._vault.get(_epoch(epoch))

    def rotation(self) -> Rotation | None:
        """Return the rotation that has begun and not ended."""
        return self._decoded(_ROTATION, _rotations)

    async def begin_rotation(self, rotation: Rotation, key: bytes) -> None:
        """Keep a rotation with the key of its epoch, before anybody hears of either."""
        await self._vault.write([(_ROTATION, msgspec.msgpack.encode(rotation)), (_epoch(rotation.epoch), key)])

    def wrapped_for(self, epoch: int, environment: str) -> bytes | None:
        """Return the exchange key that an environment's wrap of an epoch was made for."""
        return self._vault.get(_wrapped(epoch, environment))

    async def put_wrapped(self, epoch: int, wraps: Mapping[str, Wrap]) -> None:
        """Know which exchange keys an epoch's wraps on the chain were made for."""
        await self._vault.write([(_wrapped(epoch, name), wrap.exchange_key) for name, wrap in wraps.items()])

    async def end_rotation(self) -> None:
        """Know that all records are under the newest epoch's key."""
        await self._vault.write([(_ROTATION, None)])

    # -- drafts ----------------------------------------------------------------------------------------

    def draft(self, identity: bytes) -> KeptDraft | None:
        """Return the draft of an identity."""
        return self._decoded(_DRAFT + identity, _drafts)

    async def put_draft(self, identity: bytes, draft: KeptDraft, part: bytes = b"") -> None:
        """Keep a draft, in the place of an earlier one, with the platform's part of its split key where it has one."""
        pairs: list[Pair] = [(_DRAFT + identity, msgspec.msgpack.encode(draft))]
        if part:
            pairs.append((_PART + identity + draft.commitment, part))
        await self._vault.write(pairs)

    def part(self, identity: bytes, commitment: bytes) -> bytes | None:
        """Return the platform's part of the split key of the content with this commitment."""
        return self._vault.get(_PART + identity + commitment)

    async def drop_draft(self, identity: bytes, *, kept: bytes = b"") -> None:
        """Forget a draft, and the parts of split keys of all contents but the one with the commitment ``kept``."""
        parts = [name for name, _ in self._vault.scan(_PART + identity)]
        dropped: list[Pair] = [(name, None) for name in parts if name != _PART + identity + kept]
        await self._vault.write([(_DRAFT + identity, None), *dropped])

    # -- payments --------------------------------------------------------------------------------------

    @property
    def payment_count(self) -> int:
        """How many orders there are."""
        return self._numbered

    def name_of(self, identity: bytes, kind: str, order: str) -> bytes:
        """Return what stands for an order here, 16 bytes."""
        return self._vault.blind("order", identity.hex(), kind, order)

    def payment(self, name: bytes) -> KeptPayment | None:
        """Return the payment of an order."""
        return self._decoded(_PAYMENT + name, _payments)

    async def open_payment(self, name: bytes, payment: KeptPayment) -> KeptPayment:
        """Keep a payment that is to be made; one of number 0 gets the next number."""
        pairs: list[Pair] = [(_OPEN + name, b"")]
        if not payment.number:
            self._numbered += 1
            payment = msgspec.structs.replace(payment, number=self._numbered)
            number = payment.number.to_bytes(_NUMBER_BYTES, "big")
            pairs += [(_NUMBER + number, name), (_OF + self._merchant(payment.identity) + number, name)]
        await self._vault.write([*pairs, (_PAYMENT + name, msgspec.msgpack.encode(payment))])
        return payment

    async def end_payment(self, name: bytes, payment: KeptPayment) -> None:
        """Keep what has come of a payment."""
        await self._vault.write([(_PAYMENT + name, msgspec.msgpack.encode(payment)), (_OPEN + name, None)])

    def open_payments(self) -> list[bytes]:
        """Return the orders whose payments are open."""
        return [name[len(_OPEN) :] for name, _ in self._vault.scan(_OPEN)]

    def newest_payments(self, identity: bytes | None, limit: int) -> Iterator[KeptPayment]:
        """Yield payments, the newest first; of one merchant where an identity is given."""
        prefix = _NUMBER if identity is None else _OF + self._merchant(identity)
        for _, name in self._vault.scan(prefix, reverse=True, limit=limit):
            found = self.payment(name)
            if found is None:
                raise StorageError("corrupted", "a payment that has a number is not there")
            yield found

    def _merchant(self, identity: bytes) -> bytes:
        return self._vault.blind("merchant", identity.hex())

    def _decoded(self, name: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
        data = self._vault.get(name)
        return None if data is None else decoder.decode(data)


def _wrapped(epoch: int, environment: str) -> bytes:
    return b"wrapped/" + f"{epoch:06d}/{environment}".encode()


def _epoch(epoch: int) -> bytes:
    return _EPOCH + f"{epoch:06d}".encode()
