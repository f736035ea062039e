"""Frozen nodes (SIGSTOP): their connections stay open, and yet nobody takes them for alive."""

from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.transaction import make_call
from node.network import local
from node.network.homes import LocalNetwork
from services.client.errors import Unreachable
from services.client.lanes import one_shot_lane
from tests.network.kill_loop import more_acknowledged
from tests.network.silent_primary import measure
from tests.network.statements import StatementBook, evidence_in_logs
from tests.network.support import (
    Load,
    client_of,
    missing,
    open_campaign,
    order,
    running_network,
    same_block,
    signer,
)

pytestmark = [pytest.mark.network, pytest.mark.slow]

WITHOUT_QUORUM_MS = 4_000
HEALING_S = 16
REPLACED_MS_MAX = 8_000
"""For a machine under load; ``python -m tests.network.silent_primary`` measures it on a quiet one."""


class Finding(msgspec.Struct):
    """One of the doctor's findings, as far as a test looks at it."""

    code: str
    message: str


class Diagnosis(msgspec.Struct):
    """``consensus_doctor``; ``connected`` names the peers with a session."""

    findings: list[Finding]
    connected: list[str]


async def test_frozen_nodes_and_primaries_hold_up_nobody_and_come_back(tmp_path: Path) -> None:
    async with running_network(tmp_path / "net") as network:
        await open_campaign(network)
        assert max(await measure(network, 3)) < REPLACED_MS_MAX
        load = await _one_frozen_under_load(network)
        await _two_frozen(network)
        for node in network.nodes:
            assert await missing(network, node.name, load.acknowledged) == []
        await local.stop(network)
        book = StatementBook(network.genesis)
        book.read_whole(list(network.nodes))
        assert book.contradictions == []
        assert evidence_in_logs(list(network.nodes)) == []


async def _one_frozen_under_load(network: LocalNetwork) -> Load:
    """Freeze a node until the others, which still hold its connections, say so; they go on all the while."""
    *others, frozen = (node.name for node in network.nodes)
    load = Load(network, "frozen-0")
    async with trio.open_nursery() as nursery:
        for number in range(4):
            await nursery.start(Load(network, f"frozen-{number}", load.acknowledged).run)
        await more_acknowledged(load, 20)
        local.freeze(network, frozen)
        assert await _is_found_out(network, frozen, asked=others[0])
        await more_acknowledged(load, 60)
        local.resume(network, frozen)
        await same_block(network, timeout_s=HEALING_S)
        nursery.cancel_scope.cancel()
    return load


async def _two_frozen(network: LocalNetwork) -> None:
    """Freeze two of four: nothing is final until they are back, and soon after everything is."""
    running, frozen = [node.name for node in network.nodes][:2], [node.name for node in network.nodes][2:]
    async with client_of(network, *running) as client:
        calls = [make_call("rights", "create", order(0, "two-frozen"))]
        transaction = client.sign(signer(network, "shop"), calls, sequence=0, lane=one_shot_lane("two-frozen"))
        for name in frozen:
            local.freeze(network, name)
        await client.submit(transaction)
        with pytest.raises(Unreachable) as unknown:
            await client.wait(transaction, timeout_ms=WITHOUT_QUORUM_MS)
        assert unknown.value.code == "outcome_unknown"
        for name in frozen:
            local.resume(network, name)
        with trio.fail_after(HEALING_S):
            (await client.wait(transaction)).check()
    await same_block(network, timeout_s=60)


async def _is_found_out(network: LocalNetwork, frozen: str, *, asked: str) -> bool:
    """Wait until the doctor of a node says that the frozen one does not vote; tell if it was still connected."""
    async with client_of(network, asked) as client:
        with trio.fail_after(60):
            while True:
                diagnosis = await client.request("consensus_doctor", {}, Diagnosis)
                if any(item.code == "not_voting" and frozen in item.message for item in diagnosis.findings):
                    return frozen in diagnosis.connected
                await client.pause()
