"""The issuer-node part of a gateway by its rules N1 to N6, on a real chain; the bank's node is played by the test."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from consensus.ledger.keys import PrivateKey
from services.agency.interfaces import (
    AnswerSubmit,
    Done,
    Next,
    PackagesNext,
    PackageState,
    RootQuery,
    Status,
    StatusQuery,
)
from services.agency.orders import Application
from services.agency.packages import (
    Answer,
    Message,
    Package,
    Question,
    Refusal,
    make_answer,
    make_package,
    message_codec,
)
from services.client.errors import Refused
from services.local.link import LocalLink
from tests.agency.world import (
    BANK,
    BUSINESS,
    CONSORTIUM,
    ISSUER,
    NOW_MS,
    OTHER,
    OTHER_INTERFACE,
    MemoryStore,
    World,
    answer_to,
    application,
    confirmations_of,
    submit_of,
    world,
)

CHANNEL_NAME = f"{BANK}/{ISSUER}"
CHAIN_ID = CONSORTIUM.genesis.chain_id()
ORDERS = [application(1), application(2)]


def package(
    *orders: Application, number: int = 1, bank: str = BANK, key: PrivateKey = BUSINESS[BANK], epoch: int = 1
) -> Package:
    salts = [bytes([number, place]) + bytes(30) for place in range(len(orders))]
    return make_package(
        key, CHAIN_ID, bank=bank, issuer=ISSUER, epoch=epoch, created_ms=NOW_MS, salts=salts, applications=orders
    )


def deliver(found: World, *messages: Message) -> None:
    """Have the bank's node bring messages to the issuer's."""
    for message in messages:
        found.wire.sides[ISSUER].deliver(CHANNEL_NAME, message_codec.encode(message))


async def sent(found: World, count: int) -> list[tuple[str, Message]]:
    """Return the ids and messages that the issuer's gateway sent, once there are so many."""
    with trio.fail_after(20):
        while len(found.wire.posted) < count:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(found.wire.posted) == count
    return [(name, message_codec.decode_untrusted(payload)) for _, name, payload in found.wire.posted]


async def alarms(issuer: LocalLink, count: int) -> list[str]:
    """Return the codes of the alarms, oldest first, once there are so many."""
    with trio.fail_after(20):
        while len(found := (await issuer.call("status", StatusQuery(), Status)).alarms) < count:
            await trio.testing.wait_all_tasks_blocked(0.01)
    return [alarm.split()[0] for alarm in reversed(found)]


async def arrived(issuer: LocalLink, after: int = 0, wait_ms: int = 10_000) -> list[bytes]:
    page = await issuer.call("packages_next", Next(after, wait_ms, 8), PackagesNext)
    return [item.root for item in page.items]


async def refusal_of(issuer: LocalLink, params: AnswerSubmit) -> str:
    with pytest.raises(Refused) as refusal:
        await issuer.call("answer_submit", params, Done)
    return refusal.value.code


def allotment(first: Answer, whole: Package, places: Sequence[int], key: PrivateKey = BUSINESS[ISSUER]) -> Answer:
    confirmations = confirmations_of(whole.applications[place] for place in places)
    return make_answer(
        key, CHAIN_ID, whole, confirmations, previous=first.outcome_root, round_number=1, places=[*places]
    )


async def test_what_does_not_hold_is_dropped_with_an_alarm(tmp_path: Path) -> None:
    good = package(*ORDERS)
    changed = msgspec.structs.replace(ORDERS[0], amount=1)
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        deliver(
            found,
            package(*ORDERS, key=BUSINESS[OTHER]),
            msgspec.structs.replace(good, applications=[changed, ORDERS[1]]),
            msgspec.structs.replace(good, salts=good.salts[:1]),
            package(*ORDERS, bank="bank-b", number=2),
            Refusal(good.root, "product_closed", ""),
            answer_to(good),
            package(application(1), application(2, serial=application(1).serial)),
        )
        found.wire.sides[ISSUER].deliver(CHANNEL_NAME, b"\x93nothing")
        expected = ["bad_signature", "bad_root", "malformed", "wrong_channel", "unexpected_message", "unknown_package"]
        assert await alarms(issuer, 8) == [*expected, "malformed", "malformed"]
        assert await arrived(issuer, wait_ms=0) == []
        deliver(found, good)
        assert await arrived(issuer) == [good.root]
        assert found.wire.posted == []


async def test_what_can_never_be_taken_is_refused_as_a_whole(tmp_path: Path) -> None:
    foreign = package(application(1, interface=OTHER_INTERFACE))
    mixed = package(application(1), application(2, interface=OTHER_INTERFACE), number=2)
    unknown = package(application(1, interface="NOBODY"), number=3)
    old = package(application(1), number=4, epoch=2)
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        deliver(found, foreign, mixed, unknown, old)
        refusals = [message for _, message in await sent(found, 4)]
        codes = [message.code for message in refusals if isinstance(message, Refusal)]
        assert codes == ["wrong_interface", "wrong_interface", "wrong_interface", "channel_revoked"]
        assert await arrived(issuer, wait_ms=0) == []
        assert await refusal_of(issuer, submit_of(answer_to(foreign))) == "package_refused"
        # The same once more is refused the same.
        deliver(found, foreign, Question(foreign.root, is_lost=False))
        again = await sent(found, 6)
        assert [message for _, message in again[4:]] == [refusals[0], refusals[0]]
        assert len({name for name, _ in again}) == 6
        found.clock.time_ms += 3_600_000
        deliver(found, package(application(1), number=5))
        (*_, (_, expired)) = await sent(found, 7)
        assert isinstance(expired, Refusal)
        assert expired.code == "channel_expired"


async def test_one_answer_counts_and_goes_out_again_to_who_asks(tmp_path: Path) -> None:
    orders = [application(1), application(2, code="020"), application(3, code="020")]
    whole = package(*orders)
    open_places = confirmations_of(orders[:1]) + confirmations_of(orders[1:], is_final=False)
    first = make_answer(BUSINESS[ISSUER], CHAIN_ID, whole, open_places, previous=bytes(32))
    other = answer_to(whole)
    second = allotment(first, whole, [1, 2])
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        assert await refusal_of(issuer, submit_of(first)) == "unknown_package"
        deliver(found, whole, whole)
        assert await arrived(issuer) == [whole.root]
        assert await refusal_of(issuer, submit_of(second)) == "round_missing"
        assert await refusal_of(issuer, submit_of(answer_to(whole, key=BUSINESS[OTHER]))) == "bad_signature"
        assert await refusal_of(issuer, msgspec.structs.replace(submit_of(first), bank="bank-b")) == "unknown_package"
        placed = msgspec.structs.replace(submit_of(first), places=[0])
        assert await refusal_of(issuer, placed) == "malformed"
        await issuer.call("answer_submit", submit_of(first), Done)
        await issuer.call("answer_submit", submit_of(first), Done)
        assert await refusal_of(issuer, submit_of(other)) == "answer_exists"
        assert await refusal_of(issuer, submit_of(allotment(first, whole, [1]))) == "bad_places"
        await issuer.call("answer_submit", submit_of(second), Done)
        root = whole.root.hex()
        assert await sent(found, 2) == [(f"{root}/0", first), (f"{root}/1", second)]
        deliver(found, whole, Question(whole.root, is_lost=False), Question(whole.root, is_lost=True))
        again = await sent(found, 9)
        assert [message for _, message in again[2:]] == [first, second, first, second, whole, first, second]
        assert len({name for name, _ in again}) == 9
        assert await arrived(issuer, wait_ms=0) == [whole.root]


async def test_a_question_about_a_lost_package_is_asked_back_and_its_answer_taken_back(tmp_path: Path) -> None:
    whole = package(*ORDERS)
    answer = answer_to(whole)
    async with world(tmp_path) as found, found.gateway(ISSUER, MemoryStore()) as issuer:
        deliver(found, Question(whole.root, is_lost=False), Question(whole.root, is_lost=True))
        ((_, asked),) = await sent(found, 1)
        assert asked == Question(whole.root, is_lost=True)
        deliver(found, whole)
        assert await arrived(issuer) == [whole.root]
        deliver(found, answer_to(whole, key=BUSINESS[OTHER]), answer, answer)
        assert await alarms(issuer, 1) == ["bad_signature"]
        state = await until_answered(issuer, whole.root)
        assert [item.outcome_root for item in state.rounds] == [answer.outcome_root]
        await issuer.call("answer_submit", submit_of(answer), Done)
        different = make_answer(
            BUSINESS[ISSUER],
            CHAIN_ID,
            whole,
            answer.confirmations[:1] + confirmations_of(ORDERS[1:], is_final=False),
            previous=answer.previous,
        )
        deliver(found, different)
        assert await alarms(issuer, 2) == ["bad_signature", "contradicted"]
        assert len(found.wire.posted) == 1


async def test_what_the_chain_says_was_answered_does_not_go_to_the_issuer_end_again(tmp_path: Path) -> None:
    whole = package(*ORDERS)
    answer = answer_to(whole)
    async with world(tmp_path) as found, found.gateway(ISSUER, MemoryStore()) as issuer:
        await found.call(
            BANK,
            "anchor",
            contract="evidence",
            bank=BANK,
            issuer=ISSUER,
            epoch=1,
            root=whole.root,
            count=len(ORDERS),
            orders_signature=whole.signature,
            round_number=0,
            outcome_root=answer.outcome_root,
            previous=answer.previous,
            answer_signature=answer.signature,
        )
        deliver(found, whole)
        ((_, asked),) = await sent(found, 1)
        assert asked == Question(whole.root, is_lost=True)
        deliver(found, whole, answer)
        await until_answered(issuer, whole.root)
        assert await arrived(issuer, wait_ms=0) == []


async def until_answered(issuer: LocalLink, root: bytes) -> PackageState:
    with trio.fail_after(20):
        while (state := await issuer.call("package", RootQuery(root), PackageState)).state != "answered":
            await trio.testing.wait_all_tasks_blocked(0.01)
    return state
