"""``hansa network``: a local consortium of real processes."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.shell_completion import CompletionItem

from cli.options import Number, json_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import network_folder
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from node.network.homes import LocalNetwork
    from node.network.local import NodeStatus
    from node.network.programs import ProgramStatus

VALIDATORS = 4
PROGRAMS_READY_MS_MAX = 60_000
"""How long programs may take to start: longer than one waits for its database server, whose absence it then tells."""

_folder = click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path, file_okay=False))
_network = click.option(
    "--network", "option", metavar="DIR", type=click.Path(path_type=Path, file_okay=False), help="The same as DIR."
)
_validators = click.option(
    "--validators", metavar="N", type=Number(1, 100), show_default="4", help="How many nodes vote."
)
_port_base = click.option(
    "--port-base",
    metavar="PORT",
    type=Number(1_024, 65_435),
    show_default="26600",
    help="First p2p port; RPC listens 100 above.",
)


class Systems(click.ParamType[tuple[str, ...]]):
    """Names of systems with commas between them."""

    name = "systems"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names, or say which there are."""
        from node.network.programs import SYSTEMS

        names = value if isinstance(value, tuple) else tuple(str(value).split(","))
        if unknown := [name for name in names if name not in SYSTEMS]:
            self.fail(f"{unknown[0]!r} is none of: {', '.join(SYSTEMS)}", param, ctx)
        return names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the name after the last comma."""
        from node.network.programs import SYSTEMS

        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in SYSTEMS if name.startswith(last)]


@click.group()
def network() -> None:
    """A local consortium of real processes.

    DIR is --network, else HANSA_NETWORK, else ./net.
    """


@network.command("init")
@_folder
@_network
@_validators
@_port_base
@json_option
def init(
    folder: Path | None, option: Path | None, validators: int | None, port_base: int | None, output: Output
) -> None:
    """Make a network folder: keys, certificates, genesis, homes; one that is there already stays as it is.

    Example: hansa network init net
    """
    made = _init(_chosen(folder, option), validators, port_base)
    data = _card(made, [])
    output.show(data, lambda console: _draw(console, data))


@network.command("up")
@_folder
@_network
@_validators
@_port_base
@click.option(
    "--with",
    "systems",
    metavar="rights,agency,settlement,payee,stream",
    type=Systems(),
    multiple=True,
    help="Set these systems up and start their programs too.",
)
@json_option
def up(
    folder: Path | None,
    option: Path | None,
    validators: int | None,
    port_base: int | None,
    systems: tuple[tuple[str, ...], ...],
    output: Output,
) -> None:
    """Start all nodes that do not run, wait until they are ready, and print the card.

    A folder without a network is initialised first; --validators and --port-base count for that alone.
    Exit code 1, and a line that says why, when all run and yet too few vote or a validator casts no vote.

    Example: hansa network up net --with rights,agency,settlement,payee,stream
    """
    import trio

    from node.network.homes import is_network, load_network
    from node.network.local import node_process, start
    from node.network.local import status as read_status
    from node.network.programs import SYSTEMS, find_programs, status, system_of

    place = _chosen(folder, option)
    made = load_network(place) if is_network(place) else _init(place, validators, port_base)
    stopped = [node.name for node in made.nodes if node_process(node).pid() is None]
    if stopped:
        output.progress(f"starting {', '.join(stopped)} …")
    statuses = trio.run(start, made)
    for system in SYSTEMS:  # in this order, since some build on others
        if any(system in names for names in systems):
            _start_system(made, system, output)
    if systems:
        statuses = trio.run(read_status, made)
    programs = status(find_programs(made))
    idle = dict.fromkeys(system_of(item.program.name) for item in programs if item.pid is None)
    if idle and not systems:
        output.progress(
            f"programs are set up beside the nodes and do not run: hansa network up --with {','.join(idle)}"
        )
    data = _card(made, statuses, programs)
    output.show(data, lambda console: _draw(console, data))
    if not data["ok"]:
        leave(EXIT_REFUSED)


def _start_system(made: "LocalNetwork", system: str, output: Output) -> None:
    """Set a system up on the running network and start its programs."""
    import trio

    from cli import agency, payee_setup, rights, settle, stream_setup
    from cli.place import Place
    from node.network.programs import find_programs, start

    place = Place(made.folder, (), None)
    then: list[Callable[[], None]] = []
    match system:
        case "agency":
            agency.prepare(place, output)
        case "settlement":
            settled = settle.prepare(place, output)
            then.append(lambda: settle.open_money(settled, output))
        case "payee":
            prepared = payee_setup.prepare(place, output)
            then.append(lambda: payee_setup.finish(place, prepared, output))
        case "stream":
            stream_setup.prepare(place, output)
        case _:
            rights.prepare(place, rights.BUSINESS, output)
    programs = find_programs(made, system)
    if stopped := [program.name for program in programs if program.process.pid() is None]:
        output.progress(f"starting {', '.join(stopped)} …")
    trio.run(partial(start, made, programs, timeout_ms=PROGRAMS_READY_MS_MAX))
    for finish in then:
        finish()


@network.command("status")
@_folder
@_network
@json_option
def status(folder: Path | None, option: Path | None, output: Output) -> None:
    """Print which nodes run, how high they are and whether they vote; exit code 1 unless all are ready and do.

    Programs that were set up beside them are listed too.

    Of a node that has ended it says why. One that was given an old copy of its data, or none, follows the chain
    and casts no vote: hansa node rejoin. hansa consensus doctor says more.

    Example: hansa network status net
    """
    import trio

    from node.network.homes import load_network
    from node.network.local import status as read_status
    from node.network.programs import find_programs
    from node.network.programs import status as read_programs

    made = load_network(_chosen(folder, option))
    data = _card(made, trio.run(read_status, made), read_programs(find_programs(made)))
    output.show(data, lambda console: _draw(console, data))
    if not data["ok"]:
        leave(EXIT_REFUSED)


@network.command("down")
@_folder
@_network
@json_option
def down(folder: Path | None, option: Path | None, output: Output) -> None:
    """End the programs beside the nodes, then all nodes, in order; those that do not end in time are killed.

    Example: hansa network down net
    """
    import trio

    from node.network import programs as services
    from node.network.homes import load_network
    from node.network.local import node_process, stop

    made = load_network(_chosen(folder, option))
    found = services.find_programs(made)
    running = [node.name for node in made.nodes if node_process(node).pid() is not None]
    running += [program.name for program in found if program.process.find() is not None]
    ended = trio.run(services.stop, made, found) if found else {}
    ended |= trio.run(stop, made)
    outcome = {
        name: "was not running" if name not in running else "ended" if is_orderly else "killed"
        for name, is_orderly in ended.items()
    }
    nodes = {node.name: outcome[node.name] for node in made.nodes}
    programs = {program.name: outcome[program.name] for program in found}
    data = {"ok": True, "folder": str(made.folder), "nodes": nodes, "programs": programs}
    output.show(data, lambda console: panel(console, f"{made.genesis.name} is down", programs | nodes))


@network.command("reset")
@_folder
@_network
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def reset(folder: Path | None, option: Path | None, yes: bool, output: Output) -> None:
    """Wipe what the nodes and programs of a stopped network have stored; keys and genesis stay.

    Example: hansa network reset net --yes
    """
    import trio

    from node.network.homes import load_network
    from node.network.local import reset as wipe
    from node.network.programs import find_programs

    made = load_network(_chosen(folder, option))
    for program in find_programs(made):
        if (pid := program.process.pid()) is not None:
            raise LocalError("still_running", f"{program.name} runs, process {pid}; end the network first")
    if not yes:
        if output.as_json or not sys.stdin.isatty():
            raise LocalError("not_confirmed", "nobody can be asked here: say --yes to wipe the chain")
        click.confirm(f"Wipe the chain of all {len(made.nodes)} nodes in {made.folder}?", abort=True, err=True)
    trio.run(wipe, made)
    data = {"ok": True, "folder": str(made.folder)}
    output.show(data, lambda console: panel(console, "Wiped", {"folder": str(made.folder), "height": 0}))


def _chosen(folder: Path | None, option: Path | None) -> Path:
    if folder is not None and option is not None and folder != option:
        raise click.UsageError(f"DIR says {folder} and --network {option}: give one of them")
    return folder or network_folder(option)


def _init(folder: Path, validators: int | None, port_base: int | None) -> "LocalNetwork":
    """Make the network; where one is, only what was asked for in words must be as it is there."""
    from contracts.runtime.registry import Registry
    from node.network.genesis import activations_of, default_plan
    from node.network.homes import PORT_BASE, init_network, is_network, load_network

    if is_network(folder):
        made = load_network(folder)
        validators = validators or len(made.genesis.validators)
        port_base = port_base or min(node.p2p.port for node in (*made.nodes, *made.removed))
    plan = default_plan(validators=validators or VALIDATORS)
    return init_network(folder, plan, activations_of(Registry.shipped()), port_base=port_base or PORT_BASE)


def _card(
    made: "LocalNetwork", statuses: "list[NodeStatus]", programs: "Sequence[ProgramStatus]" = ()
) -> dict[str, object]:
    """Return what a network's user needs: nodes, heights, URLs, programs, identities."""
    found = {status.node.name: status for status in statuses}
    nodes: list[dict[str, object]] = []
    for node in made.nodes:
        status = found.get(node.name)
        nodes.append(
            {
                "name": node.name,
                "state": "stopped" if status is None else "ready" if status.is_ready else status.state.value,
                "pid": status.pid if status else None,
                "height": status.height if status else None,
                "votes": status.votes if status else None,
                "url": node.rpc_url,
                "rpc": f"{node.rpc_url}/rpc",
                "metrics": f"{node.rpc_url}/metrics",
                "p2p": f"{node.p2p.host}:{node.p2p.port}",
                "log": str(node.log_file),
                "ending": None if status is None or status.ending is None else status.ending.words,
            }
        )
    from node.network.programs import system_of

    attention = _attention(statuses) + [
        f"{item.program.name} does not run: {item.ending.words};"
        f" hansa network up --with {system_of(item.program.name)} starts it"
        for item in programs
        if item.ending is not None
    ]
    attention += [f"{item.program.name} cannot start: {item.program.fault}" for item in programs if item.program.fault]
    return {
        "ok": not attention,
        "attention": attention,
        "network": made.genesis.name,
        "chainId": "0x" + made.genesis.chain_id().hex(),
        "folder": str(made.folder),
        "nodes": nodes,
        "programs": [_program_json(item) for item in programs],
        "identities": [
            {
                "name": identity.name,
                "organisation": identity.organisation,
                "roles": list(identity.roles),
                "address": "0x" + identity.address.hex(),
            }
            for identity in made.identities
        ],
    }


def _program_json(status: "ProgramStatus") -> dict[str, object]:
    from node.network.programs import ENVIRONMENT
    from services.payee.wording import EMULATED

    program = status.program
    return {
        "name": program.name,
        "state": _program_state(status),
        "pid": status.pid,
        "listen": f"{program.listen.host}:{program.listen.port}" if program.listen else None,
        "note": EMULATED if program.command == ENVIRONMENT else None,
        "home": str(program.folder),
        "log": str(program.process.log_file),
        "ending": None if status.ending is None else status.ending.words,
    }


def _program_state(status: "ProgramStatus") -> str:
    """Return what a program does; one that does not run, and cannot for its ``service.toml``, is broken."""
    if status.program.fault and status.pid is None:
        return "broken"
    return "ready" if status.is_ready else status.state.value


def _attention(statuses: "list[NodeStatus]") -> list[str]:
    """Return what keeps a started network from being whole, in words; nothing of one that was only made."""
    from cli.doctor import way_out

    said: list[str] = []
    for status in statuses:
        name = status.node.name
        if status.ending is not None:
            said.append(f"{name} does not run: {status.ending.words}; {way_out(name, status.ending.code)}")
        elif not status.is_ready:
            said.append(f"{name} is {status.state.value} and does not answer")
        elif status.votes is False and status.seated:
            said.append(f"{name} follows and casts no vote: hansa node rejoin {name}")
    quorum = max((status.quorum or 0 for status in statuses), default=0)
    voting = sum(status.votes is True for status in statuses)
    if voting < quorum:
        said.insert(0, f"no quorum: {voting} vote, {quorum} are needed, so nothing becomes final")
    return said


def _draw(console: "Console", data: dict[str, object]) -> None:
    nodes, programs, identities = data["nodes"], data["programs"], data["identities"]
    if not (isinstance(nodes, list) and isinstance(programs, list) and isinstance(identities, list)):
        return
    fields = {"folder": data["folder"], "chain id": data["chainId"]}
    if data["attention"]:
        fields["attention"] = "\n".join(_lines(data["attention"]))
    panel(console, str(data["network"]), fields, good=bool(data["ok"]))
    rows = [(node["name"], node["state"], node["height"], node["votes"], node["url"]) for node in nodes]
    table(console, ["node", "state", ">height", "votes", "page (JSON-RPC: /rpc)"], rows)
    if programs:
        started = [(item["name"], item["state"], item["listen"] or item["note"]) for item in programs]
        table(console, ["program", "state", "listens on"], started)
    people = [(item["name"], item["organisation"], ", ".join(item["roles"])) for item in identities]
    table(console, ["identity (--as)", "organisation", "roles"], people)


def _lines(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
