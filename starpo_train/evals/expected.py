"""Case -> how its calls fit the expected ones, over the run and step by step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starpo_train.evals.calls import Arguments
from starpo_train.evals.case import EvaluationCase
from starpo_train.evals.evaluator import MissingFactError, require_path
from starpo_train.evals.matching import CallMatch, match_calls
from starpo_train.evals.metrics import choose_calls
from starpo_train.evals.path import ToolCall, read_call
from starpo_train.evals.result import StepScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A run's calls beside those that are expected."""

    calls: tuple[ToolCall, ...]
    """Those that count."""
    expected: tuple[ToolCall, ...]
    match: CallMatch
    steps: tuple[StepScore, ...]

    def describe(self) -> dict[str, Any]:
        """Every figure, and which calls are wrong or missing."""
        found = self.match
        called, wanted = ({pair[side] for pair in found.pairs} for side in (0, 1))
        return {
            "num_calls": found.num_calls,
            "num_expected": found.num_expected,
            "num_matched": len(found.pairs),
            **{name: getattr(found, name) for name in FIGURES},
            "unexpected": [c.name for i, c in enumerate(self.calls) if i not in called],
            "missing": [e.name for j, e in enumerate(self.expected) if j not in wanted],
        }


FIGURES = (
    *("precision", "recall", "f1", "lcs_score"),
    *("exact", "in_order", "any_order", "unordered", "subset"),
)
"""What a CallMatch says."""


def compare_with_expected(case: EvaluationCase, arguments: Arguments) -> Comparison:
    """Case -> Comparison.

    Raises:
        MissingFactError: no trajectory, no expected calls, or no call is expected.
    """
    path = require_path(case)
    counted = case.facts.get("counted_tools")
    if case.expected is None:
        raise MissingFactError(
            "no reference: give expected_tool, expected_tools or expected_calls",
            flag="no_reference",
        )
    expected = tuple(e for e in case.expected if counted is None or e.name in counted)
    calls = choose_calls(path, counted)
    if not expected:
        if calls:
            raise MissingFactError(
                f"no call is expected, {len(calls)} made: {', '.join(c.name for c in calls[:5])}",
                flag="unexpected_calls",
            )
        raise MissingFactError("no call is expected, and none was made", flag="no_reference")
    match = match_calls(calls, expected, arguments)
    matched = {row for row, _ in match.pairs}
    return Comparison(
        calls=calls, expected=expected, match=match, steps=_score_steps(case, counted, matched)
    )


def score_places(
    case: EvaluationCase, places: Iterable[Any], arguments: Arguments
) -> list[StepScore]:
    """Whether each step made the one call that is expected in its place."""
    steps = require_path(case).steps
    scores = []
    for i, place in enumerate(places):
        if place is None:
            continue
        calls = steps[i].calls if i < len(steps) else ()
        found = match_calls(calls, [read_call(place)], arguments)
        scores.append(
            StepScore(
                step=i,
                score=float(found.f1 or 0.0),
                calls=tuple(call.name for call in calls),
                reason=f"expected {read_call(place).name}",
            )
        )
    return scores


def _score_steps(case: EvaluationCase, counted: Any, matched: set[int]) -> tuple[StepScore, ...]:
    """Share of each step's calls that stands for an expected one."""
    scores, place = [], 0
    for i, step in enumerate(require_path(case).steps):
        judged = [call for call in step.calls if counted is None or call.name in counted]
        places = range(place, place + len(judged))
        place += len(judged)
        wrong = [call.name for call, k in zip(judged, places, strict=True) if k not in matched]
        scores.append(
            StepScore(
                step=i,
                score=(len(judged) - len(wrong)) / len(judged) if judged else None,
                calls=tuple(call.name for call in step.calls),
                reason=f"not expected here: {', '.join(wrong)}" if wrong else "",
            )
        )
    return tuple(scores)
