"""The issuer end beside real gateways, sockets and chain: what it answers; no death of it doubles or loses anything."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from consensus.ledger.cooperation import FIRST_ANSWER
from consensus.ledger.errors import LocalError
from services.agency.interfaces import PackageOutcome
from services.agency.issuer import IssuerSettings, serve
from services.agency.issuer_interface import (
    Allot,
    Allotted,
    ConfirmedNext,
    ConfirmedPage,
    Holding,
    Holdings,
    HoldingsQuery,
    IssuerPackage,
    IssuerPackageQuery,
    IssuerSummary,
    Purchase,
    SummaryQuery,
    Users,
    UsersQuery,
)
from services.agency.orders import Application, Confirmation
from services.agency.packages import Answer, answer_id, message_codec
from services.client.errors import Refused, Unreachable
from services.client.keystore import Signer
from services.client.tasks import single_errors
from services.local.link import LocalLink
from tests.agency.world import (
    BUSINESS,
    CONSORTIUM,
    ISSUER,
    NOW_MS,
    OTHER,
    PRODUCT,
    Killed,
    MemoryStore,
    World,
    application,
    investor,
    outcomes,
    submit,
    world,
)

INITIAL = "C00003"
KINDS = ["020", "022", "024"]


class IssuerVault(MemoryStore):
    """A store that dies when told to, with keys that this test can read."""

    def blind(self, *parts: str) -> bytes:
        return "\0".join(parts).encode()


def issuer_settings(found: World, *, name: str = "end", organisation: str = ISSUER) -> IssuerSettings:
    home = found.folder / f"{organisation}-{name}"
    return IssuerSettings(
        name=f"{organisation}-{name}",
        organisation=organisation,
        run=home / "run",
        data=home / "data",
        key_file=home / "vault.key",
        gateway=found.settings(ISSUER).socket,
        chain_id=CONSORTIUM.genesis.chain_id(),
        business=Signer.of(f"{organisation}-business", BUSINESS[organisation]),
    )


@asynccontextmanager
async def issuer_end(
    found: World, vault: IssuerVault, *, name: str = "end", now_ms: int = NOW_MS
) -> AsyncIterator[LocalLink]:
    """Run an issuer end for the time of the block."""
    settings, stopping = issuer_settings(found, name=name), trio.Event()
    settings.run.mkdir(parents=True, exist_ok=True)
    with single_errors():
        async with LocalLink(settings.socket) as link, trio.open_nursery() as nursery:
            await nursery.start(_served, settings, vault, stopping, now_ms)
            yield link
            await link.aclose()
            stopping.set()


async def _served(
    settings: IssuerSettings,
    vault: IssuerVault,
    stopping: trio.Event,
    now_ms: int,
    task_status: trio.TaskStatus[object],
) -> None:
    await serve(settings, vault, stopping, now_ms=lambda: now_ms, task_status=task_status)


@asynccontextmanager
async def market(folder: Path) -> AsyncIterator[tuple[World, LocalLink]]:
    """A world with terms and a product to be allotted, both gateways, and the bank's link."""
    async with world(folder) as found:
        await found.call(
            ISSUER,
            "set_product",
            product=INITIAL,
            interface="C-FUNDS",
            product_type="money-market",
            risk=1,
            currency="156",
            charge_basis_points=0,
            is_open=True,
        )
        await found.agree(subject="type:money-market", kinds=KINDS)
        async with found.gateway("bank-a") as bank, found.gateway(ISSUER):
            yield found, bank


def opening(number: int, serial: str = "") -> Application:
    plain = application(number, serial=serial or f"R{number}")
    return msgspec.structs.replace(plain, code="001", product="", amount=0, terms_version=0, investor=investor(number))


async def exchange(bank: LocalLink, batch: str, *orders: Application, after: int = 0) -> PackageOutcome:
    """Send a package and return what became of it."""
    await submit(bank, *orders, batch=batch)
    return await news(bank, "answered", after)


async def news(bank: LocalLink, kind: str, after: int = 0) -> PackageOutcome:
    while True:
        found = (await outcomes(bank, 1, after))[0]
        if found.kind == kind:
            return found
        after = found.position


async def held(end: LocalLink) -> dict[tuple[str, str], int]:
    page = await end.call("holdings", HoldingsQuery(), Holdings)
    return {(item.ta_account, item.product): item.units for item in page.items}


async def summary(end: LocalLink) -> IssuerSummary:
    return await end.call("summary", SummaryQuery(), IssuerSummary)


def answers_of(found: World) -> list[Answer]:
    """Return the answers that the issuer's node took, in order."""
    messages = [message_codec.decode_untrusted(payload) for who, _, payload in found.wire.posted if who == ISSUER]
    return [message for message in messages if isinstance(message, Answer)]


def reasons(confirmations: list[Confirmation]) -> list[str]:
    return [confirmation.reason for confirmation in confirmations]


async def test_accounts_and_trades_are_answered_and_booked(tmp_path: Path) -> None:
    async with market(tmp_path) as (found, bank), issuer_end(found, IssuerVault()) as end:
        first = await exchange(bank, "register", opening(1), opening(2))
        assert reasons(first.confirmations) == ["", ""]
        sale = application(4, code="024", volume=10_002, amount=0, ta_account="TA0000000001")
        second = await exchange(
            bank, "trade", application(1), application(2), application(3), sale, after=first.position
        )
        assert reasons(second.confirmations) == ["", "", "unknown_user", "insufficient_units"]
        assert await held(end) == {("TA0000000001", PRODUCT): 10_001, ("TA0000000002", PRODUCT): 10_002}
        users = await end.call("users", UsersQuery(limit=1), Users)
        rest = await end.call("users", UsersQuery(after=users.next, limit=1), Users)
        assert {item.investor for item in users.items + rest.items} == {investor(1), investor(2)}
        one = await end.call("holdings", HoldingsQuery(ta_account="TA0000000001"), Holdings)
        assert one.items == [Holding("TA0000000001", "996", PRODUCT, 10_001)]
        figures = await summary(end)
        assert (figures.packages, figures.accepted, figures.rejected, figures.unsent) == (2, 4, 2, 0)
        assert figures.reasons == {"insufficient_units": 1, "unknown_user": 1}
        assert [(total.product, total.units) for total in figures.products] == [(PRODUCT, 20_003)]
        package = await end.call("package", IssuerPackageQuery(second.root), IssuerPackage)
        assert (package.count, package.answers[0].is_sent) == (4, True)
        with pytest.raises(Refused) as refusal:
            await end.call("package", IssuerPackageQuery(bytes(32)), IssuerPackage)
        assert refusal.value.code == "unknown_package"
        chain = answers_of(found)
        assert [answer.previous for answer in chain] == [FIRST_ANSWER, answer_id(chain[0])]


async def test_the_issuer_judges_again_what_its_bank_lets_through(tmp_path: Path) -> None:
    async with market(tmp_path) as (found, bank), issuer_end(found, IssuerVault()):
        minor = msgspec.structs.replace(investor(2), birth_date=20_151_231)
        lowest = investor(3, risk_class=0)
        people = [
            opening(1),
            *(msgspec.structs.replace(opening(n), investor=who) for n, who in ((2, minor), (3, lowest))),
        ]
        first = await exchange(bank, "register", *people)
        assert reasons(first.confirmations) == ["", "", ""]
        orders = [
            application(1),
            application(2),
            application(3),
            application(4),
            application(1, serial="K1", code="036", volume=1, target_product=INITIAL),
            application(1, serial="P1", product="C99999"),
            application(1, serial="D1", distributor="196"),
            application(1, serial="I1", code="020"),
        ]
        second = await exchange(bank, "trade", *orders, after=first.position)
        expected = ["", "minor", "", "unknown_user", "kind_forbidden", "unknown_product", "foreign_distributor", ""]
        assert reasons(second.confirmations) == expected
        # Terms and risk change while an order is under way.
        await found.agree(subject="type:money-market", version=2, kinds=KINDS)
        await found.call(
            ISSUER,
            "set_product",
            product=INITIAL,
            interface="C-FUNDS",
            product_type="money-market",
            risk=2,
            currency="156",
            charge_basis_points=0,
            is_open=True,
        )
        late = [application(1, serial="S1"), application(1, serial="S2", terms_version=2)]
        late.append(application(3, serial="S3", terms_version=2, product=INITIAL, code="020", is_warned=True))
        third = await exchange(bank, "late", *late, after=second.position)
        assert reasons(third.confirmations) == ["stale_terms", "", "lowest_class"]


async def test_initial_subscriptions_are_allotted_once(tmp_path: Path) -> None:
    vault = IssuerVault()
    async with market(tmp_path) as (found, bank):
        async with issuer_end(found, vault) as end:
            accounts = await exchange(bank, "register", opening(1), opening(2))
            orders = [application(number, code="020", product=INITIAL) for number in (1, 2)]
            first = await exchange(bank, "trade", *orders, after=accounts.position)
            assert [(item.code, item.is_final) for item in first.confirmations] == [("120", False)] * 2
            with pytest.raises(Refused) as refusal:
                await end.call("allot", Allot("NONE"), Allotted)
            assert refusal.value.code == "unknown_product"
        with pytest.raises(Killed):
            await allot_and_die(found, vault)
        async with issuer_end(found, vault) as end:
            allotted = await news(bank, "allotted")
            assert [(item.code, item.volume, item.is_final) for item in allotted.confirmations] == [
                ("130", 5_000, True),
                ("130", 5_001, True),
            ]
            assert await end.call("allot", Allot(INITIAL, 5_000), Allotted) == Allotted(INITIAL, 5_000, 0, 0)
            with pytest.raises(Refused) as refusal:
                await end.call("allot", Allot(INITIAL, 6_000), Allotted)
            assert refusal.value.code == "already_allotted"
            late = application(3, code="020", product=INITIAL, ta_account="TA0000000001")
            third = await exchange(bank, "late", late, after=allotted.position)
            assert reasons(third.confirmations) == ["product_closed"]
            assert sum((await held(end)).values()) == 10_001
            assert (await summary(end)).allotments == 1


async def allot_and_die(found: World, vault: IssuerVault) -> None:
    """Have a product allotted by a program that dies when it has kept the ratio and nothing else."""
    vault.dies_at = vault.writes + 2
    async with issuer_end(found, vault) as end:
        with suppress(Refused, Unreachable):
            await end.call("allot", Allot(INITIAL, 5_000), Allotted)
        await trio.sleep_forever()


async def test_what_was_bought_is_read_answer_by_answer_also_by_who_waits_for_it(tmp_path: Path) -> None:
    vault = IssuerVault()
    async with market(tmp_path) as (found, bank):
        async with issuer_end(found, vault) as end, trio.open_nursery() as nursery:
            pages: list[ConfirmedPage] = []

            async def wait(after: int) -> None:
                pages.append(await end.call("confirmed", ConfirmedNext(after, 20_000), ConfirmedPage))

            first = await exchange(bank, "register", opening(1), opening(2))
            nursery.start_soon(wait, 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            sale = application(4, code="024", volume=1, amount=0, ta_account="TA0000000001")
            initial = application(5, code="020", product=INITIAL, ta_account="TA0000000001")
            second = await exchange(bank, "trade", application(1), application(3), sale, initial, after=first.position)
        (page,) = pages
        assert (page.position, page.newest, [item.number for item in page.items]) == (2, 2, [2])
        (answer,) = page.items
        assert (answer.root, answer.round_number) == (second.root, 0)
        bought = Purchase("bank-a", "996", "A00000001", PRODUCT, "T00000001", 10_001, 10_001, "156")
        assert answer.purchases == [bought]
        async with issuer_end(found, vault) as end:  # another one goes on where that one was
            await end.call("allot", Allot(INITIAL, 5_000), Allotted)
            page = await end.call("confirmed", ConfirmedNext(2, 20_000), ConfirmedPage)
            assert [(item.round_number, item.purchases[0].volume) for item in page.items] == [(1, 5_002)]
            again = await end.call("confirmed", ConfirmedNext(0, limit=1), ConfirmedPage)
            assert (again.items, again.position, again.newest) == ([], 1, page.newest)
            assert (await end.call("confirmed", ConfirmedNext(page.newest), ConfirmedPage)).items == []


@pytest.mark.parametrize("is_written", [False, True])
async def test_killed_at_every_write_it_gives_the_same_answers_and_books_once(tmp_path: Path, is_written: bool) -> None:
    vault = IssuerVault()
    vault.is_written = is_written
    batches = [("register", [opening(1), opening(2)]), ("buy", [application(1), application(2)])]
    batches.append(("more", [application(number, ta_account="TA0000000001") for number in (3, 4)]))
    async with market(tmp_path) as (found, bank):
        for batch, orders in batches:
            await submit(bank, *orders, batch=batch)
        deaths = 0
        for dies_at in range(1, 10):
            vault.writes, vault.dies_at = 0, dies_at
            try:
                async with issuer_end(found, vault) as end:
                    with trio.fail_after(20):
                        while len([item for item in answers_of(found) if item.round_number == 0]) < len(batches):
                            await trio.testing.wait_all_tasks_blocked(0.01)
                    figures, units = await summary(end), await held(end)
                    confirmed = await end.call("confirmed", ConfirmedNext(0, limit=32), ConfirmedPage)
                    break
            except Killed:
                deaths += 1
        assert deaths >= 2
        answers = answers_of(found)
        assert len({answer.root for answer in answers}) == len(answers) == len(batches)
        assert (figures.packages, figures.accepted, figures.rejected, figures.unsent) == (3, 6, 0, 0)
        assert units == {("TA0000000001", PRODUCT): 10_001 + 10_003 + 10_004, ("TA0000000002", PRODUCT): 10_002}
        assert [len(item.purchases) for item in confirmed.items] == [2, 2]
        heads = [FIRST_ANSWER, *(answer_id(answer) for answer in answers)]
        assert [answer.previous for answer in answers] == heads[:-1]


async def test_two_issuer_ends_on_one_gateway_give_one_answer(tmp_path: Path) -> None:
    """The second gives the same one to the byte, or, on another day, none: it ends."""
    async with market(tmp_path) as (found, bank):
        async with issuer_end(found, IssuerVault()):
            first = await exchange(bank, "register", opening(1))
        async with issuer_end(found, IssuerVault(), name="twin") as end:
            with trio.fail_after(20):
                while not (figures := await summary(end)).packages or figures.unsent:
                    await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(LocalError) as stopped:
            await answer_tomorrow(found)
        assert stopped.value.code == "answer_exists"
        assert [answer.root for answer in answers_of(found)] == [first.root]


async def answer_tomorrow(found: World) -> None:
    with trio.fail_after(20):
        async with issuer_end(found, IssuerVault(), name="other", now_ms=NOW_MS + 86_400_000):
            await trio.sleep_forever()


async def test_the_same_store_under_a_new_program_gives_the_same_answer(tmp_path: Path) -> None:
    """The position is lost, as when an older copy is put back: the gateway offers what was answered before."""
    vault = IssuerVault()
    async with market(tmp_path) as (found, bank):
        async with issuer_end(found, vault):
            await exchange(bank, "register", opening(1))
        del vault.data[b"p"]
        async with issuer_end(found, vault) as end:
            with trio.fail_after(20):
                while b"p" not in vault.data or (await summary(end)).unsent:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await summary(end)).packages == 1
        assert len(answers_of(found)) == 1


async def test_it_answers_for_nobody_else(tmp_path: Path) -> None:
    async with market(tmp_path) as (found, _):
        for settings in (issuer_settings(found, organisation=OTHER), wrong_key(found)):
            settings.run.mkdir(parents=True)
            with pytest.raises(LocalError) as stopped, single_errors():
                await serve(settings, IssuerVault(), trio.Event())
            assert stopped.value.code == "wrong_gateway"


def wrong_key(found: World) -> IssuerSettings:
    settings = issuer_settings(found, name="wrong")
    return IssuerSettings(
        name=settings.name,
        organisation=settings.organisation,
        run=settings.run,
        data=settings.data,
        key_file=settings.key_file,
        gateway=settings.gateway,
        chain_id=settings.chain_id,
        business=Signer.of("wrong", BUSINESS[OTHER]),
    )
