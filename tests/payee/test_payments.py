"""Payments: the platform checks everything by itself, and an order of a merchant is paid once, whatever happens."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from msgspec.structs import replace

from consensus.ledger.errors import HansaError
from services.accounts.port import Answer, Order
from services.client.errors import Refused, Unreachable
from services.payee import emv
from services.payee.codes import CodeTerms, make_code
from services.payee.emv import make_field, make_template
from services.payee.identity import identity_text
from services.payee.interfaces import NoParams, Pay, PaymentsQuery, RecordPut, RemoveRecord
from services.payee.payments import event_of
from tests.contracts.domain.payees import identity
from tests.payee.platform_world import ACQUIRING, HOUR_MS, MONEY, Owner, PlatformWorld, platform_world


@asynccontextmanager
async def shop(folder: Path, server: str = "wallet-p") -> AsyncIterator[tuple[PlatformWorld, Owner]]:
    """Give a world with a platform that has a record of merchant 0."""
    async with platform_world(folder) as world, world.platform(server) as owner:
        await owner.begin()
        await owner.add()
        yield world, owner


def paid(world: PlatformWorld) -> int:
    """Return what the merchant has got, if nobody has lost anything."""
    assert sum(account.available + account.held for account in world.bank.books.accounts.values()) == 2 * MONEY
    return world.bank.parts("merchant-m")[0]


async def refused(owner: Owner, payload: str, **options: object) -> str:
    """Return the code under which nothing is paid."""
    before = paid(owner.world)
    with pytest.raises(HansaError) as caught:
        await owner.pay(payload, **options)  # type: ignore[arg-type]
    assert paid(owner.world) == before
    return caught.value.code


async def test_a_static_code_is_paid_with_what_the_payer_enters(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        payment = await owner.pay(world.code(), amount=1_250, order="o-1")
        assert (payment.state, payment.amount, payment.payee, payment.is_first) == ("PAID", 1_250, "merchant-m", True)
        assert payment.event == event_of(identity(0), "open", "o-1")
        assert payment.time_ms
        assert paid(world) == 1_250
        again = await owner.pay(world.code(), amount=1_250, order="o-1")
        assert (again.state, again.is_first, again.time_ms) == ("PAID", False, payment.time_ms)
        await owner.pay(world.code(), amount=1_250, order="o-2")
        assert paid(world) == 2_500


async def test_a_dynamic_code_says_it_all(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        code = world.order_code("R-1", 999)
        payment = await owner.pay(code)
        assert (payment.order, payment.amount, payment.event) == ("R-1", 999, event_of(identity(0), "signed", "R-1"))
        again = await owner.pay(code, amount=999, order="R-1")
        assert again.is_first is False
        assert paid(world) == 999


async def test_what_is_wrong_pays_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        static, dynamic = world.code(), world.order_code("R-1", 999)
        assert await refused(owner, static, amount=5) == "order_missing"
        assert await refused(owner, static, order="o-1") == "amount_missing"
        assert await refused(owner, static, amount=5, order="o-1", payee="shop") == "wrong_payee"
        assert await refused(owner, dynamic, payee="user-e") == "wrong_payee"
        assert await refused(owner, dynamic, amount=998) == "wrong_amount"
        assert await refused(owner, dynamic, order="R-2") == "wrong_order"
        assert await refused(owner, world.order_code("R-3", lives_ms=0)) == "code_expired"
        assert await refused(owner, world.code(number=1), amount=5, order="o-1") == "unknown_merchant"
        assert await refused(owner, world.code(CodeTerms(currency="USD")), amount=5, order="o-1") == "wrong_currency"
        assert await refused(owner, "x" * 10_000, amount=5, order="o-1") in ("bad_payload", "too_large")
        assert await refused(owner, "0002010102116304") == "bad_payload"
        assert owner.platform.payments._store.payment_count == 0


async def test_a_code_signed_by_somebody_else_is_refused(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        world.merchants[identity(0)], world.merchants[identity(1)] = (
            world.merchants[identity(1)],
            world.merchants[identity(0)],
        )
        assert await refused(owner, world.order_code()) == "bad_code"


async def test_expiry_is_judged_by_whichever_is_later_clock_or_chain(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        code, late = (world.order_code(order, lives_ms=60_000) for order in ("R-1", "R-2"))
        await owner.pay(code)
        world.clock.ms += 61_000
        assert await refused(owner, late) == "code_expired"
        world.clock.ms -= 61_000
        world.pass_ms(61_000)
        world.clock.ms -= 61_000  # a clock that is behind opens nothing again
        assert await refused(owner, late) == "code_expired"
        # What was paid stays paid, and says so also after its code has expired.
        assert (await owner.pay(code)).state == "PAID"


async def test_nodes_without_a_recent_block_decide_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        world.clock.ms += HOUR_MS
        assert await refused(owner, world.order_code()) == "stale_states"


async def test_a_removed_record_is_not_paid(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        await world.remove_as_merchant("wallet-p", 2)
        assert await refused(owner, world.order_code()) == "no_platform"
        await owner.add()
        await owner.link.call("remove_record", RemoveRecord(identity_text(identity(0))), RecordPut)
        assert await refused(owner, world.order_code()) == "no_platform"


async def test_the_record_in_force_is_paid_and_no_earlier_one(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        await owner.add(replace(ACQUIRING, account="shop"))
        assert await refused(owner, world.order_code()) == "wrong_payee"
        assert (await owner.pay(world.order_code(), payee="shop")).state == "PAID"


async def test_what_the_payer_was_shown_is_the_currency_that_is_paid(tmp_path: Path) -> None:
    """The code names none, and the record has another one by now."""
    async with shop(tmp_path) as (world, owner):
        template = make_template("29", [make_field("00", "com.example"), make_field("01", "1")])
        bare = emv.Payload.of([make_field("00", "01"), template, make_field("58", "CN")])
        code = make_code(identity(0), chain_id=world.chain_id, into=bare).text
        asked = Pay(code, "user-b", "merchant-m", 100, "o-1", "CNY")
        await owner.add(replace(ACQUIRING, currency="USD"))
        with pytest.raises(Refused) as caught:
            await owner.platform.payments.pay(asked)
        assert caught.value.code == "wrong_currency"
        assert owner.platform.payments._store.payment_count == 0
        await owner.add()
        assert (await owner.platform.payments.pay(asked)).state == "PAID"
        assert (await owner.platform.payments.pay(replace(asked, currency=None))).is_first is False
        with pytest.raises(Refused):
            await owner.platform.payments.pay(replace(asked, currency="USD"))


async def test_an_order_has_one_set_of_terms(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        await owner.pay(world.code(), amount=1_250, order="o-1")
        assert await refused(owner, world.code(), amount=1_251, order="o-1") == "order_conflict"
        assert await refused(owner, world.code(), amount=1_250, order="o-1", payer="user-e") == "order_conflict"
        # The merchant's order of that name is another one: nobody takes its place with a static code.
        assert (await owner.pay(world.order_code("o-1", 77))).state == "PAID"
        assert await refused(owner, world.order_code("o-1", 78)) == "order_conflict"
        # The same order in a code that was made anew is the same order.
        assert (await owner.pay(world.order_code("o-1", 77, lives_ms=2 * HOUR_MS))).is_first is False
        assert paid(world) == 1_250 + 77


async def test_a_refusal_of_the_account_system_can_be_tried_again(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        world.bank.books.freeze("user-b", is_frozen=True)
        payment = await owner.pay(world.code(), amount=100, order="o-1")
        assert (payment.state, payment.code, payment.time_ms) == ("REFUSED", "account_frozen", 0)
        assert paid(world) == 0
        # Another payer may pay it, and the first one no more.
        assert (await owner.pay(world.code(), amount=100, order="o-1", payer="user-e")).state == "PAID"
        world.bank.books.freeze("user-b", is_frozen=False)
        assert await refused(owner, world.code(), amount=100, order="o-1") == "order_conflict"
        poor = await owner.pay(world.code(), amount=2 * MONEY, order="o-2")
        assert (poor.state, poor.code) == ("REFUSED", "insufficient_funds")
        world.bank.books.deposit("d", "user-b", 2 * MONEY)
        assert (await owner.pay(world.code(), amount=2 * MONEY, order="o-2")).state == "PAID"


async def test_a_hundred_at_once_have_one_effect(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        code = world.order_code()
        answers = []

        async def one() -> None:
            answers.append(await owner.pay(code))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)
        assert [one.state for one in answers] == ["PAID"] * 100
        assert sum(one.is_first for one in answers) == 1
        assert len(world.bank.orders) == 1
        assert paid(world) == 1_250


async def test_two_platforms_of_one_account_system_pay_an_order_once(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        await owner.pay(world.order_code())
        async with world.platform("wallet-q") as other:
            await other.begin()
            await other.add()
            assert (await other.pay(world.order_code())).state == "PAID"  # the account system has paid it
            assert await refused(other, world.order_code(), payer="user-e") == "order_conflict"
            answers = []

            async def one(order: str) -> None:
                answers.append(await refused(other, world.code(), amount=1, order=order))

            await owner.pay(world.code(), amount=2, order="o-1")
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(one, "o-1")
            assert answers == ["order_conflict"] * 3  # who waited is told so as well
        assert paid(world) == 1_252


def away(orders: Sequence[Order]) -> None:
    raise Unreachable("the bank is away", "accounts_unreachable")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_open_payment_is_finished_by_the_same_request(tmp_path: Path, when: str) -> None:
    async with shop(tmp_path) as (world, owner):
        code = world.order_code()
        setattr(world.bank, when, away)
        assert (await owner.pay(code)).state == "OPEN"
        assert paid(world) == (1_250 if when == "after" else 0)
        status = owner.platform.payments._store.open_payments()
        assert len(status) == 1
        assert (await owner.platform.status(NoParams())).trouble == "accounts_unreachable"
        setattr(world.bank, when, lambda _: None)
        assert (await owner.pay(code)).state == "PAID"
        assert owner.platform.payments._store.open_payments() == []
        assert paid(world) == 1_250


async def test_an_open_payment_is_finished_by_the_next_start(tmp_path: Path) -> None:
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
            code = world.order_code(lives_ms=HOUR_MS)
            world.bank.before = away
            assert (await owner.pay(code)).state == "OPEN"
        world.bank.before = lambda _: None
        world.pass_ms(2 * HOUR_MS)  # it was valid when it was accepted
        async with world.platform() as owner, trio.open_nursery() as nursery:
            nursery.start_soon(owner.platform.payments.finish_forever)
            with trio.fail_after(10):
                while not paid(world):
                    await trio.lowlevel.checkpoint()
            assert (await owner.pay(code)).state == "PAID"
            nursery.cancel_scope.cancel()
        assert paid(world) == 1_250


async def test_one_that_is_refused_for_ever_holds_up_no_other(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):

        def choosy(orders: Sequence[Order]) -> None:
            if orders[0].payer == "user-e":
                raise Refused("bad_field", "no")

        world.bank.before = away
        await owner.pay(world.code(), amount=5, order="o-1", payer="user-e")
        await owner.pay(world.code(), amount=7, order="o-2")
        world.bank.before = choosy
        assert await owner.platform.payments.finish() is False
        assert paid(world) == 7


async def test_payments_are_listed_newest_first(tmp_path: Path) -> None:
    async with shop(tmp_path) as (world, owner):
        await world.register(1)
        await owner.add(number=1)
        for number in range(3):
            await owner.pay(world.code(), amount=1, order=f"o-{number}")
        await owner.pay(world.code(number=1), amount=1, order="o-0")
        found = (await owner.platform.payments.payments(PaymentsQuery())).items
        assert [(one.identity == identity_text(identity(1)), one.order) for one in found] == [
            *((True, "o-0"), (False, "o-2"), (False, "o-1"), (False, "o-0")),
        ]
        own = (await owner.platform.payments.payments(PaymentsQuery(identity_text(identity(0)), 2))).items
        assert [one.order for one in own] == ["o-2", "o-1"]


async def test_who_asks_and_leaves_has_paid_all_the_same(tmp_path: Path) -> None:
    """A client that hangs up while the account system works leaves an open payment, which is finished."""
    async with shop(tmp_path) as (world, owner):
        run = world.bank.run
        asked = trio.Event()

        async def slow(orders: Sequence[Order]) -> list[Answer]:
            answers = await run(orders)
            if not asked.is_set():
                asked.set()
                await trio.sleep_forever()
            return answers

        world.bank.run = slow  # type: ignore[method-assign]
        code = world.order_code()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner.pay, code)
            await asked.wait()
            nursery.cancel_scope.cancel()
        assert len(owner.platform.payments._store.open_payments()) == 1
        assert await owner.platform.payments.finish()
        assert (await owner.pay(code)).state == "PAID"
        assert paid(world) == 1_250


async def test_requests_under_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.payee.payments.UNDER_WAY_MAX", 3)
    async with shop(tmp_path) as (world, owner):
        code = world.order_code()
        ends = []

        async def one() -> None:
            try:
                ends.append((await owner.pay(code)).state)
            except Refused as error:
                ends.append(error.code)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert sorted(ends) == ["PAID"] * 3 + ["busy"] * 2


@pytest.mark.parametrize("seed", range(4))
async def test_random_histories_move_money_once_for_each_order(tmp_path: Path, seed: int) -> None:
    """Payments of few orders on many terms, lost asks and answers, new starts: what is told is what was moved."""
    random = Random(seed)
    told: dict[str, tuple[str, int]] = {}
    ends: Counter[str] = Counter()
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
        codes = [world.order_code(f"R-{number}", 100 + number) for number in range(4)]
        for _ in range(6):
            async with world.platform() as owner:
                for _ in range(12):
                    world.bank.before = random.choice((_nothing, _nothing, _nothing, away))
                    world.bank.after = random.choice((_nothing, _nothing, _nothing, away))
                    world.bank.books.freeze("user-e", is_frozen=random.random() < 0.5)
                    await _random_payment(owner, random, codes, told, ends)
                if random.random() < 0.5:
                    world.bank.before = world.bank.after = _nothing
                    assert await owner.platform.payments.finish()
            assert paid(world) == sum(entry.amount for entry in world.bank.books.entries)
        world.bank.before = world.bank.after = _nothing
        async with world.platform() as owner:
            await owner.platform.payments.finish()
            found = (await owner.platform.payments.payments(PaymentsQuery())).items
        moved = {entry.event: entry.amount for entry in world.bank.books.entries}
        assert len(moved) == len(world.bank.books.entries), "an order was paid twice"
        assert {one.event: one.amount for one in found if one.state == "PAID"} == moved
        assert {event: moved[event] for event in told} == {event: amount for event, (_, amount) in told.items()}
        assert {"PAID", "OPEN", "REFUSED", "order_conflict"} <= ends.keys()


def _nothing(orders: Sequence[Order]) -> None:
    """Let it be."""


async def _random_payment(
    owner: Owner, random: Random, codes: Sequence[str], told: dict[str, tuple[str, int]], ends: Counter[str]
) -> None:
    payer = random.choice(("user-b", "user-e"))
    try:
        if random.random() < 0.5:
            payment = await owner.pay(random.choice(codes), payer=payer)
        else:
            order, amount = f"o-{random.randrange(12)}", random.choice((100, 100, 200))
            payment = await owner.pay(owner.world.code(), payer=payer, amount=amount, order=order)
    except Refused as error:
        ends[error.code] += 1
        return
    ends[payment.state] += 1
    if payment.state == "PAID":
        assert told.setdefault(payment.event, (payment.payer, payment.amount)) == (payment.payer, payment.amount)


# -- crashes ---------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


CRASHES = ("vault before", "vault after", "bank before", "bank after")


@pytest.mark.parametrize("crash", CRASHES)
async def test_killed_at_any_write_or_call_an_order_is_paid_once(tmp_path: Path, crash: str) -> None:
    """The first payment ends at the n-th write or call; after a new start the same request pays once."""
    async with platform_world(tmp_path) as world:
        async with world.platform() as owner:
            await owner.begin()
            await owner.add()
        total, met = 0, 0
        for at in range(3):
            code = world.order_code(f"R-{at}")
            async with world.platform() as owner:
                met += await _crashes(owner, crash, at, code)
            world.bank.before = world.bank.after = lambda _: None
            async with world.platform() as owner:
                await owner.platform.payments.finish()
                payment = await owner.pay(code)
                assert payment.state == "PAID"
                assert owner.platform.payments._store.open_payments() == []
            total += 1_250
            assert paid(world) == total
        assert met == (2 if crash.startswith("vault") else 1)


async def _crashes(owner: Owner, crash: str, at: int, code: str) -> bool:
    """Pay, and end at the write or call of this number; tell whether it came so far."""
    part, when = crash.split()
    count = 0

    def hit() -> None:
        nonlocal count
        count += 1
        if count == at + 1:
            raise Crash

    if part == "bank":
        setattr(owner.world.bank, when, lambda _: hit())
    else:
        vault = owner.platform.payments._store._vault
        write: Callable[..., object] = vault.write

        async def dying(batch: object) -> None:
            if when == "before":
                hit()
            await write(batch)  # type: ignore[misc]
            if when == "after":
                hit()

        vault.write = dying  # type: ignore[method-assign, assignment]
    try:
        await owner.pay(code)
    except Crash:
        return True
    return False
