"""``hansa member``: organisations and nodes that join, change their keys and leave, while the network runs."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli import views
from cli.options import Number, json_option, keys_option, network_option, signer_options
from cli.output import Output, panel, table
from cli.place import Place
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from cli.membership import ClientChain
    from node.config import Endpoint, NodeConfig
    from node.network.homes import LocalNetwork

T = TypeVar("T")
Json = dict[str, Any]

TIMEOUT_S = 60

_name = click.argument("name", metavar="NAME")
_network = click.option(
    "--network",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Network folder; else HANSA_NETWORK, else ./net.",
)
_home = click.option(
    "--home",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Home folder of the node.",
)
_timeout = click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Number(1, 86_400),
    default=TIMEOUT_S,
    show_default=True,
    help="Time to catch up, and again to vote.",
)


@click.group()
def member() -> None:
    """Organisations and nodes that join, change their keys and leave, while the network runs.

    On a local network, add, remove, replace-key and revoke-certificate do all of it; run again after an
    interruption, they go on where they were.

    Between machines, in this order: prepare (a new organisation also needs an admin: hansa key new), request, approve
    by each of the others until it is done, hansa node run, seat.
    """


@member.command("add")
@_name
@click.option("--organisation", metavar="ORG", help="Whose node it is; made when unknown. Else it is called NAME too.")
@_network
@_timeout
@json_option
def add(name: str, organisation: str | None, folder: Path | None, timeout_s: int, output: Output) -> None:
    """Make a node, let it catch up, and seat it: keys, home, approvals, start, seat, until it votes.

    Example: hansa member add bank-e --network net
    """
    from node.network import joining

    def work(chain: "ClientChain", network: "LocalNetwork") -> Awaitable["LocalNetwork"]:
        return joining.add(
            chain,
            network,
            name,
            organisation=organisation or name,
            tell=output.progress,
            timeout_ms=timeout_s * 1000,
        )

    network = _on_network(folder, name, work, output)
    home = network.node(name)
    data = {"node": name, "organisation": home.organisation, "url": home.rpc_url, "home": str(home.folder)}
    output.show(data, lambda console: panel(console, f"{name} votes", data))


@member.command("remove")
@_name
@_network
@json_option
def remove(name: str, folder: Path | None, output: Output) -> None:
    """Let a node leave: approvals, out of the validator set, its process ended; its home stays.

    Example: hansa member remove bank-e
    """
    from node.network import joining

    network = _on_network(
        folder, name, lambda chain, made: joining.remove(chain, made, name, tell=output.progress), output
    )
    homes = {item.name: str(item.folder) for item in network.removed if item.folder.exists()}
    data = {"node": name, "home": homes.get(name)}
    fields = {key: value for key, value in data.items() if value is not None}
    output.show(data, lambda console: panel(console, f"{name} has left", fields))


@member.command("replace-key")
@_name
@_network
@_timeout
@json_option
def replace_key(name: str, folder: Path | None, timeout_s: int, output: Output) -> None:
    """Give a node that runs a new vote key; the old one is set aside and can never vote again.

    A node whose data were lost or restored rejoins instead: hansa node rejoin.

    Example: hansa member replace-key bank-a
    """
    from node.network import joining
    from node.network.keys import load_vote_key

    def work(chain: "ClientChain", network: "LocalNetwork") -> Awaitable[None]:
        return joining.replace_key(chain, network, name, tell=output.progress, timeout_ms=timeout_s * 1000)

    _on_network(folder, name, work, output)
    home = Place(folder, (), None).network.node(name)
    data = {"node": name, "voteKey": "0x" + load_vote_key(home.folder / "keys").public.compressed.hex()}
    output.show(data, lambda console: views.fields(console, f"{name} votes with its new key", data))


@member.command("revoke-certificate")
@_name
@_network
@_timeout
@json_option
def revoke_certificate(name: str, folder: Path | None, timeout_s: int, output: Output) -> None:
    """Give a node a new TLS key and certificate and revoke those before: no session with the old ones lives on.

    Example: hansa member revoke-certificate bank-a
    """
    from node.network import joining

    def work(chain: "ClientChain", network: "LocalNetwork") -> Awaitable[list[bytes]]:
        return joining.revoke_certificate(chain, network, name, tell=output.progress, timeout_ms=timeout_s * 1000)

    data = {"node": name, "revoked": ["0x" + item.hex() for item in _on_network(folder, name, work, output)]}
    output.show(data, lambda console: panel(console, f"{name} has a new certificate", data))


@member.command("list")
@network_option
@json_option
def list_members(place: Place, output: Output) -> None:
    """List organisations, nodes and open proposals as the chain has them.

    Example: hansa member list --json
    """
    from cli.membership import open_chain

    async def read() -> Json:
        async with open_chain(place.genesis, place.urls, lambda name: place.signer(name, None, None)) as chain:
            status = await chain.status()
            return {
                "height": status.height,
                "organisations": [_plain(item) for item in await _pages(chain, "organisations", "organisation")],
                "nodes": [
                    {**_plain(item), "lastVote": status.votes.get(item["node"])}
                    for item in await _pages(chain, "nodes", "node")
                ],
                "proposals": [_plain(item) for item in await _pages(chain, "proposals", "proposal")],
            }

    data = _run(place, read)
    output.show(data, lambda console: _draw_list(console, data))


@member.command("prepare")
@_name
@_home
@click.option("--organisation", metavar="ORG", help="Whose node it is; else it is called NAME too.")
@click.option(
    "--genesis", metavar="FILE", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Genesis file."
)
@click.option(
    "--ca",
    metavar="DIR",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the organisation's root, made when it is not there; keep its key off the server.",
)
@click.option("--listen", metavar="HOST:PORT", required=True, help="Where the node listens for other nodes.")
@click.option("--rpc", metavar="HOST:PORT", default="127.0.0.1:26700", show_default=True, help="Where its RPC listens.")
@click.option("--peer", "peers", metavar="NAME=HOST:PORT", multiple=True, help="A node to dial; may be repeated.")
@json_option
def prepare(
    name: str,
    home: Path,
    organisation: str | None,
    genesis: Path,
    ca: Path,
    listen: str,
    rpc: str,
    peers: tuple[str, ...],
    output: Output,
) -> None:
    """Make the home of a node that is to join from a machine of its own: keys, certificate, node.toml.

    Example: hansa member prepare bank-e --home /var/lib/hansa --genesis genesis.json --ca ca --listen 10.0.0.7:26600
    """
    from cli.place import read_genesis
    from node.network.homes import find_or_make_root, make_home
    from node.network.joining import check_name

    owner = organisation or name
    check_name(name)
    check_name(owner)
    read_genesis(genesis)
    make_home(
        home,
        name,
        find_or_make_root(ca, owner),
        p2p=_endpoint("--listen", listen),
        rpc=_endpoint("--rpc", rpc),
        peers={peer: _endpoint("--peer", place) for peer, _, place in (item.partition("=") for item in peers)},
        document=_read(genesis),
    )
    data = {"node": name, "organisation": owner, "home": str(home), "root": str(ca / f"{owner}.crt")}
    command = f"hansa member request --home {home}"
    fields = {
        **data,
        "next": f"{command} > request.json",
        "new organisation": f"{command} --root {data['root']} --admin ADMIN --keys DIR > request.json",
    }
    output.show(data, lambda console: panel(console, f"{name} may ask to join", fields))


@member.command("request")
@_home
@click.option("--replace-key", "replaces", is_flag=True, help="Make the key that the node is to vote with next.")
@click.option(
    "--root", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="A new organisation's root."
)
@click.option("--admin", metavar="NAME", help="A new organisation's admin, whose key --keys holds.")
@keys_option
@click.option("--role", "roles", metavar="ROLE", multiple=True, help="A role of a new organisation; may be repeated.")
@click.option("--address", metavar="HOST:PORT", help="Where others reach the node; else what node.toml says.")
@json_option
def request(
    home: Path,
    replaces: bool,
    root: Path | None,
    admin: str | None,
    keys: Path | None,
    roles: tuple[str, ...],
    address: str | None,
    output: Output,
) -> None:
    """Print as JSON what the other members are asked to approve of for the node in DIR.

    For a node of a known organisation --home is enough; a new organisation adds --root, --admin and --keys. With
    --replace-key nobody else is asked: the key is made, and "hansa member seat" makes the chain name it.

    Example: hansa member request --home /var/lib/hansa > request.json
    """
    import msgspec

    from consensus.ledger.genesis import decode_genesis_untrusted
    from node.config import load_config
    from node.network.keys import load_vote_key, next_vote_key
    from node.network.members import JoinRequest

    config = load_config(home)
    key = next_vote_key(config.keys) if replaces else load_vote_key(config.keys)
    if (root is None) != (admin is None):
        raise click.UsageError("--root and --admin belong together")
    made = JoinRequest(
        chain_id=decode_genesis_untrusted(_read(config.genesis)).chain_id().hex(),
        node=config.name,
        organisation=config.organisation,
        vote_key=key.public.compressed.hex(),
        address=address if address is not None else f"{config.p2p.host}:{config.p2p.port}",
        roles=list(roles) or ["member"],
        root_certificate=_read(root).decode() if root else "",
        admin_key=_public_key(admin, keys).hex() if admin else "",
    )
    text = msgspec.json.format(msgspec.json.encode(made), indent=2).decode()
    output.show({"request": msgspec.to_builtins(made)}, lambda console: console.out(text, highlight=False))


@member.command("approve")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@network_option
@signer_options
@json_option
def approve(
    file: Path, place: Place, name: str, keys: Path | None, passphrase_file: Path | None, output: Output
) -> None:
    """Approve in the name of your organisation of what a request asks for.

    A new organisation comes first; once enough have approved of it, the same command approves of its node.

    Example: hansa member approve request.json --as bank-a
    """
    from cli.membership import open_chain
    from node.network.members import approve_request, decode_request

    wanted = decode_request(_read(file), place.genesis.chain_id())
    signer = place.signer(name, keys, passphrase_file)

    async def work() -> Json:
        async with open_chain(place.genesis, place.urls, lambda _: signer, tell=output.progress) as chain:
            given = await approve_request(chain, wanted, name, tell=output.progress)
            rows = [
                {"method": item.method, "approvals": item.approvals, "needed": item.needed, "done": item.done}
                for item in given
            ]
            return {"node": wanted.node, "organisation": wanted.organisation, "approvals": rows}

    data = _run(place, work)
    is_done = not data["approvals"] or (
        data["approvals"][-1]["done"] and data["approvals"][-1]["method"] == "admit_node"
    )
    data["admitted"] = is_done
    rows = [(item["method"], item["approvals"], item["needed"], item["done"]) for item in data["approvals"]]

    def draw(console: "Console") -> None:
        title = f"{wanted.node} is admitted" if is_done else f"{wanted.node} needs more approvals"
        panel(console, title, {"organisation": wanted.organisation})
        if rows:
            table(console, ["method", ">approvals", ">needed", "done"], rows)

    output.show(data, draw)


@member.command("seat")
@_home
@network_option
@signer_options
@_timeout
@json_option
def seat(
    home: Path,
    place: Place,
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    timeout_s: int,
    output: Output,
) -> None:
    """Let the running node in DIR vote: caught up, proof by its key, seat_node or replace_key by your admin.

    --node names the RPC of another member's node, which is asked for the chain. After a new key was requested,
    the node must be started again when this command says so.

    Example: hansa member seat --home /var/lib/hansa --as bank-e --keys keys --node http://10.0.0.7:26700
    """
    from cli.membership import open_chain
    from node.config import load_config

    config = load_config(home)
    if place.genesis_path is None and not (place.given or os.environ.get("HANSA_NETWORK")):
        place = Place(place.given, place.nodes, config.genesis)
    signer = place.signer(name, keys, passphrase_file)
    urls = [url for url in place.urls if url != f"http://{config.rpc.host}:{config.rpc.port}"] or place.urls

    async def work() -> None:
        async with open_chain(place.genesis, urls, lambda _: signer, tell=output.progress) as chain:
            await _seat(chain, config, name, output, timeout_s * 1000)

    _run(place, work)
    data = {"node": config.name, "organisation": config.organisation}
    output.show(data, lambda console: panel(console, f"{config.name} votes", data))


async def _seat(chain: "ClientChain", config: "NodeConfig", admin: str, output: Output, timeout_ms: int) -> None:
    from node.network import keys, members

    if not (config.keys / keys.NEXT_VOTE_KEY_FILE).exists():
        await members.take_seat(chain, config, admin=admin, tell=output.progress, timeout_ms=timeout_ms)
        return
    await members.change_key(chain, config, admin=admin, tell=output.progress, timeout_ms=timeout_ms)
    # A process reads its key at its start alone, and the chain has no use for the old one any more.
    if not keys.is_key_adopted(config.keys):
        keys.adopt_next_key(config.keys)
        output.progress(f"{config.name}: start the node again now: its new key is in place")
    await members.wait_votes(chain, config, tell=output.progress, timeout_ms=timeout_ms)
    keys.drop_next_key(config.keys)


def _on_network(
    folder: Path | None, name: str, work: "Callable[[ClientChain, LocalNetwork], Awaitable[T]]", output: Output
) -> T:
    """Run an operation on a local network; the chain is asked of the nodes other than the one it is about."""
    from cli.membership import open_local_chain

    place = Place(folder, (), None)

    async def run() -> T:
        async with open_local_chain(place.network, without=name, tell=output.progress) as chain:
            return await work(chain, place.network)

    return _run(place, run)


def _run(place: Place, work: Callable[[], Awaitable[T]]) -> T:
    import trio

    with place.explaining():
        return trio.run(work)


async def _pages(chain: "ClientChain", method: str, key: str) -> list[Json]:
    """Return all entries of a query that answers in pages."""
    found: list[Json] = []
    start = ""
    while True:
        page: list[Json] = await chain.query(method, {"start": start})
        found += [item for item in page if not found or item[key] != found[-1][key]]
        if len(page) < 100:
            return found
        last = page[-1][key]
        start = last.hex() if isinstance(last, bytes) else last


def _plain(value: Any) -> Any:
    """Return a contract's value as JSON has it: bytes as 0x-hex."""
    match value:
        case bytes():
            return "0x" + value.hex()
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case _:
            return value


def _draw_list(console: "Console", data: Json) -> None:
    panel(console, f"Members at block {data['height']}", {})
    rows = [(item["organisation"], item["status"], ", ".join(item["roles"])) for item in data["organisations"]]
    table(console, ["organisation", "status", "roles"], rows)
    nodes = [
        (
            item["node"],
            item["organisation"],
            item["status"],
            item["lastVote"],
            item["address"] or None,
            views.short(item["voteKey"]),
        )
        for item in data["nodes"]
    ]
    table(console, ["node", "organisation", "status", ">last vote", "address", "vote key"], nodes)
    open_ones = [
        (
            item["method"],
            item["arguments"].get("node") or item["arguments"].get("organisation"),
            ", ".join(item["approvals"]),
            f"{item['counted']} of {item['needed']}",
            views.short(item["proposal"]),
        )
        for item in data["proposals"]
    ]
    if open_ones:
        table(console, ["open", "about", "approved by", "counted", "proposal"], open_ones)


def _endpoint(option: str, text: str) -> "Endpoint":
    from node.config import Endpoint

    host, _, port = text.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536):
        raise LocalError("bad_address", f"{option} {text!r} is not HOST:PORT")
    return Endpoint(host.removeprefix("[").removesuffix("]"), int(port))


def _public_key(name: str, keys: Path | None) -> bytes:
    """Return the public key in a key file, which needs no passphrase."""
    from services.client.keystore import KeyStore

    if keys is None:
        raise click.UsageError("--admin needs --keys, the folder that holds its key")
    found = KeyStore(keys).entry(name).public_key
    if not found:
        raise LocalError("bad_key", f"the key file of {name} does not say its public key")
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalError("file_error", f"{path}: {error.strerror}") from None
