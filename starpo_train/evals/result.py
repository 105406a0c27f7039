"""What an evaluator says: a score or none, why, and what it rests on."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScore:
    """What an evaluator says of one step."""

    step: int
    """0.. in the order of the path."""
    score: float | None
    """None: the step made no call that is judged."""
    calls: tuple[str, ...] = ()
    """Names of the tools it called."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """What an evaluator says of one run."""

    name: str
    """The evaluator's."""
    score: float | None
    """0 to 1, more is better; None: it cannot be said, never 0 in its place."""
    reason: str
    details: dict[str, Any] = field(default_factory=dict)
    """Numbers and names behind the score; JSON."""
    flags: tuple[str, ...] = ()
    """error | malformed | no_trajectory | no_reference | no_judge | no_calls | unexpected_calls |
    unjudged_calls."""
    steps: tuple[StepScore, ...] = ()
    """Empty where the evaluator says nothing of single steps."""
