"""Making the home of a node of a local network anew, where files are lost that no node runs without.

Its organisation's root and the network file are still there, so the node gets new keys and its old ports; the chain
learns the new vote key as it does of every node that rejoins (:mod:`node.network.rejoin`).
"""

import shutil
from pathlib import Path

from consensus.ledger.errors import LocalError
from node.config import CONFIG_FILE, PRIVATE_FOLDER
from node.network import homes, local
from node.network.homes import GENESIS_FILE, LocalNetwork
from node.network.keys import (
    ASIDE_MAX,
    CERTIFICATE_FILE,
    CHANNEL_KEY_FILE,
    PRIVATE_KEY_FILE,
    TLS_KEY_FILE,
    VOTE_KEY_FILE,
)
from node.network.members import Tell

_NEEDED = (
    CONFIG_FILE,
    GENESIS_FILE,
    f"keys/{VOTE_KEY_FILE}",
    f"keys/{TLS_KEY_FILE}",
    f"keys/{CERTIFICATE_FILE}",
)


async def restore_home(network: LocalNetwork, name: str, tell: Tell) -> None:
    """Make a node's home anew with new keys if a file that it needs is lost; what is left goes to ``NAME.aside-N``.

    Raises:
        LocalError: ``unknown_node``; ``unknown_organisation`` when its root is not here; ``file_error``.
    """
    home = network.node(name)
    lost = [item for item in _NEEDED if not (home.folder / item).is_file()]
    if not lost:
        return
    authority = homes.load_authority(network, home.organisation)
    await local.stop(network, [name])
    aside = _set_aside(home)
    tell(f"{name}: {lost[0]} is lost; its home is made anew, with new keys")
    homes.make_home(
        home.folder,
        name,
        authority,
        p2p=home.p2p,
        rpc=home.rpc,
        peers={other.name: other.p2p for other in network.nodes if other.name != name},
        document=network.genesis_path.read_bytes(),
    )
    if aside is not None:
        _keep_old_keys(aside / "keys", home.folder / "keys")
        _keep_private(aside, home.folder)


def _set_aside(home: homes.NodeHome) -> Path | None:
    """Rename what is left of a home, None when nothing is."""
    if not home.folder.exists():
        return None
    aside = _free(home.folder, "")
    home.folder.rename(aside)
    return aside


def _keep_old_keys(old: Path, keys: Path) -> None:
    """Copy old vote keys and certificates beside the new: a reset looks there for the first, a revocation for these."""
    for kind, suffix in (("vote", ".pem"), ("tls", ".crt")):
        for path in (*sorted(old.glob(f"{kind}.aside-*{suffix}")), old / f"{kind}{suffix}"):
            if path.is_file():
                shutil.copy2(path, _free(keys / kind, suffix))


def _keep_private(old: Path, home: Path) -> None:
    """Take the private database and its keys over: partners know this node by the one, and nothing else opens it."""
    for name in (CHANNEL_KEY_FILE, PRIVATE_KEY_FILE):
        if (old / "keys" / name).is_file():
            shutil.copy2(old / "keys" / name, home / "keys" / name)
    if (old / "data" / PRIVATE_FOLDER).exists():
        (old / "data" / PRIVATE_FOLDER).rename(home / "data" / PRIVATE_FOLDER)


def _free(path: Path, suffix: str) -> Path:
    for number in range(1, ASIDE_MAX + 1):
        aside = path.with_name(f"{path.name}.aside-{number}{suffix}")
        if not aside.exists():
            return aside
    raise LocalError("file_error", f"{path.parent}: {ASIDE_MAX} older ones of {path.name} stand there")
