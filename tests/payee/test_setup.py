"""Setting up payee codes, on a real chain: done once, minding what people changed, refusing before anything is made."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.payees import HEAD_AGE_MS_MAX
from services.accounts.config import AccountsFile, accounts_settings
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.local.files import changed, read_service, replace_file, write_service
from services.payee.enclave_config import EnclaveFile, enclave_settings
from services.payee.enclave_keys import KEYS_FILE, open_sealed
from services.payee.interfaces import NoParams, PlatformStatus, Rotate, Rotated
from services.payee.measurement import measure
from services.payee.platform_config import PlatformFile, platform_settings
from services.payee.sealing import ExchangeKey
from services.payee.setup import ENVIRONMENT_FILE, Host, Plan, begin, set_up, wake
from tests.client.support import SoloNode, client_of, running
from tests.contracts.domain.payees import MEASUREMENT
from tests.payee.platform_house import house
from tests.payee.platform_world import CONSORTIUM, QuietNode

PASSPHRASE = b"correct horse"


@asynccontextmanager
async def chain(folder: Path, kind: type[SoloNode] = SoloNode) -> AsyncIterator[Client]:
    """Give a client of a new chain."""
    node = kind(folder, CONSORTIUM)
    async with running(node), client_of(node, genesis=CONSORTIUM.genesis) as client:
        yield client


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    replace_file(tmp_path / "passphrase", PASSPHRASE)
    replace_file(tmp_path / "genesis.json", CONSORTIUM.genesis.to_json())
    for name in ("bank-a", "issuer-c"):
        (tmp_path / "nodes" / name).mkdir(parents=True)
    keystore = tmp_path / "identities"
    keystore.mkdir(mode=0o700)
    for name in ("permission", "bank-a", "issuer-c", "wallet-p", "wallet-q"):
        replace_file(keystore / f"{name}.pem", CONSORTIUM.account_keys[name].to_pem(PASSPHRASE))
    return Plan(
        services=tmp_path / "services",
        keystore=keystore,
        passphrase_file=tmp_path / "passphrase",
        genesis_file=tmp_path / "genesis.json",
        nodes=("http://127.0.0.1:1",),
        accounts_port=23,
        platform_ports={"wallet-p": 24, "wallet-q": 25},
        hosts=(
            Host("bank-a", tmp_path / "nodes" / "bank-a", 60_600),
            Host("issuer-c", tmp_path / "nodes" / "issuer-c"),
        ),
    )


def signer(name: str) -> Signer:
    return Signer.of(name, CONSORTIUM.account_keys[name])


async def allowed(client: Client) -> Any:
    return await client.query("payees", "allowed", {})


async def test_everything_is_made_once_and_programs_can_start_with_it(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        prepared = await set_up(client, plan)
        (item,) = await allowed(client)
        assert (item["measurement"], item["status"]) == (measure(), "ALLOWED")
        assert (await set_up(client, plan)).done == ()
    assert [home.name for home in prepared.homes] == [
        *("payee-accounts", "bank-a-enclave", "issuer-c-enclave", "wallet-p", "wallet-q")
    ]
    home = plan.services / "payee-accounts"
    accounts = accounts_settings(home, read_service(home, AccountsFile))
    assert (accounts.port, len(accounts.token) > 30) == (23, True)
    home = plan.services / "bank-a-enclave"
    environment = enclave_settings(home, read_service(home, EnclaveFile))
    assert (environment.name, environment.genesis) == ("bank-a", str(plan.genesis_file))
    assert Path(environment.socket) == prepared.environments["bank-a"].resolve()
    home = plan.services / "wallet-q"
    platform = platform_settings(home, read_service(home, PlatformFile))
    assert (platform.server, platform.port, platform.accounts_token) == ("wallet-q", 25, accounts.token)
    assert platform.signer.address == signer("wallet-q").address
    assert platform.token not in ("", accounts.token)


async def test_each_node_is_told_of_its_environment(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        prepared = await set_up(client, plan)
    for host in plan.hosts:
        path = host.node_home / ENVIRONMENT_FILE
        said = tomllib.loads(path.read_text())
        assert said["name"] == host.organisation
        assert (host.node_home / said["socket"]).resolve() == prepared.environments[host.organisation].resolve()
        assert said.get("user") == host.user
        assert path.stat().st_mode & 0o777 == 0o600


async def test_what_people_changed_stays(tmp_path: Path, plan: Plan) -> None:
    home, said = plan.services / "wallet-p", plan.hosts[0].node_home / ENVIRONMENT_FILE
    async with chain(tmp_path / "chain") as client:
        await set_up(client, plan)
        write_service(home, changed(home, read_service(home, PlatformFile), {"listen": "127.0.0.1:77"}))
        replace_file(said, b'name = "bank-a"\nsocket = "/elsewhere"\n')
        token = (home / "token").read_bytes()
        disallow = await client.call(signer("permission"), "payees", "disallow_measurement", {"measurement": measure()})
        disallow.check()
        prepared = await set_up(client, plan)
        assert [item["status"] for item in await allowed(client)] == ["DISALLOWED"]
    assert prepared.done == ()
    assert prepared.payers_urls["wallet-p"] == "http://127.0.0.1:77"
    assert (home / "token").read_bytes() == token
    assert b"/elsewhere" in said.read_bytes()


async def test_a_measurement_beside_many_others_is_found(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain") as client:
        for other in (bytes(32), b"\xff" * 32):
            arguments = {"measurement": other, "note": ""}
            (await client.call(signer("permission"), "payees", "allow_measurement", dict(arguments))).check()
        assert "allowed" in (await set_up(client, plan)).done[0]
        assert (await set_up(client, plan)).done == ()


async def test_keys_that_other_code_has_sealed_are_put_aside(tmp_path: Path, plan: Plan) -> None:
    """And those of the code that is installed stay, whatever the chain has of the environment."""
    async with chain(tmp_path / "chain") as client:
        await set_up(client, plan)
        for name, measurement in (("bank-a", bytes(32)), ("issuer-c", bytes(measure()))):
            home = plan.services / f"{name}-enclave"
            settings = enclave_settings(home, read_service(home, EnclaveFile))
            chain_id = client.chain_id
            with open_sealed(
                Path(settings.data), Path(settings.machine), name=name, chain_id=chain_id, measurement=measurement
            ):
                pass
        done = (await set_up(client, plan)).done
        assert [line for line in done if "put aside" in line] == [
            "bank-a-enclave: keys that other code has sealed put aside"
        ]
        assert (await set_up(client, plan)).done == ()
    assert not (plan.services / "bank-a-enclave" / "data" / KEYS_FILE).exists()
    assert (plan.services / "issuer-c-enclave" / "data" / KEYS_FILE).exists()


async def test_a_chain_that_stood_still_makes_a_block(tmp_path: Path, plan: Plan) -> None:
    async with chain(tmp_path / "chain", kind=QuietNode) as client:
        key: dict[str, Value] = {"key": PrivateKey.from_secret(4_711).public.compressed}
        (await client.call(signer("wallet-p"), "payees", "register_platform", key)).check()
        before = await client.state("payees/platform/wallet-p")
        head_ms = before.verified.header.time_ms
        await wake(client, plan, "wallet-p", now_ms=head_ms + HEAD_AGE_MS_MAX // 2 - 1)
        assert (await client.state("payees/platform/wallet-p")).verified.height == before.verified.height
        await wake(client, plan, "wallet-q", now_ms=head_ms + HEAD_AGE_MS_MAX)
        assert (await client.state("payees/platform/wallet-p")).verified.height == before.verified.height
        await wake(client, plan, "wallet-p", now_ms=head_ms + HEAD_AGE_MS_MAX // 2)
        after = await client.state("payees/platform/wallet-p")
        assert after.verified.height > before.verified.height
        assert after.value == before.value


async def test_an_environment_that_a_platform_left_out_stays_out(tmp_path: Path) -> None:
    """Run again, set-up gives keys anew to who has new ones, and to nobody else."""
    async with house(tmp_path) as found:
        done: list[str] = []
        asked = (found.world.client, "wallet-p", found.settings.socket, ["bank-a", "issuer-c"], done)
        await found.link.call("rotate", Rotate(["bank-a"]), Rotated)
        await begin(*asked)
        assert done == []
        await found.world.call("bank-a", "withdraw_environment", name="bank-a")
        await found.world.call(
            "bank-a",
            "register_environment",
            name="bank-a",
            exchange_key=ExchangeKey.generate().public,
            signing_key=PrivateKey.generate().public.compressed,
            measurement=MEASUREMENT,
        )
        await begin(*asked)
        assert len(done) == 1
        status = await found.link.call("status", NoParams(), PlatformStatus)
        assert status.environments == ["bank-a"]


async def test_a_chain_that_began_without_the_contract_is_said(tmp_path: Path, plan: Plan) -> None:
    contracts = [one for one in CONSORTIUM.genesis.contracts if one.name != "payees"]
    early = replace(CONSORTIUM, genesis=msgspec.structs.replace(CONSORTIUM.genesis, contracts=contracts))
    node = SoloNode(tmp_path / "chain", early)
    async with running(node), client_of(node, genesis=early.genesis) as client:
        with pytest.raises(Refused, match="this chain began without the contract payees") as caught:
            await set_up(client, plan)
    assert caught.value.code == "unknown_contract"
    assert not plan.services.exists()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"accounts_port": 65_536}, "bad_port"),
        ({"platform_ports": {"wallet-p": 0}}, "bad_port"),
        ({"hosts": ()}, "no_environment"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, plan: Plan, changes: dict[str, Any], code: str
) -> None:
    async with chain(tmp_path / "chain") as client:
        with pytest.raises(LocalError) as caught:
            await set_up(client, replace(plan, **changes))
        assert caught.value.code == code
        assert await allowed(client) == []
    assert not plan.services.exists()
