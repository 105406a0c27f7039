"""Inspect's scores of a sample -> verdicts on its run."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from starpo_trace.convert.sources.verdicts import Verdict

_LETTERS: Final = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_WORDS: Final = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_GRADED: Final = "model_graded"


def read_scores(scores: Any, graders: Mapping[str, str]) -> list[Verdict]:
    """Scores by scorer, and the models that scorers called -> verdicts, in the scorers' order.

    Values are turned to numbers as Inspect itself does it; one that is none stays as it is.
    """
    return [
        verdict
        for name, score in (scores or {}).items()
        if score is not None
        for verdict in _read_score(name, score, graders.get(name))
    ]


def _read_score(name: str, score: Mapping[str, Any], grader: str | None) -> Iterator[Verdict]:
    metadata = score.get("metadata")
    has_grading = isinstance(metadata, Mapping) and "grading" in metadata
    is_judged = grader is not None or has_grading or _GRADED in name
    for suffix, value in _list_values(score["value"]):
        number, is_ranged = _read_number(value)
        yield Verdict(
            name=name + suffix,
            value=number,
            source="judge" if is_judged else "environment",
            low=0.0 if is_ranged else None,
            high=1.0 if is_ranged else None,
            explanation=_read_text(score.get("explanation")),
            judge_id=grader,
        )


def _list_values(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f".{key}", each) for key, each in value.items()]
    if isinstance(value, list):
        return [(f".{i}", each) for i, each in enumerate(value)]
    return [("", value)]


def _read_number(value: Any) -> tuple[Any, bool]:
    """Number, and whether it is known to lie between 0 and 1."""
    if isinstance(value, bool):
        return float(value), True
    if not isinstance(value, str):
        return value, False
    known = _LETTERS.get(value, _WORDS.get(value.lower()))
    if known is not None:
        return known, True
    try:
        number = float(value)
    except ValueError:
        return value, False
    return (number if math.isfinite(number) else value), False


def _read_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
