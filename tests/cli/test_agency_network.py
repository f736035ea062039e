"""Agency sale from one command: up, register, send, look, prove, revoke and join anew; killed and started again."""

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node.network.homes import load_network
from node.network.programs import SYSTEMS, find_program, kill
from node.network.trial import free_port_base
from services.agency.ofd.reader import read_path
from services.agency.ofd.synthetic import orders_file
from services.agency.ofd.writer import write
from tests.cli.support import answer, fault, hansa

pytestmark = [pytest.mark.network, pytest.mark.slow]

PROGRAMS = list(SYSTEMS["agency"])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "net")
    answer(hansa("network", "init", folder, "--port-base", str(free_port_base(4)), "--json"))
    yield folder
    answer(hansa("network", "down", folder, "--json"))


class Commands:
    """The commands of one network."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def ask(self, *arguments: str) -> Any:
        return answer(hansa(*arguments, "--network", self.folder, "--json"))

    def draw(self, *arguments: str) -> str:
        """Return what people see; but for long paths it fits a terminal of 80 columns."""
        result = hansa(*arguments, "--network", self.folder)
        assert result.exit_code == 0, result.output
        assert [line for line in result.stdout.splitlines() if len(line) > 80 and "/" not in line] == []
        return result.stdout

    def fault(self, *arguments: str) -> str:
        result = hansa(*arguments, "--network", self.folder, "--json")
        assert result.exit_code == 1, result.output
        return str(json.loads(result.stdout)["error"]["code"])


def test_a_bank_joins_sells_proves_and_leaves(folder: str, tmp_path: Path) -> None:
    net = Commands(folder)
    card = answer(hansa("network", "up", folder, "--with", "agency", "--json"))
    assert [(item["name"], item["state"]) for item in card["programs"]] == [(name, "ready") for name in PROGRAMS]
    assert net.ask("agency", "setup")["done"] == []
    sell(net, tmp_path)
    prove(net, tmp_path)
    change_terms(net)
    join_anew(net, tmp_path)
    interrupt(net, tmp_path)
    # Programs that were killed are named, and start again with what they had.
    trio.run(kill, find_program(load_network(Path(folder)), "bank-a-sales"))
    status = json.loads(hansa("network", "status", folder, "--json").stdout)
    assert any("bank-a-sales does not run" in line and "--with agency" in line for line in status["attention"])
    again = answer(hansa("network", "up", folder, "--with", "agency", "--json"))
    assert sum(new["pid"] != old["pid"] for new, old in zip(again["programs"], card["programs"], strict=True)) == 2
    sent = net.ask("agency", "send", "--file", str(tmp_path / "late.txt"), "--out", str(tmp_path / "late.04"))
    assert (sent["new"], sent["done"], sent["waiting"], sent["orders"]) == (False, True, 0, 40)
    assert len(net.ask("agency", "orders", "--state", "DROPPED")["orders"]) == 2
    assert net.ask("agency", "status", "--as", "bank-a")["alarms"] == []


def interrupt(net: Commands, tmp_path: Path) -> None:
    """Send while the issuer's end is away, and press Ctrl-C: the orders stay where they are."""
    trio.run(kill, find_program(load_network(Path(net.folder)), "issuer-c-end"))
    file = tmp_path / "late.txt"
    file.write_bytes(write(orders_file(7, orders=40, accounts=30, date="20170428")))
    command = [sys.executable, "-m", "cli.main", "agency", "send", "--file", str(file), "--network", net.folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        if process.stderr is None:
            pytest.fail("no pipe")
        while not process.stderr.readline().startswith("1 of 40 answered"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "interrupted" in process.stderr.read()
        assert process.wait() == 130
    pending = net.ask("agency", "orders", "--file", str(file), "--state", "PENDING", "--limit", "100")["orders"]
    assert len(pending) == 39


def sell(net: Commands, tmp_path: Path) -> None:
    """Register the holders of a file and a user by hand; send the file, twice."""
    file = tmp_path / "OFD_996_H0_20170427_03.TXT"
    file.write_bytes(write(orders_file(7, orders=40, accounts=30)))
    register = ("agency", "register", "--bank", "bank-a", "--issuer", "issuer-c")
    send = ("agency", "send", "--file", str(file), "--out", str(tmp_path / "04.txt"))
    registered = net.ask(*register, "--holders-of", str(file))
    assert {(item["state"], item["reason"]) for item in registered["totals"]} == {("CONFIRMED", "")}
    person = ("--birth", "1990-05-17", "--risk", "C3", "--certificate", "11010119900517001X")
    user = net.ask(*register, "--user", "user-b", *person)
    assert user["order"]["confirmations"][0]["code"] == "101"
    assert user["order"]["confirmations"][0]["taAccount"]
    assert net.ask(*register, "--user", "user-b", *person)["new"] is False
    assert net.fault("agency", "register", "--bank", "bank-a", "--issuer", "issuer-d", "--user", "user-b", *person) == (
        "unknown_interface"
    )
    outcomes = tmp_path / "outcomes.csv"
    sent = net.ask(*send, "--outcomes", str(outcomes))
    totals = {(item["state"], item["reason"]): item["count"] for item in sent["totals"]}
    assert totals == {("CONFIRMED", ""): 39, ("DROPPED", "foreign_distributor"): 1}
    assert (sent["done"], sent["orders"], len(sent["packages"]), len(sent["heights"])) == (True, 40, 1, 1)
    confirmed = read_path(Path(sent["confirmations"]))
    assert (confirmed.header.file_type.value, len(confirmed.records)) == ("04", 39)
    lines = list(csv.DictReader(outcomes.read_text().splitlines()))
    assert len(lines) == 40
    assert sum(int(line["amount"]) for line in lines) == int(sent["amount"])
    assert {**net.ask(*send), "seconds": 0, "new": True, "outcomes": ""} == {**sent, "seconds": 0, "outcomes": ""}
    assert len(net.ask("agency", "orders", "--file", str(file))["orders"]) == 40
    assert net.fault("agency", "orders", "--file", str(outcomes)) == "unknown_source"
    assert "foreign_distributor" in net.draw(*send)
    assert "CONFIRMED" in net.draw("agency", "records")
    assert "DROPPED foreign_distributor" in net.draw("agency", "orders", "--bank", "bank-a", "--state", "DROPPED")


def prove(net: Commands, tmp_path: Path) -> None:
    """Disclose an order, and check it without the network; back the channel up."""
    confirmed = net.ask("agency", "orders", "--bank", "bank-a", "--state", "CONFIRMED", "--limit", "100")["orders"]
    order = next(item for item in confirmed if item["code"] == "022")
    file = tmp_path / "order.json"
    net.draw("agency", "order", order["serial"], "--bank", "bank-a", "--iso", str(tmp_path / "iso"))
    assert len(list((tmp_path / "iso").glob("setr.*.xml"))) == 2
    net.ask("agency", "disclose", order["serial"], "--bank", "bank-a", "--to", str(file))
    verify = ("agency", "dispute", "verify", str(file), "--genesis", f"{net.folder}/genesis.json")
    verdict = answer(hansa(*verify, "--json"))
    assert (verdict["status"], verdict["application"]["serial"]) == ("MUTUAL", order["serial"])
    assert verdict["anchoredHeight"] == order["anchors"][0]["height"]
    assert "both signed" in hansa(*verify).stdout
    file.write_text(file.read_text().replace(order["serial"], order["serial"][:-1] + "X"))
    assert fault(hansa(*verify), 1) == "bad_path"
    dropped = net.ask("agency", "orders", "--bank", "bank-a", "--state", "DROPPED")["orders"][0]
    missing = ("agency", "disclose", dropped["serial"], "--bank", "bank-a", "--to", str(file))
    assert net.fault(*missing) == "not_sent"
    saved = str(tmp_path / "c.backup")
    assert net.ask("channel", "export", "bank-a/issuer-c", "--as", "bank-a", "--to", saved)["messages"] == 6
    assert net.ask("channel", "import", saved)["new"] == 0
    assert net.ask("channel", "recover", "bank-a/issuer-c", "--as", "bank-a")["missing"] == 0
    assert net.fault("agency", "claim", order["root"], "--as", "bank-a") == "already_anchored"


def change_terms(net: Commands) -> None:
    """Propose, accept and see enacted; a product without terms is said."""
    propose = ("agency", "terms", "propose", "--as", "issuer-c", "--bank", "bank-a", "--issuer", "issuer-c")
    proposal = net.ask(*propose, "--product", "C00002", "--kind", "022", "--amount-min", "10000")["proposal"]
    assert net.fault("agency", "terms", "accept", proposal, "--as", "issuer-c") == "not_allowed"
    assert net.ask("agency", "terms", "accept", proposal, "--as", "bank-a")["enacted"] is True
    assert net.fault("agency", "terms", "accept", proposal, "--as", "bank-a") == "unknown_proposal"
    assert net.fault("agency", "terms", "show", "--bank", "bank-x") == "unknown_party"
    terms = net.ask("agency", "terms", "show", "--bank", "bank-a", "--product", "C00002")["terms"]
    assert (terms["version"], terms["kinds"], terms["amountMin"]) == (2, ["022"], "10000")
    assert "product:C00002" in net.draw("agency", "terms", "show", "--bank", "bank-a")


def join_anew(net: Commands, tmp_path: Path) -> None:
    """Revoke a channel, agree again, and have it opened under the next epoch."""
    revoked = net.ask("channel", "revoke", "bank-a/issuer-f", "--as", "issuer-f", "--reason", "over")
    assert (revoked["channel"]["status"], revoked["channel"]["revokedBy"]) == ("REVOKED", "issuer-f")
    assert net.fault("channel", "revoke", "bank-a/issuer-f", "--as", "bank-a") == "channel_revoked"
    assert "in grace" in net.draw("channel", "list")
    (tmp_path / "paper").write_text("agreed")
    file = str(tmp_path / "a.json")
    parties = ("--bank", "bank-a", "--issuer", "issuer-f", "--number", "again")
    net.ask("channel", "agreement", "new", file, *parties, "--document", str(tmp_path / "paper"))
    apply = ("channel", "apply", "--bank", "bank-a", "--agreement", file)
    net.ask("channel", "agreement", "sign", file, "--as", "bank-a")
    assert net.fault(*apply) == "signature_missing"
    net.ask("channel", "agreement", "sign", file, "--as", "issuer-f")
    assert net.ask("channel", "agreement", "show", file, "--check")["bad"] == []
    assert net.ask(*apply)["status"] == "OPENED"
    assert net.ask(*apply)["status"] == "OPENED"
    assert net.ask("channel", "show", "bank-a/issuer-f")["channel"]["epoch"] == 2
    assert "OPENED" in net.draw("channel", "list", "--applications")
    assert net.fault("channel", "show", "bank-a/issuer-d") == "unknown_channel"
