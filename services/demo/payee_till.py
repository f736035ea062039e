"""What everybody of the payee demo does: merchants sign, platforms write records, payers read codes and pay.

What was changed on the chain is resolved once it is sealed; so whoever changes something waits until all nodes can
prove it.
"""

import io
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from PIL import Image, ImageFilter

from consensus.ledger.codec import Value
from consensus.ledger.errors import InvariantError
from consensus.ledger.payees import CONTRACT, Mode, merchant_key
from services.accounts.link import AccountsLink, open_accounts
from services.client.client import Client, open_client
from services.client.keystore import Signer
from services.demo.agency_till import patiently
from services.demo.chain import Chain, open_chain
from services.demo.payee_network import CARRIER, PERMISSION, Doors, PayeeConsortium
from services.local.link import LocalLink
from services.payee import merchants
from services.payee.codes import CodeTerms, ReadCode, make_code
from services.payee.identity import identity_text
from services.payee.images import image_bytes, read_content
from services.payee.interfaces import (
    RECORDS_PAGE_MAX,
    Acquiring,
    Draft,
    DraftRecord,
    NoParams,
    Pay,
    Payment,
    PlatformStatus,
    PutRecord,
    RecordPut,
    RecordRow,
    Records,
    RecordsQuery,
    RemoveRecord,
    Rotate,
    Rotated,
    Trust,
)
from services.payee.link import PlatformLink, open_platform
from services.payee.merchants import Merchant, Merchants
from services.payee.offers import checked
from services.payee.payer import Looked, Payer, delegated_signer, read_payload
from services.payee.resolver import QuerySigner, Resolver

PHOTO_DEGREES, PHOTO_BLUR_PIXELS = 23, 1.2
"""How a payer holds its camera."""
WAIT_MS = 10_000


class Till:
    """Everybody's hands; made by :func:`open_till`."""

    def __init__(
        self,
        consortium: PayeeConsortium,
        chain: Chain,
        accounts: AccountsLink,
        owners: Mapping[str, LocalLink],
        payers: Mapping[str, PlatformLink],
        readers: Mapping[str, Client],
        alone: Mapping[str, Client],
    ) -> None:
        """Take the doors: ``readers`` by node, each with the others behind it, ``alone`` without them."""
        self.chain = chain
        self.accounts = accounts
        self._consortium = consortium
        self._owners = owners
        self._payers = payers
        self._readers = readers
        self.alone = alone
        self.running = list(consortium.urls)
        """The nodes that run."""
        self._signers: dict[str, QuerySigner] = {}
        self._merchants = Merchants(consortium.merchants)

    @property
    def client(self) -> Client:
        """The chain's client, for whoever writes to it."""
        return self.chain.client

    def signer(self, name: str) -> Signer:
        """Return the signer of an identity."""
        return Signer.of(name, self._consortium.key(name))

    # -- merchants -------------------------------------------------------------------------------------

    async def new_merchant(self, name: str, *, is_split: bool = False) -> Merchant:
        """Make a merchant with a random identity and register it; codes of one that is split have a part of a key."""
        merchant = self._merchants.make(name, self._consortium.passphrase, is_split=is_split)
        await merchants.register(self.client, self.signer(CARRIER), merchant)
        self._merchants.note_registered(name)
        return merchant

    async def consent(self, merchant: Merchant, *, is_given: bool) -> None:
        """Let others' clients see the merchant's shareable records, or no more."""
        _, height = await merchants.set_consent(self.client, self.signer(CARRIER), merchant, is_given=is_given)
        await self.proven(merchant, height or 0)

    def code(self, merchant: Merchant, *, is_signed: bool = False, **terms: object) -> ReadCode:
        """Return a code of a merchant, signed if there is an order; terms as for ``CodeTerms``."""
        key = merchant.key if is_signed or terms.get("order") else None
        return make_code(
            merchant.identity,
            CodeTerms(**terms),  # type: ignore[arg-type]
            chain_id=self.client.chain_id,
            key=key,
            key_part=merchant.key_part,
        )

    # -- platforms -------------------------------------------------------------------------------------

    async def add(
        self, server: str, merchant: Merchant, acquiring: Acquiring, *, is_shareable: bool = False
    ) -> RecordPut:
        """Have a platform write its record of a merchant, which signs what it has seen.

        Raises:
            InvariantError: the platform would have had something else signed.
        """
        params = DraftRecord(identity_text(merchant.identity), acquiring, is_shareable, merchant.key_part or b"")
        draft = await self._owners[server].call("draft_record", params, Draft)
        if checked(draft, merchant.key_part) != acquiring or draft.server != server:
            raise InvariantError(f"{server} would have something else signed than was agreed on")
        signature = merchant.sign_content(
            self.client.chain_id, server, draft.version, draft.commitment, is_shareable=draft.is_shareable
        )
        put = await self._owners[server].call(
            "put_record", PutRecord(params.identity, draft.commitment, signature), RecordPut
        )
        await self.proven(merchant, put.height)
        return put

    async def remove(self, server: str, merchant: Merchant) -> None:
        """Have a platform part from a merchant."""
        put = await self._owners[server].call(
            "remove_record", RemoveRecord(identity_text(merchant.identity)), RecordPut
        )
        await self.proven(merchant, put.height)

    async def rotate(self, server: str, environments: Sequence[str], merchant: Merchant) -> Rotated:
        """Have a platform begin a new epoch, for these environments alone."""
        rotated = await self._owners[server].call("rotate", Rotate([*environments]), Rotated)
        await self.proven(merchant, await self._height())
        return rotated

    async def trust(self, server: str, environments: Sequence[str], merchant: Merchant) -> None:
        """Have a platform give more environments its epoch's key."""
        await self._owners[server].call("trust", Trust([*environments]), PlatformStatus)
        await self.proven(merchant, await self._height())

    async def status(self, server: str) -> PlatformStatus:
        """Return how a platform stands."""
        return await patiently(partial(self._owners[server].call, "status", NoParams(), PlatformStatus))

    async def own_records(self, server: str) -> list[RecordRow]:
        """Return a platform's own records, in the clear: the owner's eyes only."""
        found: list[RecordRow] = []
        after = ""
        while True:
            query = RecordsQuery(after, RECORDS_PAGE_MAX)
            page = await patiently(partial(self._owners[server].call, "records", query, Records))
            found += page.items
            after = page.next
            if not after:
                return found

    async def call(self, account: str, method: str, **arguments: Value) -> str:
        """Call the contract by an account, and return the receipt's code, "" for a success."""
        outcome = await self.client.call(self.signer(account), CONTRACT, method, arguments)
        return "" if outcome.is_ok else outcome.receipts[0].code

    async def allow(self, measurement: bytes, merchant: Merchant, *, is_allowed: bool) -> None:
        """Put a measurement on the allow-list, or strike it off."""
        arguments: dict[str, Value] = {"measurement": measurement}
        method = "allow_measurement" if is_allowed else "disallow_measurement"
        if is_allowed:
            arguments["note"] = "the demo allows it again"
        outcome = (await self.client.call(self.signer(PERMISSION), CONTRACT, method, arguments)).check()
        await self.proven(merchant, outcome.height)

    async def proven(self, merchant: Merchant, height: int) -> None:
        """Wait until every node that runs can prove the state at a height."""
        for name in self.running:
            await self.chain.seal_at(name, merchant_key(merchant.identity), height_min=height)

    async def _height(self) -> int:
        return max([await self.chain.height_at(name) for name in self.running])

    # -- payers ----------------------------------------------------------------------------------------

    async def payer(self, server: str, first: str, *, is_alone: bool = False) -> Payer:
        """Return a payer's client of a platform, which asks a node first, or that one alone."""
        if server not in self._signers:
            self._signers[server] = await patiently(partial(delegated_signer, self._payers[server], server))
        reader = (self.alone if is_alone else self._readers)[first]
        resolver = Resolver(reader, self._signers[server], now_ms=clock_ms, random_bytes=os.urandom)
        return Payer(
            resolver, self._payers[server], chain_id=self.client.chain_id, now_ms=clock_ms, random_bytes=os.urandom
        )

    async def look(
        self, server: str, payload: str, *, first: str, mode: Mode = Mode.TARGET, is_alone: bool = False
    ) -> Looked:
        """Read a code and resolve it; nothing is paid."""
        payer = await self.payer(server, first, is_alone=is_alone)
        code = read_payload(payload)
        return await payer.look(code, asked=payer.query(code, mode))

    async def pay(
        self, server: str, payload: str, *, first: str, payer: str, amount: int | None = None, order: str | None = None
    ) -> Payment:
        """Read a code, resolve it, and pay; programs may be away meanwhile."""
        client = await self.payer(server, first)
        looked = await client.look(read_payload(payload))
        asked = client.terms(looked, payer=payer, amount=amount, order=order)
        return await patiently(partial(client.pay, looked, asked, wait_ms=WAIT_MS))

    async def pay_blindly(self, server: str, asked: Pay) -> Payment:
        """Ask a platform for a payment without looking at the code: the platform has to."""
        return await self._payers[server].pay(asked)


def photograph(payload: str) -> str:
    """Print a code as PNG, take a picture of it, turned and a little blurred, and return what is read from that."""
    with Image.open(io.BytesIO(image_bytes(payload, "png"))) as printed:
        photo = printed.convert("RGB").rotate(PHOTO_DEGREES, expand=True, fillcolor="white")
    taken = io.BytesIO()
    photo.filter(ImageFilter.GaussianBlur(PHOTO_BLUR_PIXELS)).save(taken, "JPEG")
    return read_content(taken.getvalue(), "photo")


def clock_ms() -> int:
    """Return the time, ms UTC."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_till(consortium: PayeeConsortium, doors: Doors) -> AsyncIterator[Till]:
    """Give a till at the doors of a running system."""
    urls = consortium.urls
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        chain = await enter(open_chain(consortium.genesis, urls, list(urls)))
        accounts = await enter(open_accounts(doors.accounts_url, token=doors.accounts_token))
        owners = {name: await enter(LocalLink(path)) for name, path in doors.platforms.items()}
        payers = {name: await enter(open_platform(door.url, token=door.token)) for name, door in doors.payers.items()}
        readers = {}
        for name in urls:
            order = [name, *(other for other in urls if other != name)]
            readers[name] = await enter(open_client(consortium.genesis, [urls[other] for other in order]))
        alone = {name: await enter(open_client(consortium.genesis, [url])) for name, url in urls.items()}
        yield Till(consortium, chain, accounts, owners, payers, readers, alone)
