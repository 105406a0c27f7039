"""A run -> what FutureAGI's own package says of it, beside ours.

It calls `fi.evals.metrics.agents` of the package `ai-evaluation`, where that is installed, on this
machine and without a model. Three things to know of its scores (1.1.0): thoughts count as evidence,
an expected text that occurs anywhere in the result counts as reached, and what it cannot read gets 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from starpo_train.errors import ConfigError
from starpo_train.evals.batch import evaluate_facts
from starpo_train.evals.case import EvaluationCase
from starpo_train.evals.evaluator import (
    Evaluator,
    MissingFactError,
    build_evaluator,
    register_evaluator,
)
from starpo_train.evals.result import EvaluationResult

METRICS: Final = ("TrajectoryScore", "TaskCompletion", "ToolSelectionAccuracy")
TOLERANCE: Final = 1e-4
"""Theirs are rounded to four places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """One run, by both."""

    case: str
    metric: str
    ours: float | None
    theirs: float | None
    our_reason: str
    their_reason: str

    @property
    def is_same(self) -> bool:
        """Both have the same score, or none."""
        if self.ours is None or self.theirs is None:
            return self.ours is self.theirs
        return abs(self.ours - self.theirs) <= TOLERANCE


class FutureAgiEvaluator(Evaluator):
    """A metric of theirs under our call shape; what they cannot read is null here."""

    def __init__(self, *, metric: str) -> None:
        """Raises ConfigError where the package is not installed, or has no such metric."""
        if metric not in METRICS:
            raise ConfigError(f"no metric {metric!r} of FutureAGI; known: {', '.join(METRICS)}.")
        try:
            from fi.evals.metrics import agents  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f"FutureAGI's package cannot be imported ({error}); pip install ai-evaluation."
            ) from None
        self.name = f"futureagi_{metric}"
        self._agents = agents
        self._metric = getattr(agents, metric)()

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        given = self._agents.AgentTrajectoryInput(**describe_case(case))
        found = self._metric.compute_one(given)
        return self.say(float(found["output"]), str(found.get("reason", "")))


def describe_case(case: EvaluationCase) -> dict[str, Any]:
    """Case -> the fields of their `AgentTrajectoryInput`, thoughts as given among them."""
    if case.path is None:
        raise MissingFactError("no trajectory: give messages or steps", flag="no_trajectory")
    facts = case.facts
    given = facts.get("trajectory")
    raw = given if isinstance(given, Sequence) and len(given) == len(case.path.steps) else ()
    steps: list[dict[str, Any]] = []
    for i, step in enumerate(case.path.steps):
        before = raw[i] if raw else {}
        calls = [
            {
                "name": call.name,
                "arguments": call.arguments or {},
                "result": call.result,
                "success": call.is_ok is not False,
            }
            for call in step.calls
        ]
        steps.append(
            {
                "step_number": i + 1,
                "thought": before.get("thought") if isinstance(before, Mapping) else None,
                "action": step.text,
                "tool_calls": calls,
                "observation": step.calls[-1].result if step.calls else None,
                "is_final": i == len(case.path.steps) - 1,
            }
        )
    expected = facts.get("expected_output")
    tools = [call.name for call in case.expected or ()]
    if not tools and facts.get("expected_tool") is not None:
        tools = [facts["expected_tool"]]
    task = {
        "description": case.goal or "",
        "expected_outcome": expected,
        "required_tools": tools or None,
        "max_steps": facts.get("max_steps"),
        "success_criteria": None if expected is None else [expected],
    }
    return {
        "trajectory": steps,
        "task": task,
        "final_result": case.answer,
        "expected_result": expected,
    }


def compare_with_futureagi(
    cases: Mapping[str, Mapping[str, Any]], *, metrics: Sequence[str] = METRICS
) -> list[Parity]:
    """Name -> facts of some runs -> both scores of each metric.

    Raises:
        ConfigError: the package is not installed.
    """
    compared = []
    for metric in metrics:
        theirs, ours = FutureAgiEvaluator(metric=metric), build_evaluator(metric)
        for name, facts in cases.items():
            mine, other = evaluate_facts([ours, theirs], facts)
            compared.append(
                Parity(
                    case=name,
                    metric=metric,
                    ours=mine.score,
                    theirs=other.score,
                    our_reason=mine.reason,
                    their_reason=other.reason,
                )
            )
    return compared


for _metric in METRICS:

    def _build(*, metric: str = _metric) -> Evaluator:
        return FutureAgiEvaluator(metric=metric)

    register_evaluator(f"futureagi_{_metric}")(_build)
