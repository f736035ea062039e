"""Private channels of whole nodes: opened by the chain, there and back, restarts, revocation, expiry, bugs, disks."""

import shutil
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError, StorageError
from node.channels import ChannelRegistry
from node.clock import SystemClock
from node.storage.private import SealedStore
from p2p.private.port import Phase
from p2p.private.writer import Writer
from tests.node.partners import BANK, CHANNEL, ISSUER, PERMISSION, Partners
from tests.node.site import Site

WAIT_S = 20
MARKER = b"marker of one order that nobody else may see"


async def test_messages_go_there_and_back_and_nobody_else_has_them(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    with pytest.raises(LocalError) as caught:
        await partners.send(BANK, "early", b"x")
    assert caught.value.code == "unknown_channel"
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    assert await partners.send(BANK, "a", MARKER) == 1
    assert await partners.send(BANK, "a", b"another content") == 1
    [message] = await partners.received(ISSUER, 1)
    assert (message.channel, message.epoch, message.number, message.payload) == (CHANNEL, 1, 1, MARKER)
    assert await partners.send(ISSUER, "b", b"answer to " + MARKER) == 1
    [answer] = await partners.received(BANK, 1)
    assert answer.payload == b"answer to " + MARKER
    await site.until(lambda: partners.status(BANK).delivered == 1 and partners.status(ISSUER).delivered == 1)
    for name in ("issuer-f", PERMISSION):
        assert partners.part(name).status() == []
        with pytest.raises(LocalError) as caught:
            await partners.part(name).send(CHANNEL, "c", b"x")
        assert caught.value.code == "unknown_channel"
    await partners.part(ISSUER).done(message.position)
    await site.stop()
    for name in site.names:
        files = [path for path in site.config(name).data.rglob("*") if path.is_file()]
        assert not [path for path in files if MARKER in path.read_bytes()]


async def test_a_partner_that_is_away_finds_what_was_sent_when_both_have_been_restarted(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    await site.stop(ISSUER)
    for number in range(1, 4):
        assert await partners.send(BANK, f"id-{number}", b"%d" % number) == number
    assert partners.status(BANK).waiting == 3
    await site.stop(BANK)
    await site.start(BANK, ISSUER, is_private=True)
    found = await partners.received(ISSUER, 3)
    assert [(item.number, item.payload) for item in found] == [(1, b"1"), (2, b"2"), (3, b"3")]
    await site.until(lambda: partners.status(BANK).waiting == 0)
    assert await partners.send(BANK, "id-2", b"again") == 2
    assert await partners.send(BANK, "id-4", b"4") == 4
    assert [item.payload for item in await partners.received(ISSUER, 4)] == [b"1", b"2", b"3", b"4"]
    await site.stop()


async def test_r79_a_revocation_ends_what_waits_and_lets_answers_pass(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    await partners.send(BANK, "first", b"first")
    await partners.received(ISSUER, 1)
    await site.stop(ISSUER)
    await partners.send(BANK, "late", b"late")
    await partners.revoke(by=BANK)
    await partners.phase(Phase.GRACE, BANK)
    with pytest.raises(LocalError) as caught:
        await partners.send(BANK, "later", b"later")
    assert caught.value.code == "channel_revoked"
    await site.start(ISSUER, is_private=True)
    await partners.phase(Phase.GRACE)
    assert await partners.send(ISSUER, "answer", b"answer") == 1
    found = await partners.received(BANK, 2)
    assert {(item.id, item.code, item.payload) for item in found} == {
        ("late", "channel_revoked", b""),
        ("", "", b"answer"),
    }
    assert [item.payload for item in await partners.received(ISSUER, 1)] == [b"first"]
    await partners.open("2")  # opened anew, under the next epoch
    await partners.phase(Phase.OPEN)
    assert await partners.part(BANK).send(CHANNEL, "new", b"new") == (2, 1)
    assert [item.payload for item in await partners.received(ISSUER, 2)] == [b"first", b"new"]
    await site.stop()


class ShiftedClock(SystemClock):
    """A clock that can be set forward."""

    ahead_ms = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


async def test_r79_an_agreement_expires_by_block_time_and_its_grace_too(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    clock = ShiftedClock()
    await site.start(is_private=True, clock=clock)
    await partners.register()
    await partners.open(valid_ms=60_000, grace_ms=60_000)
    await partners.phase(Phase.OPEN)
    await partners.connected()
    clock.ahead_ms = 60_000
    await partners.tick()  # a block that has nothing to do with channels
    await partners.phase(Phase.GRACE)
    with pytest.raises(LocalError) as caught:
        await partners.send(BANK, "late", b"late")
    assert caught.value.code == "channel_revoked"
    await partners.send(ISSUER, "answer", b"answer")
    assert [item.payload for item in await partners.received(BANK, 1)] == [b"answer"]
    clock.ahead_ms = 120_000
    await partners.tick()
    await partners.phase(Phase.CLOSED)
    for name in (BANK, ISSUER):
        with pytest.raises(LocalError) as caught:
            await partners.send(name, "late", b"late")
        assert caught.value.code == "channel_closed"
    await site.until(lambda: not partners.status(BANK).is_connected and not partners.status(ISSUER).is_connected)
    await site.stop()


async def test_a_node_that_lost_its_private_data_says_so_and_works_again_under_the_next_epoch(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    await partners.send(BANK, "a", b"before the loss")
    await site.until(lambda: partners.status(BANK).delivered == 1)
    await site.stop(BANK)
    shutil.rmtree(site.config(BANK).private_data)
    await site.start(BANK, is_private=True)
    await partners.send(BANK, "b", b"under a number that was used")
    await site.until(lambda: partners.status(BANK).last_error == "peer_ahead")
    with pytest.raises(LocalError) as caught:
        partners.part(BANK).receive(7, limit=1, bytes_max=1)
    assert caught.value.code == "position_ahead"
    assert len(await partners.received(ISSUER, 1)) == 1
    await partners.revoke()
    await partners.open("2")
    await partners.phase(Phase.OPEN)
    assert await partners.part(BANK).send(CHANNEL, "c", b"after the loss") == (2, 1)
    found = await partners.received(ISSUER, 2)
    assert [item.payload for item in found] == [b"before the loss", b"after the loss"]
    await site.stop()


async def test_r78_a_private_part_that_fails_changes_nothing_about_the_chain(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    await partners.connected()

    def broken(self: object, *arguments: object) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as bent:
        bent.setattr(Writer, "_submit", broken)
        with pytest.raises(LocalError) as caught:
            await partners.send(BANK, "a", b"x")
        assert caught.value.code == "private_failed"
    assert partners.part(BANK).figures()["private_failed"] == 1
    with pytest.raises(LocalError) as caught:
        await partners.send(BANK, "a", b"x")
    assert caught.value.code == "private_failed"
    await site.until(lambda: not partners.status(ISSUER).is_connected)
    height = site.height
    await partners.register(ISSUER)  # the chain goes on, this node included
    assert site.running[BANK].height > height
    heads = {item.node.chain.reader.block(height + 1) for item in site.running.values()}
    assert len(heads) == 1
    await site.stop(BANK)
    await site.start(BANK, is_private=True)
    await partners.phase(Phase.OPEN)
    await partners.send(BANK, "a", b"x")
    assert [item.payload for item in await partners.received(ISSUER, 1)] == [b"x"]
    with monkeypatch.context() as bent:
        bent.setattr(ChannelRegistry, "facts", broken)
        await partners.register(ISSUER)  # a block that no private part of any node digests
        assert [partners.part(name).figures()["private_failed"] for name in site.names] == [1] * 4
        await site.until(lambda: not partners.status(BANK).is_connected and not partners.status(ISSUER).is_connected)
        await site.stop(BANK)
        await site.start(BANK, is_private=True)  # nor after a restart: the node goes on without its channels
        assert partners.part(BANK).figures()["private_failed"] == 1
    await partners.tick()
    await site.stop()


async def test_r78_the_chain_is_the_same_with_and_without_private_channels(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A node without a private database follows a chain full of channels, and its roots agree."""
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(BANK, ISSUER, is_private=True)
    await site.start("issuer-f", PERMISSION)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)
    await partners.send(BANK, "a", MARKER)
    await partners.received(ISSUER, 1)
    await partners.revoke()
    await site.reach(site.height)
    heights = min(item.height for item in site.running.values())
    for height in range(1, heights + 1):
        assert len({item.node.chain.reader.block(height) for item in site.running.values()}) == 1
    await site.stop()


async def test_a_disk_that_fails_under_the_private_part_ends_the_node(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, nursery)
    partners = Partners(site)
    await site.start(is_private=True)
    await partners.register()
    await partners.open()
    await partners.phase(Phase.OPEN)

    def broken(self: SealedStore, items: object) -> None:
        raise StorageError("disk_failed", "no more")

    with monkeypatch.context() as bent:
        bent.setattr(SealedStore, "_write", broken)
        with trio.move_on_after(1):
            await partners.send(BANK, "a", b"x")
        with trio.fail_after(WAIT_S):
            await site.running[BANK].ended.wait()
    assert [error.code for error in site.running[BANK].errors if isinstance(error, StorageError)] == ["disk_failed"]
    await site.stop(ISSUER, "issuer-f", PERMISSION)
