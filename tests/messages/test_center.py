"""The server of the message centre against peers that speak frames by hand, good ones and bad ones."""

import socket
from pathlib import Path
from random import Random

import pytest
import trio

from consensus.ledger.errors import LocalError, StorageError
from services.messages import center as center_module
from services.messages import line as line_module
from services.messages import wire
from services.messages.center import listen
from services.messages.embedded import EmbeddedStore
from services.messages.port import Settlement, Verdict
from services.messages.queue import QueueSettings
from services.messages.store import NewMessage, Published, Record, State
from tests.messages.centers import PATIENCE_S, QUICK, TOKEN, Peer, messages, peer_at, raw_peer_at, running_center

SAME = wire.Welcome(wire.VERSION, is_same_machine=True)


async def settle(peer: Peer, identity: int, *settlements: Settlement) -> wire.FromCenter | None:
    peer.say(wire.Settle(identity, list(settlements)))
    return await peer.hear()


async def deliver(peer: Peer) -> wire.Deliver:
    """Hear a delivery and confirm it."""
    frame = await peer.hear()
    assert isinstance(frame, wire.Deliver)
    peer.say(wire.Received(frame.fence, 0))
    return frame


async def test_who_knows_the_token_is_welcome(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address) as peer:
        assert await peer.hear() == SAME


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        (wire.Hello(wire.VERSION, "peer", TOKEN[:-1], "", 0), "bad_token"),
        (wire.Hello(wire.VERSION, "peer", "", "", 0), "bad_token"),
        (wire.Hello(wire.VERSION, "peer", "ß", "", 1), "bad_token"),
        (wire.Hello(wire.VERSION + 1, "peer", TOKEN, "", 0), "bad_version"),
        (wire.Hello(wire.VERSION, "n" * 65, TOKEN, "", 0), "malformed"),
        (wire.Hello(wire.VERSION, "peer", "t" * 2_000, "", 0), "too_large"),
        (wire.Ask(1), "malformed"),
    ],
)
async def test_whoever_else_is_told_why_and_let_go(tmp_path: Path, hello: wire.Frame, code: str) -> None:
    async with running_center(tmp_path) as running, raw_peer_at(running.address) as peer:
        peer.say(hello)
        answer = await peer.hear()
        assert isinstance(answer, wire.Failure)
        assert (answer.id, answer.code) == (0, code)
        assert await peer.hears_the_end()
        assert (await running.queue.stats()).consumers == 0


async def test_who_says_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_module, "HELLO_TIMEOUT_S", 0.05)
    async with running_center(tmp_path) as running, raw_peer_at(running.address) as peer:
        assert await peer.hears_the_end()


async def test_messages_are_durable_before_the_answer(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address) as peer:
        await peer.hear()
        peer.say(wire.publish_of(7, messages(100)))
        answer = await peer.hear()
        assert isinstance(answer, wire.Kept)
        assert answer.id == 7
        assert [one.is_new for one in wire.published_of(answer)] == [True] * 100
        running.center.queue.close()
    store = EmbeddedStore(tmp_path)
    await store.open()
    assert (await store.counts()).waiting == 100
    await store.close()


async def test_requests_are_answered_by_id_and_a_repeat_is_told_from_a_conflict(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address) as peer:
        await peer.hear()
        peer.say(wire.publish_of(1, messages(1)))
        assert await peer.hear() == wire.kept_of(1, [Published(1, is_new=True)])
        peer.say(
            wire.publish_of(2, messages(1)), wire.publish_of(3, [NewMessage("m0", "lane0", b"other")]), wire.Ask(4)
        )
        answers = [await peer.hear() for _ in range(3)]
        by_id = {answer.id: answer for answer in answers if isinstance(answer, wire.Kept | wire.Standing)}
        assert by_id[2] == wire.kept_of(2, [Published(1, is_new=False)])
        assert by_id[3] == wire.kept_of(3, [Published(1, is_new=False, is_conflict=True)])
        standing = by_id[4]
        assert isinstance(standing, wire.Standing)
        assert standing.stats.waiting == 1


async def test_a_refused_request_leaves_the_connection(tmp_path: Path) -> None:
    settings = QueueSettings(rate_per_s=1_000_000, waiting_max=10)
    async with running_center(tmp_path, settings) as running, peer_at(running.address) as peer:
        await peer.hear()
        peer.say(wire.publish_of(1, messages(11)))
        answer = await peer.hear()
        assert isinstance(answer, wire.Failure)
        assert (answer.id, answer.code) == (1, "store_full")
        peer.say(wire.publish_of(2, [NewMessage("ß" * 200, "", b"")]))
        answer = await peer.hear()
        assert isinstance(answer, wire.Failure)
        assert (answer.id, answer.code) == (2, "too_large")
        peer.say(wire.publish_of(3, messages(10)))
        assert isinstance(await peer.hear(), wire.Kept)


async def test_what_is_no_frame_ends_one_connection_only(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address) as good, peer_at(running.address) as bad:
        await good.hear()
        await bad.hear()
        bad.line.send(b"\x00\x00\x00\x01\xc1")
        answer = await bad.hear()
        assert isinstance(answer, wire.Failure)
        assert (answer.id, answer.code) == (0, "malformed")
        assert await bad.hears_the_end()
        good.say(wire.Ask(1))
        assert isinstance(await good.hear(), wire.Standing)


async def test_damaged_streams_hurt_nobody(tmp_path: Path) -> None:
    """Whole conversations with some bits turned, each cut off somewhere; the centre serves on."""
    random = Random(5)
    talk: list[wire.Frame] = [
        wire.publish_of(1, messages(20)),
        wire.Find(2, ["m0"]),
        wire.Settle(3, [Settlement(1, 1 << 32, Verdict.DONE)]),
        wire.Received(1 << 32, 1),
        wire.Ended(4, State.DONE, 0, 10),
        wire.Replay(5, [1]),
        wire.Ask(6),
        wire.Discard(7, [1]),
    ]
    async with running_center(tmp_path) as running:
        for _ in range(60):
            stream = bytearray(b"".join(wire.encode(frame) for frame in random.sample(talk, len(talk))))
            for _ in range(random.randrange(1, 4)):
                stream[random.randrange(len(stream))] ^= 1 << random.randrange(8)
            async with peer_at(running.address, window=random.randrange(3)) as peer:
                await peer.hear()
                peer.line.send(bytes(stream[: random.randrange(len(stream))]))
                await trio.lowlevel.checkpoint()
        async with peer_at(running.address) as good:
            await good.hear()
            good.say(wire.publish_of(1, messages(1, first=1_000)))
            assert isinstance(await good.hear(), wire.Kept)


async def test_a_delivery_waits_until_the_one_before_it_is_confirmed(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address, window=10) as peer:
        await peer.hear()
        await running.queue.publish(messages(2))
        first = await peer.hear()
        assert isinstance(first, wire.Deliver)
        peer.say(wire.Received(first.fence + 1, 0), wire.Ask(1))
        assert isinstance(await peer.hear(), wire.Standing), "a wrong confirmation is passed over"
        peer.say(wire.Received(first.fence, 0), wire.Received(first.fence, 0))
        second = await peer.hear()
        assert isinstance(second, wire.Deliver)
        assert (first.key, second.key) == ("m0", "m1")
        assert second.fence > first.fence
        peer.say(wire.Ask(2))
        standing = await peer.hear()
        assert isinstance(standing, wire.Standing)
        assert (standing.stats.leased, standing.stats.consumers) == (2, 1)


async def test_nobody_else_gets_one_either_while_a_delivery_is_on_its_way(tmp_path: Path) -> None:
    async with (
        running_center(tmp_path) as running,
        peer_at(running.address, window=1) as one,
        peer_at(running.address, window=1) as two,
    ):
        await one.hear()
        await two.hear()
        await running.queue.publish(messages(2))
        got: list[tuple[Peer, wire.Deliver]] = []

        async def listen_to(peer: Peer) -> None:
            frame = await peer.hear()
            assert isinstance(frame, wire.Deliver)
            got.append((peer, frame))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen_to, one)
            nursery.start_soon(listen_to, two)
            while not got:
                await running.queue.stats()
            for _ in range(20):
                await running.queue.stats()
            assert len(got) == 1
            got[0][0].say(wire.Received(got[0][1].fence, 0))
        assert {frame.key for _, frame in got} == {"m0", "m1"}


async def test_only_who_shares_the_boot_is_told_a_time(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running:
        await running.queue.publish(messages(2))
        async with peer_at(running.address, window=1, boot="another") as far:
            assert await far.hear() == wire.Welcome(wire.VERSION, is_same_machine=False)
            assert (await deliver(far)).until_ns == 0
        async with peer_at(running.address, window=1) as near:
            assert await near.hear() == SAME
            assert (await deliver(near)).until_ns > 0


async def test_many_requests_share_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_module, "REQUEST_BYTES_MAX", 1)
    monkeypatch.setattr(center_module, "REQUESTS_MAX", 2)
    async with (
        running_center(tmp_path) as running,
        peer_at(running.address) as one,
        peer_at(running.address) as two,
    ):
        for peer in (one, two):
            await peer.hear()
            peer.say(*[wire.publish_of(identity, messages(20, first=20 * identity)) for identity in range(1, 20)])
        for peer in (one, two):
            answers = [await peer.hear() for _ in range(1, 20)]
            assert {answer.id for answer in answers if isinstance(answer, wire.Kept)} == set(range(1, 20))
        assert (await running.queue.stats()).waiting == 19 * 20


async def test_who_confirms_nothing_is_let_go_and_others_get_its_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(center_module, "CONFIRM_TIMEOUT_S", 0.05)
    async with running_center(tmp_path) as running, peer_at(running.address, window=2) as frozen:
        await frozen.hear()
        await running.queue.publish(messages(2))
        assert isinstance(await frozen.hear(), wire.Deliver)
        assert await frozen.hears_the_end()
        monkeypatch.undo()
        async with peer_at(running.address, window=2) as other:
            await other.hear()
            assert {(await deliver(other)).key, (await deliver(other)).key} == {"m0", "m1"}


async def test_the_leases_of_who_leaves_go_to_who_comes(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running:
        await running.queue.publish(messages(1))
        async with peer_at(running.address, window=1) as peer:
            await peer.hear()
            lost = await deliver(peer)
        async with peer_at(running.address, window=1) as other:
            await other.hear()
            again = await deliver(other)
            assert (again.key, again.attempt) == (lost.key, 1)
            old = Settlement(lost.sequence, lost.fence, Verdict.DONE)
            assert await settle(other, 1, old) == wire.Settled(1, [False])
            new = Settlement(again.sequence, again.fence, Verdict.DONE, "17 0xab 4")
            assert await settle(other, 2, new) == wire.Settled(2, [True])
            other.say(wire.Find(3, ["m0", "unknown"]))
            found = await other.hear()
            assert isinstance(found, wire.Records)
            record, unknown = found.records
            assert isinstance(record, Record)
            assert (record.state, record.detail, unknown) == (State.DONE, "17 0xab 4", None)


async def test_dead_letters_are_listed_and_replayed(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address, window=1) as peer:
        await peer.hear()
        await running.queue.publish(messages(1))
        poison = await deliver(peer)
        dead = Settlement(poison.sequence, poison.fence, Verdict.DEAD, "malformed")
        assert await settle(peer, 1, dead) == wire.Settled(1, [True])
        peer.say(wire.Ended(2, State.DEAD, 0, 10))
        listed = await peer.hear()
        assert isinstance(listed, wire.Records)
        assert [record and (record.key, record.detail) for record in listed.records] == [("m0", "malformed")]
        peer.say(wire.Replay(3, [poison.sequence, 99]))
        frames = [await peer.hear(), await peer.hear()]
        assert wire.Replayed(3, 1) in frames
        assert any(isinstance(frame, wire.Deliver) and frame.key == "m0" for frame in frames)


@pytest.mark.parametrize(("unsent_bytes_max", "unread_ms_max"), [(1_000_000, 100_000), (1 << 30, 50)])
async def test_who_reads_nothing_is_let_go_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsent_bytes_max: int, unread_ms_max: int
) -> None:
    monkeypatch.setattr(line_module, "UNSENT_BYTES_MAX", unsent_bytes_max)
    monkeypatch.setattr(line_module, "UNREAD_MS_MAX", unread_ms_max)
    async with running_center(tmp_path) as running:
        await running.queue.publish(messages(100, size=16 * 1024))
        async with peer_at(running.address) as deaf, peer_at(running.address) as good:
            await deaf.hear()
            await good.hear()
            keys = [f"m{number}" for number in range(100)]
            for identity in range(1, 20):
                deaf.say(wire.Find(identity, keys))
            with trio.fail_after(PATIENCE_S):
                while running.center.connections_count > 1:
                    good.say(wire.Ask(1))
                    assert isinstance(await good.hear(), wire.Standing)


async def test_the_centre_ends_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_module, "STOP_TIMEOUT_S", 100)
    async with running_center(tmp_path) as running, peer_at(running.address, window=1) as peer:
        await peer.hear()
        await running.queue.publish(messages(1))
        await deliver(peer)
        running.stopping.set()
        assert await peer.hears_the_end()
        with trio.fail_after(PATIENCE_S):
            await running.ended.wait()
        assert (await running.queue.stats()).consumers == 0


async def test_what_is_answered_at_the_end_arrives(tmp_path: Path) -> None:
    async with running_center(tmp_path) as running, peer_at(running.address) as peer:
        await peer.hear()
        await running.queue.publish(messages(600, size=16 * 1024))
        peer.say(wire.Find(1, [f"m{number}" for number in range(600)]))
        answered = running.center.metrics.requests.labels("find", "ok")
        with trio.fail_after(PATIENCE_S):
            while not answered._value.get():
                await trio.lowlevel.checkpoint()
        running.stopping.set()
        records = await peer.hear()
        assert isinstance(records, wire.Records)
        assert len(records.records) == 600
        assert await peer.hears_the_end()


async def test_a_store_that_fails_ends_the_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> list[Record | None]:
        raise StorageError("disk_failed", "the disk")

    async def ask() -> None:
        async with running_center(tmp_path) as running, peer_at(running.address) as peer:
            await peer.hear()
            peer.say(wire.Find(1, ["m0"]))
            await trio.sleep_forever()

    monkeypatch.setattr(EmbeddedStore, "find", fails)
    with pytest.raises(StorageError, match="the disk"), trio.fail_after(PATIENCE_S):
        await ask()


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(center_module, "CONNECTIONS_MAX", 1)
    async with running_center(tmp_path) as running, peer_at(running.address) as waiting_too:
        await waiting_too.hear()
        async with peer_at(running.address) as late:
            for identity in range(1, 20):
                waiting_too.say(wire.Ask(identity))
                assert isinstance(await waiting_too.hear(), wire.Standing)
            assert running.center.connections_count == 1
            waiting_too.line.close()
            assert await late.hear() == SAME


async def test_a_socket_of_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "center.sock"
    address = f"unix:{path}"
    for _ in range(2):  # the second finds the first's file
        async with running_center(tmp_path / "data", address=address, token="") as running:
            assert running.address == address
            assert path.stat().st_mode & 0o777 == 0o600
            async with peer_at(address, token="") as peer:
                assert await peer.hear() == SAME
            with pytest.raises(LocalError) as refusal:
                listen(address, token="")
            assert refusal.value.code == "port_in_use"


@pytest.mark.parametrize(
    ("address", "token", "code"),
    [
        ("0.0.0.0:0", "", "token_missing"),
        ("[::]:0", "", "token_missing"),
        ("nowhere.invalid:0", "", "token_missing"),
        ("127.0.0.1", "", "bad_address"),
        ("127.0.0.1:65536", "", "bad_address"),
        (":26801", "", "bad_address"),
        ("unix:", "", "bad_address"),
        ("unix:/nowhere/center.sock", "", "bad_address"),
        (f"unix:/{'n' * 200}", "", "bad_address"),
        ("192.0.2.1:26801", "t", "bad_address"),
    ],
)
def test_addresses_that_cannot_be(address: str, token: str, code: str) -> None:
    with pytest.raises(LocalError) as refusal:
        listen(address, token=token)
    assert refusal.value.code == code


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError) as refusal:
            listen(f"127.0.0.1:{port}", token="")
    assert refusal.value.code == "port_in_use"


def test_beyond_this_machine_with_a_token() -> None:
    listen("0.0.0.0:0", token=TOKEN).close()
    listen("localhost:0", token="").close()
    assert QUICK.rate_per_s == 1_000_000
