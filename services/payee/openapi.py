"""A platform's HTTP side as an OpenAPI 3.1 document."""

from functools import cache
from typing import Final

from services.local import openapi
from services.local.openapi import Operation
from services.payee.interfaces import AskPart, Delegate, Delegated, Part, Pay, Payment, Ready

_ABOUT: Final = (
    "A payment platform's side for payers' clients. **Money is simulated**; every answer has the header `hansa-money: "
    "simulated`. Amounts are integers in 1/100 of the currency, times UTC in ms. An order of a merchant is paid once: "
    "the same again gives the first answer, so repeating a request is always safe."
)
_ERRORS: Final = {
    "400": "`malformed` JSON or a field that stands twice; `bad_field`; `bad_payload`, `bad_crc`, `no_identity`, "
    "`duplicate_identity` of a code; `amount_missing`, `order_missing`, `key_part_missing`; `bad_key`",
    "401": "`bad_token`: needs the bearer token",
    "403": "`unknown_host`: a `Host` that the program does not know, or an `Origin` of another site",
    "404": "`unknown_merchant`, `no_platform`: the platform has no record of it; "
    "`no_part`: the record has no split key, or the platform has lost its part; `unknown_path`",
    "408": "`timeout`: the body did not arrive in time",
    "409": "`bad_code`, `code_unsigned`, `code_expired`; `wrong_payee`, `wrong_amount`, `wrong_currency`, "
    "`wrong_order`, `wrong_key_part`; `order_conflict`: the order was paid on other terms",
    "413": "`too_large`",
    "415": "`bad_media_type`: the body must be application/json",
    "503": "`busy`, `intake_full`, `node_unreachable`, `stale_states`, …: nothing was paid by this request, and the "
    "same again is safe",
}

OPERATIONS: Final = (
    Operation("post", "/payments", "Pay what a code asks for, once for (merchant, order)", Payment, Pay),
    Operation("post", "/parts", "The platform's part of the split key of its record of a merchant", Part, AskPart),
    Operation("post", "/delegations", "Let a key sign queries for the platform for an hour", Delegated, Delegate),
    Operation("get", "/healthz", "Whether the program runs", Ready),
)
"""What is answered in JSON; ``/metrics`` is text for Prometheus."""


@cache
def document() -> bytes:
    """Return the OpenAPI document, as JSON."""
    return openapi.document(title="Hansa payment platform", about=_ABOUT, errors=_ERRORS, operations=OPERATIONS)
