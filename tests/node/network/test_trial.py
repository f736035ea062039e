"""Trial networks: on free ports, gone with the block however it ends."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from node.network import trial
from node.network.homes import LOCAL_HOST
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
async def test_ports_taken_meanwhile_are_left_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            assert states(network) == [ProcessState.FROZEN]
            network.resume("bank-a")
    assert states(network) == [ProcessState.STOPPED]
    assert (tmp_path / "net").is_dir()
