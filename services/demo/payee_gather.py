"""Gathers the facts of the payee demo: from proven state, platforms, the account system, and everybody's disks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import trio

from consensus.ledger.errors import PeerError
from consensus.ledger.payees import merchant_key
from services.accounts.port import ENTRIES_MAX, Operation
from services.client.answers import Answer
from services.demo.agency_markers import find, forms_of
from services.demo.agency_till import patiently
from services.demo.payee_facts import Facts, Paid, Standing
from services.demo.payee_network import BANK, ISSUER, P, PayeeConsortium, Q
from services.demo.payee_story import Story
from services.demo.payee_till import Till
from services.demo.settlement_facts import Holding
from services.payee.identity import identity_text
from services.payee.interfaces import Payment, RecordRow
from services.payee.merchants import merchant_state, record_state

AGREE_ATTEMPTS, AGREE_PAUSE_S = 100, 0.1
EVER_MS = 1 << 62
EVENT_PREFIX = "payee-"
ACTIVE = "ACTIVE"


@dataclass(frozen=True, slots=True)
class Search:
    """What was looked for, in how many bytes, and what was found where; ``controls`` have what is public."""

    markers: int
    controls: frozenset[str]
    leaks: dict[str, list[str]]
    trace_bytes: int


class _Isolation(Answer, frozen=True):
    isolation: str


async def balances(till: Till) -> dict[str, Holding]:
    """Return what the account system says of everybody."""
    accounts = await patiently(till.accounts.accounts)
    return {account.id: Holding(account.available, account.held) for account in accounts}


async def gather_facts(
    story: Story, till: Till, consortium: PayeeConsortium, before: dict[str, Holding]
) -> tuple[Facts, Search]:
    """Ask everyone; in the end all nodes are ended, so that their disks can be read whole.

    Whoever keeps the network starts them again (:data:`services.demo.payee_network.OpenPayeeNetwork`).
    """
    merchant = story.merchant
    state = await merchant_state(till.client, merchant.identity)
    if state is None:
        raise PeerError("bad_answer", "the merchant of the story is not on the chain")
    own = {server: await till.own_records(server) for server in (P, Q)}
    after = await balances(till)
    posted = await moved(till)
    seals = await _seals(till, merchant.identity)
    isolation = {name: await _isolation(till, name) for name in (BANK, ISSUER)}
    chain = await _standings(till, merchant.identity, story.standings)
    found = own_standings(own, identity_text(merchant.identity))
    search = await _search(story, consortium)
    facts = Facts(
        printed=story.printed,
        prints=story.prints,
        payments=[_paid(item) for item in story.payments],
        moved={event: amount for event, amount in posted.items() if event in {item.event for item in story.payments}},
        standings=story.standings,
        chain=chain,
        own=found,
        changes=(story.changes, state.changes),
        money_before=before,
        money_after=after,
        answers=story.answers,
        repeated=story.repeated,
        is_again_the_same=story.is_again_the_same,
        candidates=story.candidates,
        accidents=story.accidents,
        isolation=isolation,
        leaks=search.leaks,
        markers=search.markers,
        controls=search.controls,
        nodes=frozenset(consortium.urls),
        seals=seals,
    )
    return facts, search


async def moved(till: Till) -> Counter[str]:
    """Return how much the account system's postings have paid for each event of payee codes."""
    found: Counter[str] = Counter()
    after = 0
    while True:
        ask = partial(till.accounts.entries, from_ms=0, until_ms=EVER_MS, after=after, limit=ENTRIES_MAX)
        page = await patiently(ask)
        for entry in page.items:
            if entry.event.startswith(EVENT_PREFIX) and entry.operation == Operation.PAY:
                found[entry.event] += entry.amount
        after = page.next
        if not after:
            return found


async def _standings(till: Till, identity: bytes, accounts: Mapping[str, Standing]) -> dict[str, Standing]:
    """Return the records as the chain proves them; the accounts in them it does not know."""
    found = {}
    for server in (P, Q):
        record = await record_state(till.client, server, identity)
        if record is not None:
            found[server] = Standing(accounts[server].account, record.version, record.epoch, record.status)
    return found


def own_standings(rows: Mapping[str, Sequence[RecordRow]], identity: str) -> dict[str, Standing]:
    """Return the active records of an identity as the platforms open them."""
    return {
        server: Standing(row.acquiring.account, row.version, row.epoch, ACTIVE)
        for server, items in rows.items()
        for row in items
        if row.identity == identity and row.acquiring is not None and not row.is_removed
    }


async def _isolation(till: Till, name: str) -> str:
    return (await till.alone[name].request("payee_environment", {}, _Isolation)).isolation


def _paid(payment: Payment) -> Paid:
    return Paid(payment.event, payment.server, payment.payer, payment.payee, payment.amount, payment.state)


async def _search(story: Story, consortium: PayeeConsortium) -> Search:
    """Look for what stands in records on all disks; nodes are ended for it, so this comes last."""
    markers = {text: forms_of(text) for text in story.secrets}
    public = {"identity": forms_of(story.merchant.identity)}
    for name in consortium.urls:
        await consortium.kill(name)
    return await trio.to_thread.run_sync(partial(_look_through, markers, public, consortium))


def _look_through(
    markers: Mapping[str, frozenset[bytes]], public: Mapping[str, frozenset[bytes]], consortium: PayeeConsortium
) -> Search:
    """Look for markers in everything, file by file; who has what everybody may know shows that it was read."""
    leaks: dict[str, list[str]] = {}
    controls: set[str] = set()
    trace_bytes = 0
    for owner, traces in groupby(consortium.traces(), lambda trace: trace[0].partition("/")[0]):
        read = list(traces)
        data = b"\n".join(data for _, data in read)
        trace_bytes += len(data)
        if find(public, [(owner, data)]):
            controls.add(owner)
        if found := find(markers, [(owner, data)]):
            leaks |= find({name: markers[name] for name in found}, read)
    return Search(len(markers), frozenset(controls), leaks, trace_bytes)


async def _seals(till: Till, identity: bytes) -> dict[str, tuple[int, bytes]]:
    """Return each node's newest sealed state, once all have the same, or after a while."""
    names, found = list(till.alone), {}
    height = max([await till.chain.height_at(name) for name in names])
    for _ in range(AGREE_ATTEMPTS):
        for name in names:
            seal = await till.chain.seal_at(name, merchant_key(identity), height_min=height)
            found[name] = (seal.height, seal.root)
        if len(set(found.values())) == 1:
            break
        await trio.sleep(AGREE_PAUSE_S)
    return found
