"""The whole rights system as real processes: nodes, message centre, business server, rights servers; and its load."""

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx
import msgspec
import trio

from cli.rights_plan import plan_of
from node.network import local, programs
from node.network.homes import LocalNetwork
from node.network.programs import Program
from node.network.trial import trial_network
from services.client.client import Client
from services.client.errors import Unreachable
from services.local.files import read_service, write_service
from services.messages.config import CenterFile, read_token
from services.messages.link import Link, open_link
from services.messages.port import Stats
from services.messages.store import Record
from services.rights.config import ServerFile
from services.rights.setup import set_up
from tests.network.rights_model import CAMPAIGN, FIGURES, Model, Post
from tests.network.support import client_of, pass_time, signer

CENTER, BUSINESS, SERVER, SECOND = "rights-center", "rights-business", "rights-server", "rights-server-2"
POLL_MS = 50
BACKLOG_MAX = 300
"""Posters wait while more than this waits at the centre, so that intake goes on through all accidents."""
LIST_MAX = 40
"""How many events one request posts at most."""
POSTERS = 3
REPEATED = 0.05
"""Of so many lists all events are posted twice."""
LATER = {"store_full", "intake_full", "center_unreachable"}
"""Refusals after which the same is posted again."""
QUEUE = {"lease_ms": 1_000, "attempts_max": 14}
DRAIN_S = 60
FIND_KEYS_MAX = 1_000


@dataclass
class System:
    """The running system, its accidents and its load."""

    network: LocalNetwork
    client: Client
    center: Link
    url: str
    programs: dict[str, Program]
    waiting: int = 0
    posted: Counter[str] = field(default_factory=Counter)
    """How often each event was taken."""

    async def stats(self) -> Stats:
        """Return how the queue stands, once the centre answers."""
        while True:
            try:
                stats = await self.center.stats()
            except Unreachable:
                await pass_time(POLL_MS)
            else:
                self.waiting = stats.waiting
                return stats

    async def ended(self) -> int:
        """Return how many events have ended by now."""
        stats = await self.stats()
        return stats.done + stats.refused + stats.dead

    async def more_ended(self, count: int) -> None:
        """Wait until so many more have ended."""
        wanted = await self.ended() + count
        with trio.fail_after(DRAIN_S):
            while await self.ended() < wanted:
                await pass_time(POLL_MS)

    async def more_posted(self, count: int) -> None:
        """Wait until so many more have been taken."""
        wanted = self.posted.total() + count
        with trio.fail_after(DRAIN_S):
            while self.posted.total() < wanted:
                await pass_time(POLL_MS)

    async def drained(self) -> bool:
        """Wait until nothing waits, and tell if that came."""
        with trio.move_on_after(DRAIN_S):
            while (await self.stats()).waiting:
                await pass_time(POLL_MS)
            return True
        return False

    async def applied(self, users: Iterable[str]) -> int:
        """Return how many events have taken effect on the chain: all entries of these users' histories."""
        return sum([await self._entries(user) for user in users])

    async def _entries(self, user: str) -> int:
        answer = await self.client.query("rights", "balance", {"user": user})
        assert isinstance(answer, dict)
        count = answer["count"]
        assert isinstance(count, int)
        return count

    async def kill(self, name: str) -> None:
        """End a program with SIGKILL."""
        await programs.kill(self.programs[name])

    async def start(self, name: str) -> None:
        """Start a program and wait until it is ready."""
        await programs.start(self.network, [self.programs[name]])

    def freeze(self, *names: str) -> None:
        """Freeze programs, or nodes."""
        for name in names:
            if name in self.programs:
                programs.freeze(self.programs[name])
            else:
                local.freeze(self.network, name)

    def resume(self, *names: str) -> None:
        """Wake them again."""
        for name in names:
            if name in self.programs:
                programs.resume(self.programs[name])
            else:
                local.resume(self.network, name)

    async def watch(self) -> None:
        """Keep ``waiting`` up to date until cancelled."""
        while True:
            await self.stats()
            await pass_time(POLL_MS)

    async def post(self, stories: Sequence[Sequence[Post]], random: Random) -> None:
        """Post all events, several at a time and some twice; what is not taken is posted until it is."""
        async with trio.open_nursery() as nursery:
            for poster in range(POSTERS):
                own = list(interleaved(stories[poster::POSTERS], random))
                nursery.start_soon(self._post, own, Random(random.random()))

    async def _post(self, posts: list[Post], random: Random) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=15) as http:
            while posts:
                size = random.randrange(1, LIST_MAX)
                part, posts = posts[:size], posts[size:]
                for _ in range(1 + (random.random() < REPEATED)):
                    await self._post_until_taken(http, part)

    async def _post_until_taken(self, http: httpx.AsyncClient, part: list[Post]) -> None:
        while part:
            while self.waiting > BACKLOG_MAX:
                await pass_time(POLL_MS)
            part = await self._taken(http, part)

    async def _taken(self, http: httpx.AsyncClient, part: list[Post]) -> list[Post]:
        """Post a list once and return what of it has to be posted again."""
        try:
            response = await http.post("/events", json=part)
        except httpx.TransportError:
            await pass_time(POLL_MS)
            return part
        if response.status_code == 503:
            await pass_time(POLL_MS)
            return part
        assert response.status_code == 202, response.text
        later = []
        for post, answer in zip(part, response.json(), strict=True):
            if "error" not in answer:
                self.posted[answer["eventId"]] += 1
            else:
                assert answer["error"]["code"] in LATER, answer
                later.append(post)
        return later

    async def records(self, keys: Sequence[str]) -> list[Record | None]:
        """Return what the centre says of events."""
        found: list[Record | None] = []
        for start in range(0, len(keys), FIND_KEYS_MAX):
            found += await self.center.find(keys[start : start + FIND_KEYS_MAX])
        return found

    async def faults(self, model: Model) -> list[str]:
        """Return everything that is not as it must be, once all is drained."""
        stats, found = await self.stats(), []
        keys = sorted(model.ends)
        for key, record in zip(keys, await self.records(keys), strict=True):
            if record is None:
                found.append(f"{key} is lost")
            elif record.state is not model.ends[key]:
                found.append(f"{key} is {record.state} and not {model.ends[key]}: {record.detail}")
        if stats.done + stats.refused + stats.dead != len(keys):
            found.append(f"{stats.done} done, {stats.refused} refused, {stats.dead} dead of {len(keys)}")
        for user, balance in sorted(model.balances.items()):
            answer = await self.client.query("rights", "balance", {"user": user})
            assert isinstance(answer, dict)
            wrong = {name: answer[name] for name in FIGURES if answer[name] != balance[name]}
            if wrong:
                found.append(f"{user} has {wrong}")
            if answer["count"] != model.entries[user]:
                found.append(f"{user} has {answer['count']} entries and not {model.entries[user]}")
        totals = await self.client.query("rights", "totals", {})
        assert isinstance(totals, dict)
        if any(totals[name] != model.totals[name] for name in FIGURES):
            found.append(f"totals are {totals} and not {model.totals}")
        return found


def interleaved(stories: Sequence[Sequence[Post]], random: Random) -> Iterator[Post]:
    """Yield the events of all stories mixed, each story's own in their order."""
    waiting, active = [list(story) for story in reversed(stories)], []
    while waiting or active:
        while waiting and len(active) < 12:
            active.append(waiting.pop())
        story = active[random.randrange(len(active))]
        yield story.pop(0)
        if not story:
            active.remove(story)


@asynccontextmanager
async def running_system(
    folder: Path, *, store: str = "embedded", rate_per_s: float, is_strict: bool = False
) -> AsyncIterator[System]:
    """Give the whole system on four nodes, a campaign open; all processes end with the block."""
    async with trial_network(folder) as trial, client_of(trial.network) as client:
        network = trial.network
        shop = signer(network, "shop")
        (await client.call(shop, "rights", "open_campaign", {"campaign": CAMPAIGN, "quota": 10**9})).check()
        plan = plan_of(network, rate_per_s=rate_per_s, store=store, is_strict=is_strict)
        prepared = await set_up(client, shop, plan)
        center_home, _, server_home = prepared.homes
        write_service(center_home, msgspec.structs.replace(read_service(center_home, CenterFile), queue=QUEUE))
        found = {program.name: program for program in programs.find_programs(network, "rights")}
        running = list(found.values())
        second_home = server_home.with_name(SECOND)
        shutil.copytree(server_home, second_home)
        write_service(second_home, msgspec.structs.replace(read_service(second_home, ServerFile), name=SECOND))
        found[SECOND] = Program(SECOND, second_home, found[SERVER].command, None)
        token = read_token(center_home, "token", "token")
        try:
            await programs.start(network, running)
            async with open_link(prepared.center, token=token, name="test") as center:
                yield System(network, client, center, prepared.business_url, found)
        finally:
            with trio.CancelScope(shield=True):
                for program in found.values():
                    await programs.kill(program)
