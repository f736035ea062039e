"""A record on its way between platform and merchant where each has its key on a machine of its own.

An *offer* is a draft as a file: the platform's owner writes it, the merchant reads what it says, checks that the
commitment is to exactly that, and signs; what comes back holds the signature and nothing of the content.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from consensus.ledger.errors import LocalError, PeerError
from consensus.ledger.ids import HASH_BYTES
from consensus.ledger.keys import SIGNATURE_BYTES
from consensus.ledger.payees import SALT_BYTES, Server, commitment
from services.local.files import replace_file
from services.payee.identity import identity_of
from services.payee.interfaces import (
    PART_BYTES,
    Acquiring,
    Draft,
    DraftRecord,
    IdentityText,
    PutRecord,
    SplitAcquiring,
)
from services.payee.split import decode_plaintext, open_split

FILE_BYTES_MAX = 64 * 1024

T = TypeVar("T", bound=msgspec.Struct)


class _OfferFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    kind: Literal["payee-offer"]
    server: Server
    identity: IdentityText
    version: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    commitment: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    plaintext: bytes
    is_shareable: bool
    standing: Literal["", "ACTIVE", "REMOVED"]
    part: Annotated[bytes, msgspec.Meta(max_length=PART_BYTES)] = b""


class _SignedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    kind: Literal["payee-signed"]
    server: Server
    identity: IdentityText
    commitment: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    merchant_signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


def checked(draft: Draft, code_part: bytes | None = None) -> Acquiring:
    """Return what a draft says, if it is that what its commitment is to: whoever signs it signs what is shown.

    One with a split key is opened with the part in the merchant's code and the institution's, which the draft brings.

    Raises:
        LocalError: ``key_part_missing``.
        PeerError: ``bad_draft``, ``wrong_key_part``; nothing of its content is said.
    """
    try:
        said, is_that = decode_plaintext(draft.plaintext), commitment(draft.salt, draft.plaintext) == draft.commitment
    except (PeerError, LocalError):
        raise PeerError("bad_draft", "the draft holds no acquiring information") from None
    if not is_that or msgspec.json.encode(said) != draft.plaintext:
        raise PeerError("bad_draft", "the draft's commitment is not to what it shows")
    if isinstance(said, SplitAcquiring) is not bool(draft.part):
        raise PeerError("bad_draft", "the draft has a split key without the platform's part, or the part alone")
    if not isinstance(said, SplitAcquiring):
        return said
    if code_part is None:
        raise LocalError("key_part_missing", "the draft has a split key, and this merchant has no part of one")
    return open_split(
        said, code_part=code_part, part=draft.part, identity=identity_of(draft.identity), server=draft.server
    )


def check_asked(draft: Draft, said: Acquiring, asked: DraftRecord, server: str) -> None:
    """Check that a draft, which says this, is the one that was asked for; who signs it unseen signs no more than that.

    Raises:
        PeerError: ``bad_draft``.
    """
    wanted = (server, asked.identity, asked.acquiring, asked.is_shareable, bool(asked.code_part))
    if (draft.server, draft.identity, said, draft.is_shareable, bool(draft.part)) != wanted:
        raise PeerError("bad_draft", f"{server} has drafted something else than it was asked for")


def write_offer(path: Path, draft: Draft) -> None:
    """Write a draft to a file, mode 0600: it holds the acquiring information in the clear."""
    offer = _OfferFile("payee-offer", *(getattr(draft, name) for name in _OfferFile.__struct_fields__[1:]))
    _write(path, offer)


def read_offer(path: Path) -> Draft:
    """Read a draft that somebody offers; ``LocalError`` ``bad_file``."""
    offer = _read(path, _OfferFile)
    return Draft(*(getattr(offer, name) for name in Draft.__struct_fields__))


def write_signed(path: Path, draft: Draft, signature: bytes) -> None:
    """Write a merchant's signature of a draft."""
    _write(path, _SignedFile("payee-signed", draft.server, draft.identity, draft.commitment, signature))


def read_signed(path: Path, server: str) -> PutRecord:
    """Read a merchant's signature of a draft of this platform.

    Raises:
        LocalError: ``bad_file``.
    """
    found = _read(path, _SignedFile)
    if found.server != server:
        raise LocalError("bad_file", f"{path} is for {found.server}, not for {server}")
    return PutRecord(found.identity, found.commitment, found.merchant_signature)


def _write(path: Path, content: msgspec.Struct) -> None:
    try:
        replace_file(path, msgspec.json.encode(content) + b"\n")
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None


def _read(path: Path, kind: type[T]) -> T:
    try:
        with path.open("rb") as source:
            content = source.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None
    try:
        return msgspec.json.decode(content[:FILE_BYTES_MAX], type=kind)
    except msgspec.ValidationError as error:
        raise LocalError("bad_file", f"{path}: {error}") from None
    except msgspec.MsgspecError:
        raise LocalError("bad_file", f"{path} is no such file") from None
