"""A judge's answer -> Opinion. Any callable is a judge; pin its model, prompt and parser."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from starpo_train.evals.case import read_number


class Judge(Protocol):
    """Says how far a criterion is met by what it is shown."""

    def __call__(self, *, criterion: str, material: Mapping[str, str]) -> Any:
        """A number from 0 to 1, or a mapping or object with `score` (None: cannot say) and `reason`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a judge said."""

    score: float | None
    """None: it could not say."""
    reason: str


class JudgeAnswerError(ValueError):
    """A judge gave no score from 0 to 1."""


def ask_judge(judge: Judge, *, criterion: str, material: Mapping[str, str]) -> Opinion:
    """Ask, and read the answer.

    Raises:
        JudgeAnswerError: its score is none from 0 to 1.
    """
    return read_opinion(judge(criterion=criterion, material=material))


def read_opinion(answer: Any) -> Opinion:
    """A number, mapping or object -> Opinion.

    Raises:
        JudgeAnswerError: its score is none from 0 to 1.
    """
    if isinstance(answer, Mapping):
        score, reason = answer.get("score"), answer.get("reason")
    elif isinstance(answer, int | float | np.generic):
        score, reason = answer, None
    elif hasattr(answer, "score"):
        score, reason = answer.score, getattr(answer, "reason", None)
    else:
        raise JudgeAnswerError(f"the judge answered {answer!r}, which has no score")
    value = read_number(score)
    if score is not None and value is None:
        raise JudgeAnswerError(f"the judge's score is {score!r}, not from 0 to 1")
    return Opinion(score=value, reason=str(reason or ""))
