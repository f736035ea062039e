"""The census over real nodes: what counts is proven, what is not known stays open, and who lies is named."""

from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from consensus.ledger.transaction import Transaction
from services.settlement.census import EVENTS_MAX, Census, _counted, _Said
from services.settlement.decision import Tally, Verdict
from services.settlement.states import Event
from services.settlement.trades import lane_of
from tests.client.support import CONSORTIUM, NOW_MS, SoloNode, client_of, running
from tests.node.support import make_consortium
from tests.settlement.chain import SELLER, Peer, commit, event_of, peers, seated, transaction_of

ENDS_MS = NOW_MS + 300_000
SECOND_MS = 1_000


def verdicts(tally: Tally) -> list[Verdict]:
    """Return what each validator's answer is worth, in order of their names."""
    assert [answer.validator for answer in tally.answers] == nodes_named(4)
    return [answer.verdict for answer in tally.answers]


def nodes_named(count: int) -> list[str]:
    """Return the first validators' names."""
    return [f"node-{number}" for number in range(count)]


async def asked(nodes: list[Peer], event: Event, *, ratio: int = 0, answer_ms: int = 3_000) -> Tally:
    """Return what the nodes of a census answer."""
    async with client_of(*nodes) as client:
        return await Census(client, ratio=ratio, answer_ms=answer_ms).ask(event)


def other_transaction(event: Event) -> Transaction:
    """Return another transaction for the event's one-shot lane."""
    call = transaction_of(event_of("another")).body.calls[0]
    return CONSORTIUM.sign(SELLER, [call], lane=lane_of(event.event), valid_until_ms=ENDS_MS)


# -- what is proven ----------------------------------------------------------------------------------------------------


async def test_certified_receipts_count(tmp_path: Path) -> None:
    nodes = peers(tmp_path)
    good, bad = event_of("e-1"), event_of("e-2", units=2_000)
    commit(nodes, transaction_of(good), transaction_of(bad))
    async with running(*nodes), client_of(*nodes) as client:
        census = Census(client)
        tally = await census.ask(good)
        assert verdicts(tally) == 4 * [Verdict.SUCCEEDED]
        assert {answer.height for answer in tally.answers} == {2}
        assert (tally.ratio, tally.time_ms) == (3, nodes[0].chain.head.header.time_ms)
        tally = await census.ask(bad)
        assert verdicts(tally) == 4 * [Verdict.FAILED]
        assert {answer.code for answer in tally.answers} == {"insufficient_funds"}


async def test_the_ratio_is_a_quorum_unless_it_is_preset(tmp_path: Path) -> None:
    nodes = peers(tmp_path)
    async with running(*nodes), client_of(*nodes) as client:
        for preset, ratio in ((0, 3), (1, 1), (4, 4), (9, 4)):
            census = Census(client, ratio=preset)
            assert (await census.ask(event_of("e-1"))).ratio == census.ratio == ratio


async def test_who_is_down_silent_or_behind_is_unknown(tmp_path: Path) -> None:
    """One node is down, one accepts connections and says nothing, one has not the block yet."""
    nodes = peers(tmp_path)
    event = event_of("e-1")
    commit(nodes[:3], transaction_of(event))
    commit(nodes[:3])
    nodes[1].store.close()
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nodes[1].port = listeners[0].socket.getsockname()[1]
    async with running(nodes[0], nodes[2], nodes[3]):
        nodes[2].port = 1
        tally = await asked(nodes, event, answer_ms=1_000)
    await listeners[0].aclose()
    assert verdicts(tally) == [Verdict.SUCCEEDED, *3 * [Verdict.UNKNOWN]]


async def test_r63_a_node_that_is_silent_is_left_in_peace_for_a_while(tmp_path: Path) -> None:
    """Else each event, of many, would wait for it as long as for the first."""
    nodes = peers(tmp_path)
    events = [event_of(f"e-{number}", valid_until_ms=ENDS_MS) for number in range(3 * EVENTS_MAX)]
    commit(nodes, time_ms=ENDS_MS + 1)
    questions = 0
    tallies: list[Tally] = []

    async def never() -> None:
        nonlocal questions
        questions += 1
        await trio.sleep_forever()

    nodes[3].backend.settled = never  # type: ignore[method-assign]
    async with running(*nodes), client_of(*nodes) as client:
        census = Census(client, answer_ms=300, rest_ms=60_000)

        async def ask(event: Event) -> None:
            tallies.append(await census.ask(event))

        async with trio.open_nursery() as nursery:
            for event in events:
                nursery.start_soon(ask, event)
    assert {tally.answers[3].verdict for tally in tallies} == {Verdict.UNKNOWN}
    assert questions <= EVENTS_MAX


async def test_a_node_that_stays_silent_is_asked_less_and_less(tmp_path: Path) -> None:
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    commit(nodes, time_ms=ENDS_MS + 1)
    rests = []
    async with running(*nodes), client_of(*nodes) as client:
        census = Census(client, answer_ms=200, rest_ms=10_000)
        await census.ask(event)
        nodes[3].backend.settled = trio.sleep_forever  # type: ignore[method-assign]
        for _ in range(4):
            await census.ask(event)
            rests.append(census._rests_until.pop(nodes[3].url) - trio.current_time())
    assert [round(rest, -1) for rest in rests] == [10, 20, 30, 30]


async def test_what_waits_or_may_still_come_is_held(tmp_path: Path) -> None:
    """It waits at a node that is far behind; of the others, one more block behind than may be has no opinion."""
    nodes = peers(tmp_path)
    event = event_of("e-1")
    commit(nodes[:2])
    commit(nodes[:1])
    async with running(*nodes):
        async with client_of(nodes[2]) as client:
            assert (await client.submit(transaction_of(event))).is_accepted
        tally = await asked(nodes, event)
    assert verdicts(tally) == [*3 * [Verdict.HELD], Verdict.UNKNOWN]


# -- absence -----------------------------------------------------------------------------------------------------------


async def test_absence_needs_a_seal_past_the_validity(tmp_path: Path) -> None:
    """A block at the last moment of validity may still hold the transaction; one after it, once sealed, proves."""
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    async with running(*nodes):
        assert verdicts(await asked(nodes, event)) == 4 * [Verdict.HELD]
        commit(nodes, time_ms=ENDS_MS)  # quiet, so that it seals
        assert nodes[0].chain.head.header.sealed_height == 2
        assert verdicts(await asked(nodes, event)) == 4 * [Verdict.HELD]
        commit(nodes, transaction_of(event_of("e-2", valid_until_ms=ENDS_MS + SECOND_MS)), time_ms=ENDS_MS + 1)
        assert nodes[0].chain.head.header.sealed_height == 2  # past it, not yet sealed
        assert verdicts(await asked(nodes, event)) == 4 * [Verdict.HELD]
        commit(nodes[:3], time_ms=ENDS_MS + 2)
        tally = await asked(nodes, event)
        assert verdicts(tally) == [*3 * [Verdict.ABSENT], Verdict.HELD]
        assert (tally.answers[0].height, tally.time_ms) == (4, ENDS_MS + 2)


async def test_a_lane_that_another_transaction_has_proves_absence(tmp_path: Path) -> None:
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    commit(nodes, other_transaction(event))
    async with running(*nodes):
        assert verdicts(await asked(nodes, event)) == 4 * [Verdict.HELD]
        commit(nodes, time_ms=ENDS_MS + 1)
        assert verdicts(await asked(nodes, event)) == 4 * [Verdict.ABSENT]


async def test_a_delivery_is_never_absent_after_its_validity(tmp_path: Path) -> None:
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    commit(nodes, transaction_of(event), time_ms=ENDS_MS)
    commit(nodes, time_ms=ENDS_MS + 1)
    async with running(*nodes):
        assert verdicts(await asked(nodes, event)) == 4 * [Verdict.SUCCEEDED]


# -- lies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "code"), [("status", "bad_proof"), ("certificate", "bad_certificate"), ("other receipt", "bad_proof")]
)
async def test_r62_a_receipt_without_its_proof_is_a_lie(tmp_path: Path, lie: str, code: str) -> None:
    """A failure that was a success, one signature less than a quorum, the true receipt of another transaction."""
    nodes = peers(tmp_path)
    event = event_of("e-1")
    commit(nodes, transaction_of(event))
    nodes[3].backend.lie = lie
    with capture_logs() as logs:
        async with running(*nodes), client_of(*nodes) as client:
            census = Census(client)
            for _ in range(2):
                tally = await census.ask(event)
                assert verdicts(tally) == [*3 * [Verdict.SUCCEEDED], Verdict.LIAR]
    assert tally.answers[3].code == code
    assert [(line["node"], line["code"]) for line in logs if line["event"] == "node lies"] == [("node-3", code)]


@pytest.mark.parametrize("lie", ["absence", "value", "other key"])
async def test_absence_without_its_proof_is_a_lie(tmp_path: Path, lie: str) -> None:
    """The lane is shown unused, used by somebody else, or another key's absence is shown for it."""
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    commit(nodes, transaction_of(event))
    commit(nodes, time_ms=ENDS_MS + 1)
    nodes[3].backend.deny()
    nodes[3].backend.lie = lie
    async with running(*nodes):
        tally = await asked(nodes, event)
    assert verdicts(tally) == [*3 * [Verdict.SUCCEEDED], Verdict.LIAR]


async def test_a_node_that_denies_what_its_state_proves_lies(tmp_path: Path) -> None:
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    commit(nodes, transaction_of(event))
    commit(nodes, time_ms=ENDS_MS + 1)
    nodes[0].backend.deny()
    async with running(*nodes):
        tally = await asked(nodes, event)
    assert verdicts(tally) == [Verdict.LIAR, *3 * [Verdict.SUCCEEDED]]


async def test_a_node_that_holds_blocks_back_proves_nothing(tmp_path: Path) -> None:
    """Its old state is true, and shows the lane unused; but no block after the validity stands behind it."""
    nodes = peers(tmp_path)
    event = event_of("e-1", valid_until_ms=ENDS_MS)
    commit(nodes[:3], transaction_of(event))
    commit(nodes[:3], time_ms=ENDS_MS + 1)
    async with running(*nodes):
        tally = await asked(nodes, event)
    assert verdicts(tally) == [*3 * [Verdict.SUCCEEDED], Verdict.UNKNOWN]


async def test_r84_a_node_of_another_chain_lies(tmp_path: Path) -> None:
    nodes = peers(tmp_path, 3)
    stranger = SoloNode(tmp_path / "stranger", make_consortium(validators=5))
    event = event_of("e-1")
    commit(nodes, transaction_of(event))
    with capture_logs() as logs:
        async with running(*nodes, stranger), client_of(*nodes, stranger) as client:
            tally = await Census(client).ask(event)
    assert verdicts(tally) == [*3 * [Verdict.SUCCEEDED], Verdict.UNKNOWN]
    assert [(line["url"], line["code"]) for line in logs] == [(stranger.url, "wrong_chain")]


# -- who counts --------------------------------------------------------------------------------------------------------


async def test_a_node_that_is_no_validator_does_not_count(tmp_path: Path) -> None:
    nodes = [*peers(tmp_path, 3), *[Peer(tmp_path, 9)]]
    nodes[3].consortium = CONSORTIUM
    event = event_of("e-1")
    async with running(*nodes):
        commit(nodes[:3], transaction_of(event))
        tally = await asked(nodes, event)
    assert verdicts(tally) == [*3 * [Verdict.SUCCEEDED], Verdict.UNKNOWN]


async def test_a_validator_counts_once_whoever_claims_to_be_it(tmp_path: Path) -> None:
    """A liar under an honest node's name neither counts twice nor takes that node's answer away."""
    nodes = peers(tmp_path)
    event = event_of("e-1")
    commit(nodes, transaction_of(event))
    nodes[0].backend.claimed = nodes[1].backend.claimed
    nodes[0].backend.lie = "status"
    async with running(*nodes):
        tally = await asked(nodes, event)
        assert verdicts(tally) == [Verdict.UNKNOWN, *3 * [Verdict.SUCCEEDED]]
        nodes[0].backend.lie = ""
        assert verdicts(await asked(nodes, event)) == verdicts(tally)
    names = {"http://liar": "node-1", "http://honest": "node-1"}
    for lie in (_Said(Verdict.LIAR, "bad_proof"), _Said(Verdict.UNKNOWN)):
        for verdict in (Verdict.HELD, Verdict.ABSENT):
            said = {"http://liar": lie, "http://honest": _Said(verdict)}
            assert _counted("node-1", names, said).verdict is verdict


async def test_the_current_set_is_asked(tmp_path: Path) -> None:
    """The set is that of the newest proven head, also when another node is at an older one."""
    nodes, leave = seated(tmp_path)
    event = event_of("e-1")
    async with running(*nodes), client_of(*nodes, genesis=nodes[0].consortium.genesis) as client:
        assert [answer.validator for answer in (await Census(client).ask(event)).answers] == nodes_named(4)
        commit(nodes, *leave)
        commit(nodes[:2])
        census = Census(client)
        tally = await census.ask(event)
        assert [answer.validator for answer in tally.answers] == nodes_named(3)
        assert tally.ratio == census.ratio == 2
