"""The account system over HTTP: who may ask, what bodies may be, what the fault panel does, how it ends."""

import random
import re
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from starlette.routing import Route

from bench.postgres import PostgresCluster
from consensus.ledger.errors import HansaError, InvariantError, LocalError, StorageError
from services.accounts.faults import DELAY_MS_MAX, FAULTS_MAX, Fault
from services.accounts.metrics import AccountsMetrics
from services.accounts.pages import Pages
from services.accounts.port import AMOUNT_MAX, Answer, Operation, Order
from services.accounts.program import AccountsSettings, serve
from services.accounts.store import AccountStore
from services.client.errors import Refused, Unreachable
from services.local.pages import BODY_BYTES_MAX
from tests.accounts.support import JSON, PAY, RELEASE, RESERVE, REVERSE, TOKEN, World, order, world_in

ORDER = msgspec.to_builtins(order(RESERVE))


async def balances(world: World) -> list[tuple[str, int, int]]:
    return [(account.id, account.available, account.held) for account in await world.link.accounts()]


async def refused(asking: Any) -> str:
    with pytest.raises(Refused) as refusal:
        await asking
    return refusal.value.code


async def unreachable(asking: Any) -> str:
    with pytest.raises(Unreachable) as error:
        await asking
    assert error.value.code == "accounts_unreachable"
    return error.value.message


async def test_orders_by_the_list_and_alone(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        answers = await world.link.run([order(RESERVE), order(PAY), order(PAY, "t-2", amount=10**6), order(RESERVE)])
        assert [answer.code for answer in answers] == ["", "", "insufficient_funds", ""]
        assert answers[0] == answers[3]
        said = await world.post("/orders", msgspec.to_builtins(order(PAY)))
        assert said["answers"] == [msgspec.to_builtins(answers[1])]
        assert set(said["answers"][0]) == {"event", "operation", "code", "message", "timeMs"}
        standing, none = await world.link.look_up(["t-1", "t-2"])
        assert none is None
        assert standing is not None
        assert (standing.reserved_ms, standing.paid_ms) == (answers[0].time_ms, answers[1].time_ms)
        page = await world.link.entries(from_ms=0, until_ms=1 << 62, after=2, limit=1)
        assert ([entry.operation for entry in page.items], page.next) == (["reserve"], 3)
        assert await balances(world) == [("buyer", 99_970, 0), ("shop", 100_030, 0)]
        assert await world.link.issued() == {"CNY": 200_000}
        assert (await world.link.run([]), await world.link.look_up([])) == ([], [])
        figures = (await world.http.get("/metrics")).text
        assert 'hansa_accounts_orders_total{operation="pay",outcome="done"} 2.0' in figures
        assert 'hansa_accounts_orders_total{operation="pay",outcome="insufficient_funds"} 1.0' in figures


async def test_accounts_over_http(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        assert await refused(world.link.open([("shop", "EUR")])) == "account_exists"
        assert await refused(world.link.account("nobody")) == "unknown_account"
        assert await refused(world.link.account("a b")) == "unknown_account"
        assert await refused(world.link.deposit("nobody", 1, key="d")) == "unknown_account"
        assert await refused(world.link.deposit("shop", 1, key="opening-shop")) == "operation_conflict"
        assert await refused(world.link.freeze("nobody")) == "unknown_account"
        assert (await world.link.freeze("shop")).is_frozen
        assert [answer.code for answer in await world.link.run([order(PAY)])] == ["account_frozen"]
        assert not (await world.link.unfreeze("shop")).is_frozen
        await world.link.open([(f"n-{number:04}", "EUR") for number in range(999)])
        await world.link.open([("z-1", "EUR"), ("z-2", "EUR")])
        assert len(await world.link.accounts()) == 1_003  # more than one page
        page = await world.get("/accounts?limit=1&after=shop")
        assert (page["next"], page["accounts"][0]["id"]) == ("z-1", "z-1")


async def test_the_document_names_every_path_and_what_it_refers_to(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        text = (await world.http.get("/openapi.json", headers={"authorization": ""})).text
    content = msgspec.json.decode(text)
    routes = Pages(cast(Any, None), AccountsMetrics(), None).app().routes
    named = {(path, verb.upper()) for path, calls in content["paths"].items() for verb in calls}
    there = {(route.path, verb) for route in routes if isinstance(route, Route) for verb in route.methods or ()}
    assert {pair for pair in there if pair[1] != "HEAD"} - named == {
        (path, "GET") for path in ("/", "/openapi.json", "/metrics")
    }
    assert named <= there
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(content["components"]["schemas"])
    order_schema = content["components"]["schemas"]["Order"]
    assert order_schema["properties"]["amount"] == {"type": "integer", "minimum": 1, "maximum": AMOUNT_MAX}
    assert order_schema["properties"]["currency"]["pattern"] == "^[A-Z]{3}$"


WRONG_CALLERS: list[tuple[str, dict[str, str], str]] = [
    ("/accounts", {"authorization": ""}, "bad_token"),
    ("/accounts", {"authorization": "Bearer between program"}, "bad_token"),
    ("/metrics", {"authorization": "Bearer x"}, "bad_token"),
    ("/faults", {"authorization": ""}, "bad_token"),
    ("/accounts", {"host": "evil.example"}, "unknown_host"),
    ("/accounts", {"origin": "http://evil.example"}, "unknown_host"),
    ("/nothing", {}, "unknown_path"),
    ("/orders", {}, "method_not_allowed"),
]


async def test_who_may_not_ask(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for path, headers, code in WRONG_CALLERS:
            answer = await world.http.get(path, headers=headers)
            assert answer.json()["error"]["code"] == code
            assert answer.headers["hansa-money"] == "simulated"
        health = await world.http.get("/healthz", headers={"authorization": ""})
        assert health.json() == {"simulated": True, "ready": True}


WRONG_FIELDS: list[dict[str, Any]] = [
    *({"amount": wrong} for wrong in (0, -1, 1.5, "30", True, None, AMOUNT_MAX + 1, 2**64, [30])),
    *({"currency": wrong} for wrong in ("", "cny", "CNYX", "CN\n", 3)),
    *({"operation": wrong} for wrong in ("", "PAY", "deposit", None)),
    *({"event": wrong} for wrong in ("", "-a", "a/b", "a" * 65, "a\n", "é")),
    *({name: wrong} for name in ("payer", "payee") for wrong in ("", "a b", "buyer/held", "x" * 65, "a\0")),
    {"more": 1},
]


async def test_an_order_that_says_anything_else_is_refused(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for wrong in WRONG_FIELDS:
            for body in ({**ORDER, **wrong}, [ORDER, {**ORDER, **wrong}]):
                assert (await world.post("/orders", body, 400))["error"]["code"] == "bad_field", wrong
        for name in ORDER:
            rest = {key: value for key, value in ORDER.items() if key != name}
            assert (await world.post("/orders", rest, 400))["error"]["code"] == "bad_field"
        for many in ([], [ORDER] * 1_001):
            assert (await world.post("/orders", many, 400))["error"]["code"] == "bad_field"
        assert await world.link.look_up(["t-1"]) == [None]
        assert len((await world.post("/orders", [ORDER] * 1_000))["answers"]) == 1_000


WRONG_BODIES: list[tuple[str, Any]] = [
    ("/standings", {"events": []}),
    ("/standings", {"events": ["t"] * 1_001}),
    ("/accounts", {"accounts": [{"id": "a", "currency": "cny"}]}),
    ("/accounts", {"accounts": []}),
    ("/accounts/shop/deposits", {"reference": "d-1", "amount": 0}),
    ("/accounts/shop/deposits", {"amount": 1}),
    ("/faults", {"faults": [{"kind": "explode"}]}),
    ("/faults", {"faults": [{"kind": "delay", "delayMs": DELAY_MS_MAX + 1}]}),
    ("/faults", {"faults": []}),
    ("/entries?fromMs=-1", None),
    ("/entries?limit=0", None),
    ("/entries?limit=1001", None),
    ("/entries?untilMs=9223372036854775808", None),
    ("/entries?after=1&after=2", None),
    ("/entries?other=1", None),
    ("/accounts?after=a%20b", None),
    ("/accounts?after=%00", None),
]


async def test_what_else_is_out_of_bounds(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for path, body in WRONG_BODIES:
            answer = await (world.get(path, 400) if body is None else world.post(path, body, 400))
            assert answer["error"]["code"] == "bad_field", path


async def test_bodies_that_are_no_orders(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for body, headers, status, code in (
            (b"", JSON, 400, "malformed"),
            (b"{", JSON, 400, "malformed"),
            (b"\xff\xfe", JSON, 400, "malformed"),
            (b"[" * 100_000, JSON, 400, "bad_field"),
            (b"null", JSON, 400, "bad_field"),
            (msgspec.json.encode([ORDER, ORDER]).replace(b'"amount"', b'"amount":1,"amount"'), JSON, 400, "malformed"),
            (msgspec.json.encode(ORDER), {"content-type": "text/plain"}, 415, "bad_media_type"),
            (msgspec.json.encode(ORDER), {}, 415, "bad_media_type"),
        ):
            answer = await world.http.post("/orders", content=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        head = f"POST /orders HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}"
        head += "\r\ncontent-type: application/json"
        async with await trio.open_tcp_stream("127.0.0.1", world.port) as stream:
            await stream.send_all(f"{head}\r\ncontent-length: {BODY_BYTES_MAX + 1}\r\n\r\n".encode())
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 413")
        assert await balances(world) == [("buyer", 100_000, 0), ("shop", 100_000, 0)]


async def test_bytes_changed_at_random_are_orders_or_refused(tmp_path: Path) -> None:
    draw = random.Random(7)
    whole = msgspec.json.encode([order(operation, f"t-{operation}") for operation in Operation])
    async with world_in(tmp_path) as world:
        for _ in range(300):
            body = bytearray(whole)
            for _ in range(draw.randrange(1, 4)):
                at = draw.randrange(len(body))
                match draw.randrange(3):
                    case 0:
                        body[at] = draw.randrange(256)
                    case 1:
                        del body[at : at + draw.randrange(1, 30)]
                    case _:
                        body[at:at] = body[draw.randrange(len(body)) :][: draw.randrange(1, 40)]
            answer = await world.http.post("/orders", content=bytes(body), headers=JSON)
            assert answer.status_code in (200, 400), body
            if answer.status_code == 200:
                assert len(answer.json()["answers"]) == len(msgspec.json.decode(body, type=list[Order]))
        total = sum(available + held for _, available, held in await balances(world))
        assert total == 200_000


# -- the fault panel -------------------------------------------------------------------------------------


async def test_a_lost_answer_is_lost_after_the_order_was_done(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.link.set_fault(Fault("lose_answer", operation="pay", count=2))
        assert (await world.link.run([order(RESERVE)]))[0].is_done
        await unreachable(world.link.run([order(PAY)]))
        await unreachable(world.link.run([order(RESERVE, "t-2"), order(PAY)]))
        assert (await world.link.run([order(PAY)]))[0].is_done
        assert await balances(world) == [("buyer", 99_940, 30), ("shop", 100_030, 0)]
        (fault,) = await world.link.faults()
        assert fault.happened == 2


async def test_down_is_down_before_anything_is_done(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.link.set_fault(Fault("down", count=0))
        for asking in (world.link.run([order(PAY)]), world.link.look_up(["t-1"]), world.link.accounts()):
            await unreachable(asking)
        await world.link.clear_faults()
        assert await world.link.look_up(["t-1"]) == [None]


async def test_an_answer_given_twice_and_late_moves_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[Answer]] = []
    run = AccountStore.run

    async def counted(self: AccountStore, orders: Any) -> list[Answer]:
        runs.append(await run(self, orders))
        return runs[-1]

    monkeypatch.setattr(AccountStore, "run", counted)
    async with world_in(tmp_path) as world:
        await world.link.set_fault(Fault("answer_twice", operation="pay"))
        answers = await world.link.run([order(PAY), order(RESERVE, "t-2")])
        await world.link.run([order(RELEASE, "t-3")])
        assert runs[0] == runs[1] == answers
        assert await balances(world) == [("buyer", 99_940, 30), ("shop", 100_030, 0)]
    assert runs.count(answers) == 3  # at the latest by the end of the program


async def test_refusals_are_for_orders_one_by_one_and_leave_no_trace(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.link.set_fault(Fault("refuse", operation="pay", count=2, code="insufficient_funds"))
        orders = [order(PAY, "t-1"), order(RESERVE, "t-2"), order(PAY, "t-3"), order(PAY, "t-4")]
        assert [one.code for one in await world.link.run(orders)] == [
            *("insufficient_funds", "", "insufficient_funds", ""),
        ]
        assert [standing is None for standing in await world.link.look_up(["t-1", "t-2", "t-3"])] == [True, False, True]
        assert all(answer.is_done for answer in await world.link.run(orders))


async def test_a_delay_is_one(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.link.set_fault(Fault("delay", operation="reverse", delay_ms=150), Fault("delay", delay_ms=150))
        begin = trio.current_time()
        assert (await world.link.run([order(REVERSE)]))[0].code == "not_paid"
        assert trio.current_time() - begin >= 0.15
        assert (await world.link.look_up(["t-1"])) == [None]
        assert trio.current_time() - begin >= 0.3


async def test_what_is_drawn_follows_from_the_seed(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        drawn = []
        for seed in (1, 1, 2):
            await world.link.clear_faults()
            await world.link.set_fault(Fault("refuse", count=0, probability=40, seed=seed))
            orders = [order(RESERVE, f"t-{number}", amount=1) for number in range(60)]
            drawn.append([answer.is_done for answer in await world.link.run(orders)])
        assert drawn[0] == drawn[1] != drawn[2]
        assert 15 < drawn[0].count(False) < 35


async def test_the_panel_is_closed_unless_it_was_opened_and_holds_so_many(tmp_path: Path) -> None:
    async with world_in(tmp_path, faults=False) as world:
        for asking in (world.link.faults(), world.link.set_fault(Fault("down")), world.link.clear_faults()):
            assert await refused(asking) == "no_fault_panel"
    async with world_in(tmp_path) as world:
        await world.link.set_fault(*[Fault("delay", operation="pay")] * FAULTS_MAX)
        assert await refused(world.link.set_fault(Fault("down"))) == "too_many_faults"


# -- beginning and end -----------------------------------------------------------------------------------


async def test_what_was_answered_is_there_after_a_new_start(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        (first,) = await world.link.run([order(RESERVE)])
        assert (tmp_path / "run" / "ready").exists()
    assert not (tmp_path / "run" / "ready").exists()
    async with world_in(tmp_path) as world:
        assert await world.link.run([order(RESERVE)]) == [first]
        assert await balances(world) == [("buyer", 99_970, 30), ("shop", 100_000, 0)]


async def test_one_program_has_the_books(tmp_path: Path) -> None:
    async with world_in(tmp_path):
        with pytest.RaisesGroup(pytest.RaisesExc(LocalError, check=lambda error: error.code == "store_locked")):
            async with world_in(tmp_path):
                pass


async def test_beyond_loopback_callers_show_a_token(tmp_path: Path) -> None:
    settings = AccountsSettings(host="0.0.0.0", port=0, token="", run=tmp_path, database="sqlite://")
    with pytest.raises(LocalError) as error:
        await serve(settings, trio.Event())
    assert error.value.code == "token_missing"


@pytest.mark.parametrize("failure", [StorageError("disk_full", "no room"), InvariantError("negative")])
async def test_what_no_request_can_mend_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: StorageError | InvariantError
) -> None:
    async def failing(*_: object) -> list[Answer]:
        raise failure

    with pytest.RaisesGroup(pytest.RaisesExc(type(failure), check=lambda error: error is failure)):
        async with world_in(tmp_path) as world:
            monkeypatch.setattr(AccountStore, "run", failing)
            assert failure.code in await unreachable(world.link.run([order(PAY)]))
            with trio.fail_after(10):
                await world.stopping.wait()


@pytest.mark.parametrize(
    "failure",
    [
        Unreachable("away", "database_unreachable"),
        LocalError("store_locked", "another process took it after the commit that nobody heard of"),
        LocalError("bad_database", "it came back without fsync"),
    ],
    ids=lambda failure: failure.code,
)
async def test_a_database_that_is_away_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: HansaError
) -> None:
    async def away(*_: object) -> list[Answer]:
        raise failure

    async with world_in(tmp_path) as world:
        monkeypatch.setattr(AccountStore, "run", away)
        assert failure.code in await unreachable(world.link.run([order(PAY)]))
        answer = await world.http.post("/orders", json=ORDER)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.slow
async def test_a_database_that_is_restarted_is_waited_for(
    tmp_path: Path, postgres_server: PostgresCluster, postgres_url: str
) -> None:
    """It dies at once, as by a crash, with requests under way: each order is done once and answered."""
    answers: list[Answer] = []

    async def ask(world: World, number: int) -> None:
        for step in (RESERVE, PAY):
            orders = [order(step, f"t-{number}-{index}", amount=1) for index in range(20)]
            answers.extend(await world.link.run(orders))

    async with world_in(tmp_path, database=postgres_url) as world:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, world, number)
            await trio.to_thread.run_sync(postgres_server.stop)
            await trio.to_thread.run_sync(postgres_server.start)
        assert (len(answers), {answer.code for answer in answers}) == (800, {""})
        assert await balances(world) == [("buyer", 99_600, 0), ("shop", 100_400, 0)]
