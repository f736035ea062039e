"""A machine's disk in memory, whose content is what would survive a crash at this very moment, and its faults.

A write under way is the host's affair: it puts the batch here at the moment when it becomes durable, so a
crash before loses all of it and a crash after keeps all of it, acknowledged or not. That is LevelDB's
promise. What a :class:`Drive` does beyond it (half a batch, a record in the wrong place, a rotten one) is
for the node to notice.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random

from consensus.ledger.errors import StorageError
from node.storage import layout
from node.storage.store import Write
from tests.sim.plan import Plan

SLOTS = (layout.VOTE + b"\x01", layout.VOTE + b"\x02", layout.VOTE + b"\x03", layout.VOTE + b"\x04")
BY_HEIGHT = (layout.BLOCK, layout.CERTIFICATE, layout.RECEIPTS, layout.WRITES)
FULL_MS_MAX = 3_000

Gate = Callable[[Callable[[], None]], None]
"""Lets a write happen, or raises instead, or both."""


def _open_gate(put: Callable[[], None]) -> None:
    put()


class Disk:
    """An ordered map; see :class:`node.storage.store.Store`."""

    def __init__(self, content: dict[bytes, bytes] | None = None, gate: Gate = _open_gate) -> None:
        self.content = dict(content or {})
        self.rotten: set[bytes] = set()
        """Keys whose record no longer fits its checksum; LevelDB tells when it reads one."""
        self._gate = gate
        self._sorted: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        """Return the value, or None."""
        self._check(key)
        return self.content.get(key)

    def scan(self, prefix: bytes, start: bytes = b"", *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield pairs in order of the keys, or downwards."""
        if self._sorted is None:
            self._sorted = sorted(self.content)
        keys = self._sorted
        first = bisect_left(keys, prefix if reverse else prefix + start)
        last = first
        while last < len(keys) and keys[last].startswith(prefix):
            if reverse and start and keys[last] >= prefix + start:
                break
            last += 1
        found = keys[first:last]
        for key in found:
            self._check(key)
        yield from [(key, self.content[key]) for key in (reversed(found) if reverse else found)]

    def write(self, batch: Iterable[Write]) -> None:
        """Make a batch durable at once, all of it, or do what the gate does instead."""
        records = list(batch)
        self._gate(lambda: self.put(records))

    def put(self, batch: Iterable[Write]) -> None:
        """Change the content, past every fault."""
        for key, value in batch:
            self.rotten.discard(key)
            if value is None:
                self.content.pop(key, None)
                self._sorted = None
            else:
                if key not in self.content:
                    self._sorted = None
                self.content[key] = value

    def close(self) -> None:
        """Nothing to release."""

    def _check(self, key: bytes) -> None:
        if self.rotten and key in self.rotten:
            raise StorageError("corrupted", f"the record at {key.hex()} does not fit its checksum")


class KeyFile:
    """The incarnation beside the vote key; see :class:`node.vote_log.KeySide`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._data: bytes | None = None

    def load(self) -> bytes | None:
        """Return what was saved last."""
        return self._data

    def save(self, data: bytes) -> None:
        """Replace it."""

        def put() -> None:
            self._data = data

        self._gate(put)


class Drive:
    """What goes wrong with one machine's disk. A fragile one does what LevelDB rules out."""

    def __init__(self, plan: Plan, random: Random, now_ms: Callable[[], int], *, is_fragile: bool) -> None:
        self._plan = plan
        self._random = random
        self._now_ms = now_ms
        self.is_fragile = is_fragile
        self.is_healed = False
        self.damages = 0
        """How often something was put where it does not belong, or taken away."""
        self._full_until_ms = 0

    def draw(self, permille: int) -> bool:
        """Tell whether something with this probability happens now."""
        return permille > 0 and not self.is_healed and self._random.randrange(1_000) < permille

    def let_write(self, put: Callable[[], None]) -> None:
        """Let a write happen, or fail with EIO (the data may be there or not) or ENOSPC (it lasts for a while).

        Raises:
            StorageError: ``disk_failed``.
        """
        if self._now_ms() < self._full_until_ms and not self.is_healed:
            raise StorageError("disk_failed", "no space left on device")
        if not self.draw(self._plan.write_error_permille):
            put()
            return
        if self._random.random() < 0.5:
            self._full_until_ms = self._now_ms() + self._random.randint(1, FULL_MS_MAX)
            raise StorageError("disk_failed", "no space left on device")
        if self._random.random() < 0.5:
            put()
        raise StorageError("disk_failed", "input/output error")

    def misdirect(self, batch: Sequence[Write]) -> list[Write]:
        """Return the batch as the disk stores it: now and then one record lands in the place of another."""
        records = list(batch)
        if not self.is_fragile or not self.draw(self._plan.misdirected_permille):
            return records
        index = self._random.randrange(len(records))
        key, value = records[index]
        place = self._other_place(key)
        if place is not None and value is not None:
            records[index] = (place, value)
            self.damages += 1
        return records

    def _other_place(self, key: bytes) -> bytes | None:
        if key in SLOTS:
            return self._random.choice([slot for slot in SLOTS if slot != key])
        if key[:1] in BY_HEIGHT:
            height = max(0, int.from_bytes(key[1:], "big") + self._random.choice((-2, -1, 1)))
            return layout.at_height(self._random.choice((key[:1], key[:1], *BY_HEIGHT)), height)
        return None

    def tear(self, disk: Disk, batch: Sequence[Write]) -> None:
        """Leave the first records of a write that a crash interrupts, the last of them perhaps cut short."""
        if not self.is_fragile or not self.draw(self._plan.torn_permille):
            return
        kept = list(batch[: self._random.randint(0, len(batch))])
        if kept and self._random.random() < 0.5:
            key, value = kept[-1]
            kept[-1] = (key, value and value[: self._random.randrange(len(value) + 1)])
        disk.put(kept)
        self.damages += 1

    def rot(self, disk: Disk) -> None:
        """Let one record decay; the rare kinds as likely as the frequent ones."""
        if self.is_fragile and not self.is_healed and disk.content:
            kinds = sorted({key[:1] for key in disk.content})
            kind = self._random.choice(kinds)
            disk.rotten.add(self._random.choice(sorted(key for key in disk.content if key[:1] == kind)))
            self.damages += 1
