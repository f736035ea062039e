"""The story of the payee demo.

::

    a merchant prints its code · one wallet has a record of it: its payer pays from a photo of the print, another
    wallet's cannot · the other wallet comes later: the same print works with both · what a record says changes · codes
    for one order: paid once however often, tampered, expired · bad records are refused · candidates: names alone, and
    with the merchant's consent what is shareable · an environment dies, then both, then a node · a measurement is
    struck off · a new key, kept from one environment, then given to it · a wallet parts from the merchant · a split key
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import trio

from consensus.ledger.errors import HansaError
from consensus.ledger.payees import IDENTITY_BYTES, Mode
from services.demo.payee_facts import Accident, Candidates, Standing
from services.demo.payee_forgeries import forgeries
from services.demo.payee_network import (
    BANK,
    BANK_ENVIRONMENT,
    ISSUER,
    ISSUER_ENVIRONMENT,
    OTHER,
    Doors,
    P,
    PayeeConsortium,
    Q,
)
from services.demo.payee_till import Till, clock_ms, photograph
from services.demo.watch import Watch
from services.payee import emv
from services.payee.codes import ReadCode
from services.payee.interfaces import Acquiring, Pay, Payment
from services.payee.merchants import Merchant

PAYER, OTHER_PAYER = "user-b", "user-e"
"""Accounts of simulated money that pay."""
ACCOUNTS = {P: "merchant-m", Q: "shop"}
"""The merchant's account at each platform; later P's is another."""
LATER = "issuer-d"
CURRENCY = "CNY"
REPEATS = 20
"""How often one order is paid at once."""
EXPIRY_MS = 600_000
ENVIRONMENTS = {BANK: BANK_ENVIRONMENT, ISSUER: ISSUER_ENVIRONMENT}


class Story:
    """One run of the story."""

    def __init__(self, run: str, consortium: PayeeConsortium, till: Till, doors: Doors, watch: Watch) -> None:
        self.payments: list[Payment] = []
        self.answers: dict[str, tuple[str, str]] = {}
        self.accidents: list[Accident] = []
        self.candidates: list[Candidates] = []
        self.repeated = (0, 0, 0)
        self.is_again_the_same = False
        self.prints: list[str] = []
        self.secrets: list[str] = []
        """What only a platform, its merchant and who resolves may see."""
        self.standings: dict[str, Standing] = {}
        self.changes = 0
        self.times_ms: list[float] = []
        self.merchant: Merchant
        self._run = run
        self._consortium = consortium
        self._till = till
        self._doors = doors
        self._watch = watch
        self.printed = ""

    async def play(self) -> None:
        """Play it."""
        await self._print_code()
        await self._one_platform()
        await self._second_platform()
        await self._dynamic()
        await self._forged()
        await self._candidates()
        await self._die_in_turn()
        await self._distrust()
        await self._rotate()
        await self._part()
        await self._split()

    # -- one code, many platforms ----------------------------------------------------------------------

    async def _print_code(self) -> None:
        self._watch.say("a merchant gets a random identity and prints its code")
        self.merchant = await self._till.new_merchant(self._run)
        self.changes = 1
        self.printed = self._till.code(self.merchant, name="TEAHOUSE").text

    async def _one_platform(self) -> None:
        self._watch.say(f"{P} has a record of it; {PAYER} pays from a photo of the print")
        await self._add(P, ACCOUNTS[P])
        await self._pay(P, self._photo(), PAYER, 2_500)
        await self._refused("no matching platform", "no_platform", partial(self._look, Q, self._photo()))
        stranger = self._till.code(Merchant("stranger", secrets.token_bytes(IDENTITY_BYTES), self.merchant.key)).text
        await self._refused("an unknown identity", "unknown_identity", partial(self._look, P, stranger))

    async def _second_platform(self) -> None:
        self._watch.say(f"{Q} comes later: the same print works with both")
        await self._add(Q, ACCOUNTS[Q])
        await self._pay(Q, self._photo(), OTHER_PAYER, 1_200)
        await self._pay(P, self._photo(), PAYER, 300)
        self._watch.say(f"what {P} has of the merchant changes")
        await self._add(P, LATER, is_shareable=True)
        await self._pay(P, self._photo(), PAYER, 700)
        stale = Pay(payload=self.printed, payer=PAYER, payee=ACCOUNTS[P], amount=100, order=f"{self._run}-stale")
        await self._refused("the payee of before", "wrong_payee", partial(self._till.pay_blindly, P, stale))

    def _photo(self) -> str:
        """Return what a payer reads from the one print there is."""
        read = photograph(self.printed)
        self.prints.append(read)
        return read

    # -- codes for one order ---------------------------------------------------------------------------

    async def _dynamic(self) -> None:
        self._watch.say(f"one order, paid {REPEATS} times at once, tampered with, too late")
        code = self._order("1")
        await self._pay(P, photograph(code.text), PAYER)
        again = await self._till.pay(P, code.text, first=BANK, payer=PAYER)
        self.is_again_the_same = not again.is_first and again.event == self.payments[-1].event
        other = partial(self._till.pay, Q, code.text, first=BANK, payer=PAYER)
        await self._refused("an order paid through another platform too", "order_conflict", other)
        await self._repeat(self._order("2"))
        for place, payload, codes in (
            ("a digit changed", code.text[:-10] + "0" + code.text[-9:], ("bad_crc",)),
            ("another amount, CRC mended", _with_amount(code, "0.01"), ("bad_code",)),
            ("an expired code", self._order("3", expires_ms=clock_ms() - 60_000).text, ("code_expired",)),
        ):
            await self._refused(f"{place}, at the payer", *codes, partial(self._look, P, payload))
            blind = Pay(payload=payload, payer=PAYER, payee=LATER)
            await self._refused(f"{place}, at the platform", *codes, partial(self._till.pay_blindly, P, blind))
        dearer = partial(self._till.pay, P, self._order("4").text, first=BANK, payer=PAYER, amount=1)
        await self._refused("another amount than the code's", "wrong_amount", dearer)

    def _order(self, name: str, *, expires_ms: int | None = None) -> ReadCode:
        until_ms = clock_ms() + EXPIRY_MS if expires_ms is None else expires_ms
        order = f"{self._run}-{name}"
        return self._till.code(self.merchant, amount=4_200, currency=CURRENCY, order=order, expires_ms=until_ms)

    async def _repeat(self, code: ReadCode) -> None:
        found: list[Payment] = []

        async def pay() -> None:
            found.append(await self._till.pay(P, code.text, first=BANK, payer=PAYER))

        async with trio.open_nursery() as nursery:
            for _ in range(REPEATS):
                nursery.start_soon(pay)
        first = [payment for payment in found if payment.is_first]
        self.payments += first
        self.repeated = (len(found), len({payment.event for payment in found}), len(first))

    # -- what is refused -------------------------------------------------------------------------------

    async def _forged(self) -> None:
        self._watch.say("records that are forged, old, or under the wrong key are refused")
        status = await self._till.status(P)
        standing = self.standings[P]
        for forgery in forgeries(
            self._till.client.chain_id, self.merchant, P, version=standing.version, epoch=status.epoch
        ):
            code = await self._till.call(P, "add_record", **forgery.arguments)
            self.answers[forgery.title] = (code, forgery.wanted)

    async def _refused(self, title: str, wanted: str, ask: Callable[[], Awaitable[object]]) -> None:
        try:
            await ask()
            code = ""
        except HansaError as error:
            code = error.code
        self.answers[title] = (code, wanted)

    # -- candidates ------------------------------------------------------------------------------------

    async def _candidates(self) -> None:
        self._watch.say("candidates: names alone, and with the merchant's consent what is shareable")
        await self._ask_candidates("without consent", {P: False, Q: True})
        await self._till.consent(self.merchant, is_given=True)
        await self._ask_candidates("with consent", {P: True, Q: True})
        await self._till.consent(self.merchant, is_given=False)
        await self._ask_candidates("consent taken back", {P: False, Q: True})
        self.changes += 2

    async def _ask_candidates(self, title: str, wanted: dict[str, bool]) -> None:
        """Ask as Q, whose record is not shareable; P's is."""
        looked = await self._till.look(Q, self.printed, first=BANK, mode=Mode.CANDIDATES)
        shown = {item.server: item.acquiring is not None for item in looked.resolved.candidates}
        self.candidates.append(Candidates(title, shown, wanted))

    # -- accidents -------------------------------------------------------------------------------------

    async def _die_in_turn(self) -> None:
        self._watch.say(f"the environment of {BANK} dies")
        await self._consortium.kill_program(BANK_ENVIRONMENT)
        await self._accident(f"environment of {BANK}")
        await self._consortium.kill_program(ISSUER_ENVIRONMENT)
        await self._refused("no environment at all", "environment_down", partial(self._look, P, self.printed))
        for program in ENVIRONMENTS.values():
            await self._consortium.start_program(program)
        for program in (P, Q):
            self._watch.say(f"{program} dies while it is paid")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pay, program, self.printed, PAYER, 50)
                await self._consortium.kill_program(program)
                await self._consortium.start_program(program)
            self.accidents.append(Accident(program, 1))
        self._watch.say(f"node {BANK} dies")
        await self._consortium.kill(BANK)
        self._till.running.remove(BANK)
        await self._accident(f"node {BANK}")
        await self._pay(P, self.printed, PAYER, 60)
        await self._consortium.start(BANK)
        self._till.running.append(BANK)
        await self._till.proven(self.merchant, 1)

    async def _accident(self, name: str) -> None:
        """Resolve for both platforms while something is dead; the one that is dead is asked first."""
        looked = [await self._look(server, self.printed) for server in (P, Q)]
        self.accidents.append(Accident(name, len(looked)))

    async def _distrust(self) -> None:
        self._watch.say("the environments' measurement is struck off the allow-list")
        await self._till.allow(self._doors.measurement, self.merchant, is_allowed=False)
        wanted = "environment_refused"
        await self._refused("a measurement that is not allowed", wanted, partial(self._look, P, self.printed))
        await self._till.allow(self._doors.measurement, self.merchant, is_allowed=True)
        await self._look(P, self.printed)

    async def _rotate(self) -> None:
        self._watch.say(f"{P} takes a new key and keeps it from the environment of {ISSUER}")
        standing = self.standings[P]
        rotated = await self._till.rotate(P, [BANK], self.merchant)
        self.standings[P] = Standing(standing.account, standing.version + 1, rotated.epoch, "ACTIVE")
        self.changes += 1
        alone = partial(self._till.look, P, self.printed, first=ISSUER, is_alone=True)
        await self._refused("an environment without the key", "missing_key", alone)
        await self._look(P, self.printed)
        await self._till.trust(P, [ISSUER], self.merchant)
        await alone()

    async def _part(self) -> None:
        self._watch.say(f"{Q} and the merchant part")
        await self._till.remove(Q, self.merchant)
        standing = self.standings[Q]
        self.standings[Q] = Standing(standing.account, standing.version + 1, standing.epoch, "REMOVED")
        self.changes += 1
        await self._refused("a platform that parted", "no_platform", partial(self._look, Q, self._photo()))
        await self._pay(P, self._photo(), OTHER_PAYER, 800)

    async def _split(self) -> None:
        self._watch.say("a merchant with a split key: one part in the code, one at the platform")
        merchant = await self._till.new_merchant(f"{self._run}-split", is_split=True)
        await self._till.add(P, merchant, self._acquiring(LATER))
        await self._pay(P, photograph(self._till.code(merchant).text), PAYER, 900)
        without = self._till.code(replace(merchant, key_part=None)).text
        pay = partial(self._till.pay, P, without, first=BANK, payer=PAYER, amount=900)
        await self._refused("a code without its part of the key", "key_part_missing", pay)

    # -- what all acts do ------------------------------------------------------------------------------

    async def _add(self, server: str, account: str, *, is_shareable: bool = False) -> None:
        """Add or update a platform's record of the merchant."""
        acquiring = self._acquiring(account)
        put = await self._till.add(server, self.merchant, acquiring, is_shareable=is_shareable)
        self.standings[server] = Standing(account, put.version, put.epoch, "ACTIVE")
        self.changes += 1

    def _acquiring(self, account: str) -> Acquiring:
        """Return how an account is paid; what stands there besides is looked for everywhere later."""
        mark = secrets.token_hex(8)
        acquiring = Acquiring(
            account=account,
            name=f"Teahouse {mark[:8]}",
            currency=CURRENCY,
            terminal=f"T-{mark}",
            note=f"settled daily, contract {secrets.token_hex(8)}",
        )
        self.secrets += [acquiring.name, acquiring.terminal, acquiring.note]
        return acquiring

    async def _look(self, server: str, payload: str) -> object:
        began = trio.current_time()
        looked = await self._till.look(server, payload, first=BANK)
        self.times_ms.append(1_000 * (trio.current_time() - began))
        return looked

    async def _pay(self, server: str, payload: str, payer: str, amount: int | None = None) -> None:
        order = None if amount is None else f"{self._run}-o{len(self.payments)}"
        self.payments.append(
            await self._till.pay(server, payload, first=OTHER, payer=payer, amount=amount, order=order)
        )


def _with_amount(code: ReadCode, amount: str) -> str:
    """Return a code's characters with another amount and the CRC that fits."""
    fields = [emv.make_field("54", amount) if field.tag == "54" else field for field in code.payload.fields]
    return emv.Payload.of(fields).build()
