"""Commands without a network: help, usage, keys, folders, offline proofs."""

import json
import os
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
    made = answer(hansa("key", "new", "shop-2", "--keys", keys, "--json", HANSA_PASSPHRASE="long enough"))
    assert made["publicKey"] in made["next"]
    listed = answer(hansa("key", "list", "--keys", keys, "--json"))
    assert [(key["name"], key["address"]) for key in listed["keys"]] == [("shop-2", made["address"])]
    secret = tmp_path / "secret"
    secret.write_text("long enough\n")
    shown = answer(hansa("key", "show", "shop-2", "--keys", keys, "--passphrase-file", str(secret), "--json"))
    assert shown["publicKey"] == made["publicKey"]
    wrong = hansa("key", "show", "shop-2", "--keys", keys, HANSA_PASSPHRASE="q")
    assert fault(wrong, 2) == "wrong_passphrase"
    assert "shop-2.pem" in wrong.stderr
    assert "HANSA_PASSPHRASE" in wrong.stderr
    assert fault(hansa("key", "new", "shop-2", "--keys", keys, HANSA_PASSPHRASE="long enough"), 2) == "key_exists"
    for weak in ("", "short", "\u00e9\u00e9\u00e9\u00e9"):
        assert fault(hansa("key", "new", "shop-3", "--keys", keys, HANSA_PASSPHRASE=weak), 2) == "weak_passphrase"
    assert fault(hansa("key", "new", "No Name", "--keys", keys, HANSA_PASSPHRASE="p"), 2) == "bad_name"
    unknown = hansa("key", "show", "nobody", "--keys", keys, HANSA_PASSPHRASE="p")
    assert fault(unknown, 2) == "unknown_key"
    assert "the identities there: shop-2" in unknown.stderr
    drawn = hansa("key", "new", "bank-f", "--keys", keys, HANSA_PASSPHRASE="long enough").stdout
    for following in (
        "membership register_account",
        f"member request --home HOME --root FILE --admin bank-f --keys {keys}",
    ):
        assert following in drawn


def test_a_network_folder_is_made_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "net")
    made = answer(hansa("network", "init", folder, "--port-base", "41600", "--json"))
    again = answer(hansa("network", "init", folder, "--port-base", "41600", "--json"))
    assert made == again == answer(hansa("network", "init", folder, "--json"))
    assert [node["name"] for node in made["nodes"]] == ["bank-a", "issuer-c", "issuer-f", "permission"]
    assert made["nodes"][0]["rpc"] == "http://127.0.0.1:41700/rpc"
    assert "shop" in [identity["name"] for identity in made["identities"]]
    assert fault(hansa("network", "init", folder, "--validators", "3"), 2) == "network_exists"
    assert fault(hansa("network", "init", folder, "--port-base", "41601"), 2) == "network_exists"
    assert hansa("network", "status", folder, "--network", str(tmp_path)).exit_code == 2
    assert fault(hansa("network", "reset", folder), 2) == "not_confirmed"
    shown = hansa("network", "status", folder)
    assert shown.exit_code == 1
    assert "stopped" in shown.stdout
    assert "\x1b[" not in shown.stdout  # no colours into a file
    assert answer(hansa("key", "show", "shop", "--network", folder, "--json"))["name"] == "shop"
    down = hansa("chain", "status", "--network", folder)
    assert fault(down, 1) == "node_unreachable"
    assert f"hansa network up {folder}" in down.stderr
    alone = hansa("chain", "status", "--network", folder, "--node", "issuer-f")
    assert fault(alone, 1) == "node_unreachable"
    assert "issuer-f" in alone.stderr
    assert fault(hansa("chain", "status", "--network", folder, "--node", "nobody"), 2) == "unknown_node"
    assert fault(hansa("chain", "verify", "--home", folder, "--network", folder), 2) == "bad_config"
    assert fault(hansa("tx", "call", "a", "b", "--as", "nobody", "--network", folder), 2) == "unknown_key"
    assert fault(hansa("chain", "block", "9" * 23, "--network", folder), 2) == "bad_height"
    other = answer(hansa("network", "init", str(tmp_path / "other"), "--port-base", "41600", "--json"))
    home = ("chain", "verify", "--home", f"{folder}/nodes/bank-a")
    (Path(folder) / "nodes" / "bank-a" / "data" / "CURRENT").write_text("")
    wrong = hansa(*home, "--genesis", f"{other['folder']}/genesis.json")
    assert fault(wrong, 1) == "wrong_chain"
    assert fault(hansa(*home, "--network", other["folder"]), 1) == "wrong_chain"
    assert hansa(*home, "--node", "bank-a").exit_code == 2


def test_a_broken_genesis_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "genesis.json"
    broken.write_text("{}")
    arguments = ("chain", "status", "--node", "http://127.0.0.1:1", "--genesis", str(broken))
    result = hansa(*arguments)
    assert fault(result, 2) == "bad_genesis"
    assert str(broken) in result.stderr.replace("\n", "")
    proof = tmp_path / "proof"
    proof.write_text("{}")
    malformed = hansa("proof", "verify", str(proof), "--genesis", str(broken))
    assert fault(malformed, 1) == "malformed"
    assert f"malformed: {proof}: " in malformed.stderr


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
    assert fault(hansa("key", "new", "shop", "--keys", keys, HANSA_PASSPHRASE="long enough"), 2) == "file_error"
    assert fault(hansa("key", "list", "--keys", keys), 2) == "bad_folder"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing", "--json"),
        ("tx", "call", "tokens", "--json"),
        ("chain", "block", "x", "--json"),
        ("chain", "blocks", "--json", "--nope"),
        ("network", "init", "--json", "--validators", "many"),
    ],
)
def test_wrong_usage_is_json_too(arguments: tuple[str, ...]) -> None:
    result = hansa(*arguments)
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert (document["ok"], document["error"]["code"]) == (False, "usage")
    assert not result.stderr


def test_a_wrong_number_is_explained() -> None:
    assert "'abc' is not a valid whole number" in hansa("chain", "blocks", "--limit", "abc").stderr


def test_a_reader_who_leaves_and_a_full_disk_are_one_line_at_most() -> None:
    command = [sys.executable, "-m", "cli.main"]
    with open("/dev/full", "w") as full:
        lost = subprocess.run([*command, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert lost.returncode == 1
    assert lost.stderr == "error file_error: standard output: No space left on device\n"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        left = subprocess.run([*command, "tx"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in left.stderr
    assert "Exception" not in left.stderr


def test_without_a_terminal_no_passphrase_is_asked_for(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HANSA_PASSPHRASE"}
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "key", "new", "shop", "--keys", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error no_passphrase: ")


def test_the_variable_goes_before_the_networks_own_passphrase(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("the network's own\n")
    variable = "correct-horse-1"
    made = hansa("key", "new", "r1", "--keys", str(tmp_path), HANSA_PASSPHRASE=variable)
    assert made.exit_code == 0, made.output
    assert KeyStore(tmp_path).load("r1", variable.encode()).name == "r1"
    made = hansa("key", "new", "r2", "--keys", str(tmp_path))
    assert made.exit_code == 0, made.output
    assert KeyStore(tmp_path).load("r2", b"the network's own").name == "r2"
