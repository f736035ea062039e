"""``hansa channel``: private channels: agreements, applications, revoking, backups, and the permission desk."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli import views
from cli.agency_place import (
    GATEWAY,
    ChannelParameter,
    HexParameter,
    Json,
    anchor_json,
    ask_program,
    business_key,
    socket_of,
    socket_option,
    submit,
    time_text,
)
from cli.options import Number, json_option, keys_option, network_option, passphrase_option, signer_options
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import Place, new_passphrase
from consensus.ledger.errors import LocalError

if TYPE_CHECKING:
    from rich.console import Console

    from services.agency.clerk import ApplicationRecord, ChannelRecord
    from services.agency.credentials import Agreement
    from services.local.link import LocalLink

DAY_MS = 24 * 3_600 * 1_000
MINUTE_MS = 60_000
WAIT_S = 10
"""How long an applicant waits for the permission desk, unless told otherwise."""
REASON_CHARACTERS_MAX = 200

_channel = click.argument("pair", metavar="BANK/ISSUER", type=ChannelParameter())
_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
_organisation = click.option("--as", "organisation", metavar="ORG", required=True, help="The institution.")


@click.group()
def channel() -> None:
    """Private channels between a bank's node and an issuer's node, opened by the permission desk.

    First both sides sign an agreement: agreement new, agreement sign. Then the bank applies.
    """


# -- agreements ------------------------------------------------------------------------------------------


@channel.group("agreement")
def agreement() -> None:
    """Cooperation agreements: files that go from party to party until all have signed."""


@agreement.command("new")
@_file
@click.option("--bank", metavar="ORG", required=True, help="The selling bank.")
@click.option("--issuer", "issuers", metavar="ORG", required=True, multiple=True, help="An issuer; may be repeated.")
@click.option("--number", metavar="TEXT", required=True, help="The agreement's own number, unique at the bank.")
@click.option(
    "--document",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The paper that was agreed on; its SHA-256 alone goes on.",
)
@click.option("--days", metavar="N", type=Number(1, 36_500), default=365, show_default=True, help="How long it counts.")
@click.option(
    "--grace-minutes",
    metavar="N",
    type=Number(0, 90 * 24 * 60),
    default=10,
    show_default=True,
    help="How long confirmations may still travel after a revocation.",
)
@network_option
@json_option
def new(
    file: Path,
    bank: str,
    issuers: tuple[str, ...],
    number: str,
    document: Path,
    days: int,
    grace_minutes: int,
    place: Place,
    output: Output,
) -> None:
    """Write an agreement that nobody has signed yet; it may name several issuers, and counts from now on.

    A file that is there is not written over: it may hold signatures.

    Example: hansa channel agreement new a.json --bank bank-a --issuer issuer-c --number 2026-7 --document paper.pdf
    """
    from services.agency.credentials import document_hash, new_agreement, write_file

    if file.exists():
        raise LocalError("file_exists", f"{file} exists and is not overwritten")
    now_ms = time.time_ns() // 1_000_000
    made = new_agreement(
        place.genesis.chain_id(),
        number=number,
        bank=bank,
        issuers=issuers,
        document=document_hash(document),
        valid_from_ms=now_ms - MINUTE_MS,
        valid_until_ms=now_ms + days * DAY_MS,
        grace_ms=grace_minutes * MINUTE_MS,
    )
    write_file(file, made)
    _show_agreement(made, file, output)


@agreement.command("sign")
@_file
@_organisation
@click.option("--key", "key_name", metavar="NAME", help="The business key; else ORG-business.")
@keys_option
@passphrase_option
@network_option
@json_option
def sign(
    file: Path,
    organisation: str,
    key_name: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Sign an agreement with the institution's business key; once more is harmless.

    Example: hansa channel agreement sign a.json --as issuer-c
    """
    from services.agency.credentials import read_agreement, sign_agreement, write_file

    found = read_agreement(file, place.genesis.chain_id())
    signer = business_key(place, organisation, key_name, keys, passphrase_file)
    signed = sign_agreement(found, organisation, signer.key)
    write_file(file, signed)
    _show_agreement(signed, file, output)


@agreement.command("show")
@_file
@click.option("--check", "is_checked", is_flag=True, help="Check the signatures by the parties' keys on the chain.")
@network_option
@json_option
def show_agreement(file: Path, is_checked: bool, place: Place, output: Output) -> None:
    """Print an agreement and who has signed it; exit code 1 where a signature does not hold.

    Example: hansa channel agreement show a.json --check
    """
    from services.agency.clerk import business_keys
    from services.agency.credentials import bad_signatures, read_agreement

    found = read_agreement(file, place.genesis.chain_id() if is_checked else None)
    wrong: list[str] | None = None
    if is_checked:
        wrong = bad_signatures(found, place.ask(lambda client: business_keys(client, found.parties)))
    _show_agreement(found, file, output, wrong)


def _show_agreement(found: "Agreement", file: Path, output: Output, wrong: list[str] | None = None) -> None:
    """Print an agreement; ``wrong`` says whose signatures do not hold, None where nobody looked."""
    import msgspec

    data: Json = {
        "file": str(file),
        "agreement": "0x" + found.id().hex(),
        **{name: value for name, value in msgspec.to_builtins(found).items() if name not in ("format", "signatures")},
        "signed": sorted(found.signatures),
        "missing": found.missing,
        "ok": not wrong,
    }
    if wrong is not None:
        data["bad"] = wrong
    shown = {
        "file": data["file"],
        "agreement id": data["agreement"],
        "bank": found.bank,
        "issuers": found.issuers,
        "document": found.document,
        "counts (UTC)": f"{time_text(found.valid_from_ms)} to {time_text(found.valid_until_ms)}",
        "grace": f"{found.grace_ms // MINUTE_MS} minutes",
        "signed by": data["signed"],
        "still to sign": data["missing"],
    }
    if wrong is not None:
        shown["do not hold"] = wrong
    output.show(data, lambda console: panel(console, f"Agreement {found.number}", shown, good=not wrong))
    if wrong:
        leave(EXIT_REFUSED)


# -- applications ----------------------------------------------------------------------------------------


@channel.command("apply")
@click.option("--bank", metavar="NAME", required=True, help="The bank's account, which signs.")
@click.option(
    "--agreement",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The agreement that all have signed.",
)
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=Number(0, 86_400),
    default=WAIT_S,
    show_default=True,
    help="How long to wait for the permission desk.",
)
@keys_option
@passphrase_option
@network_option
@json_option
def apply(
    bank: str,
    file: Path,
    wait_s: int,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Apply for the channels that an agreement names, and wait for what the permission desk says.

    Once more shows how it stands. Exit code 1 when the desk refuses; while it is away the application waits.

    Example: hansa channel apply --bank bank-a --agreement a.json
    """
    from services.agency import clerk
    from services.agency.credentials import read_agreement
    from services.client.client import Client
    from services.client.errors import Refused

    found = read_agreement(file, place.genesis.chain_id())
    if found.missing:
        way = f"hansa channel agreement sign {file} --as {found.missing[0]}"
        raise Refused("signature_missing", f"{' and '.join(found.missing)} did not sign it yet: {way}")
    signer = place.signer(bank, keys, passphrase_file)
    before = place.ask(lambda client: clerk.application(client, found.id()))
    anchor: Json = {}
    if before is None or before.status == "REFUSED":
        anchor = anchor_json(submit(place, signer, [found.call()], output))
    if wait_s and (before is None or before.status != "OPENED"):
        output.progress("waiting for the permission desk …")

    async def wait(client: Client) -> "ApplicationRecord":
        return await clerk.await_decision(client, found.id(), timeout_ms=1_000 * wait_s)

    _show_application(place.ask(wait), output, anchor)


@channel.command("decide")
@click.argument("decision", type=click.Choice(["open", "refuse"]))
@click.argument("application", metavar="APPLICATION", type=HexParameter())
@click.option("--reason", metavar="TEXT", default="", help="With refuse: why, for people.")
@signer_options
@network_option
@json_option
def decide(
    decision: str,
    application: bytes,
    reason: str,
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Open the channels of an application, or refuse it, where the permission desk leaves that to people.

    Example: hansa channel decide open 0x6f… --as permission
    """
    from services.agency.authority import open_call, refuse_call
    from services.agency.clerk import await_decision

    if (decision == "refuse") != bool(reason):
        raise click.UsageError("refuse needs --reason TEXT, and open takes none")
    if len(reason) > REASON_CHARACTERS_MAX:
        raise click.UsageError(f"a reason has at most {REASON_CHARACTERS_MAX} characters")
    call = refuse_call(application, reason) if decision == "refuse" else open_call(application)
    outcome = submit(place, place.signer(name, keys, passphrase_file), [call], output)
    found = place.ask(lambda client: await_decision(client, application, timeout_ms=0))
    _show_application(found, output, anchor_json(outcome), is_wish=decision == "refuse")


def _application_json(found: "ApplicationRecord") -> Json:
    return {
        "application": "0x" + found.application.hex(),
        "number": found.number,
        "bank": found.bank,
        "issuers": found.issuers,
        "status": found.status,
        "reason": found.reason,
        "validFromMs": found.valid_from_ms,
        "validUntilMs": found.valid_until_ms,
    }


def _show_application(found: "ApplicationRecord", output: Output, anchor: Json, *, is_wish: bool = False) -> None:
    """Print an application; exit code 1 where it was refused and nobody asked for that."""
    good = found.status != "REFUSED" or is_wish
    data: Json = {"ok": good, **_application_json(found), **anchor}
    said = {"OPENED": "channels are open", "PENDING": "waits for the permission desk", "REFUSED": "refused"}
    shown = {
        "application": data["application"],
        "bank": found.bank,
        "issuers": found.issuers,
        "status": f"{found.status}: {said.get(found.status, '')}",
        **({"reason": found.reason} if found.reason else {}),
        "counts until": time_text(found.valid_until_ms),
        "block": anchor.get("height"),
    }
    output.show(data, lambda console: panel(console, f"Agreement {found.number}", shown, good=good))
    if not good:
        leave(EXIT_REFUSED)


# -- channels --------------------------------------------------------------------------------------------


@channel.command("list")
@click.option("--applications", "with_applications", is_flag=True, help="Applications too.")
@network_option
@json_option
def list_channels(with_applications: bool, place: Place, output: Output) -> None:
    """List all channels of the registry; one node is asked and believed.

    Example: hansa channel list --applications
    """
    from services.agency import clerk
    from services.client.client import Client

    async def ask(client: Client) -> "tuple[list[ChannelRecord], list[ApplicationRecord]]":
        return await clerk.channels(client), await clerk.applications(client) if with_applications else []

    found, applications = place.ask(ask)
    data: Json = {"channels": [_channel_json(item) for item in found]}
    if with_applications:
        data["applications"] = [_application_json(item) for item in applications]

    def draw(console: "Console") -> None:
        rows = [(f"{item.bank}/{item.issuer}", item.epoch, _phase(item), time_text(item.expires_ms)) for item in found]
        table(console, ["channel", ">epoch", "state", "open until (UTC)"], rows)
        if with_applications:
            lines = [
                (item.number, item.bank, item.issuers, item.status, views.short("0x" + item.application.hex()))
                for item in applications
            ]
            table(console, ["number", "bank", "issuers", "status", "application"], lines, title="Applications")
            if waiting := {
                f"{item.bank} {item.number}": "0x" + item.application.hex()
                for item in applications
                if item.status == "PENDING"
            }:
                panel(console, "To be decided", waiting)

    output.show(data, draw)


@channel.command("show")
@_channel
@socket_option
@network_option
@json_option
def show(pair: tuple[str, str], socket: Path | None, place: Place, output: Output) -> None:
    """Print a channel: what the registry says, and, where a gateway answers, what waits and what has travelled.

    Example: hansa channel show bank-a/issuer-c
    """
    from services.agency import clerk
    from services.client.errors import Refused

    bank, issuer = pair
    found = place.ask(lambda client: clerk.channel(client, bank, issuer))
    if found is None:
        raise Refused("unknown_channel", f"there is no channel {bank}/{issuer}")
    ends: dict[str, Json] = {}
    for organisation in (bank, issuer) if socket is None else ("",):
        path = socket_of(place, organisation, GATEWAY, socket)
        if path.exists() and (end := _end(path, f"{bank}/{issuer}")):
            ends[organisation or str(path)] = end
    data: Json = {"channel": _channel_json(found), "ends": ends}

    def draw(console: "Console") -> None:
        shown = {
            "state": _phase(found),
            "epoch": found.epoch,
            "nodes": f"{found.bank_node} ═ {found.issuer_node}",
            "agreement": "0x" + found.agreement.hex(),
            "opened (UTC)": time_text(found.opened_ms),
            "open until": time_text(found.expires_ms),
        }
        if found.revoked_ms:
            shown |= {
                "revoked": f"{time_text(found.revoked_ms)} by {found.revoked_by}",
                "confirmations until": time_text(found.grace_until_ms),
                "reason": found.reason or "–",
            }
        panel(console, f"Channel {bank}/{issuer}", shown, good=found.status == "OPEN")
        columns = ["connected", "waiting", "sent", "delivered", "received", "lastError"]
        rows = [[who, *(end.get(column) for column in columns)] for who, end in ends.items()]
        if rows:
            heads = ["end", "connected", ">waiting", ">sent", ">delivered", ">received", "last error"]
            table(console, heads, rows)

    output.show(data, draw)


def _end(path: Path, channel_name: str) -> Json:
    """Return what a gateway's node says of a channel; empty where it does not answer now."""
    from services.agency.interfaces import Status, StatusQuery
    from services.client.errors import Unreachable

    try:
        status = ask_program(path, lambda link: link.call("status", StatusQuery(), Status))
    except Unreachable:
        return {}
    return next((_camel(item) for item in status.channels if item.get("channel") == channel_name), {})


def _camel(item: Json) -> Json:
    """Return a record with camelCase names, however its program spells them."""
    return {
        head + "".join(part.title() for part in tail): item[name] for name in item for head, *tail in [name.split("_")]
    }


@channel.command("revoke")
@_channel
@click.option("--reason", metavar="TEXT", default="", help="Why, for people.")
@signer_options
@network_option
@json_option
def revoke(
    pair: tuple[str, str],
    reason: str,
    name: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Revoke a channel by either side: no more orders at once, confirmations until the agreed grace time ends.

    What was exchanged stays with both. A further agreement opens it anew.

    Example: hansa channel revoke bank-a/issuer-c --as bank-a --reason "contract ended"
    """
    from consensus.ledger.transaction import make_call
    from services.agency import clerk
    from services.client.errors import Refused

    bank, issuer = pair
    call = make_call("cooperation", "revoke_channel", {"bank": bank, "issuer": issuer, "reason": reason})
    outcome = submit(place, place.signer(name, keys, passphrase_file), [call], output)
    found = place.ask(lambda client: clerk.channel(client, bank, issuer))
    if found is None:
        raise Refused("unknown_channel", f"there is no channel {bank}/{issuer}")
    data: Json = {"channel": _channel_json(found), **anchor_json(outcome)}
    shown = {
        "by": found.revoked_by,
        "confirmations until": time_text(found.grace_until_ms),
        "transaction": data["transactionId"],
        "block": data["height"],
    }
    output.show(data, lambda console: panel(console, f"Channel {bank}/{issuer} is revoked", shown))


def _channel_json(found: "ChannelRecord") -> Json:
    return {
        "channel": f"{found.bank}/{found.issuer}",
        "bank": found.bank,
        "issuer": found.issuer,
        "epoch": found.epoch,
        "status": found.status,
        "agreement": "0x" + found.agreement.hex(),
        "bankNode": found.bank_node,
        "issuerNode": found.issuer_node,
        "openedMs": found.opened_ms,
        "expiresMs": found.expires_ms,
        "revokedMs": found.revoked_ms,
        "graceUntilMs": found.grace_until_ms,
        "revokedBy": found.revoked_by,
        "reason": found.reason,
    }


def _phase(found: "ChannelRecord") -> str:
    """Return a channel's state in a word, by this machine's clock."""
    now_ms = time.time_ns() // 1_000_000
    if found.status == "OPEN" and now_ms < found.expires_ms:
        return "open"
    over = "revoked" if found.status == "REVOKED" else "expired"
    return f"{over}, in grace" if now_ms < found.grace_until_ms else over


# -- backups ---------------------------------------------------------------------------------------------


@channel.command("export")
@_channel
@_organisation
@click.option(
    "--to",
    "file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The backup, encrypted with a passphrase.",
)
@passphrase_option
@socket_option
@network_option
@json_option
def export(
    pair: tuple[str, str],
    organisation: str,
    file: Path,
    passphrase_file: Path | None,
    socket: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Write all packages, salts and answers of a channel that the institution's gateway has into an encrypted file.

    Example: hansa channel export bank-a/issuer-c --as bank-a --to c.backup
    """
    from services.agency.backup import export_channel

    bank, issuer = _own(pair, organisation)
    own = place.network.passphrase_file if _is_local(place) else Path()
    passphrase = new_passphrase(f"the backup {file.name}", passphrase_file, own)

    async def write(link: "LocalLink") -> int:
        return await export_channel(
            link, file, passphrase, organisation=organisation, bank=bank, issuer=issuer, on_page=_told(output)
        )

    count = ask_program(socket_of(place, organisation, GATEWAY, socket), write)
    data: Json = {"channel": f"{bank}/{issuer}", "file": str(file), "messages": count, "bytes": file.stat().st_size}
    output.show(data, lambda console: views.fields(console, "Backup written", data))


@channel.command("import")
@_file
@passphrase_option
@socket_option
@network_option
@json_option
def import_(file: Path, passphrase_file: Path | None, socket: Path | None, place: Place, output: Output) -> None:
    """Give a backup back to the gateway that it came from; what is there stays, each message is checked.

    Example: hansa channel import c.backup
    """
    from services.agency.backup import import_channel, read_channel
    from services.client.keystore import read_passphrase

    organisation, bank, issuer = read_channel(file)
    if passphrase_file is None and _is_local(place) and place.network.passphrase_file.is_file():
        passphrase_file = place.network.passphrase_file
    if passphrase_file is not None:
        passphrase = read_passphrase(passphrase_file)
    else:
        passphrase = str(click.prompt("Passphrase of the backup", hide_input=True, err=True)).encode()

    async def read(link: "LocalLink") -> int:
        return await import_channel(link, file, passphrase, on_page=_told(output))

    count = ask_program(socket_of(place, organisation, GATEWAY, socket), read)
    data: Json = {"channel": f"{bank}/{issuer}", "organisation": organisation, "new": count}
    output.show(data, lambda console: views.fields(console, "Backup read", data))


@channel.command("recover")
@_channel
@_organisation
@socket_option
@network_option
@json_option
def recover(pair: tuple[str, str], organisation: str, socket: Path | None, place: Place, output: Output) -> None:
    """Ask the other side for every package that the chain has an anchor of and the institution's gateway has not.

    What comes is checked against signatures and anchors. It comes by itself; once more asks for what is still missing.

    Example: hansa channel recover bank-a/issuer-c --as bank-a
    """
    from services.agency.interfaces import ChannelQuery, Recovered

    bank, issuer = _own(pair, organisation)
    path = socket_of(place, organisation, GATEWAY, socket)
    found = ask_program(path, lambda link: link.call("recover", ChannelQuery(bank, issuer), Recovered))
    data: Json = {"channel": f"{bank}/{issuer}", "anchored": found.anchored, "missing": found.missing}
    data["asked"] = found.asked
    output.show(data, lambda console: views.fields(console, "Asked the other side", data))


def _own(pair: tuple[str, str], organisation: str) -> tuple[str, str]:
    """Return bank and issuer of a channel that is the organisation's own; ``not_party``."""
    if organisation not in pair:
        raise LocalError("not_party", f"{organisation} is neither side of the channel {'/'.join(pair)}")
    return pair


def _told(output: Output) -> Callable[[int], None]:
    def tell(count: int) -> None:
        output.progress(f"{count} messages")

    return tell


def _is_local(place: Place) -> bool:
    """Tell whether there is a network folder, whose passphrase then serves for backups too."""
    from cli.place import network_folder

    return (network_folder(place.given) / "network.toml").is_file()


# -- the permission desk ---------------------------------------------------------------------------------


@channel.group("authority")
def authority() -> None:
    """The permission desk: opens channels for signed agreements, enacts terms that both sides signed."""


@authority.command("serve")
@click.option(
    "--home",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with service.toml, such as net/services/authority.",
)
def serve_authority(home: Path) -> None:
    """Run the permission desk in the foreground until SIGTERM or Ctrl-C.

    Example: hansa channel authority serve --home net/services/authority
    """
    import trio

    from services.agency.authority import run
    from services.agency.config import AuthorityFile, authority_settings
    from services.local.files import read_service

    trio.run(run, authority_settings(home, read_service(home, AuthorityFile)))
