"""Real nodes as processes: they find each other, and again after one was killed or frozen."""

import httpx
import pytest
import trio

from contracts.runtime.registry import Registry
from node.network import local
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from node.network.process import ProcessState
from tests.node.network.test_local import free_port_base

pytestmark = [pytest.mark.network, pytest.mark.slow]
LOOK_AGAIN_S = 0.05


async def connected_peers(network: LocalNetwork, name: str) -> set[str]:
    """Ask a node whom it is connected with."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "net_peers", "params": {}}
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{network.node(name).rpc_url}/rpc", json=call)
    return {peer["name"] for peer in answer.json()["result"] if peer["state"] == "connected"}


async def until_connected(network: LocalNetwork, name: str, peers: set[str]) -> None:
    """Wait until a node is connected with exactly these peers."""
    wait = trio.Event()
    with trio.fail_after(20):
        while await connected_peers(network, name) != peers:
            with trio.move_on_after(LOOK_AGAIN_S):
                await wait.wait()


async def test_nodes_meet_and_meet_again_after_kill_and_freeze(tmp_path):
    activations = activations_of(Registry.shipped())
    network = init_network(tmp_path / "net", default_plan(), activations, port_base=free_port_base(nodes=4))
    everyone = {node.name for node in network.nodes}
    try:
        started = await local.start(network)
        assert all(item.is_ready for item in started)
        for name in everyone:
            await until_connected(network, name, everyone - {name})
        await local.kill(network, "issuer-c")
        await until_connected(network, "bank-a", {"issuer-f", "permission"})
        await local.start(network, ["issuer-c"])
        for name in everyone:
            await until_connected(network, name, everyone - {name})
        local.freeze(network, "permission")
        with trio.fail_after(5):
            while local.node_process(network.node("permission")).state() is not ProcessState.FROZEN:
                await trio.lowlevel.checkpoint()
        local.resume(network, "permission")
        await until_connected(network, "permission", everyone - {"permission"})
        assert set((await local.stop(network)).values()) == {True}
    finally:
        await local.stop(network)
