"""The business server's HTTP side as an OpenAPI 3.1 document, made from the types that decode, and as a page."""

from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, Final

import msgspec

from services.rights.answers import Failed, Followed, Taken
from services.rights.events import Kind
from services.rights.requests import LIST_EVENTS_MAX, AnyEvent, Change, Order, Redemption

_REF: Final = "#/components/schemas/{name}"
_ERRORS: Final = {
    "400": "`malformed` JSON, or `bad_field` with the field's path",
    "401": "`bad_token`: needs the bearer token",
    "404": "`unknown_campaign`",
    "409": "`event_conflict`: the event was posted before and said something else; `campaign_closed`",
    "413": "`too_large`",
    "415": "`bad_media_type`: the body must be application/json",
    "503": "`store_full`, `intake_full`, `center_unreachable`: the same again after `Retry-After` seconds is safe",
}
_POSTS: Final = {
    "/orders": (Order, "An order was created; or a list of them"),
    **{
        f"/orders/{{order}}/{kind.value}": (Change, f"An order was {done}, in whole or by amount")
        for kind, done in ((Kind.CANCEL, "cancelled"), (Kind.COMPLETE, "completed"), (Kind.REFUND, "refunded"))
    },
    "/redemptions": (Redemption, "A user redeems an amount, or items; or a list of such"),
    "/redemptions/{redemption}/reverse": (Change, "A redemption was reversed, in whole or by amount"),
    "/events": (AnyEvent, "Events of any kind, one or a list"),
}
_GETS: Final = {
    "/events/{kind}/{reference}/{number}": "How an event stands, and where in the chain it is",
    "/healthz": "Whether events can be taken at present: 200, or 503 while the message centre cannot be reached",
    "/metrics": "Figures for Prometheus",
    "/openapi.json": "This document",
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
    types = [Order, Redemption, Change, AnyEvent, Taken, Failed, Followed]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, Any] = {}
    for path, (body, summary) in _POSTS.items():
        is_listable = body is not Change
        paths[path] = {"post": _post(path, summary, by_type[body], by_type, is_listable=is_listable)}
    for path, summary in _GETS.items():
        is_following = path.startswith("/events/")
        answer: dict[str, Any] = {"description": "OK"}
        if is_following:
            answer["content"] = _content(by_type[Followed])
        responses = {"200": answer}
        if is_following:
            responses["404"] = _failure("`unknown_event`", by_type)
            responses["503"] = _failure("`center_unreachable`", by_type)
        paths[path] = {"get": {"summary": summary, "parameters": _parameters(path), "responses": responses}}
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


def _post(path: str, summary: str, body: Any, by_type: dict[Any, Any], *, is_listable: bool) -> dict[str, Any]:
    answer: Any = by_type[Taken]
    if is_listable:
        listed = {"type": "array", "minItems": 1, "maxItems": LIST_EVENTS_MAX, "items": body}
        body = {"anyOf": [body, listed]}
        each = {"anyOf": [by_type[Taken], by_type[Failed]]}
        answer = {"anyOf": [by_type[Taken], {"type": "array", "items": each}]}
    responses: dict[str, Any] = {
        "202": {"description": "Kept, durably; the chain decides later", "content": _content(answer)},
        **{status: _failure(description, by_type) for status, description in _ERRORS.items()},
    }
    request = {"required": is_listable, "content": _content(body)}
    return {"summary": summary, "parameters": _parameters(path), "requestBody": request, "responses": responses}


def _parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _failure(description: str, by_type: dict[Any, Any]) -> dict[str, Any]:
    return {"description": description, "content": _content(by_type[Failed])}


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
