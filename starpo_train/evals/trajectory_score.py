"""Was the way to the end sound, whatever the end?"""

from dataclasses import replace
from typing import Any

from starpo_train.evals.calls import Arguments, check_arguments
from starpo_train.evals.case import EvaluationCase
from starpo_train.evals.evaluator import Evaluator, register_evaluator, require_path
from starpo_train.evals.expected import Comparison, compare_with_expected
from starpo_train.evals.metrics import (
    choose_calls,
    count_repeats,
    count_stalls,
    find_cycle,
    list_failed,
    list_forbidden,
    list_redundant,
    score_budget,
    score_loops,
)
from starpo_train.evals.path import ActionPath
from starpo_train.evals.result import EvaluationResult, StepScore


@register_evaluator("TrajectoryScore")
class TrajectoryScore(Evaluator):
    """The least of a run's parts, so that none buys off another.

    | Part | Is | Needs |
    |---|---|---|
    | `match` | F1 with the expected calls, by the best matching | expected calls |
    | `permitted` | 0 with any call of a tool that is not allowed | `allowed_tools` |
    | `succeeded` | share of calls that did not fail | calls |
    | `no_loops` | .5 when a call was made three times, 0 when six times | calls |
    | `steps`, `tokens` | budget / used, at most 1 | `max_steps`, `max_tokens` |

    Without expected calls it says how the way was walked, not whether it leads to the goal:
    `details["basis"]` is then `path`. A run without calls and without expected ones has no score.

    >>> walk = [{"tool": "find", "observation": "k1"}, {"tool": "open", "observation": "Error: no"}]
    >>> TrajectoryScore().evaluate(input="open it", output=walk).score
    0.5
    """

    name = "TrajectoryScore"

    def __init__(self, *, arguments: Arguments = "exact") -> None:
        """`arguments`: how those of `expected_calls` are compared."""
        self.arguments: Arguments = check_arguments(arguments)

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        path = require_path(case)
        found = compare_with_expected(case, self.arguments) if has_expected_calls(case) else None
        parts = list_parts(case, path, found)
        details = {"basis": "reference" if found else "path", "parts": parts, **describe(path)}
        if found is not None:
            details |= {"match": found.describe()}
        if case.expected is not None and found is None:
            return self._say_none_expected(case, path, details)
        if not path.calls and found is None:
            return self.say(None, "no calls, and none expected", details, flags=("no_calls",))
        weakest = min(parts, key=lambda name: parts[name])
        reason = f"weakest part: {weakest} {parts[weakest]:.2f}"
        if parts[weakest] == 1.0:
            reason = "nothing is wrong with " + ", ".join(parts)
        if found is None:
            reason += "; no expected calls, so not whether it leads to the goal"
        result = self.say(parts[weakest], reason, details)
        return replace(result, steps=score_steps(case, path, found))

    def _say_none_expected(
        self, case: EvaluationCase, path: ActionPath, details: dict[str, Any]
    ) -> EvaluationResult:
        """Where no call is expected there is nothing to match; only that there are calls."""
        made = choose_calls(path, case.facts.get("counted_tools"))
        reason = f"no call is expected, {len(made)} made" if made else "no call is expected"
        flag = "unexpected_calls" if made else "no_reference"
        return self.say(None, reason, details, flags=(flag,))


def has_expected_calls(case: EvaluationCase) -> bool:
    """Whether at least one call that counts is expected."""
    counted = case.facts.get("counted_tools")
    return any(counted is None or e.name in counted for e in case.expected or ())


def list_parts(
    case: EvaluationCase, path: ActionPath, found: Comparison | None
) -> dict[str, float]:
    """Name -> 0 to 1 of every part that can be said."""
    calls, parts = path.calls, {}
    if found is not None and found.match.f1 is not None:
        parts["match"] = found.match.f1
    if case.facts.get("allowed_tools") is not None:
        parts["permitted"] = float(not list_forbidden(calls, case.facts["allowed_tools"]))
    loops = score_loops(calls)
    if loops is not None:
        parts["succeeded"] = 1.0 - len(list_failed(calls)) / len(calls)
        parts["no_loops"] = loops
    if case.facts.get("max_steps") is not None:
        parts["steps"] = score_budget(len(path.steps), case.facts["max_steps"])
    if case.facts.get("max_tokens") is not None and case.facts.get("num_tokens") is not None:
        parts["tokens"] = score_budget(case.facts["num_tokens"], case.facts["max_tokens"])
    return parts


def describe(path: ActionPath) -> dict[str, Any]:
    """Counts of what was done."""
    calls = path.calls
    return {
        "num_steps": len(path.steps),
        "num_calls": len(calls),
        "num_failed": len(list_failed(calls)),
        "num_unknown_outcome": sum(call.is_ok is None for call in calls),
        "num_redundant": len(list_redundant(calls)),
        "most_repeated": count_repeats(calls),
        "cycle": find_cycle(calls),
        "num_stalls": count_stalls(path.steps),
        "num_orphan_results": path.num_orphan_results,
    }


def score_steps(
    case: EvaluationCase, path: ActionPath, found: Comparison | None
) -> tuple[StepScore, ...]:
    """1 for a step of which no call failed, was forbidden, redundant or not expected; else 0."""
    calls, allowed = path.calls, case.facts.get("allowed_tools")
    faults = {
        "failed": set(list_failed(calls)),
        "redundant": set(list_redundant(calls)),
        "forbidden": set() if allowed is None else set(list_forbidden(calls, allowed)),
    }
    scores, place = [], 0
    for i, step in enumerate(path.steps):
        places = range(place, place + len(step.calls))
        place += len(step.calls)
        wrong = [name for name, where in faults.items() if where & set(places)]
        matched = found.steps[i].score if found is not None else None
        if matched is not None and matched < 1.0:
            wrong.append("not expected")
        scores.append(
            StepScore(
                step=i,
                score=float(not wrong) if step.calls else None,
                calls=tuple(call.name for call in step.calls),
                reason=", ".join(wrong),
            )
        )
    return tuple(scores)
