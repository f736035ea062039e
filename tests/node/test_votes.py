"""Who votes, as a node hears it: from the messages alone, and among real drivers."""

from pathlib import Path

import trio

from consensus.ledger.ids import NodeName
from consensus.ledger.transaction import make_call
from consensus.pbft.messages import Commit, Status
from node.rpc.doctor import MISSED_BLOCKS_MAX
from node.votes import AHEAD_MAX, LastVote, VoteBook
from tests.node.site import Site

OWN, SECOND, THIRD = NAMES = tuple(NodeName(name) for name in ("node-0", "node-1", "node-2"))


def vote(signer: str, height: int) -> Commit:
    return Commit(height, 0, bytes(32), signer, bytes(64))


def test_votes_are_noted_by_their_signers_alone() -> None:
    book = VoteBook(OWN, 4, NAMES)
    book.said(SECOND, vote(SECOND, 5), now_ms=10)
    book.said(THIRD, vote(SECOND, 6), now_ms=11)
    book.said(THIRD, Status(5, 0, False), now_ms=12)
    book.said(NodeName("guest"), vote("guest", 5), now_ms=13)
    book.said(THIRD, vote(THIRD, 4 + AHEAD_MAX + 1), now_ms=14)
    report = book.report()
    assert report.last == {SECOND: LastVote(5, 10)}
    assert report.voting_since_ms == 10
    assert report.unheard == (OWN, THIRD)


def test_blocks_that_pass_a_connected_validator_are_counted() -> None:
    book = VoteBook(OWN, 4, NAMES)
    for height in range(5, 9):
        book.said(SECOND, vote(SECOND, height), now_ms=height)
        book.final(height, NAMES, lambda: [SECOND, THIRD])
    assert book.report().missed == {THIRD: 4}
    assert book.report().voting_since_ms is None
    book.final(9, NAMES, None)  # caught up with: nobody's votes were heard
    assert book.report().missed == {THIRD: 4}
    book.final(10, NAMES, lambda: [SECOND])
    assert book.report().missed == {SECOND: 1}
    book.said(SECOND, vote(SECOND, 9), now_ms=20)  # late, and a vote
    assert book.report().missed == {}
    book.final(11, [OWN, SECOND], lambda: [SECOND])
    assert set(book.report().last) == {SECOND}


def test_a_vote_that_comes_early_begins_the_next_height() -> None:
    book = VoteBook(OWN, 4, NAMES)
    book.said(SECOND, vote(SECOND, 5), now_ms=10)
    book.said(SECOND, vote(SECOND, 6), now_ms=11)
    book.final(5, NAMES, lambda: NAMES)
    assert book.report().voting_since_ms == 11
    assert book.report().unheard == (OWN, THIRD)


async def test_a_wiped_node_is_seen_to_cast_no_vote(tmp_path: Path, nursery: trio.Nursery) -> None:
    site = Site(tmp_path, nursery)
    wiped, *others = site.names
    await site.start()
    await site.stop(wiped)
    site.wipe(wiped)
    await site.start(wiped)
    for number in range(MISSED_BLOCKS_MAX + 3):
        call = make_call("tokens", "define", {"unit": f"u{number}", "decimals": 2, "description": "unit"})
        site.submit(others[0], site.sign("bank-a", [call], sequence=number))
        await site.reach(number + 1)
    missed = site.running[others[0]].node.driver.votes.report().missed
    assert set(missed) == {wiped}
    assert missed[NodeName(wiped)] > MISSED_BLOCKS_MAX
    assert not site.running[wiped].node.driver.engine.status().is_validator
    await site.stop()
