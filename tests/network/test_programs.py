"""The service programs of a network folder as real processes: in order, told ready by their own word, ended in reverse.

None of them needs a node to start: what they ask of the chain they ask again until it answers.
"""

import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError
from contracts.runtime.registry import Registry
from node.network import programs
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from node.network.local import environment
from node.network.process import ProcessState
from node.network.programs import PROGRAM_PORT_STEP, Program
from node.network.trial import free_port_base
from services.local.files import replace_file, write_service
from services.messages.config import CenterFile
from services.rights.config import BusinessFile, ServerFile

pytestmark = [pytest.mark.network, pytest.mark.slow]

CENTER, BUSINESS, SERVER = "rights-center", "rights-business", "rights-server"
STATE_TIMEOUT_S = 20


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[LocalNetwork]:
    """A folder whose nodes do not run, with the three programs set up; none of them runs afterwards."""
    base = free_port_base(1)
    network = init_network(tmp_path, default_plan(validators=1), activations_of(Registry.shipped()), port_base=base)
    services, center = network.folder / "services", f"127.0.0.1:{base + PROGRAM_PORT_STEP + 1}"
    shared = {
        "center": center,
        "center_token": "../rights-center/token",
        "genesis": "../../genesis.json",
        "nodes": list(network.rpc_urls),
        "keys": "../../identities",
        "passphrase": "../../identities/passphrase",
    }
    write_service(services / CENTER, CenterFile(listen=center, token="token", rate_per_s=100))
    replace_file(services / CENTER / "token", b"secret")
    listen, server = f"127.0.0.1:{base + PROGRAM_PORT_STEP}", f"0x{network.identity('shop').address.hex()}"
    write_service(services / BUSINESS, BusinessFile(listen=listen, server=server, event_key="shop", **shared))  # type: ignore[arg-type]
    write_service(services / SERVER, ServerFile(name="r1", account="shop", **shared))  # type: ignore[arg-type]
    yield network
    await programs.stop(network, programs.find_programs(network))
    assert {*states(network)} == {ProcessState.STOPPED}


def began(pid: int | None) -> int:
    """Return when a process began, in clock ticks since the machine did."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def states(network: LocalNetwork) -> list[ProcessState]:
    return [item.state for item in programs.status(programs.find_programs(network))]


async def until(network: LocalNetwork, name: str, state: ProcessState) -> None:
    """Return once a signal has done its work; the system sends no event of that."""
    with trio.fail_after(STATE_TIMEOUT_S):
        while programs.find_program(network, name).process.state() is not state:
            await trio.lowlevel.checkpoint()


async def refusal(network: LocalNetwork, found: list[Program], *, timeout_ms: int = 30_000) -> LocalError:
    with pytest.raises(LocalError) as refused:
        await programs.start(network, found, timeout_ms=timeout_ms)
    return refused.value


async def test_programs_start_in_order_and_stay_until_they_are_stopped(network: LocalNetwork) -> None:
    found = programs.find_programs(network, "rights")
    assert [program.name for program in found] == [CENTER, BUSINESS, SERVER]
    first = await programs.start(network, found)
    assert [(item.state, item.is_ready, item.ending) for item in first] == [(ProcessState.RUNNING, True, None)] * 3
    pids = [item.pid for item in first]
    beginnings = [began(pid) for pid in pids]
    assert beginnings == sorted(beginnings)
    assert [item.pid for item in await programs.start(network, found)] == pids
    ended = await programs.stop(network, found)
    assert [*ended.items()] == [(SERVER, True), (BUSINESS, True), (CENTER, True)]
    assert not any((program.folder / "run" / "ready").exists() for program in found)
    assert [item.ending for item in programs.status(found)] == [None] * 3  # they were told to
    second = await programs.start(network, found)
    assert not {item.pid for item in second} & {*pids}
    assert [item.is_ready for item in second] == [True] * 3


async def test_what_a_killed_program_left_is_harmless(network: LocalNetwork) -> None:
    found = programs.find_programs(network)
    await programs.start(network, found)
    center = programs.find_program(network, CENTER)
    await programs.kill(center)
    after = programs.status(found)
    assert [(item.is_ready, item.state is ProcessState.RUNNING) for item in after] == [
        (False, False),
        *[(True, True)] * 2,
    ]
    assert after[0].ending is not None
    assert after[0].ending.code == "killed"
    assert (center.folder / "run" / "ready").exists()
    # The file names a process that lives, and is not this program's.
    (center.folder / "run" / "ready").write_text(f"{os.getpid()}\n")
    center.process.start(environment())
    assert [item.is_ready for item in programs.status(found)] == [False, True, True]
    await programs.start(network, found)
    again = programs.status(found)
    assert [item.is_ready for item in again] == [True] * 3
    assert [item.pid for item in again[1:]] == [item.pid for item in after[1:]]


async def test_a_second_process_in_a_folder_is_refused_and_changes_nothing(network: LocalNetwork) -> None:
    found = programs.find_programs(network)
    await programs.start(network, found)
    with trio.fail_after(STATE_TIMEOUT_S):
        second = await trio.run_process(
            [*found[2].process.arguments], env=environment(), capture_stdout=True, capture_stderr=True, check=False
        )
    assert second.returncode != 0
    assert b"error already_running" in second.stderr
    assert [item.is_ready for item in programs.status(found)] == [True] * 3


async def test_a_frozen_program_is_told_from_one_that_is_not_ready(network: LocalNetwork) -> None:
    found = programs.find_programs(network)
    await programs.start(network, found)
    business = programs.find_program(network, BUSINESS)
    programs.freeze(business)
    await until(network, BUSINESS, ProcessState.FROZEN)
    assert [item.is_ready for item in programs.status(found)] == [True, False, True]
    (business.folder / "run" / "ready").unlink()
    error = await refusal(network, found)
    assert (error.code, "kill -CONT" in error.message) == ("program_frozen", True)
    programs.resume(business)
    await until(network, BUSINESS, ProcessState.RUNNING)
    assert (await refusal(network, found, timeout_ms=50)).code == "not_ready"
    # What ran before a start that failed runs on.
    assert states(network) == [ProcessState.RUNNING] * 3
    programs.freeze(business)
    assert (await programs.stop(network, [business]))[BUSINESS] in (True, False)
    with pytest.raises(LocalError, match="does not run"):
        business.process.send_signal(signal.SIGTERM)


async def test_a_taken_port_is_named_before_anything_starts(network: LocalNetwork) -> None:
    found = programs.find_programs(network)
    listen = found[1].listen
    assert listen is not None
    with socket.socket() as taken:
        taken.bind((listen.host, listen.port))
        taken.listen()
        error = await refusal(network, found)
    assert error.code == "port_in_use"
    assert str(listen.port) in error.message
    assert BUSINESS in error.message
    assert not any(program.process.log_file.exists() for program in found)


async def test_a_program_that_cannot_start_is_quoted_and_the_others_end_again(network: LocalNetwork) -> None:
    found = programs.find_programs(network)
    path = found[2].folder / "service.toml"
    path.write_text(path.read_text().replace('account = "shop"', 'account = "nobody"'))
    error = await refusal(network, found)
    assert error.code == "program_exited"
    assert "unknown_key" in error.message
    assert states(network) == [ProcessState.STOPPED] * 3


async def test_only_what_is_set_up_is_found(network: LocalNetwork) -> None:
    (network.folder / "services" / SERVER / "service.toml").unlink()
    assert [program.name for program in programs.find_programs(network)] == [CENTER, BUSINESS]
    with pytest.raises(LocalError) as unknown:
        programs.find_program(network, SERVER)
    assert unknown.value.code == "unknown_program"
    with pytest.raises(LocalError) as system:
        programs.find_programs(network, "lending")
    assert system.value.code == "unknown_system"
    path = network.folder / "services" / BUSINESS / "service.toml"
    text = path.read_text()
    path.write_text('listen = "unix:/run/x"')
    assert programs.find_program(network, BUSINESS).listen is None
    for wrong in ('listen = "nowhere"', "listen = "):
        path.write_text(wrong)
        found = programs.find_programs(network)
        assert [program.fault.partition(":")[0] for program in found] == ["", str(path)]
        assert (await refusal(network, found)).code == "bad_config"
        assert states(network) == [ProcessState.STOPPED] * 2
    path.write_text(text)
