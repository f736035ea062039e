"""``service.toml`` of a watcher program, read once at start."""

from typing import Annotated, Literal

import msgspec

from services.local.files import ServiceFile, Urls
from services.messages.config import Place

WATCHER_SOCKET = "watcher.sock"
"""In the folder ``run``: where its owner brings iterations and asks how they stand."""


class WatcherFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A watcher's file: it settles or claims for service parties that are offline.

    Args:
        listen: where service parties bring their last iterations; ``token`` the file of what they show, "" for none
            on loopback alone.
        genesis, nodes, keys: the chain's document, RPC roots and the keystore.
        account: the key there that sends its claims; ``passphrase`` names the file that opens it.
        data: the iterations that it was given.
        hosts: names beside loopback's that callers may use in Host and Origin.
        look_ms: how often a stream is looked up on the chain, many streams more seldom.
    """

    program: Literal["stream-watcher"] = "stream-watcher"
    listen: Place
    token: str = ""
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str = ""
    account: str
    data: str = "data"
    hosts: list[str] = msgspec.field(default_factory=list)
    look_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 5_000
