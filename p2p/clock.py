"""How far a peer's wall clock is from ours, told by a question and an answer within a session. Pure.

The question leaves at one moment of ours and the answer comes at another; the peer looked at its clock in
between. Hence ``offset = peer's time - midpoint`` is right within half the time that passed (Cristian 1989),
however long the frames queued. What a peer says of its clock is believed by people alone: blocks are judged
by each voter's own clock.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from consensus.ledger.codec import Record, RecordCodec

NUMBER_MAX = 2**32 - 1
WALL_MS_MAX = 2**53 - 1
"""Latest time that a peer may claim, ms since 1970 UTC; beyond it is malformed."""
ROUNDING_MS = 2
"""What reading four times in whole milliseconds may add up to."""
SAMPLE_MS_MAX = 60_000
"""Age at which a precise measurement gives way to a newer one that is less precise."""


class _Question(Record, frozen=True):
    number: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]


class _Answer(Record, frozen=True):
    number: Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
    wall_ms: Annotated[int, msgspec.Meta(ge=0, le=WALL_MS_MAX)]


_question_codec: RecordCodec[_Question] = RecordCodec(_Question, bytes_max=32)
_answer_codec: RecordCodec[_Answer] = RecordCodec(_Answer, bytes_max=64)


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """A peer's clock against ours: ``ahead_ms`` (negative: behind), right within ``± uncertainty_ms``."""

    ahead_ms: int
    uncertainty_ms: int


@dataclass(frozen=True, slots=True)
class _Sample:
    offset: ClockOffset
    at_ms: int


class ClockProbe:
    """The clock questions of one session; times in ms, ``wall_ms`` since 1970 UTC, ``now_ms`` monotonic."""

    def __init__(self) -> None:
        self._number = 0
        self._asked: tuple[int, int] | None = None
        """Number and moment of the question that waits for its answer."""
        self._sample: _Sample | None = None

    @property
    def offset(self) -> ClockOffset | None:
        """What is known of the peer's clock, None before its first answer."""
        return None if self._sample is None else self._sample.offset

    def ask(self, *, now_ms: int) -> bytes:
        """Return the next question; an older one that was not answered is forgotten."""
        self._number = (self._number + 1) & NUMBER_MAX
        self._asked = (self._number, now_ms)
        return _question_codec.encode(_Question(self._number))

    @staticmethod
    def answer_untrusted(payload: bytes, *, wall_ms: int) -> bytes:
        """Return the answer to a peer's question.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        return _answer_codec.encode(_Answer(_question_codec.decode_untrusted(payload).number, wall_ms))

    def answered_untrusted(self, payload: bytes, *, now_ms: int, wall_ms: int) -> None:
        """Take the peer's answer; one to no question of ours, or to an older one, changes nothing.

        Read ``wall_ms`` first: a pause between the two readings then only makes the answer less precise.

        Raises:
            PeerError: ``malformed`` or ``too_large``.
        """
        answer = _answer_codec.decode_untrusted(payload)
        if self._asked is None or self._asked[0] != answer.number:
            return
        half_ms = (max(0, now_ms - self._asked[1]) + 1) // 2
        self._asked = None
        offset = ClockOffset(answer.wall_ms - (wall_ms - half_ms), half_ms + ROUNDING_MS)
        if self._is_better(offset, now_ms):
            self._sample = _Sample(offset, now_ms)

    def _is_better(self, offset: ClockOffset, now_ms: int) -> bool:
        """Tell whether a measurement takes the place of the one that is held."""
        if self._sample is None or now_ms - self._sample.at_ms > SAMPLE_MS_MAX:
            return True
        held = self._sample.offset
        is_apart = abs(offset.ahead_ms - held.ahead_ms) > offset.uncertainty_ms + held.uncertainty_ms
        return is_apart or offset.uncertainty_ms <= held.uncertainty_ms
