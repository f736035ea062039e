"""Local processes: real ones, started, frozen, killed and ended; strangers are left alone."""

import json
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import LocalError
from node.network import local
from node.network.genesis import default_plan
from node.network.homes import RPC_PORT_STEP, NodeHome, init_network
from node.network.process import LocalProcess, ProcessState
from tests.p2p.support import free_port

PLAY_NODE = """
import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"height": 7}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
CRASH = "import sys; sys.exit('the disk is on fire')"
MUTE = "import signal; print('up', flush=True); signal.pause()"
BRIEF = PLAY_NODE.replace(
    "self.wfile.write(body)",
    """self.wfile.write(body)
        self.wfile.flush()
        print('{"level": "error", "event": "stopped", "code": "corrupted", "why": "a block is damaged"}', flush=True)
        print('{"level": "info", "event": "peer down"}', flush=True)
        import os; os._exit(3)""",
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"

LEADERLESS = """
import ctypes, signal, threading
threading.Thread(target=threading.Event().wait).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def process(folder, program: str, *arguments: str) -> LocalProcess:
    """Return a process of this Python program."""
    command = (sys.executable, "-c", program, *arguments)
    return LocalProcess("player", command, folder / "run" / "player.pid", folder / "log" / "player.log")


def state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def printed(player: LocalProcess, text: str) -> None:
    """Wait until a process has printed a text."""
    with trio.fail_after(20):
        while text not in player.log_tail():
            await trio.lowlevel.checkpoint()


async def test_process_starts_once_freezes_wakes_and_ends(tmp_path):
    player = process(tmp_path, PLAY_NODE, str(free_port()))
    assert player.state() is ProcessState.STOPPED
    pid = player.start(dict(os.environ))
    assert player.start({}) == pid
    await printed(player, "listening")
    player.send_signal(signal.SIGSTOP)
    with trio.fail_after(5):
        while player.state() is not ProcessState.FROZEN:
            await trio.lowlevel.checkpoint()
    assert await player.stop(timeout_ms=5_000)
    assert player.state() is ProcessState.STOPPED
    assert not player.pid_file.exists()


async def test_process_that_ends_while_it_is_told_to_has_ended(tmp_path, monkeypatch):
    player, kill = process(tmp_path, STUBBORN), os.kill
    player.start(dict(os.environ))

    def end_at_once(pid: int, number: int) -> None:
        kill(pid, signal.SIGKILL)
        while player.state() is not ProcessState.STOPPED:
            pass
        monkeypatch.undo()

    monkeypatch.setattr(os, "kill", end_at_once)
    assert await player.stop(timeout_ms=5_000)
    assert not player.pid_file.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="threads are told by /proc alone")
async def test_process_whose_last_threads_still_hold_its_ports_has_not_ended(tmp_path):
    player = process(tmp_path, LEADERLESS)
    pid = player.start(dict(os.environ))
    with trio.fail_after(20):
        while state_letter(pid) != "Z":
            await trio.lowlevel.checkpoint()
    assert player.state() is ProcessState.RUNNING
    await player.kill()
    assert player.state() is ProcessState.STOPPED


async def test_process_whose_starter_was_killed_before_it_could_note_it_is_found(tmp_path):
    player, stranger = process(tmp_path, MUTE), process(tmp_path / "other", MUTE)
    pid, other = player.start({**os.environ}), stranger.start({**os.environ})
    try:
        player.pid_file.unlink()
        assert player.pid() is None
        assert player.find() == player.pid() == pid
        player.pid_file.unlink()
        assert player.start({**os.environ}) == pid
        player.pid_file.unlink()
        assert await player.stop(timeout_ms=5_000)
        assert player.find() is None
        assert stranger.find() == other  # the same program, but not ours
    finally:
        await player.kill()
        await stranger.kill()


async def test_stubborn_process_is_killed_after_the_deadline(tmp_path):
    player = process(tmp_path, STUBBORN)
    player.start(dict(os.environ))
    await printed(player, "up")
    assert not await player.stop(timeout_ms=100)
    assert player.pid() is None


async def test_pid_that_belongs_to_someone_else_now_is_left_alone(tmp_path):
    stranger, player = process(tmp_path / "stranger", STUBBORN), process(tmp_path, STUBBORN)
    pid = stranger.start(dict(os.environ))
    player.pid_file.parent.mkdir()
    for content in (json.dumps({"pid": pid, "began": "boot:1"}), json.dumps({"pid": 1, "began": ""}), "garbage", ""):
        player.pid_file.write_text(content)
        assert player.state() is ProcessState.STOPPED
        assert await player.stop(timeout_ms=100)
        assert stranger.state() is ProcessState.RUNNING
    with pytest.raises(LocalError) as raised:
        player.send_signal(signal.SIGKILL)
    assert raised.value.code == "not_running"
    await stranger.kill()


def free_port_base(*, nodes: int) -> int:
    """Return a base whose p2p and RPC ports are free, below the range that systems hand out."""
    first = 12_000 + os.getpid() % 100 * 100
    for port_base in range(first, first + 10_000, RPC_PORT_STEP * 2):
        with ExitStack() as stack:
            try:
                for port in (port_base + step + index for step in (0, RPC_PORT_STEP) for index in range(nodes)):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return port_base
    raise AssertionError("no free ports")


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Two homes whose processes are players with a health page."""

    def player(home: NodeHome) -> LocalProcess:
        accidents = [
            program
            for name, program in (("crash", CRASH), ("mute", MUTE), ("brief", BRIEF))
            if (home.folder / name).exists()
        ]
        program = accidents[0] if accidents else PLAY_NODE
        command = (sys.executable, "-c", program, str(home.rpc.port))
        return LocalProcess(home.name, command, home.run / "node.pid", home.log_file)

    monkeypatch.setattr(local, "node_process", player)
    return init_network(tmp_path / "net", default_plan(validators=2), [], port_base=free_port_base(nodes=2))


async def test_network_up_status_accidents_down(network):
    before = await local.status(network)
    assert [(item.state, item.is_ready, item.pid) for item in before] == [(ProcessState.STOPPED, False, None)] * 2
    started = await local.start(network)
    assert [(item.state, item.is_ready, item.height) for item in started] == [(ProcessState.RUNNING, True, 7)] * 2
    assert await local.start(network) == started
    with pytest.raises(LocalError, match="bank-a runs"):
        await local.reset(network)
    await local.kill(network, "bank-a")
    assert [item.state for item in await local.status(network)] == [ProcessState.STOPPED, ProcessState.RUNNING]
    again = await local.start(network, ["bank-a"])
    assert again[0].is_ready
    assert again[0].pid != started[0].pid
    local.freeze(network, "issuer-c")
    with trio.fail_after(5):
        while (await local.status(network))[1].state is not ProcessState.FROZEN:
            await trio.lowlevel.checkpoint()
    with trio.fail_after(20), pytest.raises(LocalError, match=f"issuer-c is frozen .*-CONT {again[1].pid}"):
        await local.start(network)
    local.resume(network, "issuer-c")
    local.freeze(network, "issuer-c")
    assert await local.stop(network) == {"bank-a": True, "issuer-c": True}
    assert await local.stop(network) == {"bank-a": True, "issuer-c": True}
    await local.reset(network)


async def test_port_in_use_names_port_and_node_and_starts_nothing(network):
    taken = network.node("issuer-c").rpc.port
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", taken))
        holder.listen()
        with pytest.raises(LocalError, match=f"port {taken} .*issuer-c") as raised:
            await local.start(network)
    assert raised.value.code == "port_in_use"
    assert {item.state for item in await local.status(network)} == {ProcessState.STOPPED}


async def test_node_that_ends_at_its_start_is_named_with_its_log(network):
    (network.node("issuer-c").folder / "crash").touch()
    with pytest.raises(LocalError, match=r"issuer-c .*disk is on fire") as raised:
        await local.start(network)
    assert raised.value.code == "node_exited"
    assert {item.state for item in await local.status(network)} == {ProcessState.STOPPED}


async def test_node_that_ends_right_after_it_was_ready_is_named_with_its_reason(network):
    home = network.node("issuer-c")
    (home.folder / "brief").touch()
    with pytest.raises(LocalError) as raised:
        await local.start(network)
    assert raised.value.code == "node_exited"
    assert raised.value.message == (
        f"issuer-c ended at its start: corrupted: a block is damaged (log: {home.log_file})"
    )


async def test_node_that_never_answers_is_ended_after_the_deadline(network):
    (network.node("issuer-c").folder / "mute").touch()
    with pytest.raises(LocalError, match=r"400 ms: issuer-c$") as raised:
        await local.start(network, timeout_ms=400)
    assert raised.value.code == "not_ready"
    assert {item.state for item in await local.status(network)} == {ProcessState.STOPPED}


async def test_cancelled_start_leaves_nothing_running(network):
    mute = network.node("issuer-c")
    (mute.folder / "mute").touch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(local.start, network)
        await printed(local.node_process(mute), "up")
        nursery.cancel_scope.cancel()
    assert {item.state for item in await local.status(network)} == {ProcessState.STOPPED}


def test_command_line_of_a_node(tmp_path):
    network = init_network(tmp_path / "net", default_plan(validators=1), [])
    home = network.node("bank-a")
    assert local.node_process(home).arguments == (
        sys.executable,
        "-m",
        "cli.main",
        "node",
        "run",
        "--home",
        str(home.folder),
    )


@pytest.mark.parametrize(
    ("log", "ending"),
    [
        ([], ("never_started", None)),
        (['{"level": "info", "event": "stopped", "height": 4}'], ("ended", 0)),
        (['{"level": "info", "event": "ready"}', '{"level": "info", "event": "peer down"}'], ("killed", None)),
        (
            ['{"level": "error", "event": "stopped", "code": "corrupted"}', '{"level": "info", "event": "listening"}'],
            ("killed", None),  # what an earlier life said does not count
        ),
        (
            ['{"level": "error", "event": "stopped", "code": "disk_failed", "why": "full", "exit": 3}'],
            ("disk_failed", 3),
        ),
        (["error store_locked: another process holds the data"], ("store_locked", None)),
        (["Traceback (most recent call last):", "    | ValueError: no", "    +-------"], ("crashed", None)),
        (["the disk is on fire"], ("failed", None)),
    ],
)
def test_last_words_of_a_process(tmp_path, log, ending):
    player = process(tmp_path, "")
    player.log_file.parent.mkdir()
    player.log_file.write_text("\n".join(log))
    found = player.ending()
    assert (found.code, found.exit_code) == ending


def test_log_that_breaks_off_on_a_full_disk_tells_of_it(tmp_path, monkeypatch):
    player = process(tmp_path, "")
    player.log_file.parent.mkdir()
    player.log_file.write_text('{"level": "info", "event": "ready"}\n')
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert player.ending().code == "disk_full"
