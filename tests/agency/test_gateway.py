"""Two gateways over real sockets and a real chain: packages out, answers back, anchors, and what may go wrong."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from consensus.ledger.cooperation import FIRST_ANSWER
from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from services.agency.interfaces import (
    ChannelQuery,
    Done,
    ExportPage,
    ExportQuery,
    Import,
    Imported,
    Next,
    OutcomesNext,
    PackagesNext,
    PackageState,
    ProductQuery,
    ProductTerms,
    Recovered,
    RootQuery,
    Status,
    StatusQuery,
)
from services.agency.packages import Answer, Message, Question, answer_id, make_answer, message_codec
from services.agency.sales_node import SalesNode
from services.client.errors import Refused
from services.local.link import LocalLink
from tests.agency.world import (
    BANK,
    BUSINESS,
    CHANNEL,
    ISSUER,
    NODES,
    OTHER,
    OTHER_INTERFACE,
    PRODUCT,
    MemoryStore,
    World,
    answer_next,
    answer_to,
    application,
    confirmations_of,
    outcomes,
    package_of,
    submit,
    submit_of,
    world,
)
from tests.rights.server_world import pause

ORDERS = [application(number) for number in range(12)]
FULL_PACKAGE = [application(number) for number in range(1_024)]


@contextmanager
def refused(code: str) -> Iterator[None]:
    """Expect a refusal with this code."""
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.code == code


async def state_of(gateway: LocalLink, root: bytes) -> PackageState:
    return await gateway.call("package", RootQuery(root), PackageState)


async def alarms_of(gateway: LocalLink) -> list[str]:
    status = await gateway.call("status", StatusQuery(), Status)
    return [alarm.split()[0] for alarm in status.alarms]


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask other programs until they say so; nothing here is told of it."""
    with trio.fail_after(20):
        while not await is_so():
            await pause()


async def until_alarm(gateway: LocalLink, code: str) -> None:
    async def is_raised() -> bool:
        return code in await alarms_of(gateway)

    await until(is_raised)


async def until_state(gateway: LocalLink, root: bytes, state: str, status: str = "") -> PackageState:
    """Return how a package stands once it stands so, and its first round too."""

    async def is_so() -> bool:
        try:
            found = await state_of(gateway, root)
        except Refused:
            return False
        return found.state == state and (not status or (bool(found.rounds) and found.rounds[0].status == status))

    await until(is_so)
    return await state_of(gateway, root)


async def until_held(found: World) -> None:
    async def is_held() -> bool:
        return bool(found.wire.held)

    await until(is_held)


async def anchors_on_chain(found: World, root: bytes) -> list[dict[str, object]]:
    arguments = {"bank": BANK, "issuer": ISSUER, "root": root, "round_number": 0}
    record = await found.client.query("evidence", "anchor_of", arguments)  # type: ignore[arg-type]
    return [] if record is None else record["anchors"]  # type: ignore[index,call-overload,return-value]


async def log_count(found: World) -> int:
    log = await found.client.query("evidence", "log", {"bank": BANK, "issuer": ISSUER})
    return log["count"]  # type: ignore[index,call-overload,return-value]


def sent_messages(found: World, sender: str) -> list[Message]:
    return [message_codec.decode_untrusted(payload) for name, _, payload in found.wire.posted if name == sender]


async def test_a_batch_travels_as_one_package_an_interface_and_comes_back_anchored(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        submitted = await submit(
            bank, *ORDERS, application(50, interface=OTHER_INTERFACE), application(51, interface="X"), ORDERS[0]
        )
        assert [(item.serial, item.code) for item in submitted.refused] == [
            (ORDERS[0].serial, "duplicate_serial"),
            ("A00000050", "no_channel"),
            ("A00000051", "unknown_interface"),
        ]
        (package,) = submitted.packages
        assert package.serials == [item.serial for item in ORDERS]
        _, answer = await answer_next(issuer)
        answered, anchored = await outcomes(bank, 2)
        assert (answered.kind, answered.root, answered.confirmations) == (
            "answered",
            package.root,
            answer.confirmations,
        )
        assert (anchored.kind, anchored.root) == ("anchored", package.root)
        state = await state_of(bank, package.root)
        assert (state.state, state.is_bank, state.count) == ("answered", True, len(ORDERS))
        assert [(item.status, item.transaction_id) for item in state.rounds] == [("MUTUAL", anchored.transaction_id)]
        (anchor,) = await anchors_on_chain(found, package.root)
        assert anchor["outcomeRoot"] == answer.outcome_root
        assert [name for name, _, _ in found.wire.posted] == [BANK, ISSUER]


async def test_the_same_batch_again_has_the_first_result_also_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        found.wire.is_holding = True
        async with found.gateway(BANK) as bank:
            first = await submit(bank, *ORDERS)
            assert await submit(bank, *ORDERS) == first
        async with found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
            assert await submit(bank, *ORDERS[:3]) == first
            found.wire.release()
            await answer_next(issuer)
            assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]
        assert len(sent_messages(found, BANK)) == 1
        assert await log_count(found) == 1


async def test_terms_and_product_come_through_the_own_node(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank:
        query = ProductQuery(PRODUCT, BANK)
        assert (await bank.call("product", query, ProductTerms)).terms is None
        await found.agree()
        first = await bank.call("product", query, ProductTerms)
        assert first.terms is not None
        assert (first.interface, first.nav, first.terms.version, first.terms_before) == ("C-FUNDS", 10_000, 1, None)
        await found.agree(version=2, ageMin=20)
        second = await bank.call("product", query, ProductTerms)
        assert second.terms is not None
        assert (second.terms.version, second.terms.age_min, second.terms_before) == (2, 20, first.terms)
        for product in ("999999", "", "no product's code"):
            with refused("unknown_product"):
                await bank.call("product", ProductQuery(product, BANK), ProductTerms)


async def test_nothing_is_sold_through_a_revoked_channel_and_what_is_under_way_is_told(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank:
        root = (await submit(bank, ORDERS[0])).packages[0].root
        found.wire.sides[BANK].deliver(f"{BANK}/{ISSUER}", b"", message_id=root.hex(), code="channel_closed")
        (refused,) = await outcomes(bank, 1)
        assert (refused.kind, refused.root, refused.code) == ("refused", root, "channel_closed")
        found.wire.refusal = "channel_revoked"  # before the chain says so: the node may yet change its mind
        root = (await submit(bank, ORDERS[1], batch="batch-2")).packages[0].root
        assert (await bank.call("outcomes_next", Next(1, 100, 1), OutcomesNext)).items == []
        await found.revoke()
        (refused,) = await outcomes(bank, 1, after=refused.position)
        assert (refused.kind, refused.root, refused.code) == ("refused", root, "channel_revoked")
        assert [item.code for item in (await submit(bank, ORDERS[2], batch="batch-3")).refused] == ["channel_revoked"]


async def test_a_full_outbox_keeps_packages_waiting_and_loses_none(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        found.wire.refusal = "outbox_full"
        for number in range(3):
            await submit(bank, ORDERS[number], batch=f"batch-{number}")
        assert found.wire.posted == []
        found.wire.refusal = ""
        place = 0
        for number in range(3):
            place, answer = await answer_next(issuer, place)
            assert answer.confirmations[0].serial == ORDERS[number].serial
        assert {item.kind for item in await outcomes(bank, 6)} == {"answered", "anchored"}


async def test_forged_and_misplaced_answers_are_dropped_with_an_alarm(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS)).packages[0].root
        page = await issuer.call("packages_next", Next(0, 10_000, 1), PackagesNext)
        package = package_of(page.items[0])
        good, inbox = answer_to(package), found.wire.sides[BANK]
        for channel, answer, code in (
            (f"{BANK}/{ISSUER}", answer_to(package, key=BUSINESS[OTHER]), "bad_signature"),
            (f"{BANK}/{OTHER}", good, "wrong_channel"),
            (f"{BANK}/{ISSUER}", msgspec.structs.replace(good, outcome_root=bytes(32)), "bad_root"),
            (f"{BANK}/{ISSUER}", msgspec.structs.replace(good, epoch=2), "wrong_package"),
            (f"{BANK}/{ISSUER}", msgspec.structs.replace(good, root=bytes(32)), "unknown_package"),
        ):
            inbox.deliver(channel, message_codec.encode(answer))
            await until_alarm(bank, code)
        inbox.deliver(f"{BANK}/{ISSUER}", b"no message")
        await until_alarm(bank, "malformed")
        assert (await state_of(bank, root)).state == "sent"
        await issuer.call("answer_submit", submit_of(good), Done)
        assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]


async def test_an_answer_is_about_the_places_that_it_may_be_about(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS[:3])).packages[0].root
        page = await issuer.call("packages_next", Next(0, 10_000, 1), PackagesNext)
        package, chain_id = package_of(page.items[0]), found.client.chain_id
        confirmed = confirmations_of(package.applications, is_final=False)
        opened = [*confirmations_of(package.applications[:2]), confirmed[2]]
        first = make_answer(BUSINESS[ISSUER], chain_id, package, opened, previous=FIRST_ANSWER)
        inbox = found.wire.sides[BANK]

        def second(*places: int) -> Answer:
            chosen = [msgspec.structs.replace(confirmed[place], is_final=True) for place in places]
            signed = {"previous": answer_id(first), "round_number": 1, "places": places}
            return make_answer(BUSINESS[ISSUER], chain_id, package, chosen, **signed)  # type: ignore[arg-type]

        for before, answer, code in (
            (None, msgspec.structs.replace(first, places=[0]), "malformed"),
            (None, second(2), "round_missing"),
            (first, second(0), "bad_places"),
            (None, msgspec.structs.replace(second(0, 1, 2), places=[]), "malformed"),
        ):
            for message in (before, answer):
                if message is not None:
                    inbox.deliver(f"{BANK}/{ISSUER}", message_codec.encode(message))
            await until_alarm(bank, code)
        inbox.deliver(f"{BANK}/{ISSUER}", message_codec.encode(second(2)))
        news = {(item.kind, item.round_number, *item.places) for item in await outcomes(bank, 4)}
        assert news == {("answered", 0), ("anchored", 0), ("allotted", 1, 2), ("anchored", 1)}
        assert len((await state_of(bank, root)).rounds) == 2


async def test_an_older_store_put_back_counts_on_above_what_the_ends_have_seen(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        store = MemoryStore()
        async with found.gateway(BANK, store) as bank:
            await submit(bank, *ORDERS[:1])
            position, _ = await answer_next(issuer)
            await outcomes(bank, 2)
            older = dict(store.data)
            await submit(bank, *ORDERS[1:2], batch="second")
            position, _ = await answer_next(issuer, position)
            seen = (await outcomes(bank, 4))[-1].position
        store.data = older
        async with found.gateway(BANK, store, first_position=1_000) as bank:
            assert (await bank.call("outcomes_next", Next(seen, 0), OutcomesNext)).items == []
            root = (await submit(bank, *ORDERS[2:3], batch="third")).packages[0].root
            await answer_next(issuer, position)
            page = await bank.call("outcomes_next", Next(seen, 10_000, 1), OutcomesNext)
            assert [(item.kind, item.root) for item in page.items] == [("answered", root)]


async def test_a_position_that_none_can_be_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank:
        for method, kind in (("outcomes_next", OutcomesNext), ("packages_next", PackagesNext)):
            with refused("invalid_params"):
                await bank.call(method, msgspec.structs.replace(Next(0), after=2**64 - 1), kind)


async def test_two_answers_to_one_package_are_both_evidence_and_the_first_counts(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS)).packages[0].root
        page = await issuer.call("packages_next", Next(0, 10_000, 1), PackagesNext)
        package = package_of(page.items[0])
        _, first = await answer_next(issuer)
        assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]
        found.wire.sides[BANK].deliver(f"{BANK}/{ISSUER}", message_codec.encode(first))
        confirmed = [msgspec.structs.replace(item, volume=item.volume + 1) for item in first.confirmations]
        other = make_answer(BUSINESS[ISSUER], found.client.chain_id, package, confirmed, previous=FIRST_ANSWER)
        found.wire.sides[BANK].deliver(f"{BANK}/{ISSUER}", message_codec.encode(other))
        await until_alarm(bank, "contradicted")

        async def is_anchored() -> bool:
            return len(await anchors_on_chain(found, root)) == 2

        await until(is_anchored)
        assert all(anchor["isContradicted"] for anchor in await anchors_on_chain(found, root))
        news = await bank.call("outcomes_next", Next(0, 0, 8), OutcomesNext)
        assert [item.kind for item in news.items] == ["answered", "anchored"]
        assert news.items[0].confirmations == first.confirmations


async def test_an_issuer_s_new_key_is_read_from_the_chain(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        await submit(bank, ORDERS[0])
        await answer_next(issuer)
        await outcomes(bank, 2)
        await submit(bank, ORDERS[1], batch="batch-2")
        page = await issuer.call("packages_next", Next(1, 10_000, 1), PackagesNext)
        key = PrivateKey.from_secret(7_777)
        keys = {"business_key": key.public.compressed, "channel_key": CHANNEL[ISSUER].public.compressed}
        await found.call(ISSUER, "register_party", node=NODES[ISSUER], **keys)
        answer = answer_to(package_of(page.items[0]), key=key)
        found.wire.sides[BANK].deliver(f"{BANK}/{ISSUER}", message_codec.encode(answer))
        assert [item.kind for item in await outcomes(bank, 2, after=2)] == ["answered", "anchored"]


async def test_a_late_answer_is_asked_for_and_a_package_never_assumed_to_have_failed(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS)).packages[0].root
        page = await issuer.call("packages_next", Next(0, 10_000, 1), PackagesNext)
        found.wire.is_holding = True
        await issuer.call("answer_submit", submit_of(answer_to(package_of(page.items[0]))), Done)
        await until_held(found)
        found.wire.held.clear()
        found.wire.is_holding = False
        assert (await state_of(bank, root)).state == "sent"
        found.wire.is_connected = False  # whoever cannot be reached is not asked
        found.clock.time_ms += 31_000
        await SalesNode(found.gateways[BANK]).ask_late()
        assert not questions_of(found)
        found.wire.is_connected = True
        assert (await outcomes(bank, 1))[0].kind == "answered"
        assert questions_of(found) == [Question(root, is_lost=False)]


def questions_of(found: World) -> list[Message]:
    return [item for item in sent_messages(found, BANK) if isinstance(item, Question)]


async def test_the_issuer_anchors_what_its_bank_has_not_and_the_bank_s_own_adds_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        found.wire.is_holding = True
        async with found.gateway(BANK) as bank:
            root = (await submit(bank, *ORDERS)).packages[0].root
            await until_held(found)
        found.wire.release()
        await answer_next(issuer)
        assert await anchors_on_chain(found, root) == []
        found.clock.time_ms += 61_000
        state = await until_state(issuer, root, "answered", "MUTUAL")
        assert await log_count(found) == 1
        async with found.gateway(BANK) as bank:
            answered, anchored = await outcomes(bank, 2)
            assert (answered.kind, anchored.kind) == ("answered", "anchored")
            assert anchored.height == state.rounds[0].height
        assert await log_count(found) == 1


async def test_nobody_can_veto_evidence_a_claim_stands_until_both_signatures_do(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        root = (await submit(bank, *ORDERS)).packages[0].root
        state = await bank.call("claim", RootQuery(root), PackageState)
        assert [(item.status, item.outcome_root) for item in state.rounds] == [("CLAIMED", b"")]
        await issuer.call("packages_next", Next(0, 10_000, 1), PackagesNext)
        with refused("nothing_to_claim"):
            await issuer.call("claim", RootQuery(root), PackageState)
        await answer_next(issuer)
        await outcomes(bank, 2)
        assert [anchor["status"] for anchor in await anchors_on_chain(found, root)] == ["MUTUAL"]
        with refused("already_anchored"):
            await bank.call("claim", RootQuery(root), PackageState)
        claimed = await issuer.call("claim", RootQuery(root), PackageState)
        assert [item.status for item in claimed.rounds] == ["MUTUAL"]


@pytest.mark.parametrize("loser", [BANK, ISSUER])
async def test_who_lost_its_payload_gets_it_again_and_it_is_checked(tmp_path: Path, loser: str) -> None:
    keeper = ISSUER if loser == BANK else BANK
    async with world(tmp_path) as found, found.gateway(keeper) as kept:
        async with found.gateway(loser, MemoryStore()) as lost:
            bank, issuer = (lost, kept) if loser == BANK else (kept, lost)
            root = (await submit(bank, *FULL_PACKAGE)).packages[0].root
            _, answer = await answer_next(issuer)
            await outcomes(bank, 2)
        async with found.gateway(loser, MemoryStore()) as lost:
            with refused("unknown_package"):
                await state_of(lost, root)
            asked = await lost.call("recover", ChannelQuery(BANK, ISSUER), Recovered)
            assert asked == Recovered(anchored=1, missing=1, asked=1)
            state = await until_state(lost, root, "answered")
            assert [item.outcome_root for item in state.rounds] == [answer.outcome_root]
            pages = [await side.call("export", ExportQuery(BANK, ISSUER), ExportPage) for side in (lost, kept)]
            assert pages[0] == pages[1]
            assert len(pages[0].messages) == 2
        assert await log_count(found) == 1


async def test_a_backup_is_taken_back_and_a_forged_one_is_not(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        async with found.gateway(BANK) as bank:
            root = (await submit(bank, *ORDERS)).packages[0].root
            await answer_next(issuer)
            await outcomes(bank, 2)
            page = await bank.call("export", ExportQuery(BANK, ISSUER), ExportPage)
        async with found.gateway(BANK, MemoryStore()) as bank:
            package = message_codec.decode_untrusted(page.messages[0])
            forged = msgspec.structs.replace(package, signature=bytes(63) + b"\1")  # type: ignore[type-var]
            with refused("bad_signature"):
                await bank.call("import", Import(BANK, ISSUER, [message_codec.encode(forged)]), Imported)
            with refused("wrong_package"):
                await bank.call("import", Import(BANK, ISSUER, page.messages[1:]), Imported)
            taken = await bank.call("import", Import(BANK, ISSUER, page.messages), Imported)
            assert taken.packages == 1
            await until_state(bank, root, "answered", "MUTUAL")


async def test_a_node_of_somebody_else_is_not_talked_to(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        (tmp_path / BANK / "owner.sock").unlink()
        (tmp_path / BANK / "owner.sock").symlink_to(tmp_path / OTHER / "owner.sock")
        with pytest.RaisesGroup(pytest.RaisesExc(LocalError, match="is a node of issuer-f"), flatten_subgroups=True):
            async with found.gateway(BANK):
                await trio.sleep_forever()


async def test_nothing_is_signed_by_a_key_that_nobody_knows(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank:
        for number in range(2):
            key = PrivateKey.from_secret(7_000 + number).public.compressed
            keys = {"business_key": key, "channel_key": CHANNEL[BANK].public.compressed}
            await found.call(BANK, "register_party", node=NODES[BANK], **keys)
        # A key that was replaced counts for a while; one that never was there does not.
        assert (await submit(bank, ORDERS[0])).refused == []
    stranger = PrivateKey.from_secret(7_777)
    async with world(tmp_path / "other") as found, found.gateway(BANK, business=stranger) as bank:
        assert [item.code for item in (await submit(bank, ORDERS[0])).refused] == ["key_not_registered"]


async def test_an_issuer_end_that_went_back_to_an_older_state_is_noticed(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        place, answers = 0, list[Answer]()
        for number in range(3):
            await submit(bank, ORDERS[number], batch=f"batch-{number}")
            page = await issuer.call("packages_next", Next(place, 10_000, 1), PackagesNext)
            previous = answer_id(answers[-1]) if number == 1 else FIRST_ANSWER
            place = page.items[0].position
            answers.append(answer_to(package_of(page.items[0]), previous=previous))
            await issuer.call("answer_submit", submit_of(answers[-1]), Done)
            await outcomes(bank, 2, after=2 * number)
            assert await alarms_of(bank) == ([] if number < 2 else ["answers_forked"])
