"""What a service party's owner sees and does: how it stands, its streams, their end, files for a watcher; offers."""

from collections.abc import Callable
from contextlib import suppress

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import Purpose
from consensus.ledger.streams import stream_id, terms_hash
from services.client.answers import hex_of
from services.client.errors import Refused, Unreachable
from services.local.service import LocalService
from services.stream.desk import Desk
from services.stream.iteration_file import Carried, encode_carried, terms_json
from services.stream.metrics import ServiceMetrics
from services.stream.offering import tariff, terms_for
from services.stream.service_chain import ChainPort
from services.stream.service_config import StreamServiceFile
from services.stream.service_interface import (
    Export,
    Exported,
    Offer,
    OfferWanted,
    ServiceStatus,
    StatusQuery,
    StreamEnd,
    StreamQuery,
    StreamShown,
    StreamsPage,
    StreamsQuery,
    bytes_of_hex,
)
from services.stream.store import Entry, StreamStore


class Owner:
    """The owner's methods, and what payers may ask of the same."""

    def __init__(
        self,
        file: StreamServiceFile,
        store: StreamStore,
        chain: ChainPort,
        desk: Desk,
        metrics: ServiceMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._file = file
        self._store = store
        self._chain = chain
        self._desk = desk
        self._now_ms = now_ms
        self.metrics = metrics
        self.account = chain.account

    def add_methods(self, service: LocalService) -> None:
        """Add the owner's methods."""
        service.add("status", StatusQuery, self.status)
        service.add("streams", StreamsQuery, self.streams)
        service.add("stream", StreamQuery, self.stream)
        service.add("end", StreamEnd, self.end)
        service.add("export", Export, self.export)

    async def status(self, _: StatusQuery) -> ServiceStatus:
        """Return how the service party stands."""
        return ServiceStatus(
            account=self.account,
            address=hex_of(self._chain.address),
            chain_id=hex_of(self._chain.chain_id),
            tariff=tariff(self._file),
            counts=await self._store.counts(),
            connections=self.metrics.connection_count,
            iterations=self._desk.iterations,
            groups=self._store.durable,
            trouble=self._chain.trouble,
        )

    async def streams(self, query: StreamsQuery) -> StreamsPage:
        """Return a page of streams, as they were last written."""
        entries = await self._store.page(query.status, bytes_of_hex(query.after), query.limit + 1)
        items = [await self._shown(entry.kept.stream) for entry in entries[: query.limit]]
        return StreamsPage(items, items[-1].stream if len(entries) > query.limit else "")

    async def stream(self, query: StreamQuery) -> StreamShown:
        """Return a stream; ``unknown_stream``."""
        return await self._shown(bytes_of_hex(query.stream))

    async def end(self, params: StreamEnd) -> StreamShown:
        """Let a stream end; ``unknown_stream``."""
        stream = bytes_of_hex(params.stream)
        await self._desk.end(stream, "owner")
        return await self._shown(stream)

    async def export(self, params: Export) -> Exported:
        """Return the last iteration as a file; ``unknown_stream``, ``nothing_due``."""
        entry, _ = await self._found(bytes_of_hex(params.stream))
        kept = entry.kept
        if not kept.raw:
            raise Refused("nothing_due", "the stream has no iteration yet")
        opening = None
        with suppress(Unreachable, Refused, PeerError):  # without the proof whoever takes the file asks the chain
            opening = await self._chain.opening_proof(kept.stream)
        content = encode_carried(Carried(kept.terms, entry.payer_key, kept.raw, opening), self._chain.chain_id)
        return Exported(params.stream, kept.due, content.decode())

    async def offer(self, wanted: OfferWanted) -> Offer:
        """Sign terms for a payer's wishes, once they are kept; ``bad_offer``, ``busy``, ``stream_exists``."""
        now_ms = self._now_ms()
        terms = terms_for(self._file, self._chain.address, wanted, now_ms)
        stream = stream_id(terms.payer, terms.service, terms.number)
        if await self._desk.find(stream) is not None:
            raise Refused("stream_exists", f"number {terms.number} has served this payer: take another one")
        await self._store.keep_offer(terms, now_ms)
        key, digest = self._chain.key, terms_hash(terms)
        return Offer(
            chain_id=hex_of(self._chain.chain_id),
            stream=hex_of(stream),
            terms=terms_json(terms),
            service_key=hex_of(key.public.compressed),
            signature=hex_of(key.sign(Purpose.STREAM_TERMS, self._chain.chain_id, digest)),
        )

    def figures(self) -> bytes:
        """Return the figures for Prometheus."""
        return self.metrics.render(self._desk.iterations, self._store.durable)

    async def _found(self, stream: bytes) -> tuple[Entry, int]:
        found = await self._desk.find(stream)
        if found is None:
            raise Refused("unknown_stream", f"there is no stream 0x{stream.hex()} here")
        return found

    async def _shown(self, stream: bytes) -> StreamShown:
        entry, allowed_units = await self._found(stream)
        kept = entry.kept
        return StreamShown(
            stream=hex_of(kept.stream),
            status=str(kept.status),
            reason=kept.reason,
            due=kept.due,
            limit=entry.limit,
            count=kept.count,
            units=kept.units,
            allowed_units=allowed_units,
            upload_id=hex_of(kept.upload_id) if kept.upload_id else "",
            valid_until_ms=kept.valid_until_ms,
            opened_ms=kept.opened_ms,
            heard_ms=kept.heard_ms,
            terms=terms_json(kept.terms),
        )
