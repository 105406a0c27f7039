"""Values that a recipe may not have."""

import math
from datetime import datetime

from starpo_trace.errors import ConfigError


def check_finite(name: str, value: float) -> None:
    """Refuse NaN and infinities."""
    if not math.isfinite(value):
        raise ConfigError(f"{name} = {value}: must be a finite number")


def check_similarity(name: str, value: float) -> None:
    """Refuse a similarity that is none, or that sketches cannot tell from chance."""
    if not 0.3 <= value <= 1.0:
        raise ConfigError(f"{name} = {value}: must be between 0.3 and 1")


def check_time(name: str, value: datetime | None) -> None:
    """Refuse a time that means another moment on another machine, or that spans cannot have."""
    if value is None:
        return
    if value.tzinfo is None:
        raise ConfigError(f"{name} = {value.isoformat()}: say the zone, as in {value.isoformat()}Z")
    if not 1970 <= value.year < 2262:
        raise ConfigError(f"{name} = {value.isoformat()}: must be between 1970 and 2261")
