"""What needs meaning: relevance of context, and whatever users ask for."""

from collections.abc import Callable
from typing import Any

from starpo_train.evals.case import EvaluationCase
from starpo_train.evals.evaluator import Evaluator, MissingFactError, register_evaluator
from starpo_train.evals.judging import Judge, ask_judge, read_opinion
from starpo_train.evals.path import drop_thoughts
from starpo_train.evals.result import EvaluationResult

RELEVANCE = (
    "The context holds what is needed to do what the user wants. Score 1 when all of it is there, "
    "0 when nothing of it is; what is there beside it does not matter."
)


@register_evaluator("ContextRelevance")
class ContextRelevance(Evaluator):
    """Was the agent given what it needed? A judge's question: without a judge there is no score."""

    name = "ContextRelevance"

    def __init__(self, *, judge: Judge | None = None, criterion: str = RELEVANCE) -> None:
        self.judge = judge
        self.criterion = criterion

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result; `context` is by default what the tools answered."""
        if self.judge is None:
            raise MissingFactError(
                "relevance is a question of meaning: give judge=", flag="no_judge"
            )
        context = case.facts.get("context")
        if context is None and case.path is not None:
            context = [call.result for call in case.path.calls if call.result is not None]
        if isinstance(context, str):
            context = [context]
        if not context or not case.goal:
            lacking = "context" if case.goal else "input"
            raise MissingFactError(f"no {lacking} to judge", flag="no_reference")
        material = {"goal": case.goal, "context": "\n\n".join(map(str, context))}
        opinion = ask_judge(self.judge, criterion=self.criterion, material=material)
        return self.say(opinion.score, opinion.reason, {"num_texts": len(context)})


class CustomEvaluation(Evaluator):
    """A function of your own, or a rubric for a judge, as an evaluator.

    Args:
        function: takes the EvaluationCase; gives a bool, a number from 0 to 1, something with
            `score` and `reason`, or None where it cannot say.
        rubric: in its place, the criterion for `judge`.

    >>> polite = CustomEvaluation(lambda case: "please" in (case.answer or ""), name="polite")
    >>> polite.evaluate(output="Wait, please.").score, polite.evaluate(output="Wait.").score
    (1.0, 0.0)
    """

    def __init__(
        self,
        function: Callable[[EvaluationCase], Any] | None = None,
        *,
        name: str = "CustomEvaluation",
        rubric: str | None = None,
        judge: Judge | None = None,
    ) -> None:
        if (function is None) == (rubric is None):
            raise ValueError("give either a function or a rubric")
        self.name = name
        self.function = function
        self.rubric = rubric
        self.judge = judge

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        if self.function is not None:
            answer = self.function(case)
            if isinstance(answer, EvaluationResult):
                return answer
            if answer is None:
                return self.say(None, "the function says nothing of this run")
            opinion = read_opinion(answer)
            return self.say(opinion.score, opinion.reason)
        if self.judge is None:
            raise MissingFactError("a rubric needs a judge: give judge=", flag="no_judge")
        material = {"goal": case.goal or "", "answer": drop_thoughts(case.answer or "")}
        if case.path is not None:
            material["trajectory"] = "\n".join(
                f"{call.name} {call.arguments} -> {call.result}" for call in case.path.calls
            )
        opinion = ask_judge(self.judge, criterion=self.rubric or "", material=material)
        return self.say(opinion.score, opinion.reason)
