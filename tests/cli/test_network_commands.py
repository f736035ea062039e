"""The command line over real processes: a consortium from one command, used, stopped, started again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.network.trial import free_port_base
from tests.cli.support import answer, fault, hansa

pytestmark = pytest.mark.network


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "net")
    answer(hansa("network", "init", folder, "--port-base", str(free_port_base(4)), "--json"))
    yield folder
    answer(hansa("network", "down", folder, "--json"))


def balance(folder: str, account: str) -> str:
    arguments = ("query", "tokens", "balance", "unit=point", f"account={account}", "--json", "--network", folder)
    return str(answer(hansa(*arguments))["value"]["available"])


def test_a_consortium_is_used_stopped_and_used_again(folder: str, tmp_path: Path) -> None:
    at = ("--network", folder)
    card = answer(hansa("network", "up", folder, "--json"))
    assert [node["state"] for node in card["nodes"]] == ["ready"] * 4
    again = answer(hansa("network", "up", folder, "--json"))
    assert [node["pid"] for node in again["nodes"]] == [node["pid"] for node in card["nodes"]]
    assert "starting" not in hansa("network", "up", folder).stderr
    define = ("tx", "call", "tokens", "define", "unit=point", "decimals=0", "--as", "bank-a", *at)
    drawn = hansa(*define)
    assert drawn.exit_code == 0, drawn.output
    assert "signed by" in drawn.stdout
    assert hansa(*define).exit_code == 1  # unit_exists, in the receipt
    issue = ("tx", "call", "tokens", "issue", "unit=point", "to=user-b", "amount=100", "--as", "bank-a", *at, "--json")
    issued = answer(hansa(*issue))
    assert len(issued["signers"]) >= 3
    assert balance(folder, "user-b") == "100"
    shown = answer(hansa("tx", "show", issued["id"], "--json", *at))
    assert shown | {"signers": issued["signers"]} == issued  # two certificates of one block may differ
    assert answer(hansa("tx", "explain", issued["id"], "--json", *at))["stage"] == "final"
    for node in card["nodes"]:
        status = answer(hansa("chain", "status", "--node", node["name"], "--json", *at))
        assert status["node"] == node["name"]
    assert hansa("consensus", "status", *at).exit_code == 0
    # A validator may be a block behind at any one moment.
    assert any(hansa("consensus", "doctor", *at).exit_code == 0 for _ in range(100))
    proof = tmp_path / "receipt.proof"
    answer(hansa("proof", "get", "receipt", issued["id"], "--out", str(proof), "--json", *at))
    holds = answer(hansa("proof", "verify", str(proof), "--genesis", f"{folder}/genesis.json", "--json"))
    assert holds["receipt"]["status"] == "ok"
    assert answer(hansa("chain", "verify", "--json", *at))["transactions"] == 3
    assert fault(hansa("chain", "verify", "--home", f"{folder}/nodes/bank-a", *at), 1) == "store_locked"
    refused = hansa("network", "reset", folder, "--yes")
    assert fault(refused, 1) == "still_running"
    assert f"runs, process {card['nodes'][0]['pid']};" in refused.stderr
    wrong = hansa("tx", "call", "tokens", "burn", "unit=point", "amount=1", "--as", "bank-a", *at, HANSA_PASSPHRASE="x")
    assert fault(wrong, 2) == "wrong_passphrase"

    answer(hansa("network", "down", folder, "--json"))
    down = answer(hansa("network", "down", folder, "--json"))
    assert set(down["nodes"].values()) == {"was not running"}
    assert hansa("network", "status", folder).exit_code == 1
    stored = answer(hansa("chain", "verify", "--home", f"{folder}/nodes/bank-a", "--json"))
    assert stored["transactions"] == 3
    copy = tmp_path / "damaged"
    for place in (0.1, 0.5, 0.99):
        shutil.copytree(f"{folder}/nodes/issuer-c", copy)
        flip_byte(copy / "data", place)
        result = hansa("chain", "verify", "--home", str(copy))
        assert fault(result, 1) == "chain_broken"
        assert "height" in result.stderr
        shutil.rmtree(copy)

    answer(hansa("network", "up", folder, "--json"))
    assert balance(folder, "user-b") == "100"
    answer(hansa("network", "down", folder, "--json"))
    answer(hansa("network", "reset", folder, "--yes", "--json"))
    fresh = answer(hansa("network", "up", folder, "--json"))
    assert {node["height"] for node in fresh["nodes"]} <= {0, 1}


def flip_byte(data: Path, place: float) -> None:
    """Change one bit of the largest database file."""
    file = max(
        (path for path in data.iterdir() if path.suffix in (".log", ".ldb")), key=lambda path: path.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def test_a_taken_port_is_named_and_nothing_is_left_running(folder: str) -> None:
    card = json.loads(hansa("network", "status", folder, "--json").stdout)
    port = int(card["nodes"][2]["url"].rsplit(":", 1)[1])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        result = hansa("network", "up", folder, "--json")
        error = json.loads(result.stdout)["error"]
        assert (result.exit_code, error["code"]) == (1, "port_in_use")
        assert str(port) in error["message"]
        assert "issuer-f" in error["message"]
    states = [node["state"] for node in json.loads(hansa("network", "status", folder, "--json").stdout)["nodes"]]
    assert states == ["stopped"] * 4


def test_ctrl_c_ends_a_waiting_call_with_one_line(folder: str) -> None:
    card = answer(hansa("network", "up", folder, "--json"))
    for node in card["nodes"][2:]:
        os.kill(node["pid"], signal.SIGSTOP)  # two of four: nothing becomes final
    try:
        arguments = ["tx", "call", "tokens", "define", "unit=x", "--as", "bank-a", "--network", folder]
        code = "import sys; from cli.main import main; print('on', flush=True); main()"
        call = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert call.stdout is not None
        assert call.stdout.readline() == "on\n"
        wait_for_submission(folder)
        call.send_signal(signal.SIGINT)
        output, errors = call.communicate(timeout=20)
        submitting, interrupted = errors.splitlines()
        assert submitting.startswith("submitting 0x")
        transaction_id = submitting.split()[1].rstrip(",")
        said = f"interrupted; hansa tx explain {transaction_id} says where it is"
        assert (call.returncode, output, interrupted) == (130, "", said)
    finally:
        for node in card["nodes"][2:]:
            os.kill(node["pid"], signal.SIGCONT)


def test_ctrl_c_while_starting_leaves_no_process(folder: str) -> None:
    code = "from cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "network", "up", folder]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        assert up.stderr.readline().startswith("starting")
        up.send_signal(signal.SIGINT)
        output, errors = up.communicate(timeout=30)
    assert (up.returncode, output, errors) == (130, "", "interrupted\n")
    states = [node["state"] for node in json.loads(hansa("network", "status", folder, "--json").stdout)["nodes"]]
    assert states == ["stopped"] * 4


def wait_for_submission(folder: str) -> None:
    """Return once a node's pool holds a transaction."""
    from node.network.homes import load_network

    home = load_network(Path(folder)).nodes[0]
    for _ in range(2_000):
        with socket.create_connection((home.rpc.host, home.rpc.port)) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            page = b"".join(iter(lambda: connection.recv(65_536), b"")).decode()
        if any(line.startswith("hansa_mempool_transactions 1") for line in page.splitlines()):
            return
    pytest.fail("the call was never submitted")


def test_a_node_in_the_foreground_ends_in_order_on_ctrl_c(folder: str) -> None:
    code = "from cli.main import main; main()"
    home = f"{folder}/nodes/bank-a"
    arguments = [sys.executable, "-c", code, "node", "run", "--home", home]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as node:
        assert node.stdout is not None
        printed = []
        for line in node.stdout:
            printed.append(line)
            if '"ready"' in line:
                node.send_signal(signal.SIGINT)
    assert node.returncode == 0, printed
    assert "Traceback" not in "".join(printed)
