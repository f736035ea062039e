"""Every way to part four validators and a twin over two views holds; with the lock or a vote less it does not."""

import pytest

from consensus.ledger.validators import ValidatorSet
from consensus.pbft import certificates, view_change
from tests.sim.twins import EVERYONE, Scenario, Turn, explore, partitions, turns_of


def test_r11_r28_twins_in_every_partition_of_two_views() -> None:
    report = explore(2)
    assert report.violations == []
    assert report.levels[-1].scenarios == sum(len(turns_of(twin, 2, each=False)) ** 2 for twin in range(4))
    assert report.healed > 1_000
    assert report.decided > report.healed // 2
    assert report.healing_ms_max < 4_000


def test_r28_a_sample_of_four_views_with_three_sides() -> None:
    report = explore(4, sides_max=3, each=True, width=10, twins=[1])
    assert report.violations == []
    assert report.healed > 250


def test_twins_find_the_fork_when_the_new_view_ignores_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (certificates, view_change):
        monkeypatch.setattr(module, "highest_claim", lambda votes: None)
    assert any("decides another block" in violation for violation in explore(2, twins=[0]).violations)


def test_twins_find_the_fork_when_a_vote_less_is_a_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValidatorSet, "quorum", property(lambda self: (self.size + self.faulty_max + 2) // 2 - 1))
    assert any("decides another block" in violation for violation in explore(2, twins=[3]).violations)


def test_partitions_and_turns_are_all_and_once() -> None:
    assert len(list(partitions(2))) == len(set(partitions(2))) == 16
    assert len(list(partitions(3))) == len(set(partitions(3))) == 41
    turns = turns_of(2, 3, each=True)
    assert len(turns) == len(set(turns))
    assert {turn.swapped(2) for turn in turns} == set(turns)
    turn = Turn((0, 0, 1, 0, 1), EVERYONE)
    assert Scenario(2, (turn, Turn((0, 0, 1, 0, 1), (1,)))).describe() == "' is c: abd|c' abd|c'-b"
