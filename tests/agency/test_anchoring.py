"""Anchoring: few transactions for many packages, each found on the chain; the size of what bank and issuer compute."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from consensus.ledger.cooperation import answer_hash, orders_hash
from consensus.ledger.keys import Purpose
from services.agency.anchoring import RETRY_MS
from services.agency.interfaces import PackageState, RootQuery, Status, StatusQuery
from services.agency.packages import Answer
from tests.agency.test_gateway import until, until_state
from tests.agency.world import (
    BANK,
    BUSINESS,
    ISSUER,
    OTHER,
    MemoryStore,
    World,
    answer_next,
    application,
    outcomes,
    signer,
    submit,
    world,
)


async def anchor_by_hand(found: World, who: str, answer: Answer, *, previous: bytes = b"", count: int = 0) -> Any:
    """Let a party anchor an answer with both signatures, made for another number or answer before where given."""
    chain_id, previous, count = found.client.chain_id, previous or answer.previous, count or len(answer.confirmations)
    orders = orders_hash(BANK, ISSUER, 1, answer.root, count)
    signed = answer_hash(BANK, ISSUER, 1, answer.root, 0, answer.outcome_root, previous)
    return await found.call(
        who,
        "anchor",
        "evidence",
        bank=BANK,
        issuer=ISSUER,
        epoch=1,
        root=answer.root,
        count=count,
        orders_signature=BUSINESS[BANK].sign(Purpose.ORDERS, chain_id, orders),
        round_number=0,
        outcome_root=answer.outcome_root,
        previous=previous,
        answer_signature=BUSINESS[ISSUER].sign(Purpose.ANSWER, chain_id, signed),
    )


async def test_packages_that_wait_together_share_a_transaction(tmp_path: Path) -> None:
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        # The chain stands still while the first anchor is under way: the others gather behind it.
        submitted = await submit(bank, *(application(number) for number in range(3 * 1_024 + 5)))
        assert [len(package.serials) for package in submitted.packages] == [1_024, 1_024, 1_024, 5]
        found.node.is_deciding = False
        place = 0
        for _ in submitted.packages:
            place, _ = await answer_next(issuer, place)
        assert [item.kind for item in await outcomes(bank, 4)] == ["answered"] * 4
        found.node.is_deciding = True
        found.node.wake()
        anchored = [item for item in await outcomes(bank, 4, after=4) if item.kind == "anchored"]
        assert {item.root for item in anchored} == {package.root for package in submitted.packages}
        assert len({item.transaction_id for item in anchored}) <= 2
        for package in submitted.packages:
            state = await bank.call("package", RootQuery(package.root), PackageState)
            assert state.rounds[0].status == "MUTUAL"


async def test_a_package_of_a_thousand_orders_costs_a_bank_little(tmp_path: Path) -> None:
    """Both gateways together, and the test as issuer end, take far less than the bank alone may."""
    orders = [application(number) for number in range(1_006)]
    async with world(tmp_path) as found, found.gateway(BANK) as bank, found.gateway(ISSUER) as issuer:
        with trio.fail_after(30):
            before_s = time.process_time()
            await submit(bank, *orders)
            await answer_next(issuer)
            assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]
            assert time.process_time() - before_s < 2.0


async def test_what_the_other_side_anchored_has_its_block_and_no_transaction_of_ours(tmp_path: Path) -> None:
    store = MemoryStore()
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        async with found.gateway(BANK, store) as bank:
            await submit(bank, application(1))
            await until(lambda: is_posted(found))
        _, answer = await answer_next(issuer)
        theirs = await anchor_by_hand(found, ISSUER, answer)
        async with found.gateway(BANK, store) as bank:
            _, anchored = await outcomes(bank, 2)
            assert (anchored.kind, anchored.height, anchored.transaction_id) == ("anchored", theirs["height"], b"")


async def is_posted(found: World) -> bool:
    return bool(found.wire.posted)


async def test_no_anchor_is_given_up_that_may_succeed_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway was given the account of another organisation; once that is mended, everything is anchored."""
    store = MemoryStore()
    async with world(tmp_path) as found, found.gateway(ISSUER) as issuer:
        with monkeypatch.context() as patch:
            patch.setattr(found, "settings", lambda name: replace(World.settings(found, name), account=signer(OTHER)))
            async with found.gateway(BANK, store) as bank:
                root = (await submit(bank, application(1))).packages[0].root
                await answer_next(issuer)
                await until_state(bank, root, "answered", "not_party")
        found.clock.time_ms += RETRY_MS
        async with found.gateway(BANK, store) as bank:
            assert [item.kind for item in await outcomes(bank, 2)] == ["answered", "anchored"]
            state = await bank.call("package", RootQuery(root), PackageState)
            assert [item.status for item in state.rounds] == ["MUTUAL"]
            assert len((await bank.call("status", StatusQuery(), Status)).alarms) == 1
