"""The client of the message centre: it fills the port, outlives the centre, and never waits without end."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError
from services.client.errors import Refused, Unreachable
from services.messages import link as link_module
from services.messages import wire
from services.messages.center import address_of, listen
from services.messages.line import Line, connect, next_frame
from services.messages.link import LinkSubscription, open_link
from services.messages.port import Delivery, MessageCenter, Settlement, Subscription, Verdict
from services.messages.queue import QueueSettings
from services.messages.queuemachine import CONSUMER_LOST
from services.messages.store import NewMessage, Published, State
from tests.messages.centers import PATIENCE_S, TOKEN, messages, peer_at, running_center


def done(delivery: Delivery) -> Settlement:
    return Settlement(delivery.sequence, delivery.fence, Verdict.DONE, "17 0xab 4")


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    with trio.fail_after(PATIENCE_S):
        return [await anext(subscription) for _ in range(count)]  # type: ignore[call-overload]


@asynccontextmanager
async def stand_in(answers: bool = True) -> AsyncIterator[tuple[str, list[Line]]]:
    """A listener that welcomes and then says nothing by itself; a broken centre, which the real one is not."""
    lines: list[Line] = []
    with listen("127.0.0.1:0", token="") as listening:
        listening.setblocking(False)
        accepting = trio.socket.from_stdlib_socket(listening)

        async def serve() -> None:
            while True:
                accepted, _ = await accepting.accept()
                line = Line(socket.socket(fileno=accepted.detach()))
                reader = wire.Reader(wire.hello_decoder, payload_bytes_max=wire.HELLO_BYTES_MAX)
                await next_frame(line, reader)
                if answers:
                    line.send(wire.encode(wire.Welcome(wire.VERSION, is_same_machine=True)))
                lines.append(line)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            yield address_of(listening), lines
            nursery.cancel_scope.cancel()
        for line in lines:
            line.close()


async def test_it_fills_the_port(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, open_link(running.address, token=TOKEN, name="test") as link:
        center: MessageCenter = link
        published = await center.publish(messages(3))
        assert published == [Published(sequence, is_new=True) for sequence in (1, 2, 3)]
        assert await center.publish(messages(1)) == [Published(1, is_new=False)]
        assert (await center.publish([NewMessage("m0", "lane0", b"other")]))[0].is_conflict
        async with center.consume("consumer", window=3) as subscription:
            deliveries = await take(subscription, 3)
            assert [(one.key, one.lane, one.body, one.attempt) for one in deliveries] == [
                (one.key, one.lane, one.body, 1) for one in messages(3)
            ]
            verdicts = [done(deliveries[0]), Settlement(2, deliveries[1].fence, Verdict.DEAD, "malformed")]
            assert await subscription.settle(verdicts) == [True, True]
            assert await subscription.settle(verdicts) == [False, False]
            record, unknown = await center.find(["m0", "m9"])
            assert record is not None
            assert (record.state, record.detail, unknown) == (State.DONE, "17 0xab 4", None)
            assert [letter.key for letter in await center.ended(State.DEAD, 0, 10)] == ["m1"]
            assert await center.replay([2]) == 1
            stats = await center.stats()
            assert (stats.done, stats.dead, stats.waiting, stats.consumers) == (1, 0, 2, 1)
            (again,) = await take(subscription, 1)
            await subscription.settle([Settlement(2, again.fence, Verdict.DEAD, "malformed")])
            assert await center.discard([1, 2]) == 1
            assert await center.find(["m1"]) == [None]


async def test_only_a_consumer_that_vanishes_blames_what_it_held(tmp_path: Path) -> None:
    settings = QueueSettings(rate_per_s=1_000_000, losses_max=2)
    async with running_center(tmp_path, settings) as running, open_link(running.address, token=TOKEN, name="t") as link:
        await link.publish(messages(1))
        for _ in range(3):
            async with link.consume("leaves", window=1) as subscription:
                await take(subscription, 1)
        assert (await link.stats()).waiting == 1
        for _ in range(2):
            async with peer_at(running.address, window=1) as peer:
                while not isinstance(await peer.hear(), wire.Deliver):
                    pass
        with trio.fail_after(PATIENCE_S):
            while not (await link.stats()).dead:
                pass
        (letter,) = await link.ended(State.DEAD, 0, 10)
        assert letter.detail == CONSUMER_LOST


async def test_what_the_centre_refuses_is_refused(tmp_path: Path) -> None:
    settings = QueueSettings(rate_per_s=1_000_000, waiting_max=1)
    async with running_center(tmp_path, settings) as running, open_link(running.address, token=TOKEN, name="t") as link:
        with pytest.raises(Refused) as refusal:
            await link.publish(messages(2))
        assert refusal.value.code == "store_full"
        assert await link.publish(messages(1)) == [Published(1, is_new=True)]


async def test_what_cannot_be_sent_is_our_own_mistake(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, open_link(running.address, token=TOKEN, name="t") as link:
        for count in (0, 1_001):
            with pytest.raises(LocalError) as refusal:
                await link.publish(messages(count))
            assert refusal.value.code == "too_large"
        for window in (0, 1_025):
            with pytest.raises(LocalError) as refusal:
                link.consume("t", window=window)
            assert refusal.value.code == "bad_window"
    with pytest.raises(LocalError) as refusal:
        async with open_link("26801", name="t"):
            raise AssertionError
    assert refusal.value.code == "bad_address"


async def test_a_wrong_token_is_told_to_publisher_and_consumer(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, open_link(running.address, token="wrong", name="t") as link:
        with pytest.raises(Refused) as refusal:
            await link.publish(messages(1))
        assert refusal.value.code == "bad_token"
        async with link.consume("t", window=1) as subscription:
            with pytest.raises(Refused) as refusal:
                await take(subscription, 1)
            assert refusal.value.code == "bad_token"


async def test_receipt_is_confirmed_before_anybody_looks(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, open_link(running.address, token=TOKEN, name="t") as link:
        await link.publish(messages(20))
        async with link.consume("t", window=10) as subscription:
            with trio.fail_after(PATIENCE_S):
                while (await link.stats()).delivered_count < 10:
                    pass
            assert (await link.stats()).leased == 10
            times = list(received_ns(subscription))
            assert len(times) == 10
            assert times == sorted(times)


@pytest.mark.parametrize("host", ["centre..example", f"{64 * 'a'}.example"])
async def test_a_name_that_no_host_can_have_is_unreachable(host: str) -> None:
    with pytest.raises(Unreachable) as refused:
        await connect(f"{host}:1")
    assert refused.value.code == "center_unreachable"


async def test_the_centre_comes_back_under_it(tmp_path: Path) -> None:
    """While it is away publishing fails at once; then it works again, and what was leased comes again."""
    address = f"unix:{tmp_path}/center.sock"
    async with open_link(address, token=TOKEN, name="t") as link, link.consume("t", window=5) as subscription:
        with pytest.raises(Unreachable) as away:
            await link.publish(messages(1))
        assert away.value.code == "center_unreachable"
        async with running_center(tmp_path / "data", address=address):
            await until_published(link, 5)
            before = await take(subscription, 3)
            with trio.fail_after(PATIENCE_S):
                while len(received_ns(subscription)) < 5:
                    await trio.lowlevel.checkpoint()
        with pytest.raises(Unreachable):
            await link.publish(messages(1))
        assert await subscription.settle([done(before[0])]) == [False]
        async with running_center(tmp_path / "data", address=address):
            after = await take(subscription, 5)
            assert [one.key for one in after[:3]] == [one.key for one in before]
            assert min(one.fence for one in after) > max(one.fence for one in before)
            assert await subscription.settle([done(before[0]), done(after[1])]) == [False, True]
            await until_published(link, 5)


def received_ns(subscription: Subscription) -> Sequence[int]:
    """Return when it received what, as the link notes it."""
    assert isinstance(subscription, LinkSubscription)
    return subscription.received_ns


async def until_published(link: MessageCenter, count: int) -> None:
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                await link.publish(messages(count))
            except Unreachable:
                await trio.lowlevel.checkpoint()
            else:
                return


async def test_what_was_under_way_when_the_centre_went_is_unknown() -> None:
    async with stand_in() as (address, lines), open_link(address, name="t") as link, trio.open_nursery() as nursery:

        async def publish() -> None:
            with pytest.raises(Unreachable, match="has ended the connection") as lost:
                await link.publish(messages(1))
            assert lost.value.code == "center_unreachable"

        nursery.start_soon(publish)
        with trio.fail_after(PATIENCE_S):
            while not lines:
                await trio.lowlevel.checkpoint()
            reader = wire.Reader(wire.peer_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX)
            assert isinstance(await next_frame(lines[0], reader), wire.Publish)
        lines[0].close()


async def test_settling_when_the_centre_went_counts_for_nothing() -> None:
    async with (
        stand_in() as (address, lines),
        open_link(address, name="t") as link,
        link.consume("t", window=2) as subscription,
    ):
        with trio.fail_after(PATIENCE_S):
            while not lines:
                await trio.lowlevel.checkpoint()
        lines[0].send(wire.encode(wire.Deliver(1, 5, 1, "m0", "lane0", b"", 0)))
        delivery = (await take(subscription, 1))[0]
        async with trio.open_nursery() as nursery:

            async def settle() -> None:
                assert await subscription.settle([done(delivery)]) == [False]

            nursery.start_soon(settle)
            reader = wire.Reader(wire.peer_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX)
            with trio.fail_after(PATIENCE_S):
                assert isinstance(await next_frame(lines[0], reader), wire.Received)
                assert isinstance(await next_frame(lines[0], reader), wire.Settle)
            lines[0].close()


async def test_a_centre_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "REQUEST_TIMEOUT_S", 0.05)
    async with stand_in() as (address, _), open_link(address, name="t") as link:
        with pytest.raises(Unreachable, match="in time"):
            await link.stats()
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 0.05)
    async with stand_in(answers=False) as (address, _), open_link(address, name="t") as link:
        with pytest.raises(Unreachable, match="greet"):
            await link.stats()


async def test_who_talks_something_else_is_no_centre() -> None:
    async with (
        stand_in(answers=False) as (address, lines),
        open_link(address, name="t") as link,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            with pytest.raises(Exception, match="frame") as refusal:
                await link.stats()
            assert refusal.value.code in {"too_large", "malformed"}  # type: ignore[attr-defined]

        nursery.start_soon(ask)
        with trio.fail_after(PATIENCE_S):
            while not lines:
                await trio.lowlevel.checkpoint()
        lines[0].send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def test_a_delivery_that_lay_too_long_is_left_unread() -> None:
    async with (
        stand_in() as (address, lines),
        open_link(address, name="t") as link,
        link.consume("t", window=2) as subscription,
    ):
        with trio.fail_after(PATIENCE_S):
            while not lines:
                await trio.lowlevel.checkpoint()
            lines[0].send(wire.encode(wire.Deliver(1, 5, 1, "m0", "lane0", b"", 1)))
            reader = wire.Reader(wire.peer_decoder, payload_bytes_max=wire.FRAME_BYTES_MAX)
            assert await next_frame(lines[0], reader) is None, "no confirmation, and a new connection"
            while len(lines) < 2:
                await trio.lowlevel.checkpoint()
        assert isinstance(subscription, LinkSubscription)
        assert not subscription.received_ns


async def test_who_gives_up_leaves_the_link_whole(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, open_link(running.address, token=TOKEN, name="t") as link:
        await link.stats()
        for _ in range(20):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.publish, messages(1_000, size=1_024))
                    await trio.lowlevel.checkpoint()
                    scope.cancel()
        assert len(await link.publish(messages(1_000, size=1_024))) == 1_000


async def test_many_publishers_share_one_link(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, open_link(running.address, token=TOKEN, name="t") as link:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(link.publish, messages(2, first=2 * number))
        assert (await link.stats()).waiting == 600


@pytest.mark.parametrize("is_strict", [False, True])
async def test_lanes_and_strict_order_over_the_wire(tmp_path: Path, is_strict: bool) -> None:
    settings = QueueSettings(rate_per_s=1_000_000, is_strict=is_strict, backoff_first_ms=1)
    async with running_center(tmp_path, settings) as running, open_link(running.address, token=TOKEN, name="t") as link:
        await link.publish(messages(60, lanes=6))
        ended: list[str] = []
        async with link.consume("t", window=16) as subscription:
            while len(ended) < 60:
                (delivery,) = await take(subscription, 1)
                if delivery.sequence % 7 == 0 and delivery.attempt == 1:
                    retry = Settlement(delivery.sequence, delivery.fence, Verdict.RETRY, "node_unreachable")
                    await subscription.settle([retry])
                elif (await subscription.settle([done(delivery)]))[0]:
                    ended.append(delivery.key)
        keys = [message.key for message in messages(60)]
        if is_strict:
            assert ended == keys
        for lane in range(6):
            assert [key for key in ended if int(key[1:]) % 6 == lane] == keys[lane::6]
