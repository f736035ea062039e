"""Neither side loses more than one step, whatever the other one, the network, the disks and the chain do (S4.15).

Hypothesis plays an honest party against one that does all that it can, over the real contract: lost, late and doubled
messages, crashes between any two effects, forged and old iterations, other streams' and other chains', a burned number,
an empty balance, a suspended account, withdrawals, full blocks and an idle chain. In each run a party's loss is
bounded, nothing is made or lost, and the stream pays within its deposit (``World.check`` after each transaction).

What is taken for granted: the service party, or a watcher, comes to the chain at least once in ``BLOCKED_MS_MAX``.
"""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consensus.ledger.keys import PrivateKey
from consensus.ledger.streams import Mode, make_iteration, stream_lane
from consensus.ledger.transaction import Transaction, make_call
from services.stream.wire import Close, Closed, Iterate, Refused, Standing, Stored, Supplied
from tests.contracts.domain.streams import OTHER, PAYER, SERVICE
from tests.stream.play import BLOCKED_MS_MAX, SLICE_MS, PayerParty, ServiceParty, World, sign_close

RUNS, STEPS = 200, 60
"""Of each of the three plays."""

numbers = st.integers(0, 7)
mostly_not = st.sampled_from([False, False, False, True])


class Play(RuleBasedStateMachine):
    """Network, clock, meter and crashes; who is honest has a party."""

    has_honest_payer = has_honest_service = True
    has_payer_meter = True

    @initialize(
        mode=st.sampled_from(Mode),
        step_max=st.sampled_from([5, 10, 12, 25]),
        credit=st.sampled_from([0, 0, 0, 40]),
        deposit=st.sampled_from([30, 120, 1_000]),
        fine=st.sampled_from([0, 20]),
        ends=st.sampled_from([{}, {}, {}, {"count_max": 12}, {"amount_max": 63}, {"duration_ms_max": 60_000}]),
        steps=st.sampled_from([0, 1, 4, 12]),
    )
    def begin(
        self, mode: Mode, step_max: int, credit: int, deposit: int, fine: int, ends: dict[str, int], steps: int
    ) -> None:
        fields = {"step_max": step_max, "credit": credit, "deposit": deposit, "fine": fine, **ends}
        self.world = World.make(mode=int(mode), price=5, step_ms=4 * SLICE_MS, **fields)
        self.terms = self.world.terms
        self.service = ServiceParty(self.world)
        self.payer = PayerParty(self.world, has_meter=self.has_payer_meter)
        self.is_online = True
        self.blocked_ms = 0
        self.connect()
        self.behave_for(steps)

    def behave_for(self, steps: int) -> None:
        """Stream as agreed, so that something is at stake."""
        self.go_on(count=max(steps, 1))

    def connect(self) -> None:
        """Both begin at once, as most streams do."""
        if self.has_honest_service:
            self.service.look()
            self.service.run(self.service.machine.asked())
        while self.has_honest_payer and self.world.to_payer:
            self.payer.hear(self.world.to_payer.pop(0))

    # -- network -------------------------------------------------------------------------------------------

    @rule(at=numbers, is_kept=mostly_not)
    def deliver_to_service(self, at: int, is_kept: bool) -> None:
        """Any message comes over, and maybe once more later."""
        messages = self.world.to_service
        if messages and self.has_honest_service:
            message = messages[at % len(messages)]
            if not is_kept:
                messages.remove(message)
            self.service.hear(message)

    @rule(at=numbers, is_kept=mostly_not)
    def deliver_to_payer(self, at: int, is_kept: bool) -> None:
        messages = self.world.to_payer
        if messages and self.has_honest_payer:
            message = messages[at % len(messages)]
            if not is_kept:
                messages.remove(message)
            self.payer.hear(message)

    @rule(count=st.integers(1, 8))
    def go_on(self, count: int) -> None:
        """Supply, tell, pay: what happens nearly always."""
        for _ in range(count):
            self.read_meter(is_done=False)
            self.supply(1)
            self.read_meter(is_done=False)
            while self.has_honest_payer and self.world.to_payer:
                self.payer.hear(self.world.to_payer.pop(0))
            while self.has_honest_service and self.world.to_service:
                self.service.hear(self.world.to_service.pop(0))

    @rule()
    def lose_messages(self) -> None:
        self.world.to_service.clear()
        self.world.to_payer.clear()

    @rule()
    def reconnect(self) -> None:
        if self.has_honest_service:
            self.service.run(self.service.machine.asked())

    # -- meter ---------------------------------------------------------------------------------------------

    @rule(units=st.integers(1, 6))
    def supply(self, units: int) -> None:
        """Supply as far as the meter was allowed."""
        if self.has_honest_service:
            self.world.units = max(self.world.units, min(self.world.units + units, self.service.allowed))

    @rule(is_done=st.sampled_from([False] * 9 + [True]))
    def read_meter(self, is_done: bool) -> None:
        if self.has_honest_service:
            self.service.read_meter(is_done=is_done)
        if self.has_honest_payer:
            self.payer.read_meter()

    # -- clock and chain -----------------------------------------------------------------------------------

    @rule(slices=st.sampled_from([1, 1, 1, 2, 4, 15]), is_idle=mostly_not)
    def pass_time(self, slices: int, is_idle: bool) -> None:
        """Let time pass; an idle chain's uptime stands still."""
        for _ in range(slices):
            self.wait(SLICE_MS, is_idle=is_idle)

    def wait(self, time_ms: int, *, is_idle: bool = False) -> None:
        self.world.streams.chain.wait(time_ms, is_idle=is_idle)
        now_ms = self.world.now_ms
        if self.has_honest_payer:
            self.payer.run(self.payer.machine.ticked(now_ms))
        if not self.has_honest_service:
            return
        self.service.run(self.service.machine.ticked(now_ms))
        self.blocked_ms += 0 if is_idle else time_ms
        if self.is_online and not self.world.is_full:
            self.look_and_work()
        elif self.blocked_ms >= BLOCKED_MS_MAX:
            self.is_online, self.world.is_full = True, False
            self.look_and_work()

    @rule(is_online=st.booleans(), is_full=mostly_not)
    def block(self, is_online: bool, is_full: bool) -> None:
        """Cut the service party off from the chain, or let others fill all blocks."""
        self.is_online, self.world.is_full = is_online, is_full

    @rule()
    def look(self) -> None:
        if self.has_honest_payer:
            self.payer.look()
        if self.has_honest_service and self.is_online:
            self.service.look()

    @rule(is_crashed=mostly_not)
    def work(self, is_crashed: bool) -> None:
        """Submit what is to be submitted; a crash comes when it is final and before that is known."""
        if self.has_honest_payer:
            self.payer.work(is_crashed=is_crashed)
        if self.has_honest_service:
            self.service.work(is_crashed=is_crashed)

    def look_and_work(self) -> None:
        """What a service party that is not disturbed comes to by itself."""
        self.blocked_ms = 0
        for _ in range(4):
            self.service.look()
            self.service.work()

    # -- crashes -------------------------------------------------------------------------------------------

    @rule(effects=st.integers(0, 3))
    def crash_service(self, effects: int) -> None:
        """Crash after so many effects more, or now."""
        if self.has_honest_service:
            self.service.crash_in = effects

    @rule(effects=st.integers(0, 3))
    def crash_payer(self, effects: int) -> None:
        if self.has_honest_payer:
            self.payer.crash_in = effects

    @rule()
    def restart(self) -> None:
        if self.has_honest_service:
            self.service.restart()
        if self.has_honest_payer:
            self.payer.restart()

    # -- bounds --------------------------------------------------------------------------------------------

    @invariant()
    def service_is_within_a_step(self) -> None:
        """What was supplied in truth is covered by what is on the disk, but for a step."""
        if hasattr(self, "world") and self.has_honest_service:
            kept = self.service.disk
            step = self.terms.step_max if self.terms.mode == Mode.SERVICE_FIRST else 0
            assert self.terms.price * self.world.units <= kept.due + step
            assert kept.due <= max(self.world.streams.record(self.world.stream).limit, 0)

    @invariant()
    def payer_is_within_a_step(self) -> None:
        """What was signed, and what was paid, is what was supplied in truth, but for a step."""
        if hasattr(self, "world") and self.has_honest_payer and self.has_payer_meter:
            step = self.terms.step_max if self.terms.mode == Mode.PAYMENT_FIRST else 0
            received = self.terms.price * self.world.units
            assert self.payer.disk.signed_due <= received + step
            assert self.world.payer_loss() <= received + step
            assert not self.world.streams.record(self.world.stream).is_fined

    @invariant()
    def count_is_kept(self) -> None:
        """An honest payer never signs more iterations than were agreed."""
        if hasattr(self, "world") and self.has_honest_payer and self.terms.count_max:
            assert self.payer.disk.count <= self.terms.count_max

    def teardown(self) -> None:
        """In the end the honest side has what is its own."""
        if not hasattr(self, "world"):
            return
        self.is_online, self.world.is_full = True, False
        self.service.crash_in = self.payer.crash_in = -1
        if self.has_honest_service:
            self.finish_service()
        if self.has_honest_payer:
            self.finish_payer()
        self.service_is_within_a_step()
        self.payer_is_within_a_step()
        self.world.check()

    def finish_service(self) -> None:
        self.service.run(self.service.machine.end("owner", self.world.now_ms))
        for _ in range(20):
            self.wait(SLICE_MS)
        kept, record = self.service.disk, self.world.streams.record(self.world.stream)
        # What the meter tells while a close is on its way comes too late for it; it is within the step.
        is_late = kept.status in ("LOST", "CLOSED") and kept.reason == "close"
        is_unpaid_credit = kept.status == "LOST" and self.terms.credit > 0
        assert is_late or is_unpaid_credit or kept.status in ("SETTLED", "CLAIMED", "CLOSED"), kept
        supplied = self.terms.price * self.world.units
        # Payment first, a close may cost what was paid ahead and supplied before the meter was read again.
        is_at_stake = self.terms.mode == Mode.SERVICE_FIRST or kept.reason == "close"
        step = self.terms.step_max if is_at_stake else 0
        assert self.world.service_gain() >= supplied - step - self.terms.credit
        assert is_late or record.paid >= min(kept.due, supplied, record.deposit - record.fine)

    def finish_payer(self) -> None:
        """The deposit comes back at the latest after the window."""
        world = self.world
        if world.streams.record(world.stream).status == "OPEN":
            world.call(PAYER, "request_withdrawal", stream=world.stream)
            for _ in range(1 + self.terms.window_ms // SLICE_MS):
                self.wait(SLICE_MS)
            if world.streams.record(world.stream).status == "OPEN":
                world.call(PAYER, "withdraw", stream=world.stream)
        assert world.streams.record(world.stream).status == "CLOSED"
        assert world.streams.escrow(world.stream) == 0


class BadPayer(Play):
    """A payer that does all that a payer can do."""

    has_honest_payer = False

    def connect(self) -> None:
        self.signed: list[Transaction] = []
        super().connect()

    def behave_for(self, steps: int) -> None:
        self.pay(count=max(steps, 1), is_ahead=True)

    @rule(
        steps=st.sampled_from([1] * 12 + [0, 0, -1, -2, 2, 3, 100]),
        odd=st.sampled_from([0] * 30 + [1]),
        valid_ms=st.sampled_from([59_000, 59_000, 60_000, 64_000, 64_001, 30_000, 10_000, 10_001, 9_999, 3_600_000]),
        is_sent=st.sampled_from([True] * 4 + [False]),
        copies=st.integers(1, 3),
    )
    def iterate(self, steps: int, odd: int, valid_ms: int, is_sent: bool, copies: int) -> None:
        """Sign some total; some it keeps for itself."""
        due = self.service.disk.due + steps * self.terms.price + odd
        if due > 0:
            made = self.world.streams.iteration(self.world.stream, due, valid_ms=valid_ms - 1_000)
            self.signed.append(made)
            if is_sent:
                self.world.to_service += [Iterate(self.world.stream, made.raw)] * copies

    @rule(count=st.integers(1, 6), is_ahead=st.booleans(), valid_ms=st.just(59_000))
    def pay(self, count: int, is_ahead: bool, valid_ms: int = 59_000) -> None:
        """Pay as one should, for some steps: else nothing would ever be at stake."""
        for _ in range(count):
            self.read_meter(is_done=False)
            step = self.terms.step_max // self.terms.price
            due = self.terms.price * (self.service.disk.units + (step if is_ahead and self.terms.mode else 0))
            if due > self.service.disk.due:
                made = self.world.streams.iteration(self.world.stream, due, valid_ms=valid_ms)
                self.signed.append(made)
                self.service.hear(Iterate(self.world.stream, made.raw))
            self.read_meter(is_done=False)
            self.supply(6)

    @rule(kind=st.sampled_from(["stream", "chain", "key", "bytes", "call"]), steps=st.integers(1, 3))
    def forge(self, kind: str, steps: int) -> None:
        """Send what is no iteration of this stream: it must change nothing."""
        chain, terms = self.world.streams.chain, self.terms
        due, until = self.service.disk.due + steps * terms.price, self.world.now_ms + 60_000
        key, stream, chain_id = self.world.streams.key(PAYER), self.world.stream, chain.chain_id
        if kind == "stream":
            stream = bytes(32)
        elif kind == "chain":
            chain_id = type(chain_id)(bytes(32))
        elif kind == "key":
            key = PrivateKey.from_secret(77)
        raw = make_iteration(key, chain_id, terms.payer, stream, due, until).raw
        if kind == "bytes":
            raw = raw[:-1] + bytes([raw[-1] ^ 1])
        elif kind == "call":
            call = make_call("streams", "top_up", {"stream": stream, "amount": due})
            raw = chain.transaction(PAYER, call, lane=stream_lane(stream), sequence=0).raw
        before = self.service.disk
        self.service.hear(Iterate(self.world.stream, raw))
        assert self.service.disk == before

    @rule(is_failing=st.booleans(), is_meant=mostly_not)
    def burn(self, is_failing: bool, is_meant: bool) -> None:
        """Use the number for something else (S4.9)."""
        if not is_meant:
            return
        amount = 10**9 if is_failing else 1
        call = make_call("tokens", "transfer", self.world.streams.transfer(OTHER, amount))
        lane = stream_lane(self.world.stream)
        self.world.submit(self.world.streams.chain.transaction(PAYER, call, lane=lane, sequence=0))

    @precondition(lambda self: getattr(self, "signed", None))
    @rule(at=st.integers(0, 20), is_claim=mostly_not)
    def use_own(self, at: int, is_claim: bool) -> None:
        """Upload one of its own iterations, or claim by it in the service party's name."""
        made = self.signed[at % len(self.signed)]
        if is_claim:
            self.world.call(OTHER, "claim", stream=self.world.stream, raw=made.raw)
        else:
            self.world.submit(made)

    @rule(leave=st.sampled_from([0, 3, 50]))
    def spend(self, leave: int) -> None:
        """Have an empty balance when it comes to paying."""
        self.world.spend(leave)

    @rule(is_meant=mostly_not)
    def request_withdrawal(self, is_meant: bool) -> None:
        if is_meant:
            self.world.call(PAYER, "request_withdrawal", stream=self.world.stream)

    @rule(early_ms=st.sampled_from([1, 0, -1]))
    def withdraw(self, early_ms: int) -> None:
        """Wait until the window has ended, all but a millisecond, and withdraw."""
        record = self.world.streams.record(self.world.stream)
        if record.status == "OPEN" and record.withdraw_at_uptime_ms and not self.world.is_full:
            chain = self.world.streams.chain
            while (left_ms := record.withdraw_at_uptime_ms - early_ms - chain.next_uptime_ms) > 0:
                self.wait(min(left_ms, SLICE_MS))
            outcome = self.world.call(PAYER, "withdraw", stream=self.world.stream)
            late_ms = chain.next_uptime_ms - 1_000 - record.withdraw_at_uptime_ms
            assert (outcome == "final") == (late_ms >= 0) or outcome == "refused"

    @rule(slices=st.sampled_from([2, 5, 9]), valid_ms=st.sampled_from([59_000, 64_000, 3_600_000]), is_meant=mostly_not)
    def run_away(self, slices: int, valid_ms: int, is_meant: bool) -> None:
        """Ask for the deposit unseen, go on with iterations that last, admit no settlement, be there when it ends."""
        if not is_meant or self.world.streams.record(self.world.stream).status != "OPEN":
            return
        self.world.is_full = False
        self.world.call(PAYER, "request_withdrawal", stream=self.world.stream)
        self.suspend("suspend_account")
        chain, at_ms = self.world.streams.chain, self.world.streams.record(self.world.stream).withdraw_at_uptime_ms
        while at_ms and (left_ms := at_ms - chain.next_uptime_ms) > 0:
            self.is_online = False
            if slices > 0:
                self.pay(count=1, is_ahead=True, valid_ms=valid_ms)
            slices -= 1
            self.wait(min(left_ms, SLICE_MS))
        self.suspend("resume_account")
        self.world.call(PAYER, "withdraw", stream=self.world.stream)

    @rule(amount=st.sampled_from([5, 100]))
    def top_up(self, amount: int) -> None:
        self.world.call(PAYER, "top_up", stream=self.world.stream, amount=amount)

    @rule(steps=st.sampled_from([0, 0, 1, -1, -100, 100]), is_forged=mostly_not, is_meant=mostly_not)
    def ask_close(self, steps: int, is_forged: bool, is_meant: bool) -> None:
        """Sign a close with some total, or send somebody else's signature."""
        if not is_meant:
            return
        due = max(0, self.terms.price * (self.service.disk.units + steps))
        signature = sign_close(self.world, OTHER if is_forged else PAYER, due)
        self.service.hear(Close(self.world.stream, due, signature))

    @rule(due=st.sampled_from([0, 5, 50]), is_forged=mostly_not)
    def close(self, due: int, is_forged: bool) -> None:
        """Close with a consent that it got, or with one that it made or turned from an iteration (R85)."""
        consents = [message for message in self.world.to_payer if isinstance(message, Closed)]
        if is_forged or not consents:
            signature = sign_close(self.world, PAYER, due)
            outcome = self.world.call(PAYER, "close", stream=self.world.stream, due=due, signature=signature)
            assert outcome != "final"
        else:
            told = consents[-1]
            self.world.call(PAYER, "close", stream=self.world.stream, due=told.due, signature=told.signature)

    @rule(method=st.sampled_from(["suspend_account", "resume_account"]))
    def suspend(self, method: str) -> None:
        """Have its account suspended, so that no settlement of it is admitted, or resumed."""
        address = bytes(self.world.streams.chain.address(PAYER))
        self.world.streams.chain.call("admin-a", "membership", method, account=address)


class BadService(Play):
    """A service party that does all that one can do; its meter supplies what it likes."""

    has_honest_service = False

    def connect(self) -> None:
        self.payer.hear(Standing(self.world.stream, 0, 0, 0, "STREAMING", ""))

    def behave_for(self, steps: int) -> None:
        self.behave(units=1, count=max(steps, 1))

    @rule(units=st.integers(1, 3))
    def supply_some(self, units: int) -> None:
        self.world.units += units

    @rule(units=st.integers(1, 3), count=st.integers(1, 5))
    def behave(self, units: int, count: int) -> None:
        """Supply and tell the truth, for a while."""
        for _ in range(count):
            self.payer.read_meter()
            owed = self.payer.disk
            ahead = self.terms.step_max if self.terms.mode == Mode.SERVICE_FIRST else 0
            allowed = (owed.signed_due + ahead) // self.terms.price
            self.world.units = max(self.world.units, min(self.world.units + units, allowed))
            self.payer.read_meter()
            due = self.terms.price * self.world.units
            self.payer.hear(Supplied(self.world.stream, self.world.units, due))
            self.payer.hear(Stored(self.world.stream, owed.signed_due))

    @rule(
        kind=st.sampled_from(["supplied", "stored", "standing", "refused", "closed"]),
        units=st.integers(-2, 6),
        odd=st.sampled_from([0] * 9 + [1]),
        status=st.sampled_from(["STREAMING", "STREAMING", "ENDING", "SETTLED"]),
        code=st.sampled_from(["bad_validity", "bad_validity", "chain_unseen", "wrong_amount", "old_iteration"]),
    )
    def lie(self, kind: str, units: int, odd: int, status: str, code: str) -> None:
        """Tell anything."""
        stream, told = self.world.stream, max(0, self.payer.disk.received_units + units)
        due = self.terms.price * told + odd
        messages: dict[str, Any] = {
            "supplied": Supplied(stream, told, due),
            "stored": Stored(stream, due),
            "standing": Standing(stream, due, 1, told, status, ""),
            "refused": Refused(stream, code, ""),
            "closed": Closed(stream, due, sign_close(self.world, SERVICE, due)),
        }
        self.payer.hear(messages[kind])

    @precondition(lambda self: hasattr(self, "payer") and self.payer.signed)
    @rule(at=st.integers(0, 20), is_claim=st.booleans())
    def use(self, at: int, is_claim: bool) -> None:
        """Upload any iteration or claim by it, whenever it likes, again and again."""
        made = self.payer.signed[at % len(self.payer.signed)]
        if is_claim:
            self.world.call(SERVICE, "claim", stream=self.world.stream, raw=made.raw)
        else:
            self.world.submit(made)

    @rule(at=numbers, more=st.sampled_from([0, 0, 1, 5]), is_turned=mostly_not)
    def close(self, at: int, more: int, is_turned: bool) -> None:
        """Close with what the payer signed, with more, or with an iteration's signature (R85)."""
        if is_turned and self.payer.signed:
            made = self.payer.signed[-1]
            fields = {"due": self.payer.disk.signed_due, "signature": made.signature}
            assert self.world.call(SERVICE, "close", stream=self.world.stream, **fields) != "final"
        elif self.payer.consents:
            due, signature = self.payer.consents[at % len(self.payer.consents)]
            fields = {"due": due + more, "signature": signature}
            outcome = self.world.call(SERVICE, "close", stream=self.world.stream, **fields)
            assert outcome != "final" or not more

    @rule(is_meant=mostly_not)
    def stop(self, is_meant: bool) -> None:
        if is_meant:
            self.payer.run(self.payer.machine.stop("user"))

    @precondition(lambda self: hasattr(self, "terms") and not self.terms.credit)
    @rule(leave=st.sampled_from([0, 7]))
    def spend(self, leave: int) -> None:
        """The payer pays other things: with no credit its deposit covers what it signed."""
        self.world.spend(leave)


class BothHonest(Play):
    """Only network, disks and chain are bad."""

    has_payer_meter = False

    @rule(is_meant=mostly_not)
    def stop(self, is_meant: bool) -> None:
        if is_meant:
            self.payer.run(self.payer.machine.stop("user"))

    @invariant()
    def payer_is_within_a_step_of_what_it_was_told(self) -> None:
        if hasattr(self, "world"):
            step = self.terms.step_max if self.terms.mode == Mode.PAYMENT_FIRST else 0
            assert self.payer.disk.signed_due <= self.terms.price * self.world.units + step
            assert self.world.payer_loss() <= self.terms.price * self.world.units + step
            assert not self.world.streams.record(self.world.stream).is_fined


def play(parties: type[Play]) -> None:
    """Play many times."""
    run_state_machine_as_test(parties, settings=settings(max_examples=RUNS, stateful_step_count=STEPS))


def test_no_payer_costs_a_service_party_more_than_a_step() -> None:
    """S4.15, R83–R88; the deposit, and the fine where the number was burned, make good what is missing."""
    play(BadPayer)


def test_no_service_party_costs_a_payer_more_than_a_step() -> None:
    """S4.15; and no payer is fined that did not use its number otherwise."""
    play(BadService)


def test_network_disks_and_chain_cost_nobody_more_than_a_step() -> None:
    play(BothHonest)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("valid_ms", [59_000, 64_000, 3_600_000])
def test_a_payer_does_not_run_away_with_its_deposit(mode: Mode, valid_ms: int) -> None:
    """The worst case by hand: unseen for as long as may be, iterations that last, and none that may settle."""
    parties = BadPayer()
    parties.begin(mode=mode, step_max=10, credit=0, deposit=1_000, fine=20, ends={}, steps=4)
    parties.run_away(slices=12, valid_ms=valid_ms, is_meant=True)
    parties.teardown()
