"""What the port says of a store, sentence by sentence, for every store."""

import random
import subprocess
import sys

import pytest
import trio

from consensus.ledger.errors import StorageError
from services.messages.store import (
    BODY_BYTES_MAX,
    DETAIL_BYTES_MAX,
    KEY_BYTES_MAX,
    LANE_BYTES_MAX,
    Change,
    Counts,
    Entry,
    NewMessage,
    Published,
    Record,
    State,
)
from tests.messages.stores import BATCH_MAX, DONE_EACH, NOW_MS, StoreSite, body_of, message, redis_server, site

__all__ = ["redis_server", "site"]

ENDS = (State.DONE, State.REFUSED, State.DEAD)


async def test_messages_stand_behind_all_others_in_their_order(site: StoreSite) -> None:
    async with site.opened() as store:
        first = await store.append([message(3), message(1)], NOW_MS)
        second = await store.append([message(2)], NOW_MS)
        assert first == [Published(1, is_new=True), Published(2, is_new=True)]
        assert second == [Published(3, is_new=True)]
        assert await store.entries(0, 10) == [
            Entry(1, "order:o-1"),
            Entry(2, "order:o-0"),
            Entry(3, "order:o-0"),
        ]


async def test_a_known_key_gives_its_first_place_and_appends_nothing(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2), message(3), message(4)], NOW_MS)
        ends = [Change(2, State.DONE, 1), Change(3, State.REFUSED, 1), Change(4, State.DEAD, 1)]
        await store.change(ends, NOW_MS)
        again = await store.append([message(number) for number in (1, 2, 3, 4, 5)], NOW_MS)
        assert again == [*(Published(sequence, is_new=False) for sequence in (1, 2, 3, 4)), Published(5, is_new=True)]
        assert [entry.sequence for entry in await store.entries(0, 10)] == [1, 5]


async def test_a_key_twice_in_one_call_is_one_message(site: StoreSite) -> None:
    async with site.opened() as store:
        published = await store.append([message(1), message(1), message(1, b"other")], NOW_MS)
        assert published == [Published(1, is_new=True), Published(1, is_new=False), Published(1, False, True)]
        assert await store.bodies([1]) == {1: ("create/o-1/1", b"body")}


async def test_another_mark_is_a_conflict_and_what_came_first_is_kept(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2, mark=b"2" * 32)], NOW_MS)
        await store.change([Change(1, State.DONE, 1)], NOW_MS)
        again = [message(1), message(1, b"other"), message(2, b"other", b"2" * 32), message(2, b"body", b"3" * 32)]
        published = await store.append(again, NOW_MS)
        assert [one.is_conflict for one in published] == [False, True, False, True]
        assert await store.bodies([2]) == {2: ("create/o-2/1", b"body")}


async def test_all_bytes_come_back(site: StoreSite) -> None:
    longest = NewMessage("k" * KEY_BYTES_MAX, "権" * (LANE_BYTES_MAX // 3), bytes(range(256)) * (BODY_BYTES_MAX // 256))
    odd = NewMessage("a'\"\\\n\x00%_?权益🎟", "\x00", b"")
    detail = "é" * (DETAIL_BYTES_MAX // 2)
    async with site.opened() as store:
        await store.append([longest, odd], NOW_MS)
        await store.change([Change(1, State.WAITING, 2, detail, NOW_MS + 5, is_parked=True)], NOW_MS)
    async with site.opened() as store:
        assert await store.bodies([1, 2]) == {1: (longest.key, longest.body), 2: (odd.key, odd.body)}
        assert await store.entries(0, 10) == [Entry(1, longest.lane, 2, NOW_MS + 5, is_parked=True), Entry(2, odd.lane)]
        assert await store.find([odd.key, longest.key]) == [
            Record(2, odd.key, odd.lane, odd.body, State.WAITING, 0, "", NOW_MS, 0),
            Record(1, longest.key, longest.lane, longest.body, State.WAITING, 2, detail, NOW_MS, 0),
        ]


async def test_entries_come_in_pages(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number) for number in range(1, 31)], NOW_MS)
        await store.change([Change(sequence, State.DONE, 1) for sequence in range(1, 31, 2)], NOW_MS)
        seen: list[int] = []
        while page := await store.entries(seen[-1] if seen else 0, 4):
            assert len(page) <= 4
            seen += [entry.sequence for entry in page]
        assert seen == list(range(2, 31, 2))


async def test_bodies_are_of_what_waits_only(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number, b"%d" % number) for number in range(1, 6)], NOW_MS)
        ends = [Change(1, State.DONE, 1), Change(2, State.REFUSED, 1), Change(3, State.DEAD, 1)]
        await store.change([*ends, Change(4, State.WAITING, 1)], NOW_MS)
        assert await store.bodies([5, 4, 3, 2, 1, 99]) == {4: ("create/o-4/1", b"4"), 5: ("create/o-5/1", b"5")}
        assert await store.bodies([]) == {}


async def test_a_change_is_an_end_or_another_attempt(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number) for number in range(1, 6)], NOW_MS)
        await store.change(
            [
                Change(1, State.DONE, 1, "5 ab 0"),
                Change(2, State.REFUSED, 2, "quota_exceeded"),
                Change(3, State.DEAD, 8, "unknown_order"),
                Change(4, State.WAITING, 1, "node_timeout", NOW_MS + 100),
                Change(5, State.WAITING, 3, "unknown_order", NOW_MS + 400, is_parked=True),
            ],
            NOW_MS + 7,
        )
        found = await store.find([message(number).key for number in range(1, 6)])
        assert [record and (record.state, record.attempts, record.detail, record.ended_ms) for record in found] == [
            (State.DONE, 1, "5 ab 0", NOW_MS + 7),
            (State.REFUSED, 2, "quota_exceeded", NOW_MS + 7),
            (State.DEAD, 8, "unknown_order", NOW_MS + 7),
            (State.WAITING, 1, "node_timeout", 0),
            (State.WAITING, 3, "unknown_order", 0),
        ]
        assert await store.entries(0, 10) == [
            Entry(4, "order:o-1", 1, NOW_MS + 100),
            Entry(5, "order:o-1", 3, NOW_MS + 400, is_parked=True),
        ]


async def test_a_change_of_what_does_not_wait_is_passed_over(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2)], NOW_MS)
        await store.change([Change(1, State.DEAD, 1, "first"), Change(1, State.DONE, 2, "second")], NOW_MS)
        await store.change([Change(1, State.REFUSED, 3, "third"), Change(77, State.DONE, 1)], NOW_MS + 1)
        (record,) = await store.find([message(1).key])
        assert record == Record(1, message(1).key, "order:o-0", b"body", State.DEAD, 1, "first", NOW_MS, NOW_MS)
        assert await store.counts() == Counts(waiting=1, done=0, refused=0, dead=1, waiting_bytes=4)


async def test_find_answers_in_order_and_none_for_what_is_unknown(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2)], NOW_MS)
        found = await store.find([message(2).key, "nobody", message(1).key, message(2).key])
        assert [record and record.sequence for record in found] == [2, None, 1, 2]


async def test_ends_are_listed_by_state_in_pages(site: StoreSite) -> None:
    states = [*ENDS, State.WAITING]
    async with site.opened() as store:
        await store.append([message(number) for number in range(40)], NOW_MS)
        await store.change([Change(1 + number, states[number % 4], 1, str(number)) for number in range(40)], NOW_MS)
        for place, state in enumerate(ENDS):
            expected = list(range(place + 1, 41, 4))
            assert [record.sequence for record in await store.ended(state, 0, 100)] == expected
            page = await store.ended(state, expected[3], 4)
            assert [(record.sequence, record.state) for record in page] == [(one, state) for one in expected[4:8]]
            assert [record.detail for record in page] == [str(one - 1) for one in expected[4:8]]


async def test_done_and_refused_bodies_are_dropped_and_those_of_dead_letters_stay(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2), message(3)], NOW_MS)
        ends = [Change(1, State.DONE, 1), Change(2, State.REFUSED, 1), Change(3, State.DEAD, 1)]
        await store.change(ends, NOW_MS)
        bodies = [(await store.ended(state, 0, 9))[0].body for state in ENDS]
        assert bodies == [b"", b"", b"body"]
        assert await store.counts() == Counts(waiting=0, done=1, refused=1, dead=1, waiting_bytes=0)


async def test_dead_letters_wait_again_and_nothing_else_does(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number) for number in range(1, 6)], NOW_MS)
        ends = [
            Change(1, State.DONE, 1),
            Change(2, State.REFUSED, 1),
            Change(3, State.DEAD, 8),
            Change(4, State.DEAD, 8),
        ]
        await store.change(ends, NOW_MS)
        assert await store.revive([5, 4, 2, 1, 77, 4]) == [Entry(4, "order:o-1")]
        assert await store.revive([4]) == []
        assert await store.entries(0, 10) == [Entry(4, "order:o-1"), Entry(5, "order:o-1")]
        assert await store.bodies([4]) == {4: (message(4).key, b"body")}
        (record,) = await store.find([message(4).key])
        assert record is not None
        assert (record.state, record.attempts, record.ended_ms) == (State.WAITING, 0, 0)
        assert await store.counts() == Counts(waiting=2, done=1, refused=1, dead=1, waiting_bytes=8)


async def test_dead_letters_are_discarded_with_their_keys_and_nothing_else_is(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number) for number in range(1, 6)], NOW_MS)
        ends = [Change(1, State.DONE, 1), Change(2, State.REFUSED, 1), *(Change(one, State.DEAD, 8) for one in (3, 5))]
        await store.change(ends, NOW_MS)
        assert await store.discard([]) == 0
        assert await store.discard([1, 2, 4, 5, 77, 5]) == 1
        assert await store.discard([5]) == 0
        assert await store.revive([5]) == []
        assert [record.sequence for record in await store.ended(State.DEAD, 0, 9)] == [3]
        assert await store.find([message(5).key]) == [None]
        assert await store.entries(0, 10) == [Entry(4, message(4).lane)]
        expected = Counts(waiting=1, done=1, refused=1, dead=1, waiting_bytes=4)
        assert await store.counts() == expected
    async with site.opened() as store:
        assert await store.counts() == expected
        again = [message(3), message(4), message(5, b"other")]
        assert await store.append(again, NOW_MS) == [Published(3, False), Published(4, False), Published(6, True)]
        assert await store.bodies([5, 6]) == {6: (message(5).key, b"other")}


async def test_counts_follow_everything_and_outlive_the_owner(site: StoreSite) -> None:
    async with site.opened() as store:
        assert await store.counts() == Counts(0, 0, 0, 0, 0)
        await store.append([message(number, b"x" * number) for number in range(1, 7)], NOW_MS)
        ends = [Change(1, State.DONE, 1), Change(2, State.REFUSED, 1), Change(3, State.DEAD, 8)]
        await store.change([*ends, Change(4, State.WAITING, 1)], NOW_MS)
        expected = Counts(waiting=3, done=1, refused=1, dead=1, waiting_bytes=15)
        assert await store.counts() == expected
    async with site.opened() as store:
        assert await store.counts() == expected
        await store.revive([3])
        assert await store.counts() == Counts(waiting=4, done=1, refused=1, dead=0, waiting_bytes=18)


async def test_what_ended_long_ago_is_forgotten_and_dead_letters_stay(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number) for number in range(1, 7)], NOW_MS)
        for sequence, state in ((1, State.DONE), (2, State.REFUSED), (3, State.DEAD), (4, State.DONE)):
            await store.change([Change(sequence, state, 1)], NOW_MS + sequence)
        assert await store.forget(NOW_MS + 4, 100) == 2
        assert await store.forget(NOW_MS + 4, 100) == 0
        found = await store.find([message(number).key for number in range(1, 7)])
        assert [record and record.state for record in found] == [
            *(None, None, State.DEAD, State.DONE, State.WAITING, State.WAITING)
        ]
        assert await store.counts() == Counts(waiting=2, done=1, refused=0, dead=1, waiting_bytes=8)


async def test_only_the_newest_ends_are_kept(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(number) for number in range(1, 21)], NOW_MS)
        # The later a message stands, the earlier it ends.
        for sequence in range(1, 21):
            state = State.REFUSED if sequence % 2 else State.DONE
            await store.change([Change(sequence, state, 1)], NOW_MS + 100 - sequence)
        assert await store.forget(0, 5) == 15
        kept = [record.sequence for state in ENDS for record in await store.ended(state, 0, 100)]
        assert sorted(kept) == [1, 2, 3, 4, 5]


async def test_much_is_forgotten_at_once(site: StoreSite) -> None:
    async with site.opened() as store:
        for first in range(0, 2_500, 500):
            await store.append([message(number) for number in range(first, first + 500)], NOW_MS)
        await store.change([Change(1 + number, State.DONE, 1) for number in range(2_500)], NOW_MS)
        assert await store.forget(0, 100) == 2_400
        assert (await store.counts()).done == 100


async def test_a_forgotten_key_is_new_and_gets_a_place_of_its_own(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2)], NOW_MS)
        await store.change([Change(1, State.DONE, 1), Change(2, State.DONE, 1)], NOW_MS)
        assert await store.forget(NOW_MS + 1, 100) == 2
    async with site.opened() as store:
        assert await store.append([message(2), message(1)], NOW_MS) == [Published(3, True), Published(4, True)]


async def test_nothing_asked_is_nothing_done(site: StoreSite) -> None:
    async with site.opened() as store:
        assert await store.append([], NOW_MS) == []
        await store.change([], NOW_MS)
        assert await store.find([]) == []
        assert await store.revive([]) == []
        assert await store.entries(0, 10) == []
        assert await store.forget(NOW_MS, 0) == 0


async def test_the_epoch_rises_with_every_owner(site: StoreSite) -> None:
    epochs = []
    for _ in range(3):
        async with site.made() as store:
            epochs.append(await store.open())
    assert epochs == sorted(set(epochs))


async def test_an_owner_that_was_followed_by_another_changes_nothing(site: StoreSite) -> None:
    async with site.opened() as store:
        await store.append([message(1), message(2)], NOW_MS)
        await store.change([Change(1, State.DEAD, 1)], NOW_MS)
        async with site.rival() as rival:
            for change in (
                store.append([message(3)], NOW_MS),
                store.change([Change(2, State.DONE, 1)], NOW_MS),
                store.revive([1]),
                store.discard([1]),
                store.forget(NOW_MS + 1, 0),
            ):
                with pytest.raises(StorageError) as caught:
                    await change
                assert caught.value.code == "fenced"
            assert await rival.counts() == Counts(waiting=1, done=0, refused=0, dead=1, waiting_bytes=4)
            assert await rival.append([message(3)], NOW_MS) == [Published(3, is_new=True)]


@pytest.mark.slow
async def test_a_process_killed_while_it_writes_loses_nothing_that_was_answered(site: StoreSite) -> None:
    rng = random.Random(site.spec.split("=")[0])
    first = 0
    answered: set[int] = set()
    for _ in range(3):
        last = await trio.to_thread.run_sync(_write_and_kill, site.spec, first, rng.randrange(5, 60))
        async with site.opened() as store:
            counts = await store.counts()
            answered.update(range(first, last + 1))
            # Sequences have no gaps, so what is behind the last answer is one batch that was never answered, or none.
            total = counts.waiting + counts.done
            assert last + 1 <= total <= last + 1 + BATCH_MAX
            found = await store.find([message(number).key for number in range(total)])
            for number, record in enumerate(found):
                assert record is not None
                assert record.sequence == number + 1
                if number in answered:
                    assert record.state is (State.WAITING if number % DONE_EACH else State.DONE)
                assert record.body == (b"" if record.state is State.DONE else body_of(number))
            # What was not answered is published again, and is no second message.
            again = await store.append([message(number, body_of(number)) for number in range(last, total)], NOW_MS)
            assert [(one.is_new, one.is_conflict) for one in again] == [(False, False)] * (total - last)
            first = total


def _write_and_kill(spec: str, first: int, lines: int) -> int:
    """Kill a process that writes from message ``first`` on after so many answers; return the last answer's number."""
    last = first - 1
    command = [sys.executable, "-m", "tests.messages.stores", spec, str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            last = int(writer.stdout.readline())
        writer.kill()
        # What it had still said before it died was answered as well.
        for line in writer.stdout:
            last = int(line) if line.endswith("\n") else last
    return last
