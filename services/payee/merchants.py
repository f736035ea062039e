"""The merchant's side: identities and keys on disk, what a merchant signs, and its errands on the chain.

A folder holds of each merchant ``NAME.pem``, its key, encrypted (:mod:`services.client.keystore`), and ``NAME.json``,
its identity, whether the chain is known to have it, and its codes' part of a split key where it has one.
``next/NAME.pem`` is a key about to take the first one's place.

Every errand may be interrupted and run again: what is made stays, and what the chain has is not sent twice.
"""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from consensus.ledger import payees
from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import make_call
from services.client.client import Client, OnSigned, nobody_hears
from services.client.errors import Refused
from services.client.keystore import KeyStore, Signer
from services.client.outcome import Outcome
from services.client.reader import Reader
from services.local.files import replace_file
from services.payee.codes import key_part_of, key_part_text
from services.payee.identity import identity_of, identity_text
from services.payee.interfaces import CODE_PART_BYTES, IdentityText

FOLDER = "merchants"
"""Where a network's folder has its merchants."""
REMOVED = "REMOVED"
_NEXT = "next"
_FILE_BYTES_MAX = 4_096

T = TypeVar("T")


class _MerchantFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identity: IdentityText
    registered: bool = False
    part: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class MerchantEntry:
    """A merchant as its files can be read without a passphrase; ``key_part`` is its codes' of a split key."""

    name: str
    identity: bytes
    public_key: bytes
    is_registered: bool
    key_part: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Merchant:
    """An identity with the key that signs for it; ``key_part`` is its codes' of a split key."""

    name: str
    identity: bytes
    key: PrivateKey
    key_part: bytes | None = field(default=None, repr=False)

    def sign_registration(self, chain_id: ChainId) -> bytes:
        """Return the signature that shows that a new merchant holds its key."""
        return self._sign(chain_id, payees.merchant_hash(self.identity, self.key.public.compressed))

    def sign_content(
        self, chain_id: ChainId, server: str, version: int, commitment: bytes, *, is_shareable: bool
    ) -> bytes:
        """Return the signature that lets a platform say this of the merchant, from this version of its record on."""
        return self._sign(chain_id, payees.content_hash(self.identity, server, version, commitment, is_shareable))

    def sign_consent(self, chain_id: ChainId, number: int, *, is_given: bool) -> bytes:
        """Return the merchant's ``number``-th word on whether others' clients may see its shareable records."""
        return self._sign(chain_id, payees.consent_hash(self.identity, number, is_given))

    def sign_removal(self, chain_id: ChainId, server: str, version: int) -> bytes:
        """Return the signature that removes a platform's record, for a version after the one of its content."""
        return self._sign(chain_id, payees.removal_hash(self.identity, server, version))

    def sign_key(self, chain_id: ChainId, number: int, new_key: bytes) -> bytes:
        """Return the signature by which a key follows another; both keys make one."""
        return self._sign(chain_id, payees.merchant_change_hash(self.identity, number, new_key))

    def _sign(self, chain_id: ChainId, signed: bytes) -> bytes:
        return self.key.sign(Purpose.PAYEE_MERCHANT, chain_id, signed)


class Merchants:
    """The merchants of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._keys = KeyStore(folder)
        self._next_keys = KeyStore(folder / _NEXT)

    def entries(self) -> list[MerchantEntry]:
        """Return the merchants in order of their names; none when the folder is missing."""
        return [self._entry(name) for name in self._names()]

    def find(self, text: str) -> MerchantEntry:
        """Return the merchant of this name or identity.

        Raises:
            LocalError: ``no_merchant``, ``bad_merchant``.
        """
        names = self._names()
        if text in names:
            return self._entry(text)
        if _is_identity(text):
            for entry in self.entries():
                if identity_text(entry.identity) == text:
                    return entry
        known = ", ".join(names) or "none"
        raise LocalError("no_merchant", f"{self.folder} holds no merchant {text[:40]}; the merchants there: {known}")

    def open(self, name: str, passphrase: bytes) -> Merchant:
        """Open a merchant's key.

        Raises:
            LocalError: ``no_merchant``, ``bad_merchant``, ``wrong_passphrase``, ``key_permissions``;
                ``key_change_open`` while it is open which of two keys the chain has.
        """
        entry = self.find(name)
        if self.has_next(entry.name):
            message = f"a change of {entry.name}'s key was interrupted: hansa payee merchant key new {entry.name}"
            raise LocalError("key_change_open", f"{message} goes on")
        return Merchant(entry.name, entry.identity, self._keys.load(entry.name, passphrase).key, entry.key_part)

    def has(self, name: str) -> bool:
        """Tell whether there is a key of this name.

        Raises:
            LocalError: ``bad_name``, also for a name that could be an identity.
        """
        if _is_identity(name):
            raise LocalError("bad_name", f"{name} could be an identity: choose another name")
        try:
            self._keys.check_free(name)
        except LocalError as error:
            if error.code != "key_exists":
                raise
            return True
        return False

    def make(self, name: str, passphrase: bytes, *, is_split: bool = False) -> Merchant:
        """Make a merchant with a random identity, or return the one that this name has.

        With ``is_split`` all its codes are to have a part of a split key, the same one for ever and for all platforms.

        Raises:
            LocalError: as :meth:`has`; ``unknown_key``, ``bad_merchant``, ``wrong_passphrase``, ``key_permissions``;
                ``merchant_exists`` where it was begun the other way.
        """
        path = self._path(name)
        if not self.has(name) and not path.exists():
            self._keys.create(name, passphrase)
        key = self._keys.load(name, passphrase).key
        if not path.exists():
            part = key_part_text(secrets.token_bytes(CODE_PART_BYTES)) if is_split else msgspec.UNSET
            identity = identity_text(secrets.token_bytes(payees.IDENTITY_BYTES))
            self._write_first(path, _MerchantFile(identity, part=part))
        entry = self._entry(name)
        if is_split is not (entry.key_part is not None):
            way = "without" if is_split else "with"
            raise LocalError("merchant_exists", f"{name} was made {way} --split, and its codes stay so")
        return Merchant(name, entry.identity, key, entry.key_part)

    def note_registered(self, name: str) -> None:
        """Note that the chain has a merchant."""
        file = msgspec.structs.replace(self._read(name), registered=True)
        replace_file(self._path(name), msgspec.json.encode(file))

    def has_next(self, name: str) -> bool:
        """Tell whether a new key waits to take the present one's place."""
        return (self._next_keys.folder / f"{name}.pem").exists()

    def next_key(self, name: str, passphrase: bytes) -> PrivateKey:
        """Return the key that is to follow, made when there is none."""
        if not self.has_next(name):
            self._next_keys.create(name, passphrase)
        return self._next_keys.load(name, passphrase).key

    def present_key(self, name: str, passphrase: bytes) -> PrivateKey:
        """Return the key in force before a change of key; errors as :meth:`open`, but for ``key_change_open``."""
        return self._keys.load(self.find(name).name, passphrase).key

    def take_next(self, name: str) -> None:
        """Put the key that follows into the present one's place, once the chain has it."""
        (self._next_keys.folder / f"{name}.pem").replace(self.folder / f"{name}.pem")

    def _names(self) -> list[str]:
        return [entry.name for entry in self._keys.entries() if self._path(entry.name).is_file()]

    def _entry(self, name: str) -> MerchantEntry:
        file = self._read(name)
        public_key = self._keys.entry(name).public_key
        try:
            part = None if file.part is msgspec.UNSET else key_part_of(file.part)
        except PeerError as error:
            raise LocalError("bad_merchant", f"{self._path(name)}: {error.message}") from None
        return MerchantEntry(name, identity_of(file.identity), public_key, file.registered, part)

    def _read(self, name: str) -> _MerchantFile:
        path = self._path(name)
        try:
            with path.open("rb") as source:
                return msgspec.json.decode(source.read(_FILE_BYTES_MAX), type=_MerchantFile)
        except OSError as error:
            raise LocalError("bad_merchant", f"{path}: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise LocalError("bad_merchant", f"{path}: {error}") from None

    def _write_first(self, path: Path, file: _MerchantFile) -> None:
        """Write a file whole or not at all, unless another program has: an identity is chosen once."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        replace_file(temporary, msgspec.json.encode(file))
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _is_identity(text: str) -> bool:
    try:
        identity_of(text)
    except LocalError:
        return False
    return True


# -- on the chain ----------------------------------------------------------------------------------------


class MerchantState(msgspec.Struct, frozen=True, rename="camel"):
    """A merchant as the chain has it; ``servers`` are the platforms with an active record, ``changes`` counts all."""

    key: bytes
    key_number: int
    consent: bool
    consent_number: int
    servers: list[str]
    changes: int
    log: bytes


class RecordState(msgspec.Struct, frozen=True, rename="camel"):
    """A platform's record as anyone may see it; ``status`` is ACTIVE or REMOVED."""

    version: int
    content_version: int
    epoch: int
    commitment: bytes
    is_shareable: bool
    status: str


async def merchant_state(reader: Reader, identity: bytes) -> MerchantState | None:
    """Return a merchant, proven, None where the chain has none of this identity.

    Raises:
        PeerError: a node's proof does not hold.
    """
    return await _proven(reader, payees.merchant_key(identity), MerchantState)


async def record_state(reader: Reader, server: str, identity: bytes) -> RecordState | None:
    """Return a platform's record, proven, None where there never was one; errors as :func:`merchant_state`."""
    return await _proven(reader, payees.record_key(server, identity), RecordState)


async def register(
    client: Client, account: Signer, merchant: Merchant, *, on_signed: OnSigned = nobody_hears
) -> tuple[MerchantState, int | None]:
    """Register a merchant; return it with the height of the block, None where the chain has had it with this key.

    Raises:
        Refused: ``merchant_exists`` where the identity has another key, ``key_used``, ``not_allowed``, and others.
    """
    height = None
    found = await merchant_state(client, merchant.identity)
    if found is None:
        arguments: dict[str, Value] = {
            "identity": merchant.identity,
            "key": merchant.key.public.compressed,
            "signature": merchant.sign_registration(client.chain_id),
        }
        height = (await _call(client, account, "register_merchant", arguments, on_signed)).height
        found = await _merchant_at(client, merchant.identity, height)
    if found.key != merchant.key.public.compressed and not found.key_number:
        raise Refused("merchant_exists", f"the chain has {identity_text(merchant.identity)} with another key")
    return found, height


async def set_consent(
    client: Client, account: Signer, merchant: Merchant, *, is_given: bool, on_signed: OnSigned = nobody_hears
) -> tuple[MerchantState, int | None]:
    """Let others' clients see the merchant's shareable records, or no more; None for the height if it was so before.

    Raises:
        Refused: ``unknown_merchant``, ``bad_signature``, and others.
    """
    found = await _known(client, merchant.identity)
    if found.consent is is_given:
        return found, None
    number = found.consent_number + 1
    arguments: dict[str, Value] = {
        "identity": merchant.identity,
        "number": number,
        "is_given": is_given,
        "signature": merchant.sign_consent(client.chain_id, number, is_given=is_given),
    }
    height = (await _call(client, account, "set_consent", arguments, on_signed)).height
    return await _merchant_at(client, merchant.identity, height), height


async def remove_record(
    client: Client, account: Signer, merchant: Merchant, server: str, *, on_signed: OnSigned = nobody_hears
) -> tuple[RecordState, int | None]:
    """Remove a platform's record; return the tombstone, and None for the height if it was removed before.

    Raises:
        Refused: ``unknown_record``, ``bad_signature``, and others.
    """
    found, height = await record_state(client, server, merchant.identity), None
    if found is not None and found.status != REMOVED:
        version = found.content_version + 1  # whatever is encrypted anew meanwhile
        arguments: dict[str, Value] = {
            "identity": merchant.identity,
            "server": server,
            "version": version,
            "signature": merchant.sign_removal(client.chain_id, server, version),
        }
        height = (await _call(client, account, "remove_record", arguments, on_signed)).height
        place = payees.record_key(server, merchant.identity)
        found = await _proven(client, place, RecordState, height_min=height)
    if found is None:
        raise Refused("unknown_record", f"{server} never had a record of {merchant.name}")
    return found, height


async def replace_key(
    client: Client,
    account: Signer,
    store: Merchants,
    name: str,
    passphrase: bytes,
    *,
    on_signed: OnSigned = nobody_hears,
) -> tuple[MerchantState, int | None]:
    """Give a merchant a new key, on the chain and then in its folder; None for the height if the chain had it.

    Codes that the old key signed are refused from then on.

    Raises:
        LocalError: as :meth:`Merchants.open`.
        Refused: ``unknown_merchant``, ``bad_signature``, and others.
    """
    entry, height = store.find(name), None
    found = await _known(client, entry.identity)
    old = Merchant(entry.name, entry.identity, store.present_key(entry.name, passphrase))
    new = Merchant(entry.name, entry.identity, store.next_key(entry.name, passphrase))
    new_key, number = new.key.public.compressed, found.key_number + 1
    if found.key != new_key:
        arguments: dict[str, Value] = {
            "identity": entry.identity,
            "number": number,
            "new_key": new_key,
            "old_signature": old.sign_key(client.chain_id, number, new_key),
            "new_signature": new.sign_key(client.chain_id, number, new_key),
        }
        height = (await _call(client, account, "replace_merchant_key", arguments, on_signed)).height
        found = await _merchant_at(client, entry.identity, height)
    store.take_next(entry.name)
    return found, height


async def _known(reader: Reader, identity: bytes) -> MerchantState:
    found = await merchant_state(reader, identity)
    if found is None:
        raise Refused("unknown_merchant", f"the chain has no merchant {identity_text(identity)}")
    return found


async def _merchant_at(reader: Reader, identity: bytes, height: int) -> MerchantState:
    """Return a merchant as it stands after the block at a height."""
    found = await _proven(reader, payees.merchant_key(identity), MerchantState, height_min=height)
    if found is None:
        raise PeerError("bad_answer", "a final change of a merchant is not in the state after it")
    return found


async def _proven(reader: Reader, key: str, kind: type[T], *, height_min: int = 0) -> T | None:
    try:
        found = await reader.state(key, height_min=height_min, is_newest=not height_min)
    except Refused as error:
        if error.code == "genesis_unsigned":
            return None  # before its first block a chain has no merchants
        raise
    if found.value is None:
        return None
    try:
        return msgspec.convert(found.value, kind)
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"{key}: {error}") from None


async def _call(
    client: Client, account: Signer, method: str, arguments: dict[str, Value], on_signed: OnSigned
) -> Outcome:
    calls = [make_call(payees.CONTRACT, method, arguments)]
    return (await client.call_many(account, calls, on_signed=on_signed)).check()
