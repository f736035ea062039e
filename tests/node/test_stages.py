"""Where a node's time goes is counted once, and by the thread that works."""

import threading
import time

from node.stages import SAMPLE, Stage, Stages
from tests.ledger.builders import CLIENT, make_transaction


def busy(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_signature_counts_as_such_wherever_it_is_checked() -> None:
    stages, transaction = Stages(), make_transaction()
    for stage in (Stage.ADMIT, Stage.EXECUTE):
        with stages.timed(stage):
            for _ in range(4 * SAMPLE):
                assert stages.verified(transaction, CLIENT.public)
    report = stages.report()
    assert report[Stage.VERIFY] > 8 * SAMPLE * 10e-6
    assert report[Stage.ADMIT] + report[Stage.EXECUTE] < report[Stage.VERIFY] / 2
    assert set(report) == {str(stage) for stage in Stage}


def test_each_thread_counts_its_own_work() -> None:
    stages, begun = Stages(), threading.Event()

    def write() -> None:
        with stages.timed(Stage.WRITE):
            begun.set()
            busy(0.02)

    thread = threading.Thread(target=write)
    with stages.timed(Stage.ROOTS):
        thread.start()
        assert begun.wait(5)
        thread.join()
    assert stages.report()[Stage.WRITE] >= 0.02
    assert stages.report()[Stage.ROOTS] < 0.02
