"""The process of an environment: whom it becomes, what it loads, what it keeps, and what it never says."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from msgspec.structs import replace

from consensus.ledger.payees import AskResolve, Mode, Quote, Served, answer_codec, query_codec, query_hash
from node.program import OWN_PACKAGES
from services.payee.enclave_link import ask_quote, look_at
from services.payee.enclave_walls import (
    FILTER,
    NETWORK_NAMESPACE,
    NO_DUMPS,
    NO_NEW_PRIVILEGES,
    OWN_USER,
)
from services.payee.measurement import FILES, measure
from services.payee.sealing import open_answer
from services.payee.wording import EMULATED
from tests.payee.environments import NAME, OWN, ROOT, SECONDS_MAX, EnvironmentHome, ask_over
from tests.payee.resolving import SECRETS, PayeeWorld, acquiring

pytestmark = [pytest.mark.network, pytest.mark.slow]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
STRANGER = 61_207
MARKER = "marked-account-47110815"


def make_world() -> PayeeWorld:
    world = PayeeWorld()
    world.add("wallet-p", account=MARKER)
    world.add("wallet-q", plaintext=f"{MARKER} no acquiring information".encode())
    return world


@pytest.fixture
def home(tmp_path: Path) -> EnvironmentHome:
    user = str(STRANGER) if os.geteuid() == 0 else ""
    return EnvironmentHome(tmp_path / "environment", make_world(), user)


def served_in(home: EnvironmentHome, ask: AskResolve) -> list[Served]:
    """Ask, and return what the answer says."""
    told = home.tell(ask)
    assert told.code == "", told.message
    answer = answer_codec.decode_untrusted(told.body)
    content = open_answer(
        answer.sealed,
        query=query_hash(query_codec.decode_untrusted(ask.query).body),
        environment=NAME,
        height=answer.height,
        exchange_key=answer.exchange_key,
        own=OWN,
    )
    assert content.code == ""
    return content.served


def test_it_answers_behind_its_walls_and_ends_in_order(home: EnvironmentHome) -> None:
    with home.running() as process:
        assert (home.folder / "run" / "ready").read_text() == f"{process.pid}\n"
        quoted = trio.run(ask_quote, home.path, home.world.chain.chain_id)
        assert (quoted.quote.measurement, quoted.process) == (measure(), process.pid)
        assert quoted.user == (STRANGER if os.geteuid() == 0 else os.geteuid())
        shown = look_at(quoted.process, quoted.user)
        home.trust(quoted.quote)
        (served,) = served_in(home, home.resolution())
        assert served.content is not None
        assert msgspec.json.decode(served.content.plaintext) == msgspec.to_builtins(acquiring("wallet-p", MARKER))
    assert process.returncode == 0
    assert [line["event"] for line in home.lines] == ["ready", "stopping", "stopped"]
    assert home.lines[0]["isolation"] == EMULATED
    assert {*home.lines[0]["standing"]} >= {NO_DUMPS, NO_NEW_PRIVILEGES, FILTER}
    assert shown["system calls"].startswith("filtered")
    assert (shown["new privileges"], shown["other groups"]) == ("no", "none")
    if os.geteuid() == 0:
        assert home.lines[0]["missing"] == []
        assert (shown["own user"], shown["network"]) == ("yes", "none: a namespace of its own")
    ready = home.folder / "run" / "ready"
    assert not ready.exists() or ready.read_bytes() == b"", "it says that it answers"
    assert {path.lstat().st_uid for path in home.folder.rglob("*")} == {os.geteuid()}, "it could write to its folders"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can reach."""
    folder = Path(tempfile.mkdtemp(prefix="environment-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


_AS_A_USER = f"""
import os, sys
import services.payee.enclave_program as program
program.measure()  # what this loads lies where the user may not look
os.setgroups([])
os.setresgid({STRANGER}, {STRANGER}, {STRANGER})
os.setresuid({STRANGER}, {STRANGER}, {STRANGER})
program.main()
"""


@as_root
def test_without_root_it_runs_and_says_what_it_lacks(open_folder: Path) -> None:
    home = EnvironmentHome(open_folder / "environment", make_world())
    (open_folder / "genesis.json").chmod(0o644)
    for path in (home.folder, home.folder / "run"):
        os.chown(path, STRANGER, STRANGER)
    home.command = ("-c", _AS_A_USER, home.settings())
    with home.running():
        assert home.quote().environment == NAME
    assert {*home.lines[0]["missing"]} == {NETWORK_NAMESPACE, OWN_USER}
    assert home.lines[0]["uid"] == STRANGER
    home.command = ("-c", _AS_A_USER, home.settings(uid=STRANGER + 1))
    assert "error not_root" in home.fails()


_LISTING = f"""
import atexit, sys
import services.payee.enclave_program as program
def show():
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] in {OWN_PACKAGES!r}]
    print("\\nloaded", *sorted(module.__file__ or "" for module in ours), file=sys.stderr)
atexit.register(show)
program.main()
"""


def test_the_measurement_covers_exactly_what_it_loads(home: EnvironmentHome) -> None:
    """After it was asked for all it can be asked for, and has ended."""
    home.command = ("-P", "-c", _LISTING, home.settings())
    with home.running():
        home.trust(home.quote())
        for mode in Mode:
            assert served_in(home, home.resolution(mode))
        assert home.tell(AskResolve(b"", b"")).code == "malformed"
    (listed,) = [line for line in home.said.splitlines() if line.startswith("loaded ")]
    assert [str(Path(path).relative_to(ROOT)) for path in listed.split()[1:]] == [*FILES]


def test_keys_and_the_highest_head_outlive_it(home: EnvironmentHome) -> None:
    home.skip_command()
    with home.running():
        first = home.quote()
        home.trust(first)
        before = home.resolution()
        home.world.call("merchant-m", "set_consent", **home.world.consent())
        home.trust(first)
        assert served_in(home, home.resolution())
        assert "error already_running" in home.fails()
        assert home.tell(before).code == "stale_states"
    with home.running() as process:
        assert unsigned(home.quote()) == unsigned(first)
        assert home.tell(before).code == "stale_states"
        before = home.resolution()
        assert home.tell(before).code == ""
        home.world.call("merchant-m", "set_consent", **home.world.consent(2, is_given=False))
        home.trust(first)
        ask, deadline, head = home.resolution(), time.monotonic() + SECONDS_MAX, home.folder / "data" / "head.sealed"
        written = head.read_bytes()
        while head.read_bytes() == written:  # it is written within a second or so
            assert home.tell(ask).code == ""
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS_MAX)
    assert home.path.exists()
    with home.running():
        assert home.tell(before).code == "stale_states"
        assert served_in(home, home.resolution())


_ON_A_FULL_DISK = """
import resource
import services.payee.enclave_program as program
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
program.main()
"""


def test_a_disk_that_fails_ends_it_with_a_word(home: EnvironmentHome) -> None:
    home.skip_command()
    with home.running():
        home.trust(home.quote())
    home.command = ("-c", _ON_A_FULL_DISK, home.settings())
    with home.running() as process:
        assert served_in(home, home.resolution())
        assert process.wait(SECONDS_MAX) == 1
    assert home.lines[-1]["event"] == "stopped"
    assert home.lines[-1]["code"] in {"disk_failed", "disk_full"}
    assert "Traceback" not in home.said


def unsigned(quote: Quote) -> Quote:
    """Return a quote without what each one has anew."""
    return replace(quote, signature=bytes(64))


# -- other code ------------------------------------------------------------------------------------------


@pytest.fixture
def other_code(tmp_path: Path) -> Path:
    """A copy of the product with one word more in a file that environments load."""
    tree = tmp_path / "other"
    for name in ("consensus", "services", "cli"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "demo", "agency"))
    with (tree / "services" / "payee" / "wording.py").open("a") as file:
        file.write("# other\n")
    return tree


def test_other_code_measures_otherwise_and_does_not_open_the_keys(home: EnvironmentHome, other_code: Path) -> None:
    with home.running():
        first = home.quote()
    home.root = other_code
    said = home.fails()
    assert "error wrong_measurement" in said
    assert "--new-keys" in said
    with home.running("--new-keys"):
        second = home.quote()
    assert second.measurement != first.measurement
    assert {second.exchange_key, second.signing_key}.isdisjoint({first.exchange_key, first.signing_key})
    home.root = ROOT
    home.skip_command()
    (home.folder / "data" / "keys.sealed").unlink()
    (home.folder / "data" / "keys.sealed.1").rename(home.folder / "data" / "keys.sealed")
    assert "error not_sealed_here" in home.fails(), "the head is of the other code"


# -- nothing in clear ------------------------------------------------------------------------------------


def test_no_plaintext_and_no_key_is_left_anywhere(home: EnvironmentHome) -> None:
    """Neither in its files, nor in its log, nor in what the system shows of it; refusals and nonsense included."""
    home.log_level = "debug"
    home.write()
    home.skip_command()
    with home.running() as process:
        home.trust(home.quote())
        for mode in Mode:
            assert served_in(home, home.resolution(mode))
        with home.connected() as stream:
            good = home.resolution()
            for states in (good.states[:-1], good.states[:-40] + bytes(40), b""):
                assert MARKER not in ask_over(stream, AskResolve(good.query, states)).message
            assert ask_over(stream, AskResolve(good.query[:-1], good.states)).code == "malformed"
        shown = [(Path("/proc") / str(process.pid) / name).read_bytes() for name in ("environ", "cmdline")]
    places = {str(path): path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    places |= {"log": home.said.encode(), "process": b"".join(shown)}
    secret = places[str(home.folder / "data" / "machine.key")]
    for place, content in places.items():
        for marked in (MARKER.encode(), *SECRETS.values()):
            for spelling in (marked, marked.hex().encode(), repr(marked).encode()):
                assert spelling not in content, place
        if not place.endswith("machine.key"):
            assert secret not in content
