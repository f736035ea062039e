"""The agency system on real processes: killed at any moment of a package, and what changes while orders are sent."""

import shutil
import time
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest

from consensus.ledger.cooperation import FIRST_ANSWER
from consensus.ledger.transaction import make_call
from services.agency import clerk
from services.agency.credentials import Conditions, TermsFile, new_agreement, sign_agreement, sign_terms
from services.agency.interfaces import (
    ChannelQuery,
    Next,
    PackageArrived,
    PackagesNext,
    PackageState,
    Recovered,
    RootQuery,
)
from services.agency.orders import Code
from services.agency.packages import Package, make_answer, message_codec
from services.client.errors import Refused
from services.client.keystore import Signer
from services.client.owner import OwnerLink
from services.demo.agency_network import (
    BANK,
    BANK_GATEWAY,
    ISSUER,
    ISSUER_END,
    ISSUER_GATEWAY,
    OTHER,
    SALES,
)
from services.demo.agency_till import patiently
from services.local.link import LocalLink
from tests.network.agency_faults import die_in_turn
from tests.network.agency_system import BOUGHT, System, application, running_agency

pytestmark = [pytest.mark.network, pytest.mark.slow]

SUBJECT = "product:000198"


async def test_whatever_dies_in_the_middle_of_a_package_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    random = Random(7)
    async with running_agency(tmp_path / "net") as system:
        victims = [[ISSUER_END], [ISSUER_GATEWAY], [ISSUER], [BANK_GATEWAY, SALES], [BANK]]
        died = await die_in_turn(system, victims, random)
        assert sorted(died) == sorted(name for group in victims for name in group)
        assert await system.faults() == []


async def test_what_changes_while_orders_are_in_flight_has_a_typed_end(tmp_path: Path) -> None:
    async with running_agency(tmp_path / "net") as system:
        await forged_answer(system)
        await terms_change(system)
        await revocation(system)
        await lost_payload(system)
        alarms = (await system.gateway_status(ISSUER_GATEWAY)).alarms
        assert alarms == []


async def forged_answer(system: System) -> None:
    """Another issuer's answer comes out of the right node: it is dropped with an alarm, and the right one counts."""
    package = await held_package(system, "forged")
    forger = system.trial.key(f"{OTHER}-business")
    async with LocalLink(system.trial.socket(ISSUER_GATEWAY)) as link:
        earlier = await patiently(lambda: link.call("package", RootQuery(package.root), PackageState))
    assert earlier.state == "received"
    record = (await system.till.records("accounts"))[0].confirmation
    assert record is not None
    confirmations = [
        type(record)(
            *(item.serial, "122", f"F{at}", item.ta_account, "0000", "", item.amount, item.amount * 9, 10_000, 0),
            *(20261122, True),
        )
        for at, item in enumerate(package.applications)
    ]
    answer = make_answer(forger, system.client.chain_id, package, confirmations, previous=FIRST_ANSWER)
    async with OwnerLink(system.trial.network.node(ISSUER).run / "owner.sock") as owner:
        await owner.send(f"{BANK}/{ISSUER}", "forged", message_codec.encode(answer))

    async def is_alarmed() -> bool:
        return any("bad_signature" in alarm for alarm in (await system.gateway_status(BANK_GATEWAY)).alarms)

    await system.until(is_alarmed)
    assert await system.state_of("forged-0") == ("PENDING", "")
    await system.start(ISSUER_END)
    await system.till.until("forged")
    assert await system.state_of("forged-0") == ("CONFIRMED", "")


async def terms_change(system: System) -> None:
    """Terms are replaced while an order that was judged by them waits at the issuer: it is rejected as stale."""
    await held_package(system, "stale")
    client, chain_id = system.client, system.client.chain_id
    version = 1 + await clerk.newest_version(client, BANK, ISSUER, SUBJECT)
    terms = TermsFile(bank=BANK, issuer=ISSUER, subject=SUBJECT, terms=Conditions(kinds=["022", "024"]))
    keys = {name: system.trial.key(f"{name}-business") for name in (BANK, ISSUER)}
    (await client.call_many(account(system, BANK), [terms.call(version, keys[BANK], chain_id)])).check()
    proposal = terms.id(version)
    signature = sign_terms(proposal, keys[ISSUER], chain_id)
    arguments = {"proposal": proposal, "signature": signature}
    (await client.call(account(system, ISSUER), "cooperation", "accept_terms", arguments)).check()

    async def is_enacted() -> bool:
        return await clerk.newest_version(client, BANK, ISSUER, SUBJECT) == version

    await system.until(is_enacted)
    await system.start(ISSUER_END)
    await system.till.until("stale")
    assert await system.state_of("stale-0") == ("REJECTED", "stale_terms")
    await buy(system, "fresh")
    await system.till.until("fresh")
    assert await system.state_of("fresh-0") == ("CONFIRMED", "")


async def revocation(system: System) -> None:
    """What the issuer had received is confirmed, what it had not is never taken, what comes later is not sent."""
    await held_package(system, "before")
    await system.kill(ISSUER)
    await buy(system, "under-way")

    async def is_sent() -> bool:
        return await system.state_of("under-way-0") == ("PENDING", "")

    await system.until(is_sent)
    call = make_call("cooperation", "revoke_channel", {"bank": BANK, "issuer": ISSUER, "reason": "test"})
    (await system.client.call_many(account(system, BANK), [call])).check()
    await system.start(ISSUER)
    await system.start(ISSUER_END)
    await system.till.until("before")
    await system.till.until("under-way")
    await buy(system, "after")
    await system.till.until("after")
    ends = {name: await system.state_of(f"{name}-0") for name in ("before", "under-way", "after")}
    assert ends == {
        "before": ("CONFIRMED", ""),
        "under-way": ("REJECTED", "channel_revoked"),
        "after": ("DROPPED", "channel_revoked"),
    }
    application_id = await apply(system, "anew", ISSUER)
    decided = await clerk.await_decision(system.client, application_id, timeout_ms=20_000)
    assert decided.status == "OPENED"
    await system.bring("again", [application("again-0", Code.SUBSCRIPTION, system.holders[0], amount=BOUGHT)])
    await system.till.until("again")
    assert await system.state_of("again-0") == ("CONFIRMED", "")
    channel = await clerk.channel(system.client, BANK, ISSUER)
    assert channel is not None
    assert channel.epoch == 2


async def lost_payload(system: System) -> None:
    """The bank's gateway loses everything: it has it again from the issuer, checked against the chain."""
    record = await system.till.record("again-0")
    await system.kill(BANK_GATEWAY)
    shutil.rmtree(system.trial.program(BANK_GATEWAY).folder / "data")
    await system.start(BANK_GATEWAY)

    async def is_whole() -> bool:
        async with LocalLink(system.trial.socket(BANK_GATEWAY)) as link:
            found = await patiently(lambda: link.call("recover", ChannelQuery(BANK, ISSUER), Recovered))
            return found.anchored > 0 and not found.missing

    async def is_disclosed() -> bool:
        try:
            return (await system.till.disclose(record))["root"] == "0x" + record.root.hex()
        except Refused:
            return False  # its anchor is looked for

    await system.until(is_whole)
    await system.until(is_disclosed)
    await buy(system, "afterwards")
    await system.till.until("afterwards")
    assert await system.state_of("afterwards-0") == ("CONFIRMED", "")


async def held_package(system: System, name: str) -> Package:
    """Send an order while the issuer end is dead; return its package as the issuer's gateway has it."""
    await system.kill(ISSUER_END)
    await buy(system, name)
    packages: list[PackageArrived] = []
    after = 0

    async def has_arrived() -> bool:
        nonlocal after
        async with LocalLink(system.trial.socket(ISSUER_GATEWAY)) as link:
            query = Next(after, 0, 64)
            items = (await patiently(lambda: link.call("packages_next", query, PackagesNext))).items
        packages.extend(item for item in items if item.applications[0].serial == f"{name}-0")
        after = max([after, *(item.position for item in items)])
        return bool(packages)

    await system.until(has_arrived)
    (item,) = packages
    return Package(
        *(item.bank, item.issuer, item.epoch, item.created_ms, item.root, item.signature, item.salts),
        item.applications,
    )


async def buy(system: System, name: str) -> None:
    """Bring one subscription."""
    await system.bring(name, [application(f"{name}-0", Code.SUBSCRIPTION, system.holders[0], amount=BOUGHT)])


async def apply(system: System, number: str, issuer: str) -> bytes:
    """Apply for a channel with a new agreement that both signed, and return the application's id."""
    now_ms = time.time_ns() // 1_000_000
    agreement = new_agreement(
        system.client.chain_id,
        number=number,
        bank=BANK,
        issuers=[issuer],
        document=sha256(number.encode()).digest(),
        valid_from_ms=now_ms - 1_000,
        valid_until_ms=now_ms + 10**9,
    )
    for name in (BANK, issuer):
        agreement = sign_agreement(agreement, name, system.trial.key(f"{name}-business"))
    (await system.client.call_many(account(system, BANK), [agreement.call()])).check()
    return agreement.id()


def account(system: System, organisation: str) -> Signer:
    """Return the account of an organisation."""
    return Signer.of(organisation, system.trial.key(organisation))
