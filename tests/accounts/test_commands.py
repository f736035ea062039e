"""``hansa settle accounts`` against a program of its own: what people see, what scripts read, what is refused."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.accounts.config import AccountsFile
from services.local.files import replace_file, write_service
from tests.cli.support import answer, fault, hansa

REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 60
TERMS = ("--payer", "buyer", "--payee", "shop", "--amount", "1250.5")
LEAVES = ("serve", "open", "list", "show", "deposit", "freeze", "unfreeze", "order", "standing", "entries", "faults")


def ask(*arguments: str, **environment: str) -> Any:
    return hansa("settle", "accounts", *arguments, **environment)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with nothing but an account system, which runs, asks for a token, and may be told to misbehave."""
    folder = tmp_path_factory.mktemp("network")
    home = folder / "services" / "settle-accounts"
    home.mkdir(parents=True)
    replace_file(home / "token", b"between programs\n")
    command = [sys.executable, "-m", "cli.main", "settle", "accounts", "serve", "--home", str(home), "--allow-faults"]
    write_service(home, AccountsFile(listen="127.0.0.1:0", token="token"))
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stderr is not None
        try:
            ready = json.loads(process.stderr.readline())
            write_service(home, AccountsFile(listen=f"127.0.0.1:{ready['port']}", token="token"))
            yield str(folder)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_S) == 0


def test_a_day_at_the_counter(network: str) -> None:
    """Open, bring money, hold, pay, pay back; each as people read it and as scripts do."""

    def run(*arguments: str) -> str:
        result = ask(*arguments, HANSA_NETWORK=network)
        assert result.exit_code == 0, result.output
        assert "simulated" in result.stdout
        assert all(len(line) <= 80 for line in result.stdout.splitlines()), result.stdout
        return str(result.stdout)

    def read(*arguments: str) -> Any:
        content = answer(ask(*arguments, "--json", HANSA_NETWORK=network))
        assert content["simulated"] is True
        return content

    assert "buyer" in run("open", "buyer", "shop")
    assert "50,000.00 CNY" in run("deposit", "buyer", "50000", "--key", "opening")
    assert read("deposit", "buyer", "50000.00", "--key", "opening")["available"] == "50000.00"
    assert read("order", "reserve", "t-1", *TERMS)["ok"]
    assert "1,250.50 CNY (simulated money) from buyer to shop" in run("order", "pay", "t-1", *TERMS)
    again, before = (read("order", "pay", "t-1", *TERMS) for _ in range(2))
    assert again == before
    assert [(item["id"], item["available"]) for item in read("list")["accounts"]] == [
        *(("buyer", "48749.50"), ("shop", "1250.50")),
    ]
    assert "1,250.50" in run("list")
    standing = read("standing", "t-1", "t-2")
    assert (standing["unknown"], standing["standings"][0]["amount"]) == (["t-2"], "1250.50")
    assert "t-2: nothing was ever asked for it" in run("standing", "t-1", "t-2")
    page = read("entries", "--limit", "2")
    assert [(item["debit"], item["credit"]) for item in page["entries"]] == [
        *(("WORLD/outside", "buyer/available"), ("buyer/available", "buyer/held")),
    ]
    assert f"--after {page['next']}" in run("entries", "--limit", "2")
    assert "frozen" in run("freeze", "shop")
    assert not read("unfreeze", "shop")["frozen"]
    assert "48,749.50 CNY" in run("show", "buyer")


def test_a_deposit_whose_answer_is_lost_can_be_given_again(network: str) -> None:
    ask("open", "lost", HANSA_NETWORK=network)
    ask("faults", "--set", "lose_answer", HANSA_NETWORK=network)
    lost = ask("deposit", "lost", "10", "--json", HANSA_NETWORK=network)
    assert (lost.exit_code, "accounts_unreachable" in lost.stdout) == (1, True)
    (key,) = re.findall("--key ([a-z0-9-]+)", lost.stdout)
    ask("faults", "--clear", HANSA_NETWORK=network)
    again = answer(ask("deposit", "lost", "10", "--key", key, "--json", HANSA_NETWORK=network))
    assert again["available"] == "10.00"


def test_no_event_of_many_is_left_out(network: str) -> None:
    events = [f"none-{number}" for number in range(1_001)]
    assert answer(ask("standing", *events, "--json", HANSA_NETWORK=network))["unknown"] == events


def test_what_is_refused(network: str) -> None:
    ask("open", "buyer", "shop", HANSA_NETWORK=network)
    refused = ask("order", "reverse", "t-9", *TERMS, HANSA_NETWORK=network)
    assert (refused.exit_code, "not_paid: t-9 was not paid" in refused.stdout) == (1, True)
    as_json = ask("order", "reverse", "t-9", *TERMS, "--json", HANSA_NETWORK=network)
    assert (as_json.exit_code, json.loads(as_json.stdout)["ok"], json.loads(as_json.stdout)["code"]) == (
        *(1, False, "not_paid"),
    )
    assert fault(ask("show", "nobody", HANSA_NETWORK=network), 1) == "unknown_account"
    assert fault(ask("open", "shop", "--currency", "EUR", HANSA_NETWORK=network), 1) == "account_exists"
    assert fault(ask("list", "--url", "http://127.0.0.1:1"), 1) == "accounts_unreachable"
    assert fault(ask("list", "--url", "nowhere"), 2) == "bad_url"
    assert fault(ask("list", HANSA_NETWORK="/nonexistent"), 2) == "no_home"
    home = json.loads(
        (Path(network) / "services/settle-accounts/service.toml").read_text().split("listen = ")[1].split("\n")[0]
    )
    assert fault(ask("list", "--url", f"http://{home}"), 1) == "bad_token"
    token = str(Path(network) / "services/settle-accounts/token")
    assert answer(ask("list", "--url", f"http://{home}", "--token-file", token, "--json"))["ok"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("open",),
        ("open", "a b"),
        ("open", "buyer/held"),
        ("open", "a", "--currency", "cny"),
        ("deposit", "buyer", "0"),
        ("deposit", "buyer", "-1"),
        ("deposit", "buyer", "1.234"),
        ("deposit", "buyer", "1e3"),
        ("deposit", "buyer", "10000000000000.01"),
        ("deposit", "buyer", "1", "--key", "a/b"),
        ("order", "steal", "t-1", *TERMS),
        ("order", "pay", "t 1", *TERMS),
        ("order", "pay", "t-1", *TERMS[:4]),
        ("entries", "--limit", "0"),
        ("entries", "--limit", "1001"),
        ("faults", "--set", "explode"),
        ("faults", "--count", "3"),
        ("faults", "--set", "delay", "--delay-ms", "60001"),
        ("faults", "--set", "refuse", "--code", "No"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_ask_nobody(wrong: tuple[str, ...]) -> None:
    result = ask(*wrong, "--url", "http://127.0.0.1:1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert all(len(line) <= 80 for line in result.stderr.splitlines())


def test_faults_are_set_shown_and_cleared(network: str) -> None:
    ask("open", "buyer", "shop", HANSA_NETWORK=network)
    assert "it behaves" in ask("faults", "--clear", HANSA_NETWORK=network).stdout
    shown = ask("faults", "--set", "refuse", "--operation", "pay", "--code", "wrong_currency", HANSA_NETWORK=network)
    assert ("refuse" in shown.stdout, "wrong_currency" in shown.stdout) == (True, True)
    ask("faults", "--set", "lose_answer", "--count", "0", "--probability", "50", "--seed", "3", HANSA_NETWORK=network)
    found = answer(ask("faults", "--json", HANSA_NETWORK=network))["faults"]
    assert [(item["kind"], item["count"], item["probability"], item["seed"], item["code"]) for item in found] == [
        *(("refuse", 1, 100, 1, "wrong_currency"), ("lose_answer", None, 50, 3, None)),
    ]
    ask("faults", "--clear", "--set", "refuse", "--operation", "pay", "--code", "released", HANSA_NETWORK=network)
    refused = ask("order", "pay", "t-8", *TERMS, "--json", HANSA_NETWORK=network)
    assert (refused.exit_code, json.loads(refused.stdout)["code"]) == (1, "released")
    assert "it behaves" in ask("faults", "--clear", HANSA_NETWORK=network).stdout


@pytest.mark.parametrize("command", LEAVES)
def test_every_command_explains_itself_within_80_columns(command: str) -> None:
    result = ask(command, "--help")
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert f"Example: hansa settle accounts {command}" in " ".join(result.output.split())
