"""The flash-sale benchmark: its client, its goals, its pace, and a small real run of every part."""

import json
from collections.abc import Sequence
from functools import partial

import pytest
import trio

from bench.flash_sale import GOALS, Sizes, goals_of, main, tenths_per_s
from bench.flash_sale_client import Answers, drive, order_of, order_requests, post_request
from cli.rights_trial import rights_trial
from consensus.ledger.errors import PeerError
from services.client.errors import Unreachable
from tests.cli.support import fault, hansa

OK = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def drive_against(answer: bytes, requests: Sequence[bytes], connections: int = 1) -> Answers:
    """Drive a server that answers each request so, a byte at a time, and stops when it has no answer."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while part := await stream.receive_some(65_536):
                received += part
                while (end := received.find(b"\r\n\r\n")) >= 0:
                    length = int(received[:end].rpartition(b"content-length: ")[2])
                    if len(received) < end + 4 + length:
                        break
                    received = received[end + 4 + length :]
                    for at in range(len(answer)):
                        await stream.send_all(answer[at : at + 1])
                    if not answer:
                        return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        try:
            return await drive("127.0.0.1", port, requests, connections=connections)
        finally:
            nursery.cancel_scope.cancel()


async def test_requests_go_over_all_connections_until_there_are_no_more() -> None:
    orders = [order_of(at, campaign="c", prefix="p") for at in range(50)]
    answers = await drive_against(OK, order_requests(orders, per_request=5), connections=3)
    assert answers.check().statuses == {202: 10}
    assert len(answers.latencies_ms) == 10
    assert answers.rate_per_s(5) == pytest.approx(50 / answers.seconds)
    assert 0 < answers.quantile_ms(50) <= answers.quantile_ms(99)


async def test_another_status_leaves_no_figures() -> None:
    answers = await drive_against(OK.replace(b"202", b"503"), [post_request("/orders", {})])
    with pytest.raises(PeerError) as caught:
        answers.check()
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 202 Accepted\r\n\r\n", PeerError),
        (b"HTTP/1.1 202 Accepted\r\ncontent-length: -2\r\n\r\n", PeerError),
        (b"HTTP/1.1 202 Accepted\r\ncontent-length: 9999999\r\n\r\n", PeerError),
        (b"", Unreachable),
    ],
)
async def test_what_is_no_answer_ends_the_run(answer: bytes, kind: type[Exception]) -> None:
    with pytest.RaisesGroup(kind, flatten_subgroups=True, allow_unwrapped=True):
        await drive_against(answer, [post_request("/orders", {})])


def test_orders_are_posted_alone_or_in_lists() -> None:
    orders = [order_of(at, campaign="c", prefix="p", users=2) for at in range(3)]
    alone, *_ = order_requests(orders)
    assert json.loads(alone.partition(b"\r\n\r\n")[2]) == {
        "order": "p-0",
        "user": "p-u0",
        "campaign": "c",
        "amount": 100,
    }
    lists = order_requests(orders, per_request=2, token="t")
    assert [len(json.loads(item.partition(b"\r\n\r\n")[2])) for item in lists] == [2, 1]
    assert b"authorization: Bearer t\r\n" in lists[0]


def test_goals_are_judged_where_their_rows_were_measured() -> None:
    rows: list[dict[str, object]] = [
        {"row": "one a request", "orders_per_s": 700.0, "p99_ms": 50.0},
        {"row": "direct", "orders_per_s": 200.0, "p99_ms": 300.0},
        {"row": "quota", "granted": 999, "quota": 1_000},
    ]
    goals = {goal["name"]: (goal["figure"], goal.get("met")) for goal in goals_of(rows)}
    assert goals == {
        "orders accepted, one a request": (700, "yes"),
        "the same, 99 of 100 answered within": (50, "yes"),
        "lanes ÷ direct, 32 connections": (3.5, "yes"),
        "p99 ÷ direct's, 32 connections": (0.167, "yes"),
        "granted beyond the quota, or short of it": (1, "no"),
    }
    assert goals_of([]) == []


def test_tenths() -> None:
    slower = [*range(0, 10_000_000_000, 100_000_000), *range(10_000_000_000, 20_000_000_000, 200_000_000)]
    assert tenths_per_s(slower) == (10, 5)


def test_unknown_rows_are_a_usage_error() -> None:
    assert fault(hansa("bench", "flash-sale", "--rows", "speed"), 2) == "bad_arguments"


@pytest.mark.network
@pytest.mark.slow
def test_a_small_run_of_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = Sizes(seconds=0.5, backlog=2_000, wishes=200, quota=10, paces_per_s=(200,))
    assert main(open_network=rights_trial, sizes=sizes, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["row"]: row for row in report["rows"]}
    assert list(rows) == [
        *("lists of 100", "one a request", "one a request, strict order"),
        *("direct, one in flight", "direct", "backlog", "quota", "pace 200/s", "largest pace"),
    ]
    assert len(report["goals"]) == len(GOALS)
    quota = rows["quota"]
    assert (quota["granted"], quota["refused"], quota["dead"], quota["allocated_on_chain"]) == (10, 190, 0, 10)
    assert rows["backlog"]["waiting"] == 2_000
    assert rows["pace 200/s"]["is_kept"] is True
    assert rows["lists of 100"]["waiting"] > rows["lists of 100"]["drained_per_s"]
    assert rows["direct"]["waiting"] == 0
