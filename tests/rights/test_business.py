"""The business server over HTTP: what it takes, what it refuses and how it says so."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from consensus.ledger.keys import Purpose
from services.local import pages, web
from services.messages.port import Settlement, Verdict
from services.messages.queue import QueueSettings
from services.rights import business
from services.rights.events import Kind, decode_signed_untrusted
from tests.client.support import CONSORTIUM, signer
from tests.rights.business_world import EVENT_KEY, ORDER, SHOP, World, exchange, settings_of, world_in

JSON = {"content-type": "application/json"}


async def only_record(world: World, key: str) -> Any:
    (record,) = await world.queue.find([key])
    assert record is not None
    return record


async def test_an_order_is_answered_with_its_event_once_the_centre_has_it_signed(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        answer = await world.post("/orders", ORDER)
        assert answer == {"eventId": "create/o-1/1", "follow": "/events/create/o-1/1", "isNew": True}
        record = await only_record(world, "create/o-1/1")
        assert record.lane == "order:o-1"
        signed = decode_signed_untrusted(record.body)
        assert signed.server == SHOP.address
        chain_id = CONSORTIUM.genesis.chain_id()
        said = signed.server + signed.root
        assert EVENT_KEY.public.verifies(signed.signature, Purpose.BUSINESS_EVENTS, chain_id, said)
        event = signed.event
        assert (event.kind, event.user, event.campaign, event.amount) == (Kind.CREATE, "u-1", "summer", 100)
        followed = await world.get(answer["follow"])
        assert followed["state"] == "waiting"
        assert "chain" not in followed


POSTS: list[tuple[str, object, str, str]] = [
    ("/orders", {**ORDER, "event": "e.2"}, "create/o-1/e.2", "order:o-1"),
    ("/orders/o-1/cancel", {"amount": 5}, "cancel/o-1/1", "order:o-1"),
    ("/orders/o-1/complete", {}, "complete/o-1/1", "order:o-1"),
    ("/orders/o-1/refund", {"event": "7"}, "refund/o-1/7", "order:o-1"),
    ("/redemptions", {"redemption": "r-1", "user": "u", "amount": 5}, "redeem/r-1/1", "redemption:r-1"),
    ("/redemptions/r-1/reverse", {"amount": 5}, "reverse_redemption/r-1/1", "redemption:r-1"),
]


async def test_every_kind_of_event_goes_into_the_lane_of_what_it_is_about(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for path, body, key, lane in POSTS:
            assert (await world.post(path, body))["eventId"] == key
            assert (await only_record(world, key)).lane == lane


async def test_an_empty_body_stands_for_all_that_is_left(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        answer = await world.http.post("/orders/o-1/complete", headers=JSON)
        assert answer.status_code == 202
        assert decode_signed_untrusted((await only_record(world, "complete/o-1/1")).body).event.amount == 0
        for path in ("/orders/o-2/complete", "/orders/o-2/cancel", "/orders/o-2/refund", "/redemptions/r-2/reverse"):
            assert (await world.http.post(path)).status_code == 202
        assert decode_signed_untrusted((await only_record(world, "refund/o-2/1")).body).event.amount == 0


async def test_a_body_of_another_type_is_refused_also_where_none_is_needed(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:

        async def chunks() -> AsyncIterator[bytes]:
            yield b"{}"

        text = {"content-type": "text/plain"}
        for answer in (
            await world.http.post("/orders/o-1/complete", content=b"{}"),
            await world.http.post("/orders/o-1/complete", content=chunks()),
            await world.http.post("/orders/o-1/complete", content=b"{}", headers=text),
            await world.http.post("/orders/o-1/complete", headers=text),
            await world.http.post("/orders"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (415, "bad_media_type")


async def test_items_of_a_redemption_ascend(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.post("/redemptions", {"redemption": "r-1", "user": "u", "items": {"tea": 1, "coffee": 2}})
        event = decode_signed_untrusted((await only_record(world, "redeem/r-1/1")).body).event
        assert event.items == [("coffee", 2), ("tea", 1)]


async def test_the_same_event_again_is_the_same_event_and_another_one_a_conflict(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        assert (await world.post("/orders", ORDER))["isNew"]
        assert not (await world.post("/orders", ORDER))["isNew"]
        assert (await world.post("/orders", {**ORDER, "amount": 99}, 409))["error"]["code"] == "event_conflict"
        assert (await world.queue.stats()).waiting == 1


async def test_another_servers_event_is_no_repeat(tmp_path: Path) -> None:
    """Answered as a repeat it would be promised, and never reach the chain."""
    async with world_in(tmp_path) as world:
        await world.post("/orders/o-1/complete", {})
        other = settings_of(
            tmp_path / "other", server=signer("user-b").address, nodes=(world.node.url,), center=world.center.address
        )
        stopping = trio.Event()
        async with trio.open_nursery() as nursery:
            port = await nursery.start(partial(business.serve, other, stopping))
            answer = await exchange(port, raw("/orders/o-1/complete", b"{}", "connection: close"))
            assert answer.startswith(b"HTTP/1.1 409")
            assert b"event_conflict" in answer
            stopping.set()


async def test_a_repeat_is_known_also_after_the_end_of_the_first(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.post("/orders", ORDER)
        await settle_next(world, Verdict.DONE, f"17 0x{'ab' * 32} 4 created=100")
        assert not (await world.post("/orders", ORDER))["isNew"]
        assert (await world.post("/orders", {**ORDER, "user": "u-2"}, 409))["error"]["code"] == "event_conflict"


async def settle_next(world: World, verdict: Verdict, detail: str) -> None:
    async with world.queue.consume("test", window=1) as subscription:
        delivery = await anext(subscription)
        assert await subscription.settle([Settlement(delivery.sequence, delivery.fence, verdict, detail)]) == [True]


async def test_where_an_event_ended_can_be_followed(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        transaction = f"0x{'ab' * 32}"
        await world.post("/orders", ORDER)
        await settle_next(world, Verdict.DONE, f"17 {transaction} 4 created=100 entry=0")
        done = await world.get("/events/create/o-1/1")
        assert done["state"] == "done"
        assert done["chain"] == {"height": 17, "transactionId": transaction, "callIndex": 4}
        assert done["result"] == "created=100 entry=0"
        assert done["endedMs"] >= done["takenMs"] > 0

        await world.post("/orders/o-1/cancel", {})
        await settle_next(world, Verdict.REFUSED, f"order_state 18 {transaction} 0")
        refused = await world.get("/events/cancel/o-1/1")
        assert (refused["state"], refused["error"]["code"]) == ("refused", "order_state")
        assert refused["chain"]["height"] == 18

        await world.post("/orders/o-1/refund", {})
        await settle_next(world, Verdict.DEAD, "malformed the body is no event")
        dead = await world.get("/events/refund/o-1/1")
        assert (dead["state"], dead["error"]) == ("dead", {"code": "malformed", "message": "the body is no event"})

        assert (await world.get("/events/create/o-9/1", 404))["error"]["code"] == "unknown_event"


@pytest.mark.parametrize(
    "event", ["create/" + "o" * 300 + "/1", "create/%00/1", "create/o-1/%F0%9F%98%80", "creation/o/1"]
)
async def test_asking_for_what_cannot_be_an_event_disturbs_nobody(tmp_path: Path, event: str) -> None:
    """The centre would let go of a business server that asks for a key too long, with all that it is publishing."""
    async with world_in(tmp_path) as world:
        with capture_logs() as logs:
            assert (await world.get(f"/events/{event}", 404))["error"]["code"] == "unknown_event"
            await world.post("/orders", ORDER)
        assert logs == []


async def test_a_list_is_answered_in_its_order_each_entry_by_itself(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        answers = await world.post(
            "/orders",
            [
                ORDER,
                {**ORDER, "order": "o-2", "amount": -1},
                ORDER,
                {**ORDER, "order": "o-3", "campaign": "winter"},
                {**ORDER, "amount": 7},
                {**ORDER, "order": "o-4"},
            ],
        )
        codes = [answer["error"]["code"] if "error" in answer else answer["isNew"] for answer in answers]
        assert codes == [True, "bad_field", False, "unknown_campaign", "event_conflict", True]
        assert "$.amount" in answers[1]["error"]["message"]
        assert (await world.queue.stats()).waiting == 2


async def test_a_mixed_list_takes_events_of_every_kind(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        events: list[dict[str, object]] = [
            {"kind": "create", **ORDER},
            {"kind": "complete", "order": "o-1"},
            {"kind": "cancel", "order": "o-1", "amount": 3},
            {"kind": "refund", "order": "o-1", "amount": 4, "event": "2"},
            {"kind": "redeem", "redemption": "r-1", "user": "u-1", "items": {"coffee": 1}},
            {"kind": "reverse_redemption", "redemption": "r-1"},
            {"kind": "steal", "order": "o-1"},
        ]
        *taken, refused = await world.post("/events", events)
        assert [answer["eventId"] for answer in taken] == [
            "create/o-1/1",
            "complete/o-1/1",
            "cancel/o-1/1",
            "refund/o-1/2",
            "redeem/r-1/1",
            "reverse_redemption/r-1/1",
        ]
        assert refused["error"]["code"] == "bad_field"
        async with world.queue.consume("test", window=1) as subscription:
            assert (await anext(subscription)).key == "create/o-1/1"


BAD_BODIES = [
    (b"{", 400, "malformed", ""),
    (b"\xff\xfe", 400, "malformed", ""),
    (b"", 400, "malformed", ""),
    (b"[]", 400, "bad_field", "empty"),
    (b"3", 400, "bad_field", ""),
    ({**ORDER, "amount": 1.0}, 400, "bad_field", "$.amount"),
    ({**ORDER, "amount": "1"}, 400, "bad_field", "$.amount"),
    ({**ORDER, "amount": 0}, 400, "bad_field", "$.amount"),
    ({**ORDER, "amount": -5}, 400, "bad_field", "$.amount"),
    ({**ORDER, "amount": True}, 400, "bad_field", "$.amount"),
    ({**ORDER, "amount": 10**15 + 1}, 400, "bad_field", "$.amount"),
    ({**ORDER, "order": "a/b"}, 400, "bad_field", "$.order"),
    ({**ORDER, "order": "o-1\n"}, 400, "bad_field", "$.order"),
    ({**ORDER, "user": ""}, 400, "bad_field", "$.user"),
    ({**ORDER, "user": None}, 400, "bad_field", "$.user"),
    ({**ORDER, "event": "x" * 65}, 400, "bad_field", "$.event"),
    ({**ORDER, "discount": 1}, 400, "bad_field", "discount"),
    ({"order": "o-1", "user": "u", "campaign": "summer"}, 400, "bad_field", "amount"),
    ([ORDER] * 1_001, 413, "too_large", "1000"),
]


async def test_what_is_no_order_is_refused_with_the_field_that_is_wrong(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for body, status, code, said in BAD_BODIES:
            content = body if isinstance(body, bytes) else msgspec.json.encode(body)
            answer = await world.http.post("/orders", content=content, headers=JSON)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), content[:80]
            assert said in error["message"]
        for path, body in (
            ("/redemptions", {"redemption": "r", "user": "u"}),
            ("/redemptions", {"redemption": "r", "user": "u", "items": {}}),
            ("/redemptions", {"redemption": "r", "user": "u", "items": {"coffee": 0}}),
            ("/redemptions", {"redemption": "r", "user": "u", "items": {f"i{number}": 1 for number in range(17)}}),
            ("/redemptions", {"redemption": "r", "user": "u", "amount": 5, "items": None}),
            ("/orders/o-1/cancel", {"amount": 0}),
            ("/orders/o-1/cancel", {"amount": None}),
            ("/orders/o%201/cancel", {}),
            ("/redemptions/r/reverse", {"user": "u"}),
        ):
            assert (await world.post(path, body, 400))["error"]["code"] == "bad_field", path
        assert (await world.queue.stats()).waiting == 0


async def test_bodies_are_bounded_with_and_without_a_length(tmp_path: Path) -> None:
    head = b"POST /orders HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    count = pages.BODY_BYTES_MAX // 0x10000 + 1
    async with world_in(tmp_path) as world:
        chunks = b"10000\r\n%b\r\n" % (b" " * 0x10000) * count
        answer = await exchange(world.port, head + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        assert answer.startswith(b"HTTP/1.1 413")
        for length in (b"%d" % (pages.BODY_BYTES_MAX + 1), b"9" * 300, b"9" * 6_000):
            answer = await exchange(world.port, head + b"content-length: %b\r\n\r\n" % length)
            assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


async def test_bodies_that_are_being_received_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = msgspec.json.encode(ORDER)
    monkeypatch.setattr(pages, "BODIES_BYTES_MAX", len(order) * 2 - 1)
    async with world_in(tmp_path) as world, await trio.open_tcp_stream("127.0.0.1", world.port) as slow:
        await slow.send_all(raw("/orders", order, "expect: 100-continue")[: -len(order)])
        assert (await slow.receive_some()).startswith(b"HTTP/1.1 100")
        with trio.fail_after(20):
            while (answer := await world.http.post("/orders", content=order, headers=JSON)).status_code == 202:
                pass
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "intake_full")
        await slow.send_all(order)
        assert (await slow.receive_some()).startswith(b"HTTP/1.1 202")
        await world.post("/orders", ORDER)


async def test_other_refusals_have_their_status_and_the_same_form(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for method, path, headers, status, code in (
            ("GET", "/nothing", {}, 404, "unknown_path"),
            ("GET", "/orders", {}, 405, "method_not_allowed"),
            ("POST", "/healthz", {}, 405, "method_not_allowed"),
            ("POST", "/orders", {"content-type": "text/plain"}, 415, "bad_media_type"),
            ("GET", "/", {"host": "rebound.example"}, 403, "unknown_host"),
            ("GET", "/", {"origin": "http://page.example"}, 403, "unknown_host"),
        ):
            answer = await world.http.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await world.http.get("/orders")).headers["allow"] == "POST"


async def test_campaigns_that_do_not_take_orders_are_refused_at_once(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.call("open_campaign", campaign="over", quota=5)
        await world.call("close_campaign", campaign="over")
        for campaign, status, code in (
            ("winter", 404, "unknown_campaign"),
            ("over", 409, "campaign_closed"),
        ):
            answer = await world.post("/orders", {**ORDER, "campaign": campaign}, status)
            assert answer["error"]["code"] == code
            assert campaign in answer["error"]["message"]
        assert (await world.queue.stats()).waiting == 0


async def test_another_servers_campaign_takes_no_orders_here(tmp_path: Path) -> None:
    async with world_in(tmp_path, server=signer("user-b").address) as world:
        assert (await world.post("/orders", ORDER, 403))["error"]["code"] == "not_allowed"


async def test_orders_are_taken_while_the_chain_cannot_be_asked(tmp_path: Path) -> None:
    async with world_in(tmp_path, nodes=("http://127.0.0.1:1",)) as world:
        assert (await world.post("/orders", {**ORDER, "campaign": "winter"}))["isNew"]


async def test_a_token_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    async with world_in(tmp_path, token="secret") as world:
        refused = await world.http.post("/orders", json=ORDER)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "bad_token")
        assert refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer secre", "Bearer secret2", "secret", "Basic secret"):
            answer = await world.http.post("/orders", json=ORDER, headers={"authorization": wrong})
            assert answer.status_code == 401
        assert (await world.http.get("/metrics")).status_code == 401
        assert (await world.http.get("/events/create/o-1/1")).status_code == 401
        assert (await world.http.get("/healthz")).status_code == 200
        right = {"authorization": "Bearer secret"}
        assert (await world.http.post("/orders", json=ORDER, headers=right)).status_code == 202


async def test_a_full_store_asks_to_come_again(tmp_path: Path) -> None:
    async with world_in(tmp_path, queue=QueueSettings(waiting_max=2)) as world:
        await world.post("/orders", [ORDER, {**ORDER, "order": "o-2"}])
        answer = await world.http.post("/orders", json={**ORDER, "order": "o-3"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_full")
        assert answer.headers["retry-after"] == str(pages.RETRY_AFTER_S)
        await settle_next(world, Verdict.REFUSED, "order_state")
        assert (await world.post("/orders", {**ORDER, "order": "o-3"}))["isNew"]


async def test_a_centre_that_is_away_and_comes_back(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.post("/orders", ORDER)
        await world.center.stop()
        answer = await world.http.post("/orders", json={**ORDER, "order": "o-2"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "center_unreachable")
        assert (await world.get("/events/create/o-1/1", 503))["error"]["code"] == "center_unreachable"
        assert (await world.get("/healthz", 503))["error"]["code"] == "center_unreachable"
        await world.center.start()
        with trio.fail_after(20):
            while (await world.http.post("/orders", json={**ORDER, "order": "o-2"})).status_code != 202:
                await trio.lowlevel.checkpoint()
        assert not (await world.post("/orders", ORDER))["isNew"]


async def test_the_page_and_the_document_say_what_there_is(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        document = await world.get("/openapi.json")
        for path, operations in document["paths"].items():
            for verb in operations:
                answer = await world.http.request(verb, path.replace("{", "").replace("}", ""))
                code = answer.json()["error"]["code"] if answer.status_code >= 400 else ""
                assert code not in ("unknown_path", "method_not_allowed"), (verb, path)
        page = (await world.http.get("/")).text
        assert all(path in page for path in document["paths"])
        assert "<script" not in page
        assert "http://" not in page.replace("http://127.0.0.1", "")
        order = document["components"]["schemas"]["Order"]
        assert order["properties"]["user"]["pattern"] == "^[A-Za-z0-9._:-]{1,64}$"
        operations = [operation for verbs in document["paths"].values() for operation in verbs.values()]
        assert len({operation["operationId"] for operation in operations}) == len(operations)
        assert all(parameter["schema"] for operation in operations for parameter in operation["parameters"])
        for operation in operations:
            assert ("401" in operation["responses"]) == ("security" not in operation)
        assert not any("\n " in schema["description"] for schema in document["components"]["schemas"].values())
        references = set(find_references(document))
        assert references <= set(document["components"]["schemas"])


async def test_the_document_knows_the_answers_that_there_are(tmp_path: Path) -> None:
    async with world_in(tmp_path, queue=QueueSettings(waiting_max=2)) as world:
        document = await world.get("/openapi.json")
        cases = [
            ("/orders", "POST", "/orders", ORDER),
            ("/orders", "POST", "/orders", {**ORDER, "amount": 7}),
            ("/orders", "POST", "/orders", {**ORDER, "order": "o-2"}),
            ("/orders", "POST", "/orders", {**ORDER, "order": "o-3"}),
            ("/orders", "POST", "/orders", {**ORDER, "campaign": "winter"}),
            ("/orders/{order}/cancel", "POST", "/orders/o-1/cancel", {"amount": 0}),
            ("/events/{kind}/{reference}/{number}", "GET", "/events/create/o-9/1", None),
            ("/healthz", "GET", "/healthz", None),
        ]
        seen = []
        for path, verb, url, body in cases:
            answer = await world.http.request(verb, url, json=body)
            seen.append(answer.status_code)
            said = document["paths"][path][verb.lower()]["responses"][str(answer.status_code)]
            assert all(name in answer.headers for name in said.get("headers", {}))
        assert seen == [202, 409, 202, 503, 404, 400, 404, 200]
        for verbs in document["paths"].values():
            ((verb, operation),) = verbs.items()
            assert "headers" in operation["responses"]["405"]
            if verb == "post":
                assert "200" in operation["responses"]
        await world.center.stop()
        answer = await world.http.get("/healthz")
        said = document["paths"]["/healthz"]["get"]["responses"][str(answer.status_code)]
        assert set(said["headers"]) == {"Retry-After"}
        cancel = document["paths"]["/orders/{order}/cancel"]["post"]
        assert "404" not in cancel["responses"]
        assert cancel["parameters"][0]["schema"]["pattern"] == "^[A-Za-z0-9._:-]{1,64}$"


def find_references(value: object) -> Any:
    match value:
        case {"$ref": str(reference)}:
            yield reference.rpartition("/")[2]
        case dict():
            for inner in value.values():
                yield from find_references(inner)
        case list():
            for inner in value:
                yield from find_references(inner)


async def test_a_bug_ends_one_request_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr("services.rights.pages.document", broken)
    async with world_in(tmp_path) as world:
        assert (await world.get("/openapi.json", 500))["error"]["code"] == "internal"
        await world.post("/orders", ORDER)


async def test_figures_count_events_by_kind_and_outcome(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        await world.post("/orders", [ORDER, ORDER, {**ORDER, "amount": 1}, {}])
        figures = (await world.http.get("/metrics")).text
        for kind, outcome in (("create", "new"), ("create", "repeated"), ("create", "event_conflict")):
            assert f'hansa_business_events_total{{kind="{kind}",outcome="{outcome}"}} 1.0' in figures
        assert 'hansa_business_events_total{kind="unknown",outcome="bad_field"} 1.0' in figures
        assert "hansa_business_connections 1.0" in figures


async def test_the_time_of_every_post_is_observed_also_of_those_refused(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        posts: list[tuple[str, object, int]] = [
            ("/orders", ORDER, 202),
            ("/orders", [ORDER], 202),
            ("/orders", {}, 400),
            *((f"/orders/o-1/{kind}", {}, 202) for kind in ("cancel", "complete", "refund")),
            ("/redemptions/r-1/reverse", {}, 202),
            ("/orders/o-1/cancel", {"amount": 0}, 400),
        ]
        for path, body, status in posts:
            await world.post(path, body, status)
        assert (await world.http.post("/orders")).status_code == 415
        figures = (await world.http.get("/metrics")).text
        assert f"hansa_business_request_seconds_count {len(posts) + 1}.0" in figures


def raw(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", *more, "", ""]).encode() + body


async def test_requests_of_one_connection_are_answered_in_turn(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        orders = [msgspec.json.encode({**ORDER, "order": f"o-{number}"}) for number in range(3)]
        answers = await exchange(
            world.port,
            b"".join([*(raw("/orders", order) for order in orders), raw("/orders", b"{", "connection: close")]),
        )
        assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"202", b"202", b"202", b"400"]
        assert answers.find(b"create/o-0/1") < answers.find(b"create/o-1/1") < answers.find(b"create/o-2/1")


async def test_who_waits_to_be_told_to_go_on_is_told(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        body = msgspec.json.encode(ORDER)
        async with await trio.open_tcp_stream("127.0.0.1", world.port) as stream:
            await stream.send_all(raw("/orders", body, "expect: 100-continue")[: -len(body)])
            with trio.fail_after(20):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
                await stream.send_all(body)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 202")


async def test_slow_bodies_and_idle_connections_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "BODY_MS_MAX", 50)
    monkeypatch.setattr(web, "KEEP_ALIVE_S", 0.05)
    async with world_in(tmp_path) as world:
        slow = await exchange(world.port, raw("/orders", b"{}")[:-1])
        assert slow.startswith(b"HTTP/1.1 408")
        assert b'"timeout"' in slow
        assert await exchange(world.port, b"POST /orders HT") == b""
        kept = await exchange(world.port, raw("/orders", msgspec.json.encode(ORDER)))
        assert kept.startswith(b"HTTP/1.1 202")


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""How a connection begins whose client knows that the server speaks HTTP/2."""
SETTINGS = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"


async def test_nobody_gets_http_2_where_idle_connections_would_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "KEEP_ALIVE_S", 0.05)
    async with world_in(tmp_path) as world:
        assert (await exchange(world.port, PREFACE)).startswith(b"HTTP/1.1 403")
        kept = await exchange(world.port, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n" + SETTINGS + b"\r\n")
        assert kept.startswith(b"HTTP/1.1 200")


UPGRADE = b"""GET / HTTP/1.1\r
host: localhost\r
connection: upgrade\r
upgrade: websocket\r
sec-websocket-version: 13\r
sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="""


async def test_rubbish_on_the_wire_ends_its_connection_alone(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for rubbish in (
            b"\x00" * 100,
            b"POST /orders HTTP/9.9\r\n\r\n",
            b"x" * 40_000,
            b"GET / HTTP/1.1\r\n\r\n",
            UPGRADE,
        ):
            answer = await exchange(world.port, rubbish + b"\r\n\r\n")
            assert not answer.startswith(b"HTTP/1.1 2")
        assert (await world.post("/orders", ORDER))["isNew"]
