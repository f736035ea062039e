"""The one way in which the sales end's records change, see :mod:`services.agency.records` for what stands where.

Everything that follows from one event is one synced write: what was judged stands as a plan before it is submitted,
blocks replace their plan and window, and an answer is written with the position of the news that brought it. So an
order is in exactly one place, whatever dies.
"""

from collections.abc import Iterator, Sequence

import msgspec
import trio

from consensus.ledger.errors import InvariantError, LocalError
from services.agency.orders import ACCOUNT_CODES, Application, Code, Confirmation
from services.agency.records import (
    BLOCK_ORDERS_MAX,
    WINDOW_MAX,
    BlockHead,
    Head,
    Placed,
    Plan,
    Records,
    Round,
    SourceRow,
    Store,
    Waiting,
    WindowRow,
    Write,
    added,
    decode_row,
    encode_row,
    key_of,
    numbered,
    order_key,
)
from services.agency.sales_interface import Profile, State
from services.agency.window import DUPLICATE, FOREIGN


class SalesStore(Records):
    """The sales end's records. Each write is by itself: they follow each other, and reading waits for none."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._writing = trio.Lock()

    async def take(self, source: str, creator: str, applications: Sequence[Application]) -> SourceRow | None:
        """Add a new source to the window; return what is known of it where it is not new.

        Raises:
            LocalError: ``window_full``.
        """
        async with self._writing:
            if (known := self.known_source(source)) is not None:
                return known
            head = self.head
            if self.window_count() + len(applications) > WINDOW_MAX:
                raise LocalError("window_full", f"{WINDOW_MAX:,} orders wait in the window")
            number = head.sources + 1
            writes: list[Write] = [(b"f" + self._store.blind("source", source), numbered(number))]
            writes.append((b"q" + numbered(number), encode_row(SourceRow(source, len(applications), []))))
            rows = head.rows
            for first in range(0, len(applications), BLOCK_ORDERS_MAX):
                rows += 1
                part = [*applications[first : first + BLOCK_ORDERS_MAX]]
                writes.append((b"w" + numbered(rows), encode_row(WindowRow(number, first, creator, part))))
            totals = added(head.totals, {key_of(State.NEW, ""): (len(applications), amount_of(applications))})
            await self._commit(writes, msgspec.structs.replace(head, sources=number, rows=rows, totals=totals))
            return None

    def window(self) -> Iterator[Waiting]:
        """Yield the rows that no plan has, the oldest first."""
        planned = {number for _, plan in self.plans() for number in plan.rows}
        for key, value in self._store.scan(b"w"):
            number = int.from_bytes(key[1:], "big")
            if number not in planned:
                yield Waiting(number, decode_row(value, WindowRow))

    def plans(self) -> Iterator[tuple[int, Plan]]:
        """Yield the plans that are not done, the oldest first."""
        for key, value in self._store.scan(b"p"):
            yield int.from_bytes(key[1:], "big"), decode_row(value, Plan)

    def rows_of(self, plan: Plan) -> list[WindowRow]:
        """Return a plan's rows."""
        return [self._must(b"w" + numbered(number), WindowRow) for number in plan.rows]

    async def keep_plan(self, plan: Plan) -> None:
        """Keep what was judged; its number is that of its first row."""
        await self._store.write([(b"p" + numbered(plan.rows[0]), encode_row(plan))])

    async def settle(self, number: int, plan: Plan, blocks: Sequence[tuple[bytes, str, Sequence[Placed]]]) -> None:
        """Replace a plan and its rows by blocks: (root, issuer, orders); an empty root for what was dropped."""
        async with self._writing:
            head = self.head
            writes: list[Write] = [(b"p" + numbered(number), None)]
            writes += [(b"w" + numbered(row), None) for row in plan.rows]
            totals, count, sources = dict(head.totals), head.blocks, dict[int, SourceRow]()
            for root, issuer, orders in blocks:
                count += 1
                state = State.PENDING if root else State.DROPPED
                block = BlockHead(root, issuer, state, "", [], {})
                block = self._with_totals(block, orders, None, None)
                writes += [(b"k" + numbered(count), encode_row([*orders])), (b"t" + numbered(count), encode_row(block))]
                if root:
                    writes.append((b"r" + root, numbered(count)))
                for place, order in enumerate(orders):
                    # A serial that was taken before stays where it is.
                    if order.reason != DUPLICATE:
                        key = order_key(self._store, order.application.serial, is_foreign=order.reason == FOREIGN)
                        writes.append((key, numbered(count) + place.to_bytes(4, "big")))
                for source, own in block.sources.items():
                    row = sources.get(source) or self._must(b"q" + numbered(source), SourceRow)
                    sources[source] = msgspec.structs.replace(row, blocks=[*row.blocks, count])
                    moved = (sum(count for count, _ in own.values()), sum(amount for _, amount in own.values()))
                    totals = added(added(totals, own), {key_of(State.NEW, ""): (-moved[0], -moved[1])})
            writes += [(b"q" + numbered(source), encode_row(row)) for source, row in sources.items()]
            packages = head.packages + sum(1 for root, _, _ in blocks if root)
            await self._commit(writes, msgspec.structs.replace(head, blocks=count, packages=packages, totals=totals))

    async def answered(
        self,
        position: int,
        root: bytes,
        round_number: int,
        places: Sequence[int],
        confirmations: Sequence[Confirmation],
    ) -> None:
        """Record the confirmations of a round, and what they say of the issuer's users."""
        async with self._writing:
            number, block = self._block_of(root)
            if self._store.get(b"c" + numbered(number) + bytes([round_number])) is not None:
                await self._skip(position)
                return
            orders = self._must(b"k" + numbered(number), list[Placed])
            round_ = Round([*places], [*confirmations])
            writes: list[Write] = [(b"c" + numbered(number) + bytes([round_number]), encode_row(round_))]
            first = round_ if round_number == 0 else self._round(number, 0)
            second = round_ if round_number == 1 else self._round(number, 1)
            before = block
            if round_number == 0 or block.state == State.CONFIRMED:
                block = msgspec.structs.replace(block, state=State.CONFIRMED.value, code="")
            block = self._with_totals(block, orders, first, second)
            new = 0
            for place, confirmation in zip(places or range(len(orders)), confirmations, strict=True):
                change = self._profile_change(orders[place].application, confirmation, block.issuer)
                if change is not None:
                    new += (change[1] is not None) - (self._store.get(change[0]) is not None)
                    writes.append(change)
            await self._commit_block(position, number, before, block, writes, profiles=new)

    async def refused(self, position: int, root: bytes, code: str) -> None:
        """Record that a package will never be taken."""
        async with self._writing:
            number, block = self._block_of(root)
            if block.state != State.PENDING:
                await self._skip(position)
                return
            orders = self._must(b"k" + numbered(number), list[Placed])
            refused = msgspec.structs.replace(block, state=State.REJECTED.value, code=code)
            await self._commit_block(position, number, block, self._with_totals(refused, orders, None, None), [])

    async def anchored(self, position: int, root: bytes, round_number: int, transaction_id: bytes, height: int) -> None:
        """Record where a round of a package stands on the chain."""
        async with self._writing:
            number, block = self._block_of(root)
            anchors = [item for item in block.anchors if item[0] != round_number] + [
                (round_number, transaction_id, height)
            ]
            anchored = msgspec.structs.replace(block, anchors=sorted(anchors))
            await self._commit_block(position, number, block, anchored, [])

    async def skip(self, position: int) -> None:
        """Go past news that change nothing."""
        async with self._writing:
            await self._skip(position)

    async def _skip(self, position: int) -> None:
        await self._commit([], msgspec.structs.replace(self.head, position=position))

    async def put_profiles(self, profiles: Sequence[Profile]) -> int:
        """Add or replace profiles, and return how many were new."""
        async with self._writing:
            writes: dict[bytes, bytes] = {}
            for profile in profiles:
                writes[self._profile_key(profile.ta_account, profile.issuer)] = msgspec.msgpack.encode(profile)
            new = sum(1 for key in writes if self._store.get(key) is None)
            changed = msgspec.structs.replace(self.head, profiles=self.head.profiles + new)
            await self._commit([*writes.items()], changed)
            return new

    def _profile_change(self, application: Application, confirmation: Confirmation, issuer: str) -> Write | None:
        """Return what an account confirmation changes of the bank's profiles."""
        if not confirmation.is_accepted or application.code not in ACCOUNT_CODES:
            return None
        key = self._profile_key(confirmation.ta_account, issuer)
        if application.code == Code.CLOSE_ACCOUNT:
            return key, None
        if application.investor is None:
            return None
        return key, msgspec.msgpack.encode(Profile(confirmation.ta_account, issuer, application.investor))

    def _block_of(self, root: bytes) -> tuple[int, BlockHead]:
        number = self._store.get(b"r" + root)
        if number is None:
            raise InvariantError("news of a package that is not ours")
        return int.from_bytes(number, "big"), self._must(b"t" + number, BlockHead)

    async def _commit_block(
        self, position: int, number: int, before: BlockHead, block: BlockHead, writes: list[Write], *, profiles: int = 0
    ) -> None:
        totals = dict(self.head.totals)
        for own in before.sources.values():
            totals = added(totals, {key: (-count, -amount) for key, (count, amount) in own.items()})
        for own in block.sources.values():
            totals = added(totals, own)
        writes = [*writes, (b"t" + numbered(number), encode_row(block))]
        count = self.head.profiles + profiles
        head = msgspec.structs.replace(self.head, position=position, totals=totals, profiles=count)
        await self._commit(writes, head)

    async def _commit(self, writes: list[Write], head: Head) -> None:
        await self._store.write([*writes, (b"h", encode_row(head))])
        self.head = head


def amount_of(applications: Sequence[Application]) -> int:
    return sum(application.amount for application in applications)
