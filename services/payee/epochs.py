"""A platform's epochs: whom it trusts with its key, and how it takes that trust back.

An epoch has one symmetric key, made here, kept before anybody hears of it, and put on the chain wrapped for each
trusted environment. To trust one no longer, the next epoch begins without it and all records are encrypted anew; what
it could read before stays exposed to it. One call begins each epoch: it goes under a name that the chain takes once, so
that an attempt that was given up and the next one exclude each other, and no epoch has two keys. What an attempt that
was given up has wrapped may be in anybody's hands, so no records stay under its key where it is for others.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import aclosing

import structlog
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import CONTRACT, wrap_hash
from consensus.ledger.receipt import OK
from consensus.ledger.sealing import KEY_BYTES
from consensus.ledger.transaction import Call, make_call
from services.client.errors import Refused
from services.payee.interfaces import RECORDS_COUNTED_MAX, NoParams, PlatformStatus, Register, Rotate, Rotated, Trust
from services.payee.platform_chain import ListedRecord, PlatformChain
from services.payee.platform_store import PlatformStore, Rotation, Wrap
from services.payee.records import RecordDesk
from services.payee.sealing import EpochKey, ExchangeKey, wrap_epoch_key

BATCH = 50
"""Records that one transaction encrypts anew."""
ATTEMPTS_MAX = 16
"""How many calls that failed may have tried to begin one epoch."""

log = structlog.get_logger("platform")


class Epochs:
    """What the owner asks about keys."""

    def __init__(self, store: PlatformStore, chain: PlatformChain, records: RecordDesk, key: PrivateKey) -> None:
        self._store = store
        self._chain = chain
        self._records = records
        self._key = key
        self._changing = trio.Lock()
        self.trouble = ""
        """What stands in the way of the platform at all, "" while nothing does."""

    async def register(self, params: Register) -> PlatformStatus:
        """See :class:`services.payee.interfaces.Register`."""
        async with self._changing:
            await self.make_registered(is_replacing=params.is_replacing)
        return await self.status(NoParams())

    async def make_registered(self, *, is_replacing: bool = False) -> None:
        """Register the platform's key where the chain has none.

        Raises:
            LocalError: ``other_key``, unless that one is to be replaced.
            Unreachable, Refused, PeerError: the chain.
        """
        own = self._key.public.compressed
        found = (await self._chain.platform()).value
        if found is None or (found.key != own and is_replacing):
            await self._chain.call("register_platform", {"key": own})
            found = (await self._chain.platform()).value
            if found is None:
                message = f"the account in service.toml acts for another organisation than {self._chain.server}"
                raise LocalError("wrong_server", message)
        if found.key != own:
            message = "the chain has another key of this platform, so this is not its vault"
            raise LocalError("other_key", f"{message}: hansa payee platform register --replace makes it so")

    async def rotate(self, params: Rotate) -> Rotated:
        """See :class:`services.payee.interfaces.Rotate`."""
        names = sorted(set(params.environments))
        async with self._changing:
            await self.make_registered()
            keys = {name: await self._chain.exchange_key(name) for name in names}
            rotation = self._store.rotation()
            if rotation is None or not rotation.is_for(keys) or not await self._announced(rotation):
                rotation = await self._begun(keys)
            log.info("an epoch is in force", epoch=rotation.epoch, environments=names)
            encrypted = await self._encrypt_anew(rotation.epoch)
            await self._store.end_rotation()
        await self._chain.until_seen()
        return Rotated(rotation.epoch, encrypted)

    async def trust(self, params: Trust) -> PlatformStatus:
        """See :class:`services.payee.interfaces.Trust`."""
        async with self._changing:
            epoch = await self._epoch()
            keys = {name: await self._chain.exchange_key(name) for name in sorted(set(params.environments))}
            lacking = {name: key for name, key in keys.items() if self._store.wrapped_for(epoch, name) != key}
            if lacking:
                wraps = self._wrapped(epoch, self._epoch_key(epoch), lacking)
                await self._chain.call("put_wraps", _arguments(epoch, wraps))
                await self._store.put_wrapped(epoch, wraps)
        return await self.status(NoParams())

    async def status(self, params: NoParams) -> PlatformStatus:
        """Return how the platform stands."""
        found = (await self._chain.platform()).value
        epoch = 0 if found is None else found.epoch
        records = outdated = lost = seen = 0
        async with aclosing(self._records.all_records()) as all_records:
            async for record in all_records:
                seen += 1
                if seen > RECORDS_COUNTED_MAX:
                    break
                if record.is_active:
                    records += 1
                    outdated += record.epoch != epoch
                    lost += self._records.is_lost(record.identity, record)
        return PlatformStatus(
            server=self._chain.server,
            key=self._key.public.compressed,
            trouble=self.trouble,
            epoch=epoch,
            environments=[name for name in await self._chain.wrapped(epoch) if await self._can_open(epoch, name)],
            records=records,
            is_more=seen > RECORDS_COUNTED_MAX,
            outdated=outdated,
            lost=lost,
            payments=self._store.payment_count,
            unfinished=len(self._store.open_payments()),
        )

    # -- inside ----------------------------------------------------------------------------------------

    async def _epoch(self) -> int:
        found = (await self._chain.platform()).value
        if found is None or not found.epoch:
            raise Refused("no_epoch", f"{self._chain.server} has no epoch yet: hansa payee platform rotate begins one")
        return found.epoch

    def _epoch_key(self, epoch: int) -> EpochKey:
        secret = self._store.epoch_key(epoch)
        if secret is None:
            raise Refused("missing_key", f"the vault has no key of epoch {epoch}: rotate begins another one")
        return EpochKey(secret)

    async def _can_open(self, epoch: int, environment: str) -> bool:
        """Tell whether an environment is in service, and with the exchange key that its wrap was made for."""
        try:
            key = await self._chain.exchange_key(environment)
        except Refused:
            return False
        return self._store.wrapped_for(epoch, environment) == key

    async def _begun(self, keys: Mapping[str, bytes]) -> Rotation:
        """Begin the next epoch for these environments' exchange keys, and return it once it is in force."""
        for _ in range(ATTEMPTS_MAX):
            found = (await self._chain.platform()).value
            epoch = 1 if found is None else found.epoch + 1
            # An attempt that was given up may still begin this epoch: it has one key, whoever begins it. Others may
            # have that attempt's wraps, so another epoch follows at once.
            given_up = self._store.epoch_key(epoch)
            secret = given_up or secrets.token_bytes(KEY_BYTES)
            wraps = self._wrapped(epoch, EpochKey(secret), keys)
            rotation = Rotation(epoch, wraps, is_passing=given_up is not None)
            await self._store.begin_rotation(rotation, secret)
            if await self._announced(rotation) and not rotation.is_passing:
                return rotation
        raise InvariantError("each round follows an epoch that another attempt has begun")

    async def _announced(self, rotation: Rotation) -> bool:
        """Begin an epoch on the chain; False where another attempt has begun it, for other environments."""
        arguments = _arguments(rotation.epoch, rotation.wraps)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                is_done = await self._chain.call_once("put_wraps", arguments, self._name(rotation.epoch, attempt))
            except Refused as error:
                if error.code != "once_used":
                    raise
                if await self._epoch_or_none() >= rotation.epoch:
                    return False
                continue  # what took the name has failed
            if is_done:
                await self._store.put_wrapped(rotation.epoch, rotation.wraps)
                return True
        raise LocalError("epoch_stuck", f"{ATTEMPTS_MAX} calls to begin epoch {rotation.epoch} have failed")

    def _name(self, epoch: int, attempt: int) -> str:
        return f"payee-epoch:{self._chain.server}:{epoch}:{attempt}"

    async def _epoch_or_none(self) -> int:
        found = (await self._chain.platform()).value
        return 0 if found is None else found.epoch

    def _wrapped(self, epoch: int, key: EpochKey, exchange_keys: Mapping[str, bytes]) -> dict[str, Wrap]:
        """Return an epoch's key wrapped for environments, signed."""
        server, wraps = self._chain.server, {}
        for name, exchange_key in exchange_keys.items():
            wrap = wrap_epoch_key(
                key,
                server=server,
                epoch=epoch,
                environment=name,
                exchange_key=exchange_key,
                fresh=ExchangeKey.generate(),
            )
            signed = wrap_hash(server, epoch, name, wrap)
            signature = self._key.sign(Purpose.PAYEE_PLATFORM, self._chain.chain_id, signed)
            wraps[name] = Wrap(exchange_key, wrap, signature)
        return wraps

    async def _encrypt_anew(self, epoch: int) -> int:
        """Encrypt all records of earlier epochs under the one in force; return how many.

        What cannot be opened stays: its key is lost. What somebody changes meanwhile comes with the next pass.
        """
        total = 0
        while True:
            done, codes = 0, set[str]()
            batch: list[Call] = []
            async with aclosing(self._records.all_records()) as all_records:
                async for record in all_records:
                    if record.is_active and record.epoch != epoch and (call := self._encrypted(record, epoch)):
                        batch.append(call)
                    if len(batch) == BATCH:
                        done += await self._sent(batch, codes)
                        batch = []
            if batch:
                done += await self._sent(batch, codes)
            total += done
            if not codes:
                return total
            if not done:
                raise Refused(min(codes), f"no record could be encrypted anew: {', '.join(sorted(codes))}")

    def _encrypted(self, record: ListedRecord, epoch: int) -> Call | None:
        """Return the call that encrypts a record anew, None for one that does not open."""
        try:
            content = self._records.open(record.identity, record)
        except (Refused, PeerError) as error:
            log.warning("a record does not open", identity=record.identity.hex(), code=error.code)
            return None
        version = record.version + 1
        written = self._records.write(
            record.identity,
            content,
            version=version,
            content_version=record.content_version,
            epoch=epoch,
            committed=record.commitment,
            is_shareable=record.is_shareable,
        )
        arguments: dict[str, Value] = {
            "identity": record.identity,
            "version": version,
            "epoch": epoch,
            "ciphertext": written.ciphertext,
            "platform_signature": written.signature,
        }
        return make_call(CONTRACT, "reencrypt_record", arguments)

    async def _sent(self, batch: Sequence[Call], codes: set[str]) -> int:
        """Send a batch; return how many calls took effect, and add the codes of the others."""
        receipts = (await self._chain.call_each(batch)).receipts
        codes |= {receipt.code for receipt in receipts if receipt.status != OK}
        return sum(receipt.status == OK for receipt in receipts)


def _arguments(epoch: int, wraps: Mapping[str, Wrap]) -> dict[str, Value]:
    return {
        "epoch": epoch,
        "wraps": {name: wrap.wrap for name, wrap in wraps.items()},
        "signatures": {name: wrap.signature for name, wrap in wraps.items()},
    }
