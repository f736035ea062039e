"""Methods as typed functions: parameters are structs, the OpenRPC document follows from them. Pure.

A method takes its parameters by name or by place, in the order in which the struct declares them.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar, cast

import msgspec

from consensus.ledger.errors import InvariantError, PeerError
from consensus.ledger.ids import ADDRESS_BYTES, HASH_BYTES
from node.rpc.protocol import Json

OPENRPC_VERSION = "1.3.2"
API_VERSION = "0.1.0"
TEXT_CHARACTERS_MAX = 256

Height = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
HashHex = Annotated[str, msgspec.Meta(max_length=2 + 2 * HASH_BYTES, pattern=f"^0x[0-9a-f]{{{2 * HASH_BYTES}}}$")]
AddressHex = Annotated[
    str, msgspec.Meta(max_length=2 + 2 * ADDRESS_BYTES, pattern=f"^0x[0-9a-f]{{{2 * ADDRESS_BYTES}}}$")
]
Hex = Annotated[str, msgspec.Meta(pattern="^0x([0-9a-f]{2})*$")]
NameText = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARACTERS_MAX)]
Cursor = Annotated[str, msgspec.Meta(max_length=40, pattern="^[0-9]{1,16}:[0-9]{1,10}$")]
"""``height:index``: the place after which a page or a subscription goes on."""


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Base of all parameter structs."""


class NoParams(Params, frozen=True):
    """For methods without parameters."""


P = TypeVar("P", bound=Params)
C = TypeVar("C")
Handler = Callable[[C, P], Awaitable[Json]]


@dataclass(frozen=True, slots=True)
class Method(Generic[C]):
    """A method: its parameters' struct and the function that answers it in a context ``C``."""

    name: str
    params: type[Params]
    handler: Callable[[C, Params], Awaitable[Json]]
    summary: str

    async def call(self, context: C, params: list[Json] | dict[str, Json]) -> Json:
        """Convert the parameters and run the method.

        Raises:
            PeerError: ``invalid_params``, or what the method raises.
        """
        return await self.handler(context, convert_untrusted(self.params, params))


class MethodTable(Generic[C]):
    """The methods of a server, by name."""

    def __init__(self) -> None:
        self.methods: dict[str, Method[C]] = {}

    def add(self, name: str, params: type[P]) -> Callable[[Handler[C, P]], Handler[C, P]]:
        """Declare the decorated function as a method; its docstring is the summary in OpenRPC."""

        def register(handler: Handler[C, P]) -> Handler[C, P]:
            if name in self.methods:
                raise InvariantError(f"method {name} is declared twice")
            untyped = cast(Callable[[C, Params], Awaitable[Json]], handler)
            self.methods[name] = Method(name, params, untyped, inspect.getdoc(handler) or "")
            return handler

        return register

    def joined(self, other: "MethodTable[C]") -> "MethodTable[C]":
        """Return a table with the methods of both."""
        table: MethodTable[C] = MethodTable()
        table.methods = {**self.methods, **other.methods}
        return table

    def find_untrusted(self, name: str) -> Method[C]:
        """Return a method.

        Raises:
            PeerError: ``method_not_found``.
        """
        method = self.methods.get(name)
        if method is None:
            raise PeerError("method_not_found", f"there is no method {name}; rpc.discover lists them")
        return method

    def openrpc(self) -> dict[str, Json]:
        """Return the OpenRPC document of all methods."""
        structs = [method.params for method in self.methods.values()]
        schemas, components = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
        methods: list[Json] = []
        for name in sorted(self.methods):
            method = self.methods[name]
            schema = cast(dict[str, Json], components[method.params.__name__])
            methods.append(_describe(method, schema))
        return {
            "openrpc": OPENRPC_VERSION,
            "info": {"title": "Hansa node", "version": API_VERSION},
            "methods": methods,
            "components": {"schemas": cast(Json, components)} if schemas else {},
        }


def convert_untrusted(kind: type[P], params: list[Json] | dict[str, Json]) -> P:
    """Return parameters as their struct.

    Raises:
        PeerError: ``invalid_params`` naming the parameter.
    """
    if isinstance(params, list):
        names = kind.__struct_encode_fields__
        if len(params) > len(names):
            raise PeerError("invalid_params", f"at most {len(names)} parameters are expected")
        params = dict(zip(names, params, strict=False))
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise PeerError("invalid_params", str(error)) from None


def _describe(method: Method[C], schema: Mapping[str, Json]) -> dict[str, Json]:
    properties = cast(dict[str, Json], schema.get("properties", {}))
    required = cast(list[Json], schema.get("required", []))
    summary, _, description = method.summary.partition("\n")
    described: dict[str, Json] = {
        "name": method.name,
        "summary": summary,
        "paramStructure": "either",
        "params": [
            {"name": name, "required": name in required, "schema": properties[name]}
            for name in method.params.__struct_encode_fields__
        ],
        "result": {"name": "result", "schema": {}},
    }
    if description.strip():
        described["description"] = description.strip()
    return described
