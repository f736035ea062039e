"""The bridge: every confirmed purchase is settled once, wherever it is killed, and nothing on the chain says whose."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import LocalError
from consensus.ledger.keys import PrivateKey
from services.client.keystore import KeyStore, Signer
from services.local.files import existing, read_service, write_service
from services.local.link import LocalLink
from services.local.service import LocalService, serve
from services.settlement import bridge as program
from services.settlement.bridge import Bank, Bridge, BridgeSettings
from services.settlement.bridge_config import BridgeFile, bridge_settings
from services.settlement.bridge_interface import (
    BridgeStatus,
    BridgeStatusQuery,
    ConfirmedAnswer,
    ConfirmedNext,
    ConfirmedPage,
    Purchase,
    Retry,
)
from services.settlement.bridge_setup import BridgePlan, set_up_bridge
from services.settlement.bridge_store import BridgeStore, open_bridge_store
from services.settlement.config import PayerFile
from services.settlement.interfaces import EventsPage, EventsQuery
from services.settlement.states import Event
from tests.client.support import CONSORTIUM
from tests.settlement.house import MONEY, PAID, House, end, house
from tests.settlement.parts import BUYER, ISSUER

T = TypeVar("T")

UNIT = "FUND-000198"


def purchase(number: int, **changes: object) -> Purchase:
    plain = Purchase("bank-a", "996", f"A{number}", "000198", f"T{number}", 1_000 + number, 2_000 + number, "156")
    return msgspec.structs.replace(plain, **changes)


class IssuerEnd:
    """What the bridge sees of an issuer end."""

    def __init__(self) -> None:
        self.answers: list[ConfirmedAnswer] = []
        self.numbered = 0
        self._roots = 0

    def answer(self, *purchases: Purchase) -> None:
        self.numbered += 1
        self._roots += 1
        root = self._roots.to_bytes(32, "big")
        self.answers.append(ConfirmedAnswer(self.numbered, root, 0, list(purchases)))

    async def confirmed(self, params: ConfirmedNext) -> ConfirmedPage:
        items = [answer for answer in self.answers if answer.number > params.after][:2]
        return ConfirmedPage(items, items[-1].number if items else params.after, self.numbered)


class Died(Exception):
    """The bridge was killed here."""


class Steps:
    """Counts what the bridge does outside of itself, and kills it before or after one of these."""

    def __init__(self, dies_at: int = 0, *, is_after: bool = False) -> None:
        self.count = 0
        self._dies_at = dies_at
        self._is_after = is_after

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a call; one that is awaited dies when it has been."""

        def call(*arguments: object, **options: object) -> object:
            self.count += 1
            mine = self.count == self._dies_at
            if mine and not self._is_after:
                raise Died
            result = function(*arguments, **options)
            if hasattr(result, "__await__"):
                return self._awaited(result, is_mine=mine)
            if mine:
                raise Died
            return result

        return call

    async def _awaited(self, result: Any, *, is_mine: bool) -> object:
        value = await result
        if is_mine:
            raise Died
        return value


class Wrapped:
    """An object, some methods of which are steps."""

    def __init__(self, inner: object, steps: Steps, *methods: str) -> None:
        self._inner = inner
        self._steps = steps
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._steps.around(found) if name in self._methods else found


class Site:
    """A house with an issuer end, and bridges that come and go."""

    def __init__(self, found: House, issuer: IssuerEnd, link: LocalLink) -> None:
        self.house = found
        self.issuer = issuer
        self.link = link
        self.settings = BridgeSettings(
            run=found.folder / "bridge",
            data=found.folder / "bridge" / "data",
            key=b"k" * 32,
            issuer=link.path,
            events=found.settings.socket,
            accounts_url="",
            accounts_token="",
            genesis=CONSORTIUM.genesis,
            nodes=(),
            signer=ISSUER,
            payee="shop",
            prefix="FUND-",
            is_from_beginning=True,
            banks={"bank-a": Bank(bytes(BUYER.address), "user-b")},
            payers={},
        )

    def bridge(self, store: BridgeStore, steps: Steps | None = None) -> Bridge:
        steps = steps or Steps()
        events = Wrapped(self.house.link, steps, "call")
        return Bridge(
            self.settings,
            Wrapped(store, steps, "take", "issued", "open_sales", "put"),  # type: ignore[arg-type]
            Wrapped(self.house.client, steps, "call_once", "call", "submit_many"),  # type: ignore[arg-type]
            Wrapped(self.link, steps, "call"),  # type: ignore[arg-type]
            events,  # type: ignore[arg-type]
            Wrapped(self.house.bank, steps, "run"),  # type: ignore[arg-type]
            now_ms=self.house.clock,
        )

    async def run(self, steps: Steps | None = None) -> dict[str, int]:
        """Run a bridge until all that is confirmed has been read and has ended; return how sales stand."""
        with open_bridge_store(self.settings.data) as store, trio.fail_after(30):
            bridge = self.bridge(store, steps)
            while (store.position or 0) < self.issuer.numbered:
                await bridge.read(0)
            while store.totals()["OPEN"]:
                await bridge.settle()
            return store.totals()

    async def events(self) -> list[Event]:
        return (await self.house.link.call("events", EventsQuery(limit=500), EventsPage)).items

    async def unit(self, name: str = UNIT) -> tuple[int, tuple[int, int], tuple[int, int]]:
        """Return supply, and what issuer and nominee have available and reserved."""
        client = self.house.client
        unit = await client.query("tokens", "unit", {"unit": name})
        parts = []
        for who in (ISSUER, BUYER):
            found = await client.query("tokens", "balance", {"unit": name, "account": bytes(who.address)})
            parts.append((found["available"], found["reserved"]))  # type: ignore[call-overload,index]
        return (unit["supply"], *parts)  # type: ignore[return-value,call-overload,index]

    async def unit_at_rest(self) -> tuple[int, tuple[int, int], tuple[int, int]]:
        """Return the same once all liens are lifted, which takes a while."""
        with trio.fail_after(30):
            while (found := await self.unit())[2][1]:
                await trio.lowlevel.checkpoint()
        return found

    async def check_settled(self, *purchases: Purchase) -> None:
        """Check that exactly these have moved units and money, once."""
        units, price = sum(item.volume for item in purchases), sum(item.amount for item in purchases)
        events = await self.events()
        assert sorted((event.terms.units, event.terms.price) for event in events if end(event) == PAID) == sorted(
            (item.volume, item.amount) for item in purchases
        )
        assert await self.unit_at_rest() == (units, (0, 0), (units, 0))
        assert self.house.bank.parts("user-b") == (MONEY - price, 0)
        assert self.house.bank.parts("shop") == (price, 0)


@asynccontextmanager
async def site(folder: Path) -> AsyncIterator[Site]:
    issuer, service, stopping = IssuerEnd(), LocalService(), trio.Event()
    service.add("confirmed", ConfirmedNext, issuer.confirmed)
    socket = folder / "issuer.sock"
    async with house(folder) as found, trio.open_nursery() as nursery, LocalLink(socket) as link:
        await nursery.start(serve, socket, service, stopping)
        await found.events.start()
        await found.payer.start()
        yield Site(found, issuer, link)
        await link.aclose()
        stopping.set()


async def test_purchases_are_settled_each_once_and_nobody_is_named(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        first, second, third = (purchase(number) for number in (1, 2, 3))
        found.issuer.answer(first, second)
        found.issuer.answer()
        found.issuer.answer(second, third)  # an application that came again in another package
        assert await found.run() == {"OPEN": 0, "SETTLED": 3, "FAILED": 0}
        await found.check_settled(first, second, third)
        assert await found.run() == {"OPEN": 0, "SETTLED": 3, "FAILED": 0}
        await found.check_settled(first, second, third)
        for event in await found.events():
            assert "A1" not in event.event
            assert (event.terms.buyer, event.terms.payer, event.terms.payee) == (BUYER.address, "user-b", "shop")
        (found.settings.data / "bridge.db").unlink()  # the key alone makes the same events again
        assert await found.run() == {"OPEN": 0, "SETTLED": 3, "FAILED": 0}
        await found.check_settled(first, second, third)


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
async def test_killed_at_every_step_it_settles_each_purchase_once(tmp_path: Path, is_after: bool) -> None:
    async with site(tmp_path) as found:
        bought: list[Purchase] = []
        deaths = 0
        for dies_at in range(1, 60):
            item = purchase(dies_at)
            bought.append(item)
            found.issuer.answer(item)
            steps = Steps(dies_at, is_after=is_after)
            with suppress(Died):
                await found.run(steps)
                if steps.count < dies_at:
                    break
            deaths += 1
            assert await found.run() == {"OPEN": 0, "SETTLED": len(bought), "FAILED": 0}
        assert deaths >= 10, "each of the steps is one at which it dies"
        await found.check_settled(*bought)


async def test_a_purchase_that_is_not_paid_fails_and_is_tried_again_on_demand(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        dear = purchase(1, amount=MONEY + 1)
        found.issuer.answer(dear, purchase(2, amount=0), purchase(3, volume=0))
        assert await found.run() == {"OPEN": 0, "SETTLED": 0, "FAILED": 1}
        with open_bridge_store(found.settings.data) as store:
            bridge = found.bridge(store)
            shown = await bridge.status(BridgeStatusQuery())
            assert [(sale.code, sale.units) for sale in shown.failed] == [("insufficient_funds", dear.volume)]
            assert (await bridge.retry(Retry(["a-none"]))).count == 0
        found.house.bank.books.deposit("more", "user-b", 1)
        with open_bridge_store(found.settings.data) as store:
            assert (await found.bridge(store).retry(Retry([]))).count == 1
        assert await found.run() == {"OPEN": 0, "SETTLED": 1, "FAILED": 0}
        assert found.house.bank.parts("shop") == (MONEY + 1, 0)
        assert sorted(event.event[-2:] == "-2" for event in await found.events()) == [False, True]
        assert await found.unit_at_rest() == (dear.volume, (0, 0), (dear.volume, 0)), "units were issued once"


async def test_what_no_block_took_in_time_gets_its_next_attempt_by_itself(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        item = purchase(1)
        found.issuer.answer(item)
        with open_bridge_store(found.settings.data) as store, trio.fail_after(30):
            bridge = found.bridge(store)
            found.house.client._now_ms = found.house.clock
            await bridge.read(0)
            (issue,) = store.unissued(10)
            await bridge._issue(issue)
            found.house.node.is_deciding = False
            assert await bridge.settle() == 0
            found.house.pass_ms(301_000)
            while not await bridge.settle():
                found.house.clock.ms += 500
            (sale,) = store.open_sales(10)
            assert (sale.attempt, sale.event) == (2, f"{sale.id}-2")
            found.house.go_on()
        assert await found.run() == {"OPEN": 0, "SETTLED": 1, "FAILED": 0}
        await found.check_settled(item)


async def test_another_s_unit_holds_up_its_own_sales_alone(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        client, other = found.house.client, Signer.of("other", PrivateKey.from_secret(77))
        public = other.key.public.compressed
        account: dict[str, Value] = {"name": "other", "public_key": public, "roles": ["unit-issuer"]}
        unit: dict[str, Value] = {"unit": "FUND-000199", "description": "another's"}
        (await client.call(ISSUER, "membership", "register_account", account)).check()
        (await client.call(other, "tokens", "define", unit)).check()
        for number in range(1, 4):
            found.issuer.answer(purchase(number, product="000199"))
        item = purchase(4)
        found.issuer.answer(item)
        with open_bridge_store(found.settings.data) as store, trio.fail_after(30):
            bridge = found.bridge(store)
            while store.position != 4:
                await bridge.read(0)
            while not store.totals()["SETTLED"]:
                with suppress(LocalError):
                    await bridge.settle()
            with pytest.raises(LocalError) as refusal:
                await bridge.settle()
            assert (refusal.value.code, store.totals()["OPEN"]) == ("foreign_unit", 3)
        await found.check_settled(item)


async def test_what_the_bridge_does_not_know_stops_the_reading_and_is_said(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        for changes, code in (({"bank": "bank-z"}, "unknown_bank"), ({"currency": "999"}, "unknown_currency")):
            found.issuer.answers.clear()
            found.issuer.numbered = 0
            found.issuer.answer(purchase(1, **changes))
            with open_bridge_store(found.settings.data) as store:
                with pytest.raises(LocalError) as refusal:
                    await found.bridge(store).read(0)
                assert refusal.value.code == code
                assert (store.position, store.totals()) == (0, {"OPEN": 0, "SETTLED": 0, "FAILED": 0})


async def test_at_its_first_start_it_leaves_what_was_before(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        found.settings = replace(found.settings, is_from_beginning=False)
        found.issuer.answer(purchase(1))
        with open_bridge_store(found.settings.data) as store:
            await found.bridge(store).read(0)
            assert (store.position, store.totals()["OPEN"]) == (1, 0)
        found.issuer.answer(purchase(2))
        assert await found.run() == {"OPEN": 0, "SETTLED": 1, "FAILED": 0}
        await found.check_settled(purchase(2))


async def test_what_it_left_at_its_first_start_stays_left_when_the_issuer_end_counts_anew(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        found.settings = replace(found.settings, is_from_beginning=False)
        for number in (1, 2):
            found.issuer.answer(purchase(number))
        with open_bridge_store(found.settings.data) as store:
            bridge = found.bridge(store)
            await bridge.read(0)
            del found.issuer.answers[1]
            found.issuer.numbered = 1  # put back: it knows the first one alone
            for _ in range(2):
                with pytest.raises(LocalError) as caught:
                    await bridge.read(0)
                assert (caught.value.code, store.position) == ("issuer_anew", 2)
            assert not any(store.totals().values())


async def test_an_issuer_end_that_counts_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        for number in (1, 2, 3):
            found.issuer.answer(purchase(number))
        assert (await found.run())["SETTLED"] == 3
        found.issuer.answers.clear()
        found.issuer.numbered = 0
        found.issuer.answer(purchase(4))  # what was put back knows less
        with open_bridge_store(found.settings.data) as store:
            await found.bridge(store).read(0)
            assert store.position == 0
        assert (await found.run())["SETTLED"] == 4
        await found.check_settled(*(purchase(number) for number in (1, 2, 3, 4)))


async def test_it_runs_as_a_program_and_says_how_it_stands(tmp_path: Path) -> None:
    async with site(tmp_path) as found:
        stopping = trio.Event()
        found.settings.run.mkdir()
        with open_bridge_store(found.settings.data) as store, trio.fail_after(30):
            async with trio.open_nursery() as nursery, LocalLink(found.settings.socket) as link:
                await nursery.start(program.serve, found.settings, found.bridge(store), stopping)
                found.issuer.answer(purchase(1, bank="bank-z"))
                while "unknown_bank" not in (shown := await link.call("status", {}, BridgeStatus)).trouble["reading"]:
                    await trio.lowlevel.checkpoint()
                assert (shown.position, shown.totals["OPEN"]) == (0, 0)
                found.issuer.answers[0].purchases[0] = purchase(1)
                while (shown := await link.call("status", {}, BridgeStatus)).totals["SETTLED"] < 1:
                    await trio.lowlevel.checkpoint()
                assert (shown.position, shown.trouble) == (1, {"reading": "", "settling": ""})
                await link.aclose()
                stopping.set()
        await found.check_settled(purchase(1))


def test_one_process_at_a_time_has_the_store(tmp_path: Path) -> None:
    with open_bridge_store(tmp_path) as store:
        store.take(5, [], [])
        with pytest.raises(LocalError) as refusal, open_bridge_store(tmp_path):
            pass
        assert refusal.value.code == "store_locked"
    with open_bridge_store(tmp_path) as store:
        assert store.position == 5


def test_it_is_set_up_once_and_reads_what_stands_there(tmp_path: Path) -> None:
    services, keys = tmp_path / "services", KeyStore(tmp_path / "keys")
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("long enough\n")
    passphrase.chmod(0o600)
    (tmp_path / "genesis.json").write_bytes(CONSORTIUM.genesis.to_json())
    keys.create("issuer-c", b"long enough")
    plan = BridgePlan(
        services=services,
        keystore=tmp_path / "keys",
        passphrase_file=passphrase,
        genesis_file=tmp_path / "genesis.json",
        nodes=("http://127.0.0.1:1",),
        issuer="issuer-c",
        issuer_socket=services / "issuer-c-end" / "run" / "issuer.sock",
        banks={"bank-a": bytes(BUYER.address)},
    )
    assert set_up_bridge(plan) == [], "there is no settlement here"
    payer = PayerFile(events="../e", accounts="http://127.0.0.1:2", accounts_token="", center="unix:c", center_token="")
    write_service(services / "settle-payer", payer)
    assert set_up_bridge(plan) == ["settle-bridge/service.toml", "settle-bridge/bridge.key"]
    assert set_up_bridge(plan) == []
    home = services / "settle-bridge"
    assert existing(home, BridgeFile) is not None
    settings = bridge_settings(home, read_service(home, BridgeFile))
    assert (settings.signer.name, settings.payee, len(settings.key)) == ("issuer-c", "issuer-c", 32)
    assert settings.issuer == plan.issuer_socket
    assert settings.banks == {"bank-a": Bank(bytes(BUYER.address), "bank-a")}
    (home / "bridge.key").write_text("short")
    with pytest.raises(LocalError) as refusal:
        bridge_settings(home, read_service(home, BridgeFile))
    assert refusal.value.code == "bad_config"
