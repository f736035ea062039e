"""``hansa channel`` without a running network: help, usage, agreements as files."""

import json
from pathlib import Path

import pytest

from contracts.runtime.registry import Registry
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from services.client.keystore import KeyStore, read_passphrase
from tests.cli.support import answer, fault, hansa

COMMANDS = [
    *("agreement new", "agreement sign", "agreement show", "apply", "decide", "list", "show", "revoke"),
    *("export", "import", "recover", "authority serve"),
]
ROOT = "0x" + "ab" * 32


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LocalNetwork:
    """A network that does not run, with business keys."""
    made = init_network(tmp_path_factory.mktemp("net"), default_plan(), activations_of(Registry.shipped()))
    store = KeyStore(made.keystore)
    for name in ("bank-a", "issuer-c"):
        store.create(f"{name}-business", read_passphrase(made.passphrase_file))
    return made


@pytest.fixture
def paper(tmp_path: Path) -> str:
    (tmp_path / "paper.pdf").write_bytes(b"what was agreed on")
    return str(tmp_path / "paper.pdf")


def new(network: LocalNetwork, file: Path, paper: str, *more: str) -> tuple[str, ...]:
    parties = ("--bank", "bank-a", "--issuer", "issuer-c", "--number", "2026-7")
    return ("channel", "agreement", "new", str(file), *parties, "--document", paper, *more, *at(network))


def at(network: LocalNetwork) -> tuple[str, ...]:
    return ("--network", str(network.folder), "--json")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = hansa("channel", *command.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: hansa channel {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "bank-a"),
        ("show", "bank-a/issuer-c/more"),
        ("revoke", "bank-a/issuer-c"),
        ("decide", "open", "0x12", "--as", "permission"),
        ("decide", "refuse", ROOT, "--as", "permission"),
        ("decide", "open", ROOT, "--as", "permission", "--reason", "why"),
        ("decide", "maybe", ROOT, "--as", "permission"),
        ("apply", "--bank", "bank-a"),
        ("export", "bank-a/issuer-c", "--as", "bank-a"),
        ("agreement", "new", "a.json", "--bank", "bank-a"),
        ("authority", "serve"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    result = hansa("channel", *arguments)
    assert result.exit_code == 2, result.output


def test_an_agreement_goes_from_hand_to_hand(network: LocalNetwork, tmp_path: Path, paper: str) -> None:
    file = tmp_path / "a.json"
    made = answer(hansa(*new(network, file, paper)))
    assert (made["signed"], made["missing"]) == ([], ["bank-a", "issuer-c"])
    sign = ("channel", "agreement", "sign", str(file), *at(network), "--as")
    assert answer(hansa(*sign, "issuer-c"))["missing"] == ["bank-a"]
    assert answer(hansa(*sign, "issuer-c"))["signed"] == ["issuer-c"]
    apply = ("channel", "apply", "--bank", "bank-a", "--agreement", str(file), *at(network))
    result = hansa(*apply)
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (1, "signature_missing")
    whole = answer(hansa(*sign, "bank-a"))
    assert (whole["missing"], whole["agreement"]) == ([], made["agreement"])
    drawn = hansa("channel", "agreement", "show", str(file), "--network", str(network.folder)).stdout
    assert "signed by      bank-a, issuer-c" in drawn
    assert max(map(len, drawn.splitlines())) <= 80
    # Nobody answers, and that is said as such.
    assert json.loads(hansa(*apply).stdout)["error"]["code"] == "node_unreachable"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("agreement", "sign", "none.json", "--as", "bank-a"), "bad_file"),
        (("agreement", "show", "none.json"), "bad_file"),
        (("import", "none.backup"), "bad_file"),
    ],
)
def test_files_that_are_not_there(network: LocalNetwork, arguments: tuple[str, ...], code: str) -> None:
    assert fault(hansa("channel", *arguments, "--network", str(network.folder)), 2) == code


def test_what_is_refused_about_an_agreement(network: LocalNetwork, tmp_path: Path, paper: str) -> None:
    where = ("--network", str(network.folder))
    same = hansa(*new(network, tmp_path / "b.json", paper, "--issuer", "bank-a"))
    assert json.loads(same.stdout)["error"]["code"] == "bad_agreement"
    assert not (tmp_path / "b.json").exists()
    gone = hansa(*new(network, tmp_path / "b.json", str(tmp_path / "none.pdf")))
    assert (gone.exit_code, json.loads(gone.stdout)["error"]["code"]) == (2, "bad_file")
    answer(hansa(*new(network, tmp_path / "b.json", paper)))
    again = hansa(*new(network, tmp_path / "b.json", paper))
    assert (again.exit_code, json.loads(again.stdout)["error"]["code"]) == (2, "file_exists")
    sign = ("channel", "agreement", "sign", str(tmp_path / "b.json"), *where)
    assert fault(hansa(*sign, "--as", "issuer-f"), 2) == "unknown_key"
    assert fault(hansa(*sign, "--as", "issuer-f", "--key", "issuer-c-business"), 2) == "not_party"


def test_a_program_that_does_not_run(network: LocalNetwork) -> None:
    where = ("--network", str(network.folder))
    recover = hansa("channel", "recover", "bank-a/issuer-c", "--as", "bank-a", *where)
    assert fault(recover, 1) == "program_unreachable"
    assert "network up --with agency" in recover.stderr
    serve = hansa("channel", "authority", "serve", "--home", str(network.folder))
    assert fault(serve, 2) == "no_home"


@pytest.mark.parametrize("arguments", [("export", "--to", "x.backup"), ("recover",)])
def test_a_channel_of_others(network: LocalNetwork, arguments: tuple[str, ...]) -> None:
    command, *more = arguments
    where = ("--network", str(network.folder))
    assert fault(hansa("channel", command, "bank-a/issuer-c", "--as", "issuer-f", *more, *where), 2) == "not_party"
    assert not Path("x.backup").exists()


def test_an_account_that_is_none_does_not_apply(network: LocalNetwork, tmp_path: Path, paper: str) -> None:
    file = tmp_path / "c.json"
    answer(hansa(*new(network, file, paper)))
    for name in ("bank-a", "issuer-c"):
        answer(hansa("channel", "agreement", "sign", str(file), *at(network), "--as", name))
    result = hansa("channel", "apply", "--bank", "bank-x", "--agreement", str(file), "--network", str(network.folder))
    assert fault(result, 2) == "unknown_key"
