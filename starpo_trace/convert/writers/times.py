"""Unix time in nanoseconds -> ISO 8601."""

from datetime import UTC, datetime


def format_time(time_ns: int | None) -> str | None:
    """Time in UTC to the microsecond; None for none, and beyond the year 9999."""
    if time_ns is None:
        return None
    whole, rest = divmod(time_ns, 1_000_000_000)
    try:
        at = datetime.fromtimestamp(whole, UTC).replace(microsecond=rest // 1000)
    except (ValueError, OverflowError, OSError):
        return None
    return at.isoformat().replace("+00:00", "Z")
