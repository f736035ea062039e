"""A client that keeps a network busy: accounts, frames in flight, latencies.

The client signs while the clock runs: its work is part of every figure. A frame is one binary WebSocket
message; the node answers it when all its transactions are final, with their number of failed receipts.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import HansaError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey, PublicKey
from consensus.ledger.transaction import EACH, Call, make_call, sign_transaction
from services.client.connection import Connection
from services.client.tasks import single_errors

UNIT = "BENCH"
CAMPAIGN = "bench"
FUNDS = 10**12
VALIDITY_MS = 10 * 60_000
FINAL_MS = 30_000
RAMP_S = 1.0
"""How long a row runs before it is measured."""
REGISTER_MAX = 200
"""How many accounts a transaction of the set-up registers, and another one funds."""
PARTS_A_FRAME = 5
FILL_LANES = 16


T = TypeVar("T")


@dataclass(slots=True)
class Lane:
    """A lane of an account and its next number; ``node`` is the connection that its transactions take."""

    key: PrivateKey
    name: bytes
    node: int
    next: int = 0


@dataclass(slots=True)
class Samples:
    """What was measured: transactions and calls that became final, and each transaction's latency in seconds.

    ``calls_in_all`` counts those of the ramp and of the end too.
    """

    seconds: float = 0.0
    transactions: int = 0
    calls: int = 0
    calls_in_all: int = 0
    latencies: list[float] = field(default_factory=list)

    def quantile_ms(self, percent: int) -> float:
        """Return the latency that ``percent`` of a hundred transactions do not exceed; 0 where none was final."""
        ordered = sorted(self.latencies) or [0.0]
        return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of load: ``frames_in_flight`` frames at a time, of ``transactions`` with ``calls`` each.

    Units go from one sender to another; with ``is_spread`` to any account, those that only receive included.
    """

    name: str
    frames_in_flight: int
    transactions: int
    calls: int
    is_rights: bool = False
    is_spread: bool = False


class Load:
    """Keeps frames in flight and counts what becomes final."""

    def __init__(self, chain_id: ChainId, nodes: Sequence[Connection], *, seed: int) -> None:
        self._chain_id = chain_id
        self._nodes = nodes
        self._random = Random(seed)
        self._accounts: deque[Lane] = deque()
        self._addresses: list[bytes] = []
        self._senders = 0
        self._servers: deque[Lane] = deque()
        self._fillers: list[Lane] = []
        self._orders = 0

    @property
    def address_count(self) -> int:
        """How many accounts there are, those that only receive included."""
        return len(self._addresses)

    async def set_up(self, issuer: PrivateKey, server: PrivateKey, *, account_count: int, server_lanes: int) -> None:
        """Register and fund the accounts of the transfers, and open the campaign of the rights."""
        keys = [PrivateKey.generate() for _ in range(account_count)]
        count = len(self._nodes)
        self._accounts.extend(Lane(key, b"", index % count) for index, key in enumerate(keys))
        self._servers.extend(Lane(server, b"bench%d" % index, index % count) for index in range(server_lanes))
        await self._all(Lane(issuer, b"bench", 0), [[make_call("tokens", "define", {"unit": UNIT})]])
        await self._register(issuer, [key.public for key in keys])
        self._senders = account_count
        await self._all(
            self._servers[0], [[make_call("rights", "open_campaign", {"campaign": CAMPAIGN, "quota": 10**15})]]
        )

    async def fill(self, issuer: PrivateKey, account_count: int) -> None:
        """Register and fund accounts that only receive: three keys of the state each, and nobody keeps their keys."""
        await self._register(issuer, [PrivateKey.generate().public for _ in range(account_count)])

    async def _register(self, issuer: PrivateKey, keys: Sequence[PublicKey]) -> None:
        """Register and fund accounts, in several lanes side by side; each lane's frames follow one another."""
        first = len(self._addresses)
        self._addresses += [bytes(key.address) for key in keys]
        parts = deque(_parts(range(len(keys)), REGISTER_MAX))

        def calls_of(part: Sequence[int]) -> list[list[Call]]:
            new = {f"bench-{first + index}": keys[index].compressed for index in part}
            accounts: dict[str, Value] = {name: new[name] for name in sorted(new)}
            addresses = [self._addresses[first + index] for index in part]
            return [
                [make_call("membership", "register_accounts", {"accounts": accounts})],
                [make_call("tokens", "issue", {"unit": UNIT, "to": to, "amount": FUNDS}) for to in addresses],
            ]

        async def work(lane: Lane) -> None:
            while parts:
                calls = [item for _ in range(min(PARTS_A_FRAME, len(parts))) for item in calls_of(parts.popleft())]
                await self._submit(lane.node, [self._sign(lane, item) for item in calls])

        with single_errors():
            async with trio.open_nursery() as nursery:
                for lane in self._issuers(issuer):
                    nursery.start_soon(work, lane)

    def _issuers(self, issuer: PrivateKey) -> list[Lane]:
        """Return the lanes of who registers and issues, the same at each call."""
        if not self._fillers:
            count = len(self._nodes)
            self._fillers = [Lane(issuer, b"fill%d" % index, index % count) for index in range(FILL_LANES)]
        return self._fillers

    async def run(self, row: Row, *, seconds: float) -> Samples:
        """Measure a row for a time, after a ramp; return when nothing is in flight any more.

        Raises:
            HansaError: a transaction was refused, failed or not final in time: then no figure is worth anything.
        """
        samples = Samples()
        begin = trio.current_time() + (RAMP_S if row.frames_in_flight > 1 else 0)
        end = begin + seconds

        async def keep_busy() -> None:
            while trio.current_time() < end:
                lanes, raws, calls, latency = await self._one_frame(row)
                (self._servers if row.is_rights else self._accounts).extend(lanes)
                samples.calls_in_all += calls
                if begin <= trio.current_time() < end:
                    samples.transactions += len(raws)
                    samples.calls += calls
                    samples.latencies += [latency] * len(raws)

        lanes = len(self._servers if row.is_rights else self._accounts)
        with single_errors():
            async with trio.open_nursery() as nursery:
                for _ in range(min(row.frames_in_flight, max(1, lanes // row.transactions))):
                    nursery.start_soon(keep_busy)
        samples.seconds = seconds
        return samples

    async def run_open(self, row: Row, *, tps: float, seconds: float) -> Samples:
        """Offer transactions at this rate, whatever the answers do, in frames that fall due at random moments.

        A latency counts from the moment at which its frame was due, so that a client that cannot keep up, or finds
        every account in use, shows. Frames that fall due in the ramp are not counted.

        Raises:
            HansaError: as :meth:`run`.
        """
        samples = Samples(seconds=seconds)
        due = trio.current_time()
        begin = due + RAMP_S
        end = begin + seconds
        has_lane = trio.Semaphore(len(self._accounts) // row.transactions)

        async def offer(due: float) -> None:
            async with has_lane:
                lanes, raws, calls, _ = await self._one_frame(row)
                self._accounts.extend(lanes)
            samples.calls_in_all += calls
            if due >= begin:
                samples.transactions += len(raws)
                samples.calls += calls
                samples.latencies += [trio.current_time() - due] * len(raws)

        with single_errors():
            async with trio.open_nursery() as nursery:
                while (due := due + self._random.expovariate(tps / row.transactions)) < end:
                    await trio.sleep_until(due)
                    nursery.start_soon(offer, due)
        return samples

    async def _one_frame(self, row: Row) -> tuple[list[Lane], list[bytes], int, float]:
        """Sign and send one frame; its lanes are nobody else's until it is final."""
        began = trio.current_time()
        pool = self._servers if row.is_rights else self._accounts
        lanes = [pool.popleft() for _ in range(row.transactions)]
        raws = [self._sign(lane, self._calls(row)) for lane in lanes]
        await self._submit(lanes[0].node, raws)
        return lanes, raws, row.transactions * row.calls, trio.current_time() - began

    def _calls(self, row: Row) -> list[Call]:
        if row.is_rights:
            return [self._create() for _ in range(row.calls)]
        receivers = len(self._addresses) if row.is_spread else self._senders
        return [self._transfer(self._random.randrange(receivers)) for _ in range(row.calls)]

    def _transfer(self, receiver: int) -> Call:
        to, amount = self._addresses[receiver], self._random.randint(1, 100)
        return make_call("tokens", "transfer", {"unit": UNIT, "to": to, "amount": amount})

    def _create(self) -> Call:
        self._orders += 1
        user = f"u{self._random.randrange(10_000)}"
        order: dict[str, Value] = {"campaign": CAMPAIGN, "order": f"o{self._orders}", "user": user}
        return make_call("rights", "create", {**order, "amount": 100, "event": "e"})

    def _sign(self, lane: Lane, calls: list[Call]) -> bytes:
        valid_until_ms = time.time_ns() // 1_000_000 + VALIDITY_MS
        lane.next += 1
        return sign_transaction(
            lane.key,
            self._chain_id,
            calls,
            sequence=lane.next - 1,
            valid_until_ms=valid_until_ms,
            lane=lane.name,
            mode=EACH,
        ).raw

    async def _submit(self, node: int, raws: list[bytes]) -> None:
        for answer in await self._nodes[node].submit_frame(raws, wait_ms=FINAL_MS):
            if answer.code or not answer.height or answer.failed_count:
                code = answer.code or ("receipt_failed" if answer.failed_count else "outcome_unknown")
                raise HansaError(code, f"transaction {answer.transaction_id.hex()}: {answer.failed_count} calls failed")

    async def _all(self, lane: Lane, calls: Sequence[list[Call]]) -> None:
        """Make transactions of one lane and wait until they are final."""
        for part in _parts([self._sign(lane, item) for item in calls], 10):
            await self._submit(lane.node, list(part))


def _parts(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
