"""What a service party keeps: each stream in one row, and the offers that may become streams.

Rows are written in groups: whatever many connections brought while the last group was written is the next one, each
stream once with what it has come to. :meth:`StreamStore.keep` gives the group's number, and nothing that depends on the
row is told or done before :meth:`StreamStore.until` has returned for it.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import msgspec
import sqlalchemy
import trio
from sqlalchemy import BigInteger, Column, Connection, Index, LargeBinary, MetaData, Table, Text, bindparam, select

from consensus.ledger.errors import HansaError, StorageError
from consensus.ledger.streams import Terms, stream_id, terms_codec, terms_hash
from services.client.errors import Refused
from services.local.database import Database, open_database
from services.local.rows import insert_or_update
from services.stream.servicemachine import Kept

MIGRATIONS = "services.stream.migrations"
OFFERS_MAX = 100_000
"""Offers that are remembered; the oldest ones make room once their time has passed, and not before."""
OFFERS_FORGOTTEN_MAX = 1_000
"""How many of those are forgotten at a time."""

metadata = MetaData()

streams = Table(
    "streams",
    metadata,
    Column("stream", LargeBinary, primary_key=True),
    Column("status", Text, nullable=False),
    Column("entry", LargeBinary, nullable=False),
)
offers = Table(
    "stream_offers",
    metadata,
    Column("hash", LargeBinary, primary_key=True),
    Column("stream", LargeBinary, nullable=False),
    Column("terms", LargeBinary, nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)
Index("stream_offers_by_stream", offers.c.stream)


class Entry(msgspec.Struct, frozen=True):
    """A stream's row: what its machine must not forget, the key that was pinned at its opening, and its limit."""

    kept: Kept
    payer_key: bytes
    limit: int


_Row: TypeAlias = tuple[bytes, str, bytes]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


class Keeping(Protocol):
    """What has a row; it is asked for it when its group is written."""

    def entry(self) -> Entry:
        """Return the row as it stands now."""


class StreamStore:
    """Made by :func:`open_store`. All calls raise ``StorageError``, and ``Unreachable`` for a file that is locked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[bytes, Keeping] = {}
        self._has_waiting = trio.Event()
        self._written = trio.Event()
        self._group = 1
        self.durable = 0
        """The number of the newest group that is durable."""
        self._failure: HansaError | None = None

    def keep(self, stream: bytes, row: Keeping) -> int:
        """Have a stream written with the next group, and return its number."""
        self._waiting[stream] = row
        self._has_waiting.set()
        return self._group

    async def until(self, group: int) -> None:
        """Wait until a group is durable; raises what the store has failed with, after which none ever will be."""
        while self.durable < group:
            if self._failure is not None:
                raise self._failure
            await self._written.wait()

    async def write_forever(self) -> None:
        """Write group after group, until cancelled; ends with the first error, after which nothing is durable."""
        try:
            while True:
                await self._has_waiting.wait()
                await self._write()
        except HansaError as error:
            self._failure = error
            self._written.set()
            raise

    async def flush(self) -> None:
        """Write what still waits; for the end of a program."""
        if self._waiting and self._failure is None:
            await self._write()

    async def _write(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._has_waiting = trio.Event()
        group, self._group = self._group, self._group + 1
        rows = [_row(stream, row.entry()) for stream, row in waiting.items()]
        await self._database.write(partial(_save, rows))
        self.durable = group
        self._written.set()
        self._written = trio.Event()

    # -- reading ---------------------------------------------------------------------------------------

    async def unfinished(self, statuses: Sequence[str]) -> list[Entry]:
        """Return the streams of these statuses."""
        query = select(streams.c.entry).where(streams.c.status.in_(statuses))
        return await self._database.read(partial(_entries, query))

    async def find(self, stream: bytes) -> Entry | None:
        """Return one stream as it was last written."""
        query = select(streams.c.entry).where(streams.c.stream == bindparam("name", stream, LargeBinary))
        found = await self._database.read(partial(_entries, query))
        return found[0] if found else None

    async def page(self, status: str, after: bytes, limit: int) -> list[Entry]:
        """Return streams of a status, or all where it is "", in the order of their ids above ``after``."""
        query = select(streams.c.entry).where(streams.c.stream > after).order_by(streams.c.stream).limit(limit)
        if status:
            query = query.where(streams.c.status == status)
        return await self._database.read(partial(_entries, query))

    async def counts(self) -> dict[str, int]:
        """Return how many streams there are of each status."""
        query = select(streams.c.status, sqlalchemy.func.count()).group_by(streams.c.status)

        def read(connection: Connection) -> dict[str, int]:
            return {str(status): int(count) for status, count in connection.execute(query)}

        return await self._database.read(read)

    # -- offers ----------------------------------------------------------------------------------------

    async def keep_offer(self, terms: Terms, now_ms: int) -> None:
        """Keep an offer before it is given.

        Raises:
            Refused: ``busy``: too many are open.
        """
        await self._database.write(partial(_keep_offer, terms, now_ms))

    async def offered(self, stream: bytes) -> Terms | None:
        """Return terms that were offered for a stream, any of them; whoever asks can have as many as it likes."""
        return await self._offer(select(offers.c.terms).where(offers.c.stream == stream).limit(1))

    async def offer(self, hash_of_terms: bytes) -> Terms | None:
        """Return the terms with this hash, if they were offered."""
        return await self._offer(select(offers.c.terms).where(offers.c.hash == hash_of_terms))

    async def _offer(self, query: sqlalchemy.Select[Any]) -> Terms | None:
        def read(connection: Connection) -> Terms | None:
            terms = connection.scalar(query)
            return None if terms is None else terms_codec.decode_untrusted(terms)

        return await self._database.read(read)


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[StreamStore]:
    """Open the store for the time of the block; errors as :func:`services.local.database.open_database`."""
    async with open_database(url, migrations=MIGRATIONS) as database:
        yield StreamStore(database)


def _keep_offer(terms: Terms, now_ms: int, connection: Connection) -> None:
    if _offer_count(connection) >= OFFERS_MAX:
        # What was opened by an offer is a stream once its payer has come: those that wait longest came never.
        old = select(offers.c.hash).where(offers.c.until_ms < now_ms).order_by(offers.c.until_ms)
        connection.execute(offers.delete().where(offers.c.hash.in_(old.limit(OFFERS_FORGOTTEN_MAX))))
        if _offer_count(connection) >= OFFERS_MAX:
            raise Refused("busy", f"{OFFERS_MAX} offers are open: come again later")
    row = {
        "hash": terms_hash(terms),
        "stream": stream_id(terms.payer, terms.service, terms.number),
        "terms": terms_codec.encode(terms),
        "until_ms": terms.offer_until_ms,
    }
    connection.execute(insert_or_update(connection.dialect.name, offers), [row])


def _offer_count(connection: Connection) -> int:
    return connection.scalar(select(sqlalchemy.func.count()).select_from(offers)) or 0


def _row(stream: bytes, entry: Entry) -> _Row:
    return stream, entry.kept.status, _encoder.encode(entry)


def _save(rows: Sequence[_Row], connection: Connection) -> None:
    values = [{"stream": stream, "status": status, "entry": entry} for stream, status, entry in rows]
    connection.execute(insert_or_update(connection.dialect.name, streams), values)


def _entries(query: sqlalchemy.Select[Any], connection: Connection) -> list[Entry]:
    try:
        return [_decoder.decode(entry) for entry in connection.scalars(query)]
    except msgspec.MsgspecError as error:
        raise StorageError("corrupted", f"a stream's row cannot be read: {error}") from None
