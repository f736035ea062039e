"""The business server's HTTP side as an OpenAPI 3.1 document, made from the types that decode, and as a page."""

from functools import cache
from html import escape
from importlib.resources import files
from inspect import cleandoc
from string import Template
from typing import Any, Final, NamedTuple

import msgspec

from services.local.pages import Failed
from services.rights.answers import Followed, Taken
from services.rights.events import Id, Kind
from services.rights.requests import LIST_EVENTS_MAX, AnyEvent, Change, Order, Redemption

_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{name}"
_BUSY: Final = (
    "`store_full`, `intake_full`, `center_unreachable`, of a direct server `node_unreachable`, `node_timeout`, "
    "`outcome_unknown`, `pool_full`, `sender_full`: the same again after `Retry-After` seconds is safe"
)
_AWAY: Final = "`center_unreachable`, of a direct server `node_unreachable` or `node_timeout`"
_ANYWHERE: Final = {
    "403": "`unknown_host`: a `Host` that the server does not know, or an `Origin` of another site",
    "405": "`method_not_allowed`: the path knows the methods in `Allow`",
    "500": "`internal`: a fault of the server, which its log tells",
}
_TOKEN: Final = {"401": "`bad_token`: needs the bearer token"}
_POST_ERRORS: Final = {
    **_ANYWHERE,
    **_TOKEN,
    "400": "`malformed` JSON or a field that stands twice, or `bad_field` with the field's path",
    "408": "`timeout`: the body did not arrive in time",
    "409": "`event_conflict`: the event came before and said something else; of a direct server any refusal by the "
    "contract",
    "413": "`too_large`",
    "415": "`bad_media_type`: the body must be application/json",
    "503": _BUSY,
}
_CREATION_ERRORS: Final = {
    **_POST_ERRORS,
    "403": _ANYWHERE["403"] + "; `not_allowed`: another server opened the campaign",
    "404": "`unknown_campaign`",
    "409": "`campaign_closed`; " + _POST_ERRORS["409"],
}
_ERROR_HEADERS: Final = {
    "401": ("WWW-Authenticate", {"type": "string"}),
    "405": ("Allow", {"type": "string"}),
    "503": ("Retry-After", {"type": "integer", "description": "seconds"}),
}


class _Post(NamedTuple):
    operation: str
    body: Any
    summary: str
    errors: dict[str, str] = _POST_ERRORS


class _Get(NamedTuple):
    operation: str
    summary: str
    media_type: str
    schema: Any
    errors: dict[str, str]


_POSTS: Final = {
    "/orders": _Post("createOrders", Order, "An order was created; or a list of them", _CREATION_ERRORS),
    **{
        f"/orders/{{order}}/{kind.value}": _Post(
            f"{kind.value}Order", Change, f"An order was {done}, in whole or by amount"
        )
        for kind, done in ((Kind.CANCEL, "cancelled"), (Kind.COMPLETE, "completed"), (Kind.REFUND, "refunded"))
    },
    "/redemptions": _Post("redeem", Redemption, "A user redeems an amount, or items; or a list of such"),
    "/redemptions/{redemption}/reverse": _Post(
        "reverseRedemption", Change, "A redemption was reversed, in whole or by amount"
    ),
    "/events": _Post("postEvents", AnyEvent, "Events of any kind, one or a list", _CREATION_ERRORS),
}
_READY: Final = {"type": "object", "properties": {"ready": {"const": True}}, "required": ["ready"]}
_GETS: Final = {
    "/events/{kind}/{reference}/{number}": _Get(
        "followEvent",
        "How an event stands, and where in the chain it is",
        _JSON,
        Followed,
        {**_ANYWHERE, **_TOKEN, "404": "`unknown_event`", "503": _AWAY},
    ),
    "/healthz": _Get(
        "checkHealth", "Whether events can be taken at present", _JSON, _READY, {**_ANYWHERE, "503": _AWAY}
    ),
    "/metrics": _Get(
        "readMetrics", "Figures for Prometheus", "text/plain", {"type": "string"}, {**_ANYWHERE, **_TOKEN}
    ),
    "/openapi.json": _Get("readInterface", "This document", _JSON, {"type": "object"}, _ANYWHERE),
}
_ABOUT: Final = (
    "Takes the events of orders and redemptions and answers as soon as they are durable, without waiting for the "
    "chain. An event is known by kind, order or redemption, and number: the same again is the same event, so "
    "repeating a request is always safe. Amounts are integers in smallest units. A list is answered in its order, "
    "each entry by itself."
)


@cache
def document() -> bytes:
    """Return the OpenAPI document, as JSON."""
    types = [Order, Redemption, Change, AnyEvent, Taken, Failed, Followed, Id, Kind]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(types, schemas, strict=True))
    for component in components.values():
        component["description"] = cleandoc(component.get("description", ""))
    paths: dict[str, Any] = {path: {"post": _post(path, post, by_type)} for path, post in _POSTS.items()}
    paths |= {path: {"get": _get(path, get, by_type)} for path, get in _GETS.items()}
    encoded = msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Hansa business server", "version": "1", "description": _ABOUT},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"token": []}, {}],
        }
    )
    # The end of a text, as Python writes it in patterns and as JSON Schema does.
    return encoded.replace(rb"\\Z", b"$")


@cache
def page() -> bytes:
    """Return the same as a page for people, without scripts."""
    content = msgspec.json.decode(document())
    sections = []
    for path, operations in content["paths"].items():
        for verb, operation in operations.items():
            body = operation.get("requestBody")
            schema = body["content"]["application/json"]["schema"] if body else None
            answers = "".join(
                f"<tr><td>{status}</td><td>{_text(answer['description'])}</td></tr>"
                for status, answer in operation["responses"].items()
            )
            sections.append(
                f"<h2><b>{verb.upper()}</b> {escape(path)}</h2><p>{_text(operation['summary'])}</p>"
                f"{f'<p>Body: {_type(schema)}</p>' if schema else ''}<table>{answers}</table>"
            )
    for name, schema in content["components"]["schemas"].items():
        required = schema.get("required", [])
        fields = "".join(
            f"<tr><td>{escape(field)}</td><td>{_type(kind)}{'' if field in required else ', optional'}</td></tr>"
            for field, kind in schema.get("properties", {}).items()
        )
        about = _text(schema.get("description", ""))
        sections.append(f'<h2 id="{name}">{name}</h2><p>{about}</p><table>{fields}</table>')
    frame = Template((files("services.rights") / "page.html").read_text("utf-8"))
    return frame.substitute(about=_text(_ABOUT), sections="\n".join(sections)).encode()


def _post(path: str, post: _Post, by_type: dict[Any, Any]) -> dict[str, Any]:
    body, taken = by_type[post.body], by_type[Taken]
    is_listable = post.body is not Change
    answer, kept = taken, "Kept, durably; the chain decides later"
    if is_listable:
        listed = {"type": "array", "minItems": 1, "maxItems": LIST_EVENTS_MAX, "items": body}
        body = {"anyOf": [body, listed]}
        answer = {"anyOf": [taken, {"type": "array", "items": {"anyOf": [taken, by_type[Failed]]}}]}
        kept += "; a list, of which each entry is answered by itself, also by a direct server"
    responses = {
        "200": {
            "description": "Of a direct server: it is in the chain, for good",
            "content": _content(taken),
        },
        "202": {"description": kept, "content": _content(answer)},
    }
    request: dict[str, Any] = {"required": is_listable, "content": _content(body)}
    if not is_listable:
        request["description"] = "Without a body: all that is left"
    operation = _operation(path, post.operation, post.summary, responses, post.errors, by_type)
    return {**operation, "requestBody": request}


def _get(path: str, get: _Get, by_type: dict[Any, Any]) -> dict[str, Any]:
    schema = get.schema if isinstance(get.schema, dict) else by_type[get.schema]
    responses = {"200": {"description": "OK", "content": _content(schema, get.media_type)}}
    return _operation(path, get.operation, get.summary, responses, get.errors, by_type)


def _operation(
    path: str,
    name: str,
    summary: str,
    responses: dict[str, Any],
    errors: dict[str, str],
    by_type: dict[Any, Any],
) -> dict[str, Any]:
    failures = {status: _failure(status, errors[status], by_type) for status in sorted(errors)}
    operation = {
        "operationId": name,
        "summary": summary,
        "parameters": _parameters(path, by_type),
        "responses": responses | failures,
    }
    return operation if "401" in errors else {**operation, "security": []}


def _parameters(path: str, by_type: dict[Any, Any]) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": by_type[Kind if name == "kind" else Id]}
        for name in names
    ]


def _content(schema: Any, media_type: str = _JSON) -> dict[str, Any]:
    return {media_type: {"schema": schema}}


def _failure(status: str, description: str, by_type: dict[Any, Any]) -> dict[str, Any]:
    failure: dict[str, Any] = {"description": description, "content": _content(by_type[Failed])}
    if status in _ERROR_HEADERS:
        name, schema = _ERROR_HEADERS[status]
        failure["headers"] = {name: {"schema": schema}}
    return failure


def _text(text: str) -> str:
    """Return a text with what stands between backquotes as code."""
    parts = escape(text).replace("``", "`").split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _type(schema: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            return f'<a href="#{name}">{name}</a>'
        case {"anyOf": several} | {"oneOf": several}:
            return " or ".join(_type(one) for one in several)
        case {"enum": values}:
            return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
        case {"type": "array", "items": items}:
            return f"list of ({_type(items)})"
        case _:
            about = schema.get("description", "")
            bounds = f" from {schema['minimum']}" if "minimum" in schema else ""
            bounds += f" to {schema['maximum']}" if "maximum" in schema else ""
            bounds += f" like <code>{escape(schema['pattern'])}</code>" if "pattern" in schema else ""
            return f"{schema.get('type', 'anything')}{bounds}{f': {_text(about)}' if about else ''}"
