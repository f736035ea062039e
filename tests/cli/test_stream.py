"""``hansa stream``: words, iterations in files, and how a stream looks while it is paid."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.main import cli
from cli.output import Output
from cli.stream import COMMANDS
from cli.stream_live import Seen, Table, quantity
from cli.stream_open import End
from cli.stream_place import ends_of, span
from consensus.ledger.keys import PrivateKey
from consensus.ledger.streams import Terms, make_iteration, stream_id
from services.stream.charging import charging_session
from services.stream.iteration_file import Carried, encode_carried
from tests.cli.support import answer, fault, hansa
from tests.payee.platform_world import CONSORTIUM

KEY = PrivateKey.generate()
UNTIL_MS = 1_893_456_000_000
GROUPS = {
    "iteration": ("show", "verify"),
    "service": ("serve", "status", "list", "show", "end", "export"),
    "watch": ("serve", "add", "show", "status"),
}
ALL = [(name,) for name in COMMANDS if name not in GROUPS and name != "setup"]
ALL += [(group, name) for group, names in GROUPS.items() for name in names]
ID = "3f9a" * 16


def terms(payer: bytes = bytes(KEY.public.address), **changes: Any) -> Terms:
    """Return terms of a stream that charges a car."""
    values: dict[str, Any] = {
        "payer": payer,
        "service": b"s" * 20,
        "number": 7,
        "what": "0.1 kWh",
        "unit": "SIM-FEN",
        "deposit": 5_000,
        "fine": 500,
        "price": 8,
        "step_max": 40,
        "credit": 0,
        "mode": 0,
        "count_max": 200,
        "amount_max": 0,
        "duration_ms_max": 3_600_000,
        "window_ms": 3_900_000,
        "validity_ms": 1_800_000,
        "margin_ms": 60_000,
        "step_ms": 30_000,
        "offer_until_ms": UNTIL_MS,
    }
    return Terms(**values | changes)


def carried(agreed: Terms, key: PrivateKey = KEY, due: int = 1_600) -> Carried:
    """Return an iteration of a stream as a file carries it."""
    stream = stream_id(agreed.payer, agreed.service, agreed.number)
    made = make_iteration(key, CONSORTIUM.genesis.chain_id(), agreed.payer, stream, due, UNTIL_MS)
    return Carried(agreed, key.public.compressed, made.raw)


@pytest.fixture
def genesis(tmp_path: Path) -> str:
    path = tmp_path / "genesis.json"
    path.write_bytes(CONSORTIUM.genesis.to_json())
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.json"
    path.write_bytes(encode_carried(carried(terms()), CONSORTIUM.genesis.chain_id()))
    return path


# -- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    result = hansa("stream", *command, "--help")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert f"Example: hansa stream {' '.join(command)}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("group", [(), *((name,) for name in GROUPS)])
def test_help_of_groups(group: tuple[str, ...]) -> None:
    result = hansa("stream", *group, "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    names = GROUPS[group[0]] if group else COMMANDS
    assert all(f" {name} " in result.stdout for name in names)


@pytest.mark.parametrize(
    "words",
    [
        ("open", "--payer", "user-b", "--deposit", "0"),
        ("open", "--payer", "user-b", "--deposit", "1.5"),
        ("open", "--payer", "user-b", "--deposit", "9", "--end", "count=0"),
        ("open", "--payer", "user-b", "--deposit", "9", "--end", "count"),
        ("open", "--payer", "user-b", "--deposit", "9", "--end", "time=5"),
        ("open", "--payer", "user-b", "--deposit", "9", "--mode", "first"),
        ("open", "--deposit", "9"),
        ("open", "--payer", "user-b", "--deposit", "9", "--offer", "offer.json"),
        ("open", "--payer", "user-b", "--fine", "9", "--offer", "offer.json"),
        ("open", "--payer", "user-b", "--mode", "service-first", "--offer", "offer.json"),
        ("pay", "xyz"),
        ("pay", "0x3f"),
        ("pay", "0x" + "0" * 65),
        ("show", "../3f9a"),
        ("service", "list", "--status", "paid"),
        ("service", "export", "3f9a"),
        ("top-up", ID, "--to", "0"),
    ],
    ids=" ".join,
)
def test_wrong_words(words: tuple[str, ...], tmp_path: Path) -> None:
    result = hansa("stream", *words, "--network", str(tmp_path), "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("list",), "no_network"),
        (("pay", ID), "no_network"),
        (("service", "status"), "no_home"),
        (("service", "serve"), "no_home"),
        (("watch", "status"), "no_home"),
        (("watch", "serve"), "no_home"),
    ],
    ids=str,
)
def test_nowhere(words: tuple[str, ...], code: str, tmp_path: Path) -> None:
    assert fault(hansa("stream", *words, "--network", str(tmp_path / "none")), 2) == code


def test_unknown_streams(tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "payer"))
    assert answer(hansa("stream", "list", *home, "--json"))["streams"] == []
    assert "hansa stream open" in hansa("stream", "list", *home).stdout
    for words in (("pay", ID), ("close", "3f9a"), ("withdraw", "3f9a"), ("show", "3f9a"), ("top-up", ID, "--to", "9")):
        assert fault(hansa("stream", *words, *home, "--network", str(tmp_path)), 2) == "unknown_stream"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("count=200", ("count_max", 200)),
        ("amount=5000", ("amount_max", 5_000)),
        ("time=90s", ("duration_ms_max", 90_000)),
        ("time=1h", ("duration_ms_max", 3_600_000)),
        ("time=2m", ("duration_ms_max", 120_000)),
    ],
)
def test_ends(text: str, found: tuple[str, int]) -> None:
    assert End().convert(text, None, None) == found


def test_ends_in_words() -> None:
    assert ends_of(terms()) == "after 200 iterations or after 1 h"
    assert ends_of(terms(count_max=0, duration_ms_max=0, amount_max=5_000)) == "at 5,000 SIM-FEN"
    assert ends_of(terms(count_max=0, duration_ms_max=0)) == "when either closes it"
    assert [span(ms) for ms in (999, 1_000, 90_000, 5_400_000, 172_800_000)] == [
        "999 ms",
        "1 s",
        "1.5 min",
        "1.5 h",
        "2 d",
    ]


# -- iterations in files ---------------------------------------------------------------------------------


def test_an_iteration_is_shown_unchecked(file: Path) -> None:
    found = answer(hansa("stream", "iteration", "show", str(file), "--json"))
    assert (found["due"], found["unit"], found["checked"]) == (1_600, "SIM-FEN", False)
    text = hansa("stream", "iteration", "show", str(file)).stdout
    assert "1,600 SIM-FEN in all" in text
    assert "not checked" in text


def test_an_iteration_is_verified_offline(file: Path, genesis: str) -> None:
    found = answer(hansa("stream", "iteration", "verify", str(file), "--genesis", genesis, "--json"))
    assert (found["due"], found["checked"], found["keyFrom"]) == (1_600, True, "file")
    assert found["validUntilMs"] == UNTIL_MS
    text = hansa("stream", "iteration", "verify", str(file), "--genesis", genesis).stdout
    assert "The iteration holds" in text
    assert "a key that the file alone says" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_payer_of_genesis_is_known(tmp_path: Path, genesis: str) -> None:
    account = CONSORTIUM.genesis.accounts[0]
    key = CONSORTIUM.account_keys[account.name]
    path = tmp_path / "known.json"
    agreed = terms(bytes(account.address))
    path.write_bytes(encode_carried(carried(agreed, key), CONSORTIUM.genesis.chain_id()))
    found = answer(hansa("stream", "iteration", "verify", str(path), "--genesis", genesis, "--json"))
    assert found["keyFrom"] == "genesis"
    assert account.name in hansa("stream", "iteration", "verify", str(path), "--genesis", genesis).stdout


def _changed(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_an_iteration_of_another_hand(file: Path, genesis: str) -> None:
    raw = carried(terms(), PrivateKey.generate()).raw
    _changed(file, raw=f"0x{raw.hex()}")
    assert fault(hansa("stream", "iteration", "verify", str(file), "--genesis", genesis), 1) == "bad_signature"


def test_an_iteration_of_another_stream(file: Path, genesis: str) -> None:
    _changed(file, raw=f"0x{carried(terms(number=8)).raw.hex()}")
    assert fault(hansa("stream", "iteration", "verify", str(file), "--genesis", genesis), 1) == "wrong_stream"


def test_terms_of_another_stream(file: Path, genesis: str) -> None:
    document = json.loads(file.read_text())
    _changed(file, terms={**document["terms"], "number": 8})
    for words in (("show",), ("verify", "--genesis", genesis)):
        assert fault(hansa("stream", "iteration", *words, str(file)), 1) == "wrong_stream"
    _changed(file, terms=document["terms"], stream=f"0x{ID}")
    for words in (("show",), ("verify", "--genesis", genesis)):
        assert fault(hansa("stream", "iteration", *words, str(file)), 1) == "wrong_stream"


def test_an_iteration_of_another_chain(file: Path, genesis: str) -> None:
    _changed(file, chainId=f"0x{bytes(32).hex()}")
    assert fault(hansa("stream", "iteration", "verify", str(file), "--genesis", genesis), 1) == "wrong_chain"


@pytest.mark.parametrize("command", ["show", "verify"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[" * 10_000, b" " * (1024 * 1024 + 1)])
def test_no_iteration(command: str, content: bytes, tmp_path: Path, genesis: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    more = ("--genesis", genesis) if command == "verify" else ()
    result = hansa("stream", "iteration", command, str(path), *more)
    assert fault(result, 1) in ("malformed", "too_large")


def test_no_file(tmp_path: Path) -> None:
    assert fault(hansa("stream", "iteration", "show", str(tmp_path / "none.json")), 2) == "bad_file"


# -- the live table --------------------------------------------------------------------------------------


def _drawn(table: Table, columns: int = 80) -> str:
    output = io.StringIO()
    Console(file=output, width=columns).print(table.drawn())
    return output.getvalue()


def test_the_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed, clock = terms(), itertools.count(step=5.9999)  # stored after seconds, and for long
    monkeypatch.setattr("cli.stream_live.time.monotonic", lambda: next(clock))
    with Table(Output(as_json=True), agreed, bytes.fromhex(ID), "user-b → merchant-m") as table:
        for number, pulse in enumerate(charging_session(9), start=1):
            table.see(Seen(pulse.units, 8 * pulse.units, 8 * pulse.units - 8, number))
        text = _drawn(table)
        table.see(Seen(pulse.units, 8 * pulse.units, 8 * pulse.units, number, "closing"))
    assert max(map(len, text.splitlines())) <= 80
    assert "user-b → merchant-m" in text
    assert "200 of 200 iterations" in text
    assert "36.5 kWh" in text
    assert "2,920 SIM-FEN" in text
    assert "20:00.0" in text.splitlines()[-5]
    assert "…" in text.splitlines()[-5]
    assert text.splitlines()[-1].rstrip().endswith("Ctrl-C ends it")
    assert "stored after" in text.splitlines()[-1]
    assert "closing" in _drawn(table)


def test_what_is_at_stake() -> None:
    table = Table(Output(as_json=True), terms(), bytes.fromhex(ID), "a → b")
    table.see(Seen(5, 0, 0, 0))
    assert "40 supplied and not paid, of 40 SIM-FEN at the most" in _drawn(table)
    table.see(Seen(5, 80, 40, 2))
    assert "40 paid ahead" in _drawn(table)


@pytest.mark.parametrize(
    ("units", "what", "text"),
    [
        (365, "0.1 kWh", "36.5 kWh"),
        (12, "1 minute", "12 minute"),
        (3, "page", "3 × page"),
        (2_000, "0.25 l", "500.00 l"),
    ],
)
def test_quantities(units: int, what: str, text: str) -> None:
    assert quantity(units, what) == text


def test_every_command_is_there() -> None:
    assert set(COMMANDS) <= {*hansa("stream", "--help").stdout.split()}
    assert "stream" in cli.list_commands(None)  # type: ignore[arg-type]
