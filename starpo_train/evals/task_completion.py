"""Was the goal reached? From states, answers, rewards and judges; never from words that occur."""

from collections.abc import Callable
from typing import Any, Literal

from starpo_train.evals.answers import are_same, list_missing
from starpo_train.evals.calls import Arguments, check_arguments
from starpo_train.evals.case import EvaluationCase, read_number
from starpo_train.evals.evaluator import Evaluator, register_evaluator
from starpo_train.evals.judging import Judge, ask_judge
from starpo_train.evals.matching import match_calls
from starpo_train.evals.path import read_call
from starpo_train.evals.result import EvaluationResult

CRITERION = (
    "The task is done, as the user wanted it. Score 1 when it is done and 0 when it is not. "
    "A claim that it is done is no proof of it."
)


@register_evaluator("TaskCompletion")
class TaskCompletion(Evaluator):
    """The least of what is known of the end.

    | Evidence | Is | Needs |
    |---|---|---|
    | `state` | 1 when the state at the end is the expected one, else 0 | both, or their hashes |
    | `answer` | 1 when the answer is the reference, as words or number, else 0 | `expected_output` |
    | `reward` | what a verifier gave | `reward` in [0, 1] |
    | `judge` | what the judge says | a judge; asked only where the rest does not say 0 |

    `required_outputs` that were not told make it 0, and so do expected calls that were not made, where
    neither a state nor a verifier says more; that they were told or made alone proves nothing. Without
    any evidence there is no score.

    Args:
        judge: asked for what the rest leaves open.
        answers: `closed`, an answer in other words is wrong; `open`, it may be right, so the judge says,
            and without one nobody.
        arguments: how those of `expected_calls` are compared.
        same: whether an answer is the reference; by default, but for case, spaces and punctuation at
            the ends.

    >>> TaskCompletion().evaluate(output="Refund 4411.", expected_output="refund 4411").score
    1.0
    >>> TaskCompletion().evaluate(input="refund 4411", output="I refunded 4411.").score is None
    True
    """

    name = "TaskCompletion"

    def __init__(
        self,
        *,
        judge: Judge | None = None,
        answers: Literal["closed", "open"] = "closed",
        arguments: Arguments = "exact",
        same: Callable[[str, str], bool] = are_same,
    ) -> None:
        if answers not in {"closed", "open"}:
            raise ValueError(f"answers {answers!r}: must be closed or open")
        self.judge = judge
        self.answers = answers
        self.arguments: Arguments = check_arguments(arguments)
        self.same = same

    def score(self, case: EvaluationCase) -> EvaluationResult:
        """Case -> result."""
        evidence, notes = self._list_evidence(case)
        lacking = self._list_lacking(case)
        if lacking and not evidence.keys() & {"state", "reward"}:
            evidence["calls"] = 0.0
            notes.append(f"not called, or in vain: {', '.join(lacking)}")
        missing = list_missing(case.facts.get("required_outputs") or (), case.said)
        if missing:
            evidence["required_outputs"] = 0.0
            notes.append(f"not told: {', '.join(missing)}")
        details: dict[str, Any] = {"evidence": evidence, "not_told": missing, "not_called": lacking}
        if self.judge is not None and min(evidence.values(), default=1.0) > 0.0:
            material = {"goal": case.goal or "", "answer": case.answer or ""}
            if case.facts.get("expected_output") is not None:
                material["reference"] = str(case.facts["expected_output"])
            opinion = ask_judge(self.judge, criterion=CRITERION, material=material)
            if opinion.score is None:
                notes.append("the judge could not say")
            else:
                evidence["judge"] = opinion.score
            if opinion.reason:
                notes.append(f"judge: {opinion.reason}")
        if not evidence or (is_open(case, evidence) and min(evidence.values()) > 0.0):
            notes = notes or ["no reference, reward or judge"]
            return self.say(None, "; ".join(notes), details, flags=("no_reference",))
        weakest = min(evidence, key=lambda name: evidence[name])
        return self.say(
            evidence[weakest], "; ".join([f"by {weakest}: {evidence[weakest]:g}", *notes]), details
        )

    def _list_lacking(self, case: EvaluationCase) -> list[str]:
        """Names of the expected calls that were not made."""
        expected = list(case.expected or ())
        if case.facts.get("expected_tool") is not None:
            expected.append(read_call(case.facts["expected_tool"]))
        if case.path is None or not expected:
            return []
        made = {
            column for _, column in match_calls(case.path.calls, expected, self.arguments).pairs
        }
        return [call.name for i, call in enumerate(expected) if i not in made]

    def _list_evidence(self, case: EvaluationCase) -> tuple[dict[str, float], list[str]]:
        """Name -> 0 to 1 of what is known without a judge, and remarks."""
        evidence: dict[str, float] = {}
        notes: list[str] = []
        actual, wanted = case.hash_states()
        if wanted is not None and actual is not None:
            evidence["state"] = float(actual == wanted)
        elif wanted is not None:
            notes.append("the state at the end is not known")
        reference, answer = case.facts.get("expected_output"), case.answer
        if reference is not None and not answer:
            notes.append("there is no answer")
            if answer is not None or case.path is not None:  # of a run that is known
                evidence["answer"] = 0.0
        elif reference is not None and answer:
            if self.same(answer, str(reference)):
                evidence["answer"] = 1.0
            elif self.answers == "closed":
                evidence["answer"] = 0.0
            else:
                notes.append("the answer is in other words than the reference")
        if case.facts.get("reward") is not None:
            reward = read_number(case.facts["reward"])
            if reward is None:
                notes.append(f"a reward of {case.facts['reward']!r} is not from 0 to 1")
            else:
                evidence["reward"] = reward
        return evidence, notes


def is_open(case: EvaluationCase, evidence: dict[str, float]) -> bool:
    """Whether a state is expected and neither the state nor a verifier says how it ended."""
    return case.hash_states()[1] is not None and not evidence.keys() & {"state", "reward"}
