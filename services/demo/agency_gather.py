"""Gathers the facts of the agency demo: from the bank's sockets, the issuer's, the chain, and other nodes' disks."""

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.errors import PeerError
from services.agency import clerk
from services.agency.disclosure import decode_disclosure_untrusted, verify_disclosure
from services.agency.issuer_interface import Holdings, HoldingsQuery, IssuerSummary, SummaryQuery
from services.agency.ofd.mapping import confirmation_file, confirmation_of
from services.agency.ofd.reader import read_path
from services.agency.ofd.writer import write
from services.agency.orders import Code
from services.agency.sales_interface import OrderRecord, State
from services.demo.agency_facts import Anchored, End, Facts, Units
from services.demo.agency_markers import find, forms_of
from services.demo.agency_network import BANK, ISSUER, ISSUER_END, OTHER, PERMISSION, AgencyConsortium
from services.demo.agency_script import PRODUCT, Script
from services.demo.agency_story import Story
from services.demo.agency_till import Till, patiently
from services.demo.chain import Chain
from services.local.link import LocalLink

THIRD_PARTIES = (PERMISSION, OTHER)
"""Whose nodes have no part in what bank and issuer exchange."""
MARKED_ORDERS = 6
"""Of so many orders of the file everything is looked for."""
AGREE_ATTEMPTS, AGREE_PAUSE_S = 100, 0.1
ANCHORS_PAGE, HOLDINGS_PAGE = 100, 500
TEXT_MIN = 6
"""Shorter texts stand everywhere by accident."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Look:
    """Who is asked for facts."""

    script: Script
    consortium: AgencyConsortium
    chain: Chain
    till: Till


@dataclass(frozen=True, slots=True)
class Search:
    """What was looked for, in how many bytes, and what was found where."""

    markers: int
    controls: int
    leaks: dict[str, list[str]]
    trace_bytes: int


class _AnchorEntry(msgspec.Struct, frozen=True, rename="camel"):
    root: bytes
    round_number: int
    status: str
    count: int


async def gather_facts(look: Look, story: Story) -> tuple[Facts, Search]:
    """Ask everyone for what the invariants look at; nodes of third parties are ended and started for it."""
    script, till = look.script, look.till
    records = await till.records()
    ends = {record.application.serial: end_of(record) for record in records}
    file = [item.serial for item in script.applications]
    async with LocalLink(look.consortium.socket(ISSUER_END)) as issuer:
        summary = await patiently(lambda: issuer.call("summary", SummaryQuery(), IssuerSummary))
        units = await _units(issuer, summary)
    example = next(record for record in records if record.application.serial in set(file) and record.root)
    document = await till.disclose(example)
    seals = await _seals(look)
    channels = {f"{item.bank}/{item.issuer}": item.status for item in await clerk.channels(look.chain.client)}
    anchors = await _anchors(look)
    search = await _search(look, records, document)
    accepted = sum(1 for record in records if record.state in (State.CONFIRMED, State.ALLOTTED))
    facts = Facts(
        applications={item.serial: item for item in script.applications},
        wanted=script.wanted,
        ends=ends,
        repeated={record.application.serial: end_of(record) for record in story.repeated},
        repeated_packages=story.repeated_packages,
        answers=story.answers,
        written=_written(script, records),
        confirmed=(summary.accepted, summary.rejected),
        expected_confirmed=(accepted, sum(1 for record in records if record.state is State.REJECTED)),
        anchors=anchors,
        packages={record.root: record.issuer for record in records if record.root},
        units=units,
        expected_units=expected_units(records),
        channels=channels,
        agreed=frozenset({f"{BANK}/{ISSUER}", f"{BANK}/{OTHER}"}),
        terms=story.terms,
        disclosed=_verify(look, document),
        leaks=search.leaks,
        marker_count=search.markers,
        control_count=search.controls,
        crashes=story.crashes,
        ended_without_permission=story.ended_without_permission,
        joined=story.joined,
        seals=seals,
    )
    return facts, search


def end_of(record: OrderRecord) -> End | None:
    """Return how an order ended, None where it has not."""
    if record.state in (State.NEW, State.PENDING):
        return None
    newest = record.allotment or record.confirmation
    is_accepted = newest is not None and newest.is_accepted
    amount, units = (newest.amount, newest.volume) if newest is not None and is_accepted else (0, 0)
    height = next((anchor.height for anchor in record.anchors if anchor.round_number == 0), 0)
    return End(record.state.value, record.reason, amount, units, record.root, height)


def expected_units(records: Sequence[OrderRecord]) -> dict[str, int]:
    """Return the units of each product that must be held, by the bank's records."""
    held: dict[str, int] = {}
    for record in records:
        end, application = end_of(record), record.application
        if end is None or record.state not in (State.CONFIRMED, State.ALLOTTED):
            continue
        product = application.product
        match application.code:
            case Code.SUBSCRIPTION | Code.INITIAL_SUBSCRIPTION:
                held[product] = held.get(product, 0) + end.units
            case Code.REDEMPTION:
                held[product] = held.get(product, 0) - application.volume
            case Code.CONVERSION:
                target = application.target_product
                held[product] = held.get(product, 0) - application.volume
                held[target] = held.get(target, 0) + end.units
    return held


async def _units(issuer: LocalLink, summary: IssuerSummary) -> dict[str, Units]:
    held: dict[str, int] = {}
    after = ""
    while True:
        query = HoldingsQuery(after=after, limit=HOLDINGS_PAGE)
        page = await patiently(lambda query=query: issuer.call("holdings", query, Holdings))  # type: ignore[misc]
        for holding in page.items:
            held[holding.product] = held.get(holding.product, 0) + holding.units
        after = page.next
        if not after:
            break
    return {item.product: Units(item.units_in, item.units_out, held.get(item.product, 0)) for item in summary.products}


async def _anchors(look: Look) -> list[Anchored]:
    found: list[Anchored] = []
    for issuer in (ISSUER, OTHER):
        start = 0
        while True:
            arguments: dict[str, Value] = {"bank": BANK, "issuer": issuer, "start": start, "limit": ANCHORS_PAGE}
            page = msgspec.convert(await look.chain.client.query("evidence", "anchors", arguments), list[_AnchorEntry])
            found += [Anchored(issuer, item.root, item.round_number, item.count, item.status) for item in page]
            start += len(page)
            if len(page) < ANCHORS_PAGE:
                break
    return found


def _written(script: Script, records: Sequence[OrderRecord]) -> dict[str, tuple[str, int]]:
    """Write the type-04 file that answers the file, read it back, and return what it says."""
    serials = {item.serial for item in script.applications}
    answered = [
        (record.application, record.confirmation)
        for record in records
        if record.application.serial in serials and record.confirmation is not None
    ]
    date = f"{answered[0][1].date:08d}" if answered else "20000101"
    with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
        path = Path(folder) / "confirmations.txt"
        path.write_bytes(write(confirmation_file(script.file.header, answered, date=date)))
        confirmations = [confirmation_of(record) for record in read_path(path).records]
    return {item.serial: (item.reason, item.amount if item.is_accepted else 0) for item in confirmations}


def _verify(look: Look, document: dict[str, object]) -> tuple[str, str]:
    """Return what the offline check says of a disclosed order, and of the same with a higher amount."""

    def check(item: object) -> str:
        disclosure = decode_disclosure_untrusted(msgspec.json.encode(item))
        try:
            return verify_disclosure(disclosure, look.consortium.genesis).status
        except PeerError as error:
            return error.code

    application = document["application"]
    altered = {**application, "amount": application["amount"] + 1} if isinstance(application, dict) else {}
    return check(document), check({**document, "application": altered})


async def _search(look: Look, records: Sequence[OrderRecord], document: dict[str, object]) -> Search:
    """Look for what bank and issuer exchanged in what third parties' nodes have left, and in the bank's own answers."""
    random = Random(0)
    sent = [record for record in records if record.root]
    chosen = random.sample(sent, min(MARKED_ORDERS, len(sent)))
    chosen += [record for record in sent if record.application.investor][:MARKED_ORDERS]
    markers = {name: forms for record in chosen for name, forms in _markers(record).items()}
    if isinstance(salt := document.get("salt"), str):
        markers["salt"] = forms_of(bytes.fromhex(salt.removeprefix("0x")))
    trace_bytes = 0

    def traces() -> "list[tuple[str, bytes]]":
        nonlocal trace_bytes
        found = [trace for name in THIRD_PARTIES for trace in look.consortium.traces(name)]
        trace_bytes = sum(len(data) for _, data in found)
        return found

    for name in THIRD_PARTIES:
        await look.consortium.kill(name)
    leaks = await trio.to_thread.run_sync(lambda: find(markers, [("all", b"\n".join(data for _, data in traces()))]))
    if leaks:
        leaks = find({name: markers[name] for name in leaks}, traces())
    for name in THIRD_PARTIES:
        await look.consortium.start(name)
    own = [("own", msgspec.json.encode(chosen)), ("disclosed", msgspec.json.encode(document))]
    return Search(len(markers), len(find(markers, own)), leaks, trace_bytes)


def _markers(record: OrderRecord) -> dict[str, frozenset[bytes]]:
    application, confirmation = record.application, record.confirmation
    texts = {
        "serial": application.serial,
        "account": application.ta_account,
        "transaction account": application.transaction_account,
        "name": application.investor.name if application.investor else "",
        "certificate": application.investor.certificate_number if application.investor else "",
        "confirmation": confirmation.ta_serial if confirmation else "",
    }
    return {f"{name} {text}": forms_of(text) for name, text in texts.items() if len(text) >= TEXT_MIN}


async def _seals(look: Look) -> dict[str, tuple[int, bytes]]:
    """Return each node's newest seal, once they agree or after a while."""
    names = list(look.consortium.urls)
    height = await look.chain.height_at(names[0])

    async def ask() -> dict[str, tuple[int, bytes]]:
        seals = {
            name: await look.chain.seal_at(name, f"cooperation/product/{PRODUCT}", height_min=height) for name in names
        }
        return {name: (seal.height, seal.root) for name, seal in seals.items()}

    return await _agree(ask)


async def _agree(ask: Callable[[], Awaitable[dict[str, T]]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for _ in range(AGREE_ATTEMPTS):
        found = await ask()
        if len(set(found.values())) == 1:
            break
        await trio.sleep(AGREE_PAUSE_S)
    return found
