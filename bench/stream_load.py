"""Opens payment streams on a chain, one at a time or thousands, and says what that costs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from bench.goals import percentiles
from bench.report import Figures
from bench.stream_client import LoadStream
from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.streams import CONTRACT, Terms, stream_key, terms_hash
from consensus.ledger.transaction import EACH, Call, make_call
from services.client.client import Client
from services.client.keystore import Signer
from services.client.lanes import Lanes
from services.client.outcome import Outcome
from services.client.tasks import single_errors
from services.stream.opening import Agreed, ask_offer, open_stream
from services.stream.service_interface import OfferWanted

OPENINGS_PER_TRANSACTION = 10
LANES = 12
FINAL_MS_MAX = 60_000
OFFER_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Parties:
    """A payer's account and a service party's key."""

    payer: Signer
    service_key: PrivateKey


class Opener:
    """A payer that opens streams: by the service party's own offers, or by terms that are signed here in its name."""

    def __init__(self, client: Client, parties: Parties, url: str) -> None:
        self._client = client
        self._parties = parties
        self._url = url
        self.opened = 0
        """How many streams it has opened."""
        self._number = time.time_ns() // 1_000_000 * 1_000
        """Of the last stream: another opener's are others."""
        self._height = 0

    async def offers(self, count: int, *, deposit: int, count_max: int = 0) -> list[Agreed]:
        """Ask for so many offers; errors as :func:`services.stream.opening.ask_offer`, and of what holds not."""
        agreed = []
        for _ in range(count):
            wanted = OfferWanted(
                payer=f"0x{self._parties.payer.address.hex()}",
                number=self._next(),
                deposit=deposit,
                mode="payment-first",
                count_max=count_max,
            )
            offer = await ask_offer(self._url, wanted)
            agreed.append(Agreed(*offer.check_untrusted(self._client.chain_id)))
        return agreed

    async def offered(self, count: int, *, deposit: int) -> list[LoadStream]:
        """Open so many streams by offers, and return them once every node can prove them.

        Raises:
            InvariantError: the chain refused one: figures would say nothing.
            HansaError: as :meth:`offers` and :meth:`Client.submit_many`.
        """
        agreed = await self.offers(count, deposit=deposit)
        await self._bring([_open_call(item.terms, item.signature) for item in agreed])
        for node in self._client.each_node().values():  # the service party may ask any of them
            await node.state(stream_key(agreed[-1].stream), height_min=self._height)
        return [self.load_stream(item) for item in agreed]

    def load_stream(self, agreed: Agreed) -> LoadStream:
        """Return a payer's stream on these terms."""
        return LoadStream(agreed.terms, self._parties.payer.key, self._client.chain_id)

    async def open_offered(self, agreed: Agreed) -> Outcome:
        """Open one stream by its offer as payers do, and return its proven outcome."""
        opened = await open_stream(self._client, self._parties.payer, agreed)
        if opened.outcome is None:
            raise InvariantError("a stream with a new number was there before")
        self.opened += 1
        return opened.outcome

    async def open_one(self, terms: Terms) -> Outcome:
        """Open one more stream on such terms, alone in its transaction, and return its proven outcome."""
        outcome = await self._client.call_many(self._parties.payer, [self._signed_call(terms)])
        self.opened += 1
        return outcome.check()

    async def open_many(self, terms: Terms, count: int) -> None:
        """Open so many more on such terms, many in a transaction; errors as :meth:`offered`."""
        await self._bring([self._signed_call(terms) for _ in range(count)])

    async def sample(self, terms: Terms, count: int, used_s: Callable[[], float]) -> Figures:
        """Open some one after the other; return steps and time of each, and what it cost all nodes together."""
        steps, times_ms, used = set[int](), list[float](), used_s()
        for _ in range(count):
            began = time.perf_counter()
            outcome = await self.open_one(terms)
            times_ms.append(1_000 * (time.perf_counter() - began))
            steps.add(outcome.receipts[0].steps)
        nodes_ms = round(1_000 * (used_s() - used) / count, 2)
        return {"opened": self.opened, "steps": max(steps), "nodes_ms": nodes_ms, **percentiles(times_ms)}

    def _signed_call(self, terms: Terms) -> Call:
        until_ms = time.time_ns() // 1_000_000 + OFFER_MS
        own = msgspec.structs.replace(terms, number=self._next(), offer_until_ms=until_ms)
        key, chain_id = self._parties.service_key, self._client.chain_id
        return _open_call(own, key.sign(Purpose.STREAM_TERMS, chain_id, terms_hash(own)))

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _bring(self, calls: Sequence[Call]) -> None:
        starts = iter(range(0, len(calls), OPENINGS_PER_TRANSACTION))
        lanes = self._client.lanes(self._parties.payer, count=LANES, prefix=b"bench")

        async def bring() -> None:
            for start in starts:
                await self._submit(lanes, calls[start : start + OPENINGS_PER_TRANSACTION])

        with single_errors():
            async with trio.open_nursery() as nursery:
                for _ in range(LANES):
                    nursery.start_soon(bring)

    async def _submit(self, lanes: Lanes, calls: Sequence[Call]) -> None:
        async with lanes.lease() as lane:
            transaction = self._client.sign(
                self._parties.payer, calls, sequence=await lane.take(), lane=lane.name, mode=EACH
            )
            (answer,) = await self._client.submit_many([transaction], wait_ms=FINAL_MS_MAX)
        if answer.height is None:
            raise PeerError("bad_answer", f"streams were not opened: {answer.code}")
        self._height = max(self._height, answer.height)
        if answer.failed_count:
            raise InvariantError(f"{answer.failed_count} openings failed at height {answer.height}")
        self.opened += len(calls)


def _open_call(terms: Terms, signature: bytes) -> Call:
    arguments: dict[str, Value] = {name: getattr(terms, name) for name in Terms.__struct_fields__}
    return make_call(CONTRACT, "open", {**arguments, "signature": signature})
