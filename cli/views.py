"""How answers of the chain look in a terminal. Every function draws what it is given and decides nothing."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cli.output import panel, table

if TYPE_CHECKING:
    from rich.console import Console

Answer = Mapping[str, Any]


def clock(time_ms: int) -> str:
    """Return a time as UTC text with milliseconds."""
    return (
        datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    )


def short(text: str | None, digits: int = 8) -> str:
    """Return the first digits of 0x-hex."""
    if not text:
        return "–"
    return text if len(text) <= 2 + digits else text[: 2 + digits] + "…"


def outcome(console: "Console", data: Answer) -> None:
    """Draw a final transaction: its block, who signed it, and each receipt."""
    fields: dict[str, object] = {
        "transaction": data["id"],
        "block": f"{data['height']}  {short(data['blockHash'], 16)}",
        "time": clock(data["timeMs"]),
        "signed by": ", ".join(data["signers"]) if data["signers"] else "not asked for",
        "sender": f"{data['sender']}  lane {data['lane'] or '–'} number {data['sequence']}",
    }
    for receipt in data["receipts"]:
        label = "receipt" if len(data["receipts"]) == 1 else f"call {receipt['callIndex']}"
        status = receipt["status"] + (f" {receipt['code']}" if receipt["code"] else "")
        fields[label] = f"{status}  ({receipt['steps']} steps)"
        for value in receipt["values"]:
            if value is not None:
                fields[f"{label} value"] = value
        for number, event in enumerate(receipt["events"]):
            pairs = "  ".join(f"{name}={value}" for name, value in event["data"].items())
            fields[f"event {number}"] = f"{event['contract']}.{event['name']}  {pairs}"
    ok = bool(data["ok"])
    panel(console, "Final" if ok else "Refused", fields, good=ok)


def blocks(console: "Console", rows: Sequence[Answer]) -> None:
    """Draw a list of blocks."""
    cells = [
        (
            row["height"],
            clock(row["timeMs"])[:19],
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
            "time": f"{clock(data['timeMs'])}  (uptime {data['uptimeMs']} ms)",
            "proposer": data["proposer"],
            "signed by": ", ".join(data["signers"]) or "nobody: everyone makes it from genesis",
            "transactions": f"{data['transactionCount']}  ({data['failedCount']} failed, {data['bytes']} bytes)",
            "receipts root": data["receiptsRoot"],
            "writes root": data["writesRoot"],
            "sealed": f"height {data['sealedHeight']}  {short(data['sealedRoot'], 16)}",
        },
    )
    for transaction_id in data["transactionIds"]:
        console.print(f"  {transaction_id}", highlight=False)


def fields(console: "Console", title: str, data: Answer) -> None:
    """Draw an answer as names and values in the order given."""
    panel(console, title, data)


def contract(console: "Console", data: Answer) -> None:
    """Draw a contract's methods with their arguments."""
    from rich.text import Text

    console.print(Text(f"{data['name']} version {data['version']}", style="bold"))
    if data.get("doc"):
        console.print(Text(str(data["doc"])))
    for method in data["methods"]:
        arguments = ", ".join(
            f"{item['name']}: {item['type']}" + ("" if item["required"] else " (optional)")
            for item in method["arguments"]
        )
        line = Text()
        line.append(f"\n{method['kind']} ", style="dim")
        line.append(method["name"], style="bold")
        line.append(f"({arguments})")
        console.print(line)
        if method.get("doc"):
            console.print(Text("  " + str(method["doc"]).replace("\n", "\n  ")))
