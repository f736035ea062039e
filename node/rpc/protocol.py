"""JSON-RPC 2.0 as bytes: requests out of untrusted text, answers into text. Pure.

Stricter than JSON: no duplicate keys, no NaN, no fractions, no integer beyond 64 bits, no lone
surrogate, no nesting deeper than ``DEPTH_MAX``. Errors −32700 to −32603 are those of the
specification; everything that Hansa itself refuses is −32000. Each carries a stable ``data.code``.
"""

import json
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from consensus.ledger.errors import HansaError, PeerError

Json: TypeAlias = "int | str | bool | list[Json] | dict[str, Json] | None"
RequestId: TypeAlias = "int | str | None"

BODY_BYTES_MAX = 4 * 1024 * 1024
"""Longest HTTP body and WebSocket message that is read."""
ANSWER_BYTES_MAX = 16 * 1024 * 1024
"""Longest answer to one HTTP body or WebSocket message, however many requests it holds (R73)."""
BATCH_MAX = 100
DEPTH_MAX = 20
ID_CHARACTERS_MAX = 128
METHOD_CHARACTERS_MAX = 64
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
REFUSED = -32000

_NUMBERS = {
    "parse_error": PARSE_ERROR,
    "invalid_request": INVALID_REQUEST,
    "method_not_found": METHOD_NOT_FOUND,
    "invalid_params": INVALID_PARAMS,
    "internal": INTERNAL_ERROR,
}

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Request:
    """One call. ``is_notification`` means that nobody waits for an answer."""

    id: RequestId
    method: str
    params: list[Json] | dict[str, Json]
    is_notification: bool = False


@dataclass(frozen=True, slots=True)
class Faulty:
    """One element of a body that is no request; it is answered with its error."""

    id: RequestId
    error: PeerError


@dataclass(frozen=True, slots=True)
class Body:
    """What one HTTP body or WebSocket message holds."""

    entries: tuple[Request | Faulty, ...]
    is_batch: bool


def parse_untrusted(data: bytes, bytes_max: int = BODY_BYTES_MAX) -> Body:
    """Read the requests of a body; elements of a batch fail one by one.

    Raises:
        PeerError: ``too_large``, ``parse_error``, or ``invalid_request`` for an empty or too long batch.
    """
    document = parse_json_untrusted(data, bytes_max)
    if isinstance(document, list):
        if not 1 <= len(document) <= BATCH_MAX:
            raise PeerError("invalid_request", f"a batch has 1 to {BATCH_MAX} requests")
        return Body(tuple(_request(element) for element in document), is_batch=True)
    return Body((_request(document),), is_batch=False)


def parse_json_untrusted(data: bytes, bytes_max: int = BODY_BYTES_MAX) -> Json:
    """Read one JSON document by the strict rules of this module.

    Raises:
        PeerError: ``too_large`` or ``parse_error``.
    """
    if len(data) > bytes_max:
        raise PeerError("too_large", f"a body has at most {bytes_max} bytes")
    try:
        text = data.decode("utf-8")
        document: Json = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_fraction, parse_constant=_fraction
        )
        _check_depth(document)
        if "\\u" in text:  # the only way to spell a lone surrogate in valid UTF-8
            _encoder.encode(document)
    except (ValueError, RecursionError) as error:
        raise PeerError("parse_error", str(error) if isinstance(error, _NotStrict) else "no valid JSON") from None
    return document


def encode_json(document: Json) -> bytes:
    """Return a document's compact JSON."""
    return _encoder.encode(document)


def result_bytes(request_id: RequestId, result: Json) -> bytes:
    """Return the answer of a call that succeeded; an answer above the cap becomes an error."""
    data = _encoder.encode({"jsonrpc": "2.0", "id": request_id, "result": result})
    if len(data) > ANSWER_BYTES_MAX:
        return error_bytes(request_id, HansaError("answer_too_large", "ask for a smaller page"))
    return data


def error_bytes(request_id: RequestId, error: HansaError) -> bytes:
    """Return the answer of a call that failed."""
    content = {"code": _NUMBERS.get(error.code, REFUSED), "message": error.message, "data": {"code": error.code}}
    return _encoder.encode({"jsonrpc": "2.0", "id": request_id, "error": content})


def notification_bytes(method: str, params: Json) -> bytes:
    """Return a message of the server's own accord, as subscriptions send it."""
    return _encoder.encode({"jsonrpc": "2.0", "method": method, "params": params})


def batch_bytes(answers: list[bytes]) -> bytes:
    """Return the answers of a batch as one document."""
    return b"[" + b",".join(answers) + b"]"


class _NotStrict(ValueError):
    """JSON that breaks a rule of this module; its text is fit for the caller."""


def _request(element: Json) -> Request | Faulty:
    if not isinstance(element, dict):
        return Faulty(None, PeerError("invalid_request", "a request is an object"))
    request_id = element.get("id")
    if not _is_id(request_id):
        return Faulty(None, PeerError("invalid_request", "id is a text, an integer or null"))
    method, params = element.get("method"), element.get("params", [])
    fault = ""
    if element.get("jsonrpc") != "2.0":
        fault = 'jsonrpc must be "2.0"'
    elif not isinstance(method, str) or not 1 <= len(method) <= METHOD_CHARACTERS_MAX:
        fault = f"method is a text of 1 to {METHOD_CHARACTERS_MAX} characters"
    elif not isinstance(params, list | dict):
        fault = "params is a list or an object"
    elif unknown := sorted(element.keys() - {"jsonrpc", "id", "method", "params"}):
        fault = f"unknown member {unknown[0][:METHOD_CHARACTERS_MAX]}"
    if fault or not isinstance(method, str) or not isinstance(params, list | dict):
        return Faulty(_as_id(request_id), PeerError("invalid_request", fault))
    return Request(_as_id(request_id), method, params, is_notification="id" not in element)


def _is_id(value: Json) -> bool:
    if isinstance(value, str):
        return len(value) <= ID_CHARACTERS_MAX
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _as_id(value: Json) -> RequestId:
    return value if isinstance(value, int | str) else None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _NotStrict("an object has a key twice")
    return content


def _integer(text: str) -> int:
    # Length first: turning a million digits into a number is the attack (CVE-2020-10735).
    if len(text) > 20 or not INTEGER_MIN <= int(text) <= INTEGER_MAX:
        raise _NotStrict("an integer is out of range; write amounts as decimal strings")
    return int(text)


def _fraction(text: str) -> int:
    raise _NotStrict(f"{text[:20]} is no integer")


def _check_depth(document: Json) -> None:
    """Refuse deep nesting without recursing over it."""
    level: list[Json] = [document]
    for _ in range(DEPTH_MAX):
        below: list[Json] = []
        for item in level:
            if isinstance(item, list):
                below += [child for child in item if isinstance(child, list | dict)]
            elif isinstance(item, dict):
                below += [child for child in item.values() if isinstance(child, list | dict)]
        if not below:
            return
        level = below
    raise _NotStrict(f"nested deeper than {DEPTH_MAX}")
