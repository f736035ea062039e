"""Setting up settlement, on a real chain: done once, continued after an interruption, minding what people changed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Account, Genesis, Organisation
from consensus.ledger.transaction import Call
from services.accounts.config import AccountsFile, accounts_settings
from services.accounts.link import open_accounts
from services.accounts.opening import OPENING_CENTS
from services.accounts.program import serve
from services.client.client import Client
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.outcome import Outcome
from services.local.files import read_service, replace_file, write_service
from services.messages.config import CenterFile, center_settings
from services.settlement.config import EventsFile, PayerFile, events_settings, payer_settings
from services.settlement.setup import AGENT, BANK, UNIT, UNITS, Plan, Prepared, open_people, set_up
from tests.client.support import CONSORTIUM, SoloNode, client_of, running

PASSPHRASE = b"correct horse"
ROLES = {BANK: ["admin", "unit-issuer"], "shop": ["admin"], "user-b": ["user"]}
DATABASE = "postgresql://hansa:secret@localhost:5432/settlement"


def _genesis() -> Genesis:
    keys = CONSORTIUM.account_keys
    named = dict(zip(ROLES, keys.values(), strict=False))
    base = CONSORTIUM.genesis
    people = [Organisation(name, ["bank"], "") for name in ROLES]
    accounts = [Account(name, name, key.public.compressed.hex(), ROLES[name]) for name, key in named.items()]
    return msgspec.structs.replace(base, organisations=[*base.organisations, *people], accounts=accounts)


WORLD = replace(
    CONSORTIUM,
    genesis=_genesis(),
    account_keys=dict(zip(ROLES, CONSORTIUM.account_keys.values(), strict=False)),
)


class Impatient(Client):
    """A client whose transactions' outcomes are not heard of from the one numbered ``deaf_from`` on."""

    sent = 0
    deaf_from = 10**6

    async def call_many(self, signer: Signer, calls: Sequence[Call], **options: object) -> Outcome:
        outcome = await super().call_many(signer, calls, **options)  # type: ignore[arg-type]
        self.sent += 1
        if self.sent >= self.deaf_from:
            raise Unreachable("as the test wants", code="outcome_unknown")
        return outcome


@asynccontextmanager
async def chain(folder: Path) -> AsyncIterator[Impatient]:
    """Give a client of a new chain."""
    node = SoloNode(folder, WORLD)
    async with running(node), client_of(node, genesis=WORLD.genesis) as client:
        client.__class__ = Impatient
        yield client  # type: ignore[misc]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    replace_file(tmp_path / "passphrase", PASSPHRASE)
    replace_file(tmp_path / "genesis.json", WORLD.genesis.to_json())
    return Plan(
        services=tmp_path / "services",
        keystore=tmp_path / "identities",
        passphrase_file=tmp_path / "passphrase",
        genesis_file=tmp_path / "genesis.json",
        nodes=("http://127.0.0.1:1",),
        accounts_port=23,
        center_port=24,
    )


async def ask(client: Client, contract: str, method: str, arguments: dict[str, Value]) -> Any:
    return await client.query(contract, method, arguments)


def bank() -> Signer:
    return Signer.of(BANK, WORLD.account_keys[BANK])


def home(plan: Plan, name: str) -> Path:
    return plan.services / f"settle-{name}"


async def test_everything_is_made_once_and_programs_can_start_with_it(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        prepared = await set_up(client, bank(), plan)
        assert [home.name for home in prepared.homes] == [
            f"settle-{name}" for name in ("accounts", "center", "events", "payer")
        ]
        for name in (BANK, "shop"):
            balance: dict[str, Value] = {"unit": UNIT, "account": bytes(WORLD.account_keys[name].public.address)}
            assert (await ask(client, "tokens", "balance", balance))["available"] == UNITS
        agent = await ask(client, "membership", "account", {"account": bytes(prepared.agent.address)})
        assert (agent["name"], agent["organisation"], agent["roles"]) == (AGENT, BANK, [])
        again = await set_up(client, bank(), plan)
        assert (again.homes, again.people, again.done) == (prepared.homes, prepared.people, ())
        assert client.sent == 2
    accounts = accounts_settings(home(plan, "accounts"), read_service(home(plan, "accounts"), AccountsFile))
    center = center_settings(home(plan, "center"), read_service(home(plan, "center"), CenterFile))
    events = events_settings(home(plan, "events"), read_service(home(plan, "events"), EventsFile))
    payer = payer_settings(home(plan, "payer"), read_service(home(plan, "payer"), PayerFile))
    assert events.agent.address == prepared.agent.address
    assert (events.center_token, payer.center_token) == (center.token, center.token)
    assert (payer.accounts_token, payer.accounts_url) == (accounts.token, "http://127.0.0.1:23")
    assert payer.events == events.socket == prepared.events
    assert len({accounts.token, center.token}) == 2
    assert events.database == f"sqlite:///{home(plan, 'events') / 'data' / 'events.db'}"
    for file in plan.services.rglob("*"):
        assert file.is_dir() or file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("deaf_from", [1, 2])
async def test_an_interrupted_set_up_is_continued(tmp_path: Path, plan: Plan, deaf_from: int) -> None:
    async with chain(tmp_path / "chain") as client:
        client.deaf_from = deaf_from
        with pytest.raises(Unreachable):
            await set_up(client, bank(), plan)
        client.deaf_from = 10**6
        prepared = await set_up(client, bank(), plan)
        assert client.sent == 2
        supply = await ask(client, "tokens", "unit", {"unit": UNIT})
        assert supply["supply"] == 2 * UNITS
    key = prepared.agent.address
    async with chain(tmp_path / "wiped") as client:
        again = await set_up(client, bank(), plan)
        assert again.agent.address == key
        assert again.done == (f"account {AGENT}", f"unit {UNIT}, {UNITS} each for {BANK}, shop")


async def test_what_people_wrote_stays_and_what_is_asked_for_changes(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:

        async def changed(**fields: object) -> Prepared:
            return await set_up(client, bank(), replace(plan, **fields))  # type: ignore[arg-type]

        await changed()
        path = home(plan, "accounts") / "service.toml"
        path.write_text(f"# by hand\n{path.read_text()}")
        assert (await changed(allow_faults=False, database="embedded")).done == ()
        assert path.read_text().startswith("# by hand\n")
        files = ("settle-accounts/service.toml", "settle-events/service.toml")
        prepared = await changed(database=DATABASE, allow_faults=True)
        assert (prepared.done, prepared.database) == (files, "postgresql://localhost:5432/settlement")
        assert read_service(home(plan, "accounts"), AccountsFile).allow_faults
        settings = events_settings(home(plan, "events"), read_service(home(plan, "events"), EventsFile))
        assert settings.database == DATABASE.replace("postgresql:", "postgresql+psycopg:")
        with pytest.raises(LocalError, match="--leave-events") as refused:
            await changed(database="embedded")
        assert refused.value.code == "store_not_empty"
        assert "secret" not in str(refused.value)
        assert (await changed(database="embedded", may_leave_events=True)).done == files
        events = read_service(home(plan, "events"), EventsFile)
        (home(plan, "events") / events.data).mkdir()
        (home(plan, "events") / events.data / "events.db").touch()
        with pytest.raises(LocalError, match="embedded"):
            await changed(database=DATABASE)
        assert (await changed(changes=(("scan", False), ("ratio", 2)))).done == ("settle-events/service.toml",)
        with pytest.raises(LocalError, match="ratio"):
            await changed(changes=(("ratio", 101),))
        with pytest.raises(LocalError, match="database"):
            await changed(database="mysql://localhost/x", may_leave_events=True)


async def test_a_password_in_a_file_that_others_may_read_is_refused(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        await set_up(client, bank(), replace(plan, database=DATABASE))
    for name, kind, settings in (
        ("events", EventsFile, events_settings),
        ("accounts", AccountsFile, accounts_settings),
    ):
        (home(plan, name) / "service.toml").chmod(0o640)
        with pytest.raises(LocalError) as refused:
            settings(home(plan, name), read_service(home(plan, name), kind))  # type: ignore[operator]
        assert refused.value.code == "key_permissions"
        assert "secret" not in str(refused.value)


async def test_who_may_not_do_it_is_refused_before_anything_is_written(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        with pytest.raises(Refused, match="role admin") as refused:
            await set_up(client, Signer.of("user-b", WORLD.account_keys["user-b"]), plan)
        assert refused.value.code == "not_allowed"
        with pytest.raises(LocalError) as wrong:
            await set_up(client, bank(), replace(plan, center_port=65_536))
        assert wrong.value.code == "bad_port"
    assert not plan.services.exists()


async def test_everybody_gets_money_once(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        prepared = await set_up(client, bank(), plan)
    place = home(plan, "accounts")
    write_service(place, msgspec.structs.replace(read_service(place, AccountsFile), listen="127.0.0.1:0"))
    settings, stopping = accounts_settings(place, read_service(place, AccountsFile)), trio.Event()
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, settings, stopping)
        prepared = replace(prepared, accounts_url=f"http://127.0.0.1:{port}")
        async with open_accounts(prepared.accounts_url, token=settings.token) as accounts:
            # Whoever was interrupted between opening and money, goes on.
            await accounts.open([("shop", "CNY"), ("user-b", "CNY")])
            # One that got another amount at its opening keeps that.
            await accounts.deposit("user-b", 7, key="opening-user-b")
            assert await open_people(prepared) == [f"account {BANK} with simulated money"]
            assert await open_people(prepared) == []
            found = {account.id: account.available for account in await accounts.accounts()}
            assert found == dict.fromkeys(ROLES, OPENING_CENTS) | {"user-b": 7}
        stopping.set()
