"""``hansa agency terms``: eligibility terms, versioned: one party proposes, the other accepts, the desk enacts."""

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cli.agency_place import HexParameter, Json, anchor_json, business_key, money, submit, time_text
from cli.options import Number, json_option, keys_option, network_option, passphrase_option
from cli.output import EXIT_REFUSED, Output, leave, panel, table
from cli.place import Place

if TYPE_CHECKING:
    from rich.console import Console

    from services.agency.clerk import ProposalRecord, TermsRecord
    from services.agency.credentials import TermsFile

AMOUNT_MAX = 10**16 - 1
WAIT_S = 10

_business = click.option("--business-key", "key_name", metavar="NAME", help="The business key; else ORG-business.")


@click.group("terms")
def terms() -> None:
    """Eligibility terms: who may buy what. Both parties sign, the permission desk enacts; versions never change."""


@terms.command("propose")
@click.option("--as", "organisation", metavar="ORG", required=True, help="The party that proposes, and its account.")
@click.option("--bank", metavar="ORG", help="The bank.")
@click.option("--issuer", metavar="ORG", help="The issuer.")
@click.option("--product", metavar="CODE", help="The product that they are for.")
@click.option("--type", "product_type", metavar="NAME", help="The type of product that they are for.")
@click.option("--kind", "kinds", metavar="CODE", multiple=True, help="A business code to admit; may be repeated.")
@click.option("--age-min", metavar="YEARS", type=Number(0, 150), default=18, show_default=True, help="Least age.")
@click.option("--identity/--no-identity", default=True, show_default=True, help="A proven identity.")
@click.option("--registration/--no-registration", default=True, show_default=True, help="The issuer's user.")
@click.option("--risk-match/--no-risk-match", default=True, show_default=True, help="C1 to C5 against R1 to R5.")
@click.option("--amount-min", metavar="N", type=Number(0, AMOUNT_MAX), default=0, help="In 1/100; 0 for no bound.")
@click.option("--amount-max", metavar="N", type=Number(0, AMOUNT_MAX), default=0, help="In 1/100; 0 for no bound.")
@click.option(
    "--file",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Terms as JSON, in place of the options.",
)
@_business
@keys_option
@passphrase_option
@network_option
@json_option
def propose(
    organisation: str,
    bank: str | None,
    issuer: str | None,
    product: str | None,
    product_type: str | None,
    kinds: tuple[str, ...],
    age_min: int,
    identity: bool,
    registration: bool,
    risk_match: bool,
    amount_min: int,
    amount_max: int,
    file: Path | None,
    key_name: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Propose the next version of the terms for a product or a type of products; the other party accepts it.

    Example: hansa agency terms propose --as issuer-c --bank bank-a --issuer issuer-c --product C00002 --kind 022
    """
    from services.agency.credentials import Conditions, made_terms, read_terms

    if file is not None:
        wanted = read_terms(file)
    else:
        if not (bank and issuer and kinds) or (product is None) == (product_type is None):
            raise click.UsageError("give --bank, --issuer, --kind and one of --product and --type, or --file")
        conditions = Conditions(
            kinds=list(kinds),
            age_min=age_min,
            needs_identity=identity,
            needs_registration=registration,
            needs_risk_match=risk_match,
            amount_min=amount_min,
            amount_max=amount_max,
        )
        subject = f"product:{product}" if product is not None else f"type:{product_type}"
        wanted = made_terms(bank=bank, issuer=issuer, subject=subject, terms=conditions)
    _propose(place, organisation, wanted, key_name, keys, passphrase_file, output)


def _propose(
    place: Place,
    organisation: str,
    wanted: "TermsFile",
    key_name: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    output: Output,
) -> None:
    from services.agency.clerk import newest_version

    signer = place.signer(organisation, keys, passphrase_file)
    key = business_key(place, organisation, key_name, keys, passphrase_file).key
    newest = place.ask(lambda client: newest_version(client, wanted.bank, wanted.issuer, wanted.subject))
    call = wanted.call(newest + 1, key, place.genesis.chain_id())
    outcome = submit(place, signer, [call], output)
    proposal = wanted.id(newest + 1)
    data: Json = {
        "proposal": "0x" + proposal.hex(),
        "bank": wanted.bank,
        "issuer": wanted.issuer,
        "subject": wanted.subject,
        "version": newest + 1,
        **anchor_json(outcome),
    }
    other = wanted.bank if organisation == wanted.issuer else wanted.issuer
    shown = {
        "proposal": data["proposal"],
        "parties": f"{wanted.bank}, {wanted.issuer}",
        "version": newest + 1,
        "block": outcome.height,
        "next": f"hansa agency terms accept {data['proposal']} --as {other}",
    }
    output.show(data, lambda console: panel(console, f"Terms for {wanted.subject} are proposed", shown))


@terms.command("accept")
@click.argument("proposal", metavar="PROPOSAL", type=HexParameter())
@click.option("--as", "organisation", metavar="ORG", required=True, help="The other party, and its account.")
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=Number(0, 86_400),
    default=WAIT_S,
    show_default=True,
    help="How long to wait for the permission desk.",
)
@_business
@keys_option
@passphrase_option
@network_option
@json_option
def accept(
    proposal: bytes,
    organisation: str,
    wait_s: int,
    key_name: str | None,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Accept proposed terms as the other party, and wait until the permission desk has enacted them.

    While the desk is away they wait. Exit code 1 where another proposal became this version.

    Example: hansa agency terms accept 0x4b… --as bank-a
    """
    from services.agency import clerk

    found = place.ask(lambda client: clerk.proposal(client, proposal))
    key = business_key(place, organisation, key_name, keys, passphrase_file).key
    call = clerk.accept_call(found, key, place.genesis.chain_id())
    outcome = submit(place, place.signer(organisation, keys, passphrase_file), [call], output)
    if wait_s:
        output.progress("waiting for the permission desk …")
    is_enacted = place.ask(lambda client: clerk.await_enacted(client, found, timeout_ms=1_000 * wait_s))
    data: Json = {
        "proposal": "0x" + proposal.hex(),
        "subject": found.subject,
        "version": found.version,
        "enacted": is_enacted,
        **anchor_json(outcome),
    }
    shown = {
        "parties": f"{found.bank}, {found.issuer}",
        "version": found.version,
        "state": "enacted" if is_enacted else "waits for the permission desk",
        "begins (UTC)": time_text(found.effective_ms) if found.effective_ms else "at once",
    }
    output.show(data, lambda console: panel(console, f"Terms for {found.subject} are accepted", shown))


@terms.command("withdraw")
@click.argument("proposal", metavar="PROPOSAL", type=HexParameter())
@click.option("--as", "organisation", metavar="ORG", required=True, help="Either party, and its account.")
@keys_option
@passphrase_option
@network_option
@json_option
def withdraw(
    proposal: bytes,
    organisation: str,
    keys: Path | None,
    passphrase_file: Path | None,
    place: Place,
    output: Output,
) -> None:
    """Take back, or decline, proposed terms that are not enacted.

    Example: hansa agency terms withdraw 0x4b… --as bank-a
    """
    from consensus.ledger.transaction import make_call

    call = make_call("cooperation", "withdraw_terms", {"proposal": proposal})
    outcome = submit(place, place.signer(organisation, keys, passphrase_file), [call], output)
    data: Json = {"proposal": "0x" + proposal.hex(), **anchor_json(outcome)}
    output.show(data, lambda console: panel(console, "Terms are withdrawn", data))


@terms.command("show")
@click.option("--bank", metavar="ORG", required=True, help="The bank.")
@click.option("--product", metavar="CODE", help="The terms in force for this product; else proposals and all products.")
@network_option
@json_option
def show(bank: str, product: str | None, place: Place, output: Output) -> None:
    """Print the terms in force for a product, or for all, and what is proposed; exit code 1 where a product has none.

    Example: hansa agency terms show --bank bank-a --product 000198
    """
    from services.agency import clerk
    from services.client.client import Client
    from services.client.errors import Refused

    if product is not None:
        code = product
        found = place.ask(lambda client: clerk.terms_in_force(client, bank, code))
        data: Json = {"ok": found is not None, "product": code, "terms": None if found is None else _terms_json(found)}
        shown = {"state": "none are in force: it cannot be sold"} if found is None else _terms_shown(found)
        output.show(data, lambda console: panel(console, f"Terms for {code}", shown, good=found is not None))
        if found is None:
            leave(EXIT_REFUSED)
        return

    async def ask(client: Client) -> "tuple[dict[str, TermsRecord | None], list[ProposalRecord]]":
        if await clerk.party(client, bank) is None:
            raise Refused("unknown_party", f"{bank} is no party of agency sale on this chain")
        codes = [item.product for item in await clerk.products(client)]
        return {code: await clerk.terms_in_force(client, bank, code) for code in codes}, await clerk.proposals(client)

    all_terms, proposals = place.ask(ask)
    waiting = [item for item in proposals if item.bank == bank]
    data = {
        "terms": {code: None if item is None else _terms_json(item) for code, item in all_terms.items()},
        "proposals": [
            {
                "proposal": "0x" + item.proposal.hex(),
                "issuer": item.issuer,
                "subject": item.subject,
                "version": item.version,
                "proposer": item.proposer,
                "status": item.status,
            }
            for item in waiting
        ],
    }
    rows = [
        (code, "–", "none", "–") if item is None else (code, item.subject, item.version, ", ".join(item.kinds))
        for code, item in all_terms.items()
    ]
    lines = [(item.subject, item.version, item.proposer, item.status, "0x" + item.proposal.hex()) for item in waiting]

    def draw(console: "Console") -> None:
        table(console, ["product", "terms of", ">version", "kinds"], rows)
        if lines:
            table(console, ["subject", ">version", "proposed by", "status", "proposal"], lines, title="Proposed")

    output.show(data, draw)


def _terms_json(found: "TermsRecord") -> Json:
    return {
        "issuer": found.issuer,
        "subject": found.subject,
        "version": found.version,
        "kinds": found.kinds,
        "ageMin": found.age_min,
        "needsIdentity": found.needs_identity,
        "needsRegistration": found.needs_registration,
        "needsRiskMatch": found.needs_risk_match,
        "amountMin": str(found.amount_min),
        "amountMax": str(found.amount_max),
        "effectiveMs": found.effective_ms,
        "expiresMs": found.expires_ms,
    }


def _terms_shown(found: "TermsRecord") -> Json:
    asked = {
        f"age from {found.age_min}": found.age_min,
        "proven identity": found.needs_identity,
        "the issuer's user": found.needs_registration,
        "C1 to C5 against R1 to R5": found.needs_risk_match,
    }
    bounds = f"{money(found.amount_min)} to {money(found.amount_max) if found.amount_max else 'any'}"
    return {
        "of": f"{found.subject}, version {found.version}",
        "between": f"{found.bank}, {found.issuer}",
        "kinds": found.kinds,
        "asked for": "\n".join(name for name, is_asked in asked.items() if is_asked) or "nothing",
        "amount": bounds if found.amount_min or found.amount_max else "any",
        "begun (UTC)": time_text(found.effective_ms) if found.effective_ms else "when they were enacted",
        "until": time_text(found.expires_ms),
    }
