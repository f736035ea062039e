"""Payee codes from one command: up, one code with two platforms; environments that are not what they should be."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from cli.payee_trial import PayeeTrial
from node.network.homes import load_network
from node.network.programs import Program, find_program, kill, start, stop
from node.network.trial import TrialNetwork, free_port_base
from services.local.files import read_service
from services.payee.enclave_config import EnclaveFile, enclave_settings, put_keys_aside
from services.payee.measurement import FILES
from services.payee.wording import EMULATED
from tests.cli.support import answer, hansa
from tests.network.payee_faults import play
from tests.test_tidy import ROOT

pytestmark = [pytest.mark.network, pytest.mark.slow]

PROGRAMS = ["payee-accounts", "bank-a-enclave", "issuer-c-enclave", "wallet-p", "wallet-q"]


@dataclass(frozen=True)
class Commands:
    """The commands of one network."""

    folder: Path

    def ask(self, *arguments: str) -> Any:
        return answer(hansa(*arguments, "--network", str(self.folder), "--json"))

    def draw(self, *arguments: str) -> str:
        """Return what people see; it fits a terminal of 80 columns."""
        result = hansa(*arguments, "--network", str(self.folder))
        assert result.exit_code == 0, result.output
        assert [line for line in result.stdout.splitlines() if len(line) > 80 and "/" not in line] == []
        return result.stdout

    def refused(self, *arguments: str) -> str:
        """Return the code that the system refuses a command with."""
        result = hansa(*arguments, "--network", str(self.folder), "--json")
        assert result.exit_code == 1, result.output
        return str(json.loads(result.stdout)["error"]["code"])

    def up(self) -> Any:
        return answer(hansa("network", "up", str(self.folder), "--with", "payee", "--json"))

    def program(self, name: str) -> Program:
        return find_program(load_network(self.folder), name)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Have a program stopped for the time of the block."""
        network = load_network(self.folder)
        trio.run(stop, network, [self.program(name)])
        try:
            yield
        finally:
            trio.run(start, network, [self.program(name)])


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A network with everything that payee codes need, and a merchant with whom wallet-p works."""
    net = Commands(tmp_path_factory.mktemp("payee") / "net")
    answer(hansa("network", "init", str(net.folder), "--port-base", str(free_port_base(4)), "--json"))
    try:
        card = net.up()
        assert [(item["name"], item["state"]) for item in card["programs"]] == [(name, "ready") for name in PROGRAMS]
        net.ask("payee", "merchant", "new", "tea")
        add(net, "wallet-p", "merchant-m", "--shareable")
        yield net
    finally:
        answer(hansa("network", "down", str(net.folder), "--json"))


def add(net: Commands, platform: str, account: str, *options: str) -> None:
    acquiring = net.folder / f"{platform}.json"
    acquiring.write_text(json.dumps({"account": account, "name": "Teahouse", "currency": "CNY"}))
    whom = ("--platform", platform, "--merchant", "tea", "--acquiring", str(acquiring))
    assert net.ask("payee", "platform", "add", *whom, *options)["version"] == 1


@pytest.fixture
def code(net: Commands) -> str:
    """The image of the merchant's code."""
    path = str(net.folder / "code.png")
    net.ask("payee", "code", "make", "--merchant", "tea", "--out", path)
    return path


def test_up_again_changes_nothing_and_says_what_is_emulated(net: Commands) -> None:
    before, after = net.up(), net.up()
    assert after["programs"] == before["programs"]
    assert {item["name"]: item["note"] for item in after["programs"] if item["note"]} == dict.fromkeys(
        ("bank-a-enclave", "issuer-c-enclave"), EMULATED
    )
    assert after["nodes"][0]["height"] == before["nodes"][0]["height"]
    assert net.ask("payee", "setup")["done"] == []
    drawn = net.draw("payee", "setup")
    assert EMULATED in drawn
    assert "simulated money" in drawn
    assert EMULATED in net.draw("network", "status")


def test_a_split_key_needs_the_code_and_the_platform(net: Commands) -> None:
    net.ask("payee", "merchant", "new", "inn", "--split")
    acquiring, image = net.folder / "inn.json", str(net.folder / "inn.png")
    acquiring.write_text(json.dumps({"account": "shop", "name": "Inn Ember-Oriole", "currency": "CNY"}))
    whom = ("--platform", "wallet-p", "--merchant", "inn", "--acquiring", str(acquiring))
    net.ask("payee", "platform", "add", *whom, "--split")
    identity = net.ask("payee", "code", "make", "--merchant", "inn", "--out", image)["identity"]
    paid = net.ask("payee", "pay", "--code", image, "--as", "wallet-p", "--amount", "2")
    assert (paid["state"], paid["payee"], paid["name"]) == ("PAID", "shop", "Inn Ember-Oriole")
    strangers = ("--merchants", str(net.folder / "nobody"))
    bare = net.ask("payee", "code", "make", "--merchant", identity, *strangers)["payload"]
    assert net.refused("payee", "pay", "--code", bare, "--as", "wallet-p", "--amount", "2") == "key_part_missing"
    target = net.ask("payee", "resolve", "--code", bare, "--as", "wallet-p")["target"]
    assert (target["acquiring"], target["split"]) == (None, True)
    (row,) = [
        row for row in net.ask("payee", "platform", "records", "--platform", "wallet-p")["records"] if row["split"]
    ]
    assert (row["identity"], row["acquiring"]) == (identity, None)
    assert net.refused("payee", "platform", "update", *whom) == "record_split"


def test_the_same_code_works_with_a_platform_that_is_added_later(net: Commands, code: str) -> None:
    paid = net.ask("payee", "pay", "--code", code, "--as", "wallet-p", "--amount", "12.50", "--order", "o-1")
    assert (paid["state"], paid["payee"]) == ("PAID", "merchant-m")
    found = net.ask("payee", "resolve", "--code", code, "--as", "wallet-p", "--record")
    recorded = net.ask("query", "payees", "query_record", f"query={found['query']}")["value"]
    assert recorded["height"] == str(found["recordedHeight"])
    assert net.refused("payee", "resolve", "--code", code, "--as", "wallet-q") == "no_platform"
    add(net, "wallet-q", "shop")
    paid = net.ask("payee", "pay", "--code", code, "--as", "wallet-q", "--amount", "3", "--order", "o-2")
    assert (paid["state"], paid["payee"]) == ("PAID", "shop")
    drawn = net.draw("payee", "resolve", "--code", code, "--as", "wallet-q", "--mode", "candidates")
    assert "wallet-p" in drawn
    assert "merchant-m" not in drawn
    assert EMULATED in " ".join(drawn.split())
    assert "simulated" in net.draw(
        "payee", "pay", "--code", code, "--as", "wallet-q", "--amount", "3", "--order", "o-2"
    )


def test_a_killed_environment_is_told_and_started_again(net: Commands, code: str) -> None:
    trio.run(kill, net.program("bank-a-enclave"))
    alone = ("payee", "resolve", "--code", code, "--as", "wallet-p", "--node", "bank-a")
    assert net.refused(*alone) == "environment_down"
    assert net.ask(*alone[:-2])["target"]["acquiring"]["account"] == "merchant-m"
    status = hansa("network", "status", str(net.folder), "--json")
    assert status.exit_code == 1
    assert "bank-a-enclave does not run" in json.loads(status.stdout)["attention"][0]
    net.up()
    assert net.ask(*alone)["target"]["acquiring"]["account"] == "merchant-m"


@pytest.mark.skipif(os.geteuid() != 0, reason="users need root")
def test_an_environment_of_another_user_is_refused(net: Commands, code: str) -> None:
    said = load_network(net.folder).node("bank-a").folder / "environment.toml"
    right = said.read_text()
    assert "user = 60600" in right
    said.write_text(right.replace("60600", "60599"))
    trio.run(kill, net.program("bank-a-enclave"))
    net.up()
    alone = ("payee", "resolve", "--code", code, "--as", "wallet-p", "--node", "bank-a")
    assert net.refused(*alone) == "environment_refused"
    said.write_text(right)
    trio.run(kill, net.program("bank-a-enclave"))
    net.up()
    assert net.ask(*alone)["target"]["acquiring"]["account"] == "merchant-m"


def test_an_environment_of_other_code_is_refused(net: Commands, code: str, tmp_path: Path) -> None:
    """Other code cannot open the keys; with keys of its own, under the same name, the node refuses it."""
    home = net.folder / "services" / "bank-a-enclave"
    changed = copy_code(tmp_path / "code")
    alone = ("payee", "resolve", "--code", code, "--as", "wallet-p", "--node", "bank-a")
    settings = enclave_settings(home, read_service(home, EnclaveFile))
    with net.without("bank-a-enclave"):
        with serving(changed, settings) as process:
            assert "wrong_measurement" in process.communicate(timeout=30)[0]
        with serving(changed, msgspec.structs.replace(settings, data=str(tmp_path / "data"))) as process:
            assert process.stdout is not None
            assert any('"ready"' in line or " ready" in line for line in process.stdout)
            assert net.refused(*alone) == "environment_refused"
    assert net.ask(*alone)["target"]["acquiring"]["account"] == "merchant-m"


def test_an_environment_with_new_keys_is_registered_and_trusted_anew(net: Commands, code: str) -> None:
    """As after an update of its code, when the old keys do not open."""
    home = net.folder / "services" / "bank-a-enclave"
    trio.run(kill, net.program("bank-a-enclave"))
    assert put_keys_aside(home, read_service(home, EnclaveFile))
    alone = ("payee", "resolve", "--code", code, "--as", "wallet-p", "--node", "bank-a")
    trio.run(start, load_network(net.folder), [net.program("bank-a-enclave")])
    assert net.refused(*alone) == "environment_refused"
    net.up()
    assert net.ask(*alone)["target"]["acquiring"]["account"] == "merchant-m"
    assert net.ask("payee", "platform", "status", "--platform", "wallet-p")["environments"] == ["bank-a", "issuer-c"]


def test_orders_are_paid_once_whatever_is_killed(net: Commands) -> None:
    trial = PayeeTrial(TrialNetwork(load_network(net.folder), is_kept=True))
    seen, wrong = trio.run(partial(play, trial, seed=5, orders=4, kills=3))
    assert wrong == []
    assert len(seen.killed) == 3
    assert len(seen.paid) + len(seen.lost) == 4 * 8


def copy_code(folder: Path) -> Path:
    """Return a copy of an environment's code that differs by one line."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with (folder / "services" / "payee" / "wording.py").open("a") as file:
        file.write("# one line more\n")
    return folder


@contextmanager
def serving(code: Path, settings: object) -> Iterator["subprocess.Popen[str]"]:
    """Run an environment from a folder of code; its process ends with the block."""
    command = [sys.executable, "-P", "-m", "services.payee.enclave_program", msgspec.json.encode(settings).decode()]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(code)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
