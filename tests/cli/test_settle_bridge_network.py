"""Agency sale and settlement on one network: what is bought is settled by itself, and the day's report proves it."""

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from node.network.homes import load_network
from node.network.programs import find_program, kill
from node.network.trial import free_port_base
from services.agency.ofd.synthetic import orders_file
from services.agency.ofd.writer import write
from tests.cli.support import answer, hansa

pytestmark = [pytest.mark.network, pytest.mark.slow]

ORDERS = 20
LOOKS_MAX = 2_000


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

    def up(self) -> None:
        answer(hansa("network", "up", self.folder, "--with", "agency,settlement", "--json"))

    def ask(self, *arguments: str) -> Any:
        return answer(hansa(*arguments, "--network", self.folder, "--json"))

    def draw(self, *arguments: str) -> str:
        """Return what people see; but for long paths it fits a terminal of 80 columns."""
        result = hansa(*arguments, "--network", self.folder)
        assert result.exit_code == 0, result.output
        assert [line for line in result.stdout.splitlines() if len(line) > 80 and "/" not in line] == []
        return result.stdout

    def until_ended(self, count: int, state: str) -> Any:
        """Return the bridge's status once all sales have ended, all of them so."""
        for _ in range(LOOKS_MAX):
            status = self.ask("settle", "bridge", "status")
            if sum(status["totals"].values()) == count and not status["totals"]["OPEN"]:
                assert status["totals"][state] == count, status
                return status
        raise TimeoutError(status)

    def until_seen_to(self) -> None:
        """Return once the outbox is empty: liens are lifted after a trade is COMPLETED."""
        for _ in range(LOOKS_MAX):
            status = self.ask("settle", "events", "status")
            if not status["waitingNotices"]:
                return
        raise TimeoutError(status)


def test_what_is_bought_is_settled_by_itself_and_reconciles(folder: str, tmp_path: Path) -> None:
    net = Commands(folder)
    net.up()
    bought = buy(net, tmp_path)
    net.ask("settle", "accounts", "freeze", "bank-a")
    net.up()  # the bridge goes on where it was
    status = net.until_ended(len(bought), "FAILED")
    assert {sale["code"] for sale in status["failed"]} == {"account_frozen"}
    assert "settle bridge retry" in net.draw("settle", "bridge", "status")
    net.ask("settle", "accounts", "unfreeze", "bank-a")
    assert net.ask("settle", "bridge", "retry")["opened"] == len(bought)
    net.until_ended(len(bought), "SETTLED")
    net.until_seen_to()
    events = net.ask("settle", "events", "list", "--all", "--state", "COMPLETED", "--limit", "500")["events"]
    assert sorted((event["asset"], int(event["units"])) for event in events) == sorted(
        (f"FUND-{row['product']}", int(row["confirmed_volume"])) for row in bought
    )
    assert not any(row[name] in json.dumps(events) for row in bought for name in ("serial", "ta_account"))
    check_reports(net, tmp_path, sum(int(row["confirmed_amount"]) for row in bought), events)


def buy(net: Commands, tmp_path: Path) -> list[dict[str, str]]:
    """Have a file's orders confirmed while the bridge is away; return the purchases among the outcomes."""
    file, outcomes = tmp_path / "orders.txt", tmp_path / "outcomes.csv"
    file.write_bytes(write(orders_file(7, orders=ORDERS, accounts=10)))
    net.ask("agency", "register", "--bank", "bank-a", "--issuer", "issuer-c", "--holders-of", str(file))
    trio.run(kill, find_program(load_network(Path(net.folder)), "settle-bridge"))
    net.ask("agency", "send", "--file", str(file), "--out", str(tmp_path / "04.txt"), "--outcomes", str(outcomes))
    with outcomes.open(encoding="utf-8-sig", newline="") as source:
        bought = [row for row in csv.DictReader(source) if row["state"] == "CONFIRMED" and row["code"] == "022"]
    assert len(bought) > ORDERS // 2
    return bought


def check_reports(net: Commands, tmp_path: Path, paid: int, events: list[Any]) -> None:
    """The days of the trades have no breaks, and their proofs hold with nothing but the genesis file."""
    days = sorted({datetime.fromtimestamp(event["changedMs"] / 1_000, UTC).date().isoformat() for event in events})
    proven, posted = 0, 0
    for day in days:
        lines, proofs = tmp_path / f"{day}.csv", tmp_path / f"{day}.proofs"
        more = ("--prove", "--proofs", str(proofs), "--csv", str(lines))
        report = net.ask("settle", "reconcile", "--date", day, *more)
        assert (report["broken"], report["open"], report["ok"], report["simulated"]) == (0, 0, True, True)
        files = sorted(proofs.iterdir())
        assert report["proofs"] == len(files)
        genesis = str(Path(net.folder) / "genesis.json")
        for file in files[:: max(1, len(files) // 3)]:
            answer(hansa("proof", "verify", str(file), "--genesis", genesis, "--json"))
        with lines.open(encoding="utf-8", newline="") as source:
            rows = list(csv.DictReader(source))
        assert {row["verdict"] for row in rows} == {"matched"}
        assert "broken" in net.draw("settle", "reconcile", "--date", day)
        proven += sum(name.name.endswith((".delivered.proof", ".lifted.proof")) for name in files)
        posted += sum(item["paid"] for item in report["currencies"])
    assert (proven, posted) == (2 * len(events), paid)
