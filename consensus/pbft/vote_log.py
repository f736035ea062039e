"""The records that keep a replica from contradicting itself after a crash (SPEC P12, P13).

Four records under fixed keys, overwritten as the height goes on; those of older heights are void:

==========  =======================================================================
``\\x01``    view: the own view-change vote, or the new view that opened it
``\\x02``    accepted: the proposal last prepared (or proposed), with its body
``\\x03``    prepared: the certificate that the last commit stands on
``\\x04``    the body of the prepared block, once another block was accepted
==========  =======================================================================

Whether a key may vote with the log that is found is for the node to decide (it knows both from outside).
Every value carries its own kind, incarnation, height and view, so a misdirected or foreign one is noticed, and the
number of the newest record of every kind, so one that went elsewhere is missed (R51).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import msgspec

from consensus.ledger.block import Block, BlockRecord
from consensus.ledger.codec import Record, RecordCodec
from consensus.ledger.errors import PeerError, StorageError
from consensus.ledger.ids import Hash, tagged_hash
from consensus.ledger.merkle import HashBytes
from consensus.ledger.transaction import Natural
from consensus.pbft.messages import (
    MESSAGE_BYTES_MAX,
    Height,
    NewView,
    PreparedCertificate,
    PrePrepare,
    View,
    ViewChange,
)


class RecordKind(IntEnum):
    """What a record holds; its key is this one byte."""

    VIEW = 1
    ACCEPTED = 2
    PREPARED = 3
    PREPARED_BODY = 4


class _Entry(Record, frozen=True):
    kind: int
    incarnation: HashBytes
    height: Height
    view: View
    newest: Annotated[list[Natural], msgspec.Meta(min_length=len(RecordKind), max_length=len(RecordKind))]
    """How many records of each kind were made under this key, in order of the kinds, up to this one."""
    content: bytes


class _ViewContent(Record, frozen=True):
    view_change: ViewChange | None
    new_view: NewView | None


_entry_codec: RecordCodec[_Entry] = RecordCodec(_Entry, bytes_max=MESSAGE_BYTES_MAX + 1024)
_view_codec: RecordCodec[_ViewContent] = RecordCodec(_ViewContent, bytes_max=MESSAGE_BYTES_MAX)
_accepted_codec: RecordCodec[PrePrepare] = RecordCodec(PrePrepare, bytes_max=MESSAGE_BYTES_MAX)
_prepared_codec: RecordCodec[PreparedCertificate] = RecordCodec(PreparedCertificate, bytes_max=64 * 1024)
_body_codec: RecordCodec[BlockRecord] = RecordCodec(BlockRecord, bytes_max=MESSAGE_BYTES_MAX)


def incarnation(public_key: bytes) -> Hash:
    """Return the incarnation id bound to a vote key (33 bytes)."""
    return tagged_hash("incarnation", public_key)


class VoteLog:
    """Encodes the records of one incarnation."""

    def __init__(self, public_key: bytes) -> None:
        self._incarnation = incarnation(public_key)
        self._newest = [0] * len(RecordKind)

    def view(
        self, height: int, view: int, view_change: ViewChange | None, new_view: NewView | None
    ) -> tuple[bytes, bytes]:
        """Return the record for entering a view."""
        return self._entry(RecordKind.VIEW, height, view, _view_codec.encode(_ViewContent(view_change, new_view)))

    def accepted(self, message: PrePrepare) -> tuple[bytes, bytes]:
        """Return the record for an accepted proposal."""
        return self._entry(RecordKind.ACCEPTED, message.height, message.view, _accepted_codec.encode(message))

    def prepared(self, certificate: PreparedCertificate) -> tuple[bytes, bytes]:
        """Return the record for a prepared certificate."""
        content = _prepared_codec.encode(certificate)
        return self._entry(RecordKind.PREPARED, certificate.height, certificate.view, content)

    def prepared_body(self, view: int, block: Block) -> tuple[bytes, bytes]:
        """Return the record that keeps the body of a block prepared in ``view``."""
        return self._entry(RecordKind.PREPARED_BODY, block.height, view, _body_codec.encode(block.record()))

    def restore(self, records: Mapping[bytes, bytes], height: int) -> "RestoredVotes":
        """Return what was said at the height in progress. Records of older heights and other keys are void.

        Raises:
            StorageError: ``vote_log_corrupt``, or ``vote_log_ahead`` when storage lacks blocks that it builds on.
        """
        contents: dict[RecordKind, _Entry] = {}
        for kind in RecordKind:
            value = records.get(bytes([kind]))
            if value is None:
                continue
            entry = _decode(kind, value)
            if entry.incarnation == self._incarnation:
                contents[kind] = entry
        self._newest = _newest_of(contents)
        for kind, entry in list(contents.items()):
            if entry.height > height:
                raise StorageError("vote_log_ahead", f"a vote for height {entry.height}, storage expects {height}")
            if entry.height < height:
                del contents[kind]
        try:
            return _restored(contents)
        except PeerError as error:
            raise StorageError("vote_log_corrupt", error.message) from None

    def _entry(self, kind: RecordKind, height: int, view: int, content: bytes) -> tuple[bytes, bytes]:
        self._newest[kind - 1] += 1
        entry = _Entry(kind, self._incarnation, height, view, list(self._newest), content)
        return bytes([kind]), _entry_codec.encode(entry)


@dataclass(frozen=True, slots=True)
class RestoredVotes:
    """What a replica said at the height in progress before it stopped."""

    view: int
    view_change: ViewChange | None
    new_view: NewView | None
    accepted: PrePrepare | None
    prepared: PreparedCertificate | None
    prepared_block: Block | None


def _restored(entries: Mapping[RecordKind, _Entry]) -> RestoredVotes:
    accepted = prepared = prepared_block = None
    said = _ViewContent(None, None)
    if (entry := entries.get(RecordKind.VIEW)) is not None:
        said = _view_codec.decode_untrusted(entry.content)
    if (entry := entries.get(RecordKind.ACCEPTED)) is not None:
        accepted = _accepted_codec.decode_untrusted(entry.content)
    if (entry := entries.get(RecordKind.PREPARED)) is not None:
        prepared = _prepared_codec.decode_untrusted(entry.content)
        bodies = [accepted.block] if accepted is not None else []
        if (entry := entries.get(RecordKind.PREPARED_BODY)) is not None:
            bodies.append(_body_codec.decode_untrusted(entry.content))
        blocks = [Block.of(record.header, record.transactions) for record in bodies]
        prepared_block = next((block for block in blocks if block.hash == prepared.block_hash), None)
        if prepared_block is None:
            raise StorageError("vote_log_corrupt", "the body of the prepared block is missing")
    views = [entry.view for kind, entry in entries.items() if kind is not RecordKind.PREPARED_BODY]
    view = max(views, default=0)
    current = (said.view_change is not None and said.view_change.vote.view == view) or (
        said.new_view is not None and said.new_view.view == view
    )
    if not current:
        said = _ViewContent(None, None)
    return RestoredVotes(view, said.view_change, said.new_view, accepted, prepared, prepared_block)


def _newest_of(entries: Mapping[RecordKind, _Entry]) -> list[int]:
    """Return the number of the newest record of each kind; what one record knows of the others must be there."""
    newest = [max((entry.newest[kind - 1] for entry in entries.values()), default=0) for kind in RecordKind]
    for kind, number in zip(RecordKind, newest, strict=True):
        found = entries[kind].newest[kind - 1] if kind in entries else 0
        if found != number:
            raise StorageError("vote_log_corrupt", f"record {number} of {kind.name} is missing, {found} is there")
    return newest


def _decode(kind: RecordKind, value: bytes) -> _Entry:
    try:
        entry = _entry_codec.decode_untrusted(value)
    except PeerError as error:
        raise StorageError("vote_log_corrupt", error.message) from None
    if entry.kind != kind:
        raise StorageError("vote_log_corrupt", f"a record of kind {entry.kind} under the key of {kind.name}")
    return entry
