"""What a gateway keeps, in an encrypted map of bytes, and the one way in which it changes.

    p ROOT                the package, as it travels
    s ROOT                how it stands: :class:`Head`
    u ROOT                a package of ours without an answer: when it was asked for last, ms (8 bytes)
    a ROOT ROUND OUTCOME  an answer, as it travels; ROUND is one byte
    f ROOT ROUND          the outcome root of the answer that counts, where several came: the first
    r ROOT ROUND OUTCOME  its anchoring: :class:`Anchored`
    d BANK/ISSUER/PREVIOUS  the id of the answer that follows the one of this id
    j DUE ROOT ROUND OUTCOME  an anchoring to be done: :class:`AnchorJob`; DUE is its ``due_ms``, 8 bytes
    b BATCH               the result of ``orders_submit``, JSON
    n POSITION            news for the sales end: :class:`News`; POSITION is 8 bytes, big-endian, from 1
    i POSITION            a package for the issuer end: its root
    o POSITION            a message for the channel that the node has not taken yet: :class:`Posting`
    x POSITION            an alarm: :class:`Alarm`

Everything that follows from one event is one :class:`Changes` and one synced write. Positions are given under the
same lock as the write: who has seen a position has seen all below it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec
import trio

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import InvariantError, PeerError, StorageError
from services.agency.interfaces import OrdersSubmitted
from services.agency.packages import Answer, Message, Package, answer_id, message_codec

ALARMS_SHOWN_MAX = 20
ALARMS_KEPT_MAX = 1_000
_POSITION_BYTES = 8
_PACKAGES_CACHED_MAX = 16

Write = tuple[bytes, bytes | None]
R = TypeVar("R", bound=Record)


class Store(Protocol):
    """What is asked of a vault."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""

    def scan(
        self, prefix: bytes, start: bytes = b"", *, reverse: bool = False, limit: int | None = None
    ) -> Iterable[tuple[bytes, bytes]]:
        """Return up to ``limit`` pairs whose keys begin with ``prefix``, from ``prefix + start`` on, in key order."""

    async def write(self, batch: Iterable[Write]) -> None:
        """Write all or nothing, and return once it is on the disk; None removes a key."""


class Head(Record, frozen=True):
    """How a package stands: ``state`` is ``sent``, ``received``, ``answered`` or ``refused`` with a code."""

    bank: str
    issuer: str
    epoch: int
    is_bank: bool
    created_ms: int
    count: int
    signature: bytes
    state: str
    code: str
    message: str


class Anchored(Record, frozen=True):
    """An answer's place on the chain; ``status`` is ``waiting``, ``CLAIMED``, ``MUTUAL`` or a refusal's code."""

    previous: bytes
    signature: bytes
    transaction_id: bytes
    height: int
    status: str


class AnchorJob(Record, frozen=True):
    """What is to be anchored, from ``due_ms`` on; a signature, or the outcome root, may be empty."""

    bank: str
    issuer: str
    epoch: int
    root: bytes
    count: int
    orders_signature: bytes
    round_number: int
    outcome_root: bytes
    previous: bytes
    answer_signature: bytes
    due_ms: int


class News(Record, frozen=True):
    """News of a package for the sales end, see :class:`services.agency.interfaces.PackageOutcome`."""

    kind: str
    root: bytes
    round_number: int
    code: str
    message: str
    transaction_id: bytes
    height: int


class Posting(Record, frozen=True):
    """A message for a channel: its bytes, or the key under which they are kept. ``id`` makes it go out once."""

    bank: str
    issuer: str
    id: str
    payload: bytes
    kept_at: bytes


class Alarm(Record, frozen=True):
    """Something that ought not to happen, and what about; never payload."""

    time_ms: int
    code: str
    channel: str
    about: str


_head_codec: RecordCodec[Head] = RecordCodec(Head, bytes_max=4096)
_anchored_codec: RecordCodec[Anchored] = RecordCodec(Anchored, bytes_max=4096)
_job_codec: RecordCodec[AnchorJob] = RecordCodec(AnchorJob, bytes_max=4096)
_news_codec: RecordCodec[News] = RecordCodec(News, bytes_max=4096)
_posting_codec: RecordCodec[Posting] = RecordCodec(Posting, bytes_max=64 * 1024)
_alarm_codec: RecordCodec[Alarm] = RecordCodec(Alarm, bytes_max=4096)


@dataclass(slots=True)
class Changes:
    """All that follows from one event; nothing of it is there before :meth:`GatewayStore.commit`."""

    writes: list[Write] = field(default_factory=list)
    news: list[News] = field(default_factory=list)
    arrivals: list[bytes] = field(default_factory=list)
    postings: list[Posting] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)

    def keep_package(self, package: Package, *, is_bank: bool) -> None:
        """Keep a package that was checked; as the bank's it waits for its answer from now on."""
        self.writes.append((b"p" + package.root, message_codec.encode(package)))
        state = "sent" if is_bank else "received"
        self.set_head(
            package.root,
            Head(
                package.bank,
                package.issuer,
                package.epoch,
                is_bank,
                package.created_ms,
                len(package.applications),
                package.signature,
                state,
                "",
                "",
            ),
        )
        if is_bank:
            self.set_asked(package.root, package.created_ms)

    def set_head(self, root: bytes, head: Head) -> None:
        """Say how a package stands; an answered or refused one is waited for no more."""
        self.writes.append((b"s" + root, _head_codec.encode(head)))
        if head.state in {"answered", "refused"}:
            self.writes.append((b"u" + root, None))

    def set_asked(self, root: bytes, time_ms: int) -> None:
        """Remember when a package's answer was asked for last."""
        self.writes.append((b"u" + root, time_ms.to_bytes(8, "big")))

    def keep_answer(self, answer: Answer) -> None:
        """Keep an answer that was checked, unanchored."""
        key = round_key(answer.root, answer.round_number, answer.outcome_root)
        self.writes.append((b"a" + key, message_codec.encode(answer)))
        self.set_anchored(key, Anchored(answer.previous, answer.signature, b"", 0, "waiting"))

    def keep_first(self, root: bytes, round_number: int, outcome_root: bytes) -> None:
        """Remember which answer of a round counts."""
        self.writes.append((b"f" + root + bytes([round_number]), outcome_root))

    def keep_next(self, answer: Answer) -> None:
        """Remember which answer follows the one that it names as ``previous``."""
        self.writes.append((_next_key(answer), answer_id(answer)))

    def set_anchored(self, key: bytes, anchored: Anchored) -> None:
        """Say how the anchoring of an answer stands; ``key`` as of :func:`round_key`."""
        self.writes.append((b"r" + key, _anchored_codec.encode(anchored)))

    def set_job(self, job: AnchorJob) -> None:
        """Have something anchored."""
        self.writes.append((_job_key(job), _job_codec.encode(job)))

    def drop_job(self, job: AnchorJob) -> None:
        """Have it no more anchored."""
        self.writes.append((_job_key(job), None))

    def keep_batch(self, batch: str, result: bytes) -> None:
        """Keep what a batch of the sales end led to."""
        self.writes.append((b"b" + batch.encode(), result))


def _job_key(job: AnchorJob) -> bytes:
    return b"j" + job.due_ms.to_bytes(8, "big") + round_key(job.root, job.round_number, job.outcome_root)


def _next_key(answer: Answer) -> bytes:
    return b"d" + f"{answer.bank}/{answer.issuer}/".encode() + answer.previous


def round_key(root: bytes, round_number: int, outcome_root: bytes) -> bytes:
    """Return what an answer is kept under."""
    return root + bytes([round_number]) + outcome_root


class _Counter:
    """Positions under a prefix and who waits for one; those to come are above ``first``, whatever stands already."""

    def __init__(self, store: Store, prefix: bytes, first: int = 0) -> None:
        newest = next(iter(store.scan(prefix, reverse=True, limit=1)), None)
        self.prefix = prefix
        self._newest = 0 if newest is None else int.from_bytes(newest[0][len(prefix) :], "big")
        self.last = max(first, self._newest)
        self._changed = trio.Event()

    def key(self, ahead: int) -> bytes:
        """Return the key of the position that comes ``ahead`` after the last; none stands at 0."""
        return self.prefix + position_bytes(max(0, self.last + ahead))

    def advance(self, count: int) -> None:
        if count:
            self.last += count
            self._newest = self.last
            self._changed.set()
            self._changed = trio.Event()

    async def wait(self, after: int, timeout_ms: int) -> None:
        """Return when there is a position above ``after``, or time is up."""
        with trio.move_on_after(timeout_ms / 1000):
            while self._newest <= after:
                await self._changed.wait()


class PackageReader:
    """Packages and answers, as they are kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packages: dict[bytes, Package] = {}

    def head(self, root: bytes) -> Head | None:
        """Return how a package stands, None for one we never had."""
        return _read(_head_codec, self._store.get(b"s" + root))

    def package(self, root: bytes) -> Package | None:
        """Return a package, None where its payload is not here."""
        if (known := self._packages.get(root)) is not None:
            return known
        message = self._message(b"p" + root)
        if message is None:
            return None
        if not isinstance(message, Package):
            raise InvariantError("something else is kept as a package")
        if len(self._packages) >= _PACKAGES_CACHED_MAX:
            self._packages.pop(next(iter(self._packages)))
        self._packages[root] = message
        return message

    def answers(self, root: bytes, round_number: int | None = None) -> list[Answer]:
        """Return the answers to a package, of one round or of all."""
        prefix = b"a" + root + (b"" if round_number is None else bytes([round_number]))
        found = [message_codec.decode_untrusted(value) for _, value in self._store.scan(prefix)]
        return [answer for answer in found if isinstance(answer, Answer)]

    def rounds(self, root: bytes) -> list[tuple[int, bytes, Anchored]]:
        """Return round, outcome root (empty of a bank's claim) and anchoring of all that a package has."""
        found = []
        for key, value in self._store.scan(b"r" + root):
            place = key[1 + len(root) :]
            found.append((place[0], place[1:], _known(_anchored_codec, value)))
        return found

    def first_outcome(self, root: bytes, round_number: int) -> bytes | None:
        """Return the outcome root of a round's answer that counts, None before there is one."""
        return self._store.get(b"f" + root + bytes([round_number]))

    def next_answer(self, answer: Answer) -> bytes | None:
        """Return the id of the answer that is known to follow the one before this; None where none is."""
        return self._store.get(_next_key(answer))

    def rounds_of(self, root: bytes, round_number: int) -> list[bytes]:
        """Return the outcome roots of a round's answers."""
        prefix = b"a" + root + bytes([round_number])
        return [key[len(prefix) :] for key, _ in self._store.scan(prefix)]

    def anchored(self, key: bytes) -> Anchored | None:
        """Return how an anchoring stands; ``key`` as of :func:`round_key`."""
        return _read(_anchored_codec, self._store.get(b"r" + key))

    def packages(self, *, after: bytes = b"") -> Iterator[tuple[bytes, Head]]:
        """Yield the roots of all packages behind a root, in their order, with how they stand."""
        for key, value in self._store.scan(b"s", after and after + b"\0"):
            yield key[1:], _known(_head_codec, value)

    def unanswered(self) -> list[tuple[bytes, int]]:
        """Return the roots of our packages that wait for an answer, and when each was asked for last, ms."""
        return [(key[1:], int.from_bytes(value, "big")) for key, value in self._store.scan(b"u")]

    def _message(self, key: bytes) -> Message | None:
        value = self._store.get(key)
        return None if value is None else message_codec.decode_untrusted(value)


class GatewayStore(PackageReader):
    """Reads typed, writes whole :class:`Changes`."""

    def __init__(self, store: Store, *, first: int = 0) -> None:
        super().__init__(store)
        self.lock = trio.Lock()
        """Held by whoever reads, decides by it, and commits; so no two decide about one package at a time."""
        self._writing = trio.Lock()
        self.news = _Counter(store, b"n", first)
        self.arrivals = _Counter(store, b"i", first)
        self.postings = _Counter(store, b"o")
        self.alarms = _Counter(store, b"x")
        self._has_job = trio.Event()
        self._has_anchored = trio.Event()

    async def commit(self, changes: Changes) -> None:
        """Write all of it, and tell those who wait.

        Raises:
            StorageError: the disk refuses; the program has to stop.
        """
        async with self._writing:
            writes = [*changes.writes]
            writes += [(self.news.key(n), _news_codec.encode(item)) for n, item in enumerate(changes.news, 1)]
            writes += [(self.arrivals.key(n), root) for n, root in enumerate(changes.arrivals, 1)]
            writes += [
                (self.postings.key(n), _posting_codec.encode(item)) for n, item in enumerate(changes.postings, 1)
            ]
            writes += [(self.alarms.key(n), _alarm_codec.encode(item)) for n, item in enumerate(changes.alarms, 1)]
            writes += [(self.alarms.key(n - ALARMS_KEPT_MAX), None) for n, _ in enumerate(changes.alarms, 1)]
            if not writes:
                return
            with trio.CancelScope(shield=True):  # what the disk has, the counters must know
                await self._store.write(writes)
            self.news.advance(len(changes.news))
            self.arrivals.advance(len(changes.arrivals))
            self.postings.advance(len(changes.postings))
            self.alarms.advance(len(changes.alarms))
            jobs = [value for key, value in changes.writes if key.startswith(b"j")]
            if any(value is not None for value in jobs):
                self._has_job.set()
                self._has_job = trio.Event()
            if None in jobs:
                self._has_anchored.set()
                self._has_anchored = trio.Event()

    # -- queues ----------------------------------------------------------------------------------------

    def batch(self, batch: str) -> OrdersSubmitted | None:
        """Return what a batch led to, None for a new one."""
        value = self._store.get(b"b" + batch.encode())
        return None if value is None else msgspec.json.decode(value, type=OrdersSubmitted)

    def jobs_due(self, now_ms: int, limit: int) -> list[AnchorJob]:
        """Return what is to be anchored now, what is due longest first."""
        found = [_known(_job_codec, value) for _, value in self._store.scan(b"j", limit=limit)]
        return [job for job in found if job.due_ms <= now_ms]

    def job_count(self) -> int:
        """Return how many anchorings are not final."""
        return sum(1 for _ in self._store.scan(b"j"))

    def has_job(self, job: AnchorJob) -> bool:
        """Tell whether an anchoring is still to be done."""
        return self._store.get(_job_key(job)) is not None

    async def wait_job(self, timeout_ms: int) -> None:
        """Return when there is something new to be anchored, or time is up."""
        with trio.move_on_after(timeout_ms / 1000):
            await self._has_job.wait()

    async def wait_anchored(self) -> None:
        """Return when an anchoring is done with."""
        await self._has_anchored.wait()

    def news_after(self, after: int, limit: int) -> list[tuple[int, News]]:
        """Return the next news with their positions, oldest first."""
        return [(place, _known(_news_codec, value)) for place, value in self._after(b"n", after, limit)]

    def arrivals_after(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return the roots of the next packages for the issuer end with their positions, oldest first."""
        return self._after(b"i", after, limit)

    def postings_after(self, after: int, limit: int) -> list[tuple[int, Posting]]:
        """Return what the node has not taken yet."""
        return [(place, _known(_posting_codec, value)) for place, value in self._after(b"o", after, limit)]

    def payload(self, posting: Posting) -> bytes:
        """Return the bytes that a posting sends."""
        if not posting.kept_at:
            return posting.payload
        value = self._store.get(posting.kept_at)
        if value is None:
            raise InvariantError(f"the payload of {posting.id} is not kept")
        return value

    async def posted(self, positions: Iterable[int]) -> None:
        """Forget postings that the node has taken, or never will."""
        await self._store.write([(b"o" + position_bytes(place), None) for place in positions])

    def newest_alarms(self) -> list[Alarm]:
        """Return the newest alarms, newest first."""
        found = self._store.scan(b"x", reverse=True, limit=ALARMS_SHOWN_MAX)
        return [_known(_alarm_codec, value) for _, value in found]

    def _after(self, prefix: bytes, after: int, limit: int) -> list[tuple[int, bytes]]:
        found = self._store.scan(prefix, position_bytes(after + 1), limit=limit)
        return [(int.from_bytes(key[1:], "big"), value) for key, value in found]


def position_bytes(position: int) -> bytes:
    """Return a position as it stands in keys."""
    return position.to_bytes(_POSITION_BYTES, "big")


def _read(codec: RecordCodec[R], value: bytes | None) -> R | None:
    return None if value is None else _known(codec, value)


def _known(codec: RecordCodec[R], value: bytes) -> R:
    try:
        return codec.decode_untrusted(value)
    except PeerError as error:
        raise StorageError("bad_record", f"a record of the gateway does not decode: {error.message}") from None
