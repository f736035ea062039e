"""A program's HTTP side as an OpenAPI 3.1 document, made from the types that decode and encode."""

from collections.abc import Mapping, Sequence
from inspect import cleandoc
from typing import Any, Final, NamedTuple

import msgspec

from services.local.pages import Failed

_REF: Final = "#/components/schemas/{name}"


class Operation(NamedTuple):
    """What is answered in JSON at a path; ``{NAME}`` in it is a parameter of a type that :func:`document` is given."""

    verb: str
    path: str
    summary: str
    answer: Any
    body: Any = None
    query: Any = None


def document(
    *,
    title: str,
    about: str,
    errors: Mapping[str, str],
    operations: Sequence[Operation],
    parts: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the document as JSON.

    Args:
        title: the program's name.
        about: what all operations have in common.
        errors: what each HTTP status of a refusal says.
        operations: all of them.
        parts: types of what stands in paths, by name.
    """
    parts = parts or {}
    types = [kind for one in operations for kind in (one.answer, one.body, one.query) if kind is not None]
    types += [Failed, *parts.values()]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    for component in components.values():
        component["description"] = cleandoc(component.get("description", ""))
    shown = {id(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    failures = {
        status: {"description": words, "content": _content(shown[id(Failed)])} for status, words in errors.items()
    }
    paths: dict[str, Any] = {}
    for one in operations:
        answer = {"200": {"description": one.summary, "content": _content(shown[id(one.answer)])}}
        made: dict[str, Any] = {"summary": one.summary, "parameters": _parameters(one, parts, shown, components)}
        made["responses"] = answer | failures
        if one.body is not None:
            made["requestBody"] = {"required": True, "content": _content(shown[id(one.body)])}
        paths.setdefault(one.path, {})[one.verb] = made
    content = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1", "description": about},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }
    # The end of a text, as Python writes it in patterns and as JSON Schema does.
    return msgspec.json.encode(content).replace(rb"\\Z", b"$")


def _parameters(
    one: Operation, parts: Mapping[str, Any], shown: Mapping[int, Any], components: Mapping[str, Any]
) -> list[Any]:
    found = [
        {"name": name, "in": "path", "required": True, "schema": shown[id(kind)]}
        for name, kind in parts.items()
        if f"{{{name}}}" in one.path
    ]
    if one.query is not None:
        fields = components[one.query.__name__]["properties"]
        found += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    return found


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
