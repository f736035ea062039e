"""The whole rights system from one command: up, an order over HTTP until it is on the chain, down, and up again."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trio

from consensus.ledger.keys import PrivateKey
from node.network.homes import load_network
from node.network.programs import PROGRAM_PORT_STEP, find_program, kill
from node.network.trial import free_port_base
from tests.cli.support import answer, fault, hansa

pytestmark = [pytest.mark.network, pytest.mark.slow]

PROGRAMS = ["rights-center", "rights-business", "rights-server"]
DONE_S_MAX = 30


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "net")
    answer(hansa("network", "init", folder, "--port-base", str(free_port_base(4)), "--json"))
    yield folder
    answer(hansa("network", "down", folder, "--json"))


def programs(card: Any) -> dict[str, Any]:
    assert [program["name"] for program in card["programs"]] == PROGRAMS
    return {program["name"]: program for program in card["programs"]}


def ask(card: Any, path: str, body: object = None) -> Any:
    """Ask the business server, by POST where there is a body."""
    url = f"http://{programs(card)['rights-business']['listen']}{path}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=DONE_S_MAX) as response:
        return json.loads(response.read())


def ended(card: Any, taken: Any) -> Any:
    """Follow an event until it has ended."""
    deadline = monotonic() + DONE_S_MAX
    while (event := ask(card, taken["follow"]))["state"] == "waiting":
        assert monotonic() < deadline, event
    return event


def test_an_order_goes_from_http_to_the_chain_and_back(folder: str, tmp_path: Path) -> None:
    at = ("--network", folder)
    refuse_a_taken_port(folder)
    card = answer(hansa("network", "up", folder, "--with", "rights", "--json"))
    assert [program["state"] for program in programs(card).values()] == ["ready"] * 3
    again = answer(hansa("network", "up", folder, "--with", "rights", "--json"))
    assert [item["pid"] for item in again["programs"]] == [item["pid"] for item in card["programs"]]
    assert answer(hansa("rights", "setup", *at, "--json", HANSA_PASSPHRASE="another"))["done"] == []
    create = ("rights", "campaign", "create", "summer", "--quota", "1000", "--order-max", "50")
    answer(hansa(*create, "--share-basis-points", "500", "--as", "shop", *at, "--json"))
    answer(hansa("rights", "price", "set", "coffee", "15", "--as", "shop", *at, "--json"))
    order = {"order": "o-17", "user": "u-1", "campaign": "summer", "amount": 800}
    created = ended(card, ask(card, "/orders", order))
    assert created["state"] == "done", created
    assert ended(card, ask(card, "/orders/o-17/complete", {}))["state"] == "done"
    redeemed = ended(card, ask(card, "/redemptions", {"redemption": "r-1", "user": "u-1", "items": {"coffee": 2}}))
    assert redeemed["state"] == "done", redeemed
    late = ended(card, ask(card, "/redemptions", {"redemption": "r-2", "user": "u-1", "items": {"tea": 2}}))
    assert (late["state"], late["error"]["code"]) == ("refused", "unknown_item")
    stats = answer(hansa("rights", "status", *at, "--json"))
    assert (stats["waiting"], stats["done"], stats["refused"], stats["dead"], stats["consumers"]) == (0, 3, 1, 0, 1)
    assert stats["height"] >= created["chain"]["height"]
    drawn = hansa("rights", "refused", "list", *at).stdout
    assert "redeem/r-2/1" in drawn
    assert "unknown_item" in drawn

    # One node's word, the proof, and the proof's file say the same.
    said = answer(hansa("rights", "user", "u-1", "--history", *at, "--json"))
    kept = str(tmp_path / "u-1.history")
    proven = answer(hansa("rights", "user", "u-1", "--history", "--prove", "--out", kept, *at, "--json"))
    genesis = ("--genesis", f"{folder}/genesis.json")
    offline = answer(hansa("rights", "history", "verify", kept, *genesis, "--entries", "--json"))
    balance = {"created": "40", "reserved": "0", "available": "10", "redeemed": "30", "count": "3"}
    for data in (said, proven, offline):
        assert {name: data[name] for name in balance} == balance
        assert [(item["type"], item["reference"]) for item in data["entries"]] == [
            ("create_by_rule", "o-17"),
            ("complete", "o-17"),
            ("redeem_items", "r-1"),
        ]
    assert (said["proven"], proven["proven"], offline["proven"]) == (False, True, True)
    Path(kept).write_text(Path(kept).read_text().replace('"o-17"', '"o-18"'))
    assert fault(hansa("rights", "history", "verify", kept, *genesis), 1) == "history_broken"
    campaign = answer(hansa("rights", "campaign", "show", "summer", *at, "--json"))["campaign"]
    assert (campaign["granted"], campaign["left"]) == ("40", "960")
    assert "summer" in hansa("rights", "campaign", "show", *at).stdout
    assert answer(hansa("rights", "price", "list", *at, "--json"))["prices"][0]["price"] == "15"
    answer(hansa("rights", "campaign", "close", "summer", "--as", "shop", *at, "--json"))
    assert hansa("rights", "campaign", "close", "summer", "--as", "shop", *at).exit_code == 1

    # Killed programs are said so, start again, and know what was.
    trio.run(kill, find_program(load_network(Path(folder)), "rights-center"))
    killed = json.loads(hansa("network", "status", folder, "--json").stdout)
    assert not killed["ok"]
    assert any("rights-center does not run: killed" in line for line in killed["attention"])
    card = answer(hansa("network", "up", folder, "--with", "rights", "--json"))
    assert ask(card, "/events/redeem/r-1/1")["state"] == "done"

    down = answer(hansa("network", "down", folder, "--json"))
    assert {*down["programs"].values()} == {*down["nodes"].values()} == {"ended"}
    card = json.loads(hansa("network", "status", folder, "--json").stdout)
    assert [program["state"] for program in programs(card).values()] == ["stopped"] * 3

    # After the chain was wiped all is made that it has lost.
    answer(hansa("network", "reset", folder, "--yes", "--json"))
    card = answer(hansa("network", "up", folder, "--with", "rights", "--json"))
    answer(hansa(*create, "--as", "shop", *at, "--json"))
    assert ended(card, ask(card, "/orders", order))["state"] == "done"
    assert answer(hansa("rights", "user", "u-1", *at, "--json"))["created"] == "50"
    change_by_setup(Path(folder))


def refuse_a_taken_port(folder: str) -> None:
    """A program's taken port is named, no program runs then, and the nodes do."""
    card = json.loads(hansa("network", "status", folder, "--json").stdout)
    port = int(card["nodes"][0]["p2p"].rpartition(":")[2]) + PROGRAM_PORT_STEP
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        result = hansa("network", "up", folder, "--with", "rights", "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["code"]) == (1, "port_in_use")
    assert f"port {port}" in error["message"]
    assert "rights-business" in error["message"]
    card = answer(hansa("network", "status", folder, "--json"))
    assert [program["state"] for program in card["programs"]] == ["stopped"] * 3
    assert "hansa network up --with rights" in hansa("network", "up", folder).stderr
    assert [node["state"] for node in card["nodes"]] == ["ready"] * 4


def change_by_setup(folder: Path) -> None:
    """Options of setup change the centre's file, and nothing else; what an operator wrote stays."""
    at = ("--network", str(folder))
    path = folder / "services" / "rights-center" / "service.toml"
    assert "rate_per_s = 500.0" in path.read_text()
    path.write_text("# by hand\n" + path.read_text())
    assert answer(hansa("rights", "setup", *at, "--rate", "500", "--json"))["done"] == []
    assert path.read_text().startswith("# by hand\n")
    changed = answer(hansa("rights", "setup", *at, "--rate", "20", "--strict", "--json"))
    assert changed["done"] == ["rights-center/service.toml", "rights-server/service.toml"]
    assert changed["restart"] == ["rights-center", "rights-server"]
    assert "lanes = 1\n" in (folder / "services" / "rights-server" / "service.toml").read_text()
    assert "rate_per_s = 20.0" in path.read_text()
    assert "strict = true" in path.read_text()
    assert fault(hansa("rights", "setup", *at, "--as", "bank-a"), 1) == "not_allowed"
    assert not (folder / "identities" / "bank-a-events.pem").exists()
    # Whose keys the chain has stay; where there is no room beside them, nothing is changed.
    keys = ["0x" + PrivateKey.generate().public.compressed.hex() for _ in range(4)]
    for count, outcome in ((3, 0), (4, 2)):
        appoint = f"event_keys:={json.dumps(keys[:count])}", "rights_servers:=[]"
        answer(hansa("tx", "call", "rights", "appoint", *appoint, "--as", "shop", *at, "--json"))
        result = hansa("rights", "setup", *at, "--json")
        assert result.exit_code == outcome, result.output
        query = (
            "rights",
            "appointed",
            f"server={json.loads(hansa('key', 'show', 'shop', *at, '--json').stdout)['address']}",
        )
        assert answer(hansa("query", *query, *at, "--json"))["value"]["eventKeys"][:count] == keys[:count]
    assert json.loads(result.stdout)["error"]["code"] == "too_many_keys"
