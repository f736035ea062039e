"""A network folder: the homes of all its nodes, their keys, the genesis document, ready identities.

Layout::

    network.toml            chain id, hash of genesis.json, each node's name, p2p and RPC address
    genesis.json
    ca/ORGANISATION.crt     root certificates        ca/ORGANISATION.pem   their keys
    nodes/NAME/             node.toml genesis.json keys/{tls.pem,tls.crt,vote.pem} data/ log/ run/;
                            made at the first start: keys/{channel.pem,private.key} data/private/
    identities/NAME.pem     account keys, encrypted  identities/passphrase
    services/

A node that left keeps its home, and its entry with ``removed = true``; nobody starts it any more. Keys that a
node had before stand beside its present one as ``vote.aside-N.pem``.

Keys have mode 0600. A node's home holds all that the node needs, so it can be moved to a machine of its
own. Keys without passphrase and the passphrase beside the identities are for local networks only.

A folder is built in ``.partial`` beside its final place and moved in with ``network.toml`` last: a folder
with that file is complete, and one without it is either ours and unfinished, or somebody else's.
"""

import fcntl
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec

from consensus.ledger.errors import LocalError
from consensus.ledger.genesis import Activation, Genesis, decode_genesis_untrusted
from consensus.ledger.ids import ADDRESS_BYTES, Address
from consensus.ledger.keys import PrivateKey
from consensus.ledger.validators import NodeNameText
from node.config import CONFIG_FILE, Endpoint, config_text, load_config
from node.network.ca import Authority, to_pem, utc_now
from node.network.genesis import ADMIN, Plan, make_genesis
from node.network.keys import find_vote_key, replace_secret, restore_vote_key, write_secret
from node.vote_log import INCARNATION_FILE

NETWORK_FILE = "network.toml"
GENESIS_FILE = "genesis.json"
LOCAL_HOST = "127.0.0.1"
PORT_BASE = 26_600
"""p2p listens on this and the following ports, RPC on those ``RPC_PORT_STEP`` above."""
RPC_PORT_STEP = 100
PASSPHRASE_BYTES = 24

_ADDRESS_LINE = re.compile(rb"Address: 0x([0-9a-f]{%d})\n" % (2 * ADDRESS_BYTES))
_PARTIAL = ".partial"
_ENTRIES = (GENESIS_FILE, "ca", "nodes", "identities", "services", NETWORK_FILE)
"""What a network folder consists of, in the order in which it is moved in."""


class _NodeEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: NodeNameText
    organisation: NodeNameText
    p2p: str
    rpc: str
    removed: bool = False


class _NetworkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: NodeNameText
    chain_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    genesis_hash: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    nodes: Annotated[list[_NodeEntry], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class NodeHome:
    """One node of a local network: its home folder and where it listens."""

    name: str
    organisation: str
    folder: Path
    p2p: Endpoint
    rpc: Endpoint

    @property
    def rpc_url(self) -> str:
        """Root of the node's HTTP interface: ``/rpc``, ``/ws``, ``/metrics``, ``/healthz`` stand below it."""
        return f"http://{self.rpc.host}:{self.rpc.port}"

    @property
    def data(self) -> Path:
        """The folder of its database."""
        return self.folder / "data"

    @property
    def log_file(self) -> Path:
        """What the process prints."""
        return self.folder / "log" / "node.log"

    @property
    def run(self) -> Path:
        """The folder of its pid file and local socket."""
        return self.folder / "run"


@dataclass(frozen=True, slots=True)
class Identity:
    """An account whose key lies in the network folder."""

    name: str
    organisation: str
    roles: tuple[str, ...]
    address: Address
    path: Path


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """A complete network folder. ``nodes`` are those that belong, ``removed`` those that have left."""

    folder: Path
    genesis: Genesis
    nodes: tuple[NodeHome, ...]
    removed: tuple[NodeHome, ...]
    identities: tuple[Identity, ...]

    @property
    def genesis_path(self) -> Path:
        """The genesis document."""
        return self.folder / GENESIS_FILE

    @property
    def keystore(self) -> Path:
        """The folder of the identities' key files."""
        return self.folder / "identities"

    @property
    def passphrase_file(self) -> Path:
        """The file with the passphrase of all identities."""
        return self.keystore / "passphrase"

    @property
    def rpc_urls(self) -> tuple[str, ...]:
        """The nodes' HTTP interfaces, in order."""
        return tuple(node.rpc_url for node in self.nodes)

    def node(self, name: str) -> NodeHome:
        """Return a node by its name.

        Raises:
            LocalError: ``unknown_node``.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise LocalError("unknown_node", f"{name} is none of this network's nodes: {known}")

    def identity(self, name: str) -> Identity:
        """Return an identity by its name.

        Raises:
            LocalError: ``unknown_identity``.
        """
        for identity in self.identities:
            if identity.name == name:
                return identity
        known = ", ".join(identity.name for identity in self.identities)
        raise LocalError("unknown_identity", f"{name} is none of this network's identities: {known}")

    def key(self, name: str) -> PrivateKey:
        """Return an identity's private key.

        Raises:
            LocalError: ``unknown_identity``, ``wrong_passphrase`` or ``bad_key``.
        """
        passphrase = self.passphrase_file.read_bytes().strip()
        return PrivateKey.from_pem(self.identity(name).path.read_bytes(), passphrase)


def is_network(folder: Path) -> bool:
    """Tell whether the folder is a complete network folder."""
    return (folder / NETWORK_FILE).is_file()


def init_network(
    folder: Path, plan: Plan, activations: Sequence[Activation], *, port_base: int = PORT_BASE
) -> LocalNetwork:
    """Make a network folder, or return the one that is there when it was made with the same plan and ports.

    Args:
        folder: is made, with its parents, when missing.
        plan: who takes part.
        activations: the contracts that are active from the first block on.
        port_base: see :data:`PORT_BASE`.

    Raises:
        LocalError: ``network_exists`` when another network is there, ``folder_not_empty`` when something
            else is, ``bad_port``, or what :func:`load_network` raises.
    """
    _check_ports(port_base, len(plan.validators))
    if is_network(folder):
        return _same_network(folder, plan, port_base)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError("bad_folder", f"{folder}: {error.strerror}") from None
    partial = folder / _PARTIAL
    found = {entry.name for entry in folder.iterdir()}
    if found and not (_PARTIAL in found and found <= {_PARTIAL, *_ENTRIES}):
        raise LocalError("folder_not_empty", f"{folder} holds something else, for example {min(found)}")
    for name in found:
        _remove(folder / name)
    partial.mkdir()
    _build(partial, plan, activations, port_base)
    for name in _ENTRIES[:-1]:
        (partial / name).rename(folder / name)
    (partial / NETWORK_FILE).rename(folder / NETWORK_FILE)
    partial.rmdir()
    return load_network(folder)


def load_network(folder: Path) -> LocalNetwork:
    """Read a network folder.

    Raises:
        LocalError: ``no_network`` when there is none, ``bad_network`` or ``bad_genesis`` when it is damaged.
    """
    folder = folder.resolve()
    path = folder / NETWORK_FILE
    file, document = _read_network(folder)
    if sha256(document).hexdigest() != file.genesis_hash:
        raise LocalError("bad_network", f"{folder / GENESIS_FILE} is not the document of {path.name}")
    genesis = decode_genesis_untrusted(document)
    if genesis.chain_id().hex() != file.chain_id:
        raise LocalError("bad_network", f"{path}: chain_id does not fit {GENESIS_FILE}")
    return LocalNetwork(
        folder=folder,
        genesis=genesis,
        nodes=tuple(_node_home(folder, entry) for entry in file.nodes if not entry.removed),
        removed=tuple(_node_home(folder, entry) for entry in file.nodes if entry.removed),
        identities=tuple(_identities(folder, genesis)),
    )


def add_organisation(network: LocalNetwork, organisation: str) -> Authority:
    """Return an organisation's root, made when it is not here yet, with the key of its admin of the same name.

    Raises:
        LocalError: as :func:`find_or_make_root`.
    """
    identity = network.keystore / f"{organisation}.pem"
    if not identity.exists():
        passphrase = network.passphrase_file.read_bytes().strip()
        replace_secret(identity, _identity_text(PrivateKey.generate(), passphrase))
    return find_or_make_root(network.folder / "ca", organisation)


def find_or_make_root(folder: Path, organisation: str) -> Authority:
    """Return an organisation's root out of a folder of roots, made when it is not there yet.

    Raises:
        LocalError: ``bad_certificate_file`` or ``bad_key`` when its files are damaged.
    """
    root, key = _root_paths(folder, organisation)
    if not key.exists():
        authority = Authority.create(organisation, now=utc_now())
        root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_secret(root, to_pem(authority.certificate))
        replace_secret(key, authority.key.to_pem(None))
    return load_root(folder, organisation)


def load_authority(network: LocalNetwork, organisation: str) -> Authority:
    """Return the root of an organisation whose keys are here; errors as :func:`load_root`."""
    return load_root(network.folder / "ca", organisation)


def load_root(folder: Path, organisation: str) -> Authority:
    """Return an organisation's root out of a folder of roots.

    Raises:
        LocalError: ``unknown_organisation`` when it is not there, ``bad_certificate_file``, ``bad_key``.
    """
    root, key = _root_paths(folder, organisation)
    if not (root.is_file() and key.is_file()):
        raise LocalError("unknown_organisation", f"{folder} holds no root of {organisation}")
    return Authority.load(root.read_bytes(), key.read_bytes())


def _root_paths(folder: Path, organisation: str) -> tuple[Path, Path]:
    return folder / f"{organisation}.crt", folder / f"{organisation}.pem"


def add_home(network: LocalNetwork, name: str, authority: Authority, index: int) -> LocalNetwork:
    """Make the home of a further node, which listens on the ports with this index, and enter it in the network file.

    Returns the network with it. Its peers are the nodes that are there now.
    """
    base = port_base(network)
    p2p, rpc = Endpoint(LOCAL_HOST, base + index), Endpoint(LOCAL_HOST, base + RPC_PORT_STEP + index)
    home = network.folder / "nodes" / name
    if not home.exists():
        peers = {node.name: node.p2p for node in network.nodes}
        make_home(home, name, authority, p2p=p2p, rpc=rpc, peers=peers, document=network.genesis_path.read_bytes())
    config = load_config(home)
    p2p, rpc = config.p2p, config.rpc
    entry = _NodeEntry(name, authority.organisation, f"{p2p.host}:{p2p.port}", f"{rpc.host}:{rpc.port}")
    with _network_file(network.folder) as file:
        file.nodes[:] = [*(item for item in file.nodes if item.name != name), entry]
    return load_network(network.folder)


def make_home(
    home: Path,
    name: str,
    authority: Authority,
    *,
    p2p: Endpoint,
    rpc: Endpoint,
    peers: dict[str, Endpoint],
    document: bytes,
) -> None:
    """Make the home of a node with new keys, in one step.

    Args:
        home: is made; must not be there.
        name: of the node.
        authority: the root of its organisation.
        p2p: where it listens for nodes.
        rpc: where it listens for programs.
        peers: nodes that it dials, beside those whose addresses the chain knows.
        document: the genesis file's content.

    Raises:
        LocalError: ``folder_not_empty``.
    """
    if home.exists():
        raise LocalError("folder_not_empty", f"{home} is there already and is left as it is")
    partial = home.with_name(f"{_PARTIAL}-{home.name}")
    _remove(partial)
    _fill_home(partial, name, authority, PrivateKey.generate(), p2p=p2p, rpc=rpc, peers=peers, document=document)
    partial.rename(home)


def mark_removed(network: LocalNetwork, name: str, *, is_removed: bool) -> LocalNetwork:
    """Note that a node has left, or that it belongs again; its home stays as it is. Returns the network as it is now.

    Raises:
        LocalError: ``unknown_node``.
    """
    with _network_file(network.folder) as file:
        if name not in [entry.name for entry in file.nodes]:
            raise LocalError("unknown_node", f"{name} is none of this network's nodes")
        file.nodes[:] = [
            msgspec.structs.replace(entry, removed=is_removed) if entry.name == name else entry for entry in file.nodes
        ]
    return load_network(network.folder)


def port_base(network: LocalNetwork) -> int:
    """Return the p2p port of the node with index 0."""
    return min(node.p2p.port for node in (*network.nodes, *network.removed))


@contextmanager
def _network_file(folder: Path) -> Iterator[_NetworkFile]:
    """Give the network file for a change, and replace it in one step; one program at a time."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file, _ = _read_network(folder)
        yield file
        temporary = folder / f".{NETWORK_FILE}.new"
        temporary.write_text(_network_text(file))
        temporary.replace(folder / NETWORK_FILE)
    finally:
        os.close(lock)


def _read_network(folder: Path) -> tuple[_NetworkFile, bytes]:
    path = folder / NETWORK_FILE
    try:
        file = msgspec.convert(tomllib.loads(path.read_text()), _NetworkFile)
        document = (folder / GENESIS_FILE).read_bytes()
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise LocalError("no_network", f"{folder} is no network folder ({missing} is missing)") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise LocalError("bad_network", f"{path}: {error}") from None
    return file, document


def wipe_data(network: LocalNetwork) -> None:
    """Remove what the nodes have stored, and leave keys, genesis and logs: the chain begins again at block 0.

    All nodes lose everything at once, so no vote is left that a later one could contradict, and the keys
    may begin a new vote log. For a single node on a living chain this would be wrong: it has to rejoin
    under a new key. The genesis document counts again: its validators belong and vote with their first keys.

    Raises:
        LocalError: ``genesis_key_lost`` before anything is wiped: nobody could vote with that key at block 1.
    """
    first_keys = {node.name: bytes.fromhex(node.vote_key) for node in network.genesis.validators}
    nodes = (*network.nodes, *network.removed)
    for node in nodes:
        if node.name in first_keys and find_vote_key(node.folder / "keys", first_keys[node.name]) is None:
            message = f"the vote key that genesis names for {node.name} is not in {node.folder / 'keys'}, nor set aside"
            way = "without it the chain cannot begin again: hansa network init DIR makes a network anew"
            raise LocalError("genesis_key_lost", f"{message}; {way}")
    for node in nodes:
        _empty(node.data)
    # Not before all data are gone: where this breaks off, a wiped node must not vote beside one that is not.
    for node in nodes:
        if node.name in first_keys:
            restore_vote_key(node.folder / "keys", first_keys[node.name])
            mark_removed(network, node.name, is_removed=False)
        _remove(node.folder / "keys" / INCARNATION_FILE)
    for data in sorted((network.folder / "services").glob("*/data")):
        _remove(data)


def _check_ports(port_base: int, count: int) -> None:
    if count > RPC_PORT_STEP:
        raise LocalError("bad_port", f"at most {RPC_PORT_STEP} nodes fit between p2p and RPC ports")
    if not 1_024 <= port_base <= 65_535 - RPC_PORT_STEP - count:
        raise LocalError("bad_port", f"port base {port_base} leaves no room for {count} nodes below 65536")


def _same_network(folder: Path, plan: Plan, port_base: int) -> LocalNetwork:
    network = load_network(folder)
    wanted = {member.name: port_base + index for index, member in enumerate(plan.validators)}
    first = {validator.name for validator in network.genesis.validators}
    found = {node.name: node.p2p.port for node in (*network.nodes, *network.removed) if node.name in first}
    if wanted != found:
        raise LocalError(
            "network_exists",
            f"{folder} holds another network: {len(found)} nodes, p2p from port {min(found.values())} on",
        )
    return network


def _build(folder: Path, plan: Plan, activations: Sequence[Activation], port_base: int) -> None:
    now = utc_now()
    authorities = {member.name: Authority.create(member.name, now=now) for member in plan.organisations}
    vote_keys = {member.name: PrivateKey.generate() for member in plan.validators}
    account_keys = {account.name: PrivateKey.generate() for account in plan.accounts}
    genesis = make_genesis(
        plan,
        time_ms=int(now.timestamp() * 1000),
        roots={name: to_pem(authority.certificate) for name, authority in authorities.items()},
        vote_keys={name: key.public for name, key in vote_keys.items()},
        account_keys={name: key.public for name, key in account_keys.items()},
        activations=activations,
    )
    document = genesis.to_json()
    (folder / GENESIS_FILE).write_bytes(document)
    for name, authority in authorities.items():
        _write(folder / "ca" / f"{name}.crt", to_pem(authority.certificate))
        write_secret(folder / "ca" / f"{name}.pem", authority.key.to_pem(None))
    endpoints = {
        member.name: (Endpoint(LOCAL_HOST, port_base + index), Endpoint(LOCAL_HOST, port_base + RPC_PORT_STEP + index))
        for index, member in enumerate(plan.validators)
    }
    for name in endpoints:
        _build_home(folder / "nodes" / name, name, authorities[name], vote_keys[name], endpoints, document)
    _build_identities(folder / "identities", account_keys)
    (folder / "services").mkdir()
    organisations = {validator.name: validator.organisation for validator in genesis.validators}
    entries = [
        _NodeEntry(name, organisations[name], f"{p2p.host}:{p2p.port}", f"{rpc.host}:{rpc.port}")
        for name, (p2p, rpc) in endpoints.items()
    ]
    file = _NetworkFile(genesis.name, genesis.chain_id().hex(), sha256(document).hexdigest(), entries)
    (folder / NETWORK_FILE).write_text(_network_text(file))


def _build_home(
    home: Path,
    name: str,
    authority: Authority,
    vote_key: PrivateKey,
    endpoints: dict[str, tuple[Endpoint, Endpoint]],
    document: bytes,
) -> None:
    p2p, rpc = endpoints[name]
    peers = {peer: endpoint for peer, (endpoint, _) in endpoints.items() if peer != name}
    _fill_home(home, name, authority, vote_key, p2p=p2p, rpc=rpc, peers=peers, document=document)


def _fill_home(
    home: Path,
    name: str,
    authority: Authority,
    vote_key: PrivateKey,
    *,
    p2p: Endpoint,
    rpc: Endpoint,
    peers: dict[str, Endpoint],
    document: bytes,
) -> None:
    for part in ("keys", "data", "log", "run"):
        (home / part).mkdir(mode=0o700, parents=True)
    text = config_text(name=name, organisation=authority.organisation, p2p=p2p, rpc=rpc, peers=peers)
    (home / CONFIG_FILE).write_text(text)
    (home / GENESIS_FILE).write_bytes(document)
    tls_key = PrivateKey.generate()
    certificate = authority.issue(name, tls_key.exchange.public_key(), now=utc_now())
    _write(home / "keys" / "tls.crt", to_pem(certificate))
    write_secret(home / "keys" / "tls.pem", tls_key.to_pem(None))
    write_secret(home / "keys" / "vote.pem", vote_key.to_pem(None))


def _build_identities(folder: Path, keys: dict[str, PrivateKey]) -> None:
    folder.mkdir(mode=0o700)
    passphrase = secrets.token_urlsafe(PASSPHRASE_BYTES).encode()
    write_secret(folder / "passphrase", passphrase + b"\n")
    for name, key in keys.items():
        write_secret(folder / f"{name}.pem", _identity_text(key, passphrase))


def _identity_text(key: PrivateKey, passphrase: bytes) -> bytes:
    # Lines above a PEM block are allowed (RFC 7468); with them keys are listed without the passphrase.
    header = f"Address: 0x{key.public.address.hex()}\nPublic-Key: 0x{key.public.compressed.hex()}\n\n"
    return header.encode() + key.to_pem(passphrase)


def _network_text(file: _NetworkFile) -> str:
    lines = [f'name = "{file.name}"', f'chain_id = "{file.chain_id}"', f'genesis_hash = "{file.genesis_hash}"']
    for node in file.nodes:
        lines += ["", "[[nodes]]", f'name = "{node.name}"', f'organisation = "{node.organisation}"']
        lines += [f'p2p = "{node.p2p}"', f'rpc = "{node.rpc}"', *(["removed = true"] if node.removed else [])]
    return "\n".join(lines) + "\n"


def _node_home(folder: Path, entry: _NodeEntry) -> NodeHome:
    return NodeHome(
        name=entry.name,
        organisation=entry.organisation,
        folder=folder / "nodes" / entry.name,
        p2p=_endpoint(entry.p2p),
        rpc=_endpoint(entry.rpc),
    )


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise LocalError("bad_network", f"{NETWORK_FILE}: {text!r} is not HOST:PORT")
    return Endpoint(host, int(port))


def _identities(folder: Path, genesis: Genesis) -> list[Identity]:
    """Return the accounts of genesis whose keys are here, and the admins of organisations that joined later."""
    accounts = {account.name: account for account in genesis.accounts}
    found: list[Identity] = []
    for path in sorted((folder / "identities").glob("*.pem")):
        account = accounts.get(path.stem)
        if account is not None:
            found.append(Identity(path.stem, account.organisation, tuple(account.roles), account.address, path))
        elif (folder / "ca" / f"{path.stem}.crt").is_file() and (address := _address_in(path)) is not None:
            found.append(Identity(path.stem, path.stem, (ADMIN,), address, path))
    return found


def _address_in(path: Path) -> Address | None:
    match = _ADDRESS_LINE.match(path.read_bytes())
    return None if match is None else Address(bytes.fromhex(match[1].decode()))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)


def _empty(folder: Path) -> None:
    """Remove what a folder holds and not itself: it may be a mount point."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for entry in folder.iterdir():
        _remove(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
