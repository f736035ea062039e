"""A node and its trusted environment: real sockets, the real environment's decisions, and puppets that misbehave."""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
from msgspec.structs import replace as changed
from trio.testing import MockClock, wait_all_tasks_blocked

from consensus.ledger.codec import encode
from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import Purpose
from consensus.ledger.payees import (
    HEAD_AGE_MS_MAX,
    QUERY_AGE_MS_MAX,
    AskQuote,
    AskResolve,
    Mode,
    Told,
    allowed_key,
    ask_codec,
    environment_key,
    merchant_key,
    platform_key,
    query_codec,
    quote_codec,
    quote_hash,
    record_key,
    told_codec,
    wrap_key,
)
from node import environment as environment_module
from node.environment import ANSWER_MS_MAX, ASKS_MAX, TOLD_BYTES_MAX, TOLD_CODES
from node.payees import ISOLATION
from services.payee.wording import EMULATED
from tests.contracts.domain.payees import MEASUREMENT, identity
from tests.node.payee_site import SETTINGS, Puppet, Serve, Site, Stream, frame, honest, make_site, receive
from tests.node.rpc.support import serving


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with trio.fail_after(60):
        async with make_site(tmp_path) as made:
            yield made


async def code_of(site: Site, **fields: object) -> str:
    """The code that a query ends with, "" when it is answered."""
    try:
        await site.resolve(site.query(**fields))  # type: ignore[arg-type]
    except PeerError as error:
        return error.code
    return ""


# -- what is answered ----------------------------------------------------------------------------------------


async def test_a_query_is_answered_with_the_states_behind_the_answer(site: Site) -> None:
    found = await site.resolve()
    proven = site.proven(found)
    who = identity(0)
    for key in (merchant_key(who), platform_key("wallet-p"), record_key("wallet-p", who), environment_key("bank-a")):
        assert isinstance(proven.value(key), dict), key
    assert proven.value(allowed_key(MEASUREMENT)) == {"status": "ALLOWED", "note": "first"}
    assert proven.value(wrap_key("wallet-p", 1, "bank-a")) is not None
    assert proven.height == site.node.chain.head.header.height
    code, (own,) = site.opened(found)
    assert (code, own[0], found.environment) == ("", "wallet-p", "bank-a")
    assert own[1] is not None
    assert b"Tea at wallet-p" in own[1]
    assert own[1] not in found.answer + found.states


async def test_all_candidates_are_proven(site: Site) -> None:
    found = await site.resolve(site.query(mode=Mode.CANDIDATES))
    proven = site.proven(found)
    for server in ("wallet-p", "wallet-q"):
        assert isinstance(proven.value(record_key(server, identity(0))), dict)
        assert proven.value(wrap_key(server, 1, "bank-a")) is not None
    assert [server for server, _ in site.opened(found)[1]] == ["wallet-p", "wallet-q"]


async def test_absence_is_proven_too(site: Site) -> None:
    found = await site.resolve(site.query(merchant=1))
    assert site.proven(found).value(merchant_key(identity(1))) is None
    assert site.opened(found) == ("unknown_identity", [])
    found = await site.resolve(site.query(merchant=1, mode=Mode.CANDIDATES))
    assert site.opened(found)[0] == "unknown_identity"
    site.world.call("merchant-m", "register_merchant", **site.world.registration(2))
    site.take()
    found = await site.resolve(site.query(merchant=2))
    assert site.proven(found).value(record_key("wallet-p", identity(2))) is None
    assert site.opened(found)[0] == "no_platform"


async def test_what_was_removed_stays_proven(site: Site) -> None:
    site.world.call("merchant-m", "remove_record", **site.world.removal(2, by="merchant"))
    site.take()
    found = await site.resolve()
    record = site.proven(found).value(record_key("wallet-p", identity(0)))
    assert isinstance(record, dict)
    assert record["status"] == "REMOVED"
    assert site.opened(found)[0] == "no_platform"


async def test_what_no_seal_covers_yet_is_answered_as_it_was_sealed(site: Site) -> None:
    site.world.add("wallet-p", version=2, account="other")
    site.take(is_sealed=False)
    assert site.node.chain.head.header.sealed_height < site.node.chain.head.header.height
    record = site.proven(await site.resolve()).value(record_key("wallet-p", identity(0)))
    assert isinstance(record, dict)
    assert record["version"] == 1
    site.take()
    record = site.proven(await site.resolve()).value(record_key("wallet-p", identity(0)))
    assert isinstance(record, dict)
    assert record["version"] == 2


async def test_candidates_are_those_of_the_seal(site: Site) -> None:
    everybody = site.query(mode=Mode.CANDIDATES)
    site.world.call("merchant-m", "remove_record", **site.world.removal(2, by="merchant", server="wallet-q"))
    site.take(is_sealed=False)
    assert [server for server, _ in site.opened(await site.resolve(everybody))[1]] == ["wallet-p", "wallet-q"]
    site.take()
    assert [server for server, _ in site.opened(await site.resolve(everybody))[1]] == ["wallet-p"]


async def test_the_environments_refusals_are_handed_on(site: Site) -> None:
    assert await code_of(site, signer=site.world.platforms["wallet-q"]) == "bad_query"
    assert await code_of(site, server="wallet-r", signer=site.world.platforms["wallet-q"]) == "unknown_platform"
    query = site.query()
    site.node.clock.ms += QUERY_AGE_MS_MAX + 1
    with pytest.raises(PeerError) as refused:
        await site.resolve(query)
    assert refused.value.code == "query_expired"
    site.node.clock.ms = site.node.chain.head.header.time_ms + HEAD_AGE_MS_MAX
    assert await code_of(site) == ""
    site.node.clock.ms += 1
    assert await code_of(site) == "stale_states"


async def test_what_is_no_query_of_this_chain_does_not_reach_the_environment(site: Site) -> None:
    assert await code_of(site, chain_id=bytes(32)) == "wrong_chain"
    whole = query_codec.encode(site.query())
    for data in (b"", b"\xc0", whole[:-1], whole + b"\0", bytes(2_000)):
        with pytest.raises(PeerError) as refused:
            await site.desk.resolve(data)
        assert refused.value.code in {"malformed", "too_large"}
    assert site.puppet.asks == []


async def test_nothing_is_proven_while_a_block_is_being_written(site: Site) -> None:
    site.node.chain.is_committing = True
    found: list[str] = []

    async def ask() -> None:
        found.append(await code_of(site))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert (found, site.puppet.asks) == ([], [])
        site.node.commit([])
    assert found == [""]


# -- who may answer ------------------------------------------------------------------------------------------


async def test_a_node_without_environment(site: Site) -> None:
    site.kill()
    (site.home / "environment.toml").unlink()
    assert await code_of(site) == "environment_missing"
    for text in ("", "name = 1", SETTINGS + "more = 1\n", "[", "\xff" * 3, 'name = "Bank A"\nsocket = "s"'):
        site.configure(text)
        assert await code_of(site) == "environment_missing"
    report = await site.desk.report()
    assert (report.code, report.quote, report.user) == ("environment_missing", None, None)


async def test_an_environment_that_is_not_there(site: Site) -> None:
    site.kill()
    await wait_all_tasks_blocked()
    assert await code_of(site) == "environment_down"
    site.configure('name = "bank-a"\nsocket = "nowhere/environment.sock"\n')
    assert await code_of(site) == "environment_down"
    assert (await site.desk.report()).code == "environment_down"
    assert site.desk.figures()["payee_environment_up"] == 0


async def test_it_comes_back_without_a_restart_of_the_node(site: Site) -> None:
    assert await code_of(site) == ""
    for _ in range(2):
        site.kill()
        await wait_all_tasks_blocked()
        assert site.desk.figures()["payee_environment_up"] == 0
        assert await code_of(site) == "environment_down"
        await site.start()
        assert await code_of(site) == ""
        assert site.desk.figures()["payee_environment_up"] == 1
    assert site.puppet.connections == 3


async def test_an_environment_of_another_user(site: Site) -> None:
    site.configure(SETTINGS + f"user = {os.getuid() + 1}\n")
    assert await code_of(site) == "environment_refused"
    assert site.puppet.asks == []
    site.configure(SETTINGS + f"user = {os.getuid()}\n")
    assert await code_of(site) == ""
    assert (await site.desk.report()).user == os.getuid()


async def test_an_environment_of_another_name(site: Site) -> None:
    site.configure(SETTINGS.replace("bank-a", "issuer-c"))
    assert await code_of(site) == "environment_refused"


def quoting(site: Site, purpose: Purpose = Purpose.PAYEE_QUOTE, chain_id: bytes = b"", **fields: Any) -> Serve:
    """An environment whose quote says something else, signed for this purpose and chain."""
    signing = site.puppet.environment._keys.signing
    chain = ChainId(chain_id) if chain_id else site.node.chain.chain_id

    async def serve(puppet: Puppet, stream: Stream) -> None:
        ask = ask_codec.decode_untrusted(await receive(stream))
        assert isinstance(ask, AskQuote)
        said = changed(puppet.environment.quote(ask.nonce), **fields)
        covered = quote_hash(said.environment, said.measurement, said.exchange_key, said.signing_key, said.nonce)
        quote = quote_codec.encode(changed(said, signature=signing.sign(purpose, chain, covered)))
        await stream.send_all(frame(told_codec.encode(Told("", "", quote))))
        await honest(puppet, stream)

    return serve


@pytest.mark.parametrize(
    "fields",
    [
        {"nonce": bytes(16)},
        {"purpose": Purpose.PAYEE_ANSWER},
        {"chain_id": bytes(32)},
        {"environment": "issuer-c"},
        {"measurement": bytes(32)},
        {"exchange_key": "signing"},
        {"signing_key": "exchange"},
    ],
    ids=lambda fields: "-".join(fields),
)
async def test_a_quote_must_be_fresh_signed_and_what_the_chain_says(site: Site, fields: dict[str, Any]) -> None:
    true = site.puppet.environment.quote(bytes(16))
    swapped = {"signing": true.signing_key, "exchange": true.exchange_key}
    site.puppet.serve = quoting(site, **{name: swapped.get(value, value) for name, value in fields.items()})
    assert await code_of(site) == "environment_refused"
    assert site.puppet.asks == []
    site.puppet.serve = quoting(site)
    assert await code_of(site) == "", "a quote is asked for at each connect"


async def test_only_what_the_chain_allows_answers(site: Site) -> None:
    world = site.world
    assert await code_of(site) == ""
    world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    site.take(is_sealed=False)
    for _ in range(2):
        assert await code_of(site) == "environment_refused"
    report = await site.desk.report()
    assert report.code == "environment_refused"
    assert report.quote is not None
    world.call("permission", "allow_measurement", measurement=MEASUREMENT, note="first")
    site.take()
    assert await code_of(site) == ""
    world.call("bank-a", "withdraw_environment", name="bank-a")
    site.take(is_sealed=False)
    assert await code_of(site) == "environment_refused"
    assert len(site.puppet.asks) == 2
    assert "withdrawn" in (await site.desk.report()).message


async def test_an_environment_answers_once_its_registration_is_proven(site: Site) -> None:
    """A client sees what is sealed: an answer before would look like a lie of the node."""
    site.world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
    site.take()
    site.world.call("permission", "allow_measurement", measurement=MEASUREMENT, note="again")
    site.take(is_sealed=False)
    assert await code_of(site) == "environment_refused"
    assert (await site.desk.report()).code == "environment_refused"
    site.take()
    assert await code_of(site) == ""


async def test_an_answer_counts_by_what_is_allowed_when_it_comes(site: Site) -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def slow(puppet: Puppet, stream: Stream) -> None:
        while True:
            ask = await receive(stream)
            if isinstance(ask_codec.decode_untrusted(ask), AskResolve):
                asked.set()
                await go_on.wait()
            await stream.send_all(frame(puppet.tell(ask)))

    site.puppet.serve = slow
    codes: list[str] = []

    async def ask() -> None:
        codes.append(await code_of(site))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await asked.wait()
        site.world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
        site.take(is_sealed=False)
        go_on.set()
    assert codes == ["environment_refused"]


@pytest.mark.parametrize("key", [environment_key("bank-a"), allowed_key(MEASUREMENT)])
async def test_what_the_chain_has_of_it_must_make_sense(site: Site, key: str) -> None:
    site.node.chain.state.extend({key.encode(): encode({"status": "MAYBE"})})
    assert await code_of(site) == "environment_refused"
    site.node.chain.state.extend({key.encode(): None})
    assert await code_of(site) == "environment_refused"


# -- a hostile environment -----------------------------------------------------------------------------------


def misbehaving(*messages: bytes | None, closes: bool = False) -> Serve:
    """Show a quote, answer the next ask with these bytes, None being the truth, and then nothing."""

    async def serve(puppet: Puppet, stream: Stream) -> None:
        await stream.send_all(frame(puppet.tell(await receive(stream))))
        true = frame(puppet.tell(await receive(stream)))
        for message in messages:
            await stream.send_all(true if message is None else message)
        if not closes:
            while await stream.receive_some():
                pass

    return serve


def told(body: bytes = b"", code: str = "") -> bytes:
    return frame(told_codec.encode(Told(code, "", body)))


HOSTILE = {
    "garbage": misbehaving(frame(b"\xc1" * 40)),
    "no frame": misbehaving(b"\xff" * 64),
    "huge": misbehaving((TOLD_BYTES_MAX + 1).to_bytes(4, "big"), bytes(70_000)),
    "half": misbehaving(frame(bytes(1_000))[:500], closes=True),
    "half and silent": misbehaving(frame(bytes(1_000))[:500]),
    "closes": misbehaving(closes=True),
    "silent": misbehaving(),
    "empty answer": misbehaving(told()),
    "no answer": misbehaving(told(bytes(300))),
    "unknown code": misbehaving(told(code="node_failed")),
    "unasked": misbehaving(None, told()),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_environment_costs_its_own_answer(site: Site, autojump_clock: MockClock, name: str) -> None:
    site.puppet.serve = HOSTILE[name]
    started_s = trio.current_time()
    code = await code_of(site)
    assert code == ("" if name == "unasked" else "environment_down")
    limit_s = ANSWER_MS_MAX / 1_000 if "silent" in name else 0
    assert trio.current_time() - started_s == pytest.approx(limit_s, abs=0.001)
    site.puppet.serve = honest
    await wait_all_tasks_blocked()
    with trio.fail_after(20):
        while await code_of(site):
            pass


@pytest.mark.parametrize("name", ["silent", "garbage", "closes"])
async def test_an_environment_that_shows_no_quote(site: Site, autojump_clock: MockClock, name: str) -> None:
    async def serve(_: Puppet, stream: Stream) -> None:
        await receive(stream)
        if name == "garbage":
            await stream.send_all(frame(b"garbage"))
        if name != "closes":
            await trio.sleep_forever()

    site.puppet.serve = serve
    assert await code_of(site) == "environment_down"
    site.puppet.serve = honest
    assert await code_of(site) == ""


async def test_a_busy_environment_says_so_instead_of_a_quote(site: Site) -> None:
    async def serve(_: Puppet, stream: Stream) -> None:
        await stream.send_all(told(code="busy"))

    site.puppet.serve = serve
    with pytest.raises(PeerError, match="says busy") as refused:
        await site.resolve()
    assert refused.value.code == "environment_down"


async def test_answers_in_another_order_are_nobodys(site: Site) -> None:
    async def swapping(puppet: Puppet, stream: Stream) -> None:
        await stream.send_all(frame(puppet.tell(await receive(stream))))
        first, second = [frame(puppet.tell(await receive(stream))) for _ in range(2)]
        await stream.send_all(second + first)
        await receive(stream)

    await site.link.session()
    site.puppet.serve = swapping
    site.kill()
    await wait_all_tasks_blocked()
    await site.start()
    codes: list[str] = []

    async def ask(nonce: int) -> None:
        codes.append(await code_of(site, nonce=nonce))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1)
        nursery.start_soon(ask, 2)
    assert codes == ["environment_down"] * 2


async def test_killed_with_asks_under_way(site: Site) -> None:
    site.puppet.serve = misbehaving()
    codes: list[str] = []

    async def ask(nonce: int) -> None:
        codes.append(await code_of(site, nonce=nonce))

    async with trio.open_nursery() as nursery:
        for nonce in range(5):
            nursery.start_soon(ask, nonce)
        await wait_all_tasks_blocked()
        assert site.desk.figures() == {"payee_environment_up": 1, "payee_asks_waiting": 5}
        site.kill()
    assert codes == ["environment_down"] * 5
    assert site.desk.figures() == {"payee_environment_up": 0, "payee_asks_waiting": 0}


# -- many at once --------------------------------------------------------------------------------------------


async def test_asks_go_out_in_order_over_one_connection(site: Site) -> None:
    nonces: list[int] = []

    async def ask(nonce: int) -> None:
        assert await code_of(site, nonce=nonce) == ""
        nonces.append(nonce)

    async with trio.open_nursery() as nursery:
        for nonce in range(20):
            nursery.start_soon(ask, nonce)
    assert sorted(nonces) == list(range(20))
    assert site.puppet.connections == 1
    assert len(site.puppet.asks) == 20


async def deaf(_: Puppet, stream: Stream) -> None:
    """Take everything and say nothing."""
    while await stream.receive_some():
        pass


@pytest.mark.parametrize("serve", [misbehaving(), deaf], ids=["for an answer", "for a connection"])
async def test_only_so_many_wait(site: Site, serve: Serve) -> None:
    site.puppet.serve = serve
    if serve is not deaf:
        await site.link.session()
    codes: list[str] = []

    async def ask(nonce: int) -> None:
        codes.append(await code_of(site, nonce=nonce))

    async with trio.open_nursery() as nursery:
        for nonce in range(ASKS_MAX + 3):
            nursery.start_soon(ask, nonce)
        await wait_all_tasks_blocked()
        assert codes == ["busy"] * 3
        nursery.cancel_scope.cancel()


async def test_the_size_of_what_waits_is_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "ASKS_BYTES_MAX", 5_000)
    assert await code_of(site) == "busy"


async def test_who_gives_up_disturbs_nobody(site: Site) -> None:
    go_on = trio.Event()

    async def slow(puppet: Puppet, stream: Stream) -> None:
        while True:
            ask = await receive(stream)
            if isinstance(ask_codec.decode_untrusted(ask), AskResolve):
                await go_on.wait()
            await stream.send_all(frame(puppet.tell(ask)))

    site.puppet.serve = slow
    codes: list[str] = []

    async def ask(nonce: int) -> None:
        codes.append(await code_of(site, nonce=nonce))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as leaving:
            leaving.start_soon(ask, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, 2)
            await wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        go_on.set()
    assert codes == [""]
    assert site.desk.figures() == {"payee_environment_up": 1, "payee_asks_waiting": 0}


# -- over RPC ------------------------------------------------------------------------------------------------


async def test_the_methods(site: Site) -> None:
    query = b64encode(query_codec.encode(site.query())).decode()
    async with serving(site.node) as server:
        found = await server.result("payee_resolve", query=query)
        assert sorted(found) == ["answer", "emulated", "environment", "states"]
        assert (found["environment"], found["emulated"]) == ("bank-a", True)
        assert b64decode(found["answer"], validate=True)
        assert b64decode(found["states"], validate=True)
        shown = await server.result("payee_environment")
        assert (shown["status"], shown["name"], shown["user"]) == ("ready", "bank-a", os.getuid())
        assert (shown["isolation"], shown["measurement"]) == (ISOLATION, "0x" + MEASUREMENT.hex())
        assert shown["exchangeKey"] == "0x" + site.puppet.environment.quote(bytes(16)).exchange_key.hex()
        calls = [{"jsonrpc": "2.0", "id": n, "method": "payee_resolve", "params": [query]} for n in range(30)]
        answers = (await server.post(json.dumps(calls))).json()
        assert [answer["id"] for answer in answers] == list(range(30))
        assert all(answer["result"]["environment"] == "bank-a" for answer in answers)
        metrics = (await server.get("/metrics")).text
        assert "hansa_payee_environment_up 1.0" in metrics
        assert 'hansa_rpc_requests_total{method="payee_resolve",outcome="ok"} 31.0' in metrics
        site.kill()
        assert await server.code("payee_resolve", query=query) == "environment_down"
        shown = await server.result("payee_environment")
        assert (shown["status"], shown["name"], shown["isolation"]) == ("environment_down", None, ISOLATION)
        for bad in ("", "%", "AAA", query + "\n", "AAAA" * 1_000, 5, None):
            assert await server.code("payee_resolve", query=bad) in {"invalid_params", "malformed"}


def test_one_word_for_what_it_is() -> None:
    assert ISOLATION == EMULATED
    assert {"bad_query", "stale_states"} < TOLD_CODES


# -- what the operator reads ---------------------------------------------------------------------------------


async def test_the_log_tells_of_changes_and_not_of_queries(site: Site) -> None:
    def statuses() -> list[str]:
        return [entry["status"] for entry in entries if entry["event"] == "environment"]

    with structlog.testing.capture_logs() as entries:
        for _ in range(3):
            assert await code_of(site) == ""
        assert statuses() == ["ready"]
        site.world.call("permission", "disallow_measurement", measurement=MEASUREMENT)
        site.take()
        for _ in range(3):
            assert await code_of(site) == "environment_refused"
        site.kill()
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert await code_of(site) == "environment_down"
    assert statuses() == ["ready", "environment_refused", "environment_down"]
