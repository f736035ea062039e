"""streams against a small model: payers, service parties and strangers do what they like, in every order.

Of each stream the model keeps what it was opened with and what became of the number of its lane; from that alone it
says what each act must pay, or every reason why it must be refused. After each act all money is where the model has it:
the service party has the greatest total that was settled or claimed and no more, once, a fine at most once, and nothing
is paid that was not put in.
"""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consensus.ledger.errors import PeerError
from consensus.ledger.ids import ChainId
from consensus.ledger.receipt import OK
from consensus.ledger.streams import CONTRACT, Terms, make_iteration, stream_lane
from consensus.ledger.transaction import EACH, Call, Transaction, make_call, sign_transaction
from tests.contracts.domain.streams import FUNDS, PARTIES, Streams, id_of

PAYERS, SERVICES = ("alice", "bob"), ("shop", "bob")
ACTORS = ("alice", "bob", "shop", "carol")
OTHER_CHAIN = ChainId(bytes(31) + b"\7")
PICKS = st.integers(0, 40)
AMOUNTS = st.sampled_from([1, 5, 40, 99, 100, 250, 899, 900, 901, 1_000, 1_500, 10**15])
FREE, SETTLED, BURNED = "FREE", "SETTLED", "BURNED"


@dataclass
class Stream:
    """A stream as the model has it; ``number`` says what became of the lane's number."""

    terms: Terms
    payer: str
    service: str
    key: int
    deposit: int
    paid: int = 0
    taken: int = 0
    is_fined: bool = False
    number: str = FREE
    settled_in: bytes = b""
    withdraw_at: int = 0
    is_open: bool = True

    @property
    def cover(self) -> int:
        """What the deposit holds above the fine."""
        return self.deposit - self.terms.fine - self.taken

    @property
    def held(self) -> int:
        """What is in escrow."""
        return self.deposit - self.taken - (self.terms.fine if self.is_fined else 0) if self.is_open else 0


@dataclass(frozen=True)
class Signed:
    """An iteration that somebody signed: whose key, for which stream, total and chain."""

    transaction: Transaction
    stream: bytes
    due: int
    signer: str
    key: int
    is_ours: bool
    """Of this chain."""


class StreamsMachine(RuleBasedStateMachine):
    """Each rule is one transaction, or lets time pass."""

    @initialize(
        credits=st.lists(st.sampled_from([0, 500]), min_size=2, max_size=2),
        valid_ms=st.sampled_from([9_000, 60_000]),
        leave=st.sampled_from([0, 50, 1_000, FUNDS]),
    )
    def begin(self, credits: list[int], valid_ms: int, leave: int) -> None:
        self.streams = Streams()
        self.chain = self.streams.chain
        self.found: dict[bytes, Stream] = {}
        self.balances = dict.fromkeys(PARTIES, FUNDS)
        self.keys = dict.fromkeys(PARTIES, 0)
        self.rotations = 0
        self.iterations: list[Signed] = []
        for number, credit in enumerate(credits):
            self.open("alice", "shop", number, 1_000, 100, credit)
            for due in (40, 250, 1_200):
                self.sign(number, due, "payer", valid_ms, True)
        self.spend("alice", leave)

    # -- the model's view -------------------------------------------------------------------------------

    def act(self, sender: str, method: str, reasons: list[str], **arguments: object) -> bool:
        """Call the contract, see it refuse for one of the reasons, or do it where there is none."""
        receipt = self.chain.call(sender, CONTRACT, method, **arguments)  # type: ignore[arg-type]
        assert (receipt.code in reasons) if reasons else receipt.code == "", (method, receipt.code, reasons)
        self.streams.receipt = receipt
        return not reasons

    def pay(self, stream: Stream, due: int, from_balance: int, fine: int = 0) -> None:
        """Move what is due in the model: ``from_balance`` of it out of the payer's, the rest out of the deposit."""
        amount = max(due - stream.paid, 0)
        stream.paid += amount
        stream.taken += amount - from_balance
        self.balances[stream.payer] -= from_balance
        self.balances[stream.service] += amount + fine

    def stream(self, pick: int) -> bytes:
        """Return one of the streams."""
        return list(self.found)[pick % len(self.found)]

    # -- opening ----------------------------------------------------------------------------------------

    @rule(
        payer=st.sampled_from(PAYERS),
        service=st.sampled_from(SERVICES),
        number=st.integers(0, 5),
        deposit=st.sampled_from([1_000, 1_000, 1_000, 1, 100, 101, FUNDS + 1]),
        fine=st.sampled_from([0, 100]),
        credit=st.sampled_from([0, 0, 500]),
    )
    def open(self, payer: str, service: str, number: int, deposit: int, fine: int, credit: int) -> None:
        terms = self.streams.terms(
            number, payer=payer, service=service, deposit=deposit, fine=fine, credit=credit, offer_until_ms=2**52
        )
        stream = bytes(id_of(terms))
        reasons = ["same_account"] if payer == service else []
        reasons += ["bad_terms"] if fine >= deposit else []
        reasons += ["stream_exists"] if stream in self.found else []
        reasons += ["insufficient_funds"] if deposit > self.balances[payer] else []
        if self.act(payer, "open", reasons, **self.streams.offer(terms, by=service)):
            self.balances[payer] -= deposit
            self.found[stream] = Stream(terms, payer, service, self.keys[payer], deposit)

    # -- signing, by anybody for anything ---------------------------------------------------------------

    @rule(
        pick=PICKS,
        due=AMOUNTS,
        signer=st.sampled_from(["payer"] * 6 + [*PAYERS]),
        valid_ms=st.sampled_from([0, 1_000, 10_000, 60_000, 3_600_000 - 1]),
        is_ours=st.sampled_from([True] * 9 + [False]),
    )
    def sign(self, pick: int, due: int, signer: str, valid_ms: int, is_ours: bool) -> None:
        stream = self.stream(pick)
        who = self.found[stream].payer if signer == "payer" else signer
        chain_id = self.chain.chain_id if is_ours else OTHER_CHAIN
        until = self.chain.next_time_ms + valid_ms
        sender = self.chain.address(who)
        transaction = make_iteration(self.streams.key(who), chain_id, sender, stream, due, until)
        self.iterations.append(Signed(transaction, stream, due, who, self.keys[who], is_ours))

    @rule(pick=PICKS)
    def upload(self, pick: int) -> None:
        """Settle, or use the number up, if a node would take it: the node's check of the signature is the model's."""
        iteration = self.iterations[pick % len(self.iterations)]
        stream = self.found[iteration.stream]
        if iteration.key != self.keys[iteration.signer]:
            return
        body = iteration.transaction.body
        is_used = self.streams.lane(iteration.stream, iteration.signer) is not None
        is_admitted = (
            iteration.is_ours and not is_used and 0 <= body.valid_until_ms - self.chain.next_time_ms <= 3_600_000
        )
        try:
            receipt = self.streams.upload(iteration.transaction)
        except PeerError:
            assert not is_admitted
            return
        assert is_admitted
        if iteration.signer != stream.payer:
            assert receipt.code in ("not_allowed", "stream_closed")
            return
        assert stream.number == FREE
        self.settled(stream, iteration.transaction.id, iteration.due, receipt.code)

    @rule(pick=PICKS, due=AMOUNTS)
    def settle(self, pick: int, due: int) -> None:
        """The payer settles at once with a total of its choice, as nobody else would."""
        self.sign(pick, due, "payer", 60_000, True)
        self.upload(len(self.iterations) - 1)

    def settled(self, stream: Stream, transaction_id: bytes, due: int, code: str) -> None:
        """Follow a settlement that stood in a block."""
        amount = max(due - stream.paid, 0)
        from_balance = min(amount, self.balances[stream.payer])
        if not stream.is_open:
            assert code == "stream_closed"
            stream.number = BURNED
        elif amount - from_balance > stream.cover:
            assert code == "insufficient_funds"
            stream.number = BURNED
        else:
            assert code == ""
            stream.number, stream.settled_in = SETTLED, transaction_id
            self.pay(stream, due, from_balance)

    @rule(
        pick=PICKS,
        how=st.sampled_from(["spend", "fail", "ask", "settle and fail", "settle in vain", "settle each"]),
        due=AMOUNTS,
    )
    def burn(self, pick: int, how: str, due: int) -> None:
        """The payer uses its number for something of its own making."""
        stream = self.stream(pick)
        found = self.found[stream]
        if found.number != FREE:
            return
        settle = make_call(CONTRACT, "settle", {"stream": stream, "due": due})
        failing = make_call("nothing", "none", {})
        spend = make_call("tokens", "transfer", self.streams.transfer("carol", 1))
        ask = make_call(CONTRACT, "request_withdrawal", {"stream": stream})
        calls: dict[str, list[Call]] = {
            "spend": [spend],
            "fail": [failing],
            "ask": [ask],
            "settle and fail": [settle, failing],
            "settle in vain": [make_call(CONTRACT, "settle", {"stream": bytes(32), "due": due})],
            "settle each": [settle, failing],
        }
        mode = EACH if how == "settle each" else 0
        transaction = sign_transaction(
            self.streams.key(found.payer),
            self.chain.chain_id,
            calls[how],
            sequence=0,
            valid_until_ms=self.chain.next_time_ms,
            lane=stream_lane(stream),
            mode=mode,
            sender=self.chain.address(found.payer),
        )
        uptime_ms = self.chain.next_uptime_ms
        receipts = self.chain.block([transaction]).receipts
        if how == "settle each":
            self.settled(found, transaction.id, due, receipts[0].code)
            return
        found.number = BURNED
        if receipts[0].status == OK and how == "spend":
            self.balances[found.payer] -= 1
            self.balances["carol"] += 1
        if receipts[0].status == OK and how == "ask" and found.withdraw_at == 0:
            found.withdraw_at = uptime_ms + found.terms.window_ms

    # -- claiming ---------------------------------------------------------------------------------------

    @rule(pick=PICKS, by=st.sampled_from(ACTORS), other=PICKS, is_own=st.sampled_from([True] * 9 + [False]))
    def claim(self, pick: int, by: str, other: int, is_own: bool) -> None:
        iteration = self.iterations[pick % len(self.iterations)]
        target = iteration.stream if is_own else self.stream(other)
        found = self.found[target]
        reasons = [] if found.is_open else ["stream_closed"]
        is_signed = iteration.is_ours and iteration.signer == found.payer and iteration.key == found.key
        reasons += [] if is_signed else ["bad_transaction"]
        reasons += [] if iteration.stream == target else ["wrong_stream"]
        is_over = self.chain.next_time_ms > iteration.transaction.body.valid_until_ms
        reasons += ["not_claimable"] if found.number == FREE and not is_over else []
        fine = found.terms.fine if found.number == BURNED and not found.is_fined else 0
        due = min(iteration.due, found.deposit - found.terms.fine)
        reasons += ["nothing_due"] if due <= found.paid and fine == 0 else []
        if self.act(by, "claim", reasons, stream=target, raw=iteration.transaction.raw):
            found.is_fined |= found.number == BURNED
            self.pay(found, due, 0, fine)

    # -- deposits ---------------------------------------------------------------------------------------

    @rule(pick=PICKS, by=st.sampled_from(["payer"] * 6 + [*ACTORS]), amount=AMOUNTS)
    def top_up(self, pick: int, by: str, amount: int) -> None:
        stream = self.stream(pick)
        found = self.found[stream]
        who = found.payer if by == "payer" else by
        reasons = self.reasons(found, who)
        reasons += ["overflow"] if found.deposit + amount > 10**15 else []
        reasons += ["insufficient_funds"] if amount > self.balances[who] else []
        if self.act(who, "top_up", reasons, stream=stream, amount=amount):
            found.deposit += amount
            self.balances[who] -= amount

    def reasons(self, found: Stream, who: str) -> list[str]:
        """Return why somebody who is not the payer of an open stream is refused."""
        return ([] if found.is_open else ["stream_closed"]) + ([] if who == found.payer else ["not_allowed"])

    @rule(pick=PICKS, by=st.sampled_from(["payer"] * 6 + [*ACTORS]))
    def request_withdrawal(self, pick: int, by: str) -> None:
        stream = self.stream(pick)
        found = self.found[stream]
        who = found.payer if by == "payer" else by
        at = self.chain.next_uptime_ms + found.terms.window_ms
        if self.act(who, "request_withdrawal", self.reasons(found, who), stream=stream) and found.withdraw_at == 0:
            found.withdraw_at = at

    @rule(pick=PICKS, by=st.sampled_from(["payer"] * 6 + [*ACTORS]), early_ms=st.sampled_from([None, 0, 1]))
    def withdraw(self, pick: int, by: str, early_ms: int | None) -> None:
        stream = self.stream(pick)
        found = self.found[stream]
        who = found.payer if by == "payer" else by
        at = found.withdraw_at
        if early_ms is not None and at - early_ms > self.chain.next_uptime_ms:
            self.chain.wait_until_uptime(at - early_ms)
        reasons = self.reasons(found, who) + ([] if at else ["no_withdrawal"])
        reasons += ["window_open"] if self.chain.next_uptime_ms < at else []
        if self.act(who, "withdraw", reasons, stream=stream):
            self.balances[who] += found.held
            found.is_open = False

    @rule(
        pick=PICKS,
        by=st.sampled_from(["payer", "payer", "service", "service", "carol"]),
        signer=st.sampled_from(["other", "other", "other", "other", "own", "carol"]),
        due=st.sampled_from([0, 40, 40, 100, 100, 899, 900, 901, 1_500, 10**15]),
    )
    def close(self, pick: int, by: str, signer: str, due: int) -> None:
        stream = self.stream(pick)
        found = self.found[stream]
        names = {"payer": found.payer, "service": found.service}
        who = names.get(by, by)
        is_party = who in (found.payer, found.service)
        other = found.service if who == found.payer else found.payer
        consenting = {"other": other, "own": who}.get(signer, signer)
        key = self.keys[found.service] if other == found.service else found.key
        amount = max(due - found.paid, 0)
        lacking = max(amount - found.cover, 0)
        reasons = ([] if found.is_open else ["stream_closed"]) + ([] if is_party else ["not_allowed"])
        reasons += [] if consenting == other and self.keys[consenting] == key else ["bad_signature"]
        is_covered = lacking == 0 or (who == found.payer and lacking <= self.balances[who])
        reasons += [] if is_covered else ["insufficient_funds"]
        if self.act(who, "close", reasons, **self.streams.consent(stream, due, by=consenting)):
            self.pay(found, due, lacking)
            self.balances[found.payer] += found.held
            found.is_open = False

    # -- the world --------------------------------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 999, 9_000, 60_000, 160_000]), is_idle=st.booleans())
    def wait(self, ms: int, is_idle: bool) -> None:
        self.chain.wait(ms, is_idle=is_idle)

    @rule(pick=PICKS, late_ms=st.sampled_from([0, 1]), is_claimed=st.booleans())
    def wait_for_expiry(self, pick: int, late_ms: int, is_claimed: bool) -> None:
        """Bring an iteration in the last block in which it settles, or the first in which it is claimed."""
        until = self.iterations[pick % len(self.iterations)].transaction.body.valid_until_ms
        if until + late_ms < self.chain.next_time_ms:
            return
        self.chain.wait_until(until + late_ms)
        if is_claimed:
            self.claim(pick, "carol", 0, True)
        else:
            self.upload(pick)

    @rule(name=st.sampled_from(PAYERS), leave=st.sampled_from([0, 50, 1_000]))
    def spend(self, name: str, leave: int) -> None:
        if self.balances[name] > leave:
            self.streams.spend(name, leave=leave)
            self.balances["carol"] += self.balances[name] - leave
            self.balances[name] = leave

    @rule(name=st.sampled_from(["alice", "shop"]))
    def rotate(self, name: str) -> None:
        self.rotations += 1
        self.streams.rotate(name, self.rotations)
        self.keys[name] = self.rotations

    # -- what always holds ------------------------------------------------------------------------------

    @invariant()
    def money_is_where_it_belongs(self) -> None:
        if not hasattr(self, "streams"):
            return
        assert self.streams.held() == len(PARTIES) * FUNDS
        assert {name: self.streams.balance(name) for name in PARTIES} == self.balances
        for stream, found in self.found.items():
            record = self.streams.record(stream)
            assert self.streams.escrow(stream) == found.held >= 0
            assert (record.deposit, record.paid, record.taken) == (found.deposit, found.paid, found.taken)
            assert record.is_fined == found.is_fined
            assert record.settled_by == found.settled_in
            assert record.withdraw_at_uptime_ms == found.withdraw_at
            assert record.status == ("OPEN" if found.is_open else "CLOSED")
            assert record.taken <= record.paid
            assert record.taken <= record.deposit - record.fine
            assert found.number == BURNED or not found.is_fined


TestStreamsMachine = StreamsMachine.TestCase
TestStreamsMachine.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
