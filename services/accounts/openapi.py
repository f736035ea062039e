"""The account system's HTTP side as an OpenAPI 3.1 document, made from the types that decode and encode."""

from functools import cache
from inspect import cleandoc
from typing import Any, Final, NamedTuple

import msgspec

from services.accounts import wire
from services.accounts.port import AccountId, Order
from services.local.pages import Failed

_REF: Final = "#/components/schemas/{name}"
_ABOUT: Final = (
    "An account system with **simulated money**; every answer has the header `hansa-money: simulated`. Amounts are "
    "integers in 1/100 of the currency, times UTC in ms. An operation is known by its event and its name: the same "
    "again gives the first answer, so repeating a request is always safe."
)
_ERRORS: Final = {
    "400": "`malformed` JSON or a field that stands twice, or `bad_field` with the field's path",
    "401": "`bad_token`: needs the bearer token",
    "403": "`unknown_host`: a `Host` that the program does not know, or an `Origin` of another site",
    "404": "`unknown_account`, `unknown_path`, `no_fault_panel`",
    "408": "`timeout`: the body did not arrive in time",
    "409": "`account_exists`, `operation_conflict` of a deposit, `overflow`, `too_many_faults`",
    "413": "`too_large`",
    "415": "`bad_media_type`: the body must be application/json",
    "503": "`intake_full`, `database_unreachable`: what was done is unknown; the same again is safe",
}


class _Call(NamedTuple):
    verb: str
    path: str
    summary: str
    answer: type[wire.Said]
    body: Any = None
    query: type[wire.Asked] | None = None


CALLS: Final = (
    _Call("post", "/orders", "Do one order or up to 1,000, each for itself", wire.Answered, Order | wire.Orders),
    _Call("post", "/standings", "What was done for events", wire.Stood, wire.Events),
    _Call("get", "/entries", "Postings of a time", wire.Posted, query=wire.EntriesQuery),
    _Call("get", "/accounts", "Accounts by their ids", wire.AccountPage, query=wire.AccountsQuery),
    _Call("post", "/accounts", "Open accounts, all or none", wire.AccountPage, wire.Openings),
    _Call("get", "/accounts/{account}", "One account", wire.AccountSaid),
    _Call("post", "/accounts/{account}/deposits", "Bring simulated money in", wire.AccountSaid, wire.Deposit),
    _Call("post", "/accounts/{account}/freeze", "Neither pay nor be paid", wire.AccountSaid),
    _Call("post", "/accounts/{account}/unfreeze", "Pay and be paid again", wire.AccountSaid),
    _Call("get", "/faults", "The faults in force", wire.FaultsSaid),
    _Call("post", "/faults", "Misbehave in more ways, where that is allowed", wire.FaultsSaid, wire.Faults),
    _Call("delete", "/faults", "Behave", wire.FaultsSaid),
    _Call("get", "/money", "What all accounts hold together, per currency", wire.Money),
    _Call("get", "/healthz", "Whether the books can be read", wire.Ready),
)
"""What is answered in JSON; ``/metrics`` is text for Prometheus."""


@cache
def document() -> bytes:
    """Return the OpenAPI document, as JSON."""
    types = [kind for call in CALLS for kind in (call.answer, call.body, call.query) if kind is not None]
    types += [Failed, AccountId]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    for component in components.values():
        component["description"] = cleandoc(component.get("description", ""))
    shown = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.verb] = _operation(call, shown, components)
    content = {
        "openapi": "3.1.0",
        "info": {"title": "Hansa account system", "version": "1", "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }
    # The end of a text, as Python writes it in patterns and as JSON Schema does.
    return msgspec.json.encode(content).replace(rb"\\Z", b"$")


def _operation(call: _Call, shown: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    failures = {
        status: {"description": about, "content": _content(shown[id(Failed)])} for status, about in _ERRORS.items()
    }
    answer = {"200": {"description": call.summary, "content": _content(shown[id(call.answer)])}}
    parameters = []
    if "{account}" in call.path:
        parameters.append({"name": "account", "in": "path", "required": True, "schema": shown[id(AccountId)]})
    if call.query is not None:
        fields = components[call.query.__name__]["properties"]
        parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    operation = {"summary": call.summary, "parameters": parameters, "responses": answer | failures}
    if call.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(shown[id(call.body)])}
    return operation


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
