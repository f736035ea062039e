"""``hansa payee merchant`` and ``code``: what people type, what they see, and what they are told is wrong."""

import json
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import msgspec
import pytest
import trio
from click.testing import Result

from contracts.runtime.execution import Executor
from node.clock import SystemClock
from services.client.keystore import KeyStore
from services.payee.identity import identity_of, identity_text
from services.payee.images import image_bytes
from services.payee.merchants import Merchants
from tests.cli.support import answer, fault, hansa
from tests.conftest import data_folder
from tests.contracts.domain.support import shared_registry
from tests.node.support import Consortium
from tests.payee.platform_world import CONSORTIUM, QuietNode

PASSPHRASE = "long enough"
IDENTITY = identity_text(bytes(range(16)))


@contextmanager
def running_node(folder: Path) -> Iterator[QuietNode]:
    """Run a node of a chain that begins now in a thread of its own."""
    genesis = msgspec.structs.replace(CONSORTIUM.genesis, time_ms=time.time_ns() // 1_000_000)
    consortium = Consortium(genesis, CONSORTIUM.vote_keys, CONSORTIUM.account_keys)
    node = QuietNode(folder, consortium, clock=SystemClock(), executor=Executor(shared_registry()))
    started: Queue[Callable[[], None]] = Queue()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            token = trio.lowlevel.current_trio_token()
            started.put(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))

    thread = Thread(target=trio.run, args=(run,))
    thread.start()
    stop = started.get(timeout=30)
    try:
        yield node
    finally:
        stop()
        thread.join()
        node.store.close()


class Shop:
    """A folder of merchants, one of accounts, and a chain, without a network's folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = ("--merchants", str(folder / "merchants"), *options)

    def run(self, *arguments: str, keys: bool = False) -> Result:
        more = ("--keys", str(self.folder / "keys")) if keys else ()
        return hansa("payee", *arguments, *self.options, *more, HANSA_PASSPHRASE=PASSPHRASE)

    def ask(self, *arguments: str, keys: bool = False) -> Any:
        return answer(self.run(*arguments, "--json", keys=keys))

    def draw(self, *arguments: str, keys: bool = False) -> str:
        """Return what people see; but for values that are never broken it fits 80 columns."""
        result = self.run(*arguments, keys=keys)
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert [line for line in lines if len(line) > 80 and "/" not in line and not line.startswith("000201")] == []
        return result.stdout


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A merchant whose key is here, and no network."""
    Merchants(tmp_path / "merchants").make("tea-house", PASSPHRASE.encode())
    genesis = tmp_path / "genesis.json"
    genesis.write_bytes(CONSORTIUM.genesis.to_json())
    return Shop(tmp_path, "--network", str(tmp_path / "none"), "--genesis", str(genesis))


# -- codes, without a network ----------------------------------------------------------------------------


def test_a_static_code_is_drawn_written_and_read_back(shop: Shop) -> None:
    for kind in ("png", "svg"):
        image = str(shop.folder / f"code.{kind}")
        drawn = shop.draw("code", "make", "--merchant", "tea-house", "--name", "Tea House", "--out", image)
        assert "Static code" in drawn
        assert "the payer enters it" in drawn
        assert "█▀" in drawn
        read = shop.ask("code", "read", image)
        assert read["payload"] in drawn
        assert (read["crc"], read["check"], read["payee"]["dynamic"]) == (True, "not_checked", False)
        assert read["payee"]["identity"] == shop.ask("merchant", "list")["merchants"][0]["identity"]
        assert ("59", "merchant name", "Tea House") in [
            (row["path"], row["name"], row["value"]) for row in read["fields"]
        ]
    shown = shop.draw("code", "show", read["payload"])
    for words in ("26-01", "identity", "org.hansa.payee", "not checked: no network", "right"):
        assert words in shown


def test_a_dynamic_code_names_order_amount_and_expiry(shop: Shop) -> None:
    now_ms = time.time_ns() // 1_000_000
    made = shop.ask("code", "make", "--merchant", "tea-house", "--amount", "12.5", "--order", "A-1", "--expires", "2h")
    assert (made["dynamic"], made["signed"], made["amount"], made["currency"]) == (True, True, "12.50", "CNY")
    assert made["order"] == "A-1"
    assert 0 <= made["expiresMs"] - now_ms - 7_200_000 + 1_000 < 60_000
    shown = shop.ask("code", "show", made["payload"])
    assert shown["payee"] == {name: made[name] for name in shown["payee"]}
    default = shop.ask("code", "make", "--merchant", "tea-house", "--amount", "1", "--order", "A-2")
    assert 0 <= default["expiresMs"] - now_ms - 900_000 + 1_000 < 60_000
    given = shop.ask(
        *("code", "make", "--merchant", "tea-house", "--amount", "1", "--order", "A-3"),
        *("--expires", "2100-01-31T12:00"),
    )
    assert given["expiresMs"] == 4_105_080_000_000


def test_an_identity_whose_key_is_elsewhere_has_static_codes_alone(shop: Shop) -> None:
    assert shop.ask("code", "make", "--merchant", IDENTITY)["identity"] == IDENTITY
    for more in (("--sign",), ("--order", "A-1", "--amount", "1")):
        assert fault(shop.run("code", "make", "--merchant", IDENTITY, *more), 2) == "no_merchant"
    assert fault(shop.run("code", "make", "--merchant", "nobody"), 2) == "no_merchant"


def test_an_identity_joins_another_schemes_code(shop: Shop) -> None:
    lines = (data_folder("qr") / "emv_payloads.tsv").read_text("utf-8").splitlines()
    payloads = dict(line.split("\t") for line in lines)
    foreign = payloads["sgqr-dragonbowl"]
    image, text = shop.folder / "foreign.png", shop.folder / "foreign.txt"
    image.write_bytes(image_bytes(foreign, "png"))
    text.write_text(foreign + "\n", "utf-8")
    made = [
        shop.ask("code", "make", "--merchant", "tea-house", "--into", into)["payload"]
        for into in (foreign, str(image), str(text))
    ]
    assert len(set(made)) == 1
    rest = made[0][:-8]
    for field in shop.ask("code", "show", foreign)["fields"]:
        if field["path"] != "63" and field["value"]:
            assert field["value"] in rest
    assert shop.ask("code", "show", foreign)["check"] == "foreign"
    assert "No payee code" in shop.draw("code", "show", foreign)
    assert "1069 characters, 512 are recommended" in shop.draw("code", "show", payloads["sgqr-foodxyz"])
    assert fault(shop.run("code", "make", "--merchant", "tea-house", "--into", payloads["fps-stale"]), 1) == "bad_crc"
    assert fault(shop.run("code", "make", "--merchant", "tea-house", "--into", made[0]), 2) == "duplicate_identity"
    other = ("--into", foreign, "--name", "Another", "--currency", "SGD")
    assert fault(shop.run("code", "make", "--merchant", "tea-house", *other), 2) == "payload_conflict"


def test_a_wrong_crc_is_shown_with_all_fields_and_an_exit_code(shop: Shop) -> None:
    payload = shop.ask("code", "make", "--merchant", "tea-house")["payload"]
    spoilt = payload[:-1] + ("0" if payload[-1] != "0" else "1")
    result = shop.run("code", "show", spoilt)
    assert result.exit_code == 1
    assert "WRONG" in result.stdout
    assert "26-01" in result.stdout
    data = json.loads(shop.run("code", "show", spoilt, "--json").stdout)
    assert (data["ok"], data["crc"], data["check"]) == (False, False, "bad_crc")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("nonsense", "bad_payload"),
        ("000201", "bad_payload"),
        ("00020101021", "bad_payload"),
        ("0002016304", "bad_payload"),
        ("000201" + "x" * 10_000, "too_large"),
    ],
)
def test_what_is_no_payload_is_one_line_with_its_place(shop: Shop, payload: str, code: str) -> None:
    result = shop.run("code", "show", payload)
    assert fault(result, 1) == code
    assert len(result.stderr) < 200


@pytest.mark.parametrize(
    "options",
    [
        ("--amount", "1.005"),
        ("--amount", "-1"),
        ("--amount", "1e3"),
        ("--amount", "0"),
        ("--amount", "١"),
        ("--amount", "1,5"),
        ("--currency", "yuan"),
        ("--category", "58x"),
        ("--order", "A-1", "--amount", "1", "--expires", "yesterday"),
        ("--order", "A-1", "--amount", "1", "--expires", "2020-01-01"),
        ("--order", "A-1", "--amount", "1", "--expires", "0s"),
        ("--order", "A-1", "--amount", "1", "--expires", "-5m"),
    ],
)
def test_odd_values_are_wrong_usage(shop: Shop, options: tuple[str, ...]) -> None:
    result = shop.run("code", "make", "--merchant", "tea-house", *options)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--order", "A-1"), "bad_amount"),
        (("--order", "no order", "--amount", "1"), "bad_order"),
        (("--expires", "5m"), "bad_expiry"),
        (("--order", "A-1", "--amount", "1", "--expires", "9999-12-31T23:59:59-12:00"), "bad_expiry"),
        (("--amount", "1.50", "--currency", "JPY"), "bad_amount"),
        (("--amount", "1", "--currency", "ZZZ"), "unknown_currency"),
        (("--name", "x" * 26), "bad_field"),
        (("--name", ""), "bad_field"),
        (("--country", "CHN"), "bad_field"),
        (("--city", "\x1b[31m"), "bad_field"),
        (("--out", "code.gif"), "bad_image"),
        (("--into", "missing.png"), "bad_image"),
    ],
)
def test_what_a_code_cannot_be_is_one_line(shop: Shop, options: tuple[str, ...], code: str) -> None:
    assert fault(shop.run("code", "make", "--merchant", "tea-house", *options), 2) == code


def test_images_that_cannot_be_read_or_written_are_one_line(shop: Shop) -> None:
    assert fault(shop.run("code", "read", str(shop.folder)), 2) == "bad_image"
    assert fault(shop.run("code", "read", "missing.png"), 2) == "bad_image"
    (shop.folder / "other.png").write_bytes(image_bytes("https://example.org", "png"))
    assert fault(shop.run("code", "read", str(shop.folder / "other.png")), 1) == "bad_payload"
    out = str(shop.folder / "none" / "code.png")
    assert fault(shop.run("code", "make", "--merchant", "tea-house", "--out", out), 2) == "file_error"


def test_a_key_needs_its_passphrase(shop: Shop) -> None:
    make = ("payee", "code", "make", "--merchant", "tea-house", "--sign", *shop.options)
    assert fault(hansa(*make, HANSA_PASSPHRASE="another one"), 2) == "wrong_passphrase"
    assert fault(hansa(*make, "--passphrase-file", "missing", HANSA_PASSPHRASE=PASSPHRASE), 2) == "bad_passphrase_file"


def test_nobody_types_a_passphrase_twice(tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys").create("merchant-m", PASSPHRASE.encode(), CONSORTIUM.account_keys["merchant-m"])
    (tmp_path / "genesis.json").write_bytes(CONSORTIUM.genesis.to_json())
    where = [
        "--network",
        "none",
        "--genesis",
        "genesis.json",
        "--node",
        "http://127.0.0.1:1",
        "--merchants",
        "merchants",
    ]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        variables = {name: value for name, value in os.environ.items() if name != "HANSA_PASSPHRASE"}
        os.execve(
            sys.executable,
            [sys.executable, "-m", "cli.main", "payee", "merchant", "new", "tea-house", "--keys", "keys", *where],
            variables | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    asked = b""
    with os.fdopen(terminal, "r+b", buffering=0) as screen, suppress(OSError):  # the terminal goes with who was in it
        while part := screen.read(4_096):
            asked += part
            if part.endswith(b": "):
                screen.write(f"{PASSPHRASE}\n".encode())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert b"node_unreachable" in asked
    assert asked.count(b"New passphrase for tea-house") == asked.count(b"Passphrase of merchant-m") == 1


# -- merchants, and signatures on a chain ----------------------------------------------------------------


def test_merchants_and_the_check_of_their_codes_on_a_chain(tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys").create("merchant-m", PASSPHRASE.encode(), CONSORTIUM.account_keys["merchant-m"])
    KeyStore(tmp_path / "keys").create("user-b", PASSPHRASE.encode(), CONSORTIUM.account_keys["user-b"])
    with running_node(tmp_path / "node") as node:
        genesis = tmp_path / "genesis.json"
        genesis.write_bytes(node.consortium.genesis.to_json())
        net = Shop(tmp_path, "--network", str(tmp_path / "none"), "--genesis", str(genesis), "--node", node.url)
        check_merchant(net)
        check_codes(net)
        static = net.ask("code", "make", "--merchant", "tea-house")["payload"]
    assert net.ask("code", "show", static)["check"] == "not_checked"
    assert "no node answers" in net.draw("code", "show", static)


def check_merchant(net: Shop) -> None:
    """A merchant is made, shown, gives consent; a taken NAME and an account that may not are refused."""
    assert fault(net.run("merchant", "show", IDENTITY), 1) == "unknown_merchant"
    refused = net.run("merchant", "new", "tea-house", "--as", "user-b", keys=True)
    assert "error not_allowed" in refused.stderr
    assert "hansa payee merchant new tea-house registers it" in net.run("merchant", "show", "tea-house").stderr
    drawn = net.draw("merchant", "new", "tea-house", keys=True)  # goes on
    identity = net.ask("merchant", "list")["merchants"][0]["identity"]
    assert identity in drawn
    assert len(identity_of(identity)) == 16
    taken = net.run("merchant", "new", "tea-house", keys=True)
    assert fault(taken, 2) == "merchant_exists"
    assert identity in taken.stderr
    for name in ("No Name", IDENTITY):
        assert fault(net.run("merchant", "new", name, keys=True), 2) == "bad_name"
    assert net.run("merchant", "consent", "tea-house", "maybe", keys=True).exit_code == 2
    assert "Consent is given" in net.draw("merchant", "consent", "tea-house", "on", keys=True)
    assert net.ask("merchant", "consent", identity, "on", keys=True)["changed"] is False
    assert "as it was" in net.draw("merchant", "consent", "tea-house", "on", keys=True)
    shown = net.ask("merchant", "show", "tea-house")
    assert (shown["consent"], shown["platforms"], shown["changes"]) == (True, [], 2)
    assert shown == net.ask("merchant", "show", identity)
    assert "Merchant tea-house" in net.draw("merchant", "show", identity)
    removal = net.run("merchant", "remove-record", "tea-house", "--platform", "wallet-p", keys=True)
    assert fault(removal, 1) == "unknown_record"


def check_codes(net: Shop) -> None:
    """Signatures are checked with the key on the chain: right, altered, of a key before, of nobody."""
    order = ("--amount", "1", "--order", "A-1")
    made = net.ask("code", "make", "--merchant", "tea-house", *order)
    image = str(net.folder / "code.png")
    assert net.ask("code", "make", "--merchant", "tea-house", *order, "--out", image)["file"] == image
    assert net.ask("code", "read", image)["check"] == "right"
    assert "its key on the chain" in net.draw("code", "read", image)
    signed = net.ask("code", "make", "--merchant", "tea-house", "--sign")["payload"]
    static = net.ask("code", "make", "--merchant", "tea-house")["payload"]
    assert (check_of(net, signed), check_of(net, static)) == ("right", "unsigned")
    altered = recalculated(made["payload"].replace("54041.00", "54049.00"))
    assert check_of(net, altered) == "bad_code"
    assert check_of(net, recalculated(made["payload"].replace("010212", "010211"))) == "bad_code"
    assert "new key" in net.draw("merchant", "key", "new", "tea-house", keys=True)
    assert (check_of(net, signed), check_of(net, static)) == ("bad_code", "unsigned")
    assert "has replaced its key" in " ".join(net.run("code", "show", signed).stdout.split())
    again = net.ask("code", "make", "--merchant", "tea-house", "--sign")["payload"]
    assert check_of(net, again) == "right"
    assert check_of(net, net.ask("code", "make", "--merchant", IDENTITY)["payload"]) == "unknown_merchant"


def check_of(net: Shop, payload: str) -> str:
    """Return the word that a payload's check comes to; the exit code says the same."""
    result = net.run("code", "show", payload, "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == (0 if data["check"] in ("right", "unsigned") else 1)
    assert data["ok"] is (result.exit_code == 0)
    return str(data["check"])


def recalculated(payload: str) -> str:
    """Return a payload with the CRC that it has now, as an attacker would."""
    from services.payee.emv import crc_of

    return payload[:-4] + crc_of(payload[:-4])
