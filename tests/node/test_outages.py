"""Staged outages of whole nodes: what the doctor of a healthy node, of the ill one, and of all together says.

Real nodes in one process, asked over their RPC with the code behind ``hansa consensus doctor``. Outages that
need processes of their own stand in ``tests/network/test_doctor.py``.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event as ThreadEvent
from typing import Any

import msgspec
import pytest
import trio

from cli.doctor import Visit, ask_all, merge
from consensus.ledger.ids import NodeName
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import Call, make_call
from consensus.ledger.validators import seat_payload, vote_payload
from consensus.pbft.events import Effect, Propose
from consensus.pbft.messages import Prepare
from node.clock import SystemClock
from node.program import Node
from node.rpc.server import RpcConfig, serve_rpc
from node.storage.leveldb import LevelStore
from node.storage.store import Store, Write
from tests.node.site import Running, Site
from tests.node.support import pass_time

pytestmark = pytest.mark.slow

PATIENCE_S = 60
Findings = list[dict[str, Any]]


def define(unit: str) -> list[Call]:
    return [make_call("tokens", "define", {"unit": unit, "decimals": 2, "description": unit})]


class Ward:
    """A site whose nodes answer over their RPC, under some load, and the doctor that asks them."""

    def __init__(self, site: Site, nursery: trio.Nursery) -> None:
        self.site = site
        self._nursery = nursery
        self._stopping = trio.Event()
        self._sequence = 0

    async def open(self, *names: str) -> None:
        """Serve the RPC of these nodes, or of all that run."""
        for name in names or self.site.running:
            backend = self.site.running[name].node.backend
            config = RpcConfig(port=self.site.config(name).rpc.port)
            await self._nursery.start(
                lambda task_status, backend=backend, config=config: serve_rpc(
                    backend, config, stopping=self._stopping, task_status=task_status
                )
            )

    async def close(self) -> None:
        """End the RPC servers, then the nodes."""
        self._stopping.set()
        await self.site.stop()

    def work(self, at: str) -> None:
        """Submit one more transaction."""
        self.site.submit(at, self.site.sign("bank-a", define(f"u{self._sequence}"), sequence=self._sequence))
        self._sequence += 1

    async def load(self, at: str) -> None:
        """Submit one transaction after the other, each when the last is final; cancel it."""
        while True:
            height = self.site.running[at].height
            self.work(at)
            await self.site.reach(height + 1, at)

    async def ask(self) -> dict[str, Visit]:
        return await ask_all(self.site.genesis, {node.name: node.rpc_url for node in self.site.network.nodes})

    async def until(self, holds: Callable[[dict[str, Visit], Findings], bool]) -> tuple[dict[str, Visit], Findings]:
        """Ask again until the answers show what is staged, and return them."""
        found: Findings = []
        with trio.move_on_after(PATIENCE_S):
            while True:
                visits = await self.ask()
                found = merge(visits)["findings"]
                if holds(visits, found):
                    return visits, found
                await pass_time(0.1)
        raise AssertionError(f"the doctor says {found}")

    async def names(self, code: str, about: str | None) -> tuple[dict[str, Visit], dict[str, Any]]:
        """Ask until all nodes together find this of this node; return what each says, and the finding."""
        visits, found = await self.until(lambda visits, found: _picked(found, code, about) is not None)
        item = _picked(found, code, about)
        assert item is not None
        return visits, item


def _picked(findings: Findings, code: str, about: str | None) -> dict[str, Any] | None:
    return next((item for item in findings if (item["code"], item["about"]) == (code, about)), None)


def said(visits: dict[str, Visit], by: str, code: str, about: str | None = None) -> dict[str, Any]:
    """What one node says under a code."""
    answer = visits[by].answer
    assert answer is not None, visits[by]
    item = _picked(answer["findings"], code, about)
    assert item is not None, answer["findings"]
    return item


async def opened(folder: Path, nursery: trio.Nursery, *, validators: int = 4, **started: Any) -> Ward:
    """Return a site whose nodes all run and are found healthy."""
    site = Site(folder, nursery, validators=validators)
    await site.start(**started)
    ward = Ward(site, nursery)
    await ward.open()
    await ward.until(lambda visits, found: found[0]["code"] == "healthy")
    return ward


class WrongClock(SystemClock):
    """A clock that is ahead by so much."""

    ahead_ms = 14_000

    def wall_ms(self) -> int:
        return super().wall_ms() + self.ahead_ms


async def test_a_wrong_clock_is_measured_and_named(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    ill, *others = site.names
    await site.start(*others)
    await site.start(ill, clock=WrongClock())
    ward = Ward(site, nursery)
    await ward.open()
    visits, finding = await ward.names("clock_off", ill)
    assert finding["message"].startswith(f"the clock of {ill} is 14.0 s ahead")
    assert f"ahead of those of {', '.join(sorted(others))}" in finding["message"]
    assert finding["advice"] == f"set the clock of {ill} by NTP; blocks are refused from 10 s on"
    assert all("ahead" in said(visits, name, "clock_off", ill)["message"] for name in site.names)
    for name in others:
        peer = next(peer for peer in site.running[name].node.network.peers() if peer.name == ill)
        assert peer.clock is not None
        assert abs(peer.clock.ahead_ms - WrongClock.ahead_ms) <= peer.clock.uncertainty_ms
    await ward.close()


async def test_a_node_that_is_cut_off_is_named_and_the_others_go_on(tmp_path: Path, nursery: trio.Nursery) -> None:
    ward = await opened(tmp_path, nursery)
    ill, *others = ward.site.names
    ward.site.running[ill].node.network.stop()
    visits, finding = await ward.names("cut_off", ill)
    assert finding["message"].startswith(f"{ill} runs and reaches no other validator; {others[0]} says: ")
    assert f"between {ill} and {', '.join(others)}" in finding["advice"]
    alone = said(visits, ill, "no_quorum")
    assert alone["message"].startswith("1 of 4 validators vote, 3 are needed; away: ")
    assert f"away: {ill} (" in said(visits, others[0], "validators_away")["message"]
    ward.work(others[0])
    await ward.site.reach(1, *others)
    # Two of four: now it is the network that lacks a quorum, and both are named.
    ward.site.running[others[0]].node.network.stop()
    _, stuck = await ward.names("no_quorum", None)
    assert stuck["level"] == "stuck"
    assert stuck["message"].startswith("2 of 4 validators vote together, 3 are needed")
    assert all(f"{name} (cut off)" in stuck["message"] for name in (ill, others[0]))
    await ward.close()


async def test_a_wiped_node_says_that_it_casts_no_vote_and_how_it_comes_back(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    site = Site(tmp_path, nursery)
    ill, *others = site.names
    await site.start()
    site.submit(ill, site.sign("bank-a", define("first")))
    await site.reach(1)
    await site.stop(ill)
    site.wipe(ill)
    await site.start(ill)
    ward = Ward(site, nursery)
    ward._sequence = 1
    await ward.open()
    visits, finding = await ward.names("not_voting", ill)
    assert "its data were wiped or are an older copy" in finding["message"]
    assert finding["advice"] == f"hansa node rejoin {ill} lets it join again under a new key"
    assert said(visits, ill, "not_voting", ill)["message"] == finding["message"]
    async with trio.open_nursery() as working:
        working.start_soon(ward.load, others[0])
        # The others learn it from the blocks that go by without its vote.
        await ward.until(
            lambda visits, found: (
                visits[others[0]].answer is not None
                and _picked(visits[others[0]].answer["findings"], "not_voting", ill) is not None
            )  # type: ignore[index]
        )
        working.cancel_scope.cancel()
    await ward.close()


async def test_a_slow_primary_is_named(tmp_path: Path, nursery: trio.Nursery) -> None:
    ill = Site(tmp_path / "names", nursery).names[1]

    def slow_down(node: Node) -> None:
        execute = node.driver._execute

        async def late(effect: Effect) -> Any:
            if isinstance(effect, Propose) and effect.view == 0:
                await pass_time(0.4)  # under the site's time-out of half a second
            return await execute(effect)

        if node.config.name == ill:
            node.driver._execute = late  # type: ignore[method-assign]

    ward = await opened(tmp_path, nursery, prepare=slow_down)
    async with trio.open_nursery() as working:
        working.start_soon(ward.load, ward.site.names[0])
        _, finding = await ward.names("slow_primary", ill)
        assert finding["message"].startswith(f"as primary {ill} is slow")
        assert f"load, disk and clock of {ill}" in finding["advice"]
        working.cancel_scope.cancel()
    await ward.close()


class Sluggish:
    """A store whose every write takes a while, until it is let go."""

    def __init__(self, store: Store, released: ThreadEvent) -> None:
        self._store = store
        self._released = released

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, batch: list[Write]) -> None:
        self._released.wait(0.25)
        self._store.write(batch)


async def test_a_node_that_catches_up_says_how_far_it_is(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    ill, *others = site.names
    await site.start(*others)
    ward = Ward(site, nursery)
    for number in range(1, 21):
        ward.work(others[0])
        await site.reach(number, *others)
    released = ThreadEvent()
    await site.start(ill, wrap=lambda store: Sluggish(store, released))
    await ward.open()
    _, finding = await ward.names("we_are_behind", ill)
    assert finding["message"].startswith(f"{ill} works on height ")
    assert "blocks to catch up" in finding["message"]
    assert finding["advice"] == "it catches up by itself"
    released.set()
    await site.reach(20, ill)
    await ward.until(lambda visits, found: _picked(found, "we_are_behind", ill) is None)
    await ward.close()


async def test_a_validator_that_contradicts_itself_is_proven_guilty(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    guilty, *others = site.names
    puppet = await site.puppet(guilty)
    await site.start(*others)
    await puppet.meet(*others)
    ward = Ward(site, nursery)
    await ward.open(*others)
    height = site.running[others[0]].height + 1
    for digest in (b"\1" * 32, b"\2" * 32):
        payload = vote_payload(height, 0, digest)
        signature = site.vote_key(guilty).sign(Purpose.PREPARE, site.chain_id, payload)
        puppet.say(Prepare(height, 0, digest, NodeName(guilty), signature))
    visits, finding = await ward.names("evidence", guilty)
    assert finding["message"] == f"{guilty} is proven guilty of double_prepare at height {height}"
    assert f"hansa member replace-key {guilty}" in finding["advice"]
    assert said(visits, others[1], "evidence", guilty)
    await ward.close()


async def test_a_node_with_another_genesis_is_named(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    ill, *others = site.names
    path = site.config(ill).genesis
    other = msgspec.structs.replace(site.genesis, name="elsewhere")
    path.unlink()  # homes may share one file
    path.write_bytes(other.to_json())
    await site.start(*others)
    store = LevelStore.open(site.config(ill).data)
    stranger = Running(Node(site.config(ill), store), store, site.touch)
    await nursery.start(stranger.run)
    ward = Ward(site, nursery)
    await ward.open()
    site.running[ill] = stranger
    await ward.open(ill)
    visits, finding = await ward.names("other_chain", ill)
    assert finding["message"].startswith(f"{ill} serves another chain")
    assert "genesis.json" in finding["advice"]
    assert visits[ill].code == "wrong_chain"
    seen, _ = await ward.until(
        lambda visits, found: all(
            _picked(visits[name].answer["findings"], "other_chain", ill) is not None  # type: ignore[index]
            for name in others
        )
    )
    assert said(seen, others[0], "other_chain", ill)["message"] == (
        f"{ill} is on another chain: its genesis file is not ours"
    )
    await ward.close()


async def test_a_vote_key_replaced_on_chain_stops_the_old_process_from_voting(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    ward = await opened(tmp_path, nursery)
    site = ward.site
    ill = "bank-a"
    other = next(name for name in site.names if name != ill)
    ward.work(other)
    await site.reach(1)
    key, height = PrivateKey.generate(), site.running[other].height
    public = key.public.compressed
    proof = key.sign(Purpose.SEAT, site.chain_id, seat_payload(ill, public, height))
    arguments = {"node": ill, "vote_key": public, "height": height, "proof": proof}
    site.submit(other, site.sign("bank-a", [make_call("membership", "replace_key", arguments)], lane=b"m"))
    visits, finding = await ward.names("not_voting", ill)
    assert finding["message"] == (
        f"{ill} follows the chain and casts no vote: the chain names another vote key for it than this process holds"
    )
    assert f"hansa node rejoin {ill}" in finding["advice"]
    assert said(visits, ill, "not_voting", ill)["level"] == "warning"
    await ward.close()


async def test_a_copied_home_that_runs_beside_the_original_is_named(tmp_path: Path, nursery: trio.Nursery) -> None:
    ward = await opened(tmp_path, nursery)
    site = ward.site
    ill, *others = site.names
    ward.work(others[0])
    await site.reach(1)
    config = site.config(ill)
    await site.stop(ill)
    copy = tmp_path / "copy"
    shutil.copytree(config.data, copy)
    shutil.copytree(config.keys, tmp_path / "keys")
    await site.start(ill)
    twin = msgspec.structs.replace(
        config,
        data=copy,
        keys=tmp_path / "keys",
        p2p=msgspec.structs.replace(config.p2p, port=config.p2p.port + 50),
    )
    store = LevelStore.open(twin.data)
    await nursery.start(Running(Node(twin, store), store, site.touch).run)
    _, finding = await ward.names("two_processes", ill)
    assert finding["message"] == f"two processes speak under the name {ill}: a copied home runs beside the original"
    assert f"stop the copy; if both may have voted: hansa node rejoin {ill}" == finding["advice"]
    nursery.cancel_scope.cancel()
