"""Random markers in every field of orders stand nowhere but with the two parties; with broken routing they are found.

Looked through are, of every process that is no party: databases record by record, all files, logs, the frames it sent
and received before TLS, and what it answers; of the parties' own nodes what they have in public; and everything that
the parties keep, which must be sealed.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import httpx
import msgspec
import pytest
import trio

from cli.agency_trial import RECORD, AgencyTrial, agency_trial
from node.network.local import environment, node_process
from node.network.process import LocalProcess
from node.network.traces import file_traces
from services.agency.orders import Application, Code, Investor
from services.agency.sales_interface import OrderRecord, State
from services.demo.agency_markers import find, forms_of
from services.demo.agency_network import BANK, BANK_GATEWAY, ISSUER, OTHER, PERMISSION, SALES
from services.demo.agency_till import Till, open_till

pytestmark = [pytest.mark.network, pytest.mark.slow]

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
THIRD_NODES, THIRD_PROGRAMS = (PERMISSION, OTHER), ("issuer-f-gateway", "issuer-f-end", "authority")
OWN_NODES, OWN_PROGRAMS = (BANK, ISSUER), ("bank-a-gateway", "bank-a-sales", "issuer-c-gateway", "issuer-c-end")
Traces = Iterable[tuple[str, bytes]]


class Marked:
    """Orders whose every field that may hold anything holds a random marker."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.markers: dict[str, str | int | bytes] = {}
        self.dropped: set[str] = set()
        """Markers of what never leaves the bank."""
        self.account = self.text("ta_account", 12)
        self.transaction_account = self.text("transaction_account", 17)

    def text(self, name: str, length: int = 16) -> str:
        return str(self._add(name, "".join(self.random.choice(LETTERS) for _ in range(length))))

    def number(self, name: str, digits: int = 14) -> int:
        return int(self._add(name, self.random.randrange(10 ** (digits - 1), 10**digits)))

    def _add(self, name: str, value: str | int) -> str | int:
        self.markers[f"{name} {len(self.markers)}"] = value
        return value

    @property
    def forms(self) -> dict[str, frozenset[bytes]]:
        return {name: forms_of(value) for name, value in self.markers.items()}

    def order(self, code: Code, **changes: object) -> Application:
        order = Application(
            serial=self.text("serial", 24),
            code=code.value,
            interface="C-FUNDS",
            product="000198",
            target_product="",
            ta_account=self.account,
            transaction_account=self.transaction_account,
            distributor="996",
            target_distributor="",
            amount=0,
            volume=0,
            currency="156",
            date=20170427,
            time=93000,
            terms_version=0,
            is_warned=False,
            investor=None,
            fields={"Specification": f"稳健{self.text('field')}", "DepositAcct": self.text("field", 19)},
        )
        return msgspec.structs.replace(order, **changes)

    def opening(self) -> Application:
        investor = Investor(f"王{self.text('name')}", "0", self.text("certificate", 30), 19800229, 3)
        return self.order(Code.OPEN_ACCOUNT, product="", currency="", investor=investor)

    def orders(self) -> list[Application]:
        """One that is confirmed, one that is rejected, one that is dropped before it is sent."""
        sent = [
            self.order(Code.SUBSCRIPTION, amount=self.number("amount")),
            self.order(Code.REDEMPTION, volume=self.number("volume", 15)),
        ]
        known = set(self.markers)
        foreign = self.text("distributor", 9)
        dropped = self.order(Code.SUBSCRIPTION, amount=self.number("amount"), distributor=foreign)
        self.dropped = set(self.markers) - known
        return [*sent, dropped]


async def trade(till: Till, marked: Marked, name: str) -> list[OrderRecord]:
    """Open the account and trade; add to the markers what came of it."""
    await till.send(f"{name}-account", [marked.opening()])
    await till.send(f"{name}-orders", marked.orders())
    records = [record for part in ("account", "orders") for record in await till.records(f"{name}-{part}")]
    assert [record.state for record in records] == [State.CONFIRMED, State.CONFIRMED, State.REJECTED, State.DROPPED]
    for record in records:
        if record.confirmation is not None:
            marked.markers[f"confirmation {record.confirmation.ta_serial}"] = record.confirmation.ta_serial
            document = await till.disclose(record)
            marked.markers[f"salt {len(marked.markers)}"] = bytes.fromhex(str(document["salt"]).removeprefix("0x"))
    return records


async def answers_of(trial: AgencyTrial) -> list[tuple[str, bytes]]:
    """Return everything that the nodes say to anybody who asks: state, events, blocks, channels, figures."""
    found: list[tuple[str, bytes]] = []
    async with httpx.AsyncClient(timeout=20) as http:

        async def ask(url: str, method: str, params: dict[str, object]) -> dict[str, object]:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            content = (await http.post(f"{url}/rpc", json=body)).content
            found.append((f"{url} {method}", content))
            result = json.loads(content)["result"]
            return result if isinstance(result, dict) else {}

        async def scan(url: str, prefix: str) -> None:
            cursor: object = None
            while True:
                where = {"prefix": prefix, "limit": 100} | ({"cursor": cursor} if cursor else {})
                cursor = (await ask(url, "state_scan", where))["cursor"]
                if cursor is None:
                    break

        for url in trial.urls.values():
            for method in ("channel_list", "net_peers", "consensus_status", "chain_status"):
                await ask(url, method, {})
            for path in ("/metrics", "/healthz", "/"):
                found.append((url + path, (await http.get(url + path)).content))
            for contract in ("cooperation", "evidence", "membership"):
                await ask(url, "events_query", {"contract": contract})
                await scan(url, f"{contract}/")
            height = (await ask(url, "chain_status", {}))["height"]
            assert isinstance(height, int)
            for number in range(1, height + 1):
                block = await ask(url, "chain_getBlock", {"height": number, "prove": True})
                for identity in set(re.findall(r'"id": ?"(0x[0-9a-f]{64})"', json.dumps(block))):
                    await ask(url, "chain_getTransaction", {"id": identity})
    return found


def traces_of(
    trial: AgencyTrial, nodes: Iterable[str], programs: Iterable[str], *, skip: str = ""
) -> Iterator[tuple[str, bytes]]:
    """Yield what nodes and programs have left, but for the files whose place ends with ``skip``."""
    for name in nodes:
        for place, data in trial.traces(name):
            if not skip or not place.endswith(skip):
                yield place, data
    for name in programs:
        folder = trial.network.folder / "services" / name
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield from ((trace.place, trace.data) for trace in file_traces(path, f"{name}/{path.name}"))


async def look(marked: Marked, traces: Traces) -> dict[str, list[str]]:
    """Return which markers stand where."""
    return await trio.to_thread.run_sync(find, marked.forms, traces)


async def test_r78_r80_what_two_members_exchange_stands_nowhere_else(tmp_path: Path) -> None:
    async with agency_trial(tmp_path / "net", records_frames=True) as trial:
        await trial.open_agency()
        async with open_till(trial.socket(SALES), trial.socket(BANK_GATEWAY)) as till:
            marked = Marked(1)
            records = await trade(till, marked, "kept")
            assert await look(marked, await answers_of(trial)) == {}
            for name in THIRD_NODES:
                await trial.kill(name)
            assert await look(marked, traces_of(trial, THIRD_NODES, THIRD_PROGRAMS)) == {}
            own = await look(marked, [("own", msgspec.json.encode(records))])
            salts = {name for name in marked.markers if name.startswith("salt")}
            assert set(marked.markers) - set(own) == salts, "the bank's own socket hands out all else"
            for name in THIRD_NODES:
                await trial.start(name)
            leaked = Marked(2)
            await start_leaky(trial, BANK, PERMISSION)
            await trade(till, leaked, "leaked")
        await trial.stop_programs()
        for name in (*OWN_NODES, *THIRD_NODES):
            await trial.kill(name)
        sealed = [*traces_of(trial, OWN_NODES, OWN_PROGRAMS, skip=RECORD)]
        assert await look(marked, sealed) == {}
        assert sum(len(data) for place, data in sealed if "vault.db" in place) > 10_000
        for name in OWN_NODES:
            frames = [trace for trace in traces_of(trial, [name], []) if trace[0].endswith(RECORD)]
            assert set(marked.markers) - set(await look(marked, frames)) == marked.dropped, name
        found = await look(leaked, traces_of(trial, [PERMISSION], []))
        assert {name.split()[0] for name in found} >= {"ta_account", "serial", "certificate", "name", "amount", "field"}
        assert any(place.endswith(RECORD) for places in found.values() for place in places)
        assert await look(leaked, traces_of(trial, [OTHER], THIRD_PROGRAMS)) == {}


async def start_leaky(trial: AgencyTrial, name: str, peer: str) -> None:
    """Replace a node by one that sends its private payloads to ``peer`` too."""
    home = trial.network.node(name)
    await trial.kill(name)
    own = node_process(home)
    arguments = (*own.arguments[:2], "tests.network.leaky_node", str(home.folder), peer)
    LocalProcess(name, arguments, own.pid_file, own.log_file).start(environment())
    await trial.start(name)
