"""The rights server between a real queue and a real contract: every event ends once, in the way it should."""

import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import cast

import httpx
import msgspec
import pytest
import trio

from consensus.ledger.codec import decode
from consensus.ledger.keys import PrivateKey
from consensus.ledger.transaction import LANE_NAME_BYTES_MAX
from services.client.keystore import Signer
from services.messages.embedded import EmbeddedStore
from services.messages.port import Delivery, MessageCenter, Settlement, Stats, Subscription, Verdict
from services.messages.queue import Queue, QueueSettings, open_queue
from services.messages.store import NewMessage, State
from services.rights.events import Event, Kind
from services.rights.server import lane_prefix
from services.rights.shares import ShareRule, ShareTable
from tests.client.support import signer
from tests.rights.server_world import (
    RELAY,
    SHOP,
    WAIT_S,
    RunningServer,
    World,
    about,
    create,
    message,
    pause,
    redeem,
    said,
    settings_of,
    sign,
    world_in,
)

OTHER = signer("user-e")
FIGURES = ("created", "reserved", "available", "redeemed", "revoked", "clawedBack")


def draw_day(seed: int, *, orders: int = 120, users: int = 7) -> tuple[list[Event], dict[str, Counter[str]]]:
    """Return events in any order but that of their meaning, and the figures that every user ends with."""
    random, expected = Random(seed), {f"u{number}": Counter[str]() for number in range(users)}
    events: list[Event] = []
    for number in range(orders):
        user, order, amount = f"u{random.randrange(users)}", f"o{number}", random.randrange(2, 500)
        figures = expected[user]
        events.append(create(order, amount, user=user))
        figures["created"] += amount
        match random.randrange(5):
            case 0:
                figures["reserved"] += amount
            case 1:
                events.append(about(Kind.CANCEL, order))
                figures["revoked"] += amount
            case 2:
                part = random.randrange(1, amount)
                events.append(about(Kind.CANCEL, order, part))
                figures["revoked"] += part
                figures["reserved"] += amount - part
            case 3:
                events.append(about(Kind.COMPLETE, order))
                events.append(redeem(f"r{number}", amount, user=user))
                figures["redeemed"] += amount
            case 4:
                events.append(about(Kind.COMPLETE, order))
                figures["available"] += amount
    random.shuffle(events)
    return events, expected


async def check_totals(world: World, expected: dict[str, Counter[str]]) -> None:
    for user, figures in expected.items():
        if figures:
            balance = await world.query("balance", user=user)
            assert {name: balance[name] for name in FIGURES} == {name: figures[name] for name in FIGURES}
    totals = await world.query("totals")
    assert totals["created"] == sum(figures["created"] for figures in expected.values())
    assert totals["created"] == sum(int(str(totals[name])) for name in FIGURES[1:])


SERVERS = {
    "one": [{}],
    "two of one account": [{"name": "a"}, {"name": "b"}],
    "two accounts": [{"name": "a"}, {"name": "a", "account": OTHER}],
}


@pytest.mark.parametrize("servers", SERVERS)
async def test_a_day_in_any_order_ends_with_the_totals_of_a_model(tmp_path: Path, servers: str) -> None:
    patient = QueueSettings(rate_per_s=100_000, attempts_max=1_000, backoff_first_ms=10, backoff_max_ms=50)
    events, expected = draw_day(len(servers))
    async with world_in(tmp_path, patient) as world:
        await world.prepare(quota=1_000_000)
        await world.appoint(RELAY, OTHER)
        for changes in SERVERS[servers]:
            world.start(pack_max=20, lanes=2, linger_ms=5, **changes)
        for start in range(0, len(events), 50):
            await world.publish(*events[start : start + 50])
        stats = await world.drained()
        assert (stats.done, stats.refused, stats.dead) == (len(events), 0, 0)
        await check_totals(world, expected)


async def test_the_end_of_a_message_says_where_on_the_chain_it_stands(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.start()
        await world.publish(create("o1", 19), create("o2", 5))
        await world.drained()
        record = (await world.queue.find(["create/o1/1"]))[0]
        assert record is not None
        height, transaction_id, call_index, *result = record.detail.split(" ")
        assert result == ["created=19", "entry=0", "reserved=19"]
        outcome = await world.client.outcome(bytes.fromhex(transaction_id[2:]))
        assert outcome.height == int(height)
        [said] = outcome.receipts[int(call_index)].events
        assert decode(said.data) == {
            "server": SHOP.address,
            "user": "u1",
            "reference": "o1",
            "event": "1",
            "changes": {"created": 19, "reserved": 19},
        }


async def test_a_cancellation_before_its_order_is_parked_until_the_order_comes(tmp_path: Path) -> None:
    async with world_in(tmp_path, QueueSettings(rate_per_s=100_000, attempts_max=1_000, backoff_max_ms=100)) as world:
        await world.prepare()
        world.start()
        await world.publish(about(Kind.CANCEL, "o1"))
        with trio.fail_after(WAIT_S):
            while not (await world.queue.stats()).parked:
                await pause()
        await world.publish(create("o1"))
        await world.drained()
        assert await world.ends("cancel/o1/1", "create/o1/1") == ["done", "done"]
        assert (await world.query("order", order="o1"))["state"] == "REVOKED"


async def test_what_stays_without_its_order_is_a_dead_letter_and_rights_that_never_come_are_refused(
    tmp_path: Path,
) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.start()
        events = [about(Kind.CANCEL, "o1"), about(Kind.REVERSE, "r1"), redeem("r2", 5)]
        await world.publish(*events)
        await world.drained()
        ends = await world.ends(*(event.key for event in events))
        assert ends == ["dead unknown_order", "dead unknown_redemption", "refused insufficient_rights"]


async def test_the_contracts_refusals_are_refusals(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare(quota=150)
        await world.call("open_campaign", campaign="winter", quota=100)
        await world.call("close_campaign", campaign="winter")
        world.start()
        await world.publish(create("o1", 100), create("o2", 100), create("o3", campaign="spring"))
        await world.publish(create("o4", campaign="winter"), redeem("r1", items=[("tea", 1)]))
        await world.publish(msgspec.structs.replace(create("o1", 100), number="2"))
        await world.drained()
        ends = await world.ends(*(event.key for event in world.events))
        assert sorted(ends[:2]) == ["done", "refused quota_exceeded"]
        assert ends[2:] == [
            "refused unknown_campaign",
            "refused campaign_closed",
            "refused unknown_item",
            "refused order_state" if ends[0] == "done" else "refused quota_exceeded",
        ]


async def test_what_is_not_understood_is_a_dead_letter_and_its_lane_goes_on(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.start()
        poison = NewMessage("create/o1/0", "order:o1", b"\xc1 no event")
        await world.queue.publish([poison])
        signed = await world.publish(create("o1"), create("o2"))
        other = msgspec.structs.replace(signed[1], event=create("o3"))
        await world.queue.publish([message(other)])
        await world.drained()
        ends = await world.ends("create/o1/0", "create/o1/1", "create/o2/1", "create/o3/1")
        assert ends == ["dead malformed", "done", "done", "dead bad_proof"]


async def test_who_forges_the_servers_signature_reaches_nothing(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.start(linger_ms=100)
        await world.publish(create("o1"), create("o2"), key=PrivateKey.from_secret(78))
        good = await world.publish(create("o3"), create("o4"))
        # Under a root that the server did sign, a wrong signature beside the right one harms nobody.
        borrowed = msgspec.structs.replace(good[1], signature=bytes(64))
        await world.queue.publish([NewMessage("again", "order:again", message(borrowed).body)])
        await world.drained()
        ends = await world.ends(*(event.key for event in world.events), "again")
        assert ends == ["dead bad_signature", "dead bad_signature", "done", "done", "done"]
        assert (await world.query("totals"))["created"] == 200


async def test_a_server_that_nobody_appointed_leaves_dead_letters_that_are_done_once_it_is(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        await world.appoint(OTHER)
        world.start()
        await world.publish(create("o1"))
        await world.drained()
        assert await world.ends("create/o1/1") == ["dead not_appointed"]
        await world.appoint(RELAY)
        dead = await world.queue.ended(State.DEAD, 0, 10)
        assert await world.queue.replay([record.sequence for record in dead]) == 1
        await world.drained()
        assert await world.ends("create/o1/1") == ["done"]


async def test_a_root_that_the_chain_no_longer_takes_is_presented_again(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.start()
        first, second = sign(create("o1"), create("o2"))
        await world.queue.publish([message(first)])
        await world.drained()
        other = PrivateKey.from_secret(79).public.compressed
        await world.call("appoint", event_keys=[other], rights_servers=[RELAY.address])
        await world.queue.publish([message(second)])
        await world.drained()
        # Its root was known to be presented; only presenting it again says what is wrong with it now.
        assert await world.ends("create/o1/1", "create/o2/1") == ["done", "dead bad_signature"]


async def test_the_server_computes_shares_and_costs_by_its_table(tmp_path: Path) -> None:
    table = ShareTable({"summer": ShareRule(basis_points=500, cap=40)}, {"coffee": 7})
    async with world_in(tmp_path) as world:
        await world.prepare(rule=(10_000, 30))
        world.start(shares=table)
        await world.publish(create("o1", 399), create("o2", 620), about(Kind.COMPLETE, "o1"))
        await world.drained()
        await world.publish(redeem("r1", items=[("coffee", 2)]), redeem("r2", 13, items=[("coffee", 2)]))
        await world.drained()
        ends = await world.ends(*(event.key for event in world.events))
        # 5 % of 399 is 19; 5 % of 620 is 31 and above the contract's cap; two coffees are 14, and 13 is too little.
        assert ends == ["done", "refused share_too_large", "done", "done", "refused price_exceeds_amount"]
        balance = await world.query("balance", user="u1")
        assert (balance["created"], balance["available"], balance["redeemed"]) == (19, 5, 14)


async def test_without_a_table_the_contract_computes(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare(rule=(500, 30))
        world.start()
        await world.publish(create("o1", 620), about(Kind.COMPLETE, "o1"))
        await world.drained()
        await world.publish(redeem("r1", items=[("coffee", 1)]))
        await world.drained()
        balance = await world.query("balance", user="u1")
        assert (balance["created"], balance["redeemed"]) == (30, 30)


async def test_its_page_says_whether_it_is_well_and_its_figures(tmp_path: Path) -> None:
    port = free_port()
    async with world_in(tmp_path) as world, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as page:
        await world.prepare()
        server = world.start(health_port=port)
        await world.publish(create("o1"), create("o2"), create("o3", campaign="spring"))
        await world.drained()
        assert (await page.get("/healthz")).text == "ok\n"
        figures = (await page.get("/metrics")).text
        assert 'hansa_rights_events_total{verdict="done"} 2.0' in figures
        assert 'hansa_rights_events_total{verdict="refused"} 1.0' in figures
        await server.stop()
        nobody = Signer.of("nobody", PrivateKey.from_secret(80))
        world.start(health_port=port, account=nobody)
        await world.publish(create("o4"))
        with trio.fail_after(WAIT_S):
            while (answer := await well(page)) != (503, "unknown_account\n"):
                assert answer in ((0, ""), (200, "ok\n"))
                await pause()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def well(page: httpx.AsyncClient) -> tuple[int, str]:
    """Return what a server says of itself, or nothing while it is not there."""
    try:
        answer = await page.get("/healthz")
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text


# -- packing ---------------------------------------------------------------------------------------------


async def test_a_full_pack_goes_at_once_and_others_linger(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.start(pack_max=3, linger_ms=600_000)
        await world.publish(*(create(f"o{number}") for number in range(5)))
        with trio.fail_after(WAIT_S):
            while (await world.queue.stats()).done < 3:
                await pause()
        assert (await world.queue.stats()).leased == 2
        await world.publish(create("o5"))
        await world.drained()
        records = await world.queue.find([event.key for event in world.events])
        transactions = Counter(record.detail.split(" ")[1] for record in records if record is not None)
        assert sorted(transactions.values()) == [3, 3]


async def test_one_order_over_all_events_is_kept(tmp_path: Path) -> None:
    async with world_in(tmp_path, QueueSettings(rate_per_s=100_000, is_strict=True)) as world:
        await world.prepare()
        world.start(pack_max=7, linger_ms=1)
        await world.publish(*(create(f"o{number}") for number in range(40)))
        await world.drained()
        history = await world.client.query("rights", "history", {"user": "u1", "start": 0, "limit": 40})
        assert isinstance(history, list)
        assert [entry["reference"] for entry in history if isinstance(entry, dict)] == [f"o{n}" for n in range(40)]


@pytest.mark.parametrize(("is_strict", "under_way"), [(False, 2), (True, 1)])
async def test_a_silent_chain_holds_back_the_rest_at_the_centre(
    tmp_path: Path, is_strict: bool, under_way: int
) -> None:
    async with world_in(tmp_path, QueueSettings(rate_per_s=100_000, is_strict=is_strict)) as world:
        await world.prepare()
        world.node.is_deciding = False
        before = len(world.node.submitted)
        world.start(pack_max=10, lanes=2, window=30)
        await world.publish(*(create(f"o{number}", 1) for number in range(100)))
        with trio.fail_after(WAIT_S):
            while (stats := await world.queue.stats()).leased < 30 or len(world.node.submitted) < before + under_way:
                await pause()
        assert (stats.leased, stats.delivered_count) == (30, 30)
        assert len(set(world.node.submitted[before:])) == under_way
        decide(world)
        assert (await world.drained()).done == 100


# -- ends ------------------------------------------------------------------------------------------------


async def publish_to_silence(world: World, count: int) -> None:
    """Publish orders of 10 while the chain decides on nothing, and wait until a transaction of them is under way."""
    before = len(set(world.node.submitted))
    await world.publish(*(create(f"o{number}", 10) for number in range(count)))
    with trio.fail_after(WAIT_S):
        while len(set(world.node.submitted)) == before:
            await pause()


def decide(world: World) -> None:
    world.node.is_deciding = True
    world.node.wake()


async def test_told_to_stop_it_finishes_what_is_under_way_and_leaves_the_rest(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.node.is_deciding = False
        server = world.start(pack_max=4, lanes=1)
        await publish_to_silence(world, 10)
        server.stopping.set()
        decide(world)
        await server.stop()
        stats = await world.queue.stats()
        assert (stats.done, stats.waiting, stats.leased) == (4, 6, 0)
        world.start(name="next")
        assert (await world.drained()).done == 10


async def test_a_silent_chain_is_not_waited_for_at_the_end(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.node.is_deciding = False
        server = world.start(pack_max=4, lanes=1)
        server.stop_timeout_s = 0.1
        await publish_to_silence(world, 10)
        await server.stop()
        stats = await world.queue.stats()
        assert (stats.done, stats.waiting, stats.leased) == (0, 10, 0)
        world.start(name="next")
        decide(world)
        assert (await world.drained()).done == 10
        assert (await world.query("totals"))["created"] == 100


async def test_what_a_killed_server_had_submitted_is_done_once(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.prepare()
        world.node.is_deciding = False
        server = world.start(linger_ms=1)
        await publish_to_silence(world, 5)
        await server.kill()
        # The same name again: its transaction of before waits in the pool under the number that is next.
        world.start(linger_ms=1)
        decide(world)
        assert (await world.drained()).done == 5
        assert (await world.query("totals"))["created"] == 50


async def test_a_lease_that_runs_out_meanwhile_is_settled_under_the_new_one(tmp_path: Path) -> None:
    short = QueueSettings(rate_per_s=100_000, lease_ms=100)
    async with world_in(tmp_path, short) as world:
        await world.prepare()
        world.node.is_deciding = False
        world.start()
        await publish_to_silence(world, 5)
        with trio.fail_after(WAIT_S):
            while (await world.queue.stats()).delivered_count < 20:
                await pause()
        submitted = len(set(world.node.submitted))
        decide(world)
        assert (await world.drained()).done == 5
        assert len(set(world.node.submitted)) == submitted
        assert (await world.query("totals"))["created"] == 50


class SlowCenter:
    """The world's centre, which hears of the first verdicts only once their messages went out again."""

    def __init__(self, world: World) -> None:
        self.refused_count = 0
        self._world = world

    @asynccontextmanager
    async def consume(self, name: str, *, window: int) -> AsyncIterator["SlowCenter"]:
        async with self._world.queue.consume(name, window=window) as self._subscription:
            yield self

    async def stats(self) -> Stats:
        return await self._world.queue.stats()

    def __aiter__(self) -> Subscription:
        return self._subscription.__aiter__()

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        with trio.fail_after(WAIT_S):
            while not self.refused_count and await self._delivered() < 2 * len(settlements):
                await pause()
        accepted = await self._subscription.settle(settlements)
        self.refused_count += accepted.count(False)
        return accepted

    async def _delivered(self) -> int:
        return (await self.stats()).delivered_count


async def test_what_is_delivered_again_while_it_is_settled_is_settled_again(tmp_path: Path) -> None:
    async with world_in(tmp_path, QueueSettings(rate_per_s=100_000, lease_ms=100)) as world:
        await world.prepare()
        before = len(set(world.node.submitted))
        center = SlowCenter(world)
        server = RunningServer(world, settings_of(tmp_path), cast(MessageCenter, center))
        world.nursery.start_soon(server.run)
        await world.publish(create("o1"), create("o2"))
        assert (await world.drained()).done == 2
        assert center.refused_count >= 2
        assert len(set(world.node.submitted)) == before + 1
        await server.stop()


class LateCenter(SlowCenter):
    """The world's centre, whose answer to a verdict comes after the message's next delivery."""

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        before = await self._delivered()
        accepted = await self._subscription.settle(settlements)
        if settlements[0].verdict is Verdict.PARK and not self.refused_count:
            self.refused_count = 1  # once is enough
            while await self._delivered() == before:
                await pause()
        return accepted


async def test_the_next_delivery_of_what_was_parked_may_come_before_the_answer_to_that(tmp_path: Path) -> None:
    """Passed over, it would wait for the end of its lease."""
    rules = QueueSettings(rate_per_s=100_000, attempts_max=2, backoff_first_ms=10, lease_ms=3_600_000)
    async with world_in(tmp_path, rules) as world:
        await world.prepare()
        server = RunningServer(world, settings_of(tmp_path), cast(MessageCenter, LateCenter(world)))
        world.nursery.start_soon(server.run)
        await world.publish(about(Kind.CANCEL, "o1"))
        with trio.fail_after(20):
            assert (await world.drained()).dead == 1
        await server.stop()


class WipedCenter:
    """A centre that begins anew under a running server: after one delivery comes what another queue has."""

    def __init__(self, before: Queue, after: Queue) -> None:
        self.wiped = trio.Event()
        self._before, self._after = before, after
        self._has_delivered = False

    @asynccontextmanager
    async def consume(self, name: str, *, window: int) -> AsyncIterator["WipedCenter"]:
        async with (
            self._before.consume(name, window=window) as self._first,
            self._after.consume(name, window=window) as self._second,
        ):
            yield self

    async def stats(self) -> Stats:
        return await self._before.stats()

    def __aiter__(self) -> "WipedCenter":
        return self

    async def __anext__(self) -> Delivery:
        if not self._has_delivered:
            self._has_delivered = True
            return await self._first.__anext__()
        await self.wiped.wait()
        return await self._second.__anext__()

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        return await (self._second if self.wiped.is_set() else self._first).settle(settlements)


async def test_another_message_under_an_old_sequence_gets_a_verdict_of_its_own(tmp_path: Path) -> None:
    rules = QueueSettings(rate_per_s=100_000)
    async with world_in(tmp_path, rules) as world, open_queue(EmbeddedStore(tmp_path / "anew"), rules) as anew:
        await world.prepare()
        world.node.is_deciding = False
        center = WipedCenter(world.queue, anew)
        server = RunningServer(world, settings_of(tmp_path), cast(MessageCenter, center))
        world.nursery.start_soon(server.run)
        before = len(world.node.submitted)
        await world.publish(create("o1", campaign="none"))
        with trio.fail_after(WAIT_S):
            while len(world.node.submitted) == before:
                await pause()
            await anew.publish([message(sign(create("o2"))[0])])
            center.wiped.set()
            while not (await anew.stats()).delivered_count:
                await pause()
            decide(world)
            while (await anew.stats()).waiting:
                await pause()
        (record,) = await anew.find(["create/o2/1"])
        assert record is not None
        assert said(record) == "done"
        assert (await world.queue.stats()).waiting == 1, "nobody is told of it any more"
        await server.stop()


def test_lanes_are_named_after_the_server() -> None:
    assert lane_prefix("server-1") == lane_prefix("server-1") != lane_prefix("server-2")
    assert len(lane_prefix("server-1") + b"255") <= LANE_NAME_BYTES_MAX
