"""What is wrong, or worth knowing, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]
"""`problem`: runs are lost, or are fit for no training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    """What was found, with the value."""
    do: str = ""
    """What to do, where there is something."""
