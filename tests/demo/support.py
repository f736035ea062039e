"""The rights demo's plan played through the real contract in memory, and the facts that come of it.

Events are signed, packed and judged by the product's own code; their order is shuffled between orders and kept within
each, as the message centre's lanes do.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random

from consensus.ledger.codec import Value
from consensus.ledger.keys import PrivateKey
from consensus.ledger.receipt import OK, Receipt
from consensus.ledger.transaction import EACH, Call
from services.demo.chain import BlockView, ReceiptView, Seal
from services.demo.gather import figures_of
from services.demo.invariants import NS, Accident, Crash, End, Facts, NodeFacts, Place, Proof, Sample
from services.demo.rights import make_script
from services.demo.rights_machine import PRICES, SERVER_ITEMS, Deed, expected_figures
from services.demo.story import Script
from services.messages.port import Verdict
from services.messages.store import State
from services.rights.events import Event, SignedEvent, sign_events
from services.rights.packing import Presented, pack
from services.rights.shares import ShareRule, ShareTable
from services.rights.verdicts import judge as verdict_of
from tests.contracts.support import KEYS, VOTE_KEYS, Chain

NAMES = list(VOTE_KEYS)
EVENT_KEY = PrivateKey.from_secret(77)
RELAY = "alice"
ATTEMPTS = 3
PACK = 40


class Performance:
    """Plays a script act by act; ``ends`` and ``receipts`` are what came of it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.chain = Chain()
        self.server = self.chain.address("shop")
        self.ends: dict[str, End] = {}
        self.receipts: dict[bytes, tuple[ReceiptView, ...]] = {}
        shared = script.plan.quotas.get(script.plan.shared, 0)
        rule = {script.plan.shared: ShareRule(10_000, shared)} if shared else {}
        self._table = ShareTable(rule, {item: PRICES[item] for item in SERVER_ITEMS})
        self._presented = Presented()

    def open(self) -> None:
        for campaign, quota in self.script.plan.quotas.items():
            self.chain.ok("shop", "rights", "open_campaign", campaign=campaign, quota=quota)
        for item, price in PRICES.items():
            self.chain.ok("shop", "rights", "set_price", item=item, price=price)
        relays: list[Value] = [KEYS[RELAY].public.address]
        keys: list[Value] = [EVENT_KEY.public.compressed]
        self.chain.ok("shop", "rights", "appoint", event_keys=keys, rights_servers=relays)

    def play(self) -> None:
        self.open()
        random = Random(self.script.seed)
        for act in (self.script.burst, self.script.plan.spending, self.script.plan.returns):
            self.act(shuffled(act, random))

    def act(self, deeds: Sequence[Deed]) -> None:
        waiting = list({deed.key: deed for deed in deeds}.values())
        for attempt in range(1, ATTEMPTS + 1):
            rest = iter(waiting)
            waiting = []
            while batch := list(islice(rest, PACK)):
                waiting += self.relay(batch, is_last=attempt == ATTEMPTS)

    def relay(self, deeds: Sequence[Deed], *, is_last: bool) -> list[Deed]:
        """Submit events in one transaction and return those that are to come again."""
        signed = sign_events(EVENT_KEY, self.chain.chain_id, self.server, [event_of(deed) for deed in deeds])
        shares = [self._table.share_of(item.event) for item in signed]
        made = pack(signed, shares, self._presented)
        assert len(made.places) == len(deeds)
        identity, receipts = self.submit(made.calls)
        again = []
        for deed, place in zip(deeds, made.places, strict=True):
            code = receipts[place.call_index].code
            verdict, exhausted = verdict_of(code)
            if verdict is Verdict.PARK and not is_last:
                again.append(deed)
                continue
            state = exhausted if verdict is Verdict.PARK else State(verdict.value)
            self.ends[deed.key] = End(state, code, Place(self.chain.height, identity, place.call_index))
        return again

    def submit(self, calls: Sequence[Call]) -> tuple[bytes, Sequence[Receipt]]:
        transaction = self.chain.transaction(RELAY, *calls, mode=EACH)
        receipts = self.chain.block([transaction]).receipts
        self.receipts[transaction.id] = tuple(
            ReceiptView("ok" if receipt.status == OK else "failed", receipt.code, []) for receipt in receipts
        )
        return transaction.id, receipts

    def facts(self) -> Facts:
        """Return what the story would have gathered, with accidents that went well."""
        script, chain = self.script, self.chain
        expected = expected_figures(script.book, script.plan, run=script.run, salt=script.salt)
        balances = {user: figures_of(chain.query("rights", "balance", user=user)) for user in expected}
        entries = [(user, entry) for user in expected for entry in self.history(user)]
        user = Counter(user for user, _ in entries).most_common(1)[0][0]
        campaigns = {name: integers(chain.query("rights", "campaign", campaign=name)) for name in script.plan.quotas}
        root = sha256(repr(sorted(chain.state.entries().items())).encode()).digest()
        node = NodeFacts(chain.height, Seal(chain.height, root), self.receipts)
        blocks = [BlockView(height, NAMES[height % 4], 1, int(height == 7)) for height in range(1, 20)]
        return Facts(
            book=script.book,
            plan=script.plan,
            misfits=script.misfits,
            expected=expected,
            before=figures_of(Chain().query("rights", "totals")),
            after=figures_of(chain.query("rights", "totals")),
            balances=balances,
            campaigns=campaigns,
            ends=dict(self.ends),
            entries=Counter(entry for _, entry in entries),
            repeats_new=0,
            answers={"above the quota": (self.probe(), "quota_exceeded")},
            rate_per_s=10,
            samples=tuple(Sample(0, at * NS, at * NS + 1_000, 10 * at) for at in range(5)),
            nodes=dict.fromkeys(NAMES, node),
            blocks=blocks,
            killed=Accident(NAMES[3], 3, 5),
            frozen=Accident(NAMES[1], 6, 8),
            crashes=(Crash("rights-server", 40, 2),),
            proof=Proof(user, len(self.history(user)), balances[user]),
        )

    def probe(self) -> str:
        """Post an order one unit above what is left of a quota and return what is said."""
        name = next(iter(self.script.plan.quotas))
        left = integers(self.chain.query("rights", "campaign", campaign=name))["left"]
        arguments: dict[str, Value] = {"campaign": name, "order": "probe", "user": "probe", "amount": left + 1}
        return self.chain.fails("shop", "rights", "create", **arguments, event="1")

    def history(self, user: str) -> list[tuple[str, str, str]]:
        found = self.chain.query("rights", "history", user=user)
        assert isinstance(found, list)
        kinds = {"create_by_rule": "create", "redeem_items": "redeem"}
        shown = []
        for entry in found:
            assert isinstance(entry, dict)
            kind = str(entry["type"])
            shown.append((kinds.get(kind, kind), str(entry["reference"]), str(entry["event"])))
        return shown


def play(orders: Path | None = None, *, seed: int = 1, limit: int | None = None) -> Performance:
    """Play a script through the contract."""
    performance = Performance(make_script(orders, limit=limit, seed=seed))
    performance.play()
    return performance


def event_of(deed: Deed) -> Event:
    """Return the event that the business server makes of what is posted."""
    items = [*deed.items]
    return Event(deed.kind.value, deed.reference, deed.number, deed.user, deed.campaign, deed.amount, items, 1)


def forged(event: Event, chain: Chain) -> SignedEvent:
    """Return an event under a key that nobody appointed."""
    return sign_events(PrivateKey.from_secret(78), chain.chain_id, chain.address("shop"), [event])[0]


def shuffled(deeds: Sequence[Deed], random: Random) -> list[Deed]:
    """Return events in another order; those of one order or redemption keep theirs."""
    lanes: dict[str, Iterator[Deed]] = {}
    for reference in dict.fromkeys(deed.reference for deed in deeds):
        lanes[reference] = iter([deed for deed in deeds if deed.reference == reference])
    drawn = [deed.reference for deed in deeds]
    random.shuffle(drawn)
    return [next(lanes[reference]) for reference in drawn]


def integers(value: Value) -> dict[str, int]:
    """Return the integers of a query's answer."""
    assert isinstance(value, dict)
    return {name: item for name, item in value.items() if isinstance(item, int)}
