"""Gateways for tests: real programs, sockets, vaults and chain; only the channel between their nodes is a double.

:class:`Wire` keeps in memory what two nodes keep on disk: it takes a message once for an id, brings it to the other
side, and keeps it there until that side is done with it. It can hold messages back, alter them, and refuse.
"""

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import trio

from consensus.ledger.codec import Value
from consensus.ledger.cooperation import FIRST_ANSWER, agreement_hash, terms_hash
from consensus.ledger.errors import StorageError
from consensus.ledger.genesis import Account, Activation, Genesis, GenesisValidator, Organisation
from consensus.ledger.keys import PrivateKey, Purpose
from consensus.ledger.transaction import Call, Transaction, make_call
from contracts.runtime.execution import Executor
from contracts.runtime.registry import Registry
from services.agency.gateway import Gateway, GatewaySettings, serve
from services.agency.gateway_store import Store
from services.agency.interfaces import (
    AnswerSubmit,
    Done,
    Next,
    OrdersSubmit,
    OrdersSubmitted,
    OutcomesNext,
    PackageArrived,
    PackageOutcome,
    PackagesNext,
)
from services.agency.orders import Application, Confirmation, Investor
from services.agency.packages import Answer, Package, make_answer
from services.client.answers import bytes_of, hex_of
from services.client.client import Client, open_client
from services.client.errors import Refused
from services.client.keystore import Signer
from services.local.link import LocalLink
from services.local.service import LocalService
from services.local.service import serve as serve_local
from services.local.vault import open_vault
from tests.client.support import SoloNode, running
from tests.node.support import GENESIS_TIME_MS, Consortium

NOW_MS = GENESIS_TIME_MS + 1_000
BANK, ISSUER, OTHER = "bank-a", "issuer-c", "issuer-f"
INTERFACE, OTHER_INTERFACE = "C-FUNDS", "F-FUNDS"
PRODUCT = "000198"
NODES = {BANK: "node-0", ISSUER: "node-1", OTHER: "node-2", "keeper": "node-3"}
ROLES = {BANK: ["sales"], ISSUER: ["issuer"], OTHER: ["issuer"], "keeper": ["permission"]}
BUSINESS = {name: PrivateKey.from_secret(5_000 + number) for number, name in enumerate(NODES)}
CHANNEL = {name: PrivateKey.from_secret(6_000 + number) for number, name in enumerate(NODES)}
WAIT_S = 20
REGISTRY = Registry.shipped()
"""Loaded once for all worlds: they follow each other in one thread."""


def make_consortium() -> Consortium:
    """Return one whose organisations have a node and an account each."""
    contracts = REGISTRY.newest()
    vote_keys = {node: PrivateKey.from_secret(1_000 + number) for number, node in enumerate(NODES.values())}
    account_keys = {name: PrivateKey.from_secret(2_000 + number) for number, name in enumerate(NODES)}
    genesis = Genesis(
        name="agency",
        time_ms=GENESIS_TIME_MS,
        organisations=[Organisation(name, ["bank"], "") for name in NODES],
        validators=[
            GenesisValidator(node, name, vote_keys[node].public.compressed.hex()) for name, node in NODES.items()
        ],
        accounts=[Account(name, name, key.public.compressed.hex(), ROLES[name]) for name, key in account_keys.items()],
        contracts=[Activation(item.name, item.version, item.code_hash.hex()) for item in contracts],
    )
    return Consortium(genesis, vote_keys, account_keys)


CONSORTIUM = make_consortium()


def signer(name: str) -> Signer:
    """Return the account of an organisation."""
    return Signer.of(name, CONSORTIUM.account_keys[name])


class TestClock:
    """A clock that goes when it is told to."""

    __test__ = False

    def __init__(self) -> None:
        self.time_ms = NOW_MS

    def now_ms(self) -> int:
        return self.time_ms


# -- the channel -------------------------------------------------------------------------------------------


class _Send(msgspec.Struct):
    channel: str
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    payload: str


class _Receive(msgspec.Struct, rename="camel"):
    after: int
    wait_ms: int
    limit: int


class _DoneParams(msgspec.Struct):
    position: int


class _None(msgspec.Struct):
    pass


@dataclass
class _Item:
    position: int
    channel: str
    number: int
    payload: bytes
    id: str
    code: str

    def json(self) -> dict[str, object]:
        kept = {"position": self.position, "channel": self.channel, "epoch": 1, "number": self.number}
        return {**kept, "payload": hex_of(self.payload), "id": self.id, "code": self.code}


@dataclass
class Side:
    """One node: what waits for its gateway, and which of its messages went out under which number."""

    inbox: list[_Item] = field(default_factory=list)
    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    received: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    def deliver(self, channel: str, payload: bytes, *, message_id: str = "", code: str = "") -> None:
        self.received += 1
        self.inbox.append(_Item(self.received, channel, self.received, payload, message_id, code))
        self.changed.set()
        self.changed = trio.Event()


class Wire:
    """All channels between the organisations' nodes."""

    def __init__(self) -> None:
        self.sides = {name: Side() for name in NODES}
        self.held: list[Callable[[], None]] = []
        self.is_holding = False
        self.is_connected = True
        self.refusal = ""
        self.posted: list[tuple[str, str, bytes]] = []
        """Sender, id and payload of every message that was taken."""

    def service(self, organisation: str) -> LocalService:
        """Return the owner socket's methods of an organisation's node."""
        side = self.sides[organisation]

        async def status(_params: _None) -> dict[str, object]:
            keys = {"channelKey": hex_of(CHANNEL[organisation].public.compressed)}
            chain = {"chainId": hex_of(CONSORTIUM.genesis.chain_id()), "height": 0}
            return {"node": NODES[organisation], "organisation": organisation, **keys, **chain}

        async def channels(_params: _None) -> list[object]:
            names = {"channel": f"{BANK}/{ISSUER}", "bank": BANK, "issuer": ISSUER, "phase": "open", "lastError": ""}
            sides = {"isBank": organisation == BANK, "peer": "", "connected": self.is_connected}
            counts = dict.fromkeys(("epoch", "waiting", "waitingBytes", "sent", "delivered", "received"), 0)
            return [{**names, **sides, **counts}]

        async def send(params: _Send) -> dict[str, int]:
            if self.refusal:
                raise Refused(self.refusal, "as the test wants")
            key = (params.channel, params.id)
            if key not in side.sent:
                side.sent[key] = len(side.sent) + 1
                self._carry(organisation, params.channel, params.id, bytes_of(params.payload))
            return {"epoch": 1, "number": side.sent[key]}

        async def receive(params: _Receive) -> dict[str, object]:
            with trio.move_on_after(params.wait_ms / 1000):
                while not any(item.position > params.after for item in side.inbox):
                    await side.changed.wait()
            found = [item.json() for item in side.inbox if item.position > params.after]
            return {"items": found[: params.limit]}

        async def done(params: _DoneParams) -> dict[str, object]:
            side.inbox = [item for item in side.inbox if item.position > params.position]
            return {}

        service = LocalService()
        service.add("owner_status", _None, status)
        service.add("owner_channels", _None, channels)
        service.add("owner_send", _Send, send)
        service.add("owner_receive", _Receive, receive, waits=True)
        service.add("owner_done", _DoneParams, done)
        return service

    def _carry(self, sender: str, channel: str, message_id: str, payload: bytes) -> None:
        self.posted.append((sender, message_id, payload))
        bank, _, issuer = channel.partition("/")
        receiver = self.sides[issuer if sender == bank else bank]
        if self.is_holding:
            self.held.append(lambda: receiver.deliver(channel, payload))
        else:
            receiver.deliver(channel, payload)

    def release(self) -> None:
        """Deliver what was held back, and hold no more."""
        self.is_holding = False
        for deliver in self.held:
            deliver()
        self.held.clear()


# -- the world ---------------------------------------------------------------------------------------------


class MemoryStore:
    """A store that dies at a write when told to: before it, or right after it."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.writes = 0
        self.deaths = 0
        self.dies_at = 0
        self.is_written = False
        """Whether the write it dies at reaches the disk."""

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def scan(
        self, prefix: bytes, start: bytes = b"", *, reverse: bool = False, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        if reverse:
            keys = [key for key in self.data if key.startswith(prefix) and (not start or key <= prefix + start)]
        else:
            keys = [key for key in self.data if key.startswith(prefix) and key >= prefix + start]
        return [(key, self.data[key]) for key in sorted(keys, reverse=reverse)[:limit]]

    async def write(self, batch: Iterable[tuple[bytes, bytes | None]]) -> None:
        await trio.lowlevel.checkpoint()
        self.writes += 1
        is_end = self.writes == self.dies_at
        if not is_end or self.is_written:
            for key, value in batch:
                if value is None:
                    self.data.pop(key, None)
                else:
                    self.data[key] = value
        if is_end:
            raise Killed()


class Killed(StorageError):
    """The program is no more."""

    def __init__(self) -> None:
        super().__init__("killed", "as the test wants")


class World:
    """A chain with a channel between bank-a and issuer-c, and gateways that are started and killed."""

    def __init__(self, folder: Path, node: SoloNode, client: Client) -> None:
        self.folder = folder
        self.node = node
        self.client = client
        self.wire = Wire()
        self.clock = TestClock()
        self.gateways: dict[str, Gateway] = {}
        """The programs themselves, by organisation, for what nobody hears of outside."""

    def settings(self, organisation: str) -> GatewaySettings:
        """Return what an organisation's gateway runs with."""
        home = self.folder / organisation
        return GatewaySettings(
            name=f"{organisation}-gateway",
            organisation=organisation,
            run=home / "run",
            data=home / "data",
            key_file=home / "vault.key",
            owner=home / "owner.sock",
            genesis=CONSORTIUM.genesis,
            nodes=(self.node.url,),
            account=signer(organisation),
            business=Signer.of(f"{organisation}-business", BUSINESS[organisation]),
        )

    @asynccontextmanager
    async def gateway(
        self,
        organisation: str,
        store: Store | None = None,
        *,
        business: PrivateKey | None = None,
        first_position: int = 0,
    ) -> AsyncIterator[LocalLink]:
        """Run a gateway for the time of the block; what its loops are about is given up at its end."""
        settings, stopping = self.settings(organisation), trio.Event()
        if business is not None:
            settings = replace(settings, business=Signer.of("business", business))
        async with LocalLink(settings.socket) as link, trio.open_nursery() as nursery:
            running = (self._serve, settings, store, first_position, stopping)
            self.gateways[organisation] = await nursery.start(*running)
            with ending(stopping) as failed:
                yield link
        failed.check()

    async def _serve(
        self,
        settings: GatewaySettings,
        store: Store | None,
        first_position: int,
        stopping: trio.Event,
        task_status: trio.TaskStatus[Gateway],
    ) -> None:
        run = partial(serve, now_ms=self.clock.now_ms, first_position=first_position, task_status=task_status)
        if store is not None:
            await run(settings, store, stopping)
            return
        async with open_vault(settings.data, settings.key_file) as vault:
            await run(settings, vault, stopping)

    async def call(self, who: str, method: str, contract: str = "cooperation", **arguments: Value) -> Value:
        """Call a contract as an organisation."""
        outcome = await self.client.call_many(signer(who), [make_call(contract, method, arguments)])
        return outcome.value()

    async def revoke(self) -> None:
        """Revoke the channel."""
        await self.call(BANK, "revoke_channel", bank=BANK, issuer=ISSUER, reason="as the test wants")

    async def set_up(self) -> None:
        """Register parties, interfaces and a product, and open the channel: few frames, and the node is believed."""
        product: dict[str, Value] = {"product": PRODUCT, "interface": INTERFACE, "product_type": "money-market"}
        product |= {"risk": 1, "currency": "CNY", "charge_basis_points": 0, "is_open": True}
        calls = {name: [_register_call(name)] for name in (BANK, ISSUER, OTHER)}
        for name, interface in ((ISSUER, INTERFACE), (OTHER, OTHER_INTERFACE)):
            place: dict[str, Value] = {"interface": interface, "node": NODES[name]}
            calls[name].append(make_call("cooperation", "set_interface", place))
        calls[ISSUER].append(make_call("cooperation", "set_product", product))
        nav: dict[str, Value] = {"product": PRODUCT, "date": 20_231_114, "nav": 10_000}
        calls[ISSUER].append(make_call("cooperation", "set_nav", nav))
        await self._submit([self.client.sign(signer(name), calls[name], sequence=0) for name in calls])
        apply, application = self._agreement(ISSUER)
        await self._submit([self.client.sign(signer(BANK), [apply], sequence=1)])
        opening = make_call("cooperation", "open_channels", {"application": application})
        await self._submit([self.client.sign(signer("keeper"), [opening], sequence=0)])

    async def _submit(self, transactions: Sequence[Transaction]) -> None:
        answers = await self.client.submit_many(transactions, wait_ms=10_000)
        assert [(answer.code, answer.failed_count) for answer in answers] == [("", 0)] * len(transactions)

    def _agreement(self, *issuers: str) -> tuple[Call, bytes]:
        """Return the bank's application for channels with these issuers, signed by all, and its id."""
        until_ms = NOW_MS + 3_600_000
        document = hashlib.sha256(b"paper").digest()
        number = f"2026-{'-'.join(issuers)}"
        facts = (number, BANK, [*issuers], document, GENESIS_TIME_MS, until_ms, 60_000)
        payload = agreement_hash(*facts)
        chain_id = self.client.chain_id
        signatures: dict[str, Value] = {
            name: BUSINESS[name].sign(Purpose.AGREEMENT, chain_id, payload) for name in (BANK, *issuers)
        }
        arguments: dict[str, Value] = {
            "number": number,
            "issuers": [*issuers],
            "document": document,
            "valid_from_ms": GENESIS_TIME_MS,
            "valid_until_ms": until_ms,
            "grace_ms": 60_000,
            "signatures": signatures,
        }
        return make_call("cooperation", "apply", arguments), payload

    async def agree(self, subject: str = f"product:{PRODUCT}", version: int = 1, **changes: Value) -> None:
        """Put terms in force between bank-a and issuer-c."""
        terms: dict[str, Value] = {
            "kinds": ["022", "024"],
            "ageMin": 18,
            "needsIdentity": True,
            "needsRegistration": True,
            "needsRiskMatch": True,
            "amountMin": 0,
            "amountMax": 0,
            **changes,
        }
        times = (GENESIS_TIME_MS, 2**50)
        payload = terms_hash(BANK, ISSUER, subject, version, terms, *times)
        chain_id = self.client.chain_id
        proposal = await self.call(
            BANK,
            "propose_terms",
            bank=BANK,
            issuer=ISSUER,
            subject=subject,
            terms=terms,
            effective_ms=times[0],
            expires_ms=times[1],
            signature=BUSINESS[BANK].sign(Purpose.TERMS, chain_id, payload),
        )
        signature = BUSINESS[ISSUER].sign(Purpose.TERMS, chain_id, payload)
        await self.call(ISSUER, "accept_terms", proposal=proposal, signature=signature)
        await self.call("keeper", "enact_terms", proposal=proposal)


def _register_call(name: str) -> Call:
    arguments: dict[str, Value] = {
        "node": NODES[name],
        "business_key": BUSINESS[name].public.compressed,
        "channel_key": CHANNEL[name].public.compressed,
    }
    return make_call("cooperation", "register_party", arguments)


@asynccontextmanager
async def client_of(node: SoloNode) -> AsyncIterator[Client]:
    """Give a client of a node whose clock stands still."""
    async with open_client(CONSORTIUM.genesis, [node.url], now_ms=lambda: NOW_MS) as client:
        yield client


class Failed:
    """What the body of a block failed with."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def ending(stopping: trio.Event) -> Iterator[Failed]:
    """Have what runs beside the block end in order, also where the block fails; that is raised afterwards."""
    failed = Failed()
    try:
        yield failed
    except Exception as error:
        failed.error = error
    stopping.set()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """Give a world with parties, interfaces, one product, and a channel of bank-a and issuer-c."""
    node = SoloNode(folder / "chain", CONSORTIUM, executor=Executor(REGISTRY))
    async with running(node), trio.open_nursery() as nursery, client_of(node) as client:
        found = World(folder, node, client)
        await found.set_up()
        stopping = trio.Event()
        for name in (BANK, ISSUER, OTHER):
            (folder / name).mkdir()
            owner = folder / name / "owner.sock"
            await nursery.start(serve_local, owner, found.wire.service(name), stopping)
        with ending(stopping) as failed:
            yield found
    failed.check()


# -- orders ------------------------------------------------------------------------------------------------


def application(number: int, *, interface: str = INTERFACE, serial: str = "", **changes: object) -> Application:
    """Return a subscription for 100.00 and ``number`` hundredths."""
    subscription = Application(
        serial=serial or f"A{number:08d}",
        code="022",
        interface=interface,
        product=PRODUCT,
        target_product="",
        ta_account=f"TA{number:010d}",
        transaction_account=f"T{number:08d}",
        distributor="996",
        target_distributor="",
        amount=10_000 + number,
        volume=0,
        currency="156",
        date=20_231_114,
        time=93_000,
        terms_version=1,
        is_warned=False,
        investor=None,
        fields={"BranchCode": "996"},
    )
    return msgspec.structs.replace(subscription, **changes)


def investor(number: int, *, risk_class: int = 3) -> Investor:
    """Return somebody grown up."""
    return Investor(f"holder {number}", "0", f"ID{number:016d}", 19_800_101, risk_class)


def confirmations_of(applications: Iterable[Application], *, is_final: bool = True) -> list[Confirmation]:
    """Confirm all, but what ends in 7 hundredths."""
    return [
        Confirmation(
            serial=item.serial,
            code=str(int(item.code) + 100),
            ta_serial=f"S{item.serial}",
            ta_account=item.ta_account,
            return_code="0000" if item.amount % 10 != 7 else "9999",
            reason="" if item.amount % 10 != 7 else "product_closed",
            amount=item.amount,
            volume=item.amount,
            nav=10_000,
            charge=0,
            date=20_231_115,
            is_final=is_final,
        )
        for item in applications
    ]


def package_of(arrived: PackageArrived) -> Package:
    """Return a package as it travelled."""
    return Package(
        arrived.bank,
        arrived.issuer,
        arrived.epoch,
        arrived.created_ms,
        arrived.root,
        arrived.signature,
        arrived.salts,
        arrived.applications,
    )


def answer_to(package: Package, *, key: PrivateKey = BUSINESS[ISSUER], previous: bytes = FIRST_ANSWER) -> Answer:
    """Return the answer that an issuer end would sign."""
    confirmations = confirmations_of(package.applications)
    return make_answer(key, CONSORTIUM.genesis.chain_id(), package, confirmations, previous=previous)


async def answer_next(issuer: LocalLink, after: int = 0) -> tuple[int, Answer]:
    """Play the issuer end for the next package; return its position and the answer."""
    page = await issuer.call("packages_next", Next(after, 10_000, 1), PackagesNext)
    arrived = page.items[0]
    answer = answer_to(package_of(arrived))
    await issuer.call("answer_submit", submit_of(answer), Done)
    return arrived.position, answer


def submit_of(answer: Answer) -> AnswerSubmit:
    """Return an answer as the issuer end hands it in."""
    return AnswerSubmit(
        answer.bank,
        answer.root,
        answer.round_number,
        answer.places,
        answer.outcome_root,
        answer.previous,
        answer.signature,
        answer.confirmations,
    )


async def submit(bank: LocalLink, *applications: Application, batch: str = "batch-1") -> OrdersSubmitted:
    """Hand in a batch."""
    return await bank.call("orders_submit", OrdersSubmit(batch, [*applications]), OrdersSubmitted)


async def outcomes(bank: LocalLink, count: int, after: int = 0) -> list[PackageOutcome]:
    """Return the next ``count`` news of a bank's gateway."""
    found: list[PackageOutcome] = []
    with trio.fail_after(WAIT_S):
        while len(found) < count:
            place = found[-1].position if found else after
            found += (await bank.call("outcomes_next", Next(place, 10_000, 8), OutcomesNext)).items
    return found
