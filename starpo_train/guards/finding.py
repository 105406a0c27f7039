"""What a check says when it fires."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["refuse", "hold_back", "warn", "review"]

SEVERITIES: tuple[Severity, ...] = ("refuse", "hold_back", "warn", "review")
"""Worst first: training teaches nothing or the wrong thing; do not ship what is trained on it;
something is likely to go wrong; somebody should look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardFinding:
    """One check that fired."""

    name: str
    """The check; docs/guards.md has a row for each."""
    severity: Severity
    numbers: dict[str, Any]
    """What made it fire: name -> number, or a short list of names."""
    explanation: str
    """What was found and why it matters, one sentence or two."""
    advice: str
    """What to do."""

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)
