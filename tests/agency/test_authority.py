"""The permission desk, on a real chain: what it opens, refuses and enacts; that it may come and go."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.keys import PrivateKey
from services.agency import authority, clerk
from services.agency.authority import AuthoritySettings, enact, serve
from services.agency.clerk import ApplicationRecord
from services.agency.credentials import Conditions, made_terms, new_agreement, sign_agreement
from services.client.client import Client
from services.client.errors import Refused
from services.client.events import Events
from tests.agency.world import (
    BANK,
    BUSINESS,
    CHANNEL,
    CONSORTIUM,
    GENESIS_TIME_MS,
    ISSUER,
    NODES,
    NOW_MS,
    OTHER,
    World,
    signer,
    world,
)

WAIT_MS = 20_000
HOUR_MS = 3_600_000


@asynccontextmanager
async def desk(found: World, name: str = "authority", **changes: object) -> AsyncIterator[None]:
    """Run a permission desk for the time of the block."""
    settings = AuthoritySettings(
        run=found.folder / name / "run",
        genesis=CONSORTIUM.genesis,
        nodes=(found.node.url,),
        account=signer("keeper"),
        **changes,  # type: ignore[arg-type]
    )
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve(settings, stopping, now_ms=lambda: NOW_MS, task_status=task_status)
        )
        yield
        stopping.set()


async def apply(client: Client, issuers: Iterable[str], number: str = "7", *, from_ms: int = GENESIS_TIME_MS) -> bytes:
    """Let the bank apply with an agreement that all have signed."""
    agreement = new_agreement(
        client.chain_id,
        number=number,
        bank=BANK,
        issuers=issuers,
        document=sha256(b"paper").digest(),
        valid_from_ms=from_ms,
        valid_until_ms=NOW_MS + HOUR_MS,
    )
    for party in agreement.parties:
        agreement = sign_agreement(agreement, party, BUSINESS[party])
    (await client.call_many(signer(BANK), [agreement.call()])).check()
    return agreement.id()


async def propose(found: World, subject: str = "product:000198") -> clerk.ProposalRecord:
    """Let the issuer propose terms and the bank accept them."""
    terms = made_terms(bank=BANK, issuer=ISSUER, subject=subject, terms=Conditions(kinds=["024", "022"]))
    client = found.client
    (await client.call_many(signer(ISSUER), [terms.call(1, BUSINESS[ISSUER], client.chain_id)])).check()
    proposal = await clerk.proposal(client, terms.id(1))
    (await client.call_many(signer(BANK), [clerk.accept_call(proposal, BUSINESS[BANK], client.chain_id)])).check()
    return proposal


async def decided(client: Client, application: bytes) -> ApplicationRecord:
    return await clerk.await_decision(client, application, timeout_ms=WAIT_MS)


async def decided_now(client: Client, application: bytes) -> ApplicationRecord:
    return await clerk.await_decision(client, application, timeout_ms=0)


async def test_what_waited_while_it_was_away_is_opened_and_what_comes_too(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        first = await apply(found.client, [OTHER], "7")
        assert (await decided_now(found.client, first)).status == "PENDING"
        async with desk(found):
            assert (await decided(found.client, first)).status == "OPENED"
            # It was heard of, not found by looking now and then.
            with trio.fail_after(authority.LOOK_MS / 2000):
                assert (await decided(found.client, await apply(found.client, [OTHER], "8"))).status == "OPENED"
        opened = await clerk.channel(found.client, BANK, OTHER)
        assert opened is not None
        assert (opened.epoch, opened.status) == (1, "OPEN")


async def test_it_refuses_whom_it_is_told_to(tmp_path: Path) -> None:
    async with world(tmp_path) as found, desk(found, refuse=frozenset({OTHER})):
        refused = await decided(found.client, await apply(found.client, [ISSUER, OTHER]))
        assert (refused.status, OTHER in refused.reason) == ("REFUSED", True)
        assert await clerk.channel(found.client, BANK, OTHER) is None
        assert (await decided(found.client, await apply(found.client, [ISSUER], "8"))).status == "OPENED"


async def test_a_manual_desk_enacts_terms_and_leaves_applications_to_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []
    monkeypatch.setattr(authority, "enact", lambda item: tried.append(item.proposal) or enact(item))
    async with world(tmp_path) as found:
        application = await apply(found.client, [OTHER])
        terms = made_terms(bank=BANK, issuer=ISSUER, subject="type:money-market", terms=Conditions(kinds=["022"]))
        half_signed = terms.call(1, BUSINESS[ISSUER], found.client.chain_id)
        (await found.client.call_many(signer(ISSUER), [half_signed])).check()
        async with desk(found, is_manual=True):
            proposal = await propose(found)
            assert await clerk.await_enacted(found.client, proposal, timeout_ms=WAIT_MS)
            assert (await decided_now(found.client, application)).status == "PENDING"
        assert set(tried) == {proposal.proposal}
        in_force = await clerk.terms_in_force(found.client, BANK, "000198")
        assert in_force is not None
        assert (in_force.kinds, in_force.version) == (["022", "024"], 1)


async def test_what_the_chain_will_never_open_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with world(tmp_path) as found:
        old = await apply(found.client, [ISSUER], from_ms=GENESIS_TIME_MS - HOUR_MS)
        await found.revoke()
        async with desk(found):
            refused = await decided(found.client, old)
            assert (refused.status, refused.reason) == ("REFUSED", "the channels cannot be opened: channel_revoked")
            again = await apply(found.client, [ISSUER], "8")
            assert (await decided(found.client, again)).status == "OPENED"
        opened = await clerk.channel(found.client, BANK, ISSUER)
        assert opened is not None
        assert opened.epoch == 2


async def test_two_desks_do_no_harm(tmp_path: Path) -> None:
    async with world(tmp_path) as found, desk(found, "one"), desk(found, "two"):
        applications = [await apply(found.client, [OTHER], str(number)) for number in range(6)]
        for application in applications:
            assert (await decided(found.client, application)).status == "OPENED"
        proposal = await propose(found)
        assert await clerk.await_enacted(found.client, proposal, timeout_ms=WAIT_MS)


async def test_more_than_a_page_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "PAGE", 2)
    monkeypatch.setattr(authority, "CALLS_MAX", 3)
    monkeypatch.setattr(authority, "_WAKING", frozenset())  # it looks once
    monkeypatch.setattr(authority, "LOOK_MS", 10 * WAIT_MS)
    async with world(tmp_path) as found:
        applications = [await apply(found.client, [OTHER], str(number)) for number in range(7)]
        async with desk(found):
            for application in applications:
                assert (await decided(found.client, application)).status == "OPENED"


async def test_it_outlives_a_node_that_refuses_to_tell_of_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error answer of the node ends neither the desk nor its listening."""
    refusals = [Refused("internal_error", "as the test wants"), PeerError("bad_answer", "as the test wants")]
    read_page = Events._read_page

    async def refusing(events: Events) -> None:
        if refusals:
            raise refusals.pop()
        await read_page(events)

    monkeypatch.setattr(Events, "_read_page", refusing)
    async with world(tmp_path) as found, desk(found):
        assert (await decided(found.client, await apply(found.client, [OTHER]))).status == "OPENED"
        assert (await decided(found.client, await apply(found.client, [OTHER], "8"))).status == "OPENED"
    assert not refusals


async def test_an_agreement_that_a_replaced_key_signed_is_known_to_hold(tmp_path: Path) -> None:
    """As the chain will judge it; a key that nobody registered is none."""
    async with world(tmp_path) as found:
        fresh = PrivateKey.from_secret(77)
        keys = {"business_key": fresh.public.compressed, "channel_key": CHANNEL[BANK].public.compressed}
        await found.call(BANK, "register_party", node=NODES[BANK], **keys)
        known = await clerk.business_keys(found.client, [BANK, ISSUER, "issuer-x"])
        assert known == {
            BANK: [fresh.public.compressed, BUSINESS[BANK].public.compressed],
            ISSUER: [BUSINESS[ISSUER].public.compressed],
            "issuer-x": [],
        }
