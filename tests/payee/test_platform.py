"""The platform program whole: its socket, HTTP, start and end; and that nobody else ever sees what a record says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from consensus.ledger.errors import HansaError, LocalError
from consensus.ledger.keys import PublicKey, Purpose
from consensus.ledger.payees import DELEGATION_MS_MAX, delegation_hash
from services.client.errors import Refused
from services.payee.identity import identity_text
from services.payee.interfaces import (
    Draft,
    DraftRecord,
    NoParams,
    Pay,
    PlatformStatus,
    PutRecord,
    RecordPut,
    RecordsQuery,
    RemoveRecord,
    Rotate,
)
from services.payee.link import open_platform as open_link
from services.payee.platform import open_platform
from tests.client.support import client_of
from tests.contracts.domain.payees import identity, key
from tests.payee.platform_house import TOKEN, House, add, house, running_platform, settings_of, until_registered
from tests.payee.platform_world import (
    ACQUIRING,
    CONSORTIUM,
    MARKER,
    platform_world,
    signed,
)


async def test_a_platform_from_start_to_end(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        assert (await add(found)).version == 1
        async with open_link(found.url, token=TOKEN) as payers:
            code = found.world.order_code()
            payment = await payers.pay(Pay(code, "user-b", "merchant-m"))
            assert (payment.state, payment.is_first, payment.server) == ("PAID", True, "wallet-p")
            assert (await payers.pay(Pay(code, "user-b", "merchant-m"))).is_first is False
            with pytest.raises(Refused) as caught:
                await payers.pay(Pay(code, "user-b", "shop"))
            assert caught.value.code == "wrong_payee"
            poor = await payers.pay(Pay(found.world.order_code("R-2", 10**9), "user-b", "merchant-m"))
            assert (poor.state, poor.code) == ("REFUSED", "insufficient_funds")
        status = await found.link.call("status", NoParams(), PlatformStatus)
        assert (status.trouble, status.payments, status.unfinished, status.records) == ("", 2, 0, 1)
        assert (found.settings.run / "ready").is_file()
    assert not found.settings.socket.exists()


async def test_a_delegation_is_the_platforms_and_short(tmp_path: Path) -> None:
    async with house(tmp_path) as found:
        client = key(900).public.compressed
        async with open_link(found.url, token=TOKEN) as payers:
            given = await payers.delegate(client)
            with pytest.raises(Refused) as caught:
                await payers.delegate(bytes(33))
            assert caught.value.code == "bad_key"
        status = await found.link.call("status", NoParams(), PlatformStatus)
        payload = delegation_hash("wallet-p", client, given.until_ms)
        own = PublicKey.load_untrusted(status.key)
        assert own.verifies(given.signature, Purpose.PAYEE_PLATFORM, found.world.client.chain_id, payload)
        assert found.world.clock.ms < given.until_ms <= found.world.clock.ms + DELEGATION_MS_MAX // 24


async def test_http_says_who_may_call_and_that_money_is_simulated(tmp_path: Path) -> None:
    async with house(tmp_path) as found, httpx.AsyncClient(base_url=found.url, trust_env=False) as web:
        token = {"authorization": f"Bearer {TOKEN}"}
        for path in ("/payments", "/delegations"):
            assert (await web.post(path, json={})).json()["error"]["code"] == "bad_token"
            assert (await web.post(path, json={}, headers=token)).json()["error"]["code"] == "bad_field"
            assert (await web.post(path, content=b"{", headers={**token, "content-type": "application/json"})).json()[
                "error"
            ]["code"] == "malformed"
        assert (await web.get("/metrics")).status_code == 401
        assert b"hansa_platform_payments" in (await web.get("/metrics", headers=token)).content
        health = await web.get("/healthz")
        assert health.json() == {"server": "wallet-p", "ready": True, "simulated": True}
        assert health.headers["hansa-money"] == "simulated"
        assert (await web.get("/healthz", headers={"host": "evil.example"})).status_code == 403
        document = (await web.get("/openapi.json")).json()
        assert set(document["paths"]) == {"/payments", "/delegations", "/parts", "/healthz"}
        large = {"payload": "0" * 10_001, "payer": "user-b", "payee": "merchant-m"}
        answer = await web.post("/payments", json=large, headers=token)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_field")
        assert len(answer.content) < 300


async def test_it_starts_before_nodes_and_account_system_do(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world:
        settings = settings_of(world, "http://127.0.0.1:1")
        away = replace(settings, nodes=("http://127.0.0.1:1",))
        with capture_logs() as logs:
            async with running_platform(world, away) as found:
                with pytest.raises(HansaError):
                    await found.link.call("status", NoParams(), PlatformStatus)
                async with open_link(found.url, token=TOKEN) as payers:
                    with pytest.raises(HansaError) as caught:
                        await payers.pay(Pay(world.order_code(), "user-b", "merchant-m"))
                    assert caught.value.code == "platform_unreachable"
        assert {"not registered"} <= {line["event"] for line in logs}
        async with running_platform(world, settings) as found:
            await until_registered(found)


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world:
        settings = settings_of(world, "http://127.0.0.1:1")
        async with running_platform(world, settings):
            with pytest.raises(LocalError) as caught:
                async with open_platform(settings):
                    pass
            assert caught.value.code == "store_locked"


# -- never in the clear ----------------------------------------------------------------------------------


async def test_what_a_record_says_is_nowhere_but_with_its_owner(tmp_path: Path) -> None:
    """A marker in a record is in no log, error, file or answer to anybody but the owner and who pays."""
    said: list[str] = []
    with capture_logs() as logs:
        async with house(tmp_path) as found:
            await _live(found, said)
            assert MARKER in json.dumps(msgspec.to_builtins(await found.link.call("records", RecordsQuery(), object)))
        said += [repr(line) for line in logs]
    assert len(said) > 8
    for text in said:
        assert MARKER not in text
    check_files(tmp_path)


def check_files(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "vault.db" for path in files)
    for path in files:
        assert MARKER.encode() not in path.read_bytes(), path


async def _live(found: House, said: list[str]) -> None:
    """Do what can be done, right and wrong, and keep every error and every answer to payers."""
    link, world = found.link, found.world
    who = identity_text(identity(0))

    async def ask(method: str, params: object) -> Any:
        try:
            return await link.call(method, params, object)
        except HansaError as error:
            said.append(f"{error.code} {error.message} {error!r}")

    acquiring = msgspec.to_builtins(ACQUIRING)
    for wrong in ({"currency": MARKER}, {"account": f"{MARKER} "}, {"more": MARKER}, {"note": MARKER * 20}):
        await ask("draft_record", {"identity": who, "acquiring": {**acquiring, **wrong}})
    await ask("draft_record", DraftRecord(identity_text(identity(5)), ACQUIRING))
    draft = await link.call("draft_record", DraftRecord(who, ACQUIRING), Draft)
    said.append(repr(PutRecord(draft.identity, draft.commitment, bytes(64))))
    await ask("put_record", PutRecord(draft.identity, draft.commitment, bytes(64)))
    await link.call("put_record", signed(world, draft), RecordPut)
    async with open_link(found.url, token=TOKEN) as payers:
        for asked in (
            Pay(world.order_code(), "user-b", "merchant-m"),
            Pay(world.order_code(), "user-b", "shop"),
            Pay(world.code(), "user-b", "merchant-m", 5, "o-1"),
            Pay(world.code(number=3), "user-b", "merchant-m", 5, "o-1"),
        ):
            try:
                said.append(repr(await payers.pay(asked)))
            except HansaError as error:
                said.append(f"{error.code} {error.message}")
    await ask("rotate", Rotate(["nobody"]))
    await ask("rotate", Rotate(["bank-a"]))
    await ask("status", NoParams())
    await ask("remove_record", RemoveRecord(who))
    await ask("remove_record", RemoveRecord(who))
    await add(found)
    async with client_of(world.node, genesis=CONSORTIUM.genesis) as client:
        said.append(repr(await client.query("payees", "records_of", {"server": "wallet-p"})))
