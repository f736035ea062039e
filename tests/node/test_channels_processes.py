"""Private channels between real node processes: kill -9 at any moment, what their logs, metrics and records say."""

import struct
from pathlib import Path

import httpx
import pytest
import trio

from consensus.ledger.codec import Value
from consensus.ledger.cooperation import agreement_hash
from consensus.ledger.keys import PrivateKey, Purpose
from node.config import CONFIG_FILE, load_config
from node.network.homes import LocalNetwork
from node.network.trial import TrialNetwork, trial_network
from p2p.frames import HEADER_BYTES, FrameKind
from services.client.errors import Refused, Unreachable
from services.client.owner import OwnerItem, OwnerLink
from tests.network.support import client_of, pass_time, signer

pytestmark = [pytest.mark.network, pytest.mark.slow]

BANK, ISSUER = "bank-a", "issuer-c"
CHANNEL = f"{BANK}/{ISSUER}"
MARKER = b"marker of an order that two nodes may know"
KILLS = 2
MESSAGES = 40
TIMEOUT_S = 120
RECORD = "frames.record"


def record_frames(network: LocalNetwork) -> None:
    for home in network.nodes:
        path = home.folder / CONFIG_FILE
        path.write_text(f'record_frames = "{RECORD}"\n' + path.read_text())


def link(network: LocalNetwork, name: str) -> OwnerLink:
    return OwnerLink(load_config(network.node(name).folder).owner_socket)


async def open_channel(network: LocalNetwork) -> None:
    """Register both, sign, apply, open."""
    keys = {name: PrivateKey.generate() for name in (BANK, ISSUER)}
    begin_ms, end_ms = network.genesis.time_ms, network.genesis.time_ms + 86_400_000
    agreed = agreement_hash("1", BANK, [ISSUER], bytes(32), begin_ms, end_ms, 60_000)
    signatures: dict[str, Value] = {
        name: key.sign(Purpose.AGREEMENT, network.genesis.chain_id(), agreed) for name, key in keys.items()
    }
    application: dict[str, Value] = {
        "number": "1",
        "issuers": [ISSUER],
        "document": bytes(32),
        "valid_from_ms": begin_ms,
        "valid_until_ms": end_ms,
        "grace_ms": 60_000,
        "signatures": signatures,
    }
    async with client_of(network) as client:
        for name, key in keys.items():
            async with link(network, name) as owner:
                channel_key = bytes.fromhex((await owner.status()).channel_key[2:])
            party: dict[str, Value] = {
                "node": name,
                "business_key": key.public.compressed,
                "channel_key": channel_key,
            }
            (await client.call(signer(network, name), "cooperation", "register_party", party)).check()
        (await client.call(signer(network, BANK), "cooperation", "apply", application)).check()
        opened = {"application": agreed}
        (await client.call(signer(network, "permission"), "cooperation", "open_channels", dict(opened))).check()


class Reader:
    """A program that takes what comes, with its position, through every restart of the node."""

    def __init__(self, network: LocalNetwork, name: str) -> None:
        self._network = network
        self._name = name
        self.taken: list[OwnerItem] = []
        self.more = trio.Event()

    async def run(self) -> None:
        async with link(self._network, self._name) as owner:
            while True:
                after = self.taken[-1].position if self.taken else 0
                try:
                    found = await owner.receive(after, wait_ms=10_000)
                    self.taken += found
                    if found:
                        await owner.done(found[-1].position)
                except Unreachable:
                    await pass_time(20)
                self.more.set()
                self.more = trio.Event()

    async def until(self, count: int) -> None:
        while len(self.taken) < count:
            await self.more.wait()


async def send_all(network: LocalNetwork, name: str, count: int) -> None:
    """Send messages one after the other, each until the node has it."""
    async with link(network, name) as owner:
        for number in range(count):
            while True:
                try:
                    sent = await owner.send(CHANNEL, f"{name}-{number}", MARKER + b" %d of " % number + name.encode())
                    assert sent.number == number + 1
                    break
                except Unreachable:
                    await pass_time(20)
            await pass_time(10)


async def kill_in_turn(trial: TrialNetwork) -> None:
    for turn in range(KILLS * 2):
        name = (BANK, ISSUER)[turn % 2]
        await pass_time(50 * turn)
        await trial.kill(name)
        await trial.start(name)


def frames_in(path: Path) -> list[tuple[int, FrameKind, bytes]]:
    """Return connection, kind and payload of what a node recorded."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        size, direction, connection = struct.unpack_from(">IcI", data, place)
        assert direction in (b"<", b">")
        frame = data[place + 9 : place + 4 + size]
        found.append((connection, FrameKind(frame[4]), frame[HEADER_BYTES:]))
        place += 4 + size
    return found


async def test_kills_at_any_moment_lose_nothing_double_nothing_and_leak_nothing(tmp_path: Path) -> None:
    with trio.fail_after(TIMEOUT_S):
        async with trial_network(tmp_path / "net", prepare=record_frames) as trial:
            network = trial.network
            await open_channel(network)
            readers = {name: Reader(network, name) for name in (BANK, ISSUER)}
            async with trio.open_nursery() as background:
                for reader in readers.values():
                    background.start_soon(reader.run)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, network, BANK, MESSAGES)
                    nursery.start_soon(send_all, network, ISSUER, MESSAGES)
                    nursery.start_soon(kill_in_turn, trial)
                for reader in readers.values():
                    await reader.until(MESSAGES)
                background.cancel_scope.cancel()
            for name, other in ((BANK, ISSUER), (ISSUER, BANK)):
                payloads = [item.payload for item in readers[name].taken]
                assert payloads == [MARKER + b" %d of " % number + other.encode() for number in range(MESSAGES)]
            await check_surface(network)
        for name in ("issuer-f", "permission"):
            frames = frames_in(network.node(name).folder / RECORD)
            assert len(frames) > 100
            assert not [kind for _, kind, _ in frames if 32 <= kind < 64]
        frames = frames_in(network.node(BANK).folder / RECORD)
        private = {connection for connection, kind, _ in frames if kind is FrameKind.PRIVATE_MESSAGE}
        public = {connection for connection, kind, _ in frames if kind is FrameKind.CONSENSUS}
        assert private
        assert not private & public
        assert [payload for _, kind, payload in frames if kind is FrameKind.PRIVATE_MESSAGE and MARKER in payload]
        for home in network.nodes:
            for path in home.folder.rglob("*"):
                if path.is_file() and path.name != RECORD:
                    assert MARKER not in path.read_bytes(), path


async def check_surface(network: LocalNetwork) -> None:
    """What everybody may ask of a node tells which channels there are and nothing of what passes."""
    async with link(network, BANK) as owner, link(network, "issuer-f") as stranger:
        [channel] = await owner.channels()
        assert (channel.channel, channel.phase, channel.waiting, channel.sent) == (CHANNEL, "open", 0, MESSAGES)
        assert await stranger.channels() == []
        with pytest.raises(Refused) as caught:
            await stranger.send(CHANNEL, "x", b"x")
        assert caught.value.code == "unknown_channel"
    url = network.node("issuer-f").rpc_url
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        body = {"jsonrpc": "2.0", "id": 1, "method": "channel_list"}
        [listed] = (await client.post(f"{url}/rpc", json=body)).json()["result"]
        assert set(listed) == {
            *("channel", "bank", "issuer", "epoch", "status", "phase", "bankNode", "issuerNode"),
            *("openedMs", "expiresMs", "graceUntilMs"),
        }
        assert (listed["channel"], listed["phase"], listed["epoch"]) == (CHANNEL, "open", 1)
        metrics = (await client.get(f"{network.node(BANK).rpc_url}/metrics")).text
        assert "hansa_channels_open 1.0" in metrics
        assert f"hansa_channel_messages_sent {MESSAGES}.0" in metrics
    logs = [home.log_file.read_text() for home in network.nodes]
    assert all("every frame is recorded in clear" in text for text in logs)
