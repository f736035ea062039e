"""``hansa agency`` without a running network: help, usage, profiles, files that are none."""

import dataclasses
import json
from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError
from contracts.runtime.registry import Registry
from node.network.genesis import activations_of, default_plan
from node.network.homes import LocalNetwork, init_network
from services.agency.ofd.reader import read_path
from services.agency.ofd.synthetic import orders_file
from services.agency.ofd.writer import write
from services.agency.orders import Application, Confirmation
from services.agency.sales_interface import TAKE_MAX, OrderRecord, State, Total
from services.agency.sending import (
    Batch,
    holders_of,
    investor_from,
    is_fund_file,
    merged,
    profiles_of,
    registration,
    risk_class,
    trades_of,
    write_confirmations,
)
from services.local.files import write_service
from tests.cli.support import fault, hansa

COMMANDS = [
    *(
        "setup",
        "terms propose",
        "terms accept",
        "terms withdraw",
        "terms show",
        "sample",
        "register",
        "send",
        "orders",
        "records",
    ),
    *("order", "disclose", "dispute verify", "claim", "issuer allot", "status"),
    *("sales serve", "issuer serve", "gateway serve"),
]
ROOT = "0x" + "ab" * 32
HEAD = "ta_account,transaction_account,name,certificate_type,certificate_number,birth_date,risk_class"
LINE = "TA01,T01,user-b,0,11010119900517001X,1990-05-17,C3"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LocalNetwork:
    """A network that does not run."""
    return init_network(tmp_path_factory.mktemp("net"), default_plan(), activations_of(Registry.shipped()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = hansa("agency", *command.split(), "--help")
    assert result.exit_code == 0
    assert f"Example: hansa agency {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("send",),
        ("orders",),
        ("register", "--bank", "bank-a", "--issuer", "issuer-c"),
        ("register", "--bank", "bank-a", "--issuer", "issuer-c", "--user", "user-b", "--file", "x"),
        ("orders", "--bank", "bank-a", "--state", "LOST"),
        ("orders", "--bank", "bank-a", "--limit", "0"),
        ("terms", "propose", "--as", "bank-a", "--bank", "bank-a", "--issuer", "issuer-c", "--kind", "022"),
        ("terms", "accept", "0x12", "--as", "bank-a"),
        ("claim", "nothing", "--as", "bank-a"),
        ("issuer", "allot", "C00003", "--as", "issuer-c", "--ratio", "101"),
        ("disclose", "1", "--bank", "bank-a"),
        ("dispute", "verify", "x"),
        ("gateway", "serve"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    result = hansa("agency", *arguments)
    assert result.exit_code == 2, result.output


@pytest.mark.parametrize("program", ["gateway", "sales", "issuer"])
def test_a_program_without_its_folder(tmp_path: Path, program: str) -> None:
    assert fault(hansa("agency", program, "serve", "--home", str(tmp_path)), 2) == "no_home"


def test_a_program_in_the_folder_of_another(tmp_path: Path) -> None:
    from services.agency.config import SalesFile

    write_service(tmp_path, SalesFile(organisation="bank-a", gateway="gateway.sock"))
    result = hansa("agency", "issuer", "serve", "--home", str(tmp_path))
    assert fault(result, 2) == "bad_config"
    assert "folder of the sales end, not of the issuer end" in result.stderr


def test_nobody_answers(network: LocalNetwork) -> None:
    where = ("--network", str(network.folder))
    for arguments in (
        ("orders", "--bank", "bank-a"),
        ("order", "A1", "--bank", "bank-a"),
        ("status", "--as", "bank-a"),
        ("claim", ROOT, "--as", "bank-a"),
        ("issuer", "allot", "C00003", "--as", "issuer-c"),
    ):
        result = hansa("agency", *arguments, *where)
        assert fault(result, 1) == "program_unreachable", result.stderr
    assert fault(hansa("agency", "setup", *where), 1) == "node_unreachable"


def test_a_dispute_over_no_disclosure(network: LocalNetwork, tmp_path: Path) -> None:
    genesis = ("--genesis", str(network.genesis_path))
    verify = ("agency", "dispute", "verify", str(tmp_path / "d.json"))
    assert fault(hansa(*verify, *genesis), 2) == "bad_file"
    (tmp_path / "d.json").write_text("{}")
    assert fault(hansa(*verify, *genesis), 1) == "malformed"
    assert fault(hansa(*verify, "--genesis", str(tmp_path / "none")), 2) == "bad_genesis"
    result = hansa(*verify, *genesis, "--json")
    assert json.loads(result.stdout)["ok"] is False


# -- profiles and files ----------------------------------------------------------------------------------


def read(path: Path, *lines: str) -> Batch:
    path.write_text("\n".join(lines) + "\n")
    return profiles_of(path, interface="C-FUNDS", distributor="996", date=20_260_101)


def test_a_table_of_profiles(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    batch = read(path, HEAD + ",is_professional", LINE + ",1", LINE.replace("T01", "T02") + ",0")
    first, second = batch.applications
    assert first.investor is not None
    assert second.investor is not None
    assert (first.code, first.ta_account, first.interface, first.distributor) == ("001", "TA01", "C-FUNDS", "996")
    assert (first.investor.risk_class, first.investor.is_professional) == (3, True)
    assert (first.investor.birth_date, second.investor.is_professional) == (19_900_517, False)
    assert first.serial != second.serial
    # The same again is the same: serials, and what the sales end knows the table by.
    assert read(path, HEAD + ",is_professional", LINE + ",1", LINE.replace("T01", "T02") + ",0") == batch
    assert not is_fund_file(path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((), "no lines"),
        ((HEAD,), "no lines"),
        ((HEAD.replace("risk_class", "class"), LINE), "no column risk_class"),
        ((HEAD, LINE, LINE.replace("C3", "C6")), "line 3: risk_class"),
        ((HEAD, LINE.replace("1990-05-17", "May")), "line 2: birth_date"),
        ((HEAD, LINE.replace("1990-05-17", "1990-02-30")), "line 2: birth_date: there is no day 19900230"),
        ((HEAD, LINE.replace("TA01", "T A")), "line 2: ta_account"),
        ((HEAD, LINE.replace("11010119900517001X", "1 1")), "line 2: certificate_number"),
        ((HEAD, "TA01,T01"), "line 2 has fewer columns"),
    ],
)
def test_tables_that_are_refused_with_line_and_column(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(LocalError, match=said) as caught:
        read(tmp_path / "p.csv", *lines)
    assert caught.value.code == "bad_profiles"


def test_a_fund_file_and_its_holders(tmp_path: Path) -> None:
    path = tmp_path / "OFD_996_H0_20170427_03.TXT"
    path.write_bytes(write(orders_file(1, orders=30, accounts=20)))
    batch = trades_of(path, {"000198": "C-FUNDS"})
    assert (len(batch.applications), batch.creator, batch.applications[0].interface) == (30, "996", "C-FUNDS")
    assert is_fund_file(path)
    made = holders_of(path, 1, interface="C-FUNDS")
    own = {item.ta_account for item in batch.applications if item.distributor == "996"}
    assert {item.ta_account for item in made.applications} == own
    assert made.source != batch.source != holders_of(path, 2, interface="C-FUNDS").source
    with pytest.raises(LocalError) as caught:
        trades_of(tmp_path / "none", {})
    assert caught.value.code == "bad_file"


def test_files_that_say_nothing_or_something_else_than_their_name(tmp_path: Path) -> None:
    data = write(orders_file(1, orders=30, accounts=20))
    none = write(dataclasses.replace(orders_file(1), records=()))
    for name, content in (("OFD_996_H0_20170428_03.txt", data), ("none.txt", none)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LocalError, match="by its header" if content is data else "no records") as caught:
            trades_of(tmp_path / name, {})
        assert caught.value.code == "bad_fund_file"


def rejected(order: Application) -> Confirmation:
    facts = (order.serial, "122", f"N{order.serial}"[:20], order.ta_account, "9012", "minor")
    return Confirmation(*facts, 0, 0, 0, 0, 20_170_427, True)


def test_confirmations_of_two_files_of_one_day_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = []
    for seed in (1, 2, 1):
        file = tmp_path / "orders.txt"
        file.write_bytes(write(orders_file(seed, orders=5, accounts=5)))
        batch = trades_of(file, {"000198": "C-FUNDS"})
        records = [
            OrderRecord(batch.source, place, State.REJECTED, "minor", "issuer-c", b"", item, rejected(item), None, [])
            for place, item in enumerate(batch.applications)
        ]
        written.append(write_confirmations(batch, records, None))
    names = [f"OFD_H0_996_20170427_04{number}.TXT" for number in ("", "_001", "")]
    assert written == [Path(name) for name in names]
    assert sorted(path.name for path in tmp_path.glob("OFD_*")) == sorted(set(names))


def test_a_batch_beyond_what_is_taken_at_once_goes_in_parts() -> None:
    investor = investor_from({"name": "user-b", "certificate_number": "1", "risk_class": risk_class("C2")})
    one = registration(
        ta_account="", transaction_account="T", investor=investor, interface="I", distributor="996", date=1
    )
    small, large = Batch("s", [one]), Batch("s", [one] * (2 * TAKE_MAX + 1))
    assert [source for source, _ in small.parts] == ["s"]
    assert [(source, len(part)) for source, part in large.parts] == [("s.0", TAKE_MAX), ("s.1", TAKE_MAX), ("s.2", 1)]


def test_totals_of_parts_are_added() -> None:
    totals = [
        Total(State.REJECTED, "minor", 1, 5),
        Total(State.CONFIRMED, "", 2, 10),
        Total(State.REJECTED, "minor", 3, 7),
    ]
    assert merged(totals) == (Total(State.CONFIRMED, "", 2, 10), Total(State.REJECTED, "minor", 4, 12))


def test_a_sample_is_a_fund_file_under_its_standard_name_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = hansa("agency", "sample", "--orders", "50", "--seed", "7", "--json")
    assert made.exit_code == 0
    [path] = tmp_path.iterdir()
    assert json.loads(made.stdout)["file"] == path.name == "OFD_996_H0_20170427_03.TXT"
    content = path.read_bytes()
    assert content == write(orders_file(7, orders=50, accounts=42))
    assert len(read_path(path).records) == 50
    assert fault(hansa("agency", "sample", "--orders", "1"), 2) == "file_exists"
    assert path.read_bytes() == content
