"""Contracts that tests load: one that does many small things, and a shell around single functions."""

from textwrap import dedent, indent

PROBE = '''
"""A contract for tests."""

from typing import Annotated

import msgspec

from contracts.runtime.contract import AccountAddress, Amount, Context, Contract, Name, Revert, Value, method, query

TABLE = {"one": 1, "two": 2}
Small = Annotated[int, msgspec.Meta(ge=0)]


class Probe(Contract):
    """Does small things."""

    name = "probe"
    version = 1

    @method
    def put(self, context: Context, key: str, value: Value) -> None:
        """Store a value."""
        context.state.put(key, value)

    @method
    def add(self, context: Context, key: Name, amount: int = 1) -> int:
        """Add to a number; return the new one."""
        total = (context.state.get(key) or 0) + amount
        context.state.put(key, total)
        context.emit("added", key=key, amount=amount)
        return total

    @method
    def drop(self, context: Context, key: str) -> None:
        context.state.delete(key)

    @method
    def add_and_fail(self, context: Context, key: Name) -> None:
        self.add(context, key)
        raise Revert("no_thanks", "never")

    @method
    def break_down(self, context: Context, kind: str) -> Value:
        self.add(context, "broken")
        if kind == "key":
            return {}["x"]
        if kind == "zero":
            return 1 // 0
        if kind == "type":
            return "a" + 1
        if kind == "attribute":
            return context.nothing
        if kind == "name":
            return unheard_of
        if kind == "value":
            return int("x")
        if kind == "index":
            return [][0]
        if kind == "big":
            return 2**63
        if kind == "object":
            return [context]
        if kind == "cycle":
            rows = []
            rows.append(rows)
            return rows
        if kind == "surrogate":
            return chr(0xD800)
        if kind == "code":
            raise Revert("Not A Code")
        if kind == "code type":
            raise Revert(["x"])
        if kind == "long code":
            raise Revert("x" * 65)
        if kind == "event surrogate":
            context.emit(chr(0xD800))
        if kind == "call":
            context.call([], "x")
        if kind == "event":
            context.emit("")
        if kind == "keys":
            context.state.put("k", {1: 2})
        if kind == "changed":
            rows = {"a": 1}
            for key in rows:
                rows[key + "x"] = 1
        return None

    @method
    def through(self, context: Context, key: Name, catch: bool) -> Value:
        """Call itself through the runtime; the effects of a call that reverts are undone."""
        before = context.call("probe", "add", key=key)
        if not catch:
            context.call("probe", "add_and_fail", key=key)
        try:
            context.call("probe", "add_and_fail", key=key)
        except Revert as error:
            return [before, error.code, context.query("probe", "read", key=key), context.via]
        return None

    @method
    def forever(self, context: Context) -> None:
        context.call("probe", "forever")

    @method
    def who(self, context: Context) -> Value:
        return [context.caller, context.via, context.height, context.time_ms, context.uptime_ms, context.call_index]

    @method
    def loud(self, context: Context, count: int, size: int) -> None:
        for _ in range(count):
            context.emit("noise", data=bytes(size))

    @method
    def spin(self, context: Context, turns: int) -> int:
        total = 0
        for number in range(turns):
            total += number
        return total

    @method
    def typed(
        self,
        context: Context,
        to: AccountAddress,
        amount: Amount,
        names: list[Name],
        flags: dict[str, bool],
        small: Small | None = None,
        memo: str = "",
        data: bytes = b"",
    ) -> int:
        """Take every kind of argument.

        Returns the amount.
        """
        return amount

    @query
    def read(self, context: Context, key: str) -> Value:
        """Return what is stored."""
        return context.state.get(key)

    @query
    def page(self, context: Context, prefix: str, start: str = "", limit: int = 100) -> Value:
        return [[key, value] for key, value in context.state.scan(prefix, start, limit)]

    @query
    def table(self, context: Context) -> Value:
        return {**TABLE}

    @query
    def naughty(self, context: Context) -> None:
        context.state.put("x", 1)

    @query
    def sly(self, context: Context) -> None:
        context.call("probe", "add", key="x")

    @query
    def lane(self, context: Context, address: AccountAddress, lane: bytes) -> Value:
        record = context.lane(address, lane)
        return None if record is None else [record.next, record.last_id, record.status, record.height]

    @query
    def name_of(self, context: Context, name: str) -> Value:
        address = context.account_named(name)
        account = None if address is None else context.account(address)
        return None if account is None else [address, account.name, account.organisation]

    @query
    def digest(self, context: Context, parts: list[Value]) -> bytes:
        return context.hash(*parts)
'''


def contract_of(body: str, *, name: str = "sample", arguments: str = "", helpers: str = "") -> str:
    """Return the source of a contract whose only method ``run`` has this body."""
    inner = indent(dedent(body).strip(), " " * 8)
    return (
        "from contracts.runtime.contract import Context, Contract, Revert, Value, method\n\n"
        f"{dedent(helpers).strip()}\n\n"
        "class Sample(Contract):\n"
        f'    name = "{name}"\n'
        "    version = 1\n\n"
        "    @method\n"
        f"    def run(self, context: Context{', ' if arguments else ''}{arguments}) -> Value:\n"
        f"{inner}\n"
    )
