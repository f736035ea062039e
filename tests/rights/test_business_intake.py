"""The intake before a message centre that answers when the test lets it: gathering, bounds, errors, durability."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from consensus.ledger.errors import HansaError
from services.client.errors import Refused, Unreachable
from services.messages.port import PUBLISH_MESSAGES_MAX, MessageCenter
from services.messages.store import NewMessage, Published
from services.rights import intake as product
from services.rights.answers import Taken
from services.rights.events import BATCH_EVENTS_MAX, Event, Kind, decode_signed_untrusted
from services.rights.intake import PUBLISHES_MAX, Intake
from services.rights.metrics import BusinessMetrics
from tests.client.support import CONSORTIUM
from tests.rights.business_world import EVENT_KEY, SHOP


@dataclass
class _Publish:
    messages: Sequence[NewMessage]
    may_go: trio.Event = field(default_factory=trio.Event)
    error: HansaError | None = None


class HeldCenter:
    """Keeps each publish until it is let go: no real centre can be stopped between two lines."""

    def __init__(self) -> None:
        self.send, self.publishes = trio.open_memory_channel[_Publish](100)

    async def publish(self, messages: Sequence[NewMessage]) -> list[Published]:
        publish = _Publish(messages)
        self.send.send_nowait(publish)
        await publish.may_go.wait()
        if publish.error is not None:
            raise publish.error
        return [Published(number, is_new="old" not in message.key) for number, message in enumerate(messages)]


@dataclass
class Held:
    """An intake before a held centre."""

    intake: Intake
    center: HeldCenter
    nursery: trio.Nursery
    answers: list[object] = field(default_factory=list)

    async def take(self, *names: str) -> None:
        """Post orders, and note the answers together."""
        try:
            answers = await self.intake.take([event(name) for name in names])
        except HansaError as error:
            self.answers.append(error.code)
        else:
            taken = [answer for answer in answers if isinstance(answer, Taken)]
            self.answers.append([f"{answer.event_id}{'' if answer.is_new else ' again'}" for answer in taken])

    async def post(self, *names: str) -> None:
        """Post orders beside the test, and return when that waits."""
        self.nursery.start_soon(self.take, *names)
        await trio.testing.wait_all_tasks_blocked()

    async def next(self) -> _Publish:
        """Return the next publish."""
        with trio.fail_after(20):
            return await self.center.publishes.receive()

    async def let_go(self, publish: _Publish, error: HansaError | None = None) -> None:
        """Let a publish end."""
        publish.error = error
        publish.may_go.set()
        await trio.testing.wait_all_tasks_blocked()


def event(name: str) -> Event:
    return Event(Kind.CREATE.value, name, "1", "u", "summer", 1, [], 1)


@asynccontextmanager
async def held() -> AsyncIterator[Held]:
    center = HeldCenter()
    filled: MessageCenter = center  # type: ignore[assignment]
    intake = Intake(
        filled, BusinessMetrics(), key=EVENT_KEY, chain_id=CONSORTIUM.genesis.chain_id(), server=SHOP.address
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        yield Held(intake, center, nursery)
        nursery.cancel_scope.cancel()


async def test_nothing_is_answered_before_it_is_kept() -> None:
    async with held() as world:
        await world.post("a")
        publish = await world.next()
        assert world.answers == []
        await world.let_go(publish)
        assert world.answers == [["create/a/1"]]


async def test_what_comes_while_publishes_are_under_way_goes_together_into_the_next() -> None:
    async with held() as world:
        for name in ("a", "b", "c", "d"):
            await world.post(name)
        await world.post("e", "f")
        first, second = await world.next(), await world.next()
        assert [message.key for message in (*first.messages, *second.messages)] == ["create/a/1", "create/b/1"]
        with pytest.raises(trio.WouldBlock):
            world.center.publishes.receive_nowait()
        assert PUBLISHES_MAX == 2
        await world.let_go(second)
        third = await world.next()
        assert [message.key for message in third.messages] == [f"create/{name}/1" for name in "cdef"]
        roots = {decode_signed_untrusted(message.body).root for message in third.messages}
        assert len(roots) == 1
        await world.let_go(third)
        await world.let_go(first)
        assert world.answers[0] == ["create/b/1"]
        assert world.answers[-1] == ["create/a/1"]
        assert sorted(map(str, world.answers[1:-1])) == [
            "['create/c/1']",
            "['create/d/1']",
            "['create/e/1', 'create/f/1']",
        ]


async def test_each_gets_its_own_answer_out_of_a_publish_of_many() -> None:
    async with held() as world:
        await world.post("a")
        await world.post("b")
        await world.post("c", "old-1")
        await world.post("old-2")
        await world.post("d")
        for _ in range(3):
            await world.let_go(await world.next())
        assert ["create/c/1", "create/old-1/1 again"] in world.answers
        assert ["create/old-2/1 again"] in world.answers
        assert ["create/d/1"] in world.answers


async def test_a_publish_and_a_signature_have_their_bounds() -> None:
    async with held() as world:
        for number in range(PUBLISHES_MAX):
            await world.post(f"first-{number}")
        blocked = [await world.next() for _ in range(PUBLISHES_MAX)]
        for post in range(3):
            await world.post(*(f"{post}-{number}" for number in range(400)))
        await world.let_go(blocked[0])
        publish = await world.next()
        assert len(publish.messages) == 800
        assert len(publish.messages) <= PUBLISH_MESSAGES_MAX
        counts: dict[bytes, int] = {}
        for message in publish.messages:
            root = decode_signed_untrusted(message.body).root
            counts[root] = counts.get(root, 0) + 1
        assert list(counts.values()) == [256, 256, 256, 32]
        assert BATCH_EVENTS_MAX == 256


async def test_one_error_is_the_answer_of_all_that_went_together() -> None:
    async with held() as world:
        for name in ("a", "b", "c", "d"):
            await world.post(name)
        first, second = await world.next(), await world.next()
        await world.let_go(first, Refused("store_full", "full"))
        third = await world.next()
        await world.let_go(third, Unreachable("gone", code="center_unreachable"))
        await world.let_go(second)
        assert world.answers == ["store_full", "center_unreachable", "center_unreachable", ["create/b/1"]]
        await world.post("e")
        await world.let_go(await world.next())
        assert world.answers[-1] == ["create/e/1"]


async def test_who_leaves_is_published_all_the_same_and_hinders_nobody() -> None:
    async with held() as world:
        with trio.CancelScope() as scope:
            world.nursery.start_soon(world.take, "b")
            scope.cancel()
            await world.intake.take([event("a")])
        await trio.testing.wait_all_tasks_blocked()
        publish = await world.next()
        assert {message.key for message in publish.messages} == {"create/a/1", "create/b/1"}
        await world.let_go(publish)
        assert world.answers == [["create/b/1"]]


async def test_no_more_waits_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "WAITING_EVENTS_MAX", 4)
    async with held() as world:
        await world.post("a", "b")
        await world.post("c")
        await world.post("d", "e")
        assert world.answers == ["intake_full"]
        await world.post("d")
        await world.let_go(await world.next())
        await world.post("e", "f")
        assert world.answers == ["intake_full", ["create/a/1", "create/b/1"]]
