"""Outages of real processes, and what ``hansa consensus doctor`` and ``hansa network status`` say of each."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from node.network.trial import free_port_base
from tests.cli.support import answer, hansa
from tests.conftest import require

pytestmark = [pytest.mark.network, pytest.mark.slow]

PATIENCE_S = 60
"""For how long the doctor is asked until it sees what is staged."""
SMALL_DISK_BYTES = 4 * 1024 * 1024

ODD_CONTRACTS = """
# Found by Python at its start: the tokens contract of this process is not the others'.
import os
from dataclasses import replace
from contracts.runtime import registry
from contracts.runtime.loader import load_contract

shipped = registry.Registry.shipped

def odd():
    made = shipped()
    (version,) = [version for name, version in made._contracts if name == "tokens"]
    contract = made._contracts["tokens", version]
    if os.environ["ODD"] == "missing":
        made._contracts["tokens", version] = replace(contract, code_hash=bytes(32))
    else:
        source = (registry.DOMAIN_FOLDER / "tokens.py").read_text()
        wrong = source.replace('"supply/{unit}", supply + amount)', '"supply/{unit}", supply + amount + 1)')
        loaded = load_contract("tokens.py", wrong.encode(), made.meter)
        made._contracts["tokens", version] = replace(loaded, code_hash=contract.code_hash)
    return made

registry.Registry.shipped = staticmethod(odd)
"""


class Hospital:
    """A local network of four processes, and the commands that look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.at = ("--network", str(folder))
        self.names: list[str] = []
        self._number = 0

    def home(self, name: str) -> Path:
        return self.folder / "nodes" / name

    def up(self, **environment: str) -> dict[str, Any]:
        card: dict[str, Any] = answer(hansa("network", "up", str(self.folder), "--json", **environment))
        self.names = [node["name"] for node in card["nodes"]]
        return card

    def pid(self, name: str) -> int:
        number: int = json.loads((self.home(name) / "run" / "node.pid").read_text())["pid"]
        return number

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid(name), number)

    def define(self) -> str:
        """Define one more unit and return the transaction's id."""
        self._number += 1
        unit = f"unit=u{self._number}"
        done = hansa("tx", "call", "tokens", "define", unit, "decimals=0", "--as", "bank-a", "--json", *self.at)
        return str(answer(done)["id"])

    def issue(self) -> None:
        unit = f"unit=u{self._number}"
        answer(
            hansa("tx", "call", "tokens", "issue", unit, "to=user-b", "amount=5", "--as", "bank-a", "--json", *self.at)
        )

    def doctor(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        result = hansa("consensus", "doctor", "--json", *self.at, *arguments)
        return result.exit_code, json.loads(result.stdout)["findings"]

    def until(self, code: str, about: str | None, also: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
        """Ask the doctor until it finds this, doing something in between; its exit code must fit its words."""
        findings: list[dict[str, Any]] = []
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            exit_code, findings = self.doctor()
            assert exit_code == (0 if findings[0]["code"] == "healthy" else 1)
            if any((item["code"], item["about"]) == (code, about) for item in findings):
                return findings
            also()
        raise AssertionError(f"{code} of {about} is not found: {findings}")

    def until_well(self) -> None:
        """Ask until nothing is wrong any more; what a primary's bad turn left behind may take a while to go."""
        end_s = time.monotonic() + PATIENCE_S
        while {item["code"] for item in self.doctor()[1]} - {"healthy", "slow_primary"}:
            assert time.monotonic() < end_s, self.doctor()

    def status(self) -> tuple[int, dict[str, Any]]:
        result = hansa("network", "status", str(self.folder), "--json")
        return result.exit_code, json.loads(result.stdout)


def picked(findings: list[dict[str, Any]], code: str, about: str | None) -> dict[str, Any]:
    return next(item for item in findings if (item["code"], item["about"]) == (code, about))


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    folder = tmp_path / "net"
    answer(hansa("network", "init", str(folder), "--port-base", str(free_port_base(4)), "--json"))
    made = Hospital(folder)
    made.up()
    yield made
    answer(hansa("network", "down", str(folder), "--json"))


def test_frozen_killed_and_odd_processes_are_named_with_the_way_out(hospital: Hospital, tmp_path: Path) -> None:
    first, second, frozen, killed = hospital.names
    hospital.until("healthy", None)
    assert hospital.status()[0] == 0

    # One frozen: the others go on.
    hospital.kill(frozen, signal.SIGSTOP)
    findings = hospital.until("node_frozen", frozen)
    assert [item["level"] for item in findings] == ["warning"] * len(findings)
    assert picked(findings, "node_frozen", frozen)["advice"] == f"kill -CONT {hospital.pid(frozen)} wakes it"
    hospital.define()

    # Two of four away: nothing becomes final, and everyone says so.
    hospital.kill(killed)
    findings = hospital.until("no_quorum", None)
    stuck = picked(findings, "no_quorum", None)
    assert (stuck["level"], findings[0]) == ("stuck", stuck)
    assert stuck["message"].endswith(f"3 are needed; missing: {frozen} (frozen), {killed} (stopped)")
    stopped = picked(findings, "node_stopped", killed)
    assert f"{killed} does not run: killed: its log breaks off" in stopped["message"]
    assert stopped["advice"] == "hansa network up starts it"
    exit_code, card = hospital.status()
    assert exit_code == 1
    assert card["attention"][0] == "no quorum: 2 vote, 3 are needed, so nothing becomes final"
    assert any(killed in line for line in card["attention"])
    assert any(f"{frozen} is frozen" in line for line in card["attention"])
    drawn = hansa("consensus", "doctor", *hospital.at)
    assert drawn.exit_code == 1
    assert f"node_frozen {frozen}" in drawn.stdout
    waiting = hansa(
        "tx", "call", "tokens", "define", "unit=late", "decimals=0", "--as", "bank-a", "--timeout", "2", *hospital.at
    )
    assert waiting.exit_code == 1
    transaction_id = next(word for word in waiting.output.split() if word.startswith("0x")).rstrip(",;")
    told = answer(hansa("tx", "explain", transaction_id, "--json", "--node", first, "--node", second, *hospital.at))
    assert told["code"] in ("no_quorum", "validity_over", "expired")
    assert set(told["stages"]) == {first, second}
    hospital.kill(frozen, signal.SIGCONT)
    hospital.up()
    hospital.until_well()

    _one_lacks_the_contracts(hospital, killed, tmp_path)
    _one_computes_something_else(hospital, killed, tmp_path)


def _one_lacks_the_contracts(hospital: Hospital, ill: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "sitecustomize.py").write_text(ODD_CONTRACTS)
    hospital.kill(ill)
    hospital.until("node_stopped", ill)
    failed = hansa("network", "up", str(hospital.folder), "--json", PYTHONPATH=str(odd), ODD="missing")
    assert failed.exit_code == 1
    assert "contract_code_missing" in json.loads(failed.stdout)["error"]["message"]
    finding = picked(hospital.until("node_stopped", ill), "node_stopped", ill)
    assert "contract_code_missing" in finding["message"]
    assert finding["advice"].startswith("install the version of Hansa")
    assert any("contract_code_missing" in line for line in hospital.status()[1]["attention"])


def _one_computes_something_else(hospital: Hospital, ill: str, tmp_path: Path) -> None:
    odd = {"PYTHONPATH": str(tmp_path / "odd"), "ODD": "diverge"}
    hospital.up(**odd)
    hospital.define()
    hospital.issue()
    finding = picked(hospital.until("node_stopped", ill), "node_stopped", ill)
    assert f"{ill} does not run: exit 4, diverged: certified block" in finding["message"]
    assert "first other write: tokens/supply/" in finding["message"]
    assert "bundle" in finding["advice"]
    (bundle,) = (hospital.home(ill) / "log").glob("divergence-*.json")
    told = json.loads(bundle.read_text())
    assert [(write["here"]["value"], write["certified"]["value"]) for write in told["writes"]] == [("6", "5")]
    home = ("--home", str(hospital.home(ill)))
    replayed = answer(hansa("chain", "replay", str(bundle), *home, "--json"))  # with the right code it holds
    assert replayed["holds"] is True
    # Started again it stops again while the cause lasts, and the others go on.
    again = hansa("network", "up", str(hospital.folder), "--json", **odd)
    assert again.exit_code in (0, 1)  # it may end before or after it was ready
    hospital.until("node_stopped", ill)
    hospital.define()
    assert hospital.status()[0] == 1
    hospital.up()
    hospital.until_well()


def test_a_full_disk_is_named_with_its_node(hospital: Hospital) -> None:
    ill = hospital.names[-1]
    data = hospital.home(ill) / "data"
    hospital.kill(ill)
    hospital.until("node_stopped", ill)
    aside = data.with_name("aside")
    data.rename(aside)
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "hansa-test", str(data)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        require("tmpfs", f"no disk of its own can be mounted: {error}")
    try:
        shutil.copytree(aside, data, dirs_exist_ok=True)
        hospital.up()
        _fill(data)
        finding = picked(hospital.until("node_stopped", ill, also=hospital.define), "node_stopped", ill)
        assert f"{ill} does not run: exit 3, disk_full: " in finding["message"]
        assert "make room" in finding["advice"]
        answer(hansa("network", "down", str(hospital.folder), "--json"))
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


def _fill(folder: Path) -> None:
    """Leave next to nothing of a disk."""
    # Without a buffer: what does not fit would be tried once more at closing.
    with (folder / "filler.tmp").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(65_536))
