"""Both sides of a channel under everything that may happen to them; what must hold holds at every step.

- What a side took of the other in an epoch is the beginning of what the other submitted in it, once and in order.
- Nothing is on the wire that its sender, killed now, would not know of.
- A message is with the receiver, or failed, or kept by the sender, and never two of the last three.
- Nothing of an epoch is taken after its end was read.
- In the end, when everything works again, nothing is in doubt.
"""

from contextlib import suppress
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Search
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from consensus.ledger.errors import LocalError
from p2p.private.port import Phase
from p2p.private.records import Message, Open, Receipt
from tests.p2p.private.sides import NAME, SIDES, Entered, Pair

sides = st.sampled_from(SIDES)


class Channel(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(on_send=self.check_is_durable)
        self.count = 0
        self.is_swept = dict.fromkeys(SIDES, 0)

    @rule(side=sides, count=st.integers(1, 5), size=st.integers(0, 60), is_repeat=st.booleans())
    def submit(self, side: str, count: int, size: int, is_repeat: bool) -> None:
        for _ in range(count):
            known = [*self.pair.submitted[side]]
            message_id = known[size % len(known)] if is_repeat and known else f"{side}-{self.count}"
            self.count += 1
            with suppress(LocalError):
                self.pair.sides[side].submit(message_id, message_id.encode().ljust(size, b"."))

    @rule(side=sides, count=st.integers(1, 5), order=st.permutations(SIDES))
    def trade(self, side: str, count: int, order: list[str]) -> None:
        self.flow(1, order, "both")
        self.submit(side, count, 1, is_repeat=False)
        self.work(side)

    @rule(side=sides)
    def work(self, side: str) -> None:
        self.pair.sides[side].work()

    @rule(rounds=st.integers(1, 4), order=st.permutations(SIDES), reads=st.sampled_from([*SIDES, "both", "both"]))
    def flow(self, rounds: int, order: list[str], reads: str) -> None:
        """All goes well for a while, though one may not have read the registry to its end."""
        for side in SIDES:
            if reads in (side, "both"):
                self.read_registry(side, len(self.pair.registry))
                self.pair.sides[side].key = self.pair.current_key(side)
        if not self.pair.is_connected:
            self.pair.connect()
        for _ in range(rounds):
            for side in order:
                self.pair.sides[side].work()
                for _ in range(len(self.pair.wire[side])):
                    self.arrive(side, 0, stays=False)

    @rule(side=sides, is_before=st.booleans(), sends=st.integers(0, 4))
    def die(self, side: str, is_before: bool, sends: int) -> None:
        self.pair.sides[side].work(dies_before_write=is_before, sends_max=sends)

    @rule()
    def disconnect(self) -> None:
        self.pair.disconnect()

    @rule(sender=sides, index=st.integers(0, 4), stays=st.booleans())
    def arrive(self, sender: str, index: int, stays: bool) -> None:
        """A record comes, in its turn or not, and maybe once more later."""
        if index < len(self.pair.wire[sender]):
            self.pair.arrive(sender, index, stays=stays)

    @rule(sender=sides, index=st.integers(0, 4))
    def lose(self, sender: str, index: int) -> None:
        if index < len(self.pair.wire[sender]):
            self.pair.wire[sender].pop(index)

    @rule(side=sides, has_room=st.booleans())
    def room(self, side: str, has_room: bool) -> None:
        self.pair.sides[side].machine.room(has_room)

    @rule()
    def registry_goes_on(self) -> None:
        """Revoke, end the grace time, or open anew."""
        now = self.pair.registry[-1]
        match now.phase:
            case Phase.OPEN:
                after = replace(now, phase=Phase.GRACE)
            case Phase.GRACE:
                after = replace(now, phase=Phase.CLOSED)
            case Phase.CLOSED:
                after = replace(now, phase=Phase.OPEN, epoch=now.epoch + 1)
        self.pair.registry.append(after)

    @rule(is_bank=st.booleans(), key=st.integers(0, 3))
    def rotate_key(self, is_bank: bool, key: int) -> None:
        now = self.pair.registry[-1]
        self.pair.registry.append(replace(now, bank_key=key) if is_bank else replace(now, issuer_key=key))

    @rule(side=sides, steps=st.integers(1, 3))
    def read_registry(self, side: str, steps: int) -> None:
        one = self.pair.sides[side]
        one.read = min(one.read + steps, len(self.pair.registry) - 1)
        one.change()

    @rule(side=sides, steps=st.integers(1, 6), is_new_life=st.booleans())
    def read_registry_anew(self, side: str, steps: int, is_new_life: bool) -> None:
        """The node lost its chain and reads it again, from an earlier state on."""
        one = self.pair.sides[side]
        one.read = max(one.read - steps, 0)
        if is_new_life:
            one.crash()
        else:
            one.change()

    @rule(side=sides)
    def owner_is_done(self, side: str) -> None:
        """It reports all as done; ids that it knows to have failed it may use for other messages."""
        one, known = self.pair.sides[side], self.pair.submitted[side]
        one.work()  # it has the answers to all that it submitted
        one.store.put(one.log.done(one.log.last))
        failed = {item.id for item in self.pair.delivered[side] if item.code}
        for message_id in failed & {*known} - {entry.id for entry in one.log.load(NAME)[1]}:
            del known[message_id]

    def check_is_durable(self, side: str, record: Message | Receipt | Open) -> None:
        """Whoever would come back from the store now knows what is being said."""
        one = self.pair.sides[side]
        state, _ = one.log.load(NAME)
        if isinstance(record, Message):
            assert record.number <= state.attempted <= state.sent
        else:
            taken = [item for item in self.pair.delivered[side] if not item.code and item.epoch == record.epoch]
            assert record.number == len(taken)
            assert not (isinstance(record, Open) and record.is_final) or state.is_final

    @invariant()
    def once_and_in_order(self) -> None:
        for side in SIDES:
            sent = self.pair.submitted[self.pair.other(side)]
            taken = [item for item in self.pair.delivered[side] if not item.code]
            assert [item.number for item in taken] == [
                sum(other.epoch == item.epoch for other in taken[: index + 1]) for index, item in enumerate(taken)
            ]
            assert [item.epoch for item in taken] == sorted(item.epoch for item in taken)
            by_place = {(epoch, number): payload for epoch, number, payload in sent.values()}
            for item in taken:
                assert by_place.get((item.epoch, item.number), item.payload) == item.payload

    @invariant()
    def each_has_one_fate(self) -> None:
        for side in SIDES:
            other = self.pair.delivered[self.pair.other(side)]
            taken = {(item.epoch, item.number) for item in other if not item.code}
            failed = {(item.epoch, item.number) for item in self.pair.delivered[side] if item.code}
            assert len(failed) == sum(bool(item.code) for item in self.pair.delivered[side])
            assert not taken & failed
            _, entries = self.pair.sides[side].log.load(NAME)
            kept = {(entry.epoch, entry.number) for entry in entries}
            assert not kept & failed
            placed = {(epoch, number) for epoch, number, _ in self.pair.submitted[side].values()}
            assert placed <= taken | failed | kept

    @invariant()
    def positions_ascend(self) -> None:
        for side in SIDES:
            positions = [item.position for item in self.pair.delivered[side]]
            assert positions == sorted(set(positions))

    def teardown(self) -> None:
        """Open the channel anew: then everything is decided, and what is submitted arrives."""
        now = self.pair.registry[-1]
        if now.phase is not Phase.OPEN:
            self.pair.registry.append(Entered(now.epoch + 1, Phase.OPEN, now.bank_key, now.issuer_key))
        self.pair.settle()
        for side in SIDES:
            self.pair.sides[side].submit(f"{side} at last", b"!")
        self.pair.settle()
        for side in SIDES:
            assert self.pair.sides[side].machine.waiting == 0
            assert self.pair.delivered[self.pair.other(side)][-1].payload == b"!"
        self.once_and_in_order()
        self.each_has_one_fate()


def test_sides_agree_whatever_happens_to_them() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Channel,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Search.generate],  # shrinking takes minutes: add ``Search.shrink`` to understand a failure
        ),
    )
