"""Messages in Redis: the second store, for who runs a Redis with backups and watch already.

What waits stands in a stream, in order; what became of it in hashes and sorted sets beside it. ``streams.lua`` is all
that touches them: one call of it is one change, whole or not at all, numbered by the store itself. Redis answers
after its append-only file is synced (``appendfsync always``, checked at the start), so what returns is durable.

A call whose connection is lost is asked again until :data:`CALL_SECONDS_MAX` are over. Changes carry a number, under
which Redis keeps the last answer: what was done already is answered and not done twice.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import trio
from coredis import Redis
from coredis.commands import Script
from coredis.exceptions import AuthorizationError, RedisError, UnknownCommandError
from coredis.exceptions import ConnectionError as ConnectionFailed
from coredis.retry import NoRetryPolicy

from consensus.ledger.errors import LocalError, StorageError
from services.client.errors import Refused
from services.client.tasks import single_errors
from services.messages.store import Change, Counts, Entry, NewMessage, Published, Record, State

CALL_SECONDS_MAX = 15.0
"""How long a call waits for a Redis that is away: it has to start and read its file."""
CONNECT_SECONDS_MAX = 2.0
ANSWER_SECONDS_MAX = 5.0
RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 0.02, 0.5
FORGET_COUNT = 1_000
"""How many messages one call of the script drops, so that others need not wait long."""

Answer = TypeVar("Answer")

# What coredis logs of a lost connection is in our own errors, and would be no JSON line.
logging.getLogger("coredis").addHandler(logging.NullHandler())

_KEYS = ("meta", "stream", "known", "tries", "ends", "ages", "done", "refused", "dead")
_SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}


@asynccontextmanager
async def redis_store(url: str, name: str) -> AsyncIterator["RedisStore"]:
    """Give a store of the queue ``name`` in the Redis at ``url``, for the time of the block.

    Args:
        url: ``redis://[user:password@]host:port/db``, ``rediss://…`` or ``unix:///path``.
        name: what its keys begin with; a Redis holds many queues.

    Raises:
        LocalError: ``bad_url``.
    """
    try:
        client = Redis.from_url(
            url,
            decode_components=True,
            connect_timeout=CONNECT_SECONDS_MAX,
            stream_timeout=ANSWER_SECONDS_MAX,
            retry_policy=NoRetryPolicy(),
        )
        where = urlsplit(url)
    except ValueError as error:
        raise LocalError("bad_url", f"{url.rpartition('@')[2]} is no address of a Redis") from error
    if where.scheme not in ("redis", "rediss", "unix"):
        raise LocalError("bad_url", "a Redis has an address like redis://127.0.0.1:6379/0")
    with single_errors():
        async with client:
            yield RedisStore(client, name)


class RedisStore:
    """Fills :class:`~services.messages.store.Store`; made by :func:`redis_store`."""

    def __init__(self, client: Redis[bytes], name: str) -> None:
        self._client = client
        self._script: Script[bytes] = client.register_script(files(__package__).joinpath("streams.lua").read_text())
        self._keys = [f"{{{name}}}:{key}" for key in _KEYS]
        self._epoch = 0
        self._call = 0
        # One change at a time: Redis keeps the answer of the last one only.
        self._changing = trio.Lock()

    async def open(self) -> int:
        """Check that Redis keeps what it answers, and take the queue over.

        Raises:
            LocalError: ``redis_not_durable``, with what to set.
        """
        await self._check_settings()
        self._epoch = cast(int, await self._ask("open", 0, ()))
        self._call = 0
        return self._epoch

    async def append(self, messages: Sequence[NewMessage], now_ms: int) -> list[Published]:
        """Keep messages behind all others; ``store_full`` when Redis is at its maxmemory."""
        rows = [(new.key, new.lane) for new in messages]
        blobs = [blob for new in messages for blob in (new.body, new.mark or sha256(new.body).digest())]
        try:
            reply = await self._change("append", rows, now_ms, blobs=blobs)
        except StorageError as error:
            if not str(error.__cause__).startswith("OOM "):
                raise
            # The script writes whole or not at all: see pass_maxmemory there.
            why = "its Redis is at its maxmemory: what waits has to drain first, or it has to get more"
            raise Refused("store_full", why) from error
        return [Published(sequence, bool(is_new), bool(is_conflict)) for sequence, is_new, is_conflict in reply]

    async def entries(self, after: int, limit: int) -> list[Entry]:
        """Return waiting messages above ``after``."""
        rows = await self._read("entries", after, limit)
        return [
            Entry(sequence, lane.decode(), attempts, due_ms, bool(is_parked))
            for sequence, lane, attempts, due_ms, is_parked in rows
        ]

    async def bodies(self, sequences: Sequence[int]) -> dict[int, tuple[str, bytes]]:
        """Return keys and bodies of waiting messages."""
        return {sequence: (key.decode(), body) for sequence, key, body in await self._read("bodies", list(sequences))}

    async def change(self, changes: Sequence[Change], now_ms: int) -> None:
        """Apply changes to waiting messages."""
        rows = [(one.sequence, one.state, one.attempts, one.detail, one.due_ms, int(one.is_parked)) for one in changes]
        await self._change("change", rows, now_ms)

    async def find(self, keys: Sequence[str]) -> list[Record | None]:
        """Return messages by key."""
        return [_record(row) if row else None for row in await self._read("find", list(keys))]

    async def ended(self, state: State, after: int, limit: int) -> list[Record]:
        """Return what ended so, above ``after``."""
        return [_record(row) for row in await self._read("ended", state, after, limit)]

    async def revive(self, sequences: Sequence[int]) -> list[Entry]:
        """Make dead letters wait again."""
        rows = await self._change("revive", sorted(set(sequences)))
        return [Entry(sequence, lane.decode()) for sequence, lane in rows]

    async def discard(self, sequences: Sequence[int]) -> int:
        """Drop dead letters."""
        (count,) = await self._change("discard", sorted(set(sequences)))
        return int(count)

    async def counts(self) -> Counts:
        """Return how much there is of everything."""
        return Counts(*await self._read("counts"))

    async def forget(self, ended_before_ms: int, keep_max: int) -> int:
        """Drop what was done or refused before then, and all but the newest of it."""
        total = 0
        while True:
            (count,) = await self._change("forget", ended_before_ms, keep_max, FORGET_COUNT)
            total += int(count)
            if count < FORGET_COUNT:
                return total

    async def close(self) -> None:
        """Let go of connections; they also end with the block of :func:`redis_store`."""
        self._epoch = 0
        self._client.connection_pool.disconnect()

    async def _check_settings(self) -> None:
        """Refuse a Redis that answers before it has kept, or that may throw away what it keeps."""
        try:
            found = await self._persist(lambda: self._client.config_get(list(_SETTINGS)))
        except StorageError as error:
            if not isinstance(error.__cause__, AuthorizationError | UnknownCommandError):
                raise
            raise LocalError(
                "redis_not_durable",
                f"this Redis does not tell how it keeps data ({error.message}): allow its user CONFIG GET",
            ) from error
        settings = {key.decode(): value.decode() for key, value in found.items()}
        wrong = [f"{key} {value}" for key, value in _SETTINGS.items() if settings.get(key) != value]
        if wrong:
            raise LocalError("redis_not_durable", f"set in the configuration of this Redis: {', '.join(wrong)}")

    async def _read(self, operation: str, *arguments: object) -> list[Any]:
        return cast(list[Any], await self._ask(operation, 0, arguments))

    async def _change(self, operation: str, *arguments: object, blobs: Sequence[bytes] = ()) -> list[Any]:
        async with self._changing:
            self._call += 1
            return cast(list[Any], await self._ask(operation, self._call, arguments, blobs))

    async def _ask(self, operation: str, call: int, arguments: Sequence[object], blobs: Sequence[bytes] = ()) -> object:
        if not self._epoch and operation != "open":
            raise LocalError("store_closed", "this queue in Redis is not open")
        packed: list[str | int | bytes] = [operation, self._epoch, call, msgspec.msgpack.encode(arguments), *blobs]
        return await self._persist(lambda: self._script(self._keys, packed))

    async def _persist(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask again while Redis is away, up to :data:`CALL_SECONDS_MAX`."""
        pause = RETRY_SECONDS_FIRST
        last: Exception = TimeoutError("no answer")
        with trio.move_on_after(CALL_SECONDS_MAX):
            while True:
                try:
                    return await request()
                except (ConnectionFailed, TimeoutError) as error:
                    last = error
                except RedisError as error:
                    if str(error).startswith("FENCED"):
                        raise StorageError("fenced", "another has opened this queue since, or emptied it") from error
                    raise StorageError("redis_failed", f"Redis refuses: {error}") from error
                if isinstance(last, TimeoutError):
                    # The connection may lead to a machine that is gone without a word.
                    self._client.connection_pool.disconnect()
                await trio.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)
        raise StorageError("redis_failed", f"Redis does not answer: {last}") from last


def _record(row: list[Any]) -> Record:
    sequence, key, lane, body, state, attempts, detail, published_ms, ended_ms = row
    return Record(
        sequence=sequence,
        key=key.decode(),
        lane=lane.decode(),
        body=body,
        state=State(state.decode()),
        attempts=attempts,
        detail=detail.decode(),
        published_ms=published_ms,
        ended_ms=ended_ms,
    )
