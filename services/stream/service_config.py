"""``service.toml`` of a service party, read once at start."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from consensus.ledger.streams import AMOUNT_MAX, OUTAGE_MS, WINDOW_MS_MAX, WINDOW_MS_MIN, Amount, Unit, What
from services.local.files import ServiceFile, Urls, genesis_at, resolved, signer_at, wrong
from services.local.urls import DatabaseName, database_url
from services.messages.config import Place, check_token, read_token, split_place

if TYPE_CHECKING:
    from services.stream.service import ServiceSettings

DATABASE_FILE = "streams.db"
Positive = Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
ModeName = Literal["service-first", "payment-first"]


class StreamServiceFile(ServiceFile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service party's file. Amounts in smallest units of ``unit``, times in ms.

    Args:
        listen: where payers call; ``token`` the file of what they show, "" for none on loopback alone.
        genesis, nodes, keys: the chain's document, RPC roots and the keystore.
        account: the key there that signs offers and sends claims; ``passphrase`` names the file.
        database, data: where the streams are kept; ``embedded`` is a file in ``data``.
        hosts: names beside loopback's that payers may use in Host and Origin.
        unit, what, price: what is paid in, what is metered, and what one of it costs.
        step_max: the most that may become due at once, and so be lost.
        deposit_min, deposit_max, fine_min, credit_max, modes: what an offer may say.
        window_ms, validity_ms, margin_ms, step_ms: see :class:`consensus.ledger.streams.Terms`.
        offer_ms: how long an offer is valid.
        meter: ``demo`` or the meter's HTTP root; asked every ``meter_ms`` at the most for each stream.
        owner: the owner's socket of the own node, where payers come over the private channel too; "" for none.
        watcher, watcher_token: HTTP root of a watcher that gets each stream's last iteration every ``watcher_ms``, and
            the file of what it asks for; "" for none.
        chain_ms: how often a stream is looked up on the chain, many streams more seldom.
    """

    program: Literal["stream-service"] = "stream-service"
    listen: Place
    token: str = ""
    genesis: str
    nodes: Urls
    keys: str
    passphrase: str = ""
    account: str
    database: DatabaseName = "embedded"
    data: str = "data"
    hosts: list[str] = msgspec.field(default_factory=list)
    unit: Unit
    what: What = "0.1 kWh"
    price: Positive = 8
    step_max: Positive = 40
    deposit_min: Positive = 1
    deposit_max: Positive = AMOUNT_MAX
    fine_min: Amount = 0
    credit_max: Amount = 0
    modes: Annotated[list[ModeName], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["service-first", "payment-first"]
    )
    window_ms: Annotated[int, msgspec.Meta(ge=WINDOW_MS_MIN, le=WINDOW_MS_MAX)] = 900_000
    validity_ms: Annotated[int, msgspec.Meta(ge=10_000, le=3_600_000)] = 600_000
    margin_ms: Annotated[int, msgspec.Meta(ge=1_000, le=3_000_000)] = 60_000
    step_ms: Annotated[int, msgspec.Meta(ge=100, le=3_600_000)] = 15_000
    offer_ms: Annotated[int, msgspec.Meta(ge=1_000, le=86_400_000)] = 600_000
    meter: str = "demo"
    meter_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 40
    owner: str = ""
    watcher: Annotated[str, msgspec.Meta(pattern=r"^(https?://[^/\s]{1,300}/?)?\Z")] = ""
    watcher_token: str = ""
    watcher_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 2_000
    chain_ms: Annotated[int, msgspec.Meta(ge=10, le=20_000)] = 1_000


def service_settings(home: Path, file: StreamServiceFile) -> "ServiceSettings":
    """Return what the service party runs with.

    Raises:
        LocalError: ``bad_config``, ``bad_address``, ``bad_genesis``, ``unknown_key``, ``wrong_passphrase``, ….
    """
    from services.stream.service import ServiceSettings

    host, port = split_place(file.listen)
    token = read_token(home, "token", file.token)
    check_token(home, file.listen, token)
    if file.step_max < file.price:
        raise wrong(home, "step_max", f"is below the price of one {file.what}: nothing could ever be supplied")
    if file.window_ms < file.validity_ms + file.margin_ms + OUTAGE_MS:
        least_ms = file.validity_ms + file.margin_ms + OUTAGE_MS
        raise wrong(home, "window_ms", f"is below {least_ms}: a deposit could leave before what is due is claimed")
    if file.margin_ms >= file.validity_ms:
        raise wrong(home, "margin_ms", "is not below validity_ms: no iteration would be valid for long enough")
    if file.deposit_min > file.deposit_max:
        raise wrong(home, "deposit_min", "is above deposit_max")
    return ServiceSettings(
        file=file,
        run=resolved(home, file.run),
        data=resolved(home, file.data),
        host=host,
        port=port,
        token=token,
        owner=resolved(home, file.owner) if file.owner else None,
        watcher_token=read_token(home, "watcher_token", file.watcher_token),
        database=database_url(home, file.database, f"{file.data}/{DATABASE_FILE}"),
        genesis=genesis_at(home, file.genesis),
        signer=signer_at(home, keys=file.keys, passphrase=file.passphrase, name=file.account),
    )
