"""A platform on a node that decides alone, with the real contract, a real vault, and a bank in memory."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.genesis import GenesisValidator
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.payees import consent_hash, content_hash, merchant_hash, removal_hash
from consensus.ledger.transaction import make_call
from contracts.runtime.execution import Executor
from node.driver import Commit
from services.accounts.port import AccountSystem
from services.client.client import Client
from services.client.keystore import Signer
from services.local.service import LocalService
from services.local.vault import open_vault
from services.payee.codes import CodeTerms, make_code
from services.payee.identity import identity_text
from services.payee.interfaces import Acquiring, Draft, DraftRecord, Pay, Payment, PutRecord, RecordPut, Rotate, Rotated
from services.payee.platform import Platform, make_platform
from tests.client.support import NOW_MS, SoloNode, client_of, running
from tests.contracts.domain.payees import ACCOUNT_KEYS, MEASUREMENT, identity, key, payee_genesis
from tests.contracts.domain.support import shared_registry
from tests.node.support import GENESIS_TIME_MS, Consortium, extend
from tests.payee.resolving import environment_keys
from tests.settlement.parts import Bank, Clock, DirectLink

T = TypeVar("T")

MONEY = 1_000_000
MARKER = "Zephyr-Quillon-4711"
"""Stands in what only the platform may know."""
ACQUIRING = Acquiring(account="merchant-m", name=f"Tea {MARKER}", currency="CNY", terminal=f"t-{MARKER}")
HOUR_MS = 3_600_000


def _consortium() -> Consortium:
    vote_keys = {f"node-{number}": PrivateKey.from_secret(1_000 + number) for number in range(4)}
    owners = ("bank-a", "issuer-c", "permission", "user-b")
    genesis = msgspec.structs.replace(
        payee_genesis(shared_registry()),
        time_ms=GENESIS_TIME_MS,
        validators=[
            GenesisValidator(name, owner, item.public.compressed.hex())
            for (name, item), owner in zip(vote_keys.items(), owners, strict=True)
        ],
    )
    return Consortium(genesis, vote_keys, dict(ACCOUNT_KEYS))


CONSORTIUM = _consortium()


class QuietNode(SoloNode):
    """Follows each block by a quiet one, so that what was written can be proven."""

    def decide(self) -> None:
        super().decide()
        self.pass_ms(10)

    def pass_ms(self, ms: int) -> None:
        """Let so much block time pass, by a block without transactions."""
        candidate = extend(self.chain, self.store, self.consortium, [], step_ms=ms)
        self.backend.on_commit(Commit(candidate, self.consortium.certify(candidate)))


class PlatformWorld:
    """A node, its clients, merchants, environments, a bank; platforms are started in it."""

    def __init__(self, folder: Path, node: QuietNode, client: Client) -> None:
        self.folder = folder
        self.node = node
        self.client = client
        self.clock = Clock(NOW_MS)
        self.bank = Bank(self.clock, user_b=MONEY, user_e=MONEY, merchant_m=0, shop=0)
        self.merchants = {identity(number): key(100 + number) for number in range(10)}

    @property
    def chain_id(self) -> bytes:
        return self.client.chain_id

    def pass_ms(self, ms: int) -> None:
        """Let time pass, for everybody."""
        self.node.pass_ms(ms)
        self.clock.ms += ms

    async def call(self, name: str, method: str, /, **arguments: Value) -> None:
        """Call the contract as somebody's account."""
        signer = Signer.of(name, CONSORTIUM.account_keys[name])
        (await self.client.call_many(signer, [make_call("payees", method, arguments)])).check()

    async def begin(self, *environments: str) -> None:
        """Allow the measurement and register environments."""
        await self.call("permission", "allow_measurement", measurement=MEASUREMENT, note="")
        for name in environments or ("bank-a", "issuer-c"):
            await self.register_environment(name)

    async def register_environment(self, name: str) -> None:
        keys = environment_keys(name)
        await self.call(
            name,
            "register_environment",
            name=name,
            exchange_key=keys.exchange.public,
            signing_key=keys.signing.public.compressed,
            measurement=MEASUREMENT,
        )

    async def register(self, *numbers: int) -> None:
        """Register merchants."""
        for number in numbers:
            who = identity(number)
            signer = self.merchants[who]
            signature = self.sign(who, merchant_hash(who, signer.public.compressed))
            compressed = signer.public.compressed
            await self.call("merchant-m", "register_merchant", identity=who, key=compressed, signature=signature)

    def sign(self, who: bytes, payload: bytes) -> bytes:
        """Sign as a merchant."""
        return self.merchants[who].sign(Purpose.PAYEE_MERCHANT, self.client.chain_id, payload)

    async def remove_as_merchant(self, server: str, version: int, number: int = 0) -> None:
        who = identity(number)
        signature = self.sign(who, removal_hash(who, server, version))
        await self.call(
            "merchant-m", "remove_record", identity=who, server=server, version=version, signature=signature
        )

    async def consent(self, number: int = 0) -> None:
        who = identity(number)
        signature = self.sign(who, consent_hash(who, 1, True))
        await self.call("merchant-m", "set_consent", identity=who, number=1, is_given=True, signature=signature)

    @asynccontextmanager
    async def platform(
        self,
        server: str = "wallet-p",
        *,
        accounts: AccountSystem | None = None,
        client: Client | None = None,
        folder: Path | None = None,
    ) -> AsyncIterator["Owner"]:
        """Run a platform's desks for the time of the block, over its vault."""
        home = folder or self.folder / server
        async with open_vault(home / "data", home / "vault.key") as vault:
            signer = Signer.of(server, CONSORTIUM.account_keys[server])
            made = await make_platform(server, vault, client or self.client, signer, accounts or self.bank, self.clock)
            yield Owner(self, made)

    def code(
        self,
        terms: CodeTerms | None = None,
        *,
        number: int = 0,
        is_signed: bool | None = None,
        key_part: bytes | None = None,
    ) -> str:
        """Return a merchant's code; one for an order is signed."""
        who = identity(number)
        has_key = is_signed if is_signed is not None else terms is not None and terms.order is not None
        signer = self.merchants[who] if has_key else None
        return make_code(who, terms, chain_id=self.client.chain_id, key=signer, key_part=key_part).text

    def order_code(self, order: str = "R-1", amount: int = 1_250, *, lives_ms: int = HOUR_MS, number: int = 0) -> str:
        """Return a merchant's code for one order."""
        expires_ms = self.node.chain.head.header.time_ms + lives_ms
        return self.code(CodeTerms(amount=amount, currency="CNY", order=order, expires_ms=expires_ms), number=number)


class Owner:
    """Who owns a platform, and its payers."""

    def __init__(self, world: PlatformWorld, platform: Platform) -> None:
        self.world = world
        self.platform = platform
        service = LocalService()
        platform.add_methods(service)
        self.link = DirectLink(service)

    async def begin(self, *environments: str) -> Rotated:
        """Register the platform, and begin an epoch."""
        await self.platform.epochs.make_registered()
        return await self.link.call("rotate", Rotate(list(environments or ("bank-a", "issuer-c"))), Rotated)

    async def draft(
        self,
        acquiring: Acquiring = ACQUIRING,
        *,
        number: int = 0,
        is_shareable: bool = False,
        code_part: bytes = b"",
    ) -> Draft:
        asked = DraftRecord(identity_text(identity(number)), acquiring, is_shareable, code_part)
        return await self.link.call("draft_record", asked, Draft)

    def signed(self, draft: Draft, *, number: int = 0) -> PutRecord:
        """Return a draft with the merchant's signature."""
        return signed(self.world, draft, number=number)

    async def add(
        self,
        acquiring: Acquiring = ACQUIRING,
        *,
        number: int = 0,
        is_shareable: bool = False,
        code_part: bytes = b"",
    ) -> RecordPut:
        draft = await self.draft(acquiring, number=number, is_shareable=is_shareable, code_part=code_part)
        return await self.link.call("put_record", self.signed(draft, number=number), RecordPut)

    async def pay(
        self,
        payload: str,
        *,
        payer: str = "user-b",
        payee: str = "merchant-m",
        amount: int | None = None,
        order: str | None = None,
    ) -> Payment:
        return await self.platform.payments.pay(Pay(payload, payer, payee, amount, order))


def signed(world: PlatformWorld, draft: Draft, *, number: int = 0) -> PutRecord:
    """Return a draft with a merchant's signature."""
    who = identity(number)
    payload = content_hash(who, draft.server, draft.version, draft.commitment, draft.is_shareable)
    return PutRecord(draft.identity, draft.commitment, world.sign(who, payload))


@asynccontextmanager
async def platform_world(folder: Path, *, merchants: int = 1) -> AsyncIterator[PlatformWorld]:
    """Give a world with environments and merchants."""
    node = QuietNode(folder / "node", CONSORTIUM, executor=Executor(shared_registry()))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(node))
        client = await stack.enter_async_context(client_of(node, genesis=CONSORTIUM.genesis))
        world = PlatformWorld(folder, node, client)
        with trio.fail_after(60):
            await world.begin()
            await world.register(*range(merchants))
        yield world
