"""``hansa rights``: help, usage, and what it says of a message centre that runs; the chain has no part in it here."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cli.rights_center import _letters
from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from contracts.runtime.registry import Registry
from node.network import programs
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from node.network.programs import PROGRAM_PORT_STEP
from node.network.trial import free_port_base
from services.local.files import replace_file, write_service
from services.messages.config import CenterFile
from services.messages.link import open_link
from services.messages.logs import ready_file
from services.messages.port import Settlement, Verdict
from services.messages.store import NewMessage
from services.rights.events import Event, sign_events, signed_codec
from tests.cli.support import answer, fault, hansa

LEAVES = [
    ("setup",),
    ("status",),
    ("user",),
    ("business", "serve"),
    ("center", "serve"),
    ("server", "serve"),
    ("campaign", "create"),
    ("campaign", "show"),
    ("campaign", "close"),
    ("price", "set"),
    ("price", "list"),
    ("history", "verify"),
    ("dead-letters", "list"),
    ("dead-letters", "replay"),
    ("dead-letters", "discard"),
    ("refused", "list"),
]
TOKEN = "what every peer shows"
TIMEOUT_S = 20


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_explains_itself_within_80_columns(command: tuple[str, ...]) -> None:
    result = hansa("rights", *command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "Example:" in result.stdout
    assert ("--json" in result.stdout) is (command[-1] != "serve")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("center", "serve", "--rate", "0"),
        ("center", "serve", "--rate", "x"),
        ("campaign", "create", "summer", "--as", "shop"),  # --quota is missing
        ("campaign", "create", "summer", "--quota", "0", "--as", "shop"),
        ("campaign", "create", "summer", "--quota", "1"),  # --as is missing
        ("campaign", "close", "summer"),
        ("price", "set", "coffee", "-1", "--as", "shop"),
        ("price", "set", "coffee", "1.5", "--as", "shop"),
        ("user",),
        ("user", "u-1", "--out", "u-1.history"),  # nothing was proven
        ("history", "verify", "u-1.history"),  # --genesis is missing
        ("dead-letters", "replay"),
        ("dead-letters", "replay", "1", "--all"),
        ("dead-letters", "replay", "x"),
        ("dead-letters", "discard"),
        ("dead-letters", "discard", "1", "--all"),
        ("refused", "list", "--limit", "0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_a_hint(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = hansa("rights", *arguments, HANSA_NETWORK=str(tmp_path))
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("setup",), "no_network"),
        (("campaign", "show"), "no_network"),
        (("campaign", "create", "summer", "--quota", "1", "--as", "shop"), "no_network"),
        (("user", "u-1"), "no_network"),
        (("center", "serve"), "no_home"),
        (("business", "serve"), "no_home"),
        (("server", "serve", "--home", "nowhere"), "no_home"),
        (("status",), "no_home"),
        (("status", "--watch"), "no_home"),
        (("dead-letters", "list"), "no_home"),
        (("history", "verify", "none.history", "--genesis", "none.json"), "bad_genesis"),
    ],
)
def test_what_is_missing_is_said_in_one_line(arguments: tuple[str, ...], code: str, tmp_path: Path) -> None:
    assert fault(hansa("rights", *arguments, HANSA_NETWORK=str(tmp_path)), 2) == code
    result = hansa("rights", *arguments, "--json", HANSA_NETWORK=str(tmp_path))
    if arguments[-1] != "serve" and "--home" not in arguments:
        assert json.loads(result.stdout)["error"]["code"] == code


# -- a running centre ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A network folder whose nodes do not run, with a message centre that is set up."""

    network: LocalNetwork

    @property
    def path(self) -> str:
        return str(self.network.folder)

    @property
    def center(self) -> programs.Program:
        return programs.find_program(self.network, "rights-center")

    @property
    def address(self) -> str:
        listen = self.center.listen
        assert listen is not None
        return f"{listen.host}:{listen.port}"


@pytest.fixture
def network(tmp_path: Path) -> Folder:
    base = free_port_base(1)
    made = init_network(tmp_path, default_plan(validators=1), activations_of(Registry.shipped()), port_base=base)
    home = made.folder / "services" / "rights-center"
    listen = f"127.0.0.1:{base + PROGRAM_PORT_STEP + 1}"
    write_service(home, CenterFile(listen=listen, token="token", rate_per_s=1_000))
    replace_file(home / "token", TOKEN.encode())
    return Folder(made)


@pytest.fixture
def running(network: Folder) -> Iterator[Folder]:
    trio.run(programs.start, network.network, [network.center])
    yield network
    trio.run(programs.stop, network.network, [network.center])


def messages() -> list[NewMessage]:
    """Return four messages: three events, and one that is none."""
    key = PrivateKey.generate()
    event = Event("create", "o-1", "1", "u-1", "summer", 7, [], 1_000)
    chain_id = ChainId(bytes(32))
    body = signed_codec.encode(sign_events(key, chain_id, bytes(20), [event])[0])
    return [NewMessage(f"create/o-{number}/1", f"order:o-{number}", body) for number in (1, 2, 3)] + [
        NewMessage("noise", "noise", b"\x00")
    ]


async def settle_all(address: str, waiting: int = 4) -> None:
    """Publish four messages and let the first be done, the second refused, and the others given up.

    ``waiting`` is how many of them wait then, those from before among them.
    """
    said = [
        (Verdict.DONE, "17 0xab 1"),
        (Verdict.REFUSED, "quota_exceeded 18 0xcd 2"),
        (Verdict.DEAD, "bad_proof no path"),
        (Verdict.DEAD, "malformed no event"),
    ]
    async with open_link(address, token=TOKEN, name="test") as link:
        published = await link.publish(messages())
        verdicts = {item.sequence: said[index] for index, item in enumerate(published)}
        async with link.consume("test", window=10) as subscription:
            with trio.fail_after(TIMEOUT_S):
                for _ in range(waiting):
                    delivery = await anext(subscription)
                    verdict, detail = verdicts.pop(delivery.sequence)
                    await subscription.settle([Settlement(delivery.sequence, delivery.fence, verdict, detail)])


@pytest.mark.network
def test_what_became_of_messages_is_listed_and_replayed(running: Folder) -> None:
    at = ("--network", running.path)
    trio.run(settle_all, running.address)
    stats = answer(hansa("rights", "status", *at, "--json"))
    assert {name: stats[name] for name in ("waiting", "done", "refused", "dead", "delivered", "consumers")} == {
        "waiting": 0,
        "done": 1,
        "refused": 1,
        "dead": 2,
        "delivered": 4,
        "consumers": 0,
    }
    assert (stats["ratePerSecond"], stats["strict"], stats["height"]) == (1_000, False, None)
    drawn = hansa("rights", "status", *at).stdout
    assert "1 done, 1 refused, 2 dead letters" in drawn
    assert _letters(1) == "1 dead letter"
    assert "no node answers" in drawn
    refused = answer(hansa("rights", "refused", "list", *at, "--json"))["messages"]
    assert [(row["key"], row["reason"]) for row in refused] == [("create/o-2/1", "quota_exceeded 18 0xcd 2")]
    dead = answer(hansa("rights", "dead-letters", "list", *at, "--json"))["messages"]
    assert [(row["key"], row["reason"].split()[0]) for row in dead] == [
        ("create/o-3/1", "bad_proof"),
        ("noise", "malformed"),
    ]
    assert dead[0]["event"]["amount"] == 7
    assert dead[1]["event"] is None
    first = str(dead[0]["sequence"])
    more = hansa("rights", "dead-letters", "list", "--limit", "1", *at)
    assert f"--after {first}" in more.stdout
    page = answer(hansa("rights", "dead-letters", "list", "--after", first, *at, "--json"))["messages"]
    assert [row["key"] for row in page] == ["noise"]
    assert answer(hansa("rights", "dead-letters", "replay", first, *at, "--json"))["replayed"] == 1
    assert fault(hansa("rights", "dead-letters", "replay", first, *at), 2) == "unknown_message"
    second = str(dead[1]["sequence"])
    assert fault(hansa("rights", "dead-letters", "discard", second, *at), 2) == "not_confirmed"
    assert fault(hansa("rights", "dead-letters", "discard", first, "--yes", *at), 2) == "unknown_message"
    assert answer(hansa("rights", "dead-letters", "replay", "--all", *at, "--json"))["replayed"] == 1
    assert answer(hansa("rights", "dead-letters", "replay", "--all", *at, "--json"))["replayed"] == 0
    assert answer(hansa("rights", "status", *at, "--json"))["waiting"] == 2
    trio.run(settle_all, running.address, 2)
    assert answer(hansa("rights", "dead-letters", "discard", second, "--yes", *at, "--json"))["discarded"] == 1
    assert answer(hansa("rights", "dead-letters", "discard", "--all", "--yes", *at, "--json"))["discarded"] == 1
    assert answer(hansa("rights", "dead-letters", "discard", "--all", "--yes", *at, "--json"))["discarded"] == 0
    # What a running centre holds is not wiped under it.
    assert fault(hansa("network", "reset", running.path, "--yes"), 1) == "still_running"
    assert answer(hansa("rights", "status", *at, "--json"))["done"] == 1


@pytest.mark.network
def test_a_centre_is_named_by_address_and_token(running: Folder, tmp_path: Path) -> None:
    token = tmp_path / "own"
    replace_file(token, TOKEN.encode())
    elsewhere = ("--center", running.address, "--network", str(tmp_path / "none"))
    assert answer(hansa("rights", "status", *elsewhere, "--token-file", str(token), "--json"))["waiting"] == 0
    assert fault(hansa("rights", "status", *elsewhere), 1) == "bad_token"
    token.chmod(0o644)
    assert fault(hansa("rights", "status", *elsewhere, "--token-file", str(token)), 2) == "key_permissions"


@pytest.mark.network
def test_watching_outlives_the_centre_and_ends_by_ctrl_c(running: Folder) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "rights", "status", "--watch", "--json", "--network", running.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["waiting"] == 0
        trio.run(programs.kill, running.center)
        lines = iter(watching.stdout.readline, "")
        gone = next(line for line in map(json.loads, lines) if not line["ok"])
        assert gone["error"]["code"] == "center_unreachable"
        watching.send_signal(signal.SIGINT)
        output, errors = watching.communicate(timeout=TIMEOUT_S)
    finally:
        watching.kill()
        watching.wait()
    assert (watching.returncode, errors) == (0, "")
    assert all(json.loads(line) for line in output.splitlines())


@pytest.mark.network
def test_a_terminal_is_drawn_anew_until_ctrl_c(running: Folder) -> None:
    """As a person does it: in a terminal of its own, with the key that sends the signal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "cli.main", "rights", "status", "--watch", "--network", running.path],
            os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "80"},
        )
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        drawn = b""
        while drawn.count(b"Message centre") < 2:
            drawn += screen.read(4_096)
        screen.write(b"\x03")
        with suppress(OSError):  # the terminal goes with who was in it
            while screen.read(4_096):
                pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"1000 a second at the most" in drawn


@pytest.mark.network
def test_a_served_centre_takes_options_first_and_ends_by_ctrl_c(network: Folder) -> None:
    home = network.center.folder
    serve = [sys.executable, "-m", "cli.main", "rights", "center", "serve", "--home", str(home)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [*serve, "--rate", "7.5", "--strict"], stderr=subprocess.PIPE, text=True, env=environment
    ) as serving:
        try:
            assert serving.stderr is not None
            assert json.loads(serving.stderr.readline())["event"] == "ready"
            assert (home / "run" / "ready").read_text().strip() == str(serving.pid)
            stats = answer(hansa("rights", "status", "--network", network.path, "--json"))
            assert (stats["ratePerSecond"], stats["strict"]) == (7.5, True)
            second = subprocess.run(serve, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
            assert (second.returncode, second.stderr.split(":")[0]) == (1, "error port_in_use")
            serving.send_signal(signal.SIGINT)
            rest = [json.loads(line)["event"] for line in serving.stderr]
        finally:
            serving.kill()
    assert (serving.returncode, rest[-1]) == (0, "stopped")
    assert not (home / "run" / "ready").exists()


def test_a_centre_that_does_not_run_is_said_so(network: Folder) -> None:
    away = hansa("rights", "status", "--network", network.path)
    assert fault(away, 1) == "center_unreachable"
    assert "hansa network up --with rights" in away.stderr
    named = hansa("rights", "status", "--network", network.path, "--center", network.address)
    assert (fault(named, 1), "network up" in named.stderr) == ("center_unreachable", False)


@pytest.mark.parametrize("option", [("--rate", "nan"), ("--rate", "inf"), ("--rate", "1e9"), ("--store", "foo://x")])
def test_setup_writes_nothing_that_is_refused(network: Folder, option: tuple[str, str]) -> None:
    path = network.center.folder / "service.toml"
    before = path.read_bytes()
    assert fault(hansa("rights", "setup", "--network", network.path, *option), 2) == "bad_config"
    assert fault(hansa("rights", "center", "serve", "--home", str(path.parent), *option), 2) == "bad_config"
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.parent.iterdir()] == ["rights-center"]


@pytest.mark.network
def test_a_program_with_a_broken_file_is_shown_and_can_be_stopped(running: Folder) -> None:
    path = running.center.folder / "service.toml"
    path.write_text("rate_per_s = NaN\n")
    shown = json.loads(hansa("network", "status", running.path, "--json").stdout)
    assert [item["state"] for item in shown["programs"]] == ["ready"]
    assert any(str(path) in line for line in shown["attention"])
    assert answer(hansa("network", "down", running.path, "--json"))["programs"] == {"rights-center": "ended"}
    shown = json.loads(hansa("network", "status", running.path, "--json").stdout)
    assert [item["state"] for item in shown["programs"]] == ["broken"]


async def publish(address: str) -> None:
    async with open_link(address, token=TOKEN, name="test") as link:
        await link.publish(messages())


@pytest.mark.network
def test_setup_leaves_no_messages_behind_unasked(running: Folder) -> None:
    path = running.center.folder / "service.toml"
    setup = ("rights", "setup", "--network", running.path, "--store")
    other, before = "redis://127.0.0.1:1/0", path.read_bytes()
    assert fault(hansa(*setup, other), 1) == "node_unreachable"  # nothing waits; the chain would be asked next
    trio.run(publish, running.address)
    assert fault(hansa(*setup, other), 2) == "store_not_empty"
    trio.run(programs.kill, running.center)
    assert fault(hansa(*setup, other), 2) == "store_not_empty"
    assert "waiting: 4" in hansa(*setup, other).stderr
    assert fault(hansa(*setup, "embedded"), 1) == "node_unreachable"
    assert fault(hansa(*setup, other, "--leave-messages"), 1) == "node_unreachable"
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace('"embedded"', f'"{other}"'))
    assert "not known" in hansa(*setup, "embedded").stderr


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    ready = tmp_path / "run" / "ready"
    with ready_file(ready.parent):
        ready.write_text("the first's")
        with pytest.raises(LocalError) as refusal, ready_file(ready.parent):
            pass
        assert refusal.value.code == "already_running"
        assert ready.read_text() == "the first's"
    with ready_file(ready.parent):
        assert ready.read_text() == f"{os.getpid()}\n"
