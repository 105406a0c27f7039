"""Frames of spans as read -> each span once, and the copies that contradict one another.

A span may be delivered again, and read from two places: equal copies are one span, silently. Copies
that differ are nobody's retry. A trajectory that holds one is fit for no training, because what
happened cannot be told from what somebody wrote over it. Copies of a reward are all kept until
their signatures are judged, so that no span with its ids can delete it.

Copies are equal when everything that is read of them is; what others add on the way, a Collector's
processor say, contradicts nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from starpo_trace.convert.staging import Frames, number_spans

CONFLICT: Final = "conflicting_copies"

_PLACE: Final = frozenset({"row", "source"})
_UNREAD: Final = frozenset({"not_an_agent_span"})
_KEY: Final = ["trace_id", "span_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctSpans:
    """Spans of which every one is there once, but for copies of rewards that differ."""

    frames: Frames
    """The spans, in a fixed order."""
    duplicates: dict[str, int]
    """Trace -> copies left out because they say nothing else."""
    contradicting: pl.DataFrame
    """Copies left out that differ from the one that stayed, as rows of `spans`."""
    contested: frozenset[tuple[str, str]]
    """Trace id and span id of spans of which there are copies that differ."""

    @property
    def num_duplicates(self) -> int:
        """Copies left out because they say nothing else."""
        return sum(self.duplicates.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """One of several spans with the same ids."""

    row: int
    trace_id: str
    end_ns: int | None
    source: str
    is_reward: bool
    is_read: bool
    content: str


def drop_copies(frames: Frames) -> DistinctSpans:
    """Frames, sorted by trace and span -> each span once, whatever the order they were read in.

    A finished copy silently replaces unfinished ones. Of finished ones that differ, the one that
    ended first stays.
    """
    spans = frames["spans"]
    is_copied = pl.struct(_KEY).is_duplicated()
    repeated = spans.filter(is_copied)
    if not repeated.height:
        return DistinctSpans(
            frames=frames, duplicates={}, contradicting=spans.clear(), contested=frozenset()
        )
    kept, contradicting, contested = [], [], set()
    duplicates: dict[str, int] = defaultdict(int)
    for key, copies in _gather_copies(frames, repeated).items():
        different = _find_different(copies)
        rewards = [copy for copy in different if copy.is_reward]
        others = [copy for copy in different if not copy.is_reward]
        stay = rewards + others[:1]
        lost = others[1:] if any(copy.is_read for copy in different) else []
        if len(different) > 1 and any(copy.is_read for copy in different):
            contested.add(key)
        kept += [copy.row for copy in stay]
        contradicting += [copy.row for copy in lost]
        duplicates[key[0]] += len(copies) - len(stay) - len(lost)
    order = spans.filter(~is_copied | pl.col("row").is_in(kept)).sort(*_KEY, _place_of(kept))
    return DistinctSpans(
        frames=number_spans(frames, order),
        duplicates=duplicates,
        contradicting=spans.filter(pl.col("row").is_in(contradicting)),
        contested=frozenset(contested),
    )


def _place_of(rows: Sequence[int]) -> pl.Expr:
    """Copies of a reward in the order of their content, which no order of reading changes."""
    return pl.col("row").replace_strict({row: i for i, row in enumerate(rows)}, default=-1)


def _gather_copies(frames: Frames, repeated: pl.DataFrame) -> dict[tuple[str, str], list[_Copy]]:
    """Spans with equal ids -> what is read of each, from all frames."""
    rows = repeated.select("row")
    content: dict[int, list[Any]] = defaultdict(list)
    for name, frame in frames.items():
        for each in frame.join(rows, on="row", how="semi", maintain_order="left").iter_rows(
            named=True
        ):
            told = {key: value for key, value in each.items() if key not in _PLACE}
            content[each["row"]].append((name, told))
    copies: dict[tuple[str, str], list[_Copy]] = defaultdict(list)
    for span in repeated.iter_rows(named=True):
        copy = _Copy(
            row=span["row"],
            trace_id=span["trace_id"],
            end_ns=span["end_ns"],
            source=span["source"],
            is_reward=span["record"] == "reward" or span["reason"] == "reward_value",
            is_read=span["reason"] not in _UNREAD,
            content=repr(content[span["row"]]),
        )
        copies[span["trace_id"], span["span_id"]].append(copy)
    return copies


def _find_different(copies: Sequence[_Copy]) -> list[_Copy]:
    finished = [copy for copy in copies if copy.end_ns is not None] or copies
    by_content: dict[str, _Copy] = {}
    for copy in sorted(finished, key=lambda copy: (copy.end_ns or 0, copy.source, copy.content)):
        by_content.setdefault(copy.content, copy)
    return sorted(by_content.values(), key=lambda copy: (copy.end_ns or 0, copy.content))
