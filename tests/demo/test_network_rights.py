"""The rights demo on real processes: it holds, it can be left, and it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from node.network.homes import load_network
from node.network.local import node_process
from node.network.process import ProcessState
from node.network.programs import find_programs, status
from tests.conftest import data_folder

ROOT = Path(__file__).resolve().parents[2]
CANCELLED_PENCE = 250_684
"""What the files' matched cancellations take back, at their orders' prices."""
pytestmark = [pytest.mark.network, pytest.mark.slow]


def start(arguments: list[str], temporary: Path, errors: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    """Start ``hansa`` with temporary folders below ``temporary``, standard error on a pipe or a terminal."""
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "xterm"}
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=temporary,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


def run(arguments: list[str], temporary: Path) -> tuple[int, dict[str, object]]:
    with start(arguments, temporary) as process:
        out, err = process.communicate(timeout=240)
    assert len(out.splitlines()) == 1, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return process.returncode, document


def processes_below(folder: Path) -> list[int]:
    """Return the pids whose command line names something in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def read_until(terminal: int, text: bytes) -> None:
    """Read what a program shows on its terminal until a text appears."""
    shown = b""
    while text not in shown:
        part = os.read(terminal, 4_096)
        assert part, shown
        shown += part


def events_of(document: dict[str, object]) -> int:
    """Return how many events were to succeed."""
    events = document["events"]
    assert isinstance(events, dict)
    return sum(count for kind, count in events.items() if kind != "repeated")


def test_the_nine_days_reconcile_with_their_files_and_nothing_is_left(tmp_path: Path) -> None:
    orders = data_folder("orders")
    code, document = run(["demo", "rights", "--orders", str(orders), "--rate", "250", "--json"], tmp_path)
    assert document["ok"] is True, document
    assert code == 0
    assert (document["lines"], document["orders_played"], document["quota"]) == (25_281, 848, 34_552_828)
    rights, classes = document["rights"], document["classes"]
    assert isinstance(rights, dict)
    assert isinstance(classes, dict)
    assert rights["created"] == classes["customer_order"]["amount_pence"] == 34_552_828
    assert rights["revoked"] + rights["clawedBack"] + rights["debt"] == CANCELLED_PENCE
    assert document["ends"] == {"done": events_of(document), "refused": 2, "dead": 2, "waiting": 0}
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "is_background"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_an_interrupted_demo_ends_its_processes(number: signal.Signals, is_background: bool, tmp_path: Path) -> None:
    """What a shell's script sends to the background ignores SIGINT."""
    ours, theirs = os.openpty()
    with ExitStack() as stack:
        if is_background:
            stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN))
        process = stack.enter_context(start(["demo", "rights"], tmp_path, errors=theirs))
        os.close(theirs)
        read_until(ours, b"was killed (SIGKILL)")
        assert len(processes_below(tmp_path)) >= 3
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 130
    assert out == ""
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_synthetic_day_holds_and_keep_leaves_its_network_running(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    arguments = ["demo", "rights", "--seed", "5", "--rate", "30", "--network", str(folder), "--json"]
    try:
        code, document = run([*arguments, "--limit", "60", "--keep"], tmp_path)
        assert code == 0, document
        check_synthetic_day(document)
        network = load_network(folder)
        assert [node_process(home).state() for home in network.nodes] == [ProcessState.RUNNING] * 4
        assert [item.is_ready for item in status(find_programs(network))] == [True] * 3
    finally:
        with start(["network", "down", str(folder)], tmp_path) as process:
            process.communicate(timeout=60)
    assert processes_below(folder) == []


def check_synthetic_day(document: dict[str, object]) -> None:
    """Every event ended as it must, and both programs died while events waited."""
    assert document["ok"] is True, document
    invariants = document["invariants"]
    assert isinstance(invariants, dict)
    assert all(invariants.values())
    assert document["orders_played"] == 60
    assert document["ends"] == {"done": events_of(document), "refused": 2, "dead": 2, "waiting": 0}
    crashes = document["crashes"]
    assert isinstance(crashes, list)
    assert [(crash["program"], crash["ended_after"] > 0) for crash in crashes] == [
        ("rights-server", True),
        ("rights-center", True),
    ]


def test_bad_orders_are_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text("InvoiceNo\n")
    code, document = run(["demo", "rights", "--orders", str(path), "--json"], tmp_path)
    assert code == 2
    error = document["error"]
    assert isinstance(error, dict)
    assert error["code"] == "bad_orders"
