"""Settlement from one command: up, trade, refuse, reverse, repair, reconcile; killed, interrupted, started again."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node.network.homes import load_network
from node.network.programs import PROGRAM_PORT_STEP, find_program, kill
from node.network.trial import free_port_base
from services.client.times import utc_text
from tests.cli.support import answer, hansa

pytestmark = [pytest.mark.network, pytest.mark.slow]

PROGRAMS = ["settle-accounts", "settle-center", "settle-events", "settle-payer"]
SALE = ("settle", "trade", "--seller", "shop", "--buyer", "user-b", "--asset", "BOND-1", "--units", "10")
LIFTS_MAX = 100


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
        """Return what people see; it fits a terminal of 80 columns."""
        result = hansa(*arguments, "--network", self.folder)
        assert result.exit_code == 0, result.output
        assert [line for line in result.stdout.splitlines() if len(line) > 80 and "/" not in line] == []
        return result.stdout

    def refused(self, *arguments: str) -> Any:
        """Return the object of a command that the system refuses."""
        result = hansa(*arguments, "--network", self.folder, "--json")
        assert result.exit_code == 1, result.output
        return json.loads(result.stdout)

    def refused_use(self, *arguments: str) -> Any:
        """Return the error of a command that was wrongly used."""
        result = hansa(*arguments, "--network", self.folder, "--json")
        assert result.exit_code == 2, result.output
        return json.loads(result.stdout)["error"]

    def up(self) -> Any:
        return answer(hansa("network", "up", self.folder, "--with", "settlement", "--json"))

    def kill(self, program: str) -> None:
        trio.run(kill, find_program(load_network(Path(self.folder)), program))

    def money(self, account: str) -> tuple[str, str]:
        """Return what is available and held in an account."""
        found = self.ask("settle", "accounts", "show", account)
        return found["available"], found["held"]

    def units(self, account: str) -> tuple[str, str]:
        """Return what is available and reserved of BOND-1."""
        found = self.ask("query", "tokens", "balance", "unit=BOND-1", f"account={account}")["value"]
        return found["available"], found["reserved"]


def test_units_and_money_move_both_or_neither(folder: str) -> None:
    net = Commands(folder)
    refuse_a_taken_port(net)
    net.ask("settle", "setup", "--allow-faults")
    card = net.up()
    assert [(item["name"], item["state"]) for item in card["programs"]] == [(name, "ready") for name in PROGRAMS]
    assert net.up()["programs"] == card["programs"]
    sell(net)
    refuse(net)
    reverse(net)
    repair(net)
    interrupt(net)
    reconcile(net)
    change_by_setup(net)


def refuse_a_taken_port(net: Commands) -> None:
    """A program's taken port is named, no program runs then, and the nodes do."""
    base = min(node.p2p.port for node in load_network(Path(net.folder)).nodes)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + PROGRAM_PORT_STEP + 2))
        taken.listen()
        result = hansa("network", "up", net.folder, "--with", "settlement", "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"]) == (1, "port_in_use")
    assert "settle-accounts" in error["message"]
    assert f"port {base + PROGRAM_PORT_STEP + 2}" in error["message"]


def sell(net: Commands) -> None:
    """A trade, the same again, and another one under its id."""
    sold = net.ask(*SALE, "--price", "1250.50", "--event", "first")
    assert (sold["state"], sold["outcome"], sold["price"], sold["units"]) == ("COMPLETED", "PAID", "1250.50", "10")
    assert [row["to"] for row in sold["history"]] == ["REGISTERED", "REGISTERED", "ACCOUNT_PENDING", "COMPLETED"]
    assert net.ask(*SALE, "--price", "1250.50", "--event", "first") == sold
    assert net.refused(*SALE, "--price", "1250.51", "--event", "first")["error"]["code"] == "event_conflict"
    assert net.ask("tx", "show", sold["transactionId"])["height"] == sold["height"]
    assert (net.money("shop")[0], net.money("user-b")) == ("100001250.50", ("99998749.50", "0.00"))
    assert net.units("shop") == ("999990", "0")
    assert net.ask(*SALE, "--price", "1", "--no-wait")["state"] in ("REGISTERED", "ACCOUNT_PENDING", "COMPLETED")
    seen = net.draw("settle", "events", "show", "first")
    assert "COMPLETED (完成), paid" in seen
    assert "1,250.50 CNY (simulated money): user-b → shop" in seen
    assert sold["transactionId"] in seen


def refuse(net: Commands) -> None:
    """No money, no units, and names that nobody knows: nothing moves."""
    before = net.units("shop")
    poor = net.refused(*SALE, "--price", "999999999")
    assert (poor["state"], poor["error"]["code"], poor["height"]) == ("CANCELLED", "insufficient_funds", None)
    assert "money" in poor["error"]["message"]
    bare = net.refused(*SALE, "--price", "1", "--units", "99999999")
    assert (bare["state"], bare["error"]["code"]) == ("CANCELLED", "insufficient_funds")
    assert bare["height"]
    assert "units" in bare["error"]["message"]
    assert net.refused(*SALE, "--price", "1", "--payer", "nobody")["error"]["code"] == "unknown_account"
    assert net.refused(*SALE, "--price", "1", "--currency", "USD")["error"]["code"] == "wrong_currency"
    for wrong, code in (
        (("--buyer", "nobody"), "unknown_account"),
        (("--buyer", "shop"), "bad_trade"),
        (("--payer", "shop"), "bad_trade"),
        (("--asset", "GOLD"), "unknown_unit"),
        (("--seller", "nobody"), "unknown_key"),
    ):
        assert net.refused_use(*SALE, "--price", "1", *wrong)["code"] == code
    assert net.units("shop") == before


def change_by_setup(net: Commands) -> None:
    """Set-up changes what is asked for, and says which program has to be started again."""
    assert net.ask("settle", "setup")["done"] == []
    changed = net.ask("settle", "setup", "--no-faults")
    assert (changed["done"], changed["restart"]) == (["settle-accounts/service.toml"], ["settle-accounts"])
    error = net.refused_use("settle", "setup", "--database", "postgresql://hansa:secret@localhost/settlement")
    assert error["code"] == "store_not_empty"
    assert "secret" not in error["message"]
    assert net.refused_use("settle", "setup", "--database", "mysql://localhost/x")["code"] == "bad_config"


def reverse(net: Commands) -> None:
    """A payment that cannot be made waits for an operator, who has the units given back."""
    before, money = net.units("shop"), net.money("user-b")
    net.ask("settle", "accounts", "faults", "--set", "refuse", "--operation", "pay", "--count", "0")
    stuck = net.refused(*SALE, "--price", "7", "--event", "stuck")
    assert (stuck["state"], stuck["flagged"], stuck["error"]["code"]) == ("ACCOUNT_PENDING", True, "account_frozen")
    listed = net.ask("settle", "events", "list")
    assert (listed["events"][0]["event"], listed["flaggedInAll"]) == ("stuck", 1)
    assert "Need an operator" in net.draw("settle", "events", "list", "--flagged")
    net.ask("settle", "events", "repair", "stuck", "--reverse")
    again = net.refused(*SALE, "--price", "7", "--event", "stuck")  # the same trade: its end is waited for
    assert (again["outcome"], again["error"]["code"]) == ("REVERSED", "event_reversed")
    assert net.ask("settle", "events", "show", "stuck.reverse")["original"] == "stuck"
    assert net.refused("settle", "events", "repair", "stuck", "--retry")["error"]["code"] == "event_finished"
    assert net.refused("settle", "events", "show", "nothing")["error"]["code"] == "unknown_event"
    assert (net.units("shop"), net.money("user-b")) == (before, money)


def repair(net: Commands) -> None:
    """Once its cause is mended, a payment is tried again on an operator's word."""
    net.refused(*SALE, "--price", "7", "--event", "mended")
    net.ask("settle", "accounts", "faults", "--clear")
    assert net.ask("settle", "events", "repair", "mended", "--retry")["flagged"] is False
    assert net.ask(*SALE, "--price", "7", "--event", "mended")["outcome"] == "PAID"


def interrupt(net: Commands) -> None:
    """Press Ctrl-C while the account system is away: the same trade goes on, and ends."""
    net.kill("settle-accounts")
    command = [sys.executable, "-m", "cli.main", *SALE, "--price", "3", "--event", "late", "--network", net.folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        if process.stderr is None:
            pytest.fail("no pipe")
        assert process.stderr.readline() == "event late\n"
        assert "trying again" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait() == 130
    assert "interrupted; hansa settle events show late" in said
    waiting = net.ask("settle", "events", "show", "late")
    assert (waiting["state"], waiting["released"]) == ("REGISTERED", False)
    timed = net.refused(*SALE, "--price", "3", "--event", "late", "--timeout", "1")  # its hold is waited for no longer
    assert (timed["released"], timed["error"]["code"]) == (False, "event_unfinished")
    net.kill("settle-events")
    status = json.loads(hansa("network", "status", net.folder, "--json").stdout)
    for name in ("settle-accounts", "settle-events"):
        assert any(f"{name} does not run" in line and "--with settlement" in line for line in status["attention"])
    assert net.refused("settle", "events", "list")["error"]["code"] == "program_unreachable"
    assert net.refused(*SALE, "--price", "3")["error"]["code"] == "program_unreachable"
    net.up()
    assert net.ask(*SALE, "--price", "3", "--event", "late")["outcome"] == "PAID"


def reconcile(net: Commands) -> None:
    """All that is finished fits, on both sides."""
    listed = net.ask("settle", "events", "list", "--all", "--limit", "500")
    assert listed["totals"]["CANCELLED"] == 4
    assert {row["state"] for row in listed["events"]} == {"CANCELLED", "COMPLETED"}
    day = utc_text(listed["events"][0]["registeredMs"])[:10]
    for _ in range(LIFTS_MAX):  # the last trade's lien is lifted a moment after it is paid
        report = net.ask("settle", "reconcile", "--date", day)
        if not report["open"]:
            break
    assert (report["broken"], report["open"], report["matched"]) == (0, 0, len(listed["events"]))
    status = net.ask("settle", "events", "status")
    assert (status["trouble"], status["flagged"], status["ratio"], status["relay"], status["scan"]) == (
        {},
        0,
        3,
        True,
        True,
    )
    center = net.ask("settle", "center", "status")
    assert (center["waiting"], center["dead"], center["consumers"]) == (0, 0, 1)
    assert "on, 3 validators must agree" in net.draw("settle", "events", "status")
    assert "finished: --all lists them" in net.draw("settle", "events", "list")
    assert "gave back" in net.draw("settle", "events", "list", "--all")
