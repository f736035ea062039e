"""Private channels between two nodes over real TLS: delivery, restarts, revocation, and who must stay out."""

import pytest
import trio
import trio.testing

from consensus.ledger.errors import LocalError, StorageError
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey
from node.network.ca import Authority
from p2p.frames import FrameKind, encode_frame
from p2p.private.channel_machine import ChannelLimits
from p2p.private.port import PAYLOAD_BYTES_MAX, ChannelName, Phase
from tests.p2p.private.support import BANK, ISSUER, NAME, MemoryStore, Site, eventually, facts_of, payloads
from tests.p2p.support import Certificates, Inbox, free_port, make_network


class Pair:
    """Two nodes whose stores and ports outlive them."""

    def __init__(self, folder) -> None:
        self.certificates = Certificates(folder, "a", "b", "c")
        self.ports = {"a": free_port(), "b": free_port(), "c": free_port()}
        self.stores = {name: MemoryStore() for name in self.ports}

    def site(self, name: str, **settings) -> Site:
        """Return a new life of a node."""
        settings.setdefault("peers", {"a": self.ports["a"], "b": self.ports["b"]})
        return Site(self.certificates, name, self.stores[name], port=self.ports[name], **settings)


@pytest.fixture
def pair(tmp_path):
    """Two nodes that may be run and run again."""
    return Pair(tmp_path)


async def test_messages_go_both_ways_once_and_in_order(pair):
    sent = [b"order %d " % number + bytes(1_000) for number in range(1_000)]
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        async with trio.open_nursery() as nursery:
            for number, payload in enumerate(sent):
                nursery.start_soon(a.private.send, NAME, f"id-{number}", payload)
        assert sorted(payloads(await b.collect(1_000))) == sorted(sent)
        assert await b.private.send(NAME, "answer", bytes(PAYLOAD_BYTES_MAX)) == (1, 1)
        [answer] = await a.collect(1)
        assert (answer.payload, answer.number, answer.code) == (bytes(PAYLOAD_BYTES_MAX), 1, "")
        await eventually(lambda: (a.status().waiting, b.status().waiting) == (0, 0))
        assert (a.status().delivered, b.status().received, b.status().delivered) == (1_000, 1_000, 1)
        await eventually(lambda: a.network.connected() == (ISSUER,) and b.network.connected() == (BANK,))


async def delivered_all(site: Site) -> None:
    """Wait until the partner has everything."""
    await eventually(lambda: site.status().waiting == 0)


@pytest.mark.parametrize("restarted", ["a", "b"])
async def test_either_side_may_be_killed_in_the_middle(pair, restarted):
    """Each life of the killed node ends when half of what is sent has come; nothing is lost, doubled or disordered."""
    sent = [b"%d" % number for number in range(200)]
    stays = "b" if restarted == "a" else "a"
    facts = {"a": facts_of(is_bank=True), "b": facts_of(is_bank=False)}
    got: list[bytes] = []
    async with pair.site(stays).running(facts[stays]) as staying:
        for life in range(4):
            async with pair.site(restarted).running(facts[restarted]) as living:
                bank, issuer = (living, staying) if restarted == "a" else (staying, living)
                for number in range(life * 50, (life + 1) * 50):
                    await bank.private.send(NAME, f"{number}", sent[number])
                await eventually(lambda issuer=issuer, life=life: issuer.status().received >= life * 50 + 25)
        async with pair.site(restarted).running(facts[restarted]) as living:
            bank, issuer = (living, staying) if restarted == "a" else (staying, living)
            assert await bank.private.send(NAME, "199", b"anything") == (1, 200)
            got = payloads(await issuer.collect(200))
            await delivered_all(bank)
    assert got == sent


async def test_a_partner_that_is_down_gets_it_later_and_the_outbox_is_bounded(pair):
    limits = ChannelLimits(outbox_messages_max=4)
    async with pair.site("a", limits=limits).running(facts_of(is_bank=True)) as a:
        for number in range(4):
            await a.private.send(NAME, f"{number}", b"%d" % number)
        with pytest.raises(LocalError) as refusal:
            await a.private.send(NAME, "4", b"4")
        assert refusal.value.code == "outbox_full"
        assert await a.private.send(NAME, "2", b"2") == (1, 3)
        assert (a.status().waiting, a.status().is_connected) == (4, False)
        async with pair.site("b").running(facts_of(is_bank=False)) as b:
            assert payloads(await b.collect(4)) == [b"0", b"1", b"2", b"3"]
            await delivered_all(a)
            await a.private.send(NAME, "4", b"4")
            assert payloads(await b.collect(5))[-1] == b"4"


async def test_revoked_while_a_message_is_under_way(pair):
    """The bank reads of it last: what it sent after the issuer had read of it comes back as never taken."""
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        await a.private.send(NAME, "first", b"first")
        await b.collect(1)
        await delivered_all(a)
        b.private.channels_changed([facts_of(is_bank=False, phase=Phase.GRACE)])
        await a.private.send(NAME, "late", b"late")
        [failure] = await a.collect(1)
        assert (failure.id, failure.code, failure.number, failure.payload) == ("late", "channel_revoked", 2, b"")
        await b.private.send(NAME, "answer", b"answer")
        assert payloads(await a.collect(2)) == [b"", b"answer"]
        await a.private.done(failure.position)
        with pytest.raises(LocalError) as refusal:
            await a.private.send(NAME, "late", b"late")
        assert refusal.value.code == "channel_revoked"
        for site, is_bank in ((a, True), (b, False)):
            site.private.channels_changed([facts_of(is_bank=is_bank, phase=Phase.CLOSED)])
        await eventually(lambda: not a.status().is_connected and not b.status().is_connected)
        for site, is_bank in ((a, True), (b, False)):
            site.private.channels_changed([facts_of(is_bank=is_bank, epoch=2)])
        assert await a.private.send(NAME, "late", b"again") == (2, 1)
        again = (await b.collect(2))[-1]
        assert (again.epoch, again.number, again.payload) == (2, 1, b"again")
        assert len(b.private.receive(0, limit=10, bytes_max=100)) == 2


async def test_without_a_channel_there_is_no_session(pair):
    """The issuer's node does not know of the channel (yet): the bank's learns why, and gets in once it does."""
    async with pair.site("a").running(facts_of(is_bank=True)) as a, pair.site("b").running() as b:
        await a.private.send(NAME, "early", b"early")
        await eventually(lambda: a.status().last_error == "refused_by_peer")
        assert not a.status().is_connected
        with pytest.raises(LocalError) as refusal:
            await b.private.send(NAME, "answer", b"")
        assert refusal.value.code == "unknown_channel"
        b.private.channels_changed([facts_of(is_bank=False)])
        assert payloads(await b.collect(1)) == [b"early"]


async def test_r79_a_node_that_the_registry_names_no_more_is_not_addressed(pair):
    """The issuer moves to node c under a new epoch: node b loses its session and gets nothing that is sent then."""
    peers = {name: pair.ports[name] for name in "abc"}
    async with (
        pair.site("a", peers=peers).running(facts_of(is_bank=True)) as a,
        pair.site("b", peers=peers).running(facts_of(is_bank=False)) as b,
        pair.site("c", peers=peers).running(facts_of(is_bank=False, epoch=2)) as c,
    ):
        await a.private.send(NAME, "one", b"one")
        await b.collect(1)
        a.private.channels_changed([facts_of(is_bank=True, epoch=2, peer=NodeName("c"))])
        assert await a.private.send(NAME, "two", b"two") == (2, 1)
        assert payloads(await c.collect(1)) == [b"two"]
        await eventually(lambda: not b.status().is_connected)
        assert payloads(b.private.receive(0, limit=10, bytes_max=100)) == [b"one"]


async def test_the_public_session_of_the_pair_is_undisturbed(pair):
    """A partner that breaks the channel's rules loses the channel for a while, and no standing as a peer."""
    wrong = PrivateKey.from_secret(99)
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b", key=wrong).running(facts_of(is_bank=False)) as b,
    ):
        await eventually(lambda: a.network.connected() == (ISSUER,) and b.network.connected() == (BANK,))
        await eventually(lambda: a.private.refused["bad_signature"] >= 3)
        assert not a.status().received
        [peer] = [peer for peer in a.network.peers() if peer.name == ISSUER]
        assert (peer.state, peer.penalty_points) == ("connected", 0)
        assert a.network.send(ISSUER, FrameKind.CONSENSUS, b"still here")
        await b.inbox.has(1)
        a.private.channels_changed([facts_of(is_bank=True, key=wrong)])
        await a.private.send(NAME, "one", b"one")
        assert payloads(await b.collect(1)) == [b"one"]


async def test_private_frames_on_the_public_session_and_public_ones_on_the_private(pair):
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        await eventually(lambda: a.status().is_connected and a.network.connected() == (ISSUER,))
        a.network.send(ISSUER, FrameKind.PRIVATE_MESSAGE, b"\xc0")
        await b.inbox.has(1)
        assert b.inbox.frames == [(BANK, FrameKind.PRIVATE_MESSAGE, b"\xc0")]  # the node's handler refuses it
        session = next(iter(a.private._sessions.values()))
        session.send(FrameKind.CONSENSUS, encode_frame(FrameKind.CONSENSUS, b"vote"))
        await eventually(lambda: b.private.refused["unexpected_frame"] == 1)
        assert len(b.inbox.frames) == 1


async def test_a_node_without_private_channels_turns_private_connections_away(pair):
    b = make_network(pair.certificates, "b", Inbox(), port=pair.ports["b"])
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: b.run(task_status=task_status))
        async with pair.site("a").running(facts_of(is_bank=True)) as a:
            await a.private.send(NAME, "one", b"one")
            await eventually(lambda: a.status().last_error == "no_private_channels")
            assert a.status().waiting == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["another root", "not a member"])
async def test_a_wrong_certificate_never_makes_a_private_session(pair, what):
    """The channel exists and the name is right; the certificate is not, or the chain has shut the node out."""
    if what == "another root":
        forged = Authority.create("org-b", now=pair.certificates.now)
        settings = {"identity": pair.certificates.identity("b", root=forged)}
        admits = {}
    else:
        settings = {}
        admits = {"admits": lambda name, organisation, fingerprint: name != "b"}
    async with (
        pair.site("a", **admits).running(facts_of(is_bank=True)) as a,
        pair.site("b", **settings).running(facts_of(is_bank=False)) as b,
    ):
        await a.private.send(NAME, "one", b"one")
        await b.private.send(NAME, "answer", b"answer")
        await eventually(lambda: a.status().last_error != "" and b.status().last_error != "")
        assert (a.status().received, b.status().received) == (0, 0)
        assert (a.status().is_connected, b.status().is_connected) == (False, False)


async def test_a_member_that_is_shut_out_loses_its_private_session(pair):
    shut_out: set[str] = set()
    async with (
        pair.site("a", admits=lambda name, organisation, fingerprint: name not in shut_out).running(
            facts_of(is_bank=True)
        ) as a,
        pair.site("b").running(facts_of(is_bank=False)),
    ):
        await eventually(lambda: a.status().is_connected)
        shut_out.add("b")
        a.network.recheck()
        await eventually(lambda: not a.status().is_connected and a.status().last_error != "")


@pytest.mark.parametrize("judge", ["a", "b"])
async def test_a_member_that_is_shut_out_within_the_handshake_gets_no_private_session(pair, judge):
    """Its certificate is revoked after it was welcome and before its proof was complete, whoever of them dialled."""
    shut_out: set[str] = set()
    refused = {"admits": lambda name, organisation, fingerprint: name not in shut_out}
    settings = {name: refused if name == judge else {} for name in "ab"}
    a, b = (pair.site(name, **settings[name]) for name in "ab")
    judging = a if judge == "a" else b
    welcome = judging.private.welcome

    def welcome_then_shut_out(identity, side):
        welcome(identity, side)
        shut_out.add(identity.name)

    judging.private.welcome = welcome_then_shut_out
    async with b.running(facts_of(is_bank=False)), a.running(facts_of(is_bank=True)):
        await eventually(lambda: a.status().last_error != "", timeout_s=5)
        assert shut_out
        assert not judging.private._sessions


async def test_a_full_inbox_holds_its_partner_back_and_goes_on_when_there_is_room(pair, monkeypatch):
    monkeypatch.setattr("p2p.private.log.INBOX_COUNT_MAX", 5)
    limits = ChannelLimits(window_messages_max=2)
    async with (
        pair.site("a", limits=limits).running(facts_of(is_bank=True)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        for number in range(20):
            await a.private.send(NAME, f"{number}", b"%d" % number)
        got = await b.collect(5)
        await eventually(lambda: a.status().waiting <= 15)
        while len(got) < 20:
            await b.private.done(got[-1].position)
            got += await b.collect(1, after=got[-1].position)
        assert payloads(got) == [b"%d" % number for number in range(20)]
        await delivered_all(a)


async def test_a_session_that_cannot_hold_what_is_to_go_gives_way_to_the_next(pair):
    """Twelve messages wait and its queue holds two: what fits leaves, and each session goes on where the last ended."""
    async with pair.site("a", queue_bytes_max=3_000).running(facts_of(is_bank=True)) as a:
        sent = [b"%d" % number + bytes(1_000) for number in range(12)]
        for number, payload in enumerate(sent):
            await a.private.send(NAME, f"{number}", payload)
        async with pair.site("b").running(facts_of(is_bank=False)) as b:
            assert payloads(await b.collect(12)) == sent
            await delivered_all(a)
            assert not b.private.refused


async def test_two_channels_between_the_same_nodes_share_a_session_and_nothing_else(pair):
    """Both organisations sell and issue. Each channel has its numbers; one is closed and the other goes on."""
    back = ChannelName("issuer-c", "bank-a")
    async with (
        pair.site("a").running(facts_of(is_bank=True), facts_of(back, is_bank=False, peer=ISSUER)) as a,
        pair.site("b").running(facts_of(is_bank=False), facts_of(back, is_bank=True, peer=BANK)) as b,
    ):
        assert await a.private.send(NAME, "same id", b"one") == (1, 1)
        assert await a.private.send(back, "same id", b"two") == (1, 1)
        assert {(item.channel, item.payload) for item in await b.collect(2)} == {(NAME, b"one"), (back, b"two")}
        assert len(a.private._sessions) == 1
        a.private.channels_changed(
            [facts_of(is_bank=True), facts_of(back, is_bank=False, peer=ISSUER, phase=Phase.CLOSED)]
        )
        await a.private.send(NAME, "next", b"three")
        assert payloads(await b.collect(3))[-1] == b"three"
        with pytest.raises(LocalError) as refusal:
            await a.private.send(back, "next", b"four")
        assert refusal.value.code == "channel_closed"


async def test_a_channel_that_one_side_reads_of_later_joins_the_session_that_stands(pair):
    back = ChannelName("issuer-c", "bank-a")
    async with (
        pair.site("a").running(facts_of(is_bank=True), facts_of(back, is_bank=False, peer=ISSUER)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        await a.private.send(back, "one", b"one")
        await a.private.send(NAME, "two", b"two")
        assert payloads(await b.collect(1)) == [b"two"]
        b.private.channels_changed([facts_of(is_bank=False), facts_of(back, is_bank=True, peer=BANK)])
        assert payloads(await b.collect(2)) == [b"two", b"one"]
        assert not a.private.refused
        assert not b.private.refused


async def test_positions_ascend_over_restarts_and_what_is_done_is_gone(pair):
    async with pair.site("a").running(facts_of(is_bank=True)) as a:
        for number in range(6):
            await a.private.send(NAME, f"{number}", bytes(1_000))
        async with pair.site("b").running(facts_of(is_bank=False)) as b:
            first = await b.collect(6)
            assert [item.position for item in first] == [1, 2, 3, 4, 5, 6]
            assert len(b.private.receive(0, limit=100, bytes_max=2_500)) == 2
            assert len(b.private.receive(0, limit=100, bytes_max=1)) == 1
            assert len(b.private.receive(2, limit=1, bytes_max=10_000)) == 1
            await b.private.done(6)
            await delivered_all(a)
        async with pair.site("b").running(facts_of(is_bank=False)) as b:
            assert b.private.receive(0, limit=100, bytes_max=10_000) == []
            assert not [key for key in pair.stores["b"].data if key.startswith(b"i")]
            await a.private.send(NAME, "6", b"")
            [item] = await b.collect(1, after=6)
            assert item.position == 7
    async with pair.site("b").running(facts_of(is_bank=False)) as b:
        with pytest.raises(LocalError) as refusal:
            b.private.receive(8, limit=1, bytes_max=1)
        assert refusal.value.code == "position_ahead"
        with pytest.raises(LocalError) as refusal:
            await b.private.done(8)
        assert refusal.value.code == "position_ahead"


async def test_who_waits_for_news_reads_nothing_of_the_store(pair, monkeypatch):
    """A value that does not open is then met by who reads it, and ends the node in order, not the wait as a bug."""
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b").running(facts_of(is_bank=False)) as b,
    ):
        for number in range(2):
            await a.private.send(NAME, f"{number}", b"")
        await b.collect(2)
        await delivered_all(a)
        await b.private.done(1)

        def corrupted(key: bytes) -> bytes:
            raise StorageError("not_sealed_here", "altered")

        monkeypatch.setattr(pair.stores["b"], "get", corrupted)
        with trio.fail_after(5):
            for after in (0, 1, 9):
                await b.private.wait(after)
        with trio.move_on_after(0.05) as waiting:
            await b.private.wait(2)
        assert waiting.cancelled_caught
        with pytest.raises(StorageError):
            b.private.receive(0, limit=1, bytes_max=0)


async def test_a_node_whose_store_was_lost_is_told_from_one_that_is_new(pair):
    """Within the epoch nothing passes, with the reason; in the next one all goes on."""
    async with pair.site("a").running(facts_of(is_bank=True)) as a:
        async with pair.site("b").running(facts_of(is_bank=False)) as b:
            await a.private.send(NAME, "one", b"one")
            await b.collect(1)
            await delivered_all(a)
        pair.stores["b"] = MemoryStore()
        async with pair.site("b").running(facts_of(is_bank=False)) as b:
            await eventually(lambda: a.private.refused["peer_behind"] >= 1)
            a.private.channels_changed([facts_of(is_bank=True, epoch=2)])
            b.private.channels_changed([facts_of(is_bank=False, epoch=2)])
            await a.private.send(NAME, "two", b"two")
            assert payloads(await b.collect(1)) == [b"two"]


async def test_who_broke_the_rules_too_often_is_refused_until_the_registry_says_something_new(pair):
    """The issuer signs with a key that the registry does not name, again and again, and registers it then."""
    wrong = PrivateKey.from_secret(99)
    async with (
        pair.site("a").running(facts_of(is_bank=True)) as a,
        pair.site("b", key=wrong).running(facts_of(is_bank=False)) as b,
    ):
        for _ in range(8):
            a.private._blame(ISSUER, "bad_signature")  # as if it had gone on for long
        await a.private.send(NAME, "one", b"one")
        await b.private.send(NAME, "answer", b"answer")
        await eventually(lambda: b.status().last_error == "refused_by_peer" and not a.status().is_connected)
        assert a.private.refused["bad_signature"] >= 10
        a.private.channels_changed([facts_of(is_bank=True, key=wrong)])
        assert payloads(await b.collect(1)) == [b"one"]


async def test_a_disk_that_refuses_ends_the_node_before_anything_is_said(pair):
    class Full(MemoryStore):
        async def write(self, batch) -> None:
            if any(key.startswith(b"i") for key, _ in batch):
                raise StorageError("disk_full", "no space left")
            self.put(batch)

    pair.stores["b"] = Full()
    async with pair.site("a").running(facts_of(is_bank=True)) as a:
        await a.private.send(NAME, "one", b"one")
        with pytest.RaisesGroup(pytest.RaisesExc(StorageError), flatten_subgroups=True):
            async with pair.site("b").running(facts_of(is_bank=False)):
                await trio.sleep_forever()
        assert (a.status().waiting, a.status().delivered) == (1, 0)


async def test_a_flood_of_events_leaves_time_for_whatever_else_the_node_does(pair):
    """Two thousand at once: others have their turn all the while, and the first are durable before the last come."""
    site = pair.site("a")
    turns = placed = 0

    async def submit(number: int) -> None:
        nonlocal placed
        await site.private.send(NAME, f"{number}", b"")
        placed += 1

    site.private.channels_changed([facts_of(is_bank=True)])
    async with trio.open_nursery() as nursery:
        for number in range(2_000):
            nursery.start_soon(submit, number)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(site.private._writer.work)
        while placed < 2_000:
            turns += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns >= 2_000 / 64
    assert pair.stores["a"].writes >= 2
