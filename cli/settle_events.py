"""``hansa settle events``: the event system: serve, list, show, repair, status."""

import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.agency_place import time_text
from cli.options import Number, json_option, network_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import Place
from cli.settle_place import (
    EVENTS_HOME,
    WORDS,
    Json,
    age_text,
    ask_events,
    event_json,
    fits,
    history_json,
    home_of,
    home_option,
    money,
    names_of,
    socket_of,
    socket_option,
)
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from services.local.link import LocalLink
    from services.settlement.interfaces import EventAnswer, EventsStatus
    from services.settlement.states import Event, State

LIST_DEFAULT, LIST_MAX = 50, 500
WHY_COLUMNS = 36
_MONEY = {
    "insufficient_funds": "the buyer's account has not the money",
    "unknown_account": "the account system knows only one of the accounts, or none: hansa settle accounts open",
    "account_frozen": "an account is frozen",
    "wrong_currency": "an account is in another currency",
    "operation_conflict": "the account system knows this event with other terms",
    "released": "the account system has given up the hold",
    "expired": "no block took it in time",
    "no_answer": "the account system has not answered",
    "ratio_unmet": "too few validators say the same",
    "receipts_disagree": "validators prove different ends: hansa consensus doctor",
    "delivered_late": "the units moved after it was given up; they go back",
    "event_reversed": "the units went back to the seller, and nothing is paid",
    "event_unfinished": "not over yet; hansa settle events status, hansa network status say what stands in the way",
}
"""What a code means to people while the chain has not refused; the others speak for themselves."""
_CHAIN = {
    "insufficient_funds": "the seller has not so many units",
    "same_account": "seller, buyer and the event system's agent must be three accounts",
    "lien_exists": "the seller has delivered under this id before",
    "unknown_account": "the chain does not know the buyer",
}
"""What a code means that the chain refused with."""


@click.group()
def events() -> None:
    """The event system: keeps each trade before the chain hears of it, and sees to it until it is finished."""


@events.command("serve")
@home_option(EVENTS_HOME)
@click.option("--relay/--no-relay", "relay", default=None, help="Chain results and notices go on at once.")
@click.option("--scan/--no-scan", "scan", default=None, help="Stuck events are looked at periodically.")
def serve(home: Path | None, relay: bool | None, scan: bool | None) -> None:
    """Run the event system in the foreground until SIGTERM or Ctrl-C.

    Options count before service.toml. Relay or scan alone is enough; with neither nothing is repaired.

    Example: hansa settle events serve --home net/services/settle-events
    """
    import trio

    from services.local.files import changed, read_service
    from services.settlement.config import EventsFile, events_settings
    from services.settlement.events import run

    place = home_of(EVENTS_HOME, home)
    options = {"relay": relay, "scan": scan}
    file = changed(place, read_service(place, EventsFile), {k: v for k, v in options.items() if v is not None})
    trio.run(run, events_settings(place, file))


# -- list ------------------------------------------------------------------------------------------------


@events.command("list")
@click.option("--all", "everything", is_flag=True, help="Finished ones too.")
@click.option(
    "--state",
    metavar="STATE",
    type=click.Choice([*WORDS], case_sensitive=False),
    help=f"Of this state: {', '.join(WORDS)}.",
)
@click.option("--flagged", is_flag=True, help="Only those that need an operator.")
@click.option("--after", metavar="EVENT", default="", help="Only ids above this one.")
@click.option(
    "--limit", metavar="N", type=Number(1, LIST_MAX), default=LIST_DEFAULT, show_default=True, help="So many at most."
)
@socket_option
@network_option
@json_option
def list_events(
    everything: bool,
    state: str | None,
    flagged: bool,
    after: str,
    limit: int,
    socket: Path | None,
    place: Place,
    output: Output,
) -> None:
    """List unfinished events with age and attempts, those that need an operator first.

    Example: hansa settle events list --flagged
    """
    from services.settlement.states import FINISHED, State

    states = [item for item in State if item == state or (state is None and (everything or item not in FINISHED))]

    async def ask(link: "LocalLink") -> "tuple[list[Event], EventsStatus]":
        found = await _page(link, State(state) if state else None, True, after, limit + 1)
        for item in [] if flagged else states:
            found += await _page(link, item, False, after, limit + 1 - len(found))
        return found, await _status(link)

    found, status = ask_events(socket_of(place, socket), ask)
    now_ms = time.time_ns() // 1_000_000
    names = names_of(place)
    rows = [{**event_json(event, names), "ageMs": now_ms - event.registered_ms} for event in found[:limit]]
    data = {"events": rows, "more": len(found) > limit, "totals": status.totals, "flaggedInAll": status.flagged}

    def draw(console: "Console") -> None:
        _draw_list(console, rows)
        finished = sum(status.totals.get(name, 0) for name in FINISHED)
        if not rows:
            console.print("nothing needs an operator" if flagged else "there are none", markup=False)
        if data["more"]:
            console.print("there are more: --limit, or --after with the last id", markup=False)
        if not (everything or flagged or state) and finished:
            console.print(f"{finished} finished: --all lists them", markup=False)

    output.show(data, draw)


def _draw_list(console: "Console", rows: Sequence[Json]) -> None:
    """Draw events: those that need an operator, the unfinished, the finished."""
    open_states = ("REGISTERED", "ACCOUNT_PENDING")
    groups = {
        "Need an operator": [row for row in rows if row["flagged"]],
        "Unfinished": [row for row in rows if not row["flagged"] and row["state"] in open_states],
    }
    for title, group in groups.items():
        if group:
            waiting = [
                (row["event"], row["state"], age_text(row["ageMs"]), row["attempts"], row["code"]) for row in group
            ]
            table(console, ["event", "state", ">age", ">tries", "trouble"], waiting, title=title)
    ended = [row for row in rows if not row["flagged"] and row["state"] not in open_states]
    currencies = sorted({row["currency"] for row in ended})
    is_one = len(currencies) == 1
    cells: list[tuple[object, ...]] = [
        (
            row["event"],
            _end(row),
            f"{row['units']} {row['asset']}",
            "–" if row["original"] else _price_text(row).removesuffix(f" {currencies[0]}" if is_one else ""),
        )
        for row in ended
    ]
    if cells:
        columns = ["event", "end", ">units", f">price ({currencies[0]})" if is_one else ">price"]
        if not fits(console, columns, cells):
            columns, cells = [columns[0], columns[1], columns[3]], [(*row[:2], row[3]) for row in cells]
        table(console, columns, cells, title="Finished")


def _end(row: Json) -> str:
    """Return how a finished event ended, in one word."""
    if row["state"] == "CANCELLED":
        return str(row["code"] or row["state"])
    return str(row["outcome"] or "gave back")


async def _page(link: "LocalLink", state: "State | None", is_flagged: bool, after: str, limit: int) -> "list[Event]":
    from services.settlement.interfaces import EventsPage, EventsQuery

    if limit <= 0:
        return []
    query = EventsQuery(state=state, is_flagged=is_flagged, after=after, limit=min(limit, LIST_MAX))
    return (await link.call("events", query, EventsPage)).items


async def _status(link: "LocalLink") -> "EventsStatus":
    from services.settlement.interfaces import EventsStatus, StatusQuery

    return await link.call("status", StatusQuery(), EventsStatus)


# -- show ------------------------------------------------------------------------------------------------


@events.command("show")
@click.argument("event", metavar="EVENT")
@socket_option
@network_option
@json_option
def show(event: str, socket: Path | None, place: Place, output: Output) -> None:
    """Print an event and its history: every change, when, why, and what went out for it.

    Example: hansa settle events show t-5f2a61c09b7e
    """
    answer = ask_events(socket_of(place, socket), lambda link: find_event(link, event))
    show_event(answer, place, output)


async def find_event(link: "LocalLink", event: str) -> "EventAnswer":
    """Return an event with its history; ``unknown_event``."""
    from services.settlement.interfaces import EventAnswer, EventQuery

    return await link.call("event", EventQuery(event), EventAnswer)


def show_event(
    answer: "EventAnswer", place: Place, output: Output, *, is_asked: bool = False, must_end: bool = False
) -> None:
    """Print an event with its history.

    Args:
        is_asked: exit code 1, with a code, where it is cancelled, reversed, or needs an operator.
        must_end: as well where it is unfinished.
    """
    event = answer.event
    data: Json = {**event_json(event, names_of(place)), "history": history_json(answer.history)}
    code = _fault(event)
    if is_asked and not code and must_end and not event.is_finished:
        code = "event_unfinished"
    if is_asked and code:
        data |= {"ok": False, "error": {"code": code, "message": _meaning(code, event.height)}}

    def draw(console: "Console") -> None:
        title = f"Reversal {event.event}" if event.original else f"Trade {event.event}"
        panel(console, title, _fields(data), good=not code)
        table(console, ["time (UTC)", "state", "why"], [*_history_rows(data)])
        if is_asked and code:
            said = f"{code}: {_meaning(code, event.height)}"
            click.echo(f"{click.style('error', fg='red', bold=True)} {said}", err=True)

    output.show(data, draw)
    if is_asked and code:
        leave(EXIT_REFUSED)


def _history_rows(data: Json) -> Iterator[Sequence[object]]:
    """Yield the rows of a history; a long reason goes on in rows of its own. The day stands where it changes."""
    day = time_text(data["registeredMs"])[:10]
    for row in data["history"]:
        moment = utc_text(row["timeMs"])
        shown, day = (moment[11:] if moment[:10] == day else moment[:19]), moment[:10]
        state = f"{row['to']} {row['outcome']}" if row["outcome"] else row["to"]
        why = row["why"] if not row["code"] or row["code"] in row["why"] else f"{row['why']} ({row['code']})"
        for line in textwrap.wrap(why, WHY_COLUMNS) or [""]:
            yield shown, state, line
            shown = state = ""


def _fault(event: "Event") -> str:
    """Return the code of what is wrong with an event, "" for one that is paid or on its way."""
    if event.outcome == "REVERSED":
        return "event_reversed"
    if event.state == "CANCELLED" or event.is_flagged:
        return event.code or "event_flagged"
    return ""


def _price_text(data: Json) -> str:
    return f"{money(int(data['price'].replace('.', '')))} {data['currency']}"


def _meaning(code: str, height: int | None) -> str:
    """Return what a code of an event means to people; at a ``height`` it is the chain's."""
    return (_CHAIN if height else _MONEY).get(code, _MONEY.get(code, code.replace("_", " ")))


def _fields(data: Json) -> dict[str, object]:
    state = data["state"]
    ending = {"PAID": ", paid", "REVERSED": ", reversed: the units went back, nothing is paid"}.get(data["outcome"], "")
    fields: dict[str, object] = {"state": f"{state} ({WORDS[state]}){ending}"}
    if data["code"] and not data["outcome"]:
        name = "why" if state == "CANCELLED" else "trouble"
        fields[name] = f"{data['code']}: {_meaning(data['code'], data['height'])}"
    if data["flagged"]:
        repair = f"hansa settle events repair {data['event']} --retry"
        match state:
            case "REGISTERED":
                repair = "it ends with what the chain proves; hansa consensus doctor says what the chain lacks"
            case "ACCOUNT_PENDING":
                repair += ", or --reverse"
        fields["operator"] = repair
    if data["wish"] and not data["outcome"]:
        fields["wish"] = "reverse: the units are to go back to the seller"
    if data["original"]:
        fields["reverses"] = data["original"]
    return fields | {
        "units": f"{data['units']} {data['asset']}: {data['seller']} → {data['buyer']}",
        "price": f"{_price_text(data)} (simulated money): {data['payer']} → {data['payee']}",
        "tx": data["transactionId"],
        "block": data["height"],
        "registered": time_text(data["registeredMs"]),
        "changed": time_text(data["changedMs"]),
        "attempts": data["attempts"],
    }


# -- repair and status -----------------------------------------------------------------------------------


@events.command("repair")
@click.argument("event", metavar="EVENT")
@click.option("--retry", is_flag=True, help="Take the flag off and notify at once.")
@click.option("--reverse", is_flag=True, help="Close it in the account system and give the units back to the seller.")
@socket_option
@network_option
@json_option
def repair(event: str, retry: bool, reverse: bool, socket: Path | None, place: Place, output: Output) -> None:
    """Say what is to be done with an event whose payment cannot be made.

    --retry once its cause is mended; --reverse where it cannot be: nothing is paid for the event any more.

    Example: hansa settle events repair t-5f2a61c09b7e --reverse
    """
    from services.client.errors import Refused
    from services.settlement.interfaces import EventAnswer, Kept, Repair

    if retry == reverse:
        raise click.UsageError("say --retry or --reverse")

    async def ask(link: "LocalLink") -> EventAnswer:
        kept = await link.call("repair", Repair(event, "retry" if retry else "reverse"), Kept)
        if kept.code:
            raise Refused(kept.code, kept.message or kept.code)
        return await find_event(link, event)

    show_event(ask_events(socket_of(place, socket), ask), place, output)


@events.command("status")
@socket_option
@network_option
@json_option
def status(socket: Path | None, place: Place, output: Output) -> None:
    """Print how the event system stands: counts by state, what runs, and what stands in the way.

    Example: hansa settle events status
    """
    found = ask_events(socket_of(place, socket), _status)
    data = {
        "totals": found.totals,
        "flagged": found.flagged,
        "waitingNotices": found.waiting_notices,
        "height": found.height,
        "relay": found.is_relay_on,
        "scan": found.is_scan_on,
        "ratio": found.ratio,
        "agent": f"0x{found.agent.hex()}",
        "trouble": {part: why for part, why in found.trouble.items() if why},
    }

    def draw(console: "Console") -> None:
        fields: dict[str, object] = {f"{name} ({words})": found.totals.get(name, 0) for name, words in WORDS.items()}
        fields |= {
            "need an operator": found.flagged,
            "notices waiting": found.waiting_notices,
            "chain read to block": found.height if found.is_relay_on else None,
            "relay": "on" if found.is_relay_on else "off",
            "scan": f"on, {found.ratio} validators must agree" if found.is_scan_on else "off",
            "agent": data["agent"],
        }
        if not (found.is_relay_on or found.is_scan_on):
            fields["trouble"] = "with relay and scan off nothing goes on but registering: service.toml"
        fields |= {f"trouble: {part}": why for part, why in found.trouble.items() if why}
        panel(console, "Event system", fields, good="trouble" not in fields and not data["trouble"])

    output.show(data, draw)
