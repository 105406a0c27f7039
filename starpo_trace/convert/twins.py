"""Calls that two libraries recorded, one not inside of the other -> which span stands for which."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A call whose answer has the id of another's."""

    row: int
    """Its span."""
    answer_id: str
    """Id that the server gave."""
    scope: str
    """Who recorded it."""
    start_ns: int
    """When it began."""
    end_ns: int | None
    """When it ended."""


def list_repeated_answers(frames: Mapping[str, pl.DataFrame]) -> list[Answer]:
    """Frames -> calls whose answer's id another call has too."""
    calls = frames["calls"].filter(
        pl.col("response_id").is_not_null() & pl.col("response_id").is_duplicated()
    )
    if not calls.height:
        return []
    found = calls.join(frames["spans"], on="row", how="inner").sort("row")
    names = ("row", "response_id", "scope", "start_ns", "end_ns")
    return [
        Answer(row=row, answer_id=answer_id, scope=scope, start_ns=start_ns, end_ns=end_ns)
        for row, answer_id, scope, start_ns, end_ns in found.select(names).iter_rows()
    ]


def find_same_answers(
    answers: Sequence[Answer],
    ids: Sequence[str | None],
    known: Mapping[int, int],
    worth: Callable[[int], tuple[bool, bool]],
) -> dict[int, int]:
    """Calls of other libraries, seen by two of them at one time, whose answers have one id.

    Some servers give every answer the same id, so the id alone does not tell.

    Args:
        answers: calls whose answer's id another has too.
        ids: trajectory of each span.
        known: spans for which another is known to stand.
        worth: of several records of one call the greatest stays; whether it is ours, first.
    """
    by_answer: dict[tuple[str | None, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.row not in known:
            by_answer[(ids[answer.row], answer.answer_id)].append(answer)
    twins: dict[int, int] = {}
    for several in by_answer.values():
        best = max(several, key=lambda each: (*worth(each.row), -each.row))
        for each in several:
            is_other = each.scope != best.scope and not worth(each.row)[0]
            if is_other and _overlap(each, best):
                twins[each.row] = best.row
    return twins


def follow_twins(twins: Mapping[int, int], i: int) -> int:
    """The span that stands for a rejected one; a chain of them has an end, for each is better."""
    for _ in range(len(twins)):
        if i not in twins:
            break
        i = twins[i]
    return i


def _overlap(one: Answer, other: Answer) -> bool:
    if one.end_ns is None or other.end_ns is None:
        return False
    return one.start_ns <= other.end_ns and other.start_ns <= one.end_ns
