"""What everybody of the stream demo does: a payer opens and burns, the owner of the service party looks on.

Programs may be away at any time: whatever is asked is asked again until somebody answers.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import trio

from consensus.ledger.errors import HansaError, PeerError
from consensus.ledger.streams import CONTRACT, StreamRecord, Terms, make_iteration, stream_lane
from consensus.ledger.transaction import Transaction, make_call
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.demo.agency_till import patiently
from services.demo.chain import Chain, open_chain
from services.demo.stream_network import NODE, Doors, StreamConsortium
from services.local.link import LocalLink
from services.stream.iteration_file import Checked, check_carried_untrusted
from services.stream.link import open_requests
from services.stream.opening import Agreed, read_stream
from services.stream.payer import Payer
from services.stream.payer_store import open_payer_store
from services.stream.service_interface import Export, Exported, OfferWanted, StreamQuery, StreamShown
from services.stream.setup import UNIT
from services.stream.watcher_interface import Watched, WatchedQuery
from services.stream.wire import Challenge, Iterate
from services.stream.wire import Refused as Told

WAIT_S_MAX = 60.0
"""How long a stream may take to be as it should be."""
POLL_S = 0.05
VALIDITY_MS = 600_000


class Till:
    """Everybody's hands; made by :func:`open_till`."""

    def __init__(self, consortium: StreamConsortium, chain: Chain, doors: Doors, service: LocalLink) -> None:
        self.chain = chain
        self._consortium = consortium
        self._doors = doors
        self._service = service

    @property
    def client(self) -> Client:
        """The chain's client."""
        return self.chain.client

    def signer(self, name: str) -> Signer:
        """Return the signer of an identity."""
        return Signer.of(name, self._consortium.key(name))

    # -- the payer -------------------------------------------------------------------------------------

    async def offer(self, payer: str, **wished: object) -> Agreed:
        """Ask the service party for an offer and check it; terms are fields of :class:`OfferWanted`."""
        with self._payer(payer) as own:
            address = f"0x{self.signer(payer).address.hex()}"
            wanted = OfferWanted(payer=address, number=own.next_number(), **wished)  # type: ignore[arg-type]
            return await patiently(partial(own.agree, self._doors.service_url, wanted))

    async def open(self, payer: str, agreed: Agreed) -> bytes:
        """Open a stream on the chain, kept where the payer's process looks for it, and return its id."""
        with self._payer(payer) as own:
            return (await patiently(partial(own.open, agreed, url=self._doors.service_url))).stream

    async def ask_back(self, payer: str, stream: bytes) -> None:
        """Have the payer ask for its deposit, which begins the window."""
        with self._payer(payer) as own:
            await patiently(partial(own.withdraw, stream))

    @contextmanager
    def _payer(self, name: str) -> Iterator[Payer]:
        with open_payer_store(self._consortium.payers) as store:
            yield Payer(self.client, self.signer(name), store)

    async def trade(self, name: str) -> None:
        """Make a transaction that changes nothing: a chain without any makes blocks seldom, and its uptime stands."""
        signer = self.signer(name)
        (
            await self.client.call(signer, "tokens", "transfer", {"unit": UNIT, "to": signer.address, "amount": 1})
        ).check()

    async def burn(self, payer: str, stream: bytes) -> None:
        """Use the stream's number for another transaction of the payer."""
        signer = self.signer(payer)
        call = make_call("tokens", "transfer", {"unit": UNIT, "to": signer.address, "amount": 1})
        transaction = self.client.sign(signer, [call], sequence=0, lane=stream_lane(stream))
        await self.client.submit_and_wait(transaction)

    def iteration(self, payer: str, terms: Terms, stream: bytes, due: int, signer: str = "") -> Transaction:
        """Sign an iteration as the payer would, or as somebody else does."""
        key = self._consortium.key(signer or payer)
        until_ms = clock_ms() + VALIDITY_MS
        return make_iteration(key, self.client.chain_id, terms.payer, stream, due, until_ms)

    async def hand_over(self, stream: bytes, raw: bytes) -> str:
        """Give the service party an iteration and return the code that it refuses it with, "" where it does not."""
        async with open_requests(self._doors.service_url) as link:
            await link.send([Iterate(stream, raw)])
            while True:
                for told in await link.receive():
                    if isinstance(told, Told):
                        return told.code
                    if not isinstance(told, Challenge):
                        return ""

    async def upload(self, transaction: Transaction) -> str:
        """Upload a transaction and return the code that nodes or contract refuse it with, "" where they do not."""
        return await code_of(partial(self._upload, transaction))

    async def _upload(self, transaction: Transaction) -> None:
        (await self.client.submit_and_wait(transaction)).check()

    async def claim(self, account: str, stream: bytes, raw: bytes) -> str:
        """Claim by an account and return the code of the refusal, "" where there is none."""
        outcome = await self.client.call(self.signer(account), CONTRACT, "claim", {"stream": stream, "raw": raw})
        return "" if outcome.is_ok else outcome.receipts[0].code

    # -- the service party's owner ---------------------------------------------------------------------

    async def shown(self, stream: bytes) -> StreamShown | None:
        """Return a stream as the service party has it, None before it has heard of it."""
        query = StreamQuery(f"0x{stream.hex()}")
        try:
            return await patiently(partial(self._service.call, "stream", query, StreamShown))
        except Refused as error:
            if error.code != "unknown_stream":
                raise
            return None

    async def until(self, stream: bytes, is_enough: Callable[[StreamShown], bool]) -> StreamShown:
        """Wait until the service party has a stream as it should be.

        Raises:
            Unreachable: ``program_timeout``, with what payer and service party say.
        """
        shown = None
        with trio.move_on_after(WAIT_S_MAX):
            while True:
                shown = await self.shown(stream)
                if shown is not None and is_enough(shown):
                    return shown
                await trio.sleep(POLL_S)
        words = self._consortium.payer_words(stream)
        raise Unreachable(f"{stream.hex()[:16]}… stands at {shown}; its payer: {words}", code="program_timeout")

    async def exported(self, stream: bytes) -> Checked:
        """Have the last iteration exported and check the file offline, with the genesis document alone."""
        exported = await patiently(partial(self._service.call, "export", Export(f"0x{stream.hex()}"), Exported))
        return check_carried_untrusted(exported.content.encode(), self._consortium.genesis)

    async def until_watched(self, stream: bytes) -> None:
        """Wait until the watcher has the last iteration, handed over by the service party; errors as :meth:`until`."""
        shown = await self.until(stream, lambda _: True)
        with trio.move_on_after(WAIT_S_MAX):
            while True:
                if await self._watched(stream) >= shown.due:
                    return
                await trio.sleep(POLL_S)
        raise Unreachable(f"the watcher has no iteration of {shown.due} {shown.terms['unit']}", code="program_timeout")

    async def _watched(self, stream: bytes) -> int:
        """Return what the watcher's iteration pays in all, 0 where it has none."""
        query = WatchedQuery(f"0x{stream.hex()}")
        async with LocalLink(self._doors.watcher) as watcher:
            try:
                return (await patiently(partial(watcher.call, "stream", query, Watched))).due
            except Refused as error:
                if error.code != "unknown_stream":
                    raise
                return 0

    # -- the chain -------------------------------------------------------------------------------------

    async def record(self, stream: bytes) -> StreamRecord:
        """Return a stream's record as of the newest block, proven."""
        found = await patiently(partial(read_stream, self.client, stream, is_newest=True))
        if found is None:
            raise PeerError("bad_answer", f"the chain has no stream {stream.hex()}")
        return found

    async def until_recorded(
        self,
        stream: bytes,
        is_enough: Callable[[StreamRecord], bool],
        *,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> StreamRecord:
        """Wait until the chain has a stream as it should be, doing something ``meanwhile``; errors as :meth:`until`."""
        record = None
        with trio.move_on_after(WAIT_S_MAX):
            while True:
                record = await self.record(stream)
                if is_enough(record):
                    return record
                if meanwhile is not None:
                    await meanwhile()
                await trio.sleep(POLL_S)
        raise Unreachable(f"{stream.hex()[:16]}… stands on the chain as {record}", code="program_timeout")


async def code_of(ask: Callable[[], Awaitable[object]]) -> str:
    """Return the code that something is refused with, "" where it is not."""
    try:
        await ask()
    except HansaError as error:
        return error.code
    return ""


def clock_ms() -> int:
    """Return the time, ms UTC."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_till(consortium: StreamConsortium, doors: Doors) -> AsyncIterator[Till]:
    """Give a till at the doors of a running system."""
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(open_chain(consortium.genesis, consortium.urls, [NODE]))
        service = await stack.enter_async_context(LocalLink(doors.service))
        yield Till(consortium, chain, doors, service)
