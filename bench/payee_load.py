"""Puts many merchants on a chain, each with a record of one platform, as that platform and the merchants would.

The merchants' keys are drawn from a seed and thrown away; which identity has which account follows from its number, so
that whoever resolves one knows what must come back.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator
from itertools import islice
from random import Random

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import (
    CONTRACT,
    SALT_BYTES,
    Content,
    Delegation,
    commitment,
    content_hash,
    delegation_hash,
    merchant_hash,
    merchant_key,
    record_hash,
    wrap_hash,
)
from consensus.ledger.transaction import EACH, Call, make_call
from services.client.client import Client
from services.client.keystore import Signer
from services.client.lanes import Lanes
from services.client.tasks import single_errors
from services.payee.interfaces import Acquiring
from services.payee.sealing import EpochKey, ExchangeKey, wrap_epoch_key

SERVER = "wallet-p"
MERCHANTS_PER_TRANSACTION = 25
"""Each takes two calls."""
LANES = 12
FINAL_MS_MAX = 60_000
DELEGATION_MS = 3_600_000


class _Environment(msgspec.Struct, frozen=True, rename="camel"):
    exchange_key: bytes
    status: str


def identity_of(number: int) -> bytes:
    """Return the identity of a merchant by its number from 0 on."""
    return hashlib.sha256(b"hansa bench merchant %d" % number).digest()[:16]


def acquiring_of(number: int) -> Acquiring:
    """Return what the platform keeps of a merchant."""
    return Acquiring(account=f"merchant-{number}", name=f"Merchant {number}", currency="CNY", terminal=f"T{number:08d}")


class Platform:
    """A platform with keys of this process, and the merchants that it has put on the chain."""

    def __init__(self, client: Client, account: Signer, *, seed: int = 1) -> None:
        self.loaded = 0
        self._client = client
        self._account = account
        self._random = Random(seed)
        self._key = PrivateKey.generate()
        self._epoch_key = EpochKey(secrets.token_bytes(32))
        self._height = 0

    async def begin(self, environments: list[str]) -> None:
        """Register the platform's key, and give these environments the key of its first epoch."""
        client, key = self._client, self._key
        wraps: dict[str, Value] = {}
        signatures: dict[str, Value] = {}
        for name in environments:
            found = msgspec.convert(await client.query(CONTRACT, "environment", {"name": name}), _Environment)
            fresh = ExchangeKey.generate()
            wrap = wrap_epoch_key(
                self._epoch_key,
                server=SERVER,
                epoch=1,
                environment=name,
                exchange_key=found.exchange_key,
                fresh=fresh,
            )
            wraps[name] = wrap
            signatures[name] = self._sign(wrap_hash(SERVER, 1, name, wrap))
        calls = [
            make_call(CONTRACT, "register_platform", {"key": key.public.compressed}),
            make_call(CONTRACT, "put_wraps", {"epoch": 1, "wraps": wraps, "signatures": signatures}),
        ]
        (await client.call_many(self._account, calls)).check()

    def delegate(self, key: bytes, now_ms: int) -> Delegation:
        """Return leave for a key to sign queries for an hour."""
        until_ms = now_ms + DELEGATION_MS
        signature = self._sign(delegation_hash(SERVER, key, until_ms))
        return Delegation(SERVER, key, until_ms, signature)

    async def load(self, count: int) -> float:
        """Have ``count`` merchants on the chain, provable on every node; return the seconds until all were final.

        Raises:
            InvariantError: the chain refused one: figures would say nothing.
            HansaError: as :meth:`Client.submit_many`.
        """
        began = time.monotonic()
        numbers = iter(range(self.loaded, count))
        lanes = self._client.lanes(self._account, count=LANES, prefix=b"bench")

        async def bring() -> None:
            while batch := list(islice(numbers, MERCHANTS_PER_TRANSACTION)):
                await self._bring(lanes, [call for number in batch for call in self._calls(number)])

        with single_errors():
            async with trio.open_nursery() as nursery:
                for _ in range(LANES):
                    nursery.start_soon(bring)
        self.loaded = max(self.loaded, count)
        took_s = time.monotonic() - began
        last = merchant_key(identity_of(count - 1))
        for node in self._client.each_node().values():  # resolutions show what is sealed
            await node.state(last, height_min=self._height)
        return took_s

    async def _bring(self, lanes: Lanes, calls: list[Call]) -> None:
        async with lanes.lease() as lane:
            transaction = self._client.sign(
                self._account, calls, sequence=await lane.take(), lane=lane.name, mode=EACH, validity_ms=FINAL_MS_MAX
            )
            (answer,) = await self._client.submit_many([transaction], wait_ms=FINAL_MS_MAX)
        if answer.height is None:
            raise PeerError("bad_answer", f"merchants were not taken: {answer.code}")
        self._height = max(self._height, answer.height)
        if answer.failed_count:
            raise InvariantError(f"{answer.failed_count} calls for merchants failed at height {answer.height}")

    def _calls(self, number: int) -> Iterator[Call]:
        """Yield the calls that register a merchant and add its record."""
        identity, merchant = identity_of(number), PrivateKey.from_secret(self._random.randrange(1, 2**255))
        public = merchant.public.compressed
        yield make_call(
            CONTRACT,
            "register_merchant",
            {
                "identity": identity,
                "key": public,
                "signature": self._merchant(merchant, merchant_hash(identity, public)),
            },
        )
        content = Content(self._random.randbytes(SALT_BYTES), msgspec.json.encode(acquiring_of(number)))
        committed = commitment(content.salt, content.plaintext)
        ciphertext = self._epoch_key.seal_record(
            content, identity=identity, server=SERVER, version=1, random_bytes=self._random.randbytes
        )
        record = record_hash(identity, SERVER, 1, 1, 1, committed, ciphertext, False)
        yield make_call(
            CONTRACT,
            "add_record",
            {
                "identity": identity,
                "version": 1,
                "epoch": 1,
                "commitment": committed,
                "ciphertext": ciphertext,
                "is_shareable": False,
                "platform_signature": self._sign(record),
                "merchant_signature": self._merchant(merchant, content_hash(identity, SERVER, 1, committed, False)),
            },
        )

    def _sign(self, signed: bytes) -> bytes:
        return self._key.sign(Purpose.PAYEE_PLATFORM, self._client.chain_id, signed)

    def _merchant(self, key: PrivateKey, signed: bytes) -> bytes:
        return key.sign(Purpose.PAYEE_MERCHANT, self._client.chain_id, signed)
