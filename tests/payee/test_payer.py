"""The payer's client against a real platform, node and environment, all in this process: from a code to a payment."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace as changed

from consensus.ledger.errors import HansaError, LocalError, PeerError
from consensus.ledger.keys import PrivateKey
from consensus.ledger.payees import Delegation, Mode
from node.payees import PayeeDesk
from services.client.errors import Refused, Unreachable
from services.local.asking import Program, ProgramLink
from services.payee import payer as payer_module
from services.payee.codes import CodeTerms
from services.payee.emv import Payload
from services.payee.interfaces import Acquiring, Pay, Payment
from services.payee.link import PlatformLink, open_platform
from services.payee.payer import OPEN, Payer, delegated_signer, read_payload
from tests.contracts.domain.payees import identity
from tests.payee.paying import TOKEN, Street, make_street
from tests.payee.platform_world import ACQUIRING, HOUR_MS, MARKER, MONEY

AMOUNT = 1_250


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with make_street(tmp_path) as made:
        yield made


async def paid_with(payer: Payer, code: str, **terms: Any) -> Payment:
    """Look at a code and pay it, as the command does."""
    looked = await payer.look(read_payload(code), may_be_expired=True)
    return await payer.pay(looked, payer.terms(looked, **{"payer": "user-b", **terms}))


async def code_of(payer: Payer, code: str, **terms: Any) -> str:
    """Return the code that paying ends with."""
    with pytest.raises(HansaError) as error:
        await paid_with(payer, code, **terms)
    assert MARKER not in str(error.value)
    return error.value.code


async def money(street: Street, account: str = "user-b") -> int:
    """Return what an account has, in 1/100."""
    return street.world.bank.books.accounts[account].available


# -- what is paid ----------------------------------------------------------------------------------------


async def test_a_static_code_is_paid_once_for_an_order(street: Street) -> None:
    code = street.world.code()
    async with street.payer() as payer:
        looked = await payer.look(read_payload(code))
        assert looked.target.acquiring == ACQUIRING
        first = await paid_with(payer, code, amount=AMOUNT, order="o-1")
        assert (first.state, first.is_first, first.amount, first.order) == ("PAID", True, AMOUNT, "o-1")
        again = await paid_with(payer, code, amount=AMOUNT, order="o-1")
        assert again == changed(first, is_first=False)
        assert await code_of(payer, code, amount=AMOUNT + 1, order="o-1") == "order_conflict"
        assert await money(street) == MONEY - AMOUNT
        assert (await paid_with(payer, code, amount=AMOUNT, order="o-2")).is_first
        assert await money(street, "merchant-m") == 2 * AMOUNT


async def test_an_order_that_nobody_names_gets_a_name_of_its_own(street: Street) -> None:
    code = street.world.code()
    numbers = iter(range(100))
    async with street.payer() as payer:
        payer._random_bytes = lambda count: next(numbers).to_bytes(count, "big")
        looked = await payer.look(read_payload(code))
        orders = {payer.terms(looked, payer="user-b", amount=1).order for _ in range(3)}
        assert len(orders) == 3
        for order in sorted(str(order) for order in orders):
            assert (await paid_with(payer, code, amount=1, order=order)).is_first


async def test_a_code_for_one_order(street: Street) -> None:
    code = street.world.order_code("R-7", AMOUNT)
    async with street.payer() as payer:
        paid = await paid_with(payer, code)
        assert (paid.state, paid.order, paid.amount, paid.is_first) == ("PAID", "R-7", AMOUNT, True)
        assert not (await paid_with(payer, code, amount=AMOUNT, order="R-7")).is_first
        assert await code_of(payer, code, amount=AMOUNT - 1) == "wrong_amount"
        assert await code_of(payer, code, order="R-8") == "wrong_order"
    assert await money(street) == MONEY - AMOUNT


async def test_an_expired_code_that_was_paid_is_still_known(street: Street) -> None:
    paid, unpaid = street.world.order_code("R-1", lives_ms=60_000), street.world.order_code("R-2", lives_ms=60_000)
    async with street.payer() as payer:
        assert (await paid_with(payer, paid)).is_first
        street.world.pass_ms(60_000)
        assert await code_of(payer, unpaid) == "code_expired"
        again = await paid_with(payer, paid)
        assert (again.state, again.is_first) == ("PAID", False)
        with pytest.raises(PeerError) as error:
            await payer.look(read_payload(unpaid))
        assert error.value.code == "code_expired", "who only looks is told as well"


async def test_the_same_code_with_a_platform_that_was_added_later(street: Street) -> None:
    code = street.world.code()
    added = await street.open("wallet-q")
    async with street.payer("wallet-q") as payer:
        assert await code_of(payer, code, amount=AMOUNT) == "no_platform"
        await added.add(Acquiring(account="shop", name="Tea at Q", currency="CNY"))
        paid = await paid_with(payer, code, amount=AMOUNT, order="o-9")
        assert (paid.server, paid.payee, paid.state) == ("wallet-q", "shop", "PAID")
    async with street.payer() as payer:
        assert await code_of(payer, code, amount=AMOUNT, order="o-9") == "order_conflict", "it is paid"


async def test_what_the_account_system_refuses(street: Street) -> None:
    async with street.payer() as payer:
        poor = await paid_with(payer, street.world.code(), amount=MONEY + 1, order="o-1")
        assert (poor.state, poor.code) == ("REFUSED", "insufficient_funds")
        assert (await paid_with(payer, street.world.code(), amount=MONEY, order="o-1")).is_first


async def test_all_platforms_are_looked_at(street: Street) -> None:
    other = await street.open("wallet-q")
    await other.add(Acquiring(account="shop", name="Tea at Q", currency="CNY"), is_shareable=True)
    await street.world.consent()
    code = read_payload(street.world.code())
    async with street.payer() as payer:
        looked = await payer.look(code, asked=payer.query(code, Mode.CANDIDATES))
    names = {one.server: one.acquiring.name if one.acquiring else None for one in looked.resolved.candidates}
    assert names == {"wallet-p": ACQUIRING.name, "wallet-q": "Tea at Q"}
    assert looked.target.server == "wallet-p"


# -- what is refused -------------------------------------------------------------------------------------


async def test_codes_that_are_not_paid(street: Street) -> None:
    world = street.world
    signed = world.order_code("R-1", AMOUNT)
    terms = CodeTerms(amount=AMOUNT, currency="CNY", order="R-1", expires_ms=world.clock.ms + HOUR_MS)
    async with street.payer() as payer:
        assert await code_of(payer, world.code(number=9), amount=1) == "unknown_identity"
        assert await code_of(payer, world.code(number=1), amount=1) == "no_platform"
        assert await code_of(payer, world.code()) == "amount_missing"
        world.merchants[identity(0)] = world.merchants[identity(1)]
        forged = read_payload(world.code(terms, is_signed=True))
        bare = Payload.of(field for field in forged.payload.fields if field.number not in (80, 81))
        for text, code in ((forged.text, "bad_code"), (bare.build(), "code_unsigned")):
            with pytest.raises(PeerError) as error:
                await payer.look(read_payload(text))
            assert error.value.code == code, "before the platform hears of it"
        assert await code_of(payer, world.code(CodeTerms(currency="EUR")), amount=1) == "wrong_currency"
        assert (await paid_with(payer, signed)).is_first
    for text, code in (
        (signed[:-1] + ("0" if signed[-1] != "0" else "1"), "bad_crc"),
        ("0" * 10_000, "too_large"),
        ("000201", "bad_payload"),
    ):
        with pytest.raises(PeerError) as error:
            read_payload(text)
        assert error.value.code == code
    assert await money(street) == MONEY - AMOUNT


async def test_a_removed_platform(street: Street) -> None:
    await street.world.remove_as_merchant("wallet-p", 2)
    async with street.payer() as payer:
        assert await code_of(payer, street.world.code(), amount=1) == "no_platform"
    assert await money(street) == MONEY


async def test_another_platforms_url(street: Street) -> None:
    async with open_platform(street.doors["wallet-p"].url, token=TOKEN) as link:
        with pytest.raises(PeerError, match="in place of wallet-q") as error:
            await delegated_signer(link, "wallet-q")
        assert error.value.code == "bad_answer"
    async with open_platform(street.doors["wallet-p"].url, token="other") as link:
        with pytest.raises(Refused) as refused:
            await delegated_signer(link, "wallet-p")
        assert refused.value.code == "bad_token"


KEY = PrivateKey.from_secret(7).public.compressed
DELEGATED = {"server": "wallet-p", "key": f"0x{KEY.hex()}", "untilMs": 1, "signature": f"0x{'11' * 64}"}


@pytest.mark.parametrize(
    "lie", [{"untilMs": 2**80}, {"untilMs": -1}, {"signature": "0x11"}, {"server": "W" * 100_000}, {"key": "0x00"}]
)
async def test_a_delegation_that_is_none(lie: dict[str, Any]) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={**DELEGATED, **lie})

    with pytest.raises(Unreachable) as error:
        await link_to(answer).delegate(KEY)
    assert error.value.code == "platform_unreachable"


async def test_a_refusal_has_a_bounded_text() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(409, json={"error": {"code": "c" * 9_999, "message": "m" * 999_999}})

    with pytest.raises(Refused) as error:
        await link_to(answer).delegate(KEY)
    assert (len(error.value.code), len(error.value.message)) == (64, 1_000)


def link_to(answer: Callable[[httpx.Request], Awaitable[httpx.Response]]) -> PlatformLink:
    """Return a link to what answers so."""
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return PlatformLink(ProgramLink(client, Program("http://127.0.0.1:1", "platform", "platform_unreachable")))


async def test_an_environment_that_is_down(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(self: PayeeDesk, query: bytes) -> None:
        raise PeerError("environment_down", "nobody there")

    async with street.payer() as payer:
        monkeypatch.setattr(PayeeDesk, "resolve", down)
        assert await code_of(payer, street.world.code(), amount=1) == "environment_down"
    assert await money(street) == MONEY


# -- a platform that does not do as it should ------------------------------------------------------------


class Bent(PlatformLink):
    """A platform whose answers are changed on the way; ``lost`` so many are made and not told."""

    def __init__(self, link: PlatformLink, lost: int = 0, **changes: Any) -> None:
        self._link = link
        self._changes = changes
        self._lost = lost

    async def delegate(self, key: bytes) -> Delegation:
        return await self._link.delegate(key)

    async def pay(self, asked: Pay) -> Payment:
        answer = await self._link.pay(asked)
        if self._lost:
            self._lost -= 1
            raise Unreachable("hung up", "platform_unreachable")
        return changed(answer, **self._changes)


async def test_another_payment_than_was_asked_for(street: Street) -> None:
    changes: list[dict[str, Any]] = [
        {"server": "wallet-q"},
        {"identity": "0" * 26},
        {"order": "o-2"},
        {"payer": "user-e"},
        {"payee": "thief"},
        {"amount": AMOUNT + 1},
        {"currency": "USD"},
        {"state": "DONE"},
    ]
    async with open_platform(street.doors["wallet-p"].url, token=TOKEN) as link:
        for change in changes:
            payer = await street.payer_over(Bent(link, **change))
            assert await code_of(payer, street.world.code(), amount=AMOUNT, order="o-1") == "bad_answer", change


async def test_a_lost_answer_is_no_second_payment(street: Street) -> None:
    async with open_platform(street.doors["wallet-p"].url, token=TOKEN) as link:
        payer = await street.payer_over(Bent(link, lost=1))
        assert await code_of(payer, street.world.code(), amount=AMOUNT, order="o-1") == "platform_unreachable"
        again = await paid_with(payer, street.world.code(), amount=AMOUNT, order="o-1")
        assert (again.state, again.is_first) == ("PAID", False)
    assert await money(street) == MONEY - AMOUNT


async def test_an_open_payment_is_asked_for_again(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Bent):
        asked = 0

        async def pay(self, asked: Pay) -> Payment:
            self.asked += 1
            answer = await super().pay(asked)
            return changed(answer, state=OPEN) if self.asked < 4 else answer

    monkeypatch.setattr(payer_module, "OPEN_PAUSE_FIRST_MS", 1)
    async with open_platform(street.doors["wallet-p"].url, token=TOKEN) as link:
        slow = Slow(link)
        payer = await street.payer_over(slow)
        looked = await payer.look(read_payload(street.world.code()))
        asked = payer.terms(looked, payer="user-b", amount=AMOUNT)
        assert (await payer.pay(looked, asked)).state == OPEN, "who does not wait is told so"
        assert (await payer.pay(looked, asked, wait_ms=60_000)).state == "PAID"
        assert slow.asked == 4
        slow.asked = -1_000_000
        assert (await payer.pay(looked, asked, wait_ms=20)).state == OPEN
    assert await money(street) == MONEY - AMOUNT


async def test_a_platform_pays_to_its_own_record_alone(street: Street) -> None:
    """A client that resolved something else, whoever made it believe that, pays nobody."""
    async with street.payer() as payer:
        looked = await payer.look(read_payload(street.world.code()))
        asked = payer.terms(looked, payer="user-b", amount=AMOUNT)
        for wrong, code in (
            (replace_payee(asked, "user-e"), "wrong_payee"),
            (changed(asked, amount=None), "amount_missing"),
        ):
            with pytest.raises(Refused) as error:
                await payer.pay(looked, wrong)
            assert error.value.code == code
        none = replace(looked, resolved=replace(looked.resolved, candidates=()))
        with pytest.raises(Refused) as error:
            payer.terms(none, payer="user-b", amount=1)
        assert error.value.code == "no_platform"
        with pytest.raises(LocalError):
            payer.terms(looked, payer="user-b")


def replace_payee(asked: Pay, payee: str) -> Pay:
    """Return the same with another payee."""
    return changed(asked, payee=payee)
