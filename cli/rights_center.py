"""``hansa rights status``, ``dead-letters`` and ``refused``: what the message centre holds, and what became of it."""

import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import Number, json_option, network_option
from cli.output import Output, console, panel, table
from cli.place import Place, network_folder
from consensus.ledger.errors import HansaError, LocalError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from services.messages.port import MessageCenter, Stats
    from services.messages.store import Record, State

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Json = dict[str, Any]

CENTER_HOME = "rights-center"
OPERATOR = "operator"
LIST_DEFAULT = 50
LIST_MAX = 1_000
WATCH_S = 1.0
CHAIN_TIMEOUT_S = 2.0
_BYTES = ("B", "KiB", "MiB", "GiB")


def center_option(function: F) -> F:
    """Add ``--center`` and ``--token-file`` beside ``place``, and give the command an :class:`Operator`."""

    @click.option("--center", metavar="HOST:PORT", help="The message centre; else the network's own.")
    @click.option(
        "--token-file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="What the centre asks for; else the network's own.",
    )
    @network_option
    @wraps(function)
    def command(*args: Any, center: str | None, token_file: Path | None, place: Place, **options: Any) -> Any:
        return function(*args, operator=Operator(place, center, token_file), **options)

    return command  # type: ignore[return-value]


class Operator:
    """Who asks a message centre: where it is, and what is shown to it; else the network's own of a ``system``."""

    def __init__(
        self,
        place: Place,
        center: str | None,
        token_file: Path | None,
        *,
        home: str = CENTER_HOME,
        system: str = "rights",
    ) -> None:
        self.place = place
        self._center = center
        self._token_file = token_file
        self._home = home
        self._system = system

    def ask(self, function: "Callable[[MessageCenter], Awaitable[T]]") -> T:
        """Run a function with the connected centre and return its result.

        Raises:
            LocalError: ``no_home`` where neither the network nor the options say which centre.
            Unreachable: ``center_unreachable``.
        """
        import trio

        from services.client.errors import Unreachable
        from services.local.files import SERVICE_FILE, read_service
        from services.messages.config import CenterFile, read_token, token_at
        from services.messages.link import open_link

        home = network_folder(self.place.given) / "services" / self._home
        center, token = self._center, ""
        if center is None:
            if not (home / SERVICE_FILE).is_file():
                way = f"hansa network up --with {self._system} sets one up, --center names another"
                raise LocalError("no_home", f"{home} holds no message centre: {way}")
            file = read_service(home, CenterFile)
            center, token = file.listen, read_token(home, "token", file.token)
        if self._token_file is not None:
            token = token_at(self._token_file, "--token-file")
        address = center

        async def run() -> T:
            async with open_link(address, token=token, name=OPERATOR) as link:
                return await function(link)

        try:
            return trio.run(run)
        except Unreachable as error:
            way = f": hansa network up --with {self._system} starts the network's own" if self._center is None else ""
            raise Unreachable(f"{error.message}{way}", error.code) from None


# -- status ----------------------------------------------------------------------------------------------


@click.command("status")
@click.option("--watch", is_flag=True, help="Draw it again and again until Ctrl-C.")
@center_option
@json_option
def status(watch: bool, operator: Operator, output: Output) -> None:
    """Print how the message centre stands: depth, age, rate, what is in flight, and how events ended.

    With --watch --json one object a line.

    Example: hansa rights status --watch
    """
    if not watch:
        show_status(operator, output)
        return
    try:
        operator.ask(lambda center: _watch(center, operator.place, output))
    except KeyboardInterrupt:
        return  # it is how watching ends


def show_status(operator: Operator, output: Output) -> None:
    """Print how a message centre stands; errors as :meth:`Operator.ask`."""
    data = operator.ask(lambda center: _sample(center, operator.place))
    output.show(data, lambda console: panel(console, "Message centre", _fields(data)))


async def _watch(center: "MessageCenter", place: Place, output: Output) -> None:
    """Sample until interrupted; a centre that is away for a while is shown so."""
    import trio
    from rich.live import Live

    from services.client.errors import Unreachable

    screen = console()
    before: Json = {}
    is_drawn = sys.stdout.isatty() and not output.as_json
    with Live(console=screen, auto_refresh=False, transient=False) if is_drawn else _Lines(output) as live:
        while True:
            try:
                data = await _sample(center, place)
            except Unreachable as error:
                data = {"error": {"code": error.code, "message": error.message}}
            data["deliveredPerSecond"] = _speed(before, data)
            before = data if "delivered" in data else before
            live.update(_Sample(data), refresh=True)
            await trio.sleep(WATCH_S)


class _Lines:
    """Stands for a live view where there is no terminal: one object or one panel a sample."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, sample: "_Sample", *, refresh: bool) -> None:
        """Write a sample at once."""
        if self._output.as_json:
            click.echo(json.dumps({"ok": "error" not in sample.data, **sample.data}, ensure_ascii=False))
        else:
            console().print(sample)
        sys.stdout.flush()


class _Sample:
    """A sample as rich draws it."""

    def __init__(self, data: Json) -> None:
        self.data = data

    def __rich__(self) -> "RenderableType":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False, title_justify="left")
        drawn.title = f"Message centre  {time.strftime('%H:%M:%S')}  (Ctrl-C ends)"
        for name, value in _fields(self.data).items():
            drawn.add_row(Text(name, style="dim"), Text(str(value)))
        return drawn


async def _sample(center: "MessageCenter", place: Place) -> Json:
    stats = await center.stats()
    return {**_stats_json(stats), "takenMs": time.time_ns() // 1_000_000, "height": await _height(place)}


async def _height(place: Place) -> int | None:
    """Return the chain's height; None where no node answers, or none is known."""
    import trio

    with trio.move_on_after(CHAIN_TIMEOUT_S):
        try:
            async with place.client() as client:
                return int((await client.request("chain_status", {}, Json))["height"])
        except HansaError:
            return None
    return None


def _stats_json(stats: "Stats") -> Json:
    return {
        "waiting": stats.waiting,
        "waitingBytes": stats.waiting_bytes,
        "inFlight": stats.leased,
        "parked": stats.parked,
        "oldestMs": stats.oldest_ms,
        "ratePerSecond": stats.rate_per_s,
        "strict": stats.is_strict,
        "delivered": stats.delivered_count,
        "consumers": stats.consumers,
        "done": stats.done,
        "refused": stats.refused,
        "dead": stats.dead,
    }


def _speed(before: Json, now: Json) -> float | None:
    """Return how many deliveries a second there were between two samples, None where nobody can say."""
    if "delivered" not in before or "delivered" not in now or now["delivered"] < before["delivered"]:
        return None  # the centre began anew in between
    passed_ms = now["takenMs"] - before["takenMs"]
    return round(1_000 * (now["delivered"] - before["delivered"]) / passed_ms, 1) if passed_ms > 0 else None


def _fields(data: Json) -> dict[str, object]:
    """Return a sample in words."""
    if "error" in data:
        return {data["error"]["code"]: data["error"]["message"]}
    order = "one global order" if data["strict"] else "one order a lane"
    now = data.get("deliveredPerSecond")
    return {
        "waiting": f"{data['waiting']}  ({_size(data['waitingBytes'])}; {data['inFlight']} in flight,"
        f" {data['parked']} parked)",
        "oldest": f"{data['oldestMs'] / 1_000:.1f} s" if data["waiting"] else "–",
        "rate": f"{data['ratePerSecond']:g} a second at the most, {order}",
        "delivered": f"{data['delivered']} since its start" + (f", {now:g} a second now" if now is not None else ""),
        "consumers": data["consumers"],
        "events": f"{data['done']} done, {data['refused']} refused, {_letters(data['dead'])}",
        "chain": f"block {data['height']}" if data["height"] is not None else "no node answers",
    }


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1_024 and unit < len(_BYTES) - 1:
        size, unit = size / 1_024, unit + 1
    return f"{size:.{1 if unit else 0}f} {_BYTES[unit]}"


# -- ends ------------------------------------------------------------------------------------------------

_after = click.option("--after", metavar="SEQ", type=Number(0), default=0, help="Only those above this number.")
_limit = click.option(
    "--limit", metavar="N", type=Number(1, LIST_MAX), default=LIST_DEFAULT, show_default=True, help="So many at most."
)


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that were given up: not understood, or out of attempts; they stay until replayed or discarded."""


@dead_letters.command("list")
@_after
@_limit
@center_option
@json_option
def list_dead(after: int, limit: int, operator: Operator, output: Output) -> None:
    """List dead letters with the reason of each.

    Example: hansa rights dead-letters list
    """
    from services.messages.store import State

    _list(State.DEAD, after, limit, operator, output)


@dead_letters.command("replay")
@click.argument("sequences", metavar="[SEQ]...", nargs=-1, type=Number(0))
@click.option("--all", "everything", is_flag=True, help="All there are.")
@center_option
@json_option
def replay(sequences: tuple[int, ...], everything: bool, operator: Operator, output: Output) -> None:
    """Let dead letters wait again, with all attempts before them.

    Example: hansa rights dead-letters replay 17 18  ·  hansa rights dead-letters replay --all
    """
    _check_named(sequences, everything)
    count = operator.ask(lambda center: _each_page(center, center.replay, sequences))
    if not everything and count < len(set(sequences)):
        raise LocalError("unknown_message", f"{count} of {len(set(sequences))} were dead letters; those wait again")
    output.show({"replayed": count}, lambda console: panel(console, "Replayed", {"dead letters": count}))


@dead_letters.command("discard")
@click.argument("sequences", metavar="[SEQ]...", nargs=-1, type=Number(0))
@click.option("--all", "everything", is_flag=True, help="All there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@center_option
@json_option
def discard(sequences: tuple[int, ...], everything: bool, yes: bool, operator: Operator, output: Output) -> None:
    """Drop dead letters for ever; the centre forgets their keys, so that the same may be posted again.

    Example: hansa rights dead-letters discard 17 18  ·  hansa rights dead-letters discard --all --yes
    """
    _check_named(sequences, everything)
    if not yes:
        if output.as_json or not sys.stdin.isatty():
            raise LocalError("not_confirmed", "nobody can be asked here: say --yes to discard dead letters")
        which = "all dead letters" if everything else _letters(len(set(sequences)))
        click.confirm(f"Discard {which} for ever?", abort=True, err=True)
    count = operator.ask(lambda center: _each_page(center, center.discard, sequences))
    if not everything and count < len(set(sequences)):
        raise LocalError("unknown_message", f"{count} of {len(set(sequences))} were dead letters; those are discarded")
    output.show({"discarded": count}, lambda console: panel(console, "Discarded", {"dead letters": count}))


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"


def _check_named(sequences: tuple[int, ...], everything: bool) -> None:
    if bool(sequences) == everything:
        raise click.UsageError("name dead letters by their numbers, or say --all")


async def _each_page(
    center: "MessageCenter", work: "Callable[[Sequence[int]], Awaitable[int]]", sequences: tuple[int, ...]
) -> int:
    """Do something to these dead letters, or to all without any, so many at a time; return how many there were."""
    from services.messages.store import State

    if sequences:
        named = sorted(set(sequences))
        return sum([await work(named[at : at + LIST_MAX]) for at in range(0, len(named), LIST_MAX)])
    count, after = 0, 0
    while page := await center.ended(State.DEAD, after, LIST_MAX):
        count += await work([record.sequence for record in page])
        after = page[-1].sequence
    return count


@click.group("refused")
def refused() -> None:
    """Messages that the contract refused for ever, each with its code."""


@refused.command("list")
@_after
@_limit
@center_option
@json_option
def list_refused(after: int, limit: int, operator: Operator, output: Output) -> None:
    """List refused messages with the code of each.

    Example: hansa rights refused list --after 1000
    """
    from services.messages.store import State

    _list(State.REFUSED, after, limit, operator, output)


def _list(state: "State", after: int, limit: int, operator: Operator, output: Output) -> None:
    records = operator.ask(lambda center: center.ended(state, after, limit))
    rows = [_record_json(record) for record in records]

    def draw(console: "Console") -> None:
        columns = [">number", "event", ">attempts", "ended (UTC)", "reason"]
        names = ("sequence", "key", "attempts", "ended", "reason")
        table(console, columns, [[row[name] for name in names] for row in rows])
        if len(rows) == limit:
            console.print(f"there may be more: --after {rows[-1]['sequence']}", markup=False)

    output.show({"messages": rows}, draw)


def _record_json(record: "Record") -> Json:
    from services.client.times import utc_text

    return {
        "sequence": record.sequence,
        "key": record.key,
        "lane": record.lane,
        "attempts": record.attempts,
        "ended": utc_text(record.ended_ms)[:19],
        "endedMs": record.ended_ms,
        "publishedMs": record.published_ms,
        "reason": record.detail,
        "event": _event_json(record.body),
    }


def _event_json(body: bytes) -> Json | None:
    """Return the event in a message, None where it was let go of or cannot be read."""
    import msgspec

    from consensus.ledger.errors import PeerError
    from services.rights.events import signed_codec

    try:
        return msgspec.structs.asdict(signed_codec.decode_untrusted(body).event)
    except PeerError:
        return None
