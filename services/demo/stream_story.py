"""The story of the stream demo.

::

    a car is charged and pays 200 times, each time the total so far; its payer, the service party and a node die
    meanwhile; one iteration is uploaded, and both close · a second car pays ahead and burns the number: the service
    party recovers what is due and the fine out of the deposit · a third car's service party goes offline for good and
    its payer wants the deposit back: a watcher settles · what is wrong is refused all along
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from consensus.ledger.streams import Terms, make_iteration
from services.demo.stream_facts import Accident
from services.demo.stream_network import NODE, SERVICE_PROGRAM, StreamConsortium
from services.demo.stream_till import Till, clock_ms, code_of
from services.demo.watch import Watch
from services.stream.charging import Pulse, pulse_at
from services.stream.service_interface import StreamShown
from services.stream.setup import PAYER, SERVICE, UNITS

SERVICE_FIRST, PAYMENT_FIRST = "service-first", "payment-first"
ITERATIONS = 200
KILLED_AT = (40, 90, 140)
"""After so many iterations payer, service party and a node die."""
BURNED_AT, OFFLINE_AT = 60, 20
DEPOSIT, FINE = 10_000, 1_000
OTHER_PAYER = "user-e"
VALIDITY_MS = 300_000


@dataclass(frozen=True, slots=True)
class Played:
    """A stream of the story: what it is called, what was agreed, and how the story means it to end."""

    title: str
    mode: str
    payer: str
    stream: bytes
    terms: Terms
    is_burned: bool = False


class Story:
    """One run of the story."""

    def __init__(self, consortium: StreamConsortium, till: Till, watch: Watch, car: Sequence[Pulse]) -> None:
        """Take who is there; ``car`` is how the meter says that a car is charged."""
        self.played: list[Played] = []
        self.accidents: list[Accident] = []
        self.answers: dict[str, tuple[str, str]] = {}
        self._consortium = consortium
        self._till = till
        self._watch = watch
        self._car = tuple(car)
        self._act = ""

    async def play(self) -> None:
        """Play it."""
        charged = await self._charge()
        burned = await self._burn()
        await self._forge(charged, burned)
        await self._go_offline(burned)

    # -- many iterations, one upload -------------------------------------------------------------------

    async def _charge(self) -> Played:
        self._begin(f"a car is charged and pays {ITERATIONS} times", ITERATIONS)
        played = await self._open("charged", SERVICE_FIRST, PAYER, count_max=ITERATIONS)
        payer = partial(self._consortium.start_payer, played.stream, PAYER)
        payer()
        await self._dies(
            "payer", played.stream, KILLED_AT[0], partial(self._consortium.kill_payer, played.stream), _at_once(payer)
        )
        await self._dies(
            "service party",
            played.stream,
            KILLED_AT[1],
            partial(self._consortium.kill_program, SERVICE_PROGRAM),
            partial(self._consortium.start_program, SERVICE_PROGRAM),
        )
        kill, start = partial(self._consortium.kill, NODE), partial(self._consortium.start, NODE)
        await self._dies(f"node {NODE}", played.stream, KILLED_AT[2], kill, start)
        await self._stored(played.stream, ITERATIONS)
        self._watch.say("the last iteration is uploaded, and both close")
        await self._till.until_recorded(played.stream, lambda record: record.status == "CLOSED")
        return played

    async def _dies(
        self,
        name: str,
        stream: bytes,
        count: int,
        kill: Callable[[], Awaitable[None]],
        start: Callable[[], Awaitable[None]],
    ) -> None:
        """Kill somebody once so many iterations are stored, start it again, and see that more are."""
        await self._stored(stream, count)
        self._act = f"{name} dies"
        self._watch.say(self._act)
        await kill()
        shown = await self._till.shown(stream) if name != "service party" else None
        await start()
        before = shown.count if shown is not None else count
        after = await self._stored(stream, before + 5)
        self.accidents.append(Accident(name, after - before))

    async def _stored(self, stream: bytes, count: int) -> int:
        def is_enough(shown: StreamShown) -> bool:
            self._show(shown)
            return shown.count >= count or shown.status != "STREAMING"

        return (await self._till.until(stream, is_enough)).count

    def _show(self, shown: StreamShown) -> None:
        """Show the car as it is charged: power, battery, and what is due."""
        pulse = pulse_at(self._car, shown.units)
        car = f"{pulse.power_w / 1_000:.0f} kW, battery {pulse.charge_percent} %"
        self._watch.say(f"{self._act}: {car}, {shown.due:,} {shown.terms['unit']}")
        self._watch.done(shown.count)

    def _begin(self, act: str, iterations: int) -> None:
        self._act = act
        self._watch.say(act)
        self._watch.begin(iterations)
        self._watch.done(0)

    # -- the number is burned --------------------------------------------------------------------------

    async def _burn(self) -> Played:
        self._begin("a second car pays ahead, and its payer burns the number", BURNED_AT)
        played = await self._open("burned", PAYMENT_FIRST, PAYER, is_burned=True)
        self._consortium.start_payer(played.stream, PAYER)
        await self._stored(played.stream, BURNED_AT // 2)
        await self._mistake(played)
        await self._stored(played.stream, BURNED_AT)
        await self._consortium.kill_payer(played.stream)
        await self._till.burn(PAYER, played.stream)
        await self._till.until(played.stream, lambda shown: shown.status == "CLAIMED")
        return played

    async def _mistake(self, played: Played) -> None:
        """A stranger's iteration, and those of another stream or chain, neither count nor end a stream."""
        make = partial(make_iteration, payer=played.terms.payer, valid_until_ms=clock_ms() + VALIDITY_MS)
        stranger, own = (self._consortium.key(name) for name in (OTHER_PAYER, PAYER))
        chain, stream = self._till.client.chain_id, played.stream
        for title, wanted, wrong in (
            ("a stranger's iteration", "bad_signature", make(stranger, chain, stream=stream, due=400)),
            ("another stream's", "wrong_stream", make(own, chain, stream=self.played[0].stream, due=400)),
            ("another chain's", "wrong_chain", make(own, type(chain)(bytes(32)), stream=stream, due=400)),
        ):
            self.answers[title] = (await self._till.hand_over(stream, wrong.raw), wanted)

    # -- what is refused -------------------------------------------------------------------------------

    async def _forge(self, charged: Played, burned: Played) -> None:
        self._watch.say("what is wrong is refused")
        late = self._till.iteration(PAYER, charged.terms, charged.stream, 8)
        self.answers["a second iteration of a number"] = (await self._till.upload(late), "lane_consumed")
        last = (await self._till.exported(burned.stream)).carried.raw
        again = await self._till.claim(SERVICE, burned.stream, last)
        self.answers["the same claim again"] = (again, "nothing_due")
        other = (await self._till.exported(charged.stream)).carried.raw
        self.answers["a claim by another stream's iteration"] = (
            await self._till.claim(SERVICE, burned.stream, other),
            "wrong_stream",
        )
        closed = await self._till.claim(SERVICE, charged.stream, other)
        self.answers["a claim on a closed stream"] = (closed, "stream_closed")
        unfunded = await self._till.offer(PAYER, mode=SERVICE_FIRST, deposit=2 * UNITS, fine=FINE, count_max=1)
        self.answers["an unfunded stream"] = (
            await code_of(partial(self._till.open, PAYER, unfunded)),
            "insufficient_funds",
        )

    # -- a service party that is offline ---------------------------------------------------------------

    async def _go_offline(self, burned: Played) -> None:
        self._begin("a third car's service party goes offline, and a watcher settles for it", OFFLINE_AT)
        played = await self._open("watched", PAYMENT_FIRST, OTHER_PAYER)
        self._consortium.start_payer(played.stream, OTHER_PAYER)
        await self._stored(played.stream, OFFLINE_AT)
        await self._consortium.kill_payer(played.stream)
        await self._till.until_watched(played.stream)
        await self._consortium.kill_program(SERVICE_PROGRAM)
        self._watch.say("the payer wants its deposit back, and the watcher settles")
        await self._till.ask_back(OTHER_PAYER, played.stream)
        await self._till.until_recorded(
            played.stream, lambda record: record.settled_by != b"", meanwhile=partial(self._till.trade, PAYER)
        )
        self._watch.say("the service party comes back")
        await self._consortium.start_program(SERVICE_PROGRAM)
        await self._till.until(played.stream, lambda shown: shown.status in ("SETTLED", "CLOSED"))
        last = (await self._till.exported(played.stream)).carried.raw
        other = await self._till.claim(SERVICE, burned.stream, last)
        self.answers["a claim by another payer's iteration"] = (other, "bad_transaction")

    async def _open(self, title: str, mode: str, payer: str, *, is_burned: bool = False, count_max: int = 0) -> Played:
        agreed = await self._till.offer(payer, mode=mode, deposit=DEPOSIT, fine=FINE, count_max=count_max)
        stream = await self._till.open(payer, agreed)
        played = Played(title, mode, payer, stream, agreed.terms, is_burned)
        self.played.append(played)
        return played


def _at_once(start: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        start()

    return call
