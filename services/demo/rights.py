"""The rights demo: real orders through the rights contract, while one validator dies and a primary freezes.

The story, on a network of its own::

    open a campaign whose quota is exactly the orders' sum
    a quarter of the events · SIGKILL a validator with transactions in flight · a quarter without it ·
    start it again, wait until it has caught up · SIGSTOP the primary · events until the others have
    replaced it · wake it · the rest · an order one unit above what is left of the quota: refused

Then facts are gathered from every node and judged (:mod:`services.demo.invariants`).
"""

import json
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError, LocalError, PeerError
from consensus.ledger.genesis import Genesis
from consensus.ledger.transaction import Transaction, make_call
from services.client.errors import Unreachable
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.demo.card import Report, Watch, draw_card, open_watch, report_json
from services.demo.chain import Chain, Seal, open_chain
from services.demo.invariants import Accident, Facts, NodeFacts, Sent, judge
from services.demo.network import Consortium, OpenNetwork
from services.demo.orders import OrderBook, classify, load_orders, parse_lines
from services.demo.rights_machine import (
    Batch,
    Figures,
    Schedule,
    campaign_of,
    expected_figures,
    pack,
    plan_events,
)
from services.demo.synthetic import synthetic_day

SERVER = "shop"
"""The identity that plays the business server."""
LANE_COUNT = 8
CALLS_MAX = 20
FRAME_TRANSACTIONS = 4
FINAL_TIMEOUT_MS = 60_000
TURNS_MAX = 12
"""How many blocks are made for the sake of a turn where the schedule has no more events."""
AGREE_ATTEMPTS = 100
AGREE_PAUSE_S = 0.1
PROVEN_TRANSACTIONS = 3

T = TypeVar("T")

OpenChain = Callable[[Genesis, Mapping[str, str], Sequence[str]], AbstractAsyncContextManager[Chain]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be played. ``run`` and ``salt`` make it another performance each time."""

    book: OrderBook
    source: str
    seed: int
    run: str
    salt: bytes
    schedule: Schedule
    batches: tuple[Batch, ...]


def main(
    *,
    open_network: OpenNetwork,
    orders: Path | None = None,
    limit: int | None = None,
    seed: int = 1,
    as_json: bool = False,
    chain_opener: OpenChain = open_chain,
) -> int:
    """Play the demo and print its card, or one JSON object; return 0 when every invariant holds, else 1.

    Args:
        open_network: starts the network for the time of the demo.
        orders: a CSV file or a folder of them; without one a synthetic day is drawn from ``seed``.
        limit: at most so many orders are played; all lines are classified nevertheless.
        seed: what decides delays, redemptions, repeats and the synthetic day.
        as_json: print one JSON object instead of the card.
        chain_opener: connects to the network.

    Raises:
        LocalError: ``bad_orders``, before anything is started; what the network's start raises.
        Unreachable, PeerError: the network broke in a way that leaves nothing to judge.
    """
    plan = make_plan(orders, limit=limit, seed=seed)
    return trio.run(_perform, plan, open_network, chain_opener, as_json)


def make_plan(orders: Path | None, *, limit: int | None, seed: int) -> Plan:
    """Read or draw the orders and make the schedule.

    Raises:
        LocalError: ``bad_orders``.
    """
    if orders is None:
        source = f"a synthetic day (seed {seed})"
        book = classify(parse_lines(synthetic_day(seed), "synthetic day"))
    else:
        source, book = str(orders), load_orders(orders)
    played = book if limit is None else _first_orders(book, limit)
    if not played.orders:
        raise LocalError("bad_orders", f"{source} holds no order of a named customer")
    salt = secrets.token_bytes(16)
    schedule = plan_events(played, seed=seed, salt=salt)
    # Small enough that every part of the story has some, whatever the number of events.
    calls_max = max(1, min(CALLS_MAX, len(schedule.events) // 80))
    batches = pack(schedule.events, lane_count=LANE_COUNT, calls_max=calls_max)
    return Plan(played, source, seed, secrets.token_hex(4), salt, schedule, tuple(batches))


async def _perform(plan: Plan, open_network: OpenNetwork, chain_opener: OpenChain, as_json: bool) -> int:
    began = time.monotonic()
    with open_watch(is_quiet=as_json) as watch:
        watch.say("starting the network")
        async with open_network() as consortium:
            started = time.monotonic()
            names = list(consortium.urls)
            if len(names) < 4:
                raise LocalError("bad_validators", "one of at least 4 validators may fail at a time")
            async with chain_opener(consortium.genesis, consortium.urls, names[:1]) as chain:
                performance = Performance(plan, consortium, chain, watch)
                await performance.play()
                played = time.monotonic()
                facts = await performance.gather()
                proven = await performance.prove()
            report = Report(
                facts=facts,
                schedule=plan.schedule,
                source=plan.source,
                seed=plan.seed,
                proven_count=proven,
                start_s=started - began,
                play_s=played - started,
                place=consortium.place,
            )
    invariants = judge(facts)
    if as_json:
        click.echo(json.dumps(report_json(report, invariants)))
    else:
        draw_card(report, invariants)
    return 0 if all(invariants.values()) else 1


class Performance:
    """One run of the story."""

    def __init__(self, plan: Plan, consortium: Consortium, chain: Chain, watch: Watch) -> None:
        self._plan = plan
        self._consortium = consortium
        self._chain = chain
        self._watch = watch
        self._names = list(consortium.urls)
        self._stable = self._names[0]
        self._campaign = campaign_of(plan.run)
        self._signer = Signer.of(SERVER, consortium.key(SERVER))
        self._lanes = [f"demo{number}".encode() for number in range(LANE_COUNT)]
        self._next: dict[bytes, int] = {}
        self._batches = list(reversed(plan.batches))
        self._sent: list[Sent] = []
        self._refusals: list[str] = []
        self._first_height = 0
        self._before = Figures()
        self._probe = b""
        self._killed: Accident | None = None
        self._frozen: Accident | None = None

    async def play(self) -> None:
        """Play the story from the campaign's opening to the refused order."""
        total = len(self._plan.batches)
        self._watch.begin(len(self._plan.schedule.events))
        self._first_height = await self._chain.height_at(self._stable) + 1
        self._before = figures_of(await self._ask("totals", {"server": self._signer.address}))
        quota = self._plan.schedule.quota
        await self._one_call("open_campaign", {"campaign": self._campaign, "quota": quota})
        await self._send_and_wait(total // 4)
        await self._play_killed(total // 4)
        await self._play_frozen(math.ceil(total / 40))
        self._watch.say("all validators are back; the rest of the day")
        await self._send_and_wait(len(self._batches))
        while self._killed and await self._chain.height_at(self._stable) < self._killed.to_height + TURNS_MAX:
            await self._pass_turn()  # a short day ends before the returned validator's turn to propose
        campaign = await self._ask("campaign", {"campaign": self._campaign})
        left = _integers(campaign)["quota"] - _integers(campaign)["created"] + _integers(campaign)["revoked"]
        probe: dict[str, Value] = {"campaign": self._campaign, "order": f"{self._plan.run}-probe", "user": "probe"}
        self._probe = await self._one_call("create", {**probe, "amount": left + 1, "event": "create"})

    async def _play_killed(self, count: int) -> None:
        """Kill a validator while transactions are in flight, go on without it, and start it again."""
        name = self._names[-1]
        half = max(1, count // 2)
        ids = await self._send(half)
        await self._consortium.kill(name)
        height = await self._chain.height_at(self._stable)
        self._watch.say(f"{name} was killed (SIGKILL); the others go on")
        await self._chain.wait_final(ids, timeout_ms=FINAL_TIMEOUT_MS)
        self._watch.done(self._calls_sent())
        await self._send_and_wait(count - half)
        await self._consortium.start(name)
        self._watch.say(f"{name} was started again and catches up")
        last = [sent.transaction_id for sent in self._sent[-1:]]
        await self._chain.finals_at(name, last, timeout_ms=FINAL_TIMEOUT_MS)
        self._killed = Accident(name, height, await self._chain.height_at(name))

    async def _play_frozen(self, step: int) -> None:
        """Freeze whoever is the primary, go on until another has taken its place, and wake it."""
        spared = (self._stable, self._names[-1])  # whom the demo talks to, and who had its accident
        while (primary := await self._chain.primary_at(self._stable)).primary in spared:
            await self._pass_turn()
        self._consortium.freeze(primary.primary)
        height = await self._chain.height_at(self._stable)
        self._watch.say(f"{primary.primary}, the primary, was frozen (SIGSTOP); the others replace it")
        try:
            replaced, turns = False, 0
            while not replaced and (self._batches or turns < TURNS_MAX):
                turns += 1
                await (self._send_and_wait(step) if self._batches else self._pass_turn())
                now = await self._chain.height_at(self._stable)
                blocks = await self._chain.blocks_at(self._stable, first=height + 1, last=now)
                replaced = any(block.view > 0 for block in blocks)
        finally:
            self._consortium.resume(primary.primary)
        self._frozen = Accident(primary.primary, height, await self._chain.height_at(self._stable))

    async def gather(self) -> Facts:
        """Ask every node for what the invariants look at."""
        if self._killed is None or self._frozen is None:
            raise InvariantError("facts are gathered after the story")
        self._watch.say("comparing the nodes")
        ids = [sent.transaction_id for sent in self._sent]
        for name in self._names:
            try:
                await self._chain.finals_at(name, ids, timeout_ms=FINAL_TIMEOUT_MS // 4)
            except Unreachable:
                continue  # what is missing shows in the receipts
        seals = await self._agree(self._seal)
        heights = await self._agree(self._chain.height_at)
        nodes: dict[str, NodeFacts] = {}

        async def look(name: str) -> None:
            receipts = [tuple(await self._chain.receipts_at(name, item)) for item in ids]
            nodes[name] = NodeFacts(heights[name], seals[name], tuple(receipts))

        with single_errors():
            async with trio.open_nursery() as nursery:
                for name in self._names:
                    nursery.start_soon(look, name)
        expected = expected_figures(self._plan.book, self._plan.schedule, salt=self._plan.salt)
        campaign = await self._ask("campaign", {"campaign": self._campaign})
        last = max(heights.values())
        return Facts(
            book=self._plan.book,
            expected=expected,
            before=self._before,
            after=figures_of(await self._ask("totals", {"server": self._signer.address})),
            balances=await self._balances(list(expected)),
            quota=self._plan.schedule.quota,
            campaign=_integers(campaign),
            probe=(await self._chain.receipts_at(self._stable, self._probe))[0],
            sent=tuple(self._sent),
            refusals=tuple(self._refusals),
            nodes={name: nodes[name] for name in self._names},
            blocks=await self._chain.blocks_at(self._stable, first=self._first_height, last=last),
            killed=self._killed,
            frozen=self._frozen,
        )

    async def prove(self) -> int:
        """Check the proofs of a few transactions spread over the story; return how many receipts they had."""
        step = max(1, len(self._sent) // PROVEN_TRANSACTIONS)
        return sum([await self._chain.prove(sent.transaction_id) for sent in self._sent[::step][:PROVEN_TRANSACTIONS]])

    # -- sending -------------------------------------------------------------------------------------------

    async def _send_and_wait(self, count: int) -> None:
        while count > 0 and self._batches:
            ids = await self._send(min(count, FRAME_TRANSACTIONS))
            count -= FRAME_TRANSACTIONS
            await self._chain.wait_final(ids, timeout_ms=FINAL_TIMEOUT_MS)
            self._watch.done(self._calls_sent())

    async def _send(self, count: int) -> list[bytes]:
        """Submit the next transactions of the schedule and return the ids of those that were accepted."""
        batches = [self._batches.pop() for _ in range(min(count, len(self._batches)))]
        transactions = [await self._sign(batch) for batch in batches]
        codes = await self._chain.submit(transactions)
        self._refusals += [code for code in codes if code]
        for transaction, batch in zip(transactions, batches, strict=True):
            self._sent.append(Sent(transaction.id, batch))
        return [item.id for item, code in zip(transactions, codes, strict=True) if not code]

    async def _sign(self, batch: Batch) -> Transaction:
        calls = [make_call("rights", event.kind.value, event.arguments(self._plan.run)) for event in batch.events]
        lane = self._lanes[batch.lane]
        return self._chain.sign(self._signer, calls, lane=lane, sequence=await self._number(lane))

    async def _one_call(self, method: str, arguments: dict[str, Value]) -> bytes:
        """Make one call outside the schedule, wait until it is final, and return its transaction's id."""
        lane = self._lanes[0]
        call = make_call("rights", method, arguments)
        transaction = self._chain.sign(self._signer, [call], lane=lane, sequence=await self._number(lane))
        codes = await self._chain.submit([transaction])
        if codes[0]:
            raise PeerError(codes[0], f"the network refuses {method}")
        await self._chain.wait_final([transaction.id], timeout_ms=FINAL_TIMEOUT_MS)
        return transaction.id

    async def _pass_turn(self) -> None:
        """Make a block without an event of the schedule: a new version of the campaign's rule, the same as before."""
        await self._one_call("change_rule", {"campaign": self._campaign})

    async def _number(self, lane: bytes) -> int:
        if lane not in self._next:
            self._next[lane] = await self._chain.lane_next(self._signer, lane)
        self._next[lane] += 1
        return self._next[lane] - 1

    def _calls_sent(self) -> int:
        return sum(len(sent.batch.events) for sent in self._sent)

    # -- looking -------------------------------------------------------------------------------------------

    async def _ask(self, method: str, arguments: dict[str, Value]) -> Value:
        return await self._chain.query_at(self._stable, "rights", method, arguments)

    async def _balances(self, users: Sequence[str]) -> dict[str, Figures]:
        server: dict[str, Value] = {"server": self._signer.address}
        return {user: figures_of(await self._ask("balance", {"user": user, **server})) for user in users}

    async def _seal(self, node: str) -> Seal:
        height = await self._chain.height_at(self._stable)
        return await self._chain.seal_at(node, f"rights/campaign/{self._campaign}", height_min=height)

    async def _agree(self, look: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """Look at all nodes until they show the same, or give up after a while and return what they show."""
        found: dict[str, T] = {}
        for _ in range(AGREE_ATTEMPTS):
            found = {name: await look(name) for name in self._names}
            if len(set(found.values())) == 1:
                break
            await trio.sleep(AGREE_PAUSE_S)
        return found


def figures_of(value: Value) -> Figures:
    """Return a balance out of a query's answer."""
    integers = _integers(value)
    return Figures(**{name: integers[name] for name in Figures.__slots__})


def _integers(value: Value) -> dict[str, int]:
    """Return the integers of a query's answer by name."""
    if not isinstance(value, dict):
        raise PeerError("bad_answer", "the rights contract answers something else than figures")
    return {name: item for name, item in value.items() if isinstance(item, int)}


def _first_orders(book: OrderBook, limit: int) -> OrderBook:
    orders = book.orders[:limit]
    numbers = {order.number for order in orders}
    return replace(
        book, orders=orders, cancellations=tuple(item for item in book.cancellations if item.order in numbers)
    )
