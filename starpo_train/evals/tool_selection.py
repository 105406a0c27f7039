"""Was the tool right at that step?"""

from dataclasses import replace
from typing import Final, Literal, get_args

from starpo_train.evals.calls import Arguments, check_arguments
from starpo_train.evals.case import EvaluationCase
from starpo_train.evals.evaluator import Evaluator, register_evaluator, require_path
from starpo_train.evals.expected import compare_with_expected, score_places
from starpo_train.evals.matching import match_calls
from starpo_train.evals.path import read_call
from starpo_train.evals.result import EvaluationResult

Figure = Literal[
    "f1",
    "precision",
    "recall",
    "lcs_score",
    "exact",
    "in_order",
    "any_order",
    "unordered",
    "subset",
]
_FIGURES: Final = get_args(Figure)


@register_evaluator("ToolSelectionAccuracy")
class ToolSelectionAccuracy(Evaluator):
    """Calls against the expected ones.

    With `expected_calls` or `expected_tools`, all calls that are right: F1 of the best matching, or
    another figure. With `expected_steps`, the share of places with the right call. With
    `expected_tool`, only whether that tool was called and did not fail; the other calls are not
    judged, which the flag `unjudged_calls` says.

    >>> steps = [{"tool": "page", "observation": "ok"}, {"tool": "inventory", "observation": "3"}]
    >>> ToolSelectionAccuracy().evaluate(trajectory=steps, expected_tool="inventory").score
    1.0
    >>> ToolSelectionAccuracy().evaluate(trajectory=steps, expected_tools=["inventory"]).score
    0.6666666666666666
    """

    name = "ToolSelectionAccuracy"

    def __init__(self, *, figure: Figure = "f1", arguments: Arguments = "exact") -> None:
        """`arguments`: how those of `expected_calls` are compared; names alone leave them open."""
        if figure not in _FIGURES:
            raise ValueError(f"figure {figure!r}: must be one of {', '.join(_FIGURES)}")
        self.figure = figure
        self.arguments: Arguments = check_arguments(arguments)

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        if case.facts.get("expected_steps") is not None:
            return self._score_places(case)
        if case.expected is None and case.facts.get("expected_tool") is not None:
            return self._score_one(case)
        found = compare_with_expected(case, self.arguments)
        value = getattr(found.match, self.figure)
        details = found.describe()
        reason = (
            f"{details['num_matched']} of {details['num_expected']} expected calls made, "
            f"{len(details['unexpected'])} others"
        )
        result = self.say(
            None if value is None else float(value),
            reason,
            {"figure": self.figure, **details},
            flags=("unexpected_calls",) if details["unexpected"] else (),
        )
        return replace(result, steps=found.steps)

    def _score_places(self, case: EvaluationCase) -> EvaluationResult:
        scores = score_places(case, case.facts["expected_steps"], self.arguments)
        values = [each.score for each in scores if each.score is not None]
        if not values:
            return self.say(None, "no step is expected to make a call", flags=("no_reference",))
        right = sum(value == 1.0 for value in values)
        result = self.say(
            sum(values) / len(values),
            f"{right} of {len(values)} steps made the expected call",
            {"num_steps": len(values), "num_right": right},
        )
        return replace(result, steps=tuple(scores))

    def _score_one(self, case: EvaluationCase) -> EvaluationResult:
        expected = read_call(case.facts["expected_tool"])
        calls = require_path(case).calls
        found = match_calls(calls, [expected], self.arguments)
        others = sum(call.name != expected.name for call in calls)
        made = sum(call.name == expected.name for call in calls)
        reason = f"{expected.name} was called" if found.any_order else f"no call of {expected.name}"
        if made and not found.any_order:
            reason = f"all {made} calls of {expected.name} failed"
        return self.say(
            float(found.any_order),
            f"{reason}; {others} other calls are not judged" if others else reason,
            {"num_calls": len(calls), "num_made": made, "num_unjudged": others},
            flags=("unjudged_calls",) if others else (),
        )
