"""Trial networks: on free ports, gone with the block however it ends."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError
from node.network import local, trial
from node.network.genesis import default_plan
from node.network.homes import LOCAL_HOST, init_network
from node.network.local import node_process
from node.network.process import ProcessState
from node.network.trial import TrialNetwork, free_port_base, trial_network


def states(network: TrialNetwork) -> list[ProcessState]:
    return [node_process(home).state() for home in network.network.nodes]


def test_a_port_base_has_all_ports_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trial.PORTS[0] <= free_port_base(4) < trial.PORTS[1]
    monkeypatch.setattr(trial, "_is_free", lambda port: False)
    with pytest.raises(LocalError) as caught:
        free_port_base(4)
    assert caught.value.code == "port_in_use"


@pytest.mark.network
async def test_an_error_in_the_block_ends_the_processes_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[TrialNetwork] = []

    async def use() -> None:
        async with trial_network(validators=1) as network:
            seen.append(network)
            assert states(network) == [ProcessState.RUNNING]
            assert list(network.urls) == ["bank-a"]
            raise LocalError("on_purpose")

    with pytest.raises(LocalError, match="on_purpose"):
        await use()
    assert states(seen[0]) == [ProcessState.STOPPED]
    assert os.listdir(tmp_path) == []


@pytest.mark.network
@pytest.mark.parametrize("is_seen_before", [True, False])
async def test_ports_taken_meanwhile_are_left_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_seen_before: bool
) -> None:
    if not is_seen_before:  # they are taken between the check and the node's own attempt
        monkeypatch.setattr(local, "check_port_free", lambda *port: None)
    with socket.socket() as taken:
        taken.bind((LOCAL_HOST, 0))
        taken.listen()
        free = free_port_base(1)
        bases = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(trial, "free_port_base", lambda nodes: next(bases))
        async with trial_network(tmp_path / "net", validators=1) as network:
            assert network.network.nodes[0].p2p.port == free
            await network.kill("bank-a")
            assert states(network) == [ProcessState.STOPPED]
            await network.start("bank-a")
            network.freeze("bank-a")
            with trio.fail_after(5):
                while states(network) != [ProcessState.FROZEN]:  # the signal is on its way
                    await trio.lowlevel.checkpoint()
            network.resume("bank-a")
    assert states(network) == [ProcessState.STOPPED]
    assert (tmp_path / "net").is_dir()


@pytest.mark.network
async def test_a_kept_network_is_used_again_and_left_as_it_was_found(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    async with trial_network(folder, validators=1, keep=True) as network:
        pid = node_process(network.network.nodes[0]).pid()
    try:
        assert node_process(network.network.nodes[0]).pid() == pid
        async with trial_network(folder) as again:
            again.freeze("bank-a")
        assert states(again) == [ProcessState.RUNNING]
        assert node_process(again.network.nodes[0]).pid() == pid
        async with trial_network(folder) as again:
            await again.kill("bank-a")
        assert states(again) == [ProcessState.RUNNING]
    finally:
        await local.stop(network.network)
    async with trial_network(folder) as again:
        assert states(again) == [ProcessState.RUNNING]
    assert states(again) == [ProcessState.STOPPED]


async def test_a_network_made_by_others_is_refused(tmp_path: Path) -> None:
    own = init_network(tmp_path / "net", default_plan(validators=1), [])
    with pytest.raises(LocalError) as caught:
        async with trial_network(own.folder):
            pass
    assert caught.value.code == "foreign_network"
