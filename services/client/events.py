"""Events followed for ever: each once and in order, also over reconnects and other nodes."""

from collections import deque

from services.client.answers import EventItem, EventPage
from services.client.client import Client
from services.client.connection import Parameters
from services.client.errors import Unreachable

PAGE_EVENTS = 500


class Events:
    """An endless iterator of events, of one contract and one name where these are given.

    Store an event's ``cursor`` together with its effect and give it back after a restart, and nothing is
    lost or doubled. The node that is asked is believed. While no node answers, it waits.
    """

    def __init__(
        self, client: Client, *, contract: str = "", name: str = "", cursor: str | None = None, from_height: int = 0
    ) -> None:
        self._client = client
        self._selection = {key: value for key, value in (("contract", contract), ("name", name)) if value}
        self._place: Parameters = {"fromHeight": from_height} if cursor is None else {"cursor": cursor}
        self._waiting: deque[EventItem] = deque()
        self._is_done = False

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> EventItem:
        while not self._waiting:
            if self._is_done:
                await self._client.wait_block_after(str(self._place["cursor"]))
            await self._read_page()
        return self._waiting.popleft()

    async def _read_page(self) -> None:
        try:
            page = await self._client.request(
                "events_query", {**self._selection, "limit": PAGE_EVENTS, **self._place}, EventPage
            )
        except Unreachable:
            await self._client.pause()
            return
        self._waiting.extend(page.items)
        self._place, self._is_done = {"cursor": page.cursor}, page.done
