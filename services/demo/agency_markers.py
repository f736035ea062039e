"""Markers: values that can be looked for in whatever a process leaves behind, in every spelling that data takes. Pure.

A text is looked for in UTF-8, UTF-16 and GB18030, as hex in both cases, as base64 at each of its three alignments, and
as JSON escapes it; a number as its digits and as big-endian bytes.
"""

from base64 import b64encode
from collections.abc import Iterable, Mapping

import msgspec

DIGITS_MIN = 8
"""Shorter numbers stand everywhere by accident."""
BYTES_MIN = 6


def forms_of(marker: str | bytes | int) -> frozenset[bytes]:
    """Return every spelling of a marker; empty for a number that is too short to be told from others."""
    match marker:
        case int():
            raw = marker.to_bytes(8, "big").lstrip(b"\0")
            digits = str(marker).encode()
            found = {digits} if len(digits) >= DIGITS_MIN else set()
            return frozenset(found | ({raw} if len(raw) >= BYTES_MIN else set()))
        case bytes():
            return frozenset({marker} | _printed(marker))
        case str():
            encodings = {marker.encode(name) for name in ("utf-8", "gb18030", "utf-16-le", "utf-16-be")}
            printed = set().union(*(_printed(marker.encode(name)) for name in ("utf-8", "gb18030")))
            escaped = marker.encode("ascii", "backslashreplace")
            return frozenset(encodings | printed | {escaped, msgspec.json.encode(marker)[1:-1]})


def find(markers: Mapping[str, Iterable[bytes]], traces: Iterable[tuple[str, bytes]]) -> dict[str, list[str]]:
    """Return for each marker that stands somewhere the places, up to eight each.

    Args:
        markers: what it is for people → its forms.
        traces: (place, bytes).
    """
    wanted = [(name, form) for name, forms in markers.items() for form in forms]
    found: dict[str, list[str]] = {}
    for place, data in traces:
        for name, form in wanted:
            if form in data:
                places = found.setdefault(name, [])
                if place not in places and len(places) < 8:
                    places.append(place)
    return found


def _printed(data: bytes) -> set[bytes]:
    """Return bytes as hex and as base64 wherever they begin within a longer text."""
    found = {data.hex().encode(), data.hex().upper().encode()}
    for lead in range(3):
        # Characters at both ends also depend on the neighbours, so they are left out.
        text = b64encode(bytes(lead) + data)
        first, last = (0, 2, 3)[lead], len(text) - (4 if (lead + len(data)) % 3 else 0)
        for spelling in (text[first:last], text[first:last].replace(b"+", b"-").replace(b"/", b"_")):
            if len(spelling) >= DIGITS_MIN:
                found.add(spelling)
    return found
