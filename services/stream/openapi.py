"""A service party's HTTP side as an OpenAPI 3.1 document."""

from functools import cache
from typing import Final

from services.local import openapi
from services.local.openapi import Operation
from services.stream.service_interface import (
    ChallengeGiven,
    Offer,
    OfferWanted,
    Ready,
    StoredShown,
    StreamShown,
    StreamText,
)

_ABOUT: Final = (
    "A service party's side for payers. Amounts are in smallest units of the stream's unit, times UTC in ms, bytes in "
    "0x-hex. `POST /iterations` takes one iteration's own bytes as `application/octet-stream`; `POST /frames` takes "
    "and answers a frame as `application/msgpack` (canonical, see docs/streams.md; 204 where there is nothing to say), "
    "and `GET /frames` opens a WebSocket with one frame in each binary message. What is answered as stored is durable; "
    "the same again is safe."
)
_ERRORS: Final = {
    "400": "`malformed`, `bad_field`; `bad_offer` with what would be taken; `bad_iteration`, `bad_signature`, "
    "`wrong_chain`, `wrong_stream`, `bad_version`, `bad_lane`",
    "401": "`bad_token`: needs the bearer token",
    "403": "`unknown_host`: a `Host` that the program does not know, or an `Origin` of another site",
    "404": "`unknown_stream`: not offered here, or not open on the chain with these terms; `unknown_path`",
    "408": "`timeout`: the body did not arrive in time",
    "409": "`old_iteration`, `wrong_amount`, `bad_validity`, `stream_ended`; `stream_exists`: the number was used",
    "413": "`too_large`",
    "415": "`bad_media_type`",
    "503": "`busy`, `intake_full`, `chain_unseen`, `node_unreachable`, …: the same again is safe",
}

OPERATIONS: Final = (
    Operation("post", "/offers", "Signed terms for what a payer wishes", Offer, OfferWanted),
    Operation("post", "/challenges", "A nonce to sign in a Hello, once", ChallengeGiven),
    Operation("post", "/iterations", "Store one iteration; answered once it is durable", StoredShown),
    Operation("get", "/streams/{stream}", "How a stream stands", StreamShown),
    Operation("get", "/healthz", "Whether the program runs", Ready),
)
"""What is answered in JSON; frames are MessagePack, ``/metrics`` is text for Prometheus."""


@cache
def document() -> bytes:
    """Return the OpenAPI document, as JSON."""
    return openapi.document(
        title="Hansa payment streams",
        about=_ABOUT,
        errors=_ERRORS,
        operations=OPERATIONS,
        parts={"stream": StreamText},
    )
