"""P17 and P18: asking, answering, catching up."""

from consensus.ledger.ids import NodeName
from consensus.ledger.validators import Certificate
from consensus.pbft.events import CatchUp, Decide, Penalise, Phase, Work
from consensus.pbft.messages import Commit, Decided, Message, NewView, Prepare, PrePrepare, Status, ViewChange
from tests.pbft.cluster import Cluster
from tests.pbft.solo import Solo


def started(name: str = "a", count: int = 4) -> Solo:
    solo = Solo(name, count)
    solo.tick()
    return solo


def test_p17_questions_come_every_second_and_more_often_when_stuck() -> None:
    solo = started()
    assert solo.every(Status) == [Status(1, 0, False)]
    counts = [len(solo.tick(100)) for _ in range(20)]
    assert sum(counts) == 2
    solo.step(Work(waiting=True))
    asked = sum(len(solo.every(Status)) for _ in range(8) if solo.tick(100) is not None)
    assert asked == 4


def test_p17_an_answer_holds_what_the_asker_lacks() -> None:
    backup = started()
    block = backup.block(b"t")
    backup.accept(block)
    backup.receive(backup.prepare("c", block))
    backup.receive(Status(1, 0, True), sender="d")
    assert [type(message) for message in backup.to("d", object)] == [Prepare, Commit]
    backup.step(Work(waiting=True))
    backup.tick(1_000)
    assert backup.engine.status().phase is Phase.VIEW_CHANGE
    backup.receive(Status(1, 0, True), sender="d")
    assert backup.to("d", ViewChange)


def test_p17_a_primary_answers_with_new_view_and_proposal() -> None:
    solo = started("c")
    block = solo.block(b"t")
    solo.accept(block)
    solo.receive(solo.view_change("b", 1))
    solo.receive(solo.view_change("d", 1, solo.prepared(block, 0, "ad")))
    solo.receive(Status(1, 0, True), sender="a")
    assert solo.to("a", NewView)
    assert not solo.to("a", PrePrepare), "it is still under way"
    solo.tick(200)
    solo.receive(Status(1, 0, True), sender="a")
    assert len(solo.to("a", NewView)) == len(solo.to("a", PrePrepare)) == 1
    solo.receive(Status(1, 0, True), sender="a")
    assert not solo.effects
    solo.tick(100)
    solo.receive(Status(1, 1, True), sender="a")
    assert not solo.to("a", NewView)
    assert not solo.to("a", PrePrepare)


def test_r60_r61_p18_claimed_heights_trigger_a_question_and_never_more() -> None:
    solo = started()
    assert solo.receive(Status(10**9, 0, False), sender="c") == []
    far = solo.block(b"t", height=77)
    solo.receive(solo.commit("c", far))
    assert [effect.to for effect in solo.effects] == ["c"]
    assert solo.to("c", Status)
    solo.receive(solo.commit("c", far))
    assert not solo.effects
    solo.receive(Status(0, 0, False), sender="c")
    assert not solo.effects
    block = solo.block(b"t")
    solo.accept(block)
    assert solo.every(Prepare)


def test_p18_a_certificate_answers_who_is_behind() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.advance(block)
    solo.receive(Status(1, 7, True), sender="d")
    assert solo.to("d", Decided) == [Decided(solo.certificate(block))]


def test_p18_a_certificate_decides_when_the_block_is_here() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    solo.receive(Decided(solo.certificate(block, view=3)), sender="c")
    assert solo.every(Decide)[0].certificate.view == 3


def test_r62_p18_a_certificate_of_this_height_is_fully_checked() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    good = solo.certificate(block)
    bad = [
        solo.certificate(block, "cd"),
        solo.certificate(block, "ccd"),
        solo.certificate(block, "dcb"),
        solo.certificate(block, "bcz"),
        Certificate(1, 1, good.block_hash, good.signatures),
        Certificate(1, 0, bytes(32), good.signatures),
    ]
    for certificate in bad:
        solo.receive(Decided(certificate), sender="c")
        assert solo.effects == [Penalise(NodeName("c"), "bad_certificate")]
    solo.receive(Decided(good), sender="c")
    assert solo.every(Decide)


def test_p18_a_later_certificate_needs_f_plus_1_known_signers() -> None:
    solo = started()
    later = solo.block(b"t", height=9)
    solo.receive(Decided(solo.certificate(later, "cxyz")), sender="c")
    solo.receive(Decided(solo.certificate(later, "cc")), sender="c")
    assert not solo.effects
    certificate = solo.certificate(later, "cdz")
    solo.receive(Decided(certificate), sender="c")
    assert solo.effects == [CatchUp(certificate, NodeName("c"))]
    solo.receive(Decided(certificate), sender="d")
    assert not solo.effects
    solo.tick(1_000)
    solo.receive(Decided(certificate), sender="d")
    assert solo.every(CatchUp)


def test_p18_after_catching_up_it_asks_at_once() -> None:
    solo = started()
    solo.advance(solo.block(b"t"))
    assert solo.every(Status) == [Status(2, 0, False)]


def test_r26_p18_catching_up_ends_a_view_change() -> None:
    solo = started()
    solo.step(Work(waiting=True))
    solo.tick(1_000)
    solo.advance(solo.block(b"t"))
    assert (solo.engine.height, solo.engine.view) == (2, 0)


def test_p17_messages_of_the_next_height_wait_for_it() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    held: list[tuple[NodeName, NodeName, Message]] = []

    def hold_back(sender: NodeName, to: NodeName, message: Message) -> bool:
        late = to == "d" and isinstance(message, Commit) and message.height == 1
        if late:
            held.append((sender, to, message))
        return late

    cluster.drop = hold_back
    cluster.submit(b"1")
    assert [replica.height for replica in cluster.alive] == [1, 1, 1, 0]
    cluster.submit(b"2")
    cluster.drop = lambda sender, to, message: False
    for sender, to, message in held:
        cluster.deliver(sender, to, message)
    cluster.drain()
    assert [replica.height for replica in cluster.alive] == [2, 2, 2, 2]


def test_p18_a_laggard_under_load_comes_back_to_voting() -> None:
    cluster = Cluster(4)
    cluster.run(20)
    cluster.crash("d")
    for number in range(8):
        cluster.submit(b"%d" % number)
        cluster.run(260)
    cluster.restart("d")
    for number in range(8, 20):
        cluster.submit(b"%d" % number)
        cluster.run(20)
    assert cluster["d"].height == cluster["a"].height
    cluster.crash("b")
    cluster.submit(b"last")
    cluster.run_until_height(cluster["a"].height + 1, 3_000)


def test_status_for_people() -> None:
    solo = started()
    block = solo.block(b"t")
    solo.accept(block)
    solo.receive(solo.prepare("c", block))
    solo.receive(Status(5, 2, True), sender="d")
    status = solo.engine.status()
    assert (status.height, status.view, status.phase, status.primary) == (1, 0, Phase.COMMITTING, "b")
    assert status.prepares == ("a", "c")
    assert status.commits == ("a",)
    assert status.block_hash == block.hash
    assert (status.quorum, status.timeout_ms, status.is_validator) == (3, 1_000, True)
    assert (status.peers[NodeName("d")].height, status.peers[NodeName("d")].view) == (5, 2)
