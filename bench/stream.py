"""What payment streams do: iterations stored durably, how long one takes, what the chain has to do for them.

::

    frames       100 streams over 10 WebSockets: the next iteration of each goes when the last is told to be durable
    apart        the same with a WebSocket for each stream
    http         the same with one HTTP request for each iteration
    alone        one stream alone over a WebSocket, from signing an iteration until it is told to be durable
    stream       so many payments as one stream: opened, paid, settled by the service party; what the chain did for it
    each         the same payments, each a transfer on the chain
    opening      one opening, with next to no streams on the chain and with the ten-thousandth

Streams are real: opened with a deposit on four validators, offered, verified and stored by one process of the service
party, which supplies by the demo's meter meanwhile. ``hansa bench stream`` runs it on a trial network; payers, service
party and validators share the machine. The money is simulated.
"""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
import trio
from rich.console import Console

from bench.goals import Goal, percentiles
from bench.harness import check_names, cores, interrupted_by_signals, say, seconds_of, wait_until_still
from bench.report import Figures, number, print_table, rows_of
from bench.stream_client import LoadStream, Payers, Stamps
from bench.stream_load import Opener, Parties
from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError
from consensus.ledger.ids import Hash
from consensus.ledger.streams import StreamRecord
from services.client.client import Client, open_client
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome
from services.client.tasks import single_errors
from services.demo.stream_network import OpenStreamNetwork, ServiceDoor, StreamConsortium
from services.local.link import LocalLink
from services.stream.opening import read_stream
from services.stream.service_interface import SERVICE_SOCKET, ServiceStatus
from services.stream.setup import ISSUER, PAYER, SERVICE, UNIT

PARTS = ("chain", "frames", "apart", "http", "alone", "opening")
PRICE = 8
STEP_UNITS = 10**9
"""So many units may be owed at once: no payer shall have to wait for the meter."""
AT_EASE: dict[str, object] = {"meter": "demo:9:1", "meter_ms": 1_000, "chain_ms": 5_000}
"""A car at its own pace, and each stream looked up every 5 s: neither is what is measured."""
QUICK_METER: dict[str, object] = {"meter": "demo:9:0", "meter_ms": 1}
"""One that supplies at once: a stream ends once everything that was paid is supplied."""
DEPOSIT = 10**7
HOUR_MS = 3_600_000
TARIFF: dict[str, object] = {
    "price": PRICE,
    "step_max": PRICE * STEP_UNITS,
    "validity_ms": HOUR_MS,
    "margin_ms": 60_000,
    "window_ms": 2 * HOUR_MS,
    "step_ms": HOUR_MS,
}
WARM_S = 0.5
"""Before anything counts."""
SIGNED_PER_S = 5_000
"""So many iterations of a second are signed before it begins; more are signed within it."""
STREAM_S_MAX = 60
SETTLED_POLL_S = 0.05
TRANSFERS_AT_ONCE = 8
FEW, MANY = "opening few", "opening many"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    So few that they only show that it runs are not held against the goals.

    Args:
        streams, seconds: of rows frames, apart and http.
        connections, http_connections: of rows frames and http.
        alone: iterations one after the other.
        payments: of rows stream and each.
        openings: streams on the chain when the last ones are opened; ``sample`` openings are averaged.
    """

    streams: int = 100
    connections: int = 10
    http_connections: int = 32
    seconds: float = 8
    alone: int = 500
    payments: int = 200
    openings: int = 10_000
    sample: int = 20
    are_judged: bool = True


QUICK = Sizes(
    streams=6,
    connections=3,
    http_connections=2,
    seconds=0.5,
    alone=10,
    payments=5,
    openings=30,
    sample=3,
    are_judged=False,
)

GOALS = (
    Goal("frames", "iterations_per_s", "iterations stored, frames", "/s", 3_000),
    Goal("http", "iterations_per_s", "iterations stored, a request each", "/s", 800),
    Goal("alone", "p50_ms", "one iteration alone, p50", "ms", 5, is_most=True),
    Goal("stream", "transactions", "transactions of a stream", "", 2, is_most=True),
    Goal(MANY, "steps_ratio", "steps of the last opening ÷ of the first", "×", 1.01, is_most=True),
    Goal(MANY, "nodes_ratio", "processor time of the last ÷ of the first", "×", 1.5, is_most=True),
)


def main(
    *, open_network: OpenStreamNetwork, rows: Sequence[str] = (), sizes: Sizes | None = None, as_json: bool = False
) -> int:
    """Measure, print tables or one JSON object, and return 0.

    Args:
        open_network: starts the network for the time of the benchmark.
        rows: which of :data:`PARTS`; all by default.
        sizes: how much is measured.
        as_json: print one JSON object.

    Raises:
        LocalError: ``bad_arguments``.
        HansaError: something does not start, or a payment ends otherwise than it must: there are no figures then.
    """
    check_names(rows, PARTS)
    wanted = [name for name in PARTS if name in (rows or PARTS)]
    with interrupted_by_signals():
        report = trio.run(_measure, open_network, wanted, sizes or Sizes())
    if as_json:
        print(json.dumps(report))
    else:
        _draw(report)
    return 0


async def _measure(open_network: OpenStreamNetwork, wanted: list[str], sizes: Sizes) -> Figures:
    say("starting the network")
    measured: list[Figures] = []
    async with open_network() as network, open_client(network.genesis, list(network.urls.values())) as client:
        bench = StreamBench(network, client, await network.open_service(**TARIFF, **QUICK_METER), sizes)
        await bench.fund()
        if "chain" in wanted:
            measured += await bench.measure_chain()
        bench = StreamBench(network, client, await network.open_service(**TARIFF, **AT_EASE), sizes)
        measures: dict[str, Callable[[], Awaitable[list[Figures]]]] = {
            "frames": bench.measure_frames,
            "apart": bench.measure_apart,
            "http": bench.measure_http,
            "alone": bench.measure_alone,
            "opening": bench.measure_opening,
        }
        for name in wanted:
            if name in measures:
                measured += await measures[name]()
    goals = [judged for goal in GOALS if sizes.are_judged and (judged := goal.judge(measured)) is not None]
    return {"ok": True, "cores": cores(), "simulated": True, "rows": measured, "goals": goals}


class StreamBench:
    """Streams on one running network."""

    def __init__(self, network: StreamConsortium, client: Client, door: ServiceDoor, sizes: Sizes) -> None:
        self._network = network
        self._client = client
        self._door = door
        self._sizes = sizes
        self._payer = Signer.of(PAYER, network.key(PAYER))
        self._opener = Opener(client, Parties(self._payer, network.key(SERVICE)), door.url)
        parts = urlsplit(door.url)
        self._payers = Payers(str(parts.hostname), parts.port or 80)
        self._streams: list[LoadStream] = []

    async def fund(self) -> None:
        """Give the payer what all deposits take."""
        issuer = Signer.of(ISSUER, self._network.key(ISSUER))
        amount = DEPOSIT * (self._sizes.streams + 3) + self._sizes.openings + 10 * self._sizes.sample
        amount += PRICE * self._sizes.payments
        arguments: dict[str, Value] = {"unit": UNIT, "to": bytes(self._payer.address), "amount": amount}
        (await self._client.call(issuer, "tokens", "issue", arguments)).check()

    # -- iterations ------------------------------------------------------------------------------------

    async def measure_frames(self) -> list[Figures]:
        """Pay by all streams at once over WebSockets."""
        return [await self._measure_load("frames", self._sizes.connections, self._payers.pay)]

    async def measure_apart(self) -> list[Figures]:
        """Pay by all streams at once, each over a WebSocket of its own."""
        return [await self._measure_load("apart", self._sizes.streams, self._payers.pay)]

    async def measure_http(self) -> list[Figures]:
        """Pay by all streams at once with a request for each iteration."""
        return [await self._measure_load("http", self._sizes.http_connections, self._payers.post)]

    async def measure_alone(self) -> list[Figures]:
        """Pay by one stream alone."""
        say("one stream alone")
        (stream,) = await self._opener.offered(1, deposit=DEPOSIT)
        await self._still()
        stamps = await self._pay(stream, self._sizes.alone)
        return [{"row": "alone", "iterations": len(stamps.times_ms), **percentiles(stamps.times_ms)}]

    async def _measure_load(
        self, row: str, connections: int, pay: Callable[[Sequence[Sequence[LoadStream]], Stamps], Awaitable[None]]
    ) -> Figures:
        streams, seconds = await self._many(), self._sizes.seconds
        say(f"{row}: {len(streams)} streams over {connections} connections")
        for stream in streams:
            stream.sign(int(SIGNED_PER_S * seconds) // len(streams))
        await self._still()
        groups = [streams[at::connections] for at in range(min(connections, len(streams)))]
        stamps, before = Stamps(WARM_S, WARM_S + seconds), await self._status()
        used_s, client_s = seconds_of(self._door.pid), time.process_time()
        await pay(groups, stamps)
        used_s, client_s = seconds_of(self._door.pid) - used_s, time.process_time() - client_s
        after = await self._status()
        stored, groups_written = after.iterations - before.iterations, after.groups - before.groups
        if stored < len(stamps.times_ms):
            raise InvariantError(f"{len(stamps.times_ms)} iterations were told to be stored, {stored} are")
        return {
            "row": row,
            "streams": len(streams),
            "connections": len(groups),
            "iterations_per_s": round(stamps.per_s, 1),
            **percentiles(stamps.times_ms),
            "a_group": round(stored / max(1, groups_written), 1),
            "service_us": round(1e6 * used_s / stored, 1),
            "payers_us": round(1e6 * client_s / stored, 1),
        }

    async def _many(self) -> list[LoadStream]:
        if not self._streams:
            say(f"opening {self._sizes.streams} streams")
            self._streams = await self._opener.offered(self._sizes.streams, deposit=DEPOSIT)
        return self._streams

    # -- the chain -------------------------------------------------------------------------------------

    async def measure_chain(self) -> list[Figures]:
        """Pay the same number of times by one stream that ends with the last, and by transfers."""
        count = self._sizes.payments
        say(f"{count} payments as one stream, and each on the chain")
        as_stream = await self._timed("stream", self._pay_as_stream)
        each = await self._timed("each", self._pay_each)
        as_stream["steps_share"] = round(number(as_stream["steps"]) / number(each["steps"]), 4)
        return [as_stream, each]

    async def _timed(self, row: str, pay: Callable[[int], Awaitable[list[Outcome]]]) -> Figures:
        """Return what so many payments cost the chain, once their transactions are final and proven."""
        await self._still()
        began, used_s = time.monotonic(), self._nodes_s()
        outcomes = await pay(self._sizes.payments)
        seconds, nodes_s = time.monotonic() - began, self._nodes_s() - used_s
        return {
            "row": row,
            "payments": self._sizes.payments,
            "transactions": len(outcomes),
            "steps": sum(receipt.steps for outcome in outcomes for receipt in outcome.receipts),
            "bytes": sum(len(outcome.transaction.raw) for outcome in outcomes),
            "seconds": round(seconds, 2),
            "nodes_ms": round(1_000 * nodes_s, 1),
        }

    async def _pay_as_stream(self, count: int) -> list[Outcome]:
        (agreed,) = await self._opener.offers(1, deposit=DEPOSIT, count_max=count)
        opened = await self._opener.open_offered(agreed)
        stream = self._opener.load_stream(agreed)
        await self._pay(stream, count)
        record = await self._settled(stream.id)
        if record.paid != count * PRICE:
            raise InvariantError(f"{record.paid} was settled of {count} payments of {PRICE}")
        return [opened, (await self._client.outcome(record.settled_by)).check()]

    async def _pay(self, stream: LoadStream, count: int) -> Stamps:
        """Pay so many times by one stream alone.

        Raises:
            Unreachable: ``service_unreachable``: a minute went by before.
        """
        stamps = Stamps(0, STREAM_S_MAX, due_max=stream.stored + count * PRICE)
        await self._payers.pay([[stream]], stamps)
        if stream.stored != stamps.due_max:
            raise Unreachable(f"{count} payments were not stored within {STREAM_S_MAX} s", code="service_unreachable")
        return stamps

    async def _settled(self, stream: Hash) -> StreamRecord:
        """Wait until a stream is settled and return its proven record.

        Raises:
            Unreachable: ``service_unreachable``: a minute went by.
        """
        with trio.move_on_after(STREAM_S_MAX):
            while True:
                record = await read_stream(self._client, stream)
                if record is not None and record.settled_by:
                    return record
                await trio.sleep(SETTLED_POLL_S)
        raise Unreachable("the service party has not settled a stream within a minute", code="service_unreachable")

    async def _pay_each(self, count: int) -> list[Outcome]:
        """Pay by so many transfers, some at a time."""
        to = Signer.of(SERVICE, self._network.key(SERVICE)).address
        arguments: dict[str, Value] = {"unit": UNIT, "to": bytes(to), "amount": PRICE}
        lanes = self._client.lanes(self._payer, count=TRANSFERS_AT_ONCE, prefix=b"each")
        left, outcomes = iter(range(count)), list[Outcome]()

        async def pay() -> None:
            for _ in left:
                outcome = await self._client.call(self._payer, "tokens", "transfer", arguments, lanes=lanes)
                outcomes.append(outcome.check())

        with single_errors():
            async with trio.open_nursery() as nursery:
                for _ in range(TRANSFERS_AT_ONCE):
                    nursery.start_soon(pay)
        return outcomes

    async def measure_opening(self) -> list[Figures]:
        """Open streams with few on the chain, and again with many."""
        sample = self._sizes.sample
        (agreed,) = await self._opener.offers(1, deposit=DEPOSIT)
        terms = msgspec.structs.replace(agreed.terms, deposit=1)
        await self._still()
        say("opening the first streams")
        few = await self._opener.sample(terms, sample, self._nodes_s)
        rest = max(0, self._sizes.openings - self._opener.opened - sample)
        say(f"opening {rest:,} more")
        await self._opener.open_many(terms, rest)
        await self._still()
        many = await self._opener.sample(terms, sample, self._nodes_s)
        first: Figures = {"row": FEW, **few}
        last: Figures = {"row": MANY, **many}
        compare(first, last)
        return [first, last]

    async def _status(self) -> ServiceStatus:
        async with LocalLink(self._door.home / "run" / SERVICE_SOCKET) as link:
            return await link.call("status", {}, ServiceStatus)

    async def _still(self) -> None:
        """Wait until nodes and service party rest, where figures count."""
        if self._sizes.are_judged:
            await wait_until_still(lambda: self._nodes_s() + seconds_of(self._door.pid))

    def _nodes_s(self) -> float:
        """Return the processor time that the nodes have used so far."""
        return sum(map(seconds_of, self._network.processes()["nodes"]))


def compare(first: Figures, last: Figures) -> None:
    """Add to the last openings' row by how much they cost more than the first."""
    last["steps_ratio"] = round(number(last["steps"]) / number(first["steps"]), 3)
    last["nodes_ratio"] = round(number(last["nodes_ms"]) / max(number(first["nodes_ms"]), 0.01), 2)


def _draw(report: Figures) -> None:
    console = Console(highlight=False)
    rows = rows_of(report, "rows")
    console.print(
        f"{report['cores']} cores: payers, one service party and four validators. The money is simulated.\n"
        "An iteration counts once it is told to be durable; each stream has one on its way."
    )
    load = {"streams": "streams", "connections": "sockets", "iterations_per_s": "stored/s"}
    load |= {"p50_ms": "p50 ms", "p99_ms": "p99 ms", "a_group": "a write", "service_us": "µs each"}
    chain = {"payments": "payments", "transactions": "transactions", "steps": "steps", "bytes": "bytes"}
    chain |= {"nodes_ms": "four nodes ms", "seconds": "seconds"}
    opening = {"opened": "streams", "steps": "steps", "p50_ms": "p50 ms", "nodes_ms": "four nodes ms"}
    tables = (
        (("frames", "apart", "http", "alone"), "iterations", load),
        (("stream", "each"), "on the chain", chain),
        ((FEW, MANY), "one opening", opening),
    )
    for names, heading, columns in tables:
        if shown := [row for row in rows if row["row"] in names]:
            print_table(console, shown, {"row": heading, **columns})
    goals = report["goals"]
    if isinstance(goals, list) and goals:
        print_table(console, goals, {"name": "goal", "figure": "figure", "unit": "", "goal": "wanted", "met": "met"})
