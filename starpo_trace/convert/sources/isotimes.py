"""ISO times as files have them -> Unix times."""

from datetime import datetime
from typing import Any


def read_time(value: Any) -> int | None:
    """ISO time with its zone -> Unix time in ns; None where there is none, or no zone."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return int(moment.timestamp() // 1) * 10**9 + moment.microsecond * 1000
