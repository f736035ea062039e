"""A crash, a lost call, a lost answer and a race at every call of every port, one by one: each trade ends as it must.

A story is a list of steps; played once without a fault it tells how many calls each step makes. Then it is played again
for each call and each fault, everything is healed, and it runs to its end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from services.settlement.states import State
from tests.settlement.world import PARTS, Step, World

GOOD, POOR, EMPTY = 0, 1, 2
HAPPY = [Step("seal", 1), Step("listen"), Step("drain"), Step("pay"), Step("lift")]
PAID, FAILED = "COMPLETED/PAID", "CANCELLED (insufficient_funds)"
REVERSED, EXPIRED = "COMPLETED/REVERSED", "CANCELLED (expired)"


@dataclass(frozen=True)
class Story:
    """Steps, how they end without a fault, and how else they may end with one."""

    steps: tuple[Step, ...]
    end: str
    others: frozenset[str] = frozenset()
    is_relay_on: bool = True


STORIES = {
    "good": Story((Step("trade", GOOD), *HAPPY), PAID, frozenset({EXPIRED})),
    "good, found by the scan alone": Story(
        (Step("trade", GOOD), Step("seal", 1), Step("time", 1), Step("scan"), Step("pay"), Step("lift")),
        PAID,
        frozenset({EXPIRED}),
        is_relay_on=False,
    ),
    "reversed by the scan alone": Story(
        (
            *(Step("trade", GOOD), Step("freeze"), Step("seal", 1), Step("time", 1), Step("scan"), Step("pay")),
            *(Step("repair", GOOD, 1), Step("scan"), Step("pay"), Step("reverse"), Step("seal", 1)),
            *(Step("time", 1), Step("scan")),
        ),
        REVERSED,
        frozenset({EXPIRED}),
        is_relay_on=False,
    ),
    "no money": Story((Step("trade", POOR), Step("drain"), Step("pay")), FAILED, frozenset({EXPIRED})),
    "chain failure": Story((Step("trade", EMPTY), *HAPPY), FAILED, frozenset({EXPIRED})),
    "expired": Story(
        (
            *(Step("node", number, 0) for number in range(4)),
            Step("trade", GOOD),
            *(Step("node", number, 4) for number in range(4)),
            *(Step("time", 3), Step("seal"), Step("time", 3), Step("seal"), Step("scan"), Step("pay")),
        ),
        EXPIRED,
    ),
    "reversed": Story(
        (
            *(Step("trade", GOOD), Step("freeze", 0, 0), Step("seal", 1), Step("listen"), Step("drain"), Step("pay")),
            *(Step("repair", GOOD, 1), Step("drain"), Step("pay"), Step("reverse"), Step("seal", 1), Step("listen")),
        ),
        REVERSED,
        frozenset({EXPIRED}),
    ),
    "paid although it was to be reversed": Story(
        (
            *(Step("trade", GOOD), Step("seal", 1), Step("listen"), Step("drain")),
            *(Step("pay", 0, 0, "lost after", 1), Step("repair", GOOD, 1), Step("drain"), Step("pay"), Step("pay")),
            *(Step("drain"), Step("pay"), Step("lift")),
        ),
        PAID,
        frozenset({EXPIRED}),
    ),
}
TWICE = frozenset({"good", "no money", "chain failure", "reversed"})
"""Stories whose trade is also made a second time after the fault, as its user would."""


def ends(world: World) -> list[str]:
    return [name for name in world.counts if name.startswith(("COMPLETED", "CANCELLED"))]


def play(steps: list[Step], *, is_relay_on: bool = True) -> World:
    world = World(is_relay_on=is_relay_on)
    for step in steps:
        world.act(step)
    world.rest(1)
    assert world.alarms == []
    return world


def faults_of(story: Story) -> Iterator[tuple[int, Step]]:
    """Yield which step is replaced by one with a fault, for each call of each step and each fault."""
    world = World(is_relay_on=story.is_relay_on)
    for index, step in enumerate(story.steps):
        world.act(step)
        if step.name in PARTS and not step.fault:
            for at in range(len(world.calls)):
                for fault in ("crash before", "crash after", "lost before", "lost after"):
                    yield index, replace(step, fault=fault, at=at)


@pytest.mark.parametrize("name", STORIES)
def test_a_story_without_a_fault(name: str) -> None:
    assert ends(play([*STORIES[name].steps], is_relay_on=STORIES[name].is_relay_on)) == [STORIES[name].end]


@pytest.mark.parametrize("name", STORIES)
def test_a_fault_at_every_call(name: str) -> None:
    story = STORIES[name]
    met = 0
    for index, faulty in faults_of(story):
        steps = [*story.steps[:index], faulty, *story.steps[index + 1 :]]
        world = play(steps, is_relay_on=story.is_relay_on)
        met += any(key.startswith(faulty.fault) for key in world.counts)
        (end,) = ends(world) or ["nothing"]
        allowed = {story.end, *story.others} | ({"nothing"} if faulty.name == "trade" else set())
        assert end in allowed, faulty
        if end != story.end:
            assert index <= [step.name for step in story.steps].index("trade"), "only a trader's end stops a trade"
    assert met >= 40


@pytest.mark.parametrize("name", sorted(TWICE))
def test_a_trader_that_begins_again_makes_the_same_trade(name: str) -> None:
    story = STORIES[name]
    trade = next(step for step in story.steps if step.name == "trade")
    for index, faulty in faults_of(story):
        if faulty.name == "trade":
            world = play([*story.steps[:index], faulty, trade, *story.steps[index + 1 :]])
            assert ends(world) == [story.end], faulty
            assert len([one for one in world.memory.events.values() if not one.original]) == 1


RACERS = (
    Step("trade", GOOD),
    Step("scan"),
    Step("listen"),
    Step("restart"),
    Step("repair", GOOD, 1),
    Step("double"),
)


@pytest.mark.parametrize("racer", RACERS, ids=lambda step: step.name)
def test_a_race_at_every_call(racer: Step) -> None:
    """Somebody else does a whole step between any two calls of a good trade, and of a reversed one."""
    for name in ("good", "reversed"):
        story = STORIES[name]
        plain = World()
        for index, step in enumerate(story.steps):
            plain.act(step)
            for at in range(len(plain.calls) if step.name in PARTS else 0):
                racing = replace(step, fault="meanwhile", at=at, inner=racer)
                world = play([*story.steps[:index], racing, *story.steps[index + 1 :]])
                assert ends(world) in ([PAID], [REVERSED]), racing
                assert {one.state for one in world.memory.events.values()} == {State.COMPLETED}
