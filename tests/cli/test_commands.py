"""Commands without a network: help, usage, keys, folders, offline proofs."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS
from services.client.keystore import KeyStore
from tests.cli.support import answer, fault, hansa

HELP_CPU_S_MAX = 0.3


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        found.append((name,))
        listed = hansa(name, "--help").stdout
        if "Commands" in listed:
            rows = listed.split("Commands")[1].splitlines()[1:]
            found += [(name, row.split()[1]) for row in rows if row.startswith("│ ") and row[2] != " "]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_explains_itself_within_80_columns(command: tuple[str, ...]) -> None:
    result = hansa(*command, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    is_leaf = "Commands ─" not in result.stdout
    if is_leaf:
        assert "Example:" in result.stdout
        assert "--json" in result.stdout or command == ("node", "run")


def test_help_is_fast_and_imports_no_group() -> None:
    code = (
        "import resource, sys; from cli.main import main\n"
        "sys.argv = ['hansa', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, file=sys.stderr)\n"
        "heavy = ['trio', 'node.config', 'cryptography', 'cli.tx']\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, imported = run.stderr.strip().splitlines()
    assert imported == "[]"
    assert float(seconds) < 3 * HELP_CPU_S_MAX  # a loaded machine is no failure; three times the aim is


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("network", "nothing"),
        ("tx", "call", "tokens"),
        ("tx", "call", "tokens", "transfer"),  # --as is missing
        ("chain", "block", "x"),
        ("chain", "blocks", "--limit", "0"),
        ("proof", "get", "nothing", "x"),
        ("proof", "verify", "missing.proof", "--genesis", "missing.json"),
        ("node", "run"),
        ("network", "init", "--validators", "0"),
        ("network", "init", "--port-base", "80"),
    ],
)
def test_wrong_usage_exits_2_with_a_hint(arguments: tuple[str, ...]) -> None:
    result = hansa(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("network", "status"),
        ("network", "down"),
        ("network", "reset", "--yes"),
        ("chain", "status"),
        ("tx", "call", "tokens", "transfer", "--as", "shop"),
        ("query", "tokens", "units"),
        ("state", "get", "x"),
        ("contract", "list"),
        ("consensus", "doctor"),
        ("chain", "verify"),
        ("key", "show", "shop"),
    ],
)
def test_without_a_network_one_line_says_so(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert fault(hansa(*arguments, HANSA_NETWORK=str(tmp_path)), 2) == "no_network"
    assert fault(hansa(*arguments, "--network", str(tmp_path / "none")), 2) == "no_network"


def test_errors_are_json_when_json_is_asked_for(tmp_path: Path) -> None:
    result = hansa("chain", "status", "--json", "--network", str(tmp_path))
    assert result.exit_code == 2
    assert '"code": "no_network"' in result.stdout
    assert not result.stderr


def test_keys_are_made_listed_and_opened(tmp_path: Path) -> None:
    keys = str(tmp_path / "keys")
    made = answer(hansa("key", "new", "shop-2", "--keys", keys, "--json", HANSA_PASSPHRASE="p"))
    listed = answer(hansa("key", "list", "--keys", keys, "--json"))
    assert [(key["name"], key["address"]) for key in listed["keys"]] == [("shop-2", made["address"])]
    secret = tmp_path / "secret"
    secret.write_text("p\n")
    shown = answer(hansa("key", "show", "shop-2", "--keys", keys, "--passphrase-file", str(secret), "--json"))
    assert shown["publicKey"] == made["publicKey"]
    assert fault(hansa("key", "show", "shop-2", "--keys", keys, HANSA_PASSPHRASE="q"), 2) == "wrong_passphrase"
    assert fault(hansa("key", "new", "shop-2", "--keys", keys, HANSA_PASSPHRASE="p"), 2) == "key_exists"
    assert fault(hansa("key", "new", "No Name", "--keys", keys, HANSA_PASSPHRASE="p"), 2) == "bad_name"
    assert fault(hansa("key", "show", "nobody", "--keys", keys, HANSA_PASSPHRASE="p"), 2) == "unknown_key"


def test_a_network_folder_is_made_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "net")
    made = answer(hansa("network", "init", folder, "--port-base", "41600", "--json"))
    again = answer(hansa("network", "init", folder, "--port-base", "41600", "--json"))
    assert made == again
    assert [node["name"] for node in made["nodes"]] == ["bank-a", "issuer-c", "issuer-f", "permission"]
    assert made["nodes"][0]["rpc"] == "http://127.0.0.1:41700"
    assert "shop" in [identity["name"] for identity in made["identities"]]
    assert fault(hansa("network", "init", folder, "--validators", "3"), 2) == "network_exists"
    shown = hansa("network", "status", folder)
    assert shown.exit_code == 1
    assert "stopped" in shown.stdout
    assert "\x1b[" not in shown.stdout  # no colours into a file
    assert answer(hansa("key", "show", "shop", "--network", folder, "--json"))["name"] == "shop"
    assert fault(hansa("chain", "status", "--network", folder), 1) == "node_unreachable"
    assert fault(hansa("chain", "status", "--network", folder, "--node", "nobody"), 2) == "unknown_node"
    assert fault(hansa("chain", "verify", "--home", folder, "--network", folder), 2) == "bad_config"
    assert fault(hansa("tx", "call", "a", "b", "--as", "nobody", "--network", folder), 2) == "unknown_key"
    assert fault(hansa("tx", "show", "0x12", "--network", folder), 2) == "bad_id"


def test_a_broken_genesis_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "genesis.json"
    broken.write_text("{}")
    arguments = ("chain", "status", "--node", "http://127.0.0.1:1", "--genesis", str(broken))
    assert fault(hansa(*arguments), 2) == "bad_genesis"
    proof = tmp_path / "proof"
    proof.write_text("{}")
    assert fault(hansa("proof", "verify", str(proof), "--genesis", str(broken)), 1) == "malformed"


def test_the_version_and_the_completion_script_are_printed() -> None:
    assert hansa("--version").stdout.startswith("hansa")
    script = hansa(_HANSA_COMPLETE="bash_source").stdout
    assert "_hansa_completion" in script
    words = {"_HANSA_COMPLETE": "bash_complete", "COMP_WORDS": "hansa net", "COMP_CWORD": "1"}
    assert hansa(**words).stdout.split() == ["plain,network"]
    words = {"_HANSA_COMPLETE": "bash_complete", "COMP_WORDS": "hansa network re", "COMP_CWORD": "2"}
    assert hansa(**words).stdout.split() == ["plain,reset"]


def test_a_bug_is_one_line_and_a_traceback_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: KeyStore) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(KeyStore, "entries", broken)
    assert fault(hansa("key", "list", "--keys", "."), 1) == "internal"
    assert isinstance(hansa("key", "list", "--keys", ".", HANSA_DEBUG="1").exception, RuntimeError)


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keys = str(tmp_path / "file" / "keys")
    assert fault(hansa("key", "new", "shop", "--keys", keys, HANSA_PASSPHRASE="p"), 2) == "file_error"
