"""P15, R21: whatever leads into a view, the same is done there; hypothesis looks for a path that skips some of it."""

import ast
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.ledger.ids import NodeName
from consensus.pbft.events import (
    Broadcast,
    Effect,
    Persist,
    Phase,
    Propose,
    Proposed,
    Send,
    Validate,
    Validated,
    ViewEntered,
    Work,
)
from consensus.pbft.messages import NewView, ViewChange
from consensus.pbft.vote_log import RecordKind, _decode, _view_codec
from tests.pbft.solo import Solo
from tests.test_tidy import files_of, tree_of

VIEW_KEY = bytes([RecordKind.VIEW])
MOVES = ("time", "jump", "refuse", "new view", "overdue", "votes", "propose", "prepare", "verdict", "restart")


class Walk:
    """A replica led from view to view; every step is looked at."""

    def __init__(self, name: str) -> None:
        self.solo = Solo(name)
        self.views = 0
        self.step(lambda: self.solo.tick(), before=(0, Phase.OPEN))
        self.step(lambda: self.solo.step(Work(waiting=True)))

    @property
    def others(self) -> list[NodeName]:
        return [name for name in self.solo.names if name != self.solo.name]

    def step(self, act: object, before: tuple[int, Phase] | None = None) -> None:
        before = before or self.stand()
        effects: Sequence[Effect] = act()  # type: ignore[operator]
        if self.stand()[0] != before[0] or any(isinstance(effect, ViewEntered) and effect.view for effect in effects):
            self.views += 1
            self.check(effects)

    def stand(self) -> tuple[int, Phase]:
        return self.solo.engine.view, self.solo.engine.status().phase

    def check(self, effects: Sequence[Effect]) -> None:
        """A view is durable, then announced, then spoken in; nothing of the view before is left."""
        state = self.solo.engine._state
        progress, view = state.progress, state.view
        entered = [index for index, effect in enumerate(effects) if isinstance(effect, ViewEntered)]
        assert effects[entered[-1]].view == view  # type: ignore[attr-defined]
        written = [
            index
            for index, effect in enumerate(effects)
            if isinstance(effect, Persist) and any(key == VIEW_KEY for key, _ in effect.records)
        ]
        spoken = [
            index
            for index, effect in enumerate(effects)
            if isinstance(effect, Broadcast | Send) and isinstance(effect.message, ViewChange | NewView)
        ]
        assert len(written) == len(entered), "one record a view"
        assert written[0] < entered[0]
        assert not spoken or written[0] < spoken[0]
        record = _decode(RecordKind.VIEW, self.solo.records[VIEW_KEY])
        content = _view_codec.decode_untrusted(record.content)
        assert (record.view, content.view_change, content.new_view) == (view, progress.view_change, progress.new_view)
        assert (progress.view_change is None) != (progress.new_view is None)
        assert progress.entered_ms == progress.moved_ms == state.now_ms
        assert progress.fetched_ms is None
        assert (progress.phase is Phase.VIEW_CHANGE) == (progress.view_change is not None)
        if progress.phase in (Phase.VIEW_CHANGE, Phase.OPEN):
            assert progress.proposal is None
        asks_anew = any(isinstance(effect, Propose) and effect.view == view for effect in effects)
        requires = any(isinstance(effect, Validate) for effect in effects)
        assert progress.asked_to_propose in ((True,) if asks_anew else (False, requires))
        assert progress.supported_ms in (None, state.now_ms)
        kept = {item.block.hash for item in (progress.accepted, progress.prepared) if item is not None}
        assert set(progress.valid) <= kept

    def go(self, move: str, number: int) -> None:
        solo, view = self.solo, self.solo.engine.view
        match move:
            case "time":
                self.step(lambda: solo.tick(10_000))
            case "jump":
                for signer in self.others[:2]:
                    self.step(lambda signer=signer: solo.receive(solo.view_change(signer, view + 1 + number)))
            case "votes":
                for signer in self.others:
                    self.step(lambda signer=signer: solo.receive(solo.view_change(signer, max(view, 1))))
            case "new view":
                target = view + 1 + number
                votes = [solo.view_change(signer, target) for signer in self.others]
                if solo.validators.primary(solo.height, target) != solo.name:
                    self.step(lambda: solo.receive(solo.new_view(target, votes)))
            case "overdue":
                self.step(lambda: solo.step(Work(waiting=True, overdue=True)))
            case "propose" | "refuse" | "prepare":
                self.propose(move, number)
            case "verdict":
                block = solo.block(b"late")
                self.step(lambda: solo.step(Validated(block.hash, True)))
            case "restart":
                if solo.records:
                    self.solo = solo.restarted()
                    self.solo.now_ms = 0
                    self.solo.tick()
                    self.solo.step(Work(waiting=True))

    def propose(self, move: str, number: int) -> None:
        """Let the view's primary propose, and the block be refused, accepted, or prepared by the others."""
        solo, view = self.solo, self.solo.engine.view
        primary = solo.validators.primary(solo.height, view)
        block = solo.block(b"t%d" % number, proposer=primary)
        if primary == solo.name:
            self.step(lambda: solo.step(Proposed(solo.height, view, block)))
        else:
            self.step(lambda: solo.receive(solo.propose(block, view)))
            if any(isinstance(effect, Validate) for effect in solo.effects):
                valid = move != "refuse"
                self.step(lambda: solo.step(Validated(block.hash, valid, "" if valid else "bad_block")))
        if move == "prepare":
            for signer in self.others:
                self.step(lambda signer=signer: solo.receive(solo.prepare(signer, block, view)))


@settings(max_examples=150)
@given(name=st.sampled_from("abcd"), moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 2)), max_size=12))
def test_r21_every_way_into_a_view_does_the_same(name: str, moves: list[tuple[str, int]]) -> None:
    walk = Walk(name)
    for move, number in moves:
        walk.go(move, number)


def test_r21_the_paths_lead_into_views() -> None:
    for move in ("time", "jump", "refuse", "new view", "overdue"):
        walk = Walk("a")
        walk.go(move, 0)
        assert walk.views == 1, move
    walk = Walk("c")  # the primary of view 1 at height 1
    walk.go("jump", 0)
    assert walk.stand() == (1, Phase.OPEN)


def test_r21_one_function_enters_a_view() -> None:
    """A height begins in view 0, a restart stands where the log says, and all else is ``_enter``."""
    writers = set()
    for path in files_of("consensus/pbft"):
        for function in ast.walk(tree_of(path)):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                targets = node.targets if isinstance(node, ast.Assign) else []
                if any(isinstance(item, ast.Attribute) and item.attr == "view" for item in targets):
                    writers.add((path.rsplit("/", 1)[1], function.name))
    assert writers == {("state.py", "__init__"), ("engine.py", "_resume"), ("view_change.py", "_enter")}
