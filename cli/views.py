"""How answers of the chain look in a terminal. Every function draws what it is given and decides nothing."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.output import panel, table, text_of
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

Answer = Mapping[str, Any]


def short(text: str | None, digits: int = 8) -> str:
    """Return the first digits of 0x-hex."""
    if not text:
        return "–"
    return text if len(text) <= 2 + digits else text[: 2 + digits] + "…"


def outcome(console: "Console", data: Answer) -> None:
    """Draw a final transaction: its block, who signed it, and each receipt."""
    fields: dict[str, object] = {
        "transaction": data["id"],
        "block": data["height"],
        "block hash": data["blockHash"],
        "time": utc_text(data["timeMs"]),
        "signed by": ", ".join(data["signers"]),
        "sender": data["sender"],
        "lane": f"{_lane(data['lane'])}, number {data['sequence']}",
    }
    for receipt in data["receipts"]:
        label = "receipt" if len(data["receipts"]) == 1 else f"call {receipt['callIndex']}"
        status = receipt["status"] + (f" {receipt['code']}" if receipt["code"] else "")
        fields[label] = f"{status}  ({receipt['steps']} steps)"
        for value in receipt["values"]:
            if value is not None:
                fields[f"{label} value"] = value
        for number, event in enumerate(receipt["events"]):
            pairs = "  ".join(f"{name}={text_of(value)}" for name, value in event["data"].items())
            fields[f"event {number}"] = f"{event['contract']}.{event['name']}  {pairs}"
    ok = bool(data["ok"])
    panel(console, "Final" if ok else "Final, and failed", fields, good=ok)


def blocks(console: "Console", rows: Sequence[Answer]) -> None:
    """Draw a list of blocks."""
    cells = [
        (
            row["height"],
            utc_text(row["timeMs"])[:19],
            row["transactionCount"],
            row["failedCount"],
            row["proposer"],
            len(row["signers"]),
            short(row["hash"]),
        )
        for row in rows
    ]
    table(console, [">height", "time (UTC)", ">tx", ">failed", "proposer", ">votes", "hash"], cells)


def block(console: "Console", data: Answer) -> None:
    """Draw one block."""
    panel(
        console,
        f"Block {data['height']}",
        {
            "hash": data["hash"],
            "parent": data["parentHash"],
            "time": f"{utc_text(data['timeMs'])}  (uptime {data['uptimeMs']} ms)",
            "proposer": data["proposer"],
            "signed by": ", ".join(data["signers"]) or "nobody: everyone makes it from genesis",
            "transactions": f"{data['transactionCount']}  ({data['failedCount']} failed, {data['bytes']} bytes)",
            "receipts root": data["receiptsRoot"],
            "writes root": data["writesRoot"],
            "sealed height": data["sealedHeight"],
            "sealed root": data["sealedRoot"],
        },
    )
    for transaction_id in data["transactionIds"]:
        console.print(f"  {transaction_id}", highlight=False, soft_wrap=True)


def fields(console: "Console", title: str, data: Answer, *, good: bool = True) -> None:
    """Draw an answer's fields in their order, ``camelCase`` as words, times as UTC and lists of records below."""
    times = {"timeMs": "time (UTC)", "validUntilMs": "valid until (UTC)"}
    drawn: dict[str, object] = {}
    records: dict[str, object] = {}
    for name, item in data.items():
        if name == "ok":
            continue
        if name in times and isinstance(item, int):
            drawn[times[name]] = utc_text(item)
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            records[_words(name)] = item
        else:
            drawn[_words(name)] = item
    panel(console, title, drawn, good=good)
    for name, item in records.items():
        value(console, name, item)


def value(console: "Console", title: str, data: object) -> None:
    """Draw a contract's value: a list of records as a table, a record as a panel."""
    if isinstance(data, list) and data and all(isinstance(row, dict) and row.keys() == data[0].keys() for row in data):
        table(console, list(data[0]), [list(row.values()) for row in data], title=title)
    else:
        panel(console, title, data if isinstance(data, dict) else {"value": data})


def pairs(console: "Console", items: Sequence[Answer]) -> None:
    """Draw state pairs: the key on a line of its own, so that it can be copied, the value below it."""
    for item in items:
        console.print(item["key"], markup=False, highlight=False, soft_wrap=True)
        console.print(f"    {json.dumps(item['value'], ensure_ascii=False)}", markup=False, soft_wrap=True)


def consensus(console: "Console", data: Answer) -> None:
    """Draw the height under way and each validator's part in it."""
    summary = {
        "height": data["height"],
        "view": f"{data['view']}  primary {data['primary']}",
        "phase": data["phase"],
        "quorum": f"{data['quorum']} of {len(data['validators'])}",
        "timeout": f"{data['timeoutMs']} ms",
    }
    if data["suspected"]:
        summary["suspected"] = data["suspected"]
    panel(console, f"Consensus, as {data.get('node', 'one node')} sees it", summary)
    rows = []
    for name in data["validators"]:
        own = {"height": data["height"], "view": data["view"]} if name == data.get("node") else {}
        peer = data["peers"].get(name, own)
        prepared, committed = name in data["prepares"], name in data["commits"]
        silent_ms = peer.get("silentMs")
        rows.append((name, peer.get("height"), peer.get("view"), prepared, committed, silent_ms))
    table(console, ["validator", ">height", ">view", "prepared", "committed", ">silent ms"], rows)


def explanation(console: "Console", data: Answer) -> None:
    """Draw where a transaction is: what the node says that knows most, and what the others know."""
    drawn: dict[str, object] = {"transaction": data["id"]}
    drawn["stage"] = data["stage"] if data["code"] == data["stage"] else f"{data['stage']}: {data['code']}"
    drawn["why"] = data["message"]
    if data["advice"]:
        drawn["what to do"] = data["advice"]
    if data["final"]:
        drawn["block"] = f"{data['height']}  {utc_text(data['timeMs'])}"
    if data.get("waitedMs"):
        drawn["waits for"] = f"{data['waitedMs'] / 1_000:.1f} s at {data['node']}"
    if data.get("holders"):
        drawn["handed on to"] = data["holders"]
    by_stage: dict[str, list[str]] = {}
    for name, stage in data["stages"].items():
        by_stage.setdefault(stage, []).append(name)
    drawn["nodes say"] = "; ".join(f"{stage}: {', '.join(names)}" for stage, names in by_stage.items())
    is_good = data["stage"] == "queued" or (data["final"] and not data["failedCount"])
    panel(console, "Transaction", drawn, good=is_good)


def diagnosis(console: "Console", data: Answer) -> None:
    """Draw what the doctor found: each finding with its code and whom it is about, what it is, and the way out."""
    names = [name for name, answered in data["nodes"].items() if answered]
    asked = ", ".join(names) or "the processes alone"
    found: dict[str, object] = {}
    for item in data["findings"]:
        said = item["message"] if item["node"] in (None, item["about"]) else f"{item['node']} says: {item['message']}"
        name = " ".join(filter(None, (item["code"], item["about"])))
        before = f"{found[name]}\n" if name in found else ""
        found[name] = f"{before}{said}" + (f"\n→ {item['advice']}" if item["advice"] else "")
    panel(console, f"As {asked} {'sees' if len(names) == 1 else 'see'} it", found, good=data["healthy"])


def contract(console: "Console", data: Answer) -> None:
    """Draw a contract's methods with their arguments."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(f"{data['name']} version {data['version']}", style="bold"))
    console.print(Padding(Text(_plain(data["doc"])), (0, 0, 0, 2), expand=False))
    for method in data["methods"]:
        arguments = [
            f"{item['name']}{'' if item['required'] else '?'}: {item['type']}{_limits(item)}"
            for item in method["arguments"]
        ]
        line = Text("\n").append(f"{method['kind']} ", style="dim").append(method["name"], style="bold")
        console.print(line.append(f"({', '.join(arguments)}) → {method['returns']}"))
        console.print(Padding(Text(_plain(method["doc"])), (0, 0, 0, 4), expand=False))


def _plain(doc: str) -> str:
    """Return a docstring with its lines joined to paragraphs and list items, and without marks."""
    parts = re.split(r"\n\n|\n(?=\s*- )", doc.replace("``", ""))
    paragraphs = [" ".join(part.split()) for part in parts]
    return "\n".join(paragraphs)


def _limits(argument: Answer) -> str:
    """Return what an argument's type does not say of its limits."""
    limits = argument.get("limits", {})
    if argument["type"].removesuffix("?") in ("amount", "account", "name"):
        return ""
    low, high = ("min", "max") if "max" in limits else ("minLength", "maxLength")
    spans = f" {limits[low]}…{limits[high]}" if low in limits and high in limits else ""
    if high in limits and low not in limits:
        spans = f" up to {limits[high]}"
    return spans + (
        f" {limits['pattern'].removeprefix('^').removesuffix(chr(92) + 'Z')}" if "pattern" in limits else ""
    )


def _words(name: str) -> str:
    return re.sub("([A-Z])", lambda match: " " + match[1].lower(), name)


def _lane(lane: str) -> str:
    if lane == "0x":
        return "unnamed lane"
    name = bytes.fromhex(lane[2:])
    return f"lane {name.decode()}" if name.isascii() and name.decode().isprintable() else f"lane {short(lane)}"
