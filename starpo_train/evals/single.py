"""Single figures of a run as evaluators, each under its own name."""

from collections.abc import Callable
from typing import Final

from starpo_train.evals.calls import Arguments, check_arguments
from starpo_train.evals.case import EvaluationCase
from starpo_train.evals.evaluator import (
    Evaluator,
    MissingFactError,
    register_evaluator,
    require_path,
)
from starpo_train.evals.expected import FIGURES, compare_with_expected
from starpo_train.evals.metrics import (
    list_failed,
    list_forbidden,
    list_redundant,
    score_budget,
    score_loops,
)
from starpo_train.evals.path import ToolCall
from starpo_train.evals.result import EvaluationResult


class CallsFigure(Evaluator):
    """One figure of how the calls fit the expected ones: `calls_f1`, `calls_in_order` ..."""

    def __init__(self, *, figure: str, arguments: Arguments = "exact") -> None:
        self.name = f"calls_{figure}"
        self.figure = figure
        self.arguments: Arguments = check_arguments(arguments)

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        found = compare_with_expected(case, self.arguments)
        value, details = getattr(found.match, self.figure), found.describe()
        if value is None:
            return self.say(None, "no calls", details, flags=("no_calls",))
        counts = f"{details['num_matched']} matched, {details['num_calls']} made"
        return self.say(float(value), f"{counts}, {details['num_expected']} expected", details)


class PathFigure(Evaluator):
    """One figure of a run that needs no expected calls."""

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.figure = PATH_FIGURES[name]

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        value, reason = self.figure(case)
        return self.say(value, reason)


def _require_calls(case: EvaluationCase) -> tuple[ToolCall, ...]:
    calls = require_path(case).calls
    if not calls:
        raise MissingFactError("no calls", flag="no_calls")
    return calls


def _require(case: EvaluationCase, name: str) -> float:
    value = case.facts.get(name)
    if value is None:
        raise MissingFactError(f"no {name}", flag="no_reference")
    return value


def _score_success(case: EvaluationCase) -> tuple[float, str]:
    calls = _require_calls(case)
    failed = len(list_failed(calls))
    return 1.0 - failed / len(calls), f"{failed} of {len(calls)} calls failed"


def _score_loops(case: EvaluationCase) -> tuple[float | None, str]:
    return score_loops(_require_calls(case)), "how often the same call was made"


def _score_redundancy(case: EvaluationCase) -> tuple[float, str]:
    calls = _require_calls(case)
    redundant = len(list_redundant(calls))
    return 1.0 - redundant / len(calls), f"{redundant} of {len(calls)} calls were redundant"


def _score_permission(case: EvaluationCase) -> tuple[float, str]:
    calls = _require_calls(case)
    if case.facts.get("allowed_tools") is None:
        raise MissingFactError("no allowed_tools", flag="no_reference")
    forbidden = list_forbidden(calls, case.facts["allowed_tools"])
    names = sorted({calls[i].name for i in forbidden})
    reason = f"{len(forbidden)} of {len(calls)} calls were not allowed"
    return 1.0 - len(forbidden) / len(calls), f"{reason}: {', '.join(names)}" if names else reason


def _score_steps(case: EvaluationCase) -> tuple[float, str]:
    used, budget = len(require_path(case).steps), _require(case, "max_steps")
    return score_budget(used, budget), f"{used} steps of {budget}"


def _score_tokens(case: EvaluationCase) -> tuple[float, str]:
    budget, used = _require(case, "max_tokens"), _require(case, "num_tokens")
    return score_budget(used, budget), f"{used} tokens of {budget}"


def _score_state(case: EvaluationCase) -> tuple[float, str]:
    actual, wanted = case.hash_states()
    if actual is None or wanted is None:
        lacking = "state" if actual is None else "expected_state"
        raise MissingFactError(f"no {lacking}, nor its hash", flag="no_reference")
    same = actual == wanted
    return float(same), "the expected state" if same else "another state"


PATH_FIGURES: Final[dict[str, Callable[[EvaluationCase], tuple[float | None, str]]]] = {
    "call_success": _score_success,
    "no_loops": _score_loops,
    "no_redundancy": _score_redundancy,
    "permission": _score_permission,
    "step_budget": _score_steps,
    "token_budget": _score_tokens,
    "state_success": _score_state,
}


def _register_all() -> None:
    for figure in FIGURES:

        def build(*, arguments: Arguments = "exact", figure: str = figure) -> Evaluator:
            return CallsFigure(figure=figure, arguments=arguments)

        register_evaluator(f"calls_{figure}")(build)
    for name in PATH_FIGURES:

        def build_path(*, name: str = name) -> Evaluator:
            return PathFigure(name=name)

        register_evaluator(name)(build_path)


_register_all()
