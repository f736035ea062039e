"""The chain as a platform sees it and acts on it: every value proven under a certified head that is not too old.

A value may be one that has changed within the last second, for states are sealed that often; who must not miss a
change asks for the newest, and after a change of its own :meth:`PlatformChain.see` makes it seen from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
import structlog

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.payees import (
    CONTRACT,
    HEAD_AGE_MS_MAX,
    Identity,
    Key,
    allowed_key,
    environment_key,
    merchant_key,
    platform_key,
    record_key,
)
from consensus.ledger.transaction import EACH, Call, Transaction, make_call
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.lanes import one_shot_lane
from services.client.outcome import Outcome, StateValue

LANES = 4
_LANE = b"payee"
RECORDS_PAGE_MAX = 100
"""How many records a node tells in one answer."""
ACTIVE, REMOVED, ALLOWED = "ACTIVE", "REMOVED", "ALLOWED"

T = TypeVar("T")

log = structlog.get_logger("platform")


class _Kept(msgspec.Struct, frozen=True, rename="camel"):
    """Base of what the contract keeps; fields that are not needed here are skipped."""


class KeptMerchant(_Kept, frozen=True):
    """A merchant, as far as platforms need it."""

    key: Key


class KeptPlatform(_Kept, frozen=True):
    """A platform: its key, and its epoch, 0 before the first."""

    key: Key
    epoch: int


class KeptRecord(_Kept, frozen=True):
    """A platform's record of an identity; a removed one has no ciphertext."""

    version: int
    content_version: int
    epoch: int
    commitment: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    ciphertext: bytes
    is_shareable: bool
    status: Literal["ACTIVE", "REMOVED"]

    @property
    def is_active(self) -> bool:
        """Whether it was not removed."""
        return self.status == ACTIVE


class ListedRecord(KeptRecord, frozen=True):
    """A record as a query tells it, with its place."""

    identity: Identity
    server: str


class KeptEnvironment(_Kept, frozen=True):
    """A trusted environment."""

    exchange_key: Key
    measurement: bytes
    status: Literal["ACTIVE", "WITHDRAWN"]


class _Allowed(_Kept, frozen=True):
    status: str


class _Wrapped(_Kept, frozen=True):
    environment: str


@dataclass(frozen=True, slots=True)
class Proven(Generic[T]):
    """A value, None for proven absence, and the time of the certified head that it was proven under, ms UTC."""

    value: T | None
    time_ms: int
    height: int


class PlatformChain:
    """Reads and calls the contract ``payees`` for one platform.

    All raise ``Unreachable`` (``stale_states`` where no node knows of a recent block), ``Refused``, and ``PeerError``
    for what a node cannot prove.
    """

    def __init__(self, client: Client, signer: Signer, server: str, now_ms: Callable[[], int]) -> None:
        self.chain_id = client.chain_id
        self.server = server
        self._client = client
        self._signer = signer
        self._now_ms = now_ms
        self._seen = 0
        self.time_ms = 0
        """The newest certified time that was seen, ms UTC."""

    def see(self, height: int) -> None:
        """Read nothing older than this block from now on."""
        self._seen = max(self._seen, height)

    async def until_seen(self) -> None:
        """Wait until everyone who asks can be proven what was changed, a second or so; done it is in any case."""
        try:
            await self._state(platform_key(self.server), False)
        except (Unreachable, Refused, PeerError) as error:
            log.warning("a change is not seen yet", code=error.code, why=error.message)

    async def merchant(self, identity: bytes, *, is_newest: bool = False) -> Proven[KeptMerchant]:
        """Return a merchant."""
        return await self._value(merchant_key(identity), KeptMerchant, is_newest)

    async def record(self, identity: bytes, *, is_newest: bool = False) -> Proven[KeptRecord]:
        """Return the platform's own record of an identity."""
        return await self._value(record_key(self.server, identity), KeptRecord, is_newest)

    async def platform(self) -> Proven[KeptPlatform]:
        """Return the platform itself, as of the newest block."""
        return await self._value(platform_key(self.server), KeptPlatform, True)

    async def exchange_key(self, environment: str) -> bytes:
        """Return the key to encrypt to of an environment that is in service and runs what is allowed.

        Raises:
            Refused: ``unknown_environment``, ``environment_withdrawn``, ``unknown_measurement``.
        """
        found = (await self._value(environment_key(environment), KeptEnvironment, True)).value
        if found is None:
            raise Refused("unknown_environment", f"no environment {environment} is registered")
        if found.status != ACTIVE:
            raise Refused("environment_withdrawn", f"environment {environment} is withdrawn")
        allowed = (await self._value(allowed_key(found.measurement), _Allowed, True)).value
        if allowed is None or allowed.status != ALLOWED:
            why = f"what {environment} runs is not on the allow-list"
            way = f"the permission authority puts it there (allow_measurement {found.measurement.hex()})"
            raise Refused("unknown_measurement", f"{why}: {way}")
        return found.exchange_key

    async def records_of(self, after: str, limit: int = RECORDS_PAGE_MAX) -> list[ListedRecord]:
        """Return the platform's records with identities (hex) above ``after``, tombstones too, as one node says.

        Fewer than ``limit`` may come where there are more; none come at the end. The node can hide records; those that
        it shows open with the platform's own keys or not at all.
        """
        start = f"{after}0" if after else ""
        arguments: dict[str, Value] = {"server": self.server, "start": start, "limit": min(limit, RECORDS_PAGE_MAX)}
        found = _converted(await self._client.query(CONTRACT, "records_of", arguments), list[ListedRecord])
        names = [record.identity.hex() for record in found]
        if names != sorted(set(names)) or any(name <= after for name in names):
            raise PeerError("bad_answer", "records_of answers records that were not asked for")
        return found

    async def wrapped(self, epoch: int) -> list[str]:
        """Return the environments that were given the key of an epoch, as one node says."""
        if not epoch:
            return []
        arguments: dict[str, Value] = {"server": self.server, "epoch": epoch}
        found = _converted(await self._client.query(CONTRACT, "wraps", arguments), list[_Wrapped])
        return [wrap.environment for wrap in found]

    async def call(self, method: str, arguments: dict[str, Value]) -> Outcome:
        """Call a method, and return once that is final and no reading misses it; ``Refused`` where it fails."""
        return (await self.call_each([make_call(CONTRACT, method, arguments)])).check()

    async def call_each(self, calls: Sequence[Call]) -> Outcome:
        """Make calls that stand each for itself, and return what came of them."""
        lanes = self._client.lanes(self._signer, count=LANES, prefix=_LANE)
        outcome = await self._client.call_many(self._signer, calls, mode=EACH, lanes=lanes)
        self.see(outcome.height)
        return outcome

    async def call_once(self, method: str, arguments: dict[str, Value], once: str) -> bool:
        """Call a method once for ever under a name, and tell whether that took effect, now or before.

        Raises:
            Refused: ``once_used``: another call took the name; or with the code of one that fails now.
        """
        made: list[Transaction] = []
        calls, lane = [make_call(CONTRACT, method, arguments)], one_shot_lane(once)
        outcome = await self._client.call_once(self._signer, calls, lane, on_signed=made.append)
        self.see(outcome.height)
        if made:
            outcome.check()
        return outcome.is_ok

    async def _value(self, key: str, kind: type[T], is_newest: bool) -> Proven[T]:
        found = await self._state(key, is_newest)
        value = None if found.value is None else _converted(found.value, kind)
        return Proven(value, found.verified.time_ms, found.height)

    async def _state(self, key: str, is_newest: bool) -> StateValue:
        """Return a value of the first node that knows of a recent block."""
        error: HansaError = Unreachable("no node knows of a recent block", "stale_states")
        for _ in range(self._client.node_count):
            try:
                found = await self._client.state(key, height_min=self._seen, is_newest=is_newest)
            except (Refused, PeerError) as refused:
                error = refused  # a node that is behind, or proves nothing
            else:
                if found.verified.time_ms >= self._now_ms() - HEAD_AGE_MS_MAX:
                    self.time_ms = max(self.time_ms, found.verified.time_ms)
                    self.see(found.height)  # no node may go back behind what another one has shown
                    return found
            self._client.leave_node()
        raise error


def _converted(value: Value, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise PeerError("bad_answer", f"the contract payees keeps something else: {error}") from None
