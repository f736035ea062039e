"""The story of the rights demo: a burst is taken in at once, and drains at the threshold while things die.

::

    campaigns whose quotas are exactly their orders' sums · bad input of every sort: refused, or a dead letter
    the burst is posted, in lists and one by one, some of it twice · while it drains: SIGKILL a validator, start it
    again · SIGKILL the rights server, start it · SIGSTOP the primary until the others have replaced it, wake it ·
    SIGKILL the message centre, start it · drained: users spend · drained: returns and reversals · drained:
    an order one unit above what is left of the quota: refused
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.demo.chain import Chain
from services.demo.invariants import Accident, Crash, Intake, Sample, read_end
from services.demo.network import CENTER, SERVER, Consortium
from services.demo.orders import OrderBook
from services.demo.rights_machine import PRICES, Deed, Figures, Plan, with_repeats
from services.demo.shop import Said, Shop
from services.demo.watch import Watch
from services.messages.port import MessageCenter, Stats
from services.messages.store import NewMessage, Record, State
from services.rights.events import Event, Kind, SignedEvent, sign_events, signed_codec

BUSINESS_ACCOUNT = "shop"
"""The identity that plays the business server."""
FINAL_TIMEOUT_S = 60
DRAIN_TIMEOUT_S = 120
"""How much longer than twice its time at the rate a backlog may take; what still waits then shows in the invariants."""
POLL_S = 0.05
SAMPLE_S = 0.025
TURNS_MAX = 12
"""How many blocks are made for the sake of a turn."""
ACCIDENT_PARTS = 10
"""Between accidents so many parts of the burst drain."""
PROBE_USER = "probe"


@dataclass(frozen=True, slots=True)
class Script:
    """What will be played. ``run`` and ``salt`` make it another performance each time."""

    book: OrderBook
    source: str
    seed: int
    run: str
    salt: bytes
    plan: Plan
    misfits: tuple[Deed, ...]
    rate_per_s: float
    store: str

    @property
    def burst(self) -> list[Deed]:
        """What the burst posts, with what comes twice and what must fail."""
        return [*with_repeats(self.plan.burst, self.plan.repeats), *self.misfits]


class Performance:
    """One run of the story."""

    def __init__(
        self, script: Script, consortium: Consortium, chain: Chain, shop: Shop, center: MessageCenter, watch: Watch
    ) -> None:
        self.samples: list[Sample] = []
        self.answers: dict[str, tuple[str, str]] = {}
        self.crashed: list[tuple[str, Stats]] = []
        self.ended = 0
        self.said: list[tuple[Deed, Said]] = []
        self.accidents: dict[str, Accident] = {}
        self.intake = Intake(0, 0.0, 0)
        self.before = Figures()
        self.first_height = 0
        self.signer = business_signer(consortium)
        self._script = script
        self._consortium = consortium
        self._chain = chain
        self._shop = shop
        self._center = center
        self._watch = watch
        self._names = list(consortium.urls)
        self._stable = self._names[0]
        self._life = 0
        self._ended_before = 0

    async def play(self) -> None:
        """Play the story from the burst to the refused order."""
        plan = self._script.plan
        self._ended_before = ended_count(await self._center.stats())
        self._watch.begin(len(plan.deeds) + len(self._script.misfits))
        await self._post_burst()
        await self._post_bad_input()
        step = max(1, len(plan.burst) // ACCIDENT_PARTS)
        await self._drain_part(step)
        await self._kill_validator(step)
        await self._crash(SERVER)
        await self._freeze_primary()
        await self._crash(CENTER)
        self._watch.say("all are back; the backlog drains")
        await self._drain()
        for title, deeds in (("users redeem", plan.spending), ("returns and reversals", plan.returns)):
            self._watch.say(title)
            self.said += await self._shop.post_all(deeds)
            await self._drain()
        while await self._chain.height_at(self._stable) < self.accidents["killed"].to_height + TURNS_MAX:
            await self._pass_turn()  # a short day ends before the returned validator's turn to propose
        await self._probe_quota()

    async def sample_forever(self, center: MessageCenter) -> None:
        """Ask the message centre, over a connection of its own, how many deliveries it has made; again and again."""
        while True:
            life, asked_ns = self._life, time.monotonic_ns()
            try:
                stats = await center.stats()
            except Unreachable:
                pass  # it is being killed and started
            else:
                if life == self._life:
                    self.samples.append(Sample(life, asked_ns, time.monotonic_ns(), stats.delivered_count))
                    self._watch.done(ended_count(stats) - self._ended_before)
            await trio.sleep(SAMPLE_S)

    @property
    def crashes(self) -> tuple[Crash, ...]:
        """The programs that were killed, and how many messages have ended since."""
        return tuple(Crash(name, then.waiting, self.ended - ended_count(then)) for name, then in self.crashed)

    # -- the burst, and what is wrong on purpose ------------------------------------------------------------

    async def _post_burst(self) -> None:
        self._watch.say("the burst is posted")
        burst = self._script.burst
        began = time.monotonic()
        self.said += await self._shop.post_all(burst)
        seconds = time.monotonic() - began
        self.intake = Intake(len(burst), seconds, (await self._center.stats()).waiting)

    async def _post_bad_input(self) -> None:
        """Post what must be refused at once, and put what must end as a dead letter past the business server."""
        create = next(deed for deed in self._script.plan.burst if deed.kind is Kind.CREATE)
        name = f"{self._script.run}-bad"
        order = b'{"order":"%s","user":"u","campaign":"%s","amount":%s}'
        campaign = create.campaign.encode()
        unknown = f"{self._script.run}-none".encode()
        posts = {
            "malformed JSON": ("/orders", b'{"order":', "malformed"),
            "a negative amount": ("/orders", order % (name.encode(), campaign, b"-5"), "bad_field"),
            "an amount with a point": ("/orders", order % (name.encode(), campaign, b"1.5"), "bad_field"),
            "an unknown campaign": ("/orders", order % (name.encode(), unknown, b"5"), "unknown_campaign"),
            "the same event with another amount": (
                "/orders",
                order.replace(b'"u"', b'"%s"') % (create.reference.encode(), create.user.encode(), campaign, b"1"),
                "event_conflict",
            ),
        }
        for title, (path, body, code) in posts.items():
            self.answers[title] = ((await self._shop.post_raw(path, body)).code, code)
        await self._center.publish(self._dead_letters())

    def _dead_letters(self) -> list[NewMessage]:
        """Return messages that the business server never made: rubbish, and an event under a key that is not its."""
        time_ms = time.time_ns() // 1_000_000
        campaign = next(iter(self._script.plan.quotas))
        event = Event("create", f"{self._script.run}-forged", "1", "mallory", campaign, 1, [], time_ms)
        chain_id = self._consortium.genesis.chain_id()
        forged: SignedEvent = sign_events(PrivateKey.generate(), chain_id, self.signer.address, [event])[0]
        return [
            NewMessage(f"{self._script.run}-poison", "order:poison", b"\xff no event"),
            NewMessage(f"{self._script.run}-forged", "order:forged", signed_codec.encode(forged)),
        ]

    async def judge_dead_letters(self) -> None:
        """Look what became of the messages that nobody's business server made."""
        wanted = {"poison": "malformed", "forged": "bad_signature"}
        records = await self._center.find([f"{self._script.run}-{name}" for name in wanted])
        for (name, code), record in zip(wanted.items(), records, strict=True):
            self.answers[f"a {name} message"] = (_end_words(record), f"{State.DEAD} {code}")

    async def _probe_quota(self) -> None:
        """Post an order one unit above what is left of a quota."""
        name = next(iter(self._script.plan.quotas))
        campaign = integers_of(await self._chain.ask("campaign", {"campaign": name}))
        order = f"{self._script.run}-probe"
        amount = campaign["left"] + 1
        await self._shop.post_one(Deed(Kind.CREATE, order, user=PROBE_USER, campaign=name, amount=amount))
        await self._drain()
        (record,) = await self._center.find([f"create/{order}/1"])
        code = read_end(record.state, record.detail).code if record else ""
        self.answers["above the quota"] = (code, "quota_exceeded")
        self.ended = ended_count(await self._center.stats())

    # -- accidents -----------------------------------------------------------------------------------------

    async def _kill_validator(self, step: int) -> None:
        """Kill a validator under load, go on without it, and start it again."""
        name = self._names[-1]
        await self._consortium.kill(name)
        height = await self._chain.height_at(self._stable)
        self._watch.say(f"{name} was killed (SIGKILL); the others go on")
        await self._drain_part(step)
        await self._consortium.start(name)
        self._watch.say(f"{name} was started again and catches up")
        wanted = await self._chain.height_at(self._stable)
        reached = 0
        ends_at = trio.current_time() + FINAL_TIMEOUT_S
        while reached < wanted and trio.current_time() < ends_at:
            await trio.sleep(POLL_S)
            reached = await self._chain.height_at(name)
        self.accidents["killed"] = Accident(name, height, reached)

    async def _freeze_primary(self) -> None:
        """Freeze whoever is the primary, go on until another has taken its place, and wake it."""
        spared = (self._stable, self._names[-1])  # whom the demo talks to, and who had its accident
        while (primary := await self._chain.primary_at(self._stable)).primary in spared:
            await self._pass_turn()
        self._consortium.freeze(primary.primary)
        height = await self._chain.height_at(self._stable)
        self._watch.say(f"{primary.primary}, the primary, was frozen (SIGSTOP); the others replace it")
        try:
            for _ in range(TURNS_MAX):
                await self._pass_turn()
                now = await self._chain.height_at(self._stable)
                blocks = await self._chain.blocks_at(self._stable, first=height + 1, last=now)
                if any(block.view > 0 for block in blocks):
                    break
        finally:
            self._consortium.resume(primary.primary)
        to_height = await self._chain.height_at(self._stable)
        self.accidents["frozen"] = Accident(primary.primary, height, to_height)

    async def _crash(self, program: str) -> None:
        """Kill a program while messages wait, start it again, and see that more of them end."""
        stats = await self._center.stats()
        ended = ended_count(stats)
        await self._consortium.kill_program(program)
        if program == CENTER:
            self._life += 1
        self._watch.say(f"{program} was killed (SIGKILL)")
        await self._consortium.start_program(program)
        self._watch.say(f"{program} was started again")
        await self._until(lambda now: ended_count(now) > ended or not now.waiting, FINAL_TIMEOUT_S)
        self.crashed.append((program, stats))

    async def _pass_turn(self) -> None:
        """Make a block of our own: a new version of a price, the same as before."""
        item, price = next(iter(PRICES.items()))
        await self._chain.call(self.signer, "set_price", {"item": item, "price": price})

    # -- waiting -------------------------------------------------------------------------------------------

    async def _drain_part(self, count: int) -> None:
        """Wait until so many more messages have ended, or none waits."""
        wanted = ended_count(await self._center.stats()) + count
        await self._until(lambda now: ended_count(now) >= wanted or not now.waiting, FINAL_TIMEOUT_S)

    async def _drain(self) -> None:
        waiting = (await self._center.stats()).waiting
        await self._until(lambda now: not now.waiting, DRAIN_TIMEOUT_S + 2 * waiting / self._script.rate_per_s)

    async def _until(self, holds: Callable[[Stats], bool], timeout_s: float) -> Stats:
        """Ask the message centre until something holds, or time is up; return what it said last."""
        ends_at = trio.current_time() + timeout_s
        while True:
            try:
                stats = await self._center.stats()
                if holds(stats) or trio.current_time() > ends_at:
                    return stats
            except Unreachable:
                if trio.current_time() > ends_at:
                    raise
            await trio.sleep(POLL_S)


def business_signer(consortium: Consortium) -> Signer:
    """Return who signs for the business server's account."""
    return Signer.of(BUSINESS_ACCOUNT, consortium.key(BUSINESS_ACCOUNT))


def ended_count(stats: Stats) -> int:
    """Return how many messages have come to an end."""
    return stats.done + stats.refused + stats.dead


def integers_of(value: Value) -> dict[str, int]:
    """Return the integers of a query's answer by name."""
    if not isinstance(value, dict):
        raise PeerError("bad_answer", "the rights contract answers something else than figures")
    return {name: item for name, item in value.items() if isinstance(item, int)}


def _end_words(record: Record | None) -> str:
    return "unknown" if record is None else f"{record.state} {read_end(record.state, record.detail).code}"
