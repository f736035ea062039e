"""Gathers the facts of the stream demo: from the service party, the proven state of the chain, its events."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import trio

from consensus.ledger.errors import PeerError
from services.client.answers import EventPage
from services.demo.agency_till import patiently
from services.demo.stream_facts import Facts, Session
from services.demo.stream_network import StreamConsortium
from services.demo.stream_story import ITERATIONS, Played, Story
from services.demo.stream_till import Till
from services.stream.setup import PAYERS, SERVICE, UNIT

AGREE_ATTEMPTS, AGREE_PAUSE_S = 100, 0.1
PAGE_EVENTS = 500
UPLOADS = frozenset({"settled", "claimed"})
"""Events of what a service party brings to the chain."""


@dataclass(frozen=True, slots=True)
class Balances:
    """What everybody has of the unit, by identity, and how much of it there is."""

    held: dict[str, int]
    supply: int


@dataclass(frozen=True, slots=True)
class Look:
    """Who is asked for facts."""

    consortium: StreamConsortium
    till: Till

    async def balances(self) -> Balances:
        """Return proven balances as of the newest block."""
        height = await self._height()
        names = [account.name for account in self.consortium.genesis.accounts]
        held = {}
        for name in names:
            address = self.till.signer(name).address.hex()
            held[name] = sum(_pair(await self._state(f"tokens/balance/{UNIT}/{address}", height)))
        return Balances(held, _amount(await self._state(f"tokens/supply/{UNIT}", height)))

    async def facts(self, story: Story, before: Balances) -> Facts:
        """Ask everyone."""
        uploads = await self._uploads()
        sessions = [await self._session(item, uploads[f"0x{item.stream.hex()}"]) for item in story.played]
        after = await self.balances()
        change = {name: after.held[name] - before.held[name] for name in after.held}
        payer = sum(change.pop(name) for name in PAYERS)
        service = change.pop(SERVICE)
        return Facts(
            sessions=sessions,
            wanted_iterations=ITERATIONS,
            payer=payer,
            service=service,
            others=sum(map(abs, change.values())),
            supply=(before.supply, after.supply),
            answers=story.answers,
            accidents=story.accidents,
            seals=await self._seals(),
        )

    async def _session(self, played: Played, uploads: int) -> Session:
        shown = await self.till.shown(played.stream)
        if shown is None:
            raise PeerError("bad_answer", f"the service party knows no stream {played.stream.hex()}")
        checked = await self.till.exported(played.stream)
        record = await self.till.record(played.stream)
        height = await self._height()
        return Session(
            title=played.title,
            mode=played.mode,
            price=played.terms.price,
            step_max=played.terms.step_max,
            iterations=shown.count,
            due=shown.due,
            units=shown.units,
            uploads=uploads,
            reason=shown.reason,
            is_burned=played.is_burned,
            is_verified=checked.iteration.due == shown.due,
            record=record,
            escrow=_amount(await self._state(f"tokens/escrow/{UNIT}/streams/{played.stream.hex()}", height)),
        )

    async def _uploads(self) -> Counter[str]:
        """Return how many transactions have settled or claimed each stream, by its id in hex."""
        found: Counter[str] = Counter()
        place: dict[str, object] = {"fromHeight": 0}
        while True:
            params = {"contract": "streams", "limit": PAGE_EVENTS, **place}
            page = await patiently(partial(self.till.client.request, "events_query", params, EventPage))
            found.update(str(item.data["stream"]) for item in page.items if item.name in UPLOADS)
            if page.done:
                return found
            place = {"cursor": page.cursor}

    async def _height(self) -> int:
        return max([await self.till.chain.height_at(name) for name in self.consortium.urls])

    async def _state(self, key: str, height: int) -> object:
        return (await patiently(partial(self.till.client.state, key, height_min=height))).value

    async def _seals(self) -> dict[str, tuple[int, bytes]]:
        """Return each node's newest sealed state, once all have the same, or after a while."""
        height, found = await self._height(), {}
        for _ in range(AGREE_ATTEMPTS):
            for name in self.consortium.urls:
                seal = await self.till.chain.seal_at(name, f"tokens/supply/{UNIT}", height_min=height)
                found[name] = (seal.height, seal.root)
            if len(set(found.values())) == 1:
                break
            await trio.sleep(AGREE_PAUSE_S)
        return found


def _amount(value: object) -> int:
    """Return an amount in state, 0 where there is none."""
    if value is None:
        return 0
    if not isinstance(value, int):
        raise PeerError("bad_answer", f"{value!r} is no amount")
    return value


def _pair(value: object) -> tuple[int, int]:
    """Return [available, reserved] of a balance record, zeros where there is none."""
    match value:
        case None:
            return 0, 0
        case [int() as available, int() as reserved]:
            return available, reserved
    raise PeerError("bad_answer", f"{value!r} is no balance")
