"""Setting up payment streams, on a real chain: done once, minding what people changed, refusing before it makes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Account, Organisation
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.local.files import read_service, replace_file, write_service
from services.stream.config import WatcherFile
from services.stream.service_config import StreamServiceFile, service_settings
from services.stream.setup import ISSUER, SERVICE, UNIT, UNITS, WATCHER, Plan, set_up
from tests.client.support import CONSORTIUM as USUAL
from tests.client.support import SoloNode, client_of, running

PASSPHRASE = b"correct horse"
ROLES = {ISSUER: ["admin", "unit-issuer"], SERVICE: ["merchant"], WATCHER: ["business-server"], "user-b": ["user"]}
NAMED = dict(zip(ROLES, USUAL.account_keys.values(), strict=False))
CONSORTIUM = replace(
    USUAL,
    genesis=msgspec.structs.replace(
        USUAL.genesis,
        organisations=[*USUAL.genesis.organisations, *(Organisation(name, ["bank"], "") for name in ROLES)],
        accounts=[Account(name, name, NAMED[name].public.compressed.hex(), ROLES[name]) for name in ROLES],
    ),
    account_keys=NAMED,
)
BANK = Signer.of(ISSUER, CONSORTIUM.account_keys[ISSUER])


@asynccontextmanager
async def chain(folder: Path) -> AsyncIterator[Client]:
    """Give a client of a new chain."""
    node = SoloNode(folder, CONSORTIUM)
    async with running(node), client_of(node, genesis=CONSORTIUM.genesis) as client:
        yield client


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    replace_file(tmp_path / "passphrase", PASSPHRASE)
    replace_file(tmp_path / "genesis.json", CONSORTIUM.genesis.to_json())
    keystore = tmp_path / "identities"
    keystore.mkdir(mode=0o700)
    for name in (SERVICE, WATCHER):
        replace_file(keystore / f"{name}.pem", CONSORTIUM.account_keys[name].to_pem(PASSPHRASE))
    return Plan(
        services=tmp_path / "services",
        keystore=keystore,
        passphrase_file=tmp_path / "passphrase",
        genesis_file=tmp_path / "genesis.json",
        nodes=("http://127.0.0.1:1",),
        service_port=23,
        watcher_port=24,
    )


async def balance(client: Client, name: str) -> object:
    account = bytes(CONSORTIUM.account_keys[name].public.address)
    return await client.query("tokens", "balance", {"unit": UNIT, "account": account})


async def test_everything_is_made_once_and_programs_can_start_with_it(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        prepared = await set_up(client, BANK, plan)
        assert [home.name for home in prepared.homes] == ["stream-service", "stream-watcher"]
        assert len(prepared.done) == 3
        assert await balance(client, "user-b") == {"available": UNITS, "reserved": 0}
        assert await balance(client, SERVICE) == {"available": 0, "reserved": 0}
        assert (await set_up(client, BANK, plan)).done == ()
        assert await balance(client, "user-b") == {"available": UNITS, "reserved": 0}
    settings = service_settings(prepared.homes[0], read_service(prepared.homes[0], StreamServiceFile))
    assert (settings.port, settings.signer.name, settings.file.unit) == (23, SERVICE, UNIT)
    assert settings.genesis.chain_id() == CONSORTIUM.genesis.chain_id()
    assert read_service(prepared.homes[1], WatcherFile).account == WATCHER
    assert (prepared.service_url, prepared.watcher_url) == ("http://127.0.0.1:23", "http://127.0.0.1:24")


async def test_what_an_operator_wrote_stays_and_what_is_asked_for_changes(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        home = (await set_up(client, BANK, plan)).homes[0]
        write_service(home, msgspec.structs.replace(read_service(home, StreamServiceFile), price=11, what="0.2 kWh"))
        prepared = await set_up(client, BANK, replace(plan, changes=(("step_max", 55),)))
        assert prepared.done == ("stream-service/service.toml",)
        file = read_service(home, StreamServiceFile)
        assert (file.price, file.what, file.step_max) == (11, "0.2 kWh", 55)
        with pytest.raises(LocalError) as caught:
            await set_up(client, BANK, replace(plan, changes=(("prise", 1),)))
        assert caught.value.code == "bad_config"


async def test_nothing_is_made_where_it_cannot_stand(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        with pytest.raises(LocalError) as caught:
            await set_up(client, BANK, replace(plan, watcher_port=65_536))
        assert caught.value.code == "bad_port"
        nobody = Signer.of("user-b", CONSORTIUM.account_keys["user-b"])
        with pytest.raises(Refused) as refused:
            await set_up(client, nobody, plan)
        assert refused.value.code == "not_allowed"
    assert not plan.services.exists()
