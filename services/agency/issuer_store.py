"""What the issuer end keeps, in its encrypted map of bytes: everything about one answer is one write.

    e KIND / BLIND     an entry of the books, see :mod:`services.agency.holdings`; BLIND stands for its name
    k ROOT             a package that was answered: :class:`Kept`
    a ROOT ROUND       an answer, as it travels; ROUND is one byte
    u NUMBER           an answer that the gateway may not have: ROOT ROUND; NUMBER is 8 bytes, big-endian, from 1
    o NUMBER           the answer with this number, for who reads all of them in order: ROOT ROUND
    w NUMBER           a package that waits for an allotment: ROOT
    h BLIND            the hash of the newest answer to a bank, which the next one names
    p                  position up to which the gateway's packages were answered
    n                  number of the newest answer; ``m``: how many of them are allotments

An answer is under ``u`` from the write that booked it until after the gateway has it: a program that died in between
submits it again, byte for byte.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.cooperation import FIRST_ANSWER
from consensus.ledger.errors import PeerError, StorageError
from services.agency.gateway_store import Store, Write
from services.agency.holdings import Books, Entry, Name, entry_codec
from services.agency.packages import MESSAGE_BYTES_MAX, Answer, Package, answer_id, message_codec


class BlindStore(Store, Protocol):
    """What is asked of a vault: keys that say nothing, too."""

    def blind(self, *parts: str) -> bytes:
        """Return bytes that stand for a name in keys, always the same ones."""


class Kept(Record, frozen=True):
    """A package at the issuer end; ``places`` of its applications wait for an allotment, until ``is_allotted``."""

    package: Package
    places: list[int]
    is_allotted: bool


_kept_codec: RecordCodec[Kept] = RecordCodec(Kept, bytes_max=2 * MESSAGE_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Unsent:
    """An answer that the gateway may not have, under its number."""

    number: int
    root: bytes
    round_number: int


class IssuerStore:
    """Reads typed; every method that writes is one synced write, and memory follows it."""

    def __init__(self, vault: BlindStore) -> None:
        """Take the vault; reads what is not yet done."""
        self._vault = vault
        self.position = self._integer(b"p")
        self.answers_count = self._integer(b"n")
        self.allotments_count = self._integer(b"m")
        self.unsent = [_unsent(key, value) for key, value in vault.scan(b"u")]
        self.waiting = {_integer(key[1:]): value for key, value in vault.scan(b"w")}
        """Roots of the packages that wait for an allotment, by the number of their answer."""
        self._sent: list[int] = []

    def books(self) -> Books:
        """Return the books as they are on the disk, for one package."""
        return Books(self._entry)

    def kept(self, root: bytes) -> Kept | None:
        """Return a package that was answered, or None."""
        value = self._vault.get(b"k" + root)
        if value is None:
            return None
        try:
            return _kept_codec.decode_untrusted(value)
        except PeerError as error:
            raise _bad_record(error) from None

    def answer(self, root: bytes, round_number: int) -> Answer | None:
        """Return an answer, or None."""
        value = self._vault.get(_answer_key(root, round_number))
        if value is None:
            return None
        try:
            message = message_codec.decode_untrusted(value)
        except PeerError as error:
            raise _bad_record(error) from None
        return message if isinstance(message, Answer) else None

    def previous(self, bank: str) -> bytes:
        """Return what the next answer to a bank names as the one before it."""
        return self._vault.get(b"h" + self._vault.blind("head", bank)) or FIRST_ANSWER

    def answers_after(self, number: int, limit: int) -> list[tuple[int, Kept, Answer]]:
        """Return up to ``limit`` answers with numbers above the given one, with their packages, ascending."""
        found: list[tuple[int, Kept, Answer]] = []
        for key, value in self._vault.scan(b"o", _bytes(number + 1), limit=limit):
            root, round_number = value[:-1], value[-1]
            kept, answer = self.kept(root), self.answer(root, round_number)
            if kept is None or answer is None:
                raise StorageError("bad_record", "a numbered answer is not kept")
            found.append((_integer(key[1:]), kept, answer))
        return found

    def entries(self, kind: str, after: str) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of a kind with their cursors, from behind a cursor on; "" from the beginning."""
        prefix = _kind_prefix(kind)
        start = bytes.fromhex(after) + b"\0" if after else b""
        for key, value in self._vault.scan(prefix, start):
            yield key[len(prefix) :].hex(), _decoded(value)

    async def keep_first(
        self, position: int, package: Package, answer: Answer, places: list[int], books: Books
    ) -> None:
        """Keep a package with its first answer and all that follows from it; it is unsent from then on."""
        number = self.answers_count + 1
        writes = [(b"k" + package.root, _kept_codec.encode(Kept(package, places, False)))]
        writes += [(b"p", _bytes(position))]
        if places:
            writes += [(b"w" + _bytes(number), package.root)]
        await self._keep(answer, books, writes)
        self.position = max(self.position, position)
        if places:
            self.waiting[number] = package.root

    async def keep_allotment(self, waiting: int, kept: Kept, answer: Answer, books: Books) -> None:
        """Keep the second answer to a package that waited under a number."""
        value = _kept_codec.encode(Kept(kept.package, kept.places, True))
        allotments = self.allotments_count + 1
        writes = [(b"k" + kept.package.root, value), (b"w" + _bytes(waiting), None), (b"m", _bytes(allotments))]
        await self._keep(answer, books, writes)
        self.allotments_count = allotments
        self.waiting.pop(waiting, None)

    async def keep_books(self, books: Books) -> None:
        """Keep changes of the books that no answer goes with."""
        await self._vault.write(self._entry_writes(books))

    async def pass_again(self, position: int, root: bytes) -> None:
        """Have the answers to a package that the gateway offers again sent again."""
        rounds = [number for number in (0, 1) if self.answer(root, number) is not None]
        known = {(item.root, item.round_number) for item in self.unsent}
        fresh = [number for number in rounds if (root, number) not in known]
        first = self.answers_count + 1
        items = [Unsent(first + place, root, number) for place, number in enumerate(fresh)]
        count = self.answers_count + len(items)
        await self._vault.write([(b"p", _bytes(position)), (b"n", _bytes(count)), *(_unsent_write(x) for x in items)])
        self.position = max(self.position, position)
        self.answers_count = count
        self.unsent += items

    def sent(self, item: Unsent) -> None:
        """Know that the gateway has an answer; the disk hears of it with the next write."""
        if item in self.unsent:
            self.unsent.remove(item)
            self._sent.append(item.number)

    async def _keep(self, answer: Answer, books: Books, writes: Iterable[Write]) -> None:
        number = self.answers_count + 1
        item = Unsent(number, answer.root, answer.round_number)
        head = b"h" + self._vault.blind("head", answer.bank)
        sent = [*self._sent]
        await self._vault.write(
            [
                *writes,
                *self._entry_writes(books),
                *((b"u" + _bytes(old), None) for old in sent),
                _unsent_write(item),
                (_answer_key(answer.root, answer.round_number), message_codec.encode(answer)),
                (b"o" + _bytes(number), answer.root + bytes([answer.round_number])),
                (head, bytes(answer_id(answer))),
                (b"n", _bytes(number)),
            ]
        )
        del self._sent[: len(sent)]
        self.answers_count = number
        self.unsent.append(item)

    def _entry(self, name: Name) -> Entry | None:
        value = self._vault.get(self._entry_key(name))
        return None if value is None else _decoded(value)

    def _entry_key(self, name: Name) -> bytes:
        return _kind_prefix(name[0]) + self._vault.blind(*name)

    def _entry_writes(self, books: Books) -> list[Write]:
        return [(self._entry_key(name), entry_codec.encode(entry)) for name, entry in books.changes().items()]

    def _integer(self, key: bytes) -> int:
        return _integer(self._vault.get(key) or b"")


def _kind_prefix(kind: str) -> bytes:
    return b"e" + kind.encode() + b"/"


def _answer_key(root: bytes, round_number: int) -> bytes:
    return b"a" + root + bytes([round_number])


def _unsent_write(item: Unsent) -> Write:
    return b"u" + _bytes(item.number), item.root + bytes([item.round_number])


def _unsent(key: bytes, value: bytes) -> Unsent:
    return Unsent(_integer(key[1:]), value[:-1], value[-1])


def _decoded(value: bytes) -> Entry:
    try:
        return entry_codec.decode_untrusted(value)
    except PeerError as error:
        raise _bad_record(error) from None


def _bad_record(error: PeerError) -> StorageError:
    return StorageError("bad_record", f"a record of the issuer end does not decode: {error.message}")


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "big")
