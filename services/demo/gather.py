"""Gathers the facts of a performance from every node, the message centre and the contract."""

import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from services.client.tasks import single_errors
from services.demo.chain import Chain, Seal
from services.demo.invariants import End, Facts, NodeFacts, Proof, read_end
from services.demo.network import Consortium
from services.demo.rights_machine import Figures, expected_figures
from services.demo.story import Performance, Script, integers_of
from services.messages.port import MessageCenter
from services.messages.store import State
from services.rights.history import fetch_history, load_untrusted, save, verify_history

AGREE_ATTEMPTS = 100
AGREE_PAUSE_S = 0.1
FIND_KEYS = 1_000
HISTORY_PAGE = 100
PROVEN_TRANSACTIONS = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Look:
    """Who is asked for facts."""

    script: Script
    consortium: Consortium
    chain: Chain
    center: MessageCenter

    @property
    def names(self) -> list[str]:
        """The validators."""
        return list(self.consortium.urls)


async def gather_facts(look: Look, performance: Performance) -> Facts:
    """Ask everyone for what the invariants look at."""
    script, chain = look.script, look.chain
    await performance.judge_dead_letters()
    ends = await _ends(look)
    ids = sorted({end.place.transaction_id for end in ends.values() if end and end.place})
    campaigns = {name: integers_of(await chain.ask("campaign", {"campaign": name})) for name in script.plan.quotas}
    seals = await _agree(look, lambda name: _seal(look, name))
    heights = await _agree(look, chain.height_at)
    nodes = await _nodes(look, ids, seals, heights)
    expected = expected_figures(script.book, script.plan, run=script.run, salt=script.salt)
    server = performance.signer.address
    balances = {user: figures_of(await chain.ask("balance", {"user": user, "server": server})) for user in expected}
    entries = await _entries(look, list(expected), server)
    busiest = Counter(user for user, _ in entries).most_common(1)[0][0] if entries else next(iter(expected))
    return Facts(
        book=script.book,
        plan=script.plan,
        misfits=script.misfits,
        expected=expected,
        before=performance.before,
        after=figures_of(await chain.ask("totals", {"server": server})),
        balances=balances,
        campaigns=campaigns,
        ends=ends,
        entries=Counter(entry for _, entry in entries),
        repeats_new=_repeats_new(performance),
        answers=performance.answers,
        rate_per_s=script.rate_per_s,
        samples=tuple(performance.samples),
        nodes=nodes,
        blocks=await chain.blocks_at(look.names[0], first=performance.first_height, last=max(heights.values())),
        killed=performance.accidents["killed"],
        frozen=performance.accidents["frozen"],
        crashes=performance.crashes,
        proof=await _prove_history(look, busiest, server),
    )


async def prove_receipts(look: Look, facts: Facts) -> int:
    """Check the proofs of a few transactions spread over the story; return how many receipts they had."""
    places = sorted({(end.place.height, end.place.transaction_id) for end in facts.ends.values() if end and end.place})
    step = max(1, len(places) // PROVEN_TRANSACTIONS)
    return sum([await look.chain.prove(identity) for _, identity in places[::step][:PROVEN_TRANSACTIONS]])


def figures_of(value: Value) -> Figures:
    """Return a balance out of a query's answer."""
    integers = integers_of(value)
    return Figures(**{name: integers[name] for name in Figures.__slots__})


async def _ends(look: Look) -> dict[str, End | None]:
    """Return how the message centre says that every event ended."""
    keys = [deed.key for deed in (*look.script.plan.deeds, *look.script.misfits)]
    ends: dict[str, End | None] = {}
    for start in range(0, len(keys), FIND_KEYS):
        page = keys[start : start + FIND_KEYS]
        for key, record in zip(page, await look.center.find(page), strict=True):
            is_over = record is not None and record.state is not State.WAITING
            ends[key] = read_end(record.state, record.detail) if record is not None and is_over else None
    return ends


async def _nodes(
    look: Look, ids: Sequence[bytes], seals: Mapping[str, Seal], heights: Mapping[str, int]
) -> dict[str, NodeFacts]:
    nodes: dict[str, NodeFacts] = {}

    async def ask(name: str) -> None:
        receipts = dict(zip(ids, await look.chain.receipts_at(name, ids), strict=True))
        nodes[name] = NodeFacts(heights[name], seals[name], receipts)

    with single_errors():
        async with trio.open_nursery() as nursery:
            for name in look.names:
                nursery.start_soon(ask, name)
    return {name: nodes[name] for name in look.names}


async def _entries(look: Look, users: Sequence[str], server: bytes) -> list[tuple[str, tuple[str, str, str]]]:
    """Return the user and the (type, reference, event) of every history entry of these users."""
    found: list[tuple[str, tuple[str, str, str]]] = []
    for user in users:
        start = 0
        while True:
            arguments: dict[str, Value] = {"user": user, "start": start, "limit": HISTORY_PAGE, "server": server}
            page = await look.chain.ask("history", arguments)
            if not isinstance(page, list):
                raise PeerError("bad_answer", "the rights contract answers something else than a history")
            found += [(user, _entry(entry)) for entry in page]
            start += len(page)
            if len(page) < HISTORY_PAGE:
                break
    return found


def _entry(entry: Value) -> tuple[str, str, str]:
    if not isinstance(entry, dict):
        raise PeerError("bad_answer", "the rights contract answers something else than a history entry")
    # Who computed a share, or a price, is a matter of variants and not another event.
    kind = {"create_by_rule": "create", "redeem_items": "redeem"}.get(str(entry["type"]), str(entry["type"]))
    return kind, str(entry["reference"]), str(entry["event"])


def _repeats_new(performance: Performance) -> int:
    """Return how many events were taken for new more than once."""
    new = Counter(deed.key for deed, said in performance.said if said.is_new)
    return sum(count - 1 for count in new.values())


async def _prove_history(look: Look, user: str, server: bytes) -> Proof:
    """Fetch a user's history with its proof, write it, and verify what was written with the genesis document alone."""
    with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
        path = Path(folder) / "history.json"
        save(await fetch_history(look.chain.client, user, server), path)
        verified = verify_history(load_untrusted(path), look.consortium.genesis)
    return Proof(user, len(verified.entries), Figures(**{name: verified.balance[name] for name in Figures.__slots__}))


async def _seal(look: Look, node: str) -> Seal:
    height = await look.chain.height_at(look.names[0])
    campaign = next(iter(look.script.plan.quotas))
    return await look.chain.seal_at(node, f"rights/campaign/{campaign}", height_min=height)


async def _agree(look: Look, ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
    """Look at all nodes until they show the same, or give up after a while and return what they show."""
    found: dict[str, T] = {}
    for _ in range(AGREE_ATTEMPTS):
        found = {name: await ask(name) for name in look.names}
        if len(set(found.values())) == 1:
            break
        await trio.sleep(AGREE_PAUSE_S)
    return found
