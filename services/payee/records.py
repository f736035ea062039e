"""A platform's records: drafted, signed by the merchant, encrypted here, written to the chain, read back with its keys.

The plaintext leaves this program as the owner's own answer and as ciphertext, and in no other way. What stands on the
chain is the truth: a record is opened from there each time, so a lost vault costs drafts and keys, and never a record
whose epoch's key is known; but for one with a split key, whose second part nobody else has. The part in the code is not
kept here: who pays brings it.
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
    PART_BYTES,
    Acquiring,
    AskPart,
    Draft,
    DraftRecord,
    Part,
    PutRecord,
    RecordPut,
    RecordRow,
    Records,
    RecordsQuery,
    RemoveRecord,
    SplitAcquiring,
)
from services.payee.platform_chain import KeptRecord, ListedRecord, PlatformChain, Proven
from services.payee.platform_store import KeptDraft, PlatformStore
from services.payee.sealing import EpochKey, check_commitment
from services.payee.split import Plaintext, decode_plaintext, open_split, seal_split

ATTEMPTS_MAX = 4
"""How often a record is encrypted anew because an epoch has begun meanwhile."""


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
        if (await self._chain.merchant(identity, is_newest=True)).value is None:
            raise Refused("unknown_merchant", f"{params.identity} is no merchant's identity")
        record = (await self._chain.record(identity, is_newest=True)).value
        is_split = record is not None and record.is_active and self._store.part(identity, record.commitment)
        if is_split and not params.code_part:
            raise Refused("record_split", f"the record of {params.identity} has a split key: --split keeps that")
        version = 1 if record is None else record.version + 1
        draft = self._store.draft(identity)
        if draft is None or draft.version != version or not self._is_of(draft, identity, params):
            salt, part = secrets.token_bytes(SALT_BYTES), b""
            plaintext = msgspec.json.encode(params.acquiring)
            if params.code_part:
                part = secrets.token_bytes(PART_BYTES)
                plaintext = msgspec.json.encode(self._sealed(params, identity, part))
            if len(plaintext) > PLAINTEXT_BYTES_MAX:
                raise LocalError("too_large", f"a record has at most {PLAINTEXT_BYTES_MAX} bytes")
            draft = KeptDraft(version, salt, plaintext, params.is_shareable, commitment(salt, plaintext))
            await self._store.put_draft(identity, draft, part)
        return Draft(
            server=self._server,
            identity=params.identity,
            version=draft.version,
            commitment=draft.commitment,
            salt=draft.salt,
            plaintext=draft.plaintext,
            is_shareable=draft.is_shareable,
            standing="" if record is None else record.status,
            part=self._store.part(identity, draft.commitment) or b"",
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
        await self._store.drop_draft(identity, kept=params.commitment)
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

    # -- for payers, payments and rotation -------------------------------------------------------------

    async def part(self, params: AskPart) -> Part:
        """See :class:`services.payee.interfaces.AskPart`."""
        identity = identity_of(params.identity)
        record, _ = await self._own(identity)
        return Part(self._server, params.identity, f"0x{self._part(identity, record).hex()}")

    async def acquiring(self, identity: bytes, code_part: bytes | None = None) -> Proven[Acquiring]:
        """Return what the platform's own record says, as the chain has it now; a split one needs the code's part.

        Raises:
            Refused: ``no_platform`` where there is none or it was removed; ``missing_key``; ``key_part_missing`` where
                a split key's part is not in the code, ``no_part`` where the platform's is lost.
            PeerError: ``bad_record``, ``bad_commitment``, ``wrong_key_part``; ``Unreachable`` as
                :class:`PlatformChain`.
        """
        record, found = await self._own(identity)
        said = self._said(identity, record)
        if isinstance(said, SplitAcquiring):
            if code_part is None:
                raise Refused("key_part_missing", "the record has a split key, and this code has no part of it")
            part = self._part(identity, record)
            said = open_split(said, code_part=code_part, part=part, identity=identity, server=self._server)
        return Proven(said, found.time_ms, found.height)

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

    def is_lost(self, identity: bytes, record: KeptRecord) -> bool:
        """Tell whether the vault lacks what a record needs: its epoch's key, the platform's part of its split key."""
        if not self.has_key(record.epoch):
            return True
        try:
            said = self._said(identity, record)
        except PeerError:
            return False  # nobody's key opens it to anything
        return isinstance(said, SplitAcquiring) and self._store.part(identity, record.commitment) is None

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

    def _sealed(self, params: DraftRecord, identity: bytes, part: bytes) -> SplitAcquiring:
        return seal_split(
            params.acquiring, code_part=params.code_part, part=part, identity=identity, server=self._server
        )

    def _is_of(self, draft: KeptDraft, identity: bytes, params: DraftRecord) -> bool:
        """Tell whether a draft has just what is asked for."""
        part = self._store.part(identity, draft.commitment)
        if draft.is_shareable != params.is_shareable or bool(part) != bool(params.code_part):
            return False
        asked = params.acquiring if part is None else self._sealed(params, identity, part)
        return draft.plaintext == msgspec.json.encode(asked)

    async def _own(self, identity: bytes) -> tuple[KeptRecord, Proven[KeptRecord]]:
        found = await self._chain.record(identity)
        if found.value is None or not found.value.is_active:
            raise Refused("no_platform", f"{self._server} has no record of {identity_text(identity)}")
        return found.value, found

    def _part(self, identity: bytes, record: KeptRecord) -> bytes:
        part = self._store.part(identity, record.commitment)
        if part is None:
            message = f"{self._server} has no part of a split key for its record of {identity_text(identity)}"
            raise Refused("no_part", message)
        return part

    def _said(self, identity: bytes, record: KeptRecord) -> Plaintext:
        """Return what a record says; an error says nothing of it."""
        return decode_plaintext(self.open(identity, record).plaintext)

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
        said: Plaintext | None = None
        if record.is_active:
            with suppress(Refused, PeerError):  # its key is lost, or it is no record of ours
                said = self._said(record.identity, record)
        is_split = isinstance(said, SplitAcquiring)
        return RecordRow(
            identity=identity_text(record.identity),
            version=record.version,
            epoch=record.epoch,
            is_shareable=record.is_shareable,
            is_removed=not record.is_active,
            acquiring=None if isinstance(said, SplitAcquiring) else said,
            is_split=is_split,
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
