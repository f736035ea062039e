"""Penalties: errors add up, melt away, and refuse for a while."""

import pytest

from p2p.penalties import ENTRIES_MAX, POINTS_DEFAULT, POINTS_MAX, REFUSAL_S, PenaltyBook


def test_errors_add_up_to_a_refusal_that_ends():
    book = PenaltyBook()
    refusals = [book.add("a", "odd", now_s=0.0) for _ in range(int(POINTS_MAX / POINTS_DEFAULT))]
    assert refusals == [False] * (len(refusals) - 1) + [True]
    assert book.refusal_left_s("a", now_s=REFUSAL_S / 2) == REFUSAL_S / 2
    assert book.refusal_left_s("a", now_s=REFUSAL_S) == 0
    assert book.refusal_left_s("b", now_s=0.0) == 0


def test_rare_errors_are_forgiven():
    book = PenaltyBook()
    assert not any(book.add("a", "odd", now_s=now_s) for now_s in range(0, 10_000, 11))
    assert book.points("a", now_s=20_000.0) == 0


def test_memory_is_bounded():
    book = PenaltyBook()
    for number in range(2 * ENTRIES_MAX):
        book.add(str(number), "odd", now_s=0.0)
    assert book.points("0", now_s=0.0) == 0
    assert book.points(str(2 * ENTRIES_MAX - 1), now_s=0.0) == POINTS_DEFAULT
    assert sum(book.points(str(number), now_s=0.0) > 0 for number in range(2 * ENTRIES_MAX)) == ENTRIES_MAX


@pytest.mark.parametrize("code", ["no_channel", "private_failed", "refused_for_a_while", "too_many_sessions"])
def test_who_is_turned_away_by_name_and_backs_off_keeps_its_address(code):
    """A partner whose private sessions are refused dials every two seconds, and comes in public from there too."""
    book = PenaltyBook()
    assert not any(book.add("address", code, now_s=now_s) for now_s in range(0, 10_000, 2))
    assert any(book.add("address", code, now_s=10_000 + number / 100) for number in range(100))
