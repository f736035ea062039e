"""Accounts as state holds them; the membership contract writes them, everyone else reads them here."""

from functools import lru_cache
from typing import Annotated

import msgspec

from consensus.ledger.codec import Value
from consensus.ledger.keys import PUBLIC_KEY_BYTES
from contracts.runtime.state import StateReader

ACTIVE = "active"
SUSPENDED = "suspended"

ACCOUNT_PREFIX = "account/"
"""Where account records stand inside the membership contract's namespace."""
NAME_PREFIX = "name/"
"""Where an account's name leads to its address, inside the membership contract's namespace."""
SHARED_RECORDS_MAX = 16_384
"""How many accounts stay decoded: each transaction asks for its sender three times."""


class AccountRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One account, stored as a map with camelCase keys.

    ``public_key`` (33 bytes, compressed P-256) is the key in force; the address is that of the first one.
    """

    name: str
    organisation: str
    public_key: Annotated[bytes, msgspec.Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
    roles: list[str]
    status: str

    @property
    def is_active(self) -> bool:
        """Whether the account may send transactions."""
        return self.status == ACTIVE

    def value(self) -> dict[str, Value]:
        """Return the map that the state holds."""
        roles: list[Value] = [*self.roles]
        return {
            "name": self.name,
            "organisation": self.organisation,
            "publicKey": self.public_key,
            "roles": roles,
            "status": self.status,
        }


_decoder = msgspec.msgpack.Decoder(AccountRecord)


def account_key(address: bytes) -> bytes:
    """Return the state key of an account's record."""
    return b"membership/account/" + address.hex().encode()


def load_account(state: StateReader, address: bytes) -> AccountRecord | None:
    """Return an account's record, shared with other callers and not to be changed.

    A record of any other shape counts as none, so that execution stays total.
    """
    data = state.get(account_key(address))
    return None if data is None else _decode_shared(data)


def decode_account(data: bytes) -> AccountRecord | None:
    """Return a fresh record of these state bytes, None if they hold none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError):
        return None


@lru_cache(maxsize=SHARED_RECORDS_MAX)
def _decode_shared(data: bytes) -> AccountRecord | None:
    return decode_account(data)
