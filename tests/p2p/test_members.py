"""Who belongs changes while the network runs; and a name that two processes wear."""

from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import NodeName
from node.network.ca import Authority, to_pem
from p2p.doubles import CLASHES_MIN, WINDOW_S, DoubleWatch
from p2p.frames import FrameKind, encode_frame
from p2p.hello_machine import Side
from p2p.tls import Trust
from tests.p2p.support import HOST, Certificates, Inbox, free_port, make_network
from tests.p2p.test_network import handshaker, running, said_bye

A, B, C = NodeName("a"), NodeName("b"), NodeName("c")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path, "a", "b", "c")


def only(certificates: Certificates, *nodes: str) -> Trust:
    """The trust in some of the organisations."""
    return Trust({f"org-{node}": certificates.trust.roots[f"org-{node}"] for node in nodes})


async def test_a_new_root_counts_from_the_next_handshake_on(certificates: Certificates) -> None:
    inbox = Inbox()
    b = make_network(certificates, "b", inbox, trust=only(certificates, "b"))
    async with running(b) as [port]:
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        async with running(a):
            with trio.fail_after(30):
                while not a.peers()[0].last_error:
                    await trio.lowlevel.checkpoint()
            assert b.connected() == ()
            b.members_changed(only(certificates, "a", "b"), {})
            await inbox.until(lambda: b.connected() == (A,))


async def test_members_may_change_after_the_network_has_ended(certificates: Certificates) -> None:
    """The block that was being written at SIGTERM is final, and told, when its write has ended."""
    for is_cancelled in (False, True):
        a = make_network(certificates, "a", Inbox())
        async with trio.open_nursery() as nursery:
            await nursery.start(a.run)
            if is_cancelled:
                nursery.cancel_scope.cancel()
            a.stop()
        a.members_changed(certificates.trust, {B: (HOST, free_port())})


async def test_a_root_that_counts_no_longer_keeps_its_nodes_out(certificates: Certificates) -> None:
    b = make_network(certificates, "b", Inbox())
    async with running(b) as [port]:
        b.members_changed(only(certificates, "b"), {})
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        async with running(a):
            with trio.fail_after(30):
                while a.peers()[0].last_error != "refused_by_peer":
                    await trio.lowlevel.checkpoint()
            assert b.connected() == ()


async def test_a_renewed_root_overlaps_with_the_old_one(certificates: Certificates) -> None:
    inbox = Inbox()
    b = make_network(certificates, "b", inbox)
    renewed = Authority.create("org-a", now=certificates.now)
    pem = to_pem(renewed.certificate).decode()
    roots = {**certificates.trust.roots, "org-a": (*certificates.trust.roots["org-a"], renewed.certificate)}
    assert Trust.of([("org-a", pem)]).roots["org-a"] == (renewed.certificate,)
    async with running(b) as [port]:
        b.members_changed(Trust(roots), {})
        for root in (None, renewed):
            identity = certificates.identity("a", root=root)
            a = make_network(certificates, "a", Inbox(), peers={"b": port}, identity=identity)
            async with running(a):
                await inbox.until(lambda: b.connected() == (A,))
            await inbox.until(lambda: b.connected() == ())


async def test_who_becomes_a_peer_is_dialled_where_it_is_now_and_who_ceases_is_not(certificates: Certificates) -> None:
    inbox_a, ports = Inbox(), [free_port(), free_port()]
    a = make_network(certificates, "a", inbox_a, peers={"c": free_port()}, back_off_ms_max=50)
    async with running(a):
        a.members_changed(certificates.trust, {B: (HOST, free_port())})
        assert [peer.name for peer in a.peers()] == [B]
        a.members_changed(certificates.trust, {B: (HOST, ports[0])})
        async with running(make_network(certificates, "b", Inbox(), port=ports[0])):
            await inbox_a.until(lambda: a.connected() == (B,))
            a.members_changed(certificates.trust, {B: (HOST, ports[1])})
            assert a.connected() == (B,)  # another address ends no session
        async with running(make_network(certificates, "b", Inbox(), port=ports[1])):
            await inbox_a.until(lambda: a.connected() == (B,))
        a.members_changed(certificates.trust, {})
        await inbox_a.until(lambda: a.connected() == ())
        stranger = Inbox()
        async with running(make_network(certificates, "b", stranger, port=ports[1])):
            with trio.fail_after(30):
                while a._dialling:
                    await trio.lowlevel.checkpoint()
            assert (a.peers(), a.connected()) == ([], ())
        a.members_changed(certificates.trust, {B: (HOST, ports[0])})
        async with running(make_network(certificates, "b", Inbox(), port=ports[0])):
            await inbox_a.until(lambda: a.connected() == (B,))


async def test_who_loses_its_membership_within_the_handshake_gets_no_session(certificates: Certificates) -> None:
    """It is admitted when the hello is proven, and no more when the ACK arrives."""
    inbox, admitted = Inbox(), {"a"}
    asked: list[str] = []

    def admits(name: NodeName, organisation: str, fingerprint: bytes) -> bool:
        asked.append(name)
        answer = name in admitted
        admitted.discard(name)
        return answer

    b = make_network(certificates, "b", inbox, admits=admits)
    async with running(b) as [port]:
        transport = await trio.open_tcp_stream(HOST, port)
        done = await handshaker(certificates, "a").shake(transport, Side.DIALLER)
        assert await said_bye(done) == "not_admitted"
        assert b.connected() == ()
        assert asked == ["a", "a"]
        await trio.aclose_forcefully(done.stream)


async def test_frames_that_came_before_the_cut_are_not_handled_after_it(certificates: Certificates) -> None:
    inbox, is_member, release = Inbox(), [True], trio.Event()

    async def handle(peer: NodeName, kind: FrameKind, payload: bytes) -> None:
        await inbox.handle(peer, kind, payload)
        await release.wait()

    admits = lambda name, organisation, fingerprint: is_member[0]  # noqa: E731
    b = make_network(certificates, "b", inbox, admits=admits, handler=handle)
    async with running(b) as [port]:
        done = await handshaker(certificates, "a").shake(await trio.open_tcp_stream(HOST, port), Side.DIALLER)
        await done.stream.send_all(encode_frame(FrameKind.CONSENSUS, b"1") + encode_frame(FrameKind.CONSENSUS, b"2"))
        await inbox.has(1)
        is_member[0] = False
        b.recheck()
        release.set()
        assert await said_bye(done) == "not_admitted"
        assert [payload for _, _, payload in inbox.frames] == [b"1"]
        await trio.aclose_forcefully(done.stream)


@pytest.mark.parametrize("own", ["b", "0"])
async def test_two_processes_under_one_name_are_noticed_whoever_dials(certificates: Certificates, own: str) -> None:
    """A copied home beside the original: one certificate, two processes. ``0`` dials one, refuses the other."""
    everyone = Certificates(certificates.folder, own, "a")
    identity, inbox, ports = everyone.identity("a"), Inbox(), [free_port(), free_port()]
    watcher = make_network(everyone, own, inbox, peers={"a": ports[0]}, back_off_ms_max=50)
    async with running(watcher) as [port]:
        copies = [
            make_network(
                everyone,
                "a",
                Inbox(),
                port=at,
                peers={own: port} if at == ports[1] or own == "b" else {},
                identity=identity,
                back_off_ms_max=50,
                second_dial_ms=1,
            )
            for at in ports
        ]
        async with running(copies[0]):
            await inbox.until(lambda: watcher.connected() == (A,))
            assert not watcher.peers()[0].is_doubled
            async with running(copies[1]):
                with trio.fail_after(30):
                    while not any(peer.is_doubled for peer in watcher.peers() if peer.name == A):
                        await trio.lowlevel.checkpoint()


def test_a_name_counts_as_doubled_after_so_many_clashes_in_so_short_a_time() -> None:
    watch = DoubleWatch()
    told = [watch.clashed(A, now_s=number) for number in range(CLASHES_MIN + 2)]
    assert told == [False] * (CLASHES_MIN - 1) + [True, False, False]
    assert watch.is_doubled(A, now_s=WINDOW_S + 2)
    assert not watch.is_doubled(A, now_s=WINDOW_S + 2.5)
    assert not watch.is_doubled(B, now_s=0)


def test_a_node_that_is_restarted_now_and_then_is_not_doubled() -> None:
    watch = DoubleWatch()
    pause_s = WINDOW_S / (CLASHES_MIN - 1) + 1
    assert not any(watch.clashed(A, now_s=number * pause_s) for number in range(50))


@pytest.mark.parametrize("host", ["node..example", ".", "x" * 64 + ".example"])
async def test_an_address_that_no_resolver_takes_makes_its_node_unreachable_and_ends_no_other(
    certificates: Certificates, host: str
) -> None:
    """Members agreed to write it; whoever dials it, for blocks or for a private channel, goes on."""
    b = make_network(certificates, "b", Inbox())
    async with running(b) as [port]:
        a = make_network(certificates, "a", Inbox(), peers={"b": port})
        async with running(a):
            a.members_changed(certificates.trust, {B: (HOST, port), C: (host, 1)})
            with trio.fail_after(30):
                while a.connected() != (B,) or not any(peer.last_error for peer in a.peers() if peer.name == C):
                    await trio.lowlevel.checkpoint()
            with pytest.raises(PeerError) as caught:
                await a.dial_private(C)
            assert caught.value.code == "unreachable"
