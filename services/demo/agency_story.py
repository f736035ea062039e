"""The story of the agency demo.

::

    agreements with issuer-c and issuer-f, signed by both, are opened · one with issuer-d is refused · terms are
    negotiated · the permission node and its desk die: an application waits, trade goes on · accounts are opened ·
    the file is sent; the issuer end dies in the middle and comes back · single persons order what must end otherwise ·
    the bank's gateway and sales end die and come back · units are redeemed and converted, an initial subscription is
    allotted · the same file again · the permission node comes back, and the application is decided
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

import trio

from consensus.ledger.codec import Value
from services.agency import clerk
from services.agency.credentials import Agreement, Conditions, TermsFile, new_agreement, sign_agreement, sign_terms
from services.agency.issuer_interface import Allot, Allotted
from services.agency.orders import Application
from services.agency.sales_interface import OrderRecord, State
from services.client.client import Client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.demo.agency_facts import Crash
from services.demo.agency_network import (
    AUTHORITY,
    BANK,
    BANK_GATEWAY,
    ISSUER,
    ISSUER_END,
    OTHER,
    OUTSIDER,
    PERMISSION,
    SALES,
    AgencyConsortium,
)
from services.demo.agency_script import AMOUNT_MAX, KINDS, NEW, PRODUCT, Order, Script
from services.demo.agency_till import Till, patiently
from services.demo.watch import Watch
from services.local.link import LocalLink

DECISION_MS_MAX = 15_000
TERMS_S_MAX = 15
POLL_S = 0.05
BEGUN_BEFORE_MS = 3_600_000
YEAR_MS = 365 * 24 * 3_600 * 1_000
SUBJECT = f"product:{PRODUCT}"


@dataclass(frozen=True, slots=True)
class Times:
    """How long parts took, s."""

    accounts_s: float
    file_s: float


class Story:
    """One run of the story; ``run`` tells it from others on the same network."""

    def __init__(
        self, script: Script, consortium: AgencyConsortium, client: Client, till: Till, watch: Watch, run: str
    ) -> None:
        self.answers: dict[str, tuple[str, str]] = {}
        self.crashes: list[Crash] = []
        self.terms = (0, 0)
        self.joined = ("", "")
        self.ended_without_permission = 0
        self.repeated: list[OrderRecord] = []
        self.repeated_packages = 0
        self.times = Times(0, 0)
        self._script = script
        self._consortium = consortium
        self._client = client
        self._till = till
        self._watch = watch
        self._run = run

    @property
    def sources(self) -> list[str]:
        """The names under which orders are brought, in their order."""
        return [self.source(name) for name in ("accounts", "file", "people", "later")]

    def source(self, name: str) -> str:
        """Return the name of a part of the script: the same for the same orders."""
        parts = {
            "accounts": self._script.accounts,
            "file": self._script.applications,
            "people": applications(self._script.people),
            "later": applications(self._script.later),
        }
        return f"{name}:{sha256(repr(parts[name]).encode()).hexdigest()[:32]}"

    async def play(self) -> None:
        """Play it."""
        await self._refuse_outsider()
        await self._negotiate()
        await self._consortium.kill_program(AUTHORITY)
        await self._consortium.kill(PERMISSION)
        self._watch.say("the permission node and its desk are down; trade goes on")
        agreement = self._agreement("again", [OTHER], BANK, OTHER)
        application = await self._apply(agreement)
        waiting = await clerk.ask(self._client, "application", {"application": application}, clerk.ApplicationRecord)
        await self._trade()
        self.ended_without_permission = len(
            [record for record in await self._till.records() if record.state not in (State.NEW, State.PENDING)]
        )
        await self._consortium.start(PERMISSION)
        await self._consortium.start_program(AUTHORITY)
        self._watch.say("the permission node is back")
        decided = await clerk.await_decision(self._client, application, timeout_ms=DECISION_MS_MAX)
        self.joined = (waiting.status, decided.status)

    # -- joining and terms -----------------------------------------------------------------------------

    def _agreement(self, name: str, issuers: list[str], *signers: str) -> Agreement:
        now_ms = time.time_ns() // 1_000_000
        agreement = new_agreement(
            self._consortium.genesis.chain_id(),
            number=f"{name}-{self._run}",
            bank=BANK,
            issuers=issuers,
            document=sha256(name.encode()).digest(),
            valid_from_ms=now_ms - BEGUN_BEFORE_MS,
            valid_until_ms=now_ms + YEAR_MS,
        )
        for organisation in signers:
            # Who has no business key that the chain knows signs with its account's.
            has_business = organisation != OUTSIDER
            key = self._consortium.key(f"{organisation}-business" if has_business else organisation)
            agreement = sign_agreement(agreement, organisation, key)
        return agreement

    async def _refuse_outsider(self) -> None:
        """Apply with agreements that lack a signature, have an altered one, or are with nobody that joined."""
        self._watch.say("agreements that do not hold are refused")
        good = self._agreement("outsider", [ISSUER, OUTSIDER], BANK, ISSUER, OUTSIDER)
        unsigned = self._agreement("unsigned", [ISSUER, OUTSIDER], BANK, ISSUER)
        altered = self._agreement("altered", [OTHER], BANK)
        forged = sign_agreement(altered, OTHER, self._consortium.key(f"{BANK}-business"))
        for title, agreement, code in (
            (f"an agreement without {OUTSIDER}'s signature", unsigned, "signature_missing"),
            (f"one with {OUTSIDER}, who is no party", good, "unknown_party"),
            (f"one that {BANK} signed for {OTHER}", forged, "bad_signature"),
        ):
            self.answers[title] = (await self._code(partial(self._apply, agreement)), code)

    async def _apply(self, agreement: Agreement) -> bytes:
        """Apply for channels and return the application's id."""
        signer = Signer.of(BANK, self._consortium.key(BANK))
        (await self._client.call_many(signer, [agreement.call()])).check()
        return agreement.id()

    async def _negotiate(self) -> None:
        """Change the terms of a product: alone it fails, together it works."""
        self._watch.say("terms are negotiated")
        client, chain_id = self._client, self._consortium.genesis.chain_id()
        before = await clerk.newest_version(client, BANK, ISSUER, SUBJECT)
        terms = TermsFile(
            bank=BANK, issuer=ISSUER, subject=SUBJECT, terms=Conditions(kinds=KINDS, amount_max=AMOUNT_MAX)
        )
        bank, issuer, desk = (Signer.of(name, self._consortium.key(name)) for name in (BANK, ISSUER, PERMISSION))
        call = terms.call(before + 1, self._consortium.key(f"{BANK}-business"), chain_id)
        (await client.call_many(bank, [call])).check()
        proposal = terms.id(before + 1)

        async def enact(signer: Signer) -> None:
            (await client.call(signer, "cooperation", "enact_terms", {"proposal": proposal})).check()

        self.answers[f"{BANK} puts its own terms in force"] = (await self._code(lambda: enact(bank)), "not_allowed")
        self.answers["the desk, with one signature"] = (await self._code(lambda: enact(desk)), "signature_missing")
        signature = sign_terms(proposal, self._consortium.key(f"{ISSUER}-business"), chain_id)
        arguments: dict[str, Value] = {"proposal": proposal, "signature": signature}
        (await client.call(issuer, "cooperation", "accept_terms", arguments)).check()
        after = before
        with trio.move_on_after(TERMS_S_MAX):
            while after == before:
                await trio.sleep(POLL_S)
                after = await clerk.newest_version(client, BANK, ISSUER, SUBJECT)
        self.terms = (before, after)

    async def _code(self, ask: Callable[[], Awaitable[object]]) -> str:
        """Return the code that something is refused with, "" where it is not."""
        try:
            await ask()
        except Refused as error:
            return error.code
        return ""

    # -- trade -----------------------------------------------------------------------------------------

    async def _trade(self) -> None:
        script, till = self._script, self._till
        accounts, file, people, later = self.sources
        creator = script.file.header.creator
        self._watch.say(f"{len(script.accounts):,} accounts are opened at {ISSUER}")
        began = time.monotonic()
        await till.send(accounts, script.accounts)
        accounts_s = time.monotonic() - began
        await till.know(ISSUER, script.profiles)
        self._watch.say(f"the file of {len(script.applications):,} orders is sent; {ISSUER_END} dies")
        began = time.monotonic()
        await till.bring(file, script.applications, creator=creator)
        await self._crash(ISSUER_END, file)
        self.times = Times(accounts_s, time.monotonic() - began)
        self._watch.say(f"single orders are sent; {BANK_GATEWAY} dies")
        await till.bring(people, applications(script.people))
        await self._crash(BANK_GATEWAY, people)
        await self._allot()
        self._watch.say(f"units are redeemed and converted; {SALES} dies")
        await till.bring(later, applications(script.later))
        await self._crash(SALES, later)
        await till.until(people, lambda shown: any(total.state is State.ALLOTTED for total in shown.totals))
        self._watch.say("the same file is sent again")
        before = (await till.summary()).packages
        await till.send(file, script.applications, creator=creator)
        self.repeated = await till.records(file)
        self.repeated_packages = (await till.summary()).packages - before

    async def _allot(self) -> None:
        """Close the initial subscription: everybody gets all."""
        async with LocalLink(self._consortium.socket(ISSUER_END)) as issuer:
            await patiently(lambda: issuer.call("allot", Allot(NEW), Allotted))

    async def _crash(self, program: str, source: str) -> None:
        """Let a program die right after a source was brought, start it again, and count what ends afterwards."""
        await self._consortium.kill_program(program)
        await self._consortium.start_program(program)
        shown = await self._till.until(source)
        self.crashes.append(Crash(program, sum(total.count for total in shown.totals)))


def applications(orders: Sequence[Order]) -> list[Application]:
    """Return what orders apply for."""
    return [order.application for order in orders]
