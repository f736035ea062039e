"""A platform's records: drafted, signed by the merchant, encrypted here, written to the chain, read back with its keys.

The plaintext leaves this program as the owner's own answer and as ciphertext, and in no other way. What stands on the
chain is the truth: a record is opened from there each time, so a lost vault costs drafts and keys, and never a record
whose epoch's key is known.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.keys import PrivateKey, PublicKey, Purpose
from consensus.ledger.payees import (
    PLAINTEXT_BYTES_MAX,
    SALT_BYTES,
    Content,
    commitment,
    content_hash,
    record_hash,
    removal_hash,
)
from services.client.errors import Refused
from services.client.outcome import Outcome
from services.payee.identity import identity_of, identity_text
from services.payee.interfaces import (
    Acquiring,
    Draft,
    DraftRecord,
    PutRecord,
    RecordPut,
    RecordRow,
    Records,
    RecordsQuery,
    RemoveRecord,
)
from services.payee.platform_chain import KeptRecord, ListedRecord, PlatformChain, Proven
from services.payee.platform_store import KeptDraft, PlatformStore
from services.payee.sealing import EpochKey, check_commitment

ATTEMPTS_MAX = 4
"""How often a record is encrypted anew because an epoch has begun meanwhile."""

_acquiring = msgspec.json.Decoder(Acquiring)


@dataclass(frozen=True, slots=True)
class Written:
    """A ciphertext of a record's content, with what the platform signs of it."""

    ciphertext: bytes
    signature: bytes


class RecordDesk:
    """What the owner asks about records."""

    def __init__(self, store: PlatformStore, chain: PlatformChain, key: PrivateKey) -> None:
        self._store = store
        self._chain = chain
        self._key = key
        self._server = chain.server

    # -- the owner's -----------------------------------------------------------------------------------

    async def draft_record(self, params: DraftRecord) -> Draft:
        """See :class:`services.payee.interfaces.DraftRecord`."""
        identity = identity_of(params.identity)
        plaintext = msgspec.json.encode(params.acquiring)
        if len(plaintext) > PLAINTEXT_BYTES_MAX:
            raise LocalError("too_large", f"acquiring information has at most {PLAINTEXT_BYTES_MAX} bytes")
        if (await self._chain.merchant(identity, is_newest=True)).value is None:
            raise Refused("unknown_merchant", f"{params.identity} is no merchant's identity")
        record = (await self._chain.record(identity, is_newest=True)).value
        version = 1 if record is None else record.version + 1
        draft = self._store.draft(identity)
        asked = (version, plaintext, params.is_shareable)
        if draft is None or (draft.version, draft.plaintext, draft.is_shareable) != asked:
            salt = secrets.token_bytes(SALT_BYTES)
            draft = KeptDraft(version, salt, plaintext, params.is_shareable, commitment(salt, plaintext))
            await self._store.put_draft(identity, draft)
        return Draft(
            server=self._server,
            identity=params.identity,
            version=draft.version,
            commitment=draft.commitment,
            salt=draft.salt,
            plaintext=draft.plaintext,
            is_shareable=draft.is_shareable,
            standing="" if record is None else record.status,
        )

    async def put_record(self, params: PutRecord) -> RecordPut:
        """See :class:`services.payee.interfaces.PutRecord`."""
        identity = identity_of(params.identity)
        draft = self._store.draft(identity)
        if draft is None or draft.commitment != params.commitment:
            found = await self._chain.record(identity, is_newest=True)
            if _is_put(found, params.commitment):
                return _told(params.identity, found)  # the answer was lost
            raise LocalError("unknown_draft", "there is no such draft; draft the record again")
        merchant = (await self._chain.merchant(identity, is_newest=True)).value
        if merchant is None:
            raise Refused("unknown_merchant", f"{params.identity} is no merchant's identity")
        signed = content_hash(identity, self._server, draft.version, draft.commitment, draft.is_shareable)
        merchant_key = PublicKey.load_untrusted(merchant.key)
        if not merchant_key.verifies(params.merchant_signature, Purpose.PAYEE_MERCHANT, self._chain.chain_id, signed):
            raise LocalError("bad_signature", "this is not the merchant's signature of this draft")
        put = await self._put(identity, draft, params.merchant_signature)
        await self._chain.until_seen()
        await self._store.drop_draft(identity)
        return put

    async def remove_record(self, params: RemoveRecord) -> RecordPut:
        """See :class:`services.payee.interfaces.RemoveRecord`."""
        identity = identity_of(params.identity)
        record = (await self._chain.record(identity, is_newest=True)).value
        if record is None:
            raise Refused("unknown_record", f"there is no record of {params.identity}")
        if not record.is_active:
            raise Refused("record_removed", f"the record of {params.identity} was removed")
        version = record.version + 1
        signature = self._sign(removal_hash(identity, self._server, version))
        arguments: dict[str, Value] = {
            "identity": identity,
            "server": self._server,
            "version": version,
            "signature": signature,
        }
        outcome = await self._chain.call("remove_record", arguments)
        await self._chain.until_seen()
        await self._store.drop_draft(identity)
        return _put(params.identity, version, record.epoch, outcome)

    async def records(self, params: RecordsQuery) -> Records:
        """See :class:`services.payee.interfaces.RecordsQuery`."""
        after = identity_of(params.after).hex() if params.after else ""
        found: list[ListedRecord] = []
        while len(found) < params.limit and (page := await self._chain.records_of(after, params.limit - len(found))):
            found += page
            after = page[-1].identity.hex()
        rows = [self._row(record) for record in found]
        is_more = bool(rows) and len(found) == params.limit
        return Records(rows, rows[-1].identity if is_more else "")

    # -- for payments and rotation ---------------------------------------------------------------------

    async def acquiring(self, identity: bytes) -> Proven[Acquiring]:
        """Return what the platform's own record says, as the chain has it now.

        Raises:
            Refused: ``no_platform`` where there is none or it was removed; ``missing_key``.
            PeerError: ``bad_record``, ``bad_commitment``; ``Unreachable`` as :class:`PlatformChain`.
        """
        found = await self._chain.record(identity)
        if found.value is None or not found.value.is_active:
            raise Refused("no_platform", f"{self._server} has no record of {identity_text(identity)}")
        content = self.open(identity, found.value)
        return Proven(_decoded(content), found.time_ms, found.height)

    async def all_records(self) -> AsyncGenerator[ListedRecord, None]:
        """Yield all records, tombstones too, by their identities."""
        after = ""
        while page := await self._chain.records_of(after):
            for record in page:
                yield record
            after = page[-1].identity.hex()

    def has_key(self, epoch: int) -> bool:
        """Tell whether records of an epoch can be opened."""
        return self._store.epoch_key(epoch) is not None

    def open(self, identity: bytes, record: KeptRecord) -> Content:
        """Return the content of a record; errors as :meth:`acquiring`."""
        content = self._key_of(record.epoch).open_record(
            record.ciphertext, identity=identity, server=self._server, version=record.version
        )
        check_commitment(content, record.commitment)
        return content

    def write(
        self,
        identity: bytes,
        content: Content,
        *,
        version: int,
        content_version: int,
        epoch: int,
        committed: bytes,
        is_shareable: bool,
    ) -> Written:
        """Encrypt a content under an epoch's key and sign the record that it makes; ``Refused`` (``missing_key``)."""
        ciphertext = self._key_of(epoch).seal_record(
            content, identity=identity, server=self._server, version=version, random_bytes=secrets.token_bytes
        )
        signed = record_hash(
            identity, self._server, version, content_version, epoch, committed, ciphertext, is_shareable
        )
        return Written(ciphertext, self._sign(signed))

    # -- inside ----------------------------------------------------------------------------------------

    async def _put(self, identity: bytes, draft: KeptDraft, merchant_signature: bytes) -> RecordPut:
        """Write a draft under the epoch in force; it is written once, whoever asks how often."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            platform = (await self._chain.platform()).value
            if platform is None or not platform.epoch:
                raise Refused("no_epoch", f"{self._server} has no epoch yet: hansa payee platform rotate begins one")
            written = self.write(
                identity,
                Content(draft.salt, draft.plaintext),
                version=draft.version,
                content_version=draft.version,
                epoch=platform.epoch,
                committed=draft.commitment,
                is_shareable=draft.is_shareable,
            )
            arguments: dict[str, Value] = {
                "identity": identity,
                "version": draft.version,
                "epoch": platform.epoch,
                "commitment": draft.commitment,
                "ciphertext": written.ciphertext,
                "is_shareable": draft.is_shareable,
                "platform_signature": written.signature,
                "merchant_signature": merchant_signature,
            }
            try:
                outcome = await self._chain.call("add_record", arguments)
            except Refused as error:
                found = await self._chain.record(identity, is_newest=True)
                if error.code == "wrong_version" and _is_put(found, draft.commitment):
                    return _told(identity_text(identity), found)  # by an attempt whose answer was lost
                if error.code != "wrong_epoch" or attempt == ATTEMPTS_MAX:
                    raise
            else:
                return _put(identity_text(identity), draft.version, platform.epoch, outcome)
        raise InvariantError("the last attempt returns or raises")

    def _row(self, record: ListedRecord) -> RecordRow:
        acquiring = None
        if record.is_active:
            with suppress(Refused, PeerError):  # its key is lost, or it is no record of ours
                acquiring = _decoded(self.open(record.identity, record))
        return RecordRow(
            identity=identity_text(record.identity),
            version=record.version,
            epoch=record.epoch,
            is_shareable=record.is_shareable,
            is_removed=not record.is_active,
            acquiring=acquiring,
        )

    def _key_of(self, epoch: int) -> EpochKey:
        secret = self._store.epoch_key(epoch)
        if secret is None:
            raise Refused("missing_key", f"the vault has no key of epoch {epoch}: its records have to be added anew")
        return EpochKey(secret)

    def _sign(self, signed: bytes) -> bytes:
        return self._key.sign(Purpose.PAYEE_PLATFORM, self._chain.chain_id, signed)


def _is_put(found: Proven[KeptRecord], committed: bytes) -> bool:
    return found.value is not None and found.value.is_active and found.value.commitment == committed


def _told(identity: str, found: Proven[KeptRecord]) -> RecordPut:
    if found.value is None:
        raise InvariantError("a record that was put is there")
    return RecordPut(identity, found.value.version, found.value.epoch, b"", found.height)


def _put(identity: str, version: int, epoch: int, outcome: Outcome) -> RecordPut:
    return RecordPut(identity, version, epoch, bytes(outcome.transaction.id), outcome.height)


def _decoded(content: Content) -> Acquiring:
    """Return what a content says; an error says nothing of it."""
    try:
        return _acquiring.decode(content.plaintext)
    except msgspec.MsgspecError:
        raise PeerError("bad_record", "a record opens to no acquiring information") from None
