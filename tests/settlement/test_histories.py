"""Random histories: whatever is lost, doubled, late, dead, lying or killed, assets and money move both or neither."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from services.settlement.decision import DELIVERED_LATE
from services.settlement.states import State
from tests.settlement.histories import CALLS_MAX, WEIGHTS, play
from tests.settlement.world import FAULTS, PARTS, STEPS, Step, World

NUMBERS = st.integers(0, 11)
WEIGHED = [name for name in STEPS for _ in range(WEIGHTS[name])]
PLAIN = st.builds(Step, st.sampled_from(WEIGHED), NUMBERS, NUMBERS)


class Histories(RuleBasedStateMachine):
    """Steps of the real parts with faults in them; in the end all heals, and each event ends as it must."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(first=NUMBERS)
    def trade(self, first: int) -> None:
        self.world.act(Step("trade", first))

    @rule(proposer=NUMBERS)
    def goes_on(self, proposer: int) -> None:
        """What happens all the time while nothing is wrong."""
        self.world.act(Step("seal", 1, proposer), Step("listen", 2), Step("drain"), Step("pay", 0, 2), Step("lift"))

    @rule(step=PLAIN)
    def step(self, step: Step) -> None:
        self.world.act(step)

    @rule(
        name=st.sampled_from(PARTS),
        a=NUMBERS,
        b=NUMBERS,
        fault=st.sampled_from(FAULTS[1:-1]),
        at=st.integers(0, CALLS_MAX - 1),
    )
    def fault(self, name: str, a: int, b: int, fault: str, at: int) -> None:
        self.world.act(Step(name, a, b, fault, at))

    @rule(name=st.sampled_from(PARTS), a=NUMBERS, b=NUMBERS, at=st.integers(0, CALLS_MAX - 1), inner=PLAIN)
    def race(self, name: str, a: int, b: int, at: int, inner: Step) -> None:
        self.world.act(Step(name, a, b, "meanwhile", at, inner))

    def teardown(self) -> None:
        self.world.rest(0)
        assert self.world.alarms == []


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestHistories = Histories.TestCase


def test_seeded_histories_end_in_every_way() -> None:
    counts: Counter[str] = Counter()
    for seed in range(150):
        counts += play(seed)
    for end in ("COMPLETED/PAID", "COMPLETED/REVERSED", "CANCELLED (expired)", "CANCELLED (insufficient_funds)"):
        assert counts[end] >= 5, counts
    assert counts["resolved by an operator"] >= 5
    assert counts[f"CANCELLED ({DELIVERED_LATE})"] >= 1


def world_after(*steps: Step) -> World:
    world = World()
    world.act(*steps)
    return world


def test_a_trade_that_its_seller_sends_after_it_was_given_up_goes_back() -> None:
    """No money: given up before it was sent. The seller has signed, though, and sends it by itself."""
    world = world_after(Step("trade", 1), Step("rogue", 1, 1), Step("seal", 0, 1), Step("listen", 2))
    event = world.memory.events["poor"]
    assert (event.state, event.code, event.is_flagged) == (State.CANCELLED, DELIVERED_LATE, True)
    assert world.fate(event) == ("HELD", False)
    world.rest(0)
    assert world.fate(event) == ("GIVEN_BACK", False)
    assert not world.memory.events["poor"].is_flagged


def test_a_lane_that_another_transaction_has_taken_is_proof_of_absence() -> None:
    down = [Step("node", number, 0) for number in range(4)]
    up = [Step("node", number, 4) for number in range(4)]
    world = world_after(*down, Step("trade"), *up, Step("rogue", 0, 0), Step("seal"), Step("time", 1), Step("scan"))
    assert world.memory.events["good"].state is State.REGISTERED  # it is sent again, in vain, as long as it is valid
    world.rest(0)
    assert world.memory.events["good"].code == "expired"


def test_a_held_amount_is_released_also_when_its_message_died() -> None:
    world = world_after(Step("trade"), Step("seal", 4), Step("time", 4), Step("seal", 4), Step("scan"))
    world.act(Step("accounts", 1), *(Step("pay") for _ in range(3)))
    assert {one.state.value for one in world.center.messages.values()} == {"dead"}
    assert world.books.accounts["user-b"].held > 0
    world.rest(0)
    assert world.books.accounts["user-b"].held == 0


def test_lagging_lying_and_dead_nodes_delay_and_never_decide() -> None:
    world = world_after(Step("trade"), *(Step("node", number, 1) for number in (1, 2)), Step("node", 3, 2))
    world.act(Step("seal"), Step("time", 1), Step("scan"))
    event = world.memory.events["good"]
    assert (event.state, event.attempts) == (State.REGISTERED, 1)  # one node proves it; three must
    world.act(Step("node", 1, 4), Step("node", 3, 4), Step("seal"), Step("time", 1), Step("scan"))
    assert world.memory.events["good"].state is State.ACCOUNT_PENDING
    assert world.sent == {event.transaction_id}


def test_a_clock_that_jumps_decides_nothing() -> None:
    world = world_after(Step("trade"), Step("skew", 2), Step("scan"))  # two hours ahead: it looks expired, and is not
    assert world.memory.events["good"].state is State.REGISTERED
    world.act(Step("skew", 1), Step("scan"))  # two hours back: its time to be looked at seems far away
    assert world.memory.events["good"].attempts == 2
    world.rest(0)
    assert world.counts["COMPLETED/PAID"] == 1


def test_an_operator_who_is_too_late_changes_nothing() -> None:
    """The buyer has paid, the answer was lost, and then the trade is to be reversed."""
    steps = (Step("trade"), Step("seal"), Step("listen"), Step("drain"), Step("pay", 0, 0, "crash after", 0))
    world = world_after(*steps, Step("repair", 0, 1))
    assert world.memory.events["good"].wish == "REVERSE"
    world.rest(0)
    assert world.fate(world.memory.events["good"]) == ("LIFTED", True)


def test_a_reversal_whose_trade_was_changed_meanwhile_still_ends_it_without_a_listener() -> None:
    """The scan loses the race for the trade, and is killed before it tries again."""
    world = World(is_relay_on=False)
    world.act(Step("trade"), Step("freeze"), Step("seal"), Step("time", 1), Step("scan"), Step("pay"))
    world.act(Step("repair", 0, 1), Step("time", 1), Step("scan"), Step("pay"), Step("reverse"), Step("seal"))
    world.act(Step("time", 1))
    at_apply = 3
    killed = Step("scan", fault="crash before", at=at_apply + 1)
    world.act(Step("scan", 0, 0, "meanwhile", at_apply, Step("repair", 0, 0), killed))
    assert world.counts["scan crashed"] == 1
    assert world.memory.events["good.reverse"].state is State.COMPLETED
    assert world.memory.events["good"].state is State.ACCOUNT_PENDING
    world.rest(0)
    assert world.counts["COMPLETED/REVERSED"] == 1


def test_who_finds_no_money_does_not_give_up_what_another_has_sent_meanwhile() -> None:
    """Two run the same trade: the first is refused, money comes, the second holds it and sends, the first gives up."""
    probe = world_after(Step("trade", 0), Step("trade", 3))
    refused = probe.calls.index("accounts")
    again = Step("deposit", inner=Step("trade", 3))
    world = world_after(Step("trade", 0), Step("trade", 3, 0, "meanwhile", refused + 1, again))
    assert len(world.sent) == 2
    assert world.memory.events["second"].state is State.REGISTERED
    world.rest(0)
    assert world.counts["COMPLETED/PAID"] == 2


def test_a_reversal_that_the_chain_refuses_is_tried_again_at_the_scans_pace() -> None:
    """The agent is suspended for a while: an operator is told, no reversal follows at once, and one does in the end."""
    world = world_after(Step("trade"), Step("freeze"), Step("seal"), Step("listen"), Step("drain"), Step("pay"))
    world.act(Step("suspend", 1), Step("repair", 0, 1), Step("drain"), Step("pay"), Step("reverse"), Step("seal"))
    world.act(Step("listen"), Step("reverse"), Step("seal"), Step("reverse"))
    trade = world.memory.events["good"]
    assert (trade.state, trade.code, trade.is_flagged) == (State.ACCOUNT_PENDING, "not_allowed", True)
    assert sorted(world.memory.events) == ["good", "good.reverse"]
    world.rest(0)
    assert world.memory.events["good.reverse2"].state is State.COMPLETED
    assert world.counts["COMPLETED/REVERSED"] == 1


def test_a_late_delivery_whose_reversal_the_chain_refuses_waits_for_an_operator() -> None:
    world = world_after(Step("trade", 1), Step("rogue", 1, 1), Step("seal", 0, 1), Step("listen", 2))
    world.act(Step("suspend", 1), Step("reverse"), Step("seal"), Step("listen", 2), Step("reverse"))
    event = world.memory.events["poor"]
    assert (event.state, event.is_flagged) == (State.CANCELLED, True)
    assert world.memory.events["poor.reverse"].state is State.CANCELLED
    world.rest(0)
    assert world.counts["resolved by an operator"] == 1
    assert world.fate(event) == ("GIVEN_BACK", False)
