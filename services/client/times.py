"""Times for people. Pure."""

from datetime import UTC, datetime

_TIME_MS_MAX = 253_402_300_799_999  # the end of the year 9999


def utc_text(time_ms: int) -> str:
    """Return a time in ms since 1970 as UTC text with milliseconds; a time that no calendar has, as its number."""
    if not 0 <= time_ms <= _TIME_MS_MAX:
        return f"{time_ms} ms"
    moment = datetime.fromtimestamp(time_ms // 1000, UTC).replace(microsecond=time_ms % 1000 * 1000)
    return moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
