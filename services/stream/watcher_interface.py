"""What a watcher offers: to its owner on ``run/watcher.sock``, to service parties over HTTP, in the same words.

Bytes are 0x-hex, amounts in smallest units of the stream's unit. An iteration comes as the text of its file, as
:func:`services.stream.iteration_file.encode_carried` writes it.
"""

from typing import Annotated

import msgspec

from services.stream.iteration_file import FILE_BYTES_MAX
from services.stream.service_interface import Params, Result, StreamText

WATCHED_PAGE_MAX = 500


class Watch(Params, frozen=True):
    """``watch``, ``POST /iterations``: keep this iteration; again, or one of a lower total, changes nothing.

    Answered by ``Watched``. Codes: those of ``check_carried_untrusted``; ``unknown_stream``, ``bad_signature``,
    ``bad_terms`` where the chain knows the stream otherwise; ``stream_closed``; ``watcher_full``. ``urgent`` has it
    settled at once.
    """

    iteration: Annotated[str, msgspec.Meta(max_length=FILE_BYTES_MAX)]
    urgent: bool = False


class WatchedQuery(Params, frozen=True):
    """``stream``, ``GET /streams/ID``: one that was given. Answered by ``Watched``; ``unknown_stream``."""

    stream: StreamText


class WatchedListQuery(Params, frozen=True):
    """``streams``: what was given, in the order of ids from after ``after``. Answered by ``WatchedPage``."""

    after: Annotated[str, msgspec.Meta(pattern=r"^(0x[0-9a-f]{64})?\Z")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=WATCHED_PAGE_MAX)] = 100


class StatusQuery(Params, frozen=True):
    """``status``. Answered by ``WatcherStatus``."""


class Watched(Result, frozen=True):
    """A stream that is watched.

    ``status`` is WATCHING, SETTLED (the iteration is on the chain), CLAIMED, or OVER (others did it, or the stream is
    closed). ``due`` is what the iteration pays in all, ``paid`` what the chain has paid in all when it was last looked
    at, ``fine`` what a claim brought beside it. ``transaction`` is the last one that took effect, "" before.
    ``trouble`` is the code of what stands in the way now, "" for nothing.
    """

    stream: str
    status: str
    unit: str
    due: int
    paid: int
    fine: int
    valid_until_ms: int
    settles_at_ms: int
    transaction: str
    trouble: str


class WatchedPage(Result, frozen=True):
    """Streams; ``next`` is for the following page's ``after``, "" on the last."""

    items: list[Watched]
    next: str


class WatcherStatus(Result, frozen=True):
    """``counts``: streams by status. ``account`` sends the claims. ``trouble`` as in ``Watched``, of any stream."""

    account: str
    address: str
    chain_id: str
    counts: dict[str, int]
    trouble: str
