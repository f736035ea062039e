"""``hansa payee resolve`` and ``hansa payee pay``: what a payer's client does with a code."""

import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import Number, json_option, keys_option, network_option, passphrase_option
from cli.output import Output, note_error_details, panel, table
from cli.payee_place import payload_of
from cli.place import Place, network_folder
from cli.settle_accounts import SIMULATED
from cli.settle_place import Pattern, Price, decimal_text, money
from consensus.ledger.errors import LocalError
from services.client.times import utc_text

if TYPE_CHECKING:
    from rich.console import Console

    from services.client.client import Client
    from services.client.keystore import Signer
    from services.payee.codes import ReadCode
    from services.payee.interfaces import Acquiring, Pay, Payment
    from services.payee.payer import Looked, Payer
    from services.payee.resolver import Asked, Candidate, Resolved

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])
Json = dict[str, Any]

PAYER = "user-b"
"""Who pays, and whose key has a query recorded, if nobody else is named."""
HINT = "hansa network up --with payee starts the programs"
WAIT_S_MAX = 600
SPLIT = "split key: opens with its code"
_PLATFORM = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_ORDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,24}", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", re.ASCII)
_WHY = {
    "insufficient_funds": "the payer's account has not the money",
    "account_frozen": "an account is frozen",
    "unknown_account": "the account system does not know one of the accounts",
    "wrong_currency": "payer and merchant have accounts in different currencies",
    "operation_conflict": "the account system knows this order with other terms",
    "payment_open": "the account system has not said what became of it; the same command asks again",
}
"""What a code means to people of a payment that was not made; the others speak for themselves."""


@dataclass(frozen=True, slots=True)
class Door:
    """The platform a command works with: its name, its payers' URL and what it asks for."""

    server: str
    url: str
    token: str


def _platform_options(function: C) -> C:
    """Add ``--code``, ``--as``, ``--url`` and ``--token-file``."""
    options = [
        click.option("--code", metavar="IMAGE|PAYLOAD", required=True, help="Image of the code, or its characters."),
        click.option(
            "--as",
            "server",
            metavar="PLATFORM",
            type=Pattern(_PLATFORM, "platform", "1 to 32 of a-z, 0-9 and -"),
            required=True,
            help="The platform whose client this is.",
        ),
        click.option("--url", metavar="URL", help="Its payers' side; else services/PLATFORM of the network."),
        click.option(
            "--token-file",
            metavar="FILE",
            type=click.Path(path_type=Path, dir_okay=False),
            help="What it asks its payers for.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command("resolve")
@_platform_options
@click.option(
    "--mode",
    type=click.Choice(["target", "candidates"]),
    default="target",
    show_default=True,
    help="Only the platform's own record, or all platforms of the merchant.",
)
@click.option("--record", is_flag=True, help="Have the chain keep that this was asked, by the query's hash.")
@click.option("--account", metavar="NAME", default=PAYER, show_default=True, help="With --record: whose key signs it.")
@click.option(
    "--proof",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep what was shown, payee and all, for hansa payee proof.",
)
@keys_option
@passphrase_option
@network_option
@json_option
def resolve(
    code: str,
    server: str,
    url: str | None,
    token_file: Path | None,
    mode: str,
    record: bool,
    account: str,
    proof: Path | None,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Find out whom a code is of: what a platform keeps of the merchant, checked against the chain.

    A node has its trusted environment (emulated, without hardware isolation) open the record; that the answer is what
    the chain commits to is checked here, by proofs that lead to genesis. A code's signature is checked as well.

    Example: hansa payee resolve --code code.png --as wallet-p
    """
    from services.payee.payer import read_payload
    from services.payee.shown import shown_file

    read = read_payload(payload_of(code))
    door = door_of(place, server, url, token_file)
    signer = place.signer(account, keys, passphrase_file) if record else None

    async def run(session: "Session") -> "tuple[Looked, Asked, int | None]":
        return await session.look(read, mode, signer)

    looked, asked, recorded = _run(place, door, run)
    _say_liars(looked, output)
    if proof is not None:
        _write(proof, shown_file(asked, looked.resolved))
    data = {
        "code": _code_json(looked.code),
        **resolved_json(looked.resolved),
        "recordedHeight": recorded,
        "proof": None if proof is None else str(proof),
        "node": looked.resolved.node,
        "liars": [*looked.resolved.liars],
    }
    output.show(data, lambda console: _draw_looked(console, looked, recorded, proof))


@click.command("pay")
@_platform_options
@click.option(
    "--amount", metavar="AMOUNT", type=Price(), help=f"Such as 12.50, where the code names none; {SIMULATED}."
)
@click.option(
    "--order",
    metavar="ORDER",
    type=Pattern(_ORDER, "order", "1 to 25 of letters, digits and ._-"),
    help="Where the code names none; else a random one.",
)
@click.option(
    "--payer",
    metavar="ACCOUNT",
    type=Pattern(_ACCOUNT, "account", "1 to 64 of letters, digits and ._:-"),
    default=PAYER,
    show_default=True,
    help="Money account that pays.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=Number(1, WAIT_S_MAX),
    default=15,
    show_default=True,
    help="How long an outcome is waited for that the account system has not told.",
)
@network_option
@json_option
def pay(
    code: str,
    server: str,
    url: str | None,
    token_file: Path | None,
    amount: int | None,
    order: str | None,
    payer: str,
    timeout_s: int,
    place: Place,
    output: Output,
) -> None:
    """Pay what a code asks for through a platform; the money is simulated.

    The merchant is resolved and checked first. An order of a merchant is paid once: the same command with the same
    --order is safe however often, also after an answer was lost. Exit code 1 where nothing was paid.

    Example: hansa payee pay --code code.png --as wallet-p --amount 12.50
    """
    from services.payee.payer import read_payload

    read = read_payload(payload_of(code))
    door = door_of(place, server, url, token_file)

    async def run(session: "Session") -> "tuple[Looked, Payment]":
        looked = await session.payer.look(read, may_be_expired=True)
        asked = session.payer.terms(looked, payer=payer, amount=amount, order=order)
        again = _again(code, server, payer, asked, place, url, token_file)
        note_error_details(order=asked.order, again=again)
        _say_liars(looked, output)
        output.progress(f"order {asked.order}: {_asked_text(looked, asked)}")
        with _saying(again):
            return looked, await session.payer.pay(looked, asked, wait_ms=1_000 * timeout_s)

    looked, payment = _run(place, door, run)
    _show_payment(looked, payment, output)


def _say_liars(looked: "Looked", output: Output) -> None:
    """Name the nodes that answered falsely before an honest one was found."""
    for liar in looked.resolved.liars:
        output.progress(f"warning: {liar}")


# -- asking ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """What a command asks with while it runs."""

    client: "Client"
    payer: "Payer"

    async def look(self, code: "ReadCode", mode: str, signer: "Signer | None") -> "tuple[Looked, Asked, int | None]":
        """Return whom a code is of, the query, and the block that keeps it where somebody signs for that."""
        from consensus.ledger.payees import Mode
        from services.payee.resolver import record_query

        asked = self.payer.query(code, Mode.TARGET if mode == "target" else Mode.CANDIDATES)
        recorded = None if signer is None else await record_query(self.client, signer, asked)
        return await self.payer.look(code, asked=asked), asked, recorded


def _run(place: Place, door: Door, use: "Callable[[Session], Awaitable[T]]") -> T:
    """Run a function with a session, and say of programs that do not answer how they are started."""
    import trio

    async def run() -> T:
        async with _session(place, door) as session:
            return await use(session)

    with place.explaining(), _explaining(door):
        return trio.run(run)


@asynccontextmanager
async def _session(place: Place, door: Door) -> AsyncIterator[Session]:
    """Connect to nodes and platform, and get a delegation of the platform's."""
    from services.payee.link import open_platform
    from services.payee.payer import Payer, delegated_signer
    from services.payee.resolver import Resolver

    async with place.client() as client, open_platform(door.url, token=door.token) as platform:
        signer = await delegated_signer(platform, door.server)
        resolver = Resolver(client, signer, now_ms=_now_ms, random_bytes=os.urandom)
        yield Session(
            client,
            Payer(resolver, platform, chain_id=client.chain_id, now_ms=_now_ms, random_bytes=os.urandom),
        )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def _explaining(door: Door) -> Iterator[None]:
    """Say of programs that do not answer how they are started."""
    from services.client.errors import Unreachable
    from services.payee.wording import EMULATED

    try:
        yield
    except Unreachable as error:
        match error.code:
            case "platform_unreachable":
                message = f"{door.server} does not answer ({error.message}): {HINT}"
            case "environment_missing" | "environment_down":
                message = f"no node has an environment ({EMULATED}) that answers: {error.message}; {HINT}"
            case "environment_refused":
                message = f"no node has an environment ({EMULATED}) that may answer: {error.message}"
            case _:
                raise
        raise Unreachable(message, code=error.code) from None


@contextmanager
def _saying(again: str) -> Iterator[None]:
    """Say of a payment whose answer was lost that the same command is safe."""
    from services.client.errors import Unreachable

    try:
        yield
    except Unreachable as error:
        message = f"it is unknown whether this was paid ({error.message}). The same again is safe: {again}"
        raise Unreachable(message, code="outcome_unknown") from None


def door_of(place: Place, server: str, url: str | None, token_file: Path | None) -> Door:
    """Return where a platform answers its payers.

    Raises:
        LocalError: ``unknown_platform`` where the network's folder has none of this name; ``bad_config``,
            ``key_permissions``.
    """
    from services.local.files import SERVICE_FILE, read_service
    from services.messages.config import read_token, token_at
    from services.payee.platform_config import PlatformFile

    token = ""
    if url is None:
        folder = network_folder(place.given) / "services"
        home = folder / server
        if not server.isprintable() or "/" in server or not (home / SERVICE_FILE).is_file():
            raise LocalError(
                "unknown_platform", f"{folder} has no platform {server[:40]!r}: {HINT}, --url names another"
            )
        file = read_service(home, PlatformFile)
        server, url, token = file.server, f"http://{file.listen}", read_token(home, "token", file.token)
    if token_file is not None:
        token = token_at(token_file, "--token-file")
    return Door(server, url, token)


def _again(
    code: str, server: str, payer: str, asked: "Pay", place: Place, url: str | None, token_file: Path | None
) -> str:
    """Return the command that makes the same payment and no other."""
    parts = ["hansa", "payee", "pay", "--code", code, "--as", server]
    parts += ["--amount", decimal_text(asked.amount or 0), "--order", asked.order or "", "--payer", payer]
    given = {"--url": url, "--token-file": token_file, "--network": place.given, "--genesis": place.genesis_path}
    for option, value in given.items():
        parts += [option, str(value)] if value is not None else []
    for node in place.nodes:
        parts += ["--node", node]
    return shlex.join(parts)


def _write(path: Path, content: bytes) -> None:
    """Write a file that its owner alone reads.

    Raises:
        LocalError: ``bad_file``.
    """
    from services.local.files import replace_file

    try:
        replace_file(path, content)
    except OSError as error:
        raise LocalError("bad_file", f"{path}: {error.strerror}") from None


# -- showing ---------------------------------------------------------------------------------------------


def _acquiring_json(acquiring: "Acquiring | None") -> Json | None:
    import msgspec

    found: Json | None = None if acquiring is None else msgspec.to_builtins(acquiring)
    return found


def _code_json(code: "ReadCode") -> Json:
    return {
        "identity": _identity_text(code.identity),
        "dynamic": code.is_dynamic,
        "signed": code.is_signed,
        "split": code.key_part is not None,
        "amount": None if code.amount is None else decimal_text(code.amount),
        "currency": code.currency,
        "order": code.order,
        "expiresMs": code.expires_ms,
    }


def resolved_json(resolved: "Resolved") -> Json:
    """Return what was found, as commands print it."""
    from consensus.ledger.payees import Mode
    from services.payee.wording import EMULATED

    rows = [
        {
            "server": one.server,
            "version": one.version,
            "acquiring": _acquiring_json(one.acquiring),
            "split": one.split is not None,
        }
        for one in resolved.candidates
    ]
    own = [row for row in rows if row["server"] == resolved.server]
    return {
        "platform": resolved.server,
        "mode": "target" if resolved.mode is Mode.TARGET else "candidates",
        "target": own[0] if own else None,
        "candidates": rows,
        "merchantKey": f"0x{resolved.merchant_key.hex()}",
        "consent": resolved.is_consenting,
        "height": resolved.height,
        "timeMs": resolved.time_ms,
        "query": f"0x{resolved.query.hex()}",
        "environment": resolved.environment,
        "isolation": EMULATED,
        "simulated": True,
    }


def _identity_text(identity: bytes) -> str:
    from services.payee.identity import identity_text

    return identity_text(identity)


def _code_fields(code: "ReadCode") -> Json:
    """Return what a code says, in words."""
    kind = "for one order" if code.is_dynamic else "static"
    shown: Json = {
        "identity": _identity_text(code.identity),
        "code": f"{kind}, {'signed by the merchant' if code.is_signed else 'not signed: it says the identity alone'}",
    }
    if code.expires_ms is not None:
        shown |= {"order": code.order, "valid until": f"{utc_text(code.expires_ms)} UTC"}
    if code.amount is not None:
        shown["amount"] = f"{money(code.amount)} {code.currency} ({SIMULATED})"
    return shown


def proven_text(resolved: "Resolved") -> str:
    """Return the block that something is proven by, in words."""
    return f"block {resolved.height}, {utc_text(resolved.time_ms)} UTC"


def environment_text(resolved: "Resolved") -> str:
    """Return who answered, and what it is."""
    from services.payee.wording import EMULATED

    return f"{resolved.environment} ({EMULATED})"


def record_fields(one: "Candidate") -> Json:
    """Return a platform's record, in words."""
    acquiring = one.acquiring
    if acquiring is None:
        record = SPLIT if one.split is not None else "not shown to others"
        return {"platform": f"{one.server}, record version {one.version}", "record": record}
    more = {"terminal": acquiring.terminal, "note": acquiring.note}
    more["split key"] = "opened with a part in the code, one of the platform" if one.split is not None else ""
    return {
        "name": acquiring.name,
        "platform": f"{one.server}, record version {one.version}",
        "pays to": f"{acquiring.account} ({acquiring.currency}, {SIMULATED})",
        **{name: value for name, value in more.items() if value},
    }


def _draw_looked(console: "Console", looked: "Looked", recorded: int | None, proof: Path | None) -> None:
    from consensus.ledger.payees import Mode

    resolved = looked.resolved
    shown = _code_fields(looked.code)
    shown |= {"proven by": proven_text(resolved), "environment": environment_text(resolved)}
    if recorded is not None:
        shown |= {"query": f"0x{resolved.query.hex()}", "recorded in": f"block {recorded}"}
    if proof is not None:
        shown["proof"] = str(proof)
    own = resolved.target
    if resolved.mode is Mode.TARGET and own is not None:
        panel(console, f"Payee for {resolved.server}", record_fields(own) | shown)
        return
    panel(console, f"Platforms of this merchant, asked as {resolved.server}", shown, good=own is not None)
    rows = [
        (one.server, one.version, one.acquiring.name, one.acquiring.account)
        if one.acquiring is not None
        else (one.server, one.version, None, SPLIT if one.split is not None else None)
        for one in resolved.candidates
    ]
    table(console, ["platform", ">version", "name", f"pays to ({SIMULATED})"], rows)
    if any(one.acquiring is None and one.split is None for one in resolved.candidates):
        consent = "the platform does not let it" if resolved.is_consenting else "the merchant has not consented"
        console.print(f"Not shown: {consent}, or the environment has not the key.", markup=False)


def _asked_text(looked: "Looked", asked: "Pay") -> str:
    acquiring = looked.target.acquiring
    name = acquiring.name if acquiring else asked.payee
    currency = acquiring.currency if acquiring else ""
    return f"{money(asked.amount or 0)} {currency} ({SIMULATED}) from {asked.payer} to {name}"


def _show_payment(looked: "Looked", payment: "Payment", output: Output) -> None:
    """Print a payment; exit code 1, with a code, where nothing was paid."""
    from cli.output import EXIT_REFUSED, leave
    from services.payee.payer import OPEN, PAID
    from services.payee.wording import EMULATED

    resolved, acquiring = looked.resolved, looked.target.acquiring
    is_paid = payment.state == PAID
    code = "" if is_paid else "payment_open" if payment.state == OPEN else payment.code
    why = _WHY.get(code, code.replace("_", " "))
    data: Json = {
        "ok": is_paid,
        "simulated": True,
        "platform": payment.server,
        "identity": payment.identity,
        "order": payment.order,
        "payer": payment.payer,
        "payee": payment.payee,
        "name": acquiring.name if acquiring else "",
        "amount": decimal_text(payment.amount),
        "currency": payment.currency,
        "state": payment.state,
        "event": payment.event,
        "timeMs": payment.time_ms or None,
        "first": payment.is_first,
        "height": resolved.height,
        "environment": resolved.environment,
        "isolation": EMULATED,
    }
    if not is_paid:
        data["error"] = {"code": code, "message": why}
    shown: Json = {
        "amount": f"{money(payment.amount)} {payment.currency} ({SIMULATED})",
        "from": payment.payer,
        "to": f"{data['name']}: {payment.payee}",
        "order": payment.order,
        "state": payment.state if is_paid else f"{payment.state}: {why}",
        "paid": f"{utc_text(payment.time_ms)} UTC" if is_paid else "–",
        "proven by": proven_text(resolved),
        "environment": environment_text(resolved),
    }
    if is_paid and not payment.is_first:
        shown["state"] = f"{payment.state} before; nothing was paid again"

    def draw(console: "Console") -> None:
        panel(console, f"Payment with {payment.server}", shown, good=is_paid)
        if not is_paid:
            click.echo(f"{click.style('error', fg='red', bold=True)} {code}: {why}", err=True)

    output.show(data, draw)
    if not is_paid:
        leave(EXIT_REFUSED)
