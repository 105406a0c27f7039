"""The judge's answer, a text -> score and reason, or why there is none.

Strict: one JSON object, alone or in one Markdown fence, with exactly the fields of the schema. Nothing
is searched for in other text, as that is where an injected answer would stand.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from starpo_train.judge.records import Status
from starpo_train.judge.rubric import Rubric

_FENCED: Final = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL | re.IGNORECASE)
_SHOWN: Final = 200


class Parsed(NamedTuple):
    """What an answer says."""

    score: float | None
    reason: str
    status: Status


def parse_answer(text: str | None, rubric: Rubric) -> Parsed:
    """Answer's text -> score and reason; unparsable: no score, and the fault as the reason.

    >>> from starpo_train.judge.rubric import read_rubric
    >>> parse_answer('{"reason": "done", "score": 1}', read_rubric("task_completion"))
    Parsed(score=1.0, reason='done', status='scored')
    """
    try:
        return _parse(text or "", rubric)
    except (ValueError, RecursionError) as error:
        shown = (text or "").strip()[:_SHOWN]
        return Parsed(None, f"unparsable answer: {error}: {shown!r}", "unparsable")


def _parse(text: str, rubric: Rubric) -> Parsed:
    bare = text.strip()
    fenced = _FENCED.fullmatch(bare)
    value = json.loads(
        fenced[1] if fenced else bare,
        object_pairs_hook=_refuse_repeated,
        parse_constant=_refuse_constant,
    )
    if not isinstance(value, dict) or set(value) != {"reason", "score"}:
        raise ValueError("no object with exactly the fields reason and score")
    score, reason = value["score"], value["reason"]
    if not isinstance(reason, str):
        raise ValueError("its reason is no text")  # noqa: TRY004 (a value from outside)
    if score is None:
        return Parsed(None, reason, "abstained")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError("its score is no number")  # noqa: TRY004
    if all(score != level for level, _ in rubric.levels):
        raise ValueError(f"its score {score} is none of the rubric's")
    return Parsed(float(score), reason, "scored")


def _refuse_repeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a field stands twice")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
