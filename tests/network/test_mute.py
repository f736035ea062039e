"""Strangers that connect and say nothing: they are cut off in time, and nobody else notices them."""

from pathlib import Path

import pytest
import trio

from node.network import local
from tests.network.kill_loop import more_acknowledged
from tests.network.support import Load, open_campaign, running_network, same_block

pytestmark = [pytest.mark.network, pytest.mark.slow]

MUTE, AGAIN = 500, 100
"""Strangers that come once, and that come again whenever they are cut off."""
CUT_OFF_S = 15
"""A handshake may take 5 s; the rest is for a machine under load."""
GROWTH_BYTES_MAX = 50 * 1024 * 1024
HALF_A_HELLO = bytes.fromhex("16030100c8010000")
"""How a TLS client begins; what it announces never comes."""


async def test_r69_five_hundred_mute_handshakes_are_cut_off_and_the_network_goes_on(tmp_path: Path) -> None:
    async with running_network(tmp_path / "net") as network:
        await open_campaign(network)
        target, peer = network.nodes[0], network.nodes[1]
        load = Load(network, "mute-0")
        async with trio.open_nursery() as nursery:
            for number in range(4):
                await nursery.start(Load(network, f"mute-{number}", load.acknowledged).run)
            await more_acknowledged(load, 20)
            before_bytes = _resident_bytes(local.node_process(target).pid())
            with trio.fail_after(150):
                async with trio.open_nursery() as strangers:
                    for number in range(AGAIN):
                        strangers.start_soon(_be_mute_again, target.p2p.host, target.p2p.port, number % 2 == 0)
                    await more_acknowledged(load, 20)
                    await local.kill(network, peer.name)  # who comes back has to get through among them
                    await local.start(network, [peer.name])
                    await same_block(network, timeout_s=60)
                    strangers.cancel_scope.cancel()
                async with trio.open_nursery() as strangers:
                    for number in range(MUTE):
                        strangers.start_soon(_be_mute, target.p2p.host, target.p2p.port, number % 2 == 0)
            await more_acknowledged(load, 20)
            assert _resident_bytes(local.node_process(target).pid()) < before_bytes + GROWTH_BYTES_MAX
            nursery.cancel_scope.cancel()


async def _be_mute_again(host: str, port: int, says_something: bool) -> None:
    """Connect anew whenever it was cut off."""
    while True:
        await _be_mute(host, port, says_something)


async def _be_mute(host: str, port: int, says_something: bool) -> None:
    """Connect, begin at most, and wait to be cut off."""
    stream = await trio.open_tcp_stream(host, port)
    async with stream:
        try:
            if says_something:
                await stream.send_all(HALF_A_HELLO)
            with trio.fail_after(CUT_OFF_S):
                assert await stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            pass  # reset: cut off as well


def _resident_bytes(pid: int | None) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"{pid} has no memory")
