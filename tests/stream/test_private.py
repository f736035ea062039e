"""The private channel as a payer's way: sessions on messages that come at least once, late, doubled, or not at all."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import HansaError
from node.owner import OwnerDesk
from node.rpc.server import RpcConfig, serve_rpc
from p2p.private.port import Phase
from services.client.owner import OwnerLink
from services.local.service import serve as serve_local
from services.stream import private
from services.stream.interfaces import Connection
from services.stream.private import FRAME_MESSAGES_MAX, WAITING_FRAMES_MAX, open_private, serve_channels
from services.stream.wire import MESSAGES_MAX, Challenge, Iterate, Stored, Told
from tests.agency.world import BANK, ISSUER, Wire, ending
from tests.node.partners import Partners
from tests.node.site import Site

CHANNEL = f"{BANK}/{ISSUER}"
STREAM = bytes(32)
WAIT_S = 20


def iterate(number: int) -> Iterate:
    return Iterate(STREAM, b"%d" % number)


class Party:
    """A service party that challenges, stores whatever comes, and remembers its sessions."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.begun = 0
        self.over: list[str] = []
        self.held = trio.Event()
        self.held.set()
        self.changed = trio.Event()

    async def converse(self, connection: Connection) -> None:
        self.begun += 1
        try:
            await connection.send([Challenge(bytes([self.begun]) * 32)])
            while True:
                await self.held.wait()
                said = [int(message.raw) for message in await connection.receive() if isinstance(message, Iterate)]
                self.stored += said
                await connection.send([Stored(STREAM, number) for number in said])
        except HansaError as error:
            self.over.append(error.code)
            raise
        except trio.Cancelled:
            self.over.append("cancelled")
            raise
        finally:
            self.changed.set()
            self.changed = trio.Event()

    async def until_over(self, count: int) -> list[str]:
        with trio.fail_after(WAIT_S):
            while len(self.over) < count:
                await self.changed.wait()
        return self.over


class World:
    """Two nodes' owner sockets over a channel in memory, and a service party behind one of them."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.wire = Wire()
        self.party = Party()
        self.payer, self.service = folder / "payer.sock", folder / "service.sock"
        self._nursery = nursery
        self._scope = trio.CancelScope()

    async def start(self, stopping: trio.Event) -> None:
        await self._nursery.start(serve_local, self.payer, self.wire.service(BANK), stopping)
        await self._nursery.start(serve_local, self.service, self.wire.service(ISSUER), stopping)

    def serve(self) -> None:
        """Start the service party."""
        self._scope = trio.CancelScope()
        self._nursery.start_soon(self._serve, self._scope)

    async def _serve(self, scope: trio.CancelScope) -> None:
        with scope:
            await serve_channels(self.service, self.party.converse)

    def kill(self) -> None:
        self._scope.cancel()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        found = World(folder, nursery)
        await found.start(stopping)
        found.serve()
        with ending(stopping) as failed:
            yield found
        found.kill()
    failed.check()


async def told(receive: Callable[[], Awaitable[list[Told]]], count: int) -> list[Told]:
    """Return so many messages."""
    found: list[Told] = []
    with trio.fail_after(WAIT_S):
        while len(found) < count:
            found += await receive()
    return found


def dues(messages: list[Told]) -> list[int]:
    return [message.due for message in messages if isinstance(message, Stored)]


async def failure(call: Callable[[], Awaitable[object]]) -> str:
    """Return the code with which a session ends, whatever it still has to tell."""
    with trio.fail_after(WAIT_S):
        while True:
            try:
                await call()
            except HansaError as error:
                return error.code


# -- what a connection is ----------------------------------------------------------------------------------


async def test_frames_go_there_and_back_in_order(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        async with open_private(found.payer, CHANNEL) as link:
            assert await told(link.receive, 1) == [Challenge(b"\1" * 32)]
            for number in range(1, 6):
                await link.send([iterate(2 * number - 1), iterate(2 * number)])
            assert dues(await told(link.receive, 10)) == list(range(1, 11))
        assert await found.party.until_over(1) == ["payer_unreachable"]
        assert found.party.stored == list(range(1, 11))
        async with open_private(found.payer, CHANNEL) as link:
            assert await told(link.receive, 1) == [Challenge(b"\2" * 32)]


async def test_more_than_a_frame_holds_is_several(tmp_path: Path) -> None:
    count = 2 * MESSAGES_MAX + 1
    async with world(tmp_path) as found, open_private(found.payer, CHANNEL) as link:
        await link.send([Iterate(STREAM, b"%01024d" % number) for number in range(count)])
        assert dues(await told(link.receive, count + 1)) == list(range(count))
    assert len([payload for sender, _, payload in found.wire.posted if sender == BANK]) >= count // FRAME_MESSAGES_MAX


async def test_receiving_may_be_given_up_at_any_moment(tmp_path: Path) -> None:
    async with world(tmp_path) as found, open_private(found.payer, CHANNEL) as link:
        received: list[Told] = []
        with trio.fail_after(WAIT_S):
            for number in range(1, 40):
                await link.send([iterate(number)])
                for ticks in range(number % 7):
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(_give_up, scope, ticks)
                            received += await link.receive()
                            nursery.cancel_scope.cancel()
            while len(dues(received)) < 39:
                received += await link.receive()
        assert dues(received) == list(range(1, 40))


async def _give_up(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(3 * ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


# -- what ends one -----------------------------------------------------------------------------------------


async def test_a_service_party_that_was_restarted_knows_no_older_session(tmp_path: Path) -> None:
    """What lay at its node of one reaches nobody: an old iteration would be a wrong amount."""
    async with world(tmp_path) as found:
        async with open_private(found.payer, CHANNEL) as link:
            await link.send([iterate(7)])
            assert dues(await told(link.receive, 2)) == [7]
            found.kill()
            await found.party.until_over(1)
            await link.send([iterate(8)])
            await link.send([iterate(9)])
            found.serve()
            assert await failure(link.receive) == "service_unreachable"
            assert await failure(lambda: link.send([iterate(10)])) == "service_unreachable"
        async with open_private(found.payer, CHANNEL) as link:
            await link.send([iterate(10)])
            assert dues(await told(link.receive, 2)) == [10]
        assert found.party.stored == [7, 10]


async def test_what_comes_again_is_passed_over(tmp_path: Path) -> None:
    async with world(tmp_path) as found, open_private(found.payer, CHANNEL) as link:
        await link.send([iterate(1)])
        assert dues(await told(link.receive, 2)) == [1]
        for sender, _, payload in list(found.wire.posted):
            receiver = ISSUER if sender == BANK else BANK
            found.wire.sides[receiver].deliver(CHANNEL, payload)
        await link.send([iterate(2)])
        assert dues(await told(link.receive, 1)) == [2]
        assert found.party.stored == [1, 2]
        assert found.party.begun == 1


async def test_a_frame_that_is_missing_ends_the_session(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        async with open_private(found.payer, CHANNEL) as link:
            await told(link.receive, 1)
            found.wire.is_holding = True
            await link.send([iterate(1)])
            found.wire.held.clear()
            found.wire.is_holding = False
            await link.send([iterate(2)])
            assert await failure(link.receive) == "service_unreachable"
        assert found.party.stored == []
        # The other way round: what the payer does not get.
        async with open_private(found.payer, CHANNEL) as link:
            await told(link.receive, 1)
            found.party.held = trio.Event()
            await link.send([iterate(3), iterate(4)])
            side = found.wire.sides[BANK]
            with trio.fail_after(WAIT_S):
                found.party.held.set()
                while not side.inbox:
                    await side.changed.wait()
            side.inbox.clear()
            await link.send([iterate(5)])
            assert await failure(link.receive) == "service_unreachable"


async def test_a_new_knock_ends_the_session_before(tmp_path: Path) -> None:
    async with world(tmp_path) as found, open_private(found.payer, CHANNEL) as old:
        await told(old.receive, 1)
        async with open_private(found.payer, CHANNEL) as link:
            assert await found.party.until_over(1) == ["cancelled"]
            await link.send([iterate(1)])
            assert dues(await told(link.receive, 2)) == [1]
        await old.send([iterate(2)])
        assert await failure(old.receive) == "service_unreachable"
        assert found.party.stored == [1]


async def test_a_payer_that_floods_loses_its_session(tmp_path: Path) -> None:
    async with world(tmp_path) as found, open_private(found.payer, CHANNEL) as link:
        await told(link.receive, 1)
        found.party.held = trio.Event()
        for number in range(WAITING_FRAMES_MAX + 2):
            await link.send([iterate(number)])
        assert await failure(link.receive) == "service_unreachable"
        assert found.party.over == ["cancelled"]


async def test_bytes_that_are_no_frame_end_it(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        async with open_private(found.payer, CHANNEL) as link:
            await told(link.receive, 1)
            await link._door.send(CHANNEL, private.Data(link._session, 0, b"no frame"))
            assert await failure(link.receive) == "service_unreachable"
        assert found.party.over == ["malformed"]

        async def babble(connection: Connection) -> None:
            await connection._door.send(CHANNEL, private.Data(connection.id, 0, b"no frame"))  # type: ignore[attr-defined]
            await trio.sleep_forever()

        found.party.converse = babble  # type: ignore[method-assign]
        found.kill()
        found.serve()
        async with open_private(found.payer, CHANNEL) as link:
            assert await failure(link.receive) == "malformed"


async def test_a_payer_stays_only_with_who_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POLL_MS", 20), ("SILENT_MS_MAX", 200), ("WELCOME_MS_MAX", 200)):
        monkeypatch.setattr(private, name, value)
    async with world(tmp_path) as found:
        async with open_private(found.payer, CHANNEL) as link:
            await told(link.receive, 1)
            # Nothing is said for much longer than may be: both are there.
            with trio.move_on_after(1):
                await link.receive()
                pytest.fail("nothing was to be told")
            found.kill()
            await found.party.until_over(1)
            assert await failure(link.receive) == "service_unreachable"
        assert await failure(open_private(found.payer, CHANNEL).__aenter__) == "service_unreachable"


# -- whose channel it is -----------------------------------------------------------------------------------


async def test_a_payer_leaves_what_is_another_programs(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        side = found.wire.sides[BANK]
        async with open_private(found.payer, CHANNEL) as link:
            await told(link.receive, 1)
            await link.send([iterate(1)])
            assert dues(await told(link.receive, 1)) == [1]
            side.deliver(CHANNEL, b"a package of orders")
            assert await failure(link.receive) == "channel_in_use"
        assert await failure(open_private(found.payer, CHANNEL).__aenter__) == "channel_in_use"
        async with OwnerLink(found.payer) as node:
            assert (await node.receive(0))[0].payload == b"a package of orders"


async def test_a_service_party_drops_what_is_no_message_of_a_stream(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        side = found.wire.sides[ISSUER]
        for payload in (b"", b"a package of orders", private.MAGIC, private.MAGIC + b"\x93\1\2\3"):
            side.deliver(CHANNEL, payload)
        side.deliver(CHANNEL, b"", message_id="order", code="channel_closed")
        side.deliver(CHANNEL, b"", message_id="stream-1", code="channel_closed")
        async with open_private(found.payer, CHANNEL) as link:
            await link.send([iterate(1)])
            assert dues(await told(link.receive, 2)) == [1]
        assert not [item for item in side.inbox if item.payload[:15] != private.MAGIC]


async def test_a_node_that_takes_nothing_is_no_way(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        found.wire.refusal = "unknown_channel"
        assert await failure(open_private(found.payer, CHANNEL).__aenter__) == "service_unreachable"
        assert await failure(open_private(tmp_path / "none.sock", CHANNEL).__aenter__) == "service_unreachable"


# -- whole nodes -------------------------------------------------------------------------------------------


async def test_payer_and_service_party_meet_over_their_own_nodes(tmp_path: Path, nursery: trio.Nursery) -> None:
    """Whole nodes, TLS between them, their owner sockets; the service party's node is restarted meanwhile."""
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    party = Party()
    stopping = {name: trio.Event() for name in (BANK, ISSUER)}
    sockets = {name: tmp_path / f"{name}.sock" for name in stopping}

    async def open_socket(name: str) -> None:
        running, part = site.running[name], partners.part(name)
        stopping[name] = trio.Event()
        desk = OwnerDesk(sockets[name], name, part.key, part, stopping[name])
        await nursery.start(
            lambda task_status: serve_rpc(
                running.node.backend, RpcConfig(port=0), stopping=stopping[name], desk=desk, task_status=task_status
            )
        )

    for name in sockets:
        await open_socket(name)
    nursery.start_soon(serve_channels, sockets[ISSUER], party.converse)
    async with open_private(sockets[BANK], CHANNEL) as link:
        for number in range(1, 21):
            await link.send([iterate(number)])
        assert dues(await told(link.receive, 21)) == list(range(1, 21))
        stopping[ISSUER].set()
        await site.stop(ISSUER)
        await link.send([iterate(21)])
        await site.start(ISSUER, is_private=True)
        await open_socket(ISSUER)
        await link.send([iterate(22)])
        assert dues(await told(link.receive, 2)) == [21, 22]
    assert await party.until_over(1) == ["payer_unreachable"]
    assert party.stored == list(range(1, 23))
    assert party.begun == 1
    for event in stopping.values():
        event.set()
    await site.stop()
    nursery.cancel_scope.cancel()
