"""Spans of another library beside ours -> which of ours is the same call, or the same run of a tool.

Two libraries that watch one program write into one trace, but not always one inside of the other: the
callbacks of LangChain's make no span current, and an agent of theirs may lie around ours. One of ours
stands for one span of each other library, at the same time and with the same answer, or of the same
tool.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

_LLM: Final = "llm"
_TOLD: Final = ("text", "tool_calls", "input_tokens", "output_tokens")
_NAMES: Final = ("row", "trace_id", "scope", "is_ours", "start_ns", "end_ns", "record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A model call or a step in a trace that we and others wrote in."""

    row: int
    """Its span."""
    trace_id: str
    """Its trace."""
    scope: str
    """Who recorded it."""
    is_ours: bool
    """Whether we did."""
    start_ns: int
    """When it began."""
    end_ns: int
    """When it ended."""
    kind: str
    """`llm`, or the kind of step."""
    name: str | None
    """Name of a tool."""
    call_id: str | None
    """Tool call that asked for it."""
    answer: tuple[str, tuple[str, ...]]
    """Text of a model's answer, and the ids of the tool calls in it."""
    usage: tuple[int | None, int | None]
    """Tokens of a model call."""


def list_watched(frames: Mapping[str, pl.DataFrame]) -> list[Watched]:
    """Frames -> model calls and steps of the traces that hold some of ours and some of others."""
    spans = frames["spans"].filter(
        pl.col("record").is_in([_LLM, "step"]) & pl.col("end_ns").is_not_null()
    )
    is_mixed = pl.col("is_ours").any() & ~pl.col("is_ours").all()
    spans = spans.filter(is_mixed.over("trace_id"))
    if not spans.height:
        return []
    calls = frames["calls"].select("row", *_TOLD)
    rows = spans.join(calls, on="row", how="left", maintain_order="left")
    return [_read_watched(row) for row in rows.iter_rows(named=True)]


def _read_watched(row: Mapping[str, Any]) -> Watched:
    calls = tuple(str(call["id"] or call["name"]) for call in row["tool_calls"] or ())
    return Watched(
        **{name: row[name] for name in _NAMES if name != "record"},
        kind=_LLM if row["record"] == _LLM else str(row["step_kind"]),
        name=row["tool_name"],
        call_id=row["tool_call_id"],
        answer=((row["text"] or "").strip(), calls),
        usage=(row["input_tokens"], row["output_tokens"]),
    )


def find_doubles(watched: Sequence[Watched], known: Mapping[int, int]) -> dict[int, int]:
    """Spans of others -> the span of ours that stands for each.

    Args:
        watched: what ours and others have in common traces.
        known: spans for which another is known to stand.
    """
    ours: dict[tuple[str, str], list[Watched]] = defaultdict(list)
    for each in watched:
        if each.is_ours:
            ours[each.trace_id, each.kind].append(each)
    taken = {(each.scope, known[each.row]) for each in watched if each.row in known}
    pairs = [
        (_measure(other, own), other.row, own.row, other.scope)
        for other in watched
        if not other.is_ours and other.row not in known
        for own in _find_same(other, ours[other.trace_id, other.kind])
    ]
    doubles: dict[int, int] = {}
    for _, other_row, own_row, scope in sorted(pairs):
        if other_row not in doubles and (scope, own_row) not in taken:
            doubles[other_row] = own_row
            taken.add((scope, own_row))
    return doubles


def _find_same(other: Watched, ours: Sequence[Watched]) -> Iterator[Watched]:
    is_same = _is_same_call if other.kind == _LLM else _is_same_tool
    for own in ours:
        if own.start_ns <= other.end_ns and other.start_ns <= own.end_ns and is_same(other, own):
            yield own


def _is_same_call(other: Watched, own: Watched) -> bool:
    """One answer; or what is told of it does not differ, where one of them was recorded without."""
    if other.answer == own.answer:
        return True
    if None not in other.usage and None not in own.usage:
        return other.usage == own.usage
    empty = ("", ())
    return empty in (other.answer, own.answer)


def _is_same_tool(other: Watched, own: Watched) -> bool:
    pairs = ((other.name, own.name), (other.call_id, own.call_id))
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _measure(other: Watched, own: Watched) -> tuple[bool, int]:
    """How far two are from being the same: the least comes first."""
    is_sure = other.call_id is not None and other.call_id == own.call_id
    distance_ns = abs(other.start_ns - own.start_ns) + abs(other.end_ns - own.end_ns)
    return not is_sure, distance_ns
